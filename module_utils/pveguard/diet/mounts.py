# SPDX-License-Identifier: Apache-2.0
"""Access times and ext4's commit interval of the system's file systems: in fstab, remounted, proved by the kernel's own list.

Of fstab only the options of the lines in question change. A file system that is not in fstab (ZFS, a container) is left alone.
A remount names the device and all options of the mount, so that nothing else that stands in fstab meanwhile comes along.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.mountinfo import mountinfo
from ..base.run import Run
from .parts import Facts, Files, Found, Options, Work, editable, mounted, number, text, unescape

NAME = "mounts"
UNITS: tuple[str, ...] = ()
FSTAB = "/etc/fstab"
EDITED = (FSTAB,)
KEEP = "keep"
#: Where Debian's and Proxmox's installers put file systems of the system, and what lies below.
SYSTEM = ("/boot", "/home", "/opt", "/root", "/tmp", "/usr", "/var")
TYPES = ("ext4", "ext3", "xfs", "btrfs", "f2fs")
ATIMES = ("noatime", "relatime", "strictatime")
#: Of one mount, as mountinfo shows them in its own field; all are said again in a remount.
DEFAULT_COMMIT_S = 5
_LINE = re.compile(r"^(\s*[^#\s]\S*\s+)(\S+)(\s+)(\S+)(?:(\s+)(\S+))?(.*)$", re.DOTALL)


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``: whether one is in fstab; ``mounts``: of those ``point``, ``type``, ``source``, ``atime``, ``commit_s`` (None
    but for ext4 that can be given one), and what fstab says of both: ``fstab_atime`` (empty for nothing) and ``fstab_commit_s``.
    """
    described = {point: options for point, options in _lines(text(found.root / FSTAB.lstrip("/"))) if _is_system(point)}
    mounts = []
    for point, options in described.items():
        mount = mounted(point, found.mounts)
        if mount is None or mount["filesystem"] not in TYPES:
            continue
        own, whole = mount["mount_options"].split(","), mount["filesystem_options"].split(",")
        # Below a mount that is read-only by itself the file system is left alone: a remount would be for both.
        ext4 = mount["filesystem"] == "ext4" and ("ro" in own) == ("ro" in whole)
        mounts.append(
            {
                "point": point,
                "type": mount["filesystem"],
                "source": mount["source"],
                "atime": _atime(own) or "strictatime",
                "commit_s": _commit(whole) if ext4 else None,
                "fstab_atime": _atime(options),
                "fstab_commit_s": _commit(options) if ext4 else None,
            }
        )
    return {"installed": bool(mounts), "mounts": mounts}


def settings(options: Options) -> tuple[str, int]:
    """What is wanted: one of ATIMES or ``keep``, and seconds (0: as it is)."""
    return str(options.get("atime") or "noatime"), int(number(options.get("commit_seconds"), 0))


def differs(options: Options, facts: Facts) -> list[str]:
    atime, commit = settings(options)
    todo = []
    for mount in facts.get("mounts") or []:
        words = []
        # What fstab does not say is the kernel's default, which is relatime.
        if atime != KEEP and (mount["atime"] != atime or (mount["fstab_atime"] or "relatime") != atime):
            words.append(f"{atime} instead of {mount['atime'] if mount['atime'] != atime else 'nothing lasting'}")
        if commit and mount["commit_s"] is not None and {mount["commit_s"], mount["fstab_commit_s"]} != {commit}:
            words.append(f"commit={commit} instead of {mount['commit_s']}")
        if words:
            todo.append(f"mount {mount['point']} with {' and '.join(words)}")
    return todo


def owned(options: Options, facts: Facts) -> Files:
    return {}


def edited(options: Options, facts: Facts, root: Path) -> Files:
    atime, commit = settings(options)
    points = {mount["point"]: mount for mount in facts.get("mounts") or []}
    lines = []
    for line in editable(root / FSTAB.lstrip("/")).splitlines(keepends=True):
        match = _LINE.match(line)
        mount = points.get(_point(match[2])) if match else None
        if match and mount:
            given = match[6] or "defaults"
            wanted = given.split(",")
            if atime != KEEP and (_atime(wanted) or "relatime") != atime:
                wanted = [each for each in wanted if each not in (*ATIMES, "atime", "norelatime")] + [atime]
            if commit and mount["commit_s"] is not None and _commit(wanted) != commit:
                wanted = [each for each in wanted if not each.startswith("commit=")] + [f"commit={commit}"]
            if wanted != given.split(","):
                # Without options the line may end here.
                gap, rest = (match[5], match[7]) if match[6] else (" ", match[7])
                line = f"{match[1]}{match[2]}{match[3]}{match[4]}{gap}{','.join(wanted)}{rest}"
        lines.append(line)
    return {FSTAB: "".join(lines)}


def live(facts: Facts) -> Any:
    """How each was mounted, whatever fstab said."""
    return [{key: mount[key] for key in ("point", "atime", "commit_s")} for mount in facts.get("mounts") or []]


def activate(work: Work) -> None:
    """Remount what differs from what is wanted, or on the way back from what was."""
    work.systemctl("daemon-reload")
    atime, commit = settings(work.options or {})
    if work.options is None:
        wanted = {each["point"]: (each["atime"], each["commit_s"]) for each in work.was or []}
    else:
        there = work.facts.get("mounts") or []
        wanted = {each["point"]: (atime, None if each["commit_s"] is None else commit) for each in there}
    for point, (mode, seconds) in wanted.items():
        _remount(work, point, mode, seconds)


def _remount(work: Work, point: str, mode: str, seconds: int | None) -> None:
    mount = mounted(point, mountinfo(str(work.root)))
    if mount is None:
        return
    own = mount["mount_options"].split(",")
    if mode != KEEP and (_atime(own) or "strictatime") != mode:
        own = [each for each in own if each not in ATIMES] + [mode]
        work.command("mount", "-o", ",".join(["remount", "bind", *own]), mount["source"], point)
        work.done.append(f"{point} remounted with {mode}")
    if seconds and _commit(mount["filesystem_options"].split(",")) != seconds:
        work.command("mount", "-o", ",".join(["remount", *own, f"commit={seconds}"]), mount["source"], point)
        work.done.append(f"{point} remounted with commit={seconds}")


def _lines(fstab: str) -> list[tuple[str, list[str]]]:
    """(mount point, options) of each line."""
    matches = [match for line in fstab.splitlines() if (match := _LINE.match(line))]
    return [(_point(match[2]), (match[6] or "defaults").split(",")) for match in matches]


def _point(word: str) -> str:
    return os.path.normpath(unescape(word)) if word.startswith("/") else word


def _is_system(point: str) -> bool:
    return point == "/" or any(point == each or point.startswith(f"{each}/") for each in SYSTEM)


def _atime(options: Sequence[str]) -> str:
    """The last word on access times; empty for none."""
    names: Mapping[str, str] = {**{each: each for each in ATIMES}, "atime": "relatime", "norelatime": "strictatime"}
    return next((names[each] for each in reversed(options) if each in names), "")


def _commit(options: Sequence[str]) -> int:
    values = [each.partition("=")[2] for each in options if each.startswith("commit=")]
    return int(values[-1]) if values and values[-1].isdigit() and int(values[-1]) else DEFAULT_COMMIT_S
