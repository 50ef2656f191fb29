"""A set of files on a node, brought to their content in one call, atomically one by one, and put back byte for byte.

With ``kept_for``, the name of a role or of one of its measures (``write_diet.atime``), the state before the first change is
kept below ``/var/lib/pveguard/managed/NAME``: content, mode and owner, or that there was no file. :func:`revert` puts it back.
What was written is noted too, so that a change by somebody else is told from it.

For each file there are, by its escaped path, ``.original`` (its content), ``.json`` (the note) and, where somebody's change was
overwritten, ``.changed`` (the last content found so). The note is written after the original and before the file, each durable
before the next: after a power cut at any point a revert finds what it needs, and a second run finishes the first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .atomic import fsync_dir, link_atomic, read_or_none, write_atomic
from .errors import PveguardError
from .file_state import ABSENT, look, of_file

STORE = "var/lib/pveguard/managed"
#: What to do with a file that somebody changed since: take it as it is to be, or touch nothing.
OVERWRITE, REFUSE = "overwrite", "refuse"

_NAME = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)?")
_ROOT = Path("/")


@dataclass(frozen=True)
class FileSpec:
    """One file. ``mode`` is octal text such as ``"0644"``; ``secret`` keeps its content out of a diff. With ``link`` it
    is a symbolic link to that path instead, and only such a link is removed. ``uid`` and ``gid`` count for root alone.
    """

    path: str
    content: str | bytes = ""
    mode: str = "0644"
    present: bool = True
    secret: bool = False
    link: str = ""
    uid: int = 0
    gid: int = 0

    @property
    def data(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.encode()


@dataclass(frozen=True)
class Change:
    """A file that differs: its path, the text before and after (empty when absent), what differs, and how somebody has
    changed it since it was written (empty when nobody has, or nothing of it was kept).
    """

    path: str
    before: str
    after: str
    what: str
    drift: str = ""


def plan(
    specs: Sequence[FileSpec], kept_for: str = "", root: Path | str = _ROOT, drift: str = OVERWRITE
) -> list[Change]:
    """What :func:`apply` would change, in order. Raises PveguardError for a path it must not touch."""
    root = Path(root)
    changes = []
    for spec in specs:
        target = _target(spec.path, root)
        note = _note(kept_for, spec.path, root) if kept_for else None
        if kept_for and note is None:
            _refuse_other_keeper(kept_for, spec.path, root)
        found = _plan_link(spec, target) if _is_about_link(spec, target) else _plan_file(spec, target)
        since = _drift(note, target) if found and note else ""
        changes += [Change(each.path, each.before, each.after, each.what, since) for each in found]
    _refuse_drift(changes, kept_for, root, drift)
    return changes


def apply(
    specs: Sequence[FileSpec], kept_for: str = "", root: Path | str = _ROOT, drift: str = OVERWRITE
) -> list[Change]:
    """Bring every file to its content and mode; returns what was changed. Missing directories are made (0755).

    ``drift``: ``refuse`` raises PveguardError, before anything is written, where somebody changed a file since the last run.
    """
    root = Path(root)
    changes = plan(specs, kept_for, root, drift)
    wanted = {spec.path: spec for spec in specs}
    for change in changes:
        spec = wanted[change.path]
        target = _target(spec.path, root)
        if kept_for:
            _keep(spec, kept_for, target, root)
        if not spec.present:
            target.unlink()
            fsync_dir(target.parent)
            continue
        _make_folders(target.parent)
        if spec.link:
            link_atomic(target, spec.link)
        else:
            write_atomic(target, spec.data, int(spec.mode, 8), spec.uid, spec.gid)
    return changes


def plan_revert(
    kept_for: str,
    root: Path | str = _ROOT,
    paths: Sequence[str] | None = None,
    drift: str = REFUSE,
    instead: Mapping[str, bytes] | None = None,
) -> list[Change]:
    """What :func:`revert` would change, by path."""
    root = Path(root)
    changes = []
    for note in _notes(kept_for, root, paths, instead):
        target = _target(note["path"], root)
        now = look(target)
        if now["kind"] == "other":
            raise PveguardError(f"{note['path']}: is {now['what']}, a file was expected; nothing was reverted")
        if now == note["original"]:
            continue
        before, after = _text(now, target, note), _text(note["original"], _store(kept_for, note["path"], root), note, True)
        if before == after:
            before, after = _mode_text(now), _mode_text(note["original"])
        what = "removed" if note["original"] == ABSENT else "reverted"
        changes.append(Change(note["path"], before, after, what, _drift(note, target)))
    _refuse_drift(changes, kept_for, root, drift)
    return changes


def revert(
    kept_for: str,
    root: Path | str = _ROOT,
    paths: Sequence[str] | None = None,
    drift: str = REFUSE,
    instead: Mapping[str, bytes] | None = None,
) -> list[Change]:
    """Put every file that was kept for this name back as it was, or those of ``paths``; returns what was changed.

    ``instead``: content in the place of the original, by path, of a file in which somebody else has lines of his own.
    Raises PveguardError, before anything is changed, where somebody changed one since; with ``drift="overwrite"`` that
    content stays in the store as ``.changed``. Nothing is kept for the name afterwards, so that a second run changes nothing.
    """
    root = Path(root)
    changes = plan_revert(kept_for, root, paths, drift, instead)
    drifted = {change.path for change in changes if change.drift}
    for note in _notes(kept_for, root, paths, instead):
        target, kept = _target(note["path"], root), _store(kept_for, note["path"], root)
        if note["path"] in drifted:
            _keep_changed(target, kept)
        if look(target) != note["original"]:
            _put_back(note, target, kept)
        for folder in reversed(note.get("made", [])):
            remove_empty(root / folder.lstrip("/"))
        _forget(kept)
    remove_empty(root / STORE / kept_for)
    remove_empty(root / STORE)
    return changes


def drifted(kept_for: str, root: Path | str = _ROOT) -> dict[str, str]:
    """``{path: what somebody changed since it was written}``; empty when nobody has, or nothing is kept for this name."""
    root = Path(root)
    found = {note["path"]: _drift(note, _target(note["path"], root)) for note in _notes(kept_for, root)}
    return {path: what for path, what in found.items() if what}


def names(root: Path | str = _ROOT, of: str = "") -> list[str]:
    """Names that something is kept for: all, or those of one role (its own and ``ROLE.MEASURE``)."""
    folder = Path(root) / STORE
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    return [name for name in found if not of or name == of or name.startswith(f"{of}.")]


def paths(kept_for: str, root: Path | str = _ROOT) -> list[str]:
    """The files that something is kept of for this name."""
    return [note["path"] for note in _notes(kept_for, Path(root))]


def original(kept_for: str, path: str, root: Path | str = _ROOT) -> bytes | None:
    """The content of a file before pveguard: the kept one, else what is there now; None when there was no file."""
    root = Path(root)
    note = _note(kept_for, path, root)
    if note is None:
        return read_or_none(_target(path, root))
    return _original_data(note, _store(kept_for, path, root)) if note["original"]["kind"] == "file" else None


# -- planning


def _target(path: str, root: Path) -> Path:
    if not path.startswith("/"):
        raise PveguardError(f"{path}: the path must be absolute")
    if os.path.normpath(path) != path or path.startswith("//"):
        raise PveguardError(f"{path}: write the path as /{os.path.normpath(path).lstrip('/')}")
    target = root / path.lstrip("/")
    pve = os.path.join(os.path.realpath(root), "etc/pve")
    if path.startswith("/etc/pve/") or os.path.realpath(target.parent).startswith(pve + "/") or (
        os.path.realpath(target.parent) == pve
    ):
        raise PveguardError(f"{path}: files on /etc/pve are written by the module pve_file")
    return target


def _is_about_link(spec: FileSpec, target: Path) -> bool:
    return bool(spec.link) or (target.is_symlink() and not spec.present)


def _plan_file(spec: FileSpec, target: Path) -> list[Change]:
    now = look(target)
    if now["kind"] in ("link", "other"):
        kind = "a symbolic link" if now["kind"] == "link" else now["what"]
        raise PveguardError(f"{spec.path}: is {kind}, a regular file was expected; put one in its place first")
    if not spec.present:
        return [] if now == ABSENT else [Change(spec.path, _shown(spec.secret, target.read_bytes()), "", "removed")]
    if now == ABSENT:
        return [Change(spec.path, "", _shown(spec.secret, spec.data), "created")]
    wanted = _wanted(spec)
    if now["sha256"] != wanted["sha256"]:
        return [Change(spec.path, _shown(spec.secret, target.read_bytes()), _shown(spec.secret, spec.data), "content")]
    owner = ("uid", "gid") if os.geteuid() == 0 else ()
    if any(now[key] != wanted[key] for key in ("mode", *owner)):
        return [Change(spec.path, _mode_text(now), _mode_text(wanted), "mode")]
    return []


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


def _refuse_drift(changes: Sequence[Change], kept_for: str, root: Path, drift: str) -> None:
    found = [change for change in changes if change.drift]
    if drift != REFUSE or not found:
        return
    shown = "; ".join(f"{change.path}: {change.drift}" for change in found)
    raise PveguardError(
        f"somebody changed what pveguard wrote, and nothing was changed now: {shown}. The originals are in "
        f"/{STORE}/{kept_for}; compare them, take over what is to stay, and run again with drift: overwrite (of the module; "
        "of playbooks/revert.yml -e pveguard_revert_drift=overwrite)"
    )


def _refuse_other_keeper(kept_for: str, path: str, root: Path) -> None:
    for name in names(root):
        if name != kept_for and _note(name, path, root) is not None:
            raise PveguardError(f"{path}: is managed for {name} already, {kept_for} must not change it too")


# -- fingerprints


def wanted(spec: FileSpec, as_root: bool = True) -> dict[str, Any]:
    """What :func:`.file_state.look` says of a file that is as ``spec`` wants it; ``as_root``: whether root wrote it."""
    if not spec.present:
        return dict(ABSENT)
    if spec.link:
        return {"kind": "link", "target": spec.link}
    uid, gid = (spec.uid, spec.gid) if as_root else (os.geteuid(), os.getegid())
    return of_file(spec.data, int(spec.mode, 8), uid, gid)


def _wanted(spec: FileSpec) -> dict[str, Any]:
    return wanted(spec, os.geteuid() == 0)


def _drift(note: dict[str, Any] | None, target: Path) -> str:
    """How a file differs from what was written last; empty when it does not, or when the original is there."""
    if note is None:
        return ""
    now, written = look(target), note["written"][-1]
    if now == note["original"] or now in note["written"]:
        return ""
    if now["kind"] != written["kind"]:
        words = {"absent": "it is gone", "link": "it is a symbolic link", "file": "it is a file again"}
        return words.get(now["kind"], f"it is {now.get('what')}")
    if now["kind"] == "link":
        return f"it leads to {now['target']}, not to {written['target']}"
    if now["sha256"] != written["sha256"]:
        return "another content"
    return f"{_mode_text(now).strip()}, not {_mode_text(written).strip()}"


def _mode_text(state: dict[str, Any]) -> str:
    return f"mode {state['mode']}, uid {state['uid']}, gid {state['gid']}\n" if state["kind"] == "file" else ""


def _shown(secret: bool, data: bytes) -> str:
    return "(secret)\n" if secret and data else data.decode("utf-8", "replace")


def _text(state: dict[str, Any], path: Path, note: dict[str, Any], kept: bool = False) -> str:
    if state["kind"] == "link":
        return f"link to {state['target']}\n"
    if state["kind"] != "file":
        return ""
    return _shown(note.get("secret", False), _original_data(note, path) if kept else path.read_bytes())


# -- the store


def _store(kept_for: str, path: str, root: Path) -> Path:
    """The path of what is kept of a file, without its ending."""
    if not _NAME.fullmatch(kept_for):
        raise PveguardError(f"{kept_for!r} is no name to keep files for: a role's, or ROLE.MEASURE")
    name = quote(path.lstrip("/"), safe="")
    return root / STORE / kept_for / (name if len(name) <= 200 else hashlib.sha256(path.encode()).hexdigest())


def _note(kept_for: str, path: str, root: Path) -> dict[str, Any] | None:
    return _read_note(_with(_store(kept_for, path, root), ".json"))


def _read_note(file: Path) -> dict[str, Any] | None:
    text = read_or_none(file)
    if text is None:
        return None
    try:
        note = json.loads(text)
        if {"path", "original", "written"} <= set(note) and note["written"]:
            return dict(note)
    except (ValueError, TypeError):
        pass
    raise PveguardError(f"{file}: is damaged; compare the file beside it that ends in .original by hand, and remove both")


def _notes(
    kept_for: str, root: Path, paths: Sequence[str] | None = None, instead: Mapping[str, bytes] | None = None
) -> list[dict[str, Any]]:
    folder = _store(kept_for, "/x", root).parent
    found = [_read_note(file) for file in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    notes = [note for note in found if note is not None and (paths is None or note["path"] in paths)]
    for note in notes:
        now = look(_target(note["path"], root))
        if now["kind"] == "file" and (data := (instead or {}).get(note["path"])) is not None:
            note["original"], note["instead"] = of_file(data, int(now["mode"], 8), now["uid"], now["gid"]), data
    return notes


def _with(kept: Path, ending: str) -> Path:
    return kept.parent / f"{kept.name}{ending}"


def _keep(spec: FileSpec, kept_for: str, target: Path, root: Path) -> None:
    """Note what is written next, and before the first time what was there."""
    kept = _store(kept_for, spec.path, root)
    note = _note(kept_for, spec.path, root)
    _make_folders(kept.parent, 0o700)
    # What a power cut left of a write, which has no other end.
    left = re.compile(rf"\.{re.escape(target.name)}\.([0-9a-f]{{12}}|[a-z0-9_]{{8}})")
    for entry in target.parent.iterdir() if target.parent.is_dir() else ():
        if left.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink():
            entry.unlink()
    if note is None:
        now = look(target)
        if now["kind"] == "file":
            data = target.read_bytes()
            write_atomic(_with(kept, ".original"), data, 0o600)
            now["sha256"] = hashlib.sha256(data).hexdigest()
        missing = [folder for folder in reversed([target.parent, *target.parent.parents]) if not folder.exists()]
        note = {
            "path": spec.path,
            "original": now,
            "written": [],
            "made": [f"/{folder.relative_to(root)}" for folder in missing],
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    former = note["written"][-1:]
    if former and _drift(note, target):
        _keep_changed(target, kept)
    elif former:
        # What is there may be of an earlier write: an undo puts that back without this core.
        former = [look(target)]
    # Until the file is written the former content is ours too.
    note["written"] = [*former, _wanted(spec)]
    note["secret"] = bool(note.get("secret") or spec.secret)
    write_atomic(_with(kept, ".json"), (json.dumps(note, indent=1, sort_keys=True) + "\n").encode(), 0o600)


def _keep_changed(target: Path, kept: Path) -> None:
    if not target.is_symlink() and (data := read_or_none(target)) is not None:
        write_atomic(_with(kept, ".changed"), data, 0o600)


def _original_data(note: dict[str, Any], kept: Path) -> bytes:
    if "instead" in note:
        return bytes(note["instead"])
    data = read_or_none(_with(kept, ".original"))
    if data is None or hashlib.sha256(data).hexdigest() != note["original"]["sha256"]:
        kept_file = _with(kept, ".original")
        raise PveguardError(f"{kept_file}: the original of {note['path']} is missing or damaged; nothing was reverted")
    return data


def _put_back(note: dict[str, Any], target: Path, kept: Path) -> None:
    was = note["original"]
    if was["kind"] == "absent":
        target.unlink()
        fsync_dir(target.parent)
        return
    _make_folders(target.parent)
    if was["kind"] == "link":
        link_atomic(target, was["target"])
    else:
        write_atomic(target, _original_data(note, kept), int(was["mode"], 8), was["uid"], was["gid"])


def _forget(kept: Path) -> None:
    # Without its note an original counts for nothing, so the note goes first.
    for ending in (".json", ".original"):
        _with(kept, ending).unlink(missing_ok=True)
        fsync_dir(kept.parent)


def _make_folders(folder: Path, mode: int = 0o755) -> None:
    """Make a directory and those above it, durably; ``mode`` is that of the last."""
    for each in [*reversed(folder.parents), folder]:
        if not each.is_dir():
            each.mkdir(mode=mode if each == folder else 0o755, exist_ok=True)
            fsync_dir(each.parent)


def remove_empty(folder: Path) -> None:
    """Remove a directory unless it is gone already, or somebody has put something into it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        fsync_dir(folder.parent)
