# SPDX-License-Identifier: Apache-2.0
"""What grew or changed below the paths of known writers between two readings: it tells apart what one unit writes.

Nothing is traced. A file's growth is less than what it cost the drive, which writes whole pages; what was removed in between
is not seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..base.mountinfo import mountinfo

ACCESS_LOG = "/var/log/pveproxy"
TASK_LOGS = "/var/log/pve/tasks"
APT = ("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/apt/archives", "/var/lib/dpkg", "/var/log/apt")
RRDCACHED, RRDCACHED_GROUP = "/run/rrdcached.sock", "system.slice/rrdcached.service"
RRD_JOURNAL = "rrd.journal."

PAGE = os.sysconf("SC_PAGE_SIZE")
#: More task logs are not counted: each costs a system call.
_MOST_FILES = 20_000
#: Files of apt that were written within so many seconds count as one run, and so many runs are remembered.
_RUN_SECONDS, _RUNS = 600, 8
_RRDCACHED_SECONDS = 1.0


def reading(root: Path) -> dict[str, Any]:
    """Sizes and times of now: ``access_log`` (``{inode: size}``), ``task_logs`` (bytes of all, None: none or too many), ``apt``
    (``[[time of the first, bytes]]`` of the last runs), ``rrd_journal`` (bytes since rrdcached was started, None: not told, or
    the journal is in RAM).
    """
    return {
        "access_log": _access_log(root),
        "task_logs": _task_logs(root),
        "apt": _apt(root),
        "rrd_journal": _rrd_journal(root),
    }


def now() -> str:
    """The time of the system, UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def text(path: Path) -> str:
    """The text of a file of the kernel's, empty where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _below(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        if entry.is_file(follow_symlinks=False):
            return entry.stat(follow_symlinks=False)
    return None


def _access_log(root: Path) -> dict[str, int]:
    found = {}
    for entry in _below(root / ACCESS_LOG.lstrip("/")):
        # logrotate renames it, and writes the compressed ones itself.
        if re.fullmatch(r"access\.log(\.\d+)?", entry.name) and (status := _status(entry)):
            found[str(status.st_ino)] = status.st_size
    return found


def _task_logs(root: Path) -> int | None:
    folder = root / TASK_LOGS.lstrip("/")
    if not folder.is_dir():
        return None
    total = files = 0
    for entry in _below(folder):
        for each in [entry] if not entry.is_dir(follow_symlinks=False) else _below(Path(entry.path)):
            if status := _status(each):
                total, files = total + status.st_size, files + 1
            if files > _MOST_FILES:
                return None
    return total


def _apt(root: Path) -> list[list[int]]:
    changed = [
        (int(status.st_mtime), status.st_size)
        for folder in APT
        for entry in _below(root / folder.lstrip("/"))
        if (status := _status(entry))
    ]
    runs: list[list[int]] = []
    for moment, size in sorted(changed):
        if runs and moment - runs[-1][0] < _RUN_SECONDS:
            runs[-1][1] += size
        else:
            runs.append([moment, size])
    return runs[-_RUNS:]


def _rrd_journal(root: Path) -> int | None:
    """``JournalBytes`` of the command STATS, see rrdcached(1): it only reads."""
    path = root / RRDCACHED.lstrip("/")
    if not path.exists() or _rrd_journal_in_ram(root):
        return None
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_RRDCACHED_SECONDS)
            connection.connect(str(path))
            connection.sendall(b"STATS\n")
            # "9 Statistics follow", then so many lines.
            while (count := re.match(rb"(\d+) [^\n]*\n", answer)) is None or answer.count(b"\n") <= int(count[1]):
                part = connection.recv(4096)
                if not part or len(answer) > 65536:
                    break
                answer += part
    except (OSError, ValueError):
        return None
    found = re.search(rb"^JournalBytes: (\d+)$", answer, re.MULTILINE)
    return int(found[1]) if found else None


def _rrd_journal_in_ram(root: Path) -> bool:
    """By the file that the daemon has open."""
    for tree in ("", "/unified", "/systemd"):
        for pid in text(root / f"sys/fs/cgroup{tree}/{RRDCACHED_GROUP}/cgroup.procs").split():
            for entry in _below(root / f"proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(entry.path)
                    if os.path.basename(target).startswith(RRD_JOURNAL):
                        return _filesystem(target, root) in ("tmpfs", "ramfs")
    return False


def _filesystem(path: str, root: Path) -> str:
    """The type of the file system that a path is on, empty where it is not known; of mounts on one point the last one counts."""
    around = [each for each in mountinfo(str(root)) if f"{path}/".startswith(f"{each['mount_point'].rstrip('/')}/")]
    return max(reversed(around), key=lambda each: len(each["mount_point"]))["filesystem"] if around else ""
