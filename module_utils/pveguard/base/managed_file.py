"""A set of files on a node, brought to their content in one call, atomically one by one."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .atomic import fsync_dir, read_or_none, write_atomic
from .errors import PveguardError


@dataclass(frozen=True)
class FileSpec:
    """One file. ``mode`` is octal text such as ``"0644"``; ``secret`` keeps its content out of a diff. With ``link`` it
    is a symbolic link to that path instead, and only such a link is removed.
    """

    path: str
    content: str = ""
    mode: str = "0644"
    present: bool = True
    secret: bool = False
    link: str = ""


@dataclass(frozen=True)
class Change:
    """A file that differs: its path, the text before and after (empty when absent), and what differs."""

    path: str
    before: str
    after: str
    what: str


def plan(specs: Sequence[FileSpec]) -> list[Change]:
    """What :func:`apply` would change, in order. Raises PveguardError for a path it must not touch."""
    changes = []
    for spec in specs:
        target = Path(spec.path)
        if not target.is_absolute():
            raise PveguardError(f"{spec.path}: the path must be absolute")
        if spec.path.startswith("/etc/pve/"):
            raise PveguardError(f"{spec.path}: files on /etc/pve are written by the module pve_file")
        if spec.link or (target.is_symlink() and not spec.present):
            changes += _plan_link(spec, target)
            continue
        if target.is_symlink() or target.is_dir():
            kind = "symbolic link" if target.is_symlink() else "directory"
            if spec.present or target.is_dir():
                raise PveguardError(f"{spec.path}: is a {kind}, a regular file was expected; remove it first")
        now = read_or_none(target)
        if not spec.present:
            if os.path.lexists(target):
                changes.append(Change(spec.path, _shown(spec, now or b""), "", "removed"))
            continue
        wanted = spec.content.encode()
        mode = int(spec.mode, 8)
        if now is None:
            changes.append(Change(spec.path, "", _shown(spec, wanted), "created"))
        elif now != wanted:
            changes.append(Change(spec.path, _shown(spec, now), _shown(spec, wanted), "content"))
        elif stat.S_IMODE(target.stat().st_mode) != mode or (os.geteuid() == 0 and target.stat().st_uid != 0):
            before = f"mode {stat.S_IMODE(target.stat().st_mode):04o}, uid {target.stat().st_uid}\n"
            changes.append(Change(spec.path, before, f"mode {mode:04o}, uid 0\n", "mode"))
    return changes


def _plan_link(spec: FileSpec, target: Path) -> list[Change]:
    if os.path.lexists(target) and not target.is_symlink():
        if not spec.present:
            # Somebody else's file in the place of the link.
            return []
        raise PveguardError(f"{spec.path}: a symbolic link to {spec.link} was expected; move what is there away first")
    before = f"link to {os.readlink(target)}\n" if target.is_symlink() else ""
    after = f"link to {spec.link}\n"
    if not spec.present:
        ours = before and (not spec.link or before == after)
        return [Change(spec.path, before, "", "removed")] if ours else []
    return [Change(spec.path, before, after, "content" if before else "created")] if before != after else []


def apply(specs: Sequence[FileSpec]) -> list[Change]:
    """Bring every file to its content and mode; returns what was changed. Missing directories are made (0755)."""
    changes = plan(specs)
    wanted = {spec.path: spec for spec in specs}
    for change in changes:
        spec = wanted[change.path]
        target = Path(spec.path)
        if not spec.present:
            target.unlink()
            fsync_dir(target.parent)
            continue
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if spec.link:
            temporary = target.with_name(f".{target.name}.tmp{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(spec.link)
            temporary.rename(target)
            fsync_dir(target.parent)
            continue
        write_atomic(target, spec.content.encode(), int(spec.mode, 8))
    return changes


def _shown(spec: FileSpec, data: bytes) -> str:
    return "(secret)\n" if spec.secret and data else data.decode("utf-8", "replace")
