# SPDX-License-Identifier: Apache-2.0
"""What the measures of the write diet have in common: what is read, how a file is compared and edited, how a unit is asked.

A measure is a core with these names. What takes ``facts`` is pure, so that the controller decides by the facts of node_info.

``NAME``, ``UNITS``         its name, and the units whose properties it wants
``look(found, run)``        its facts on a node, small, without changing anything (:class:`Found`)
``differs(options, facts)`` what is to be done, a sentence each without a subject; empty when nothing is
``owned(options, facts)``   the files that are its own: path -> text, or :class:`Link`
``activate(work)``          make files that are written count: restart, remount, set (:class:`Work`)

and, where it needs them:

``edited(options, facts, root)``  files of others that it edits, path -> whole text (on the node alone), with ``EDITED``: which
``refuse(options, facts, root)``  raises PveguardError before anything is changed (on the node alone)
``live(facts)``             what is to be remembered of the state before the first change, beside files
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.file_state import look as state_of
from ..base.run import Run

PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "ControlGroup", "FragmentPath", "SourcePath", "DropInPaths")
BEGIN, END = "# pveguard write_diet: begin", "# pveguard write_diet: end"
#: How long systemctl may take for one call; a stop may have values to write.
SYSTEMCTL_S = 600.0


class Link(str):
    """In the place of a text: a symbolic link to this path."""


Files = dict[str, str]
Facts = Mapping[str, Any]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What all looks share: where the node is, its units' properties by unit, its mounts in the order they were made."""

    root: Path
    units: Mapping[str, Mapping[str, str]]
    mounts: Sequence[Mapping[str, str]]


@dataclass
class Work:
    """One activation. ``options`` is None where the measure is taken back; ``facts`` are from before, ``was`` what
    :func:`live` said before the first change. ``changed``: paths that were written or put back. ``done``: what was done, a
    sentence each.
    """

    root: Path
    run: Run
    facts: Facts
    options: Options | None
    was: Any = None
    changed: Sequence[str] = ()
    done: list[str] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def command(self, *argv: str, what: str = "") -> str:
        """Run a command that has to succeed; returns what it printed."""
        result = self.run(list(argv), timeout=SYSTEMCTL_S)
        if not result.ok:
            said = (result.stderr or result.stdout).strip()[-400:]
            raise PveguardError(f"{what or ' '.join(argv)} failed: {said or f'exit code {result.rc}'}")
        return result.stdout

    def systemctl(self, *arguments: str) -> str:
        return self.command("systemctl", *arguments)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def loaded(unit: Mapping[str, str] | None) -> bool:
    return bool(unit) and (unit or {}).get("LoadState") == "loaded"


def active(unit: Mapping[str, str] | None) -> bool:
    return bool(unit) and (unit or {}).get("ActiveState") in ("active", "activating", "reloading")


def mounted(point: str, mounts: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """The topmost mount on a mount point."""
    return next((each for each in reversed(mounts) if each["mount_point"] == point), None)


def unescape(word: str) -> str:
    """fstab and swaps write blanks and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def text(path: Path) -> str:
    """A file's text, empty where it cannot be read."""
    try:
        return editable(path)
    except OSError:
        return ""


def editable(path: Path) -> str:
    """The text of a file that is written again, byte for byte the same by :func:`data`; empty where there is none, and only then:
    raises ``OSError``.
    """
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def data(content: str) -> bytes:
    return content.encode("utf-8", "surrogateescape")


def file_states(files: Sequence[str], root: Path) -> dict[str, str]:
    """What is at each path, in a form that :func:`same` compares: short, as it is a fact of every run."""
    return {path: _short(state_of(root / path.lstrip("/"))) for path in files}


def _short(state: Mapping[str, Any]) -> str:
    if state["kind"] == "file":
        return f"{state['mode']} {state['sha256'][:24]}"
    return f"link {state['target']}" if state["kind"] == "link" else str(state["kind"])


def same(states: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether every file of ``wanted`` is there as it is to be, by :func:`file_states`."""
    return all(states.get(path) == _wanted(content) for path, content in wanted.items())


def _wanted(content: str) -> str:
    if isinstance(content, Link):
        return f"link {content}"
    return f"0644 {hashlib.sha256(data(content)).hexdigest()[:24]}"


def with_block(original: str, lines: Sequence[str]) -> str:
    """A text with a block of pveguard's at its end, in place of the one that is there; without lines there is none. What
    follows a begin without an end stays, as it may be somebody's.
    """
    kept: list[str] = []
    block: list[str] | None = None
    for line in original.splitlines(keepends=True):
        if line.strip() == BEGIN:
            kept += block or []
            block = []
        elif block is not None and line.strip() == END:
            block = None
        else:
            (kept if block is None else block).append(line)
    base = "".join(kept + (block or []))
    if not lines:
        return base
    gap = "" if not base or base.endswith("\n") else "\n"
    return base + gap + "\n".join([BEGIN, *lines, END]) + "\n"


def assignments(shell: str) -> dict[str, str]:
    """``NAME=value`` of a file in /etc/default, the last one of a name wins. A value may end on a later line, and blanks need no
    quotes where systemd reads it.
    """
    import shlex

    found: dict[str, str] = {}
    lines = iter(shell.splitlines())
    for line in lines:
        match = re.match(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", line)
        value = match[2] if match else ""
        while match:
            try:
                found[match[1]] = " ".join(shlex.split(value, comments=True))
                break
            except ValueError:
                more = next(lines, None)
                if more is None:
                    break
                value = value.removesuffix("\\") + ("" if value.endswith("\\") else "\n") + more
    return found


def mount_unit(path: str) -> str:
    """The name of the unit for a mount point, as systemd-escape --path does it."""
    inner = os.path.normpath(path).strip("/")
    if not inner:
        return "-.mount"
    escaped = "".join(
        "-" if char == "/" else char if re.match(r"[A-Za-z0-9:_.]", char) and not (char == "." and index == 0)
        else "".join(f"\\x{byte:02x}" for byte in char.encode())
        for index, char in enumerate(inner)
    )
    return f"{escaped}.mount"


def processes(unit: Mapping[str, str] | None, root: Path) -> list[int]:
    """The processes of a unit, by its control group: a guest's of the same name is in another."""
    group = (unit or {}).get("ControlGroup") or ""
    if not group:
        return []
    for tree in ("", "/unified", "/systemd"):
        found = text(root / f"sys/fs/cgroup{tree}{group}/cgroup.procs").split()
        if found:
            return [int(pid) for pid in found if pid.isdigit()]
    return []


def command_line(pid: int, root: Path) -> list[str]:
    try:
        return (root / f"proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def has_space(folder: Path, size: int) -> bool:
    """Whether so many bytes can be written to a folder: tried, with a file that has no name, as what statvfs calls free may be a
    reserve of root or of the file system itself. True where that cannot be tried.
    """
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return error.errno != errno.ENOSPC
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    finally:
        os.close(fd)
    return True


def number(value: Any, default: float) -> float:
    """A number of options, which may be text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return default
