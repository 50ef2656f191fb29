# SPDX-License-Identifier: Apache-2.0
"""What no measure changes and a finding is told of: logs in RAM, and the file system below the database."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import Run
from ..disk import block_writes

LOGS = "/var/log"
#: Where the database is saved to while it is in RAM.
STORE = "/var/lib/pveguard/state"
_MEMORY = ("tmpfs", "ramfs")
#: linux/fs.h: FS_IOC_GETFLAGS and FS_NOCOW_FL, which chattr +C sets.
_GETFLAGS, _NOCOW = 0x80086601, 0x00800000


def look(root: Path, mounts: Sequence[Mapping[str, str]], run: Run) -> dict[str, Any]:
    """``ram_logs``: file systems in RAM at or below /var/log, ``point``, ``by`` (what it is called), ``fill_percent`` (None where
    it is not known); ``database``: ``path``, ``filesystem``, ``in_memory``, and of the file system that synced writes of it, or
    of its replica, end on: ``zfs_sync``, ``nodatacow`` (None each elsewhere) and ``durable_path``.
    """
    logs = [
        {"point": mount["mount_point"], "by": _name(mount), "fill_percent": _fill(root, mount["mount_point"])}
        for mount in mounts
        if (mount["mount_point"] == LOGS or mount["mount_point"].startswith(f"{LOGS}/")) and in_ram(mount)
    ]
    return {"ram_logs": logs, "database": _database(root, run)}


def in_ram(mount: Mapping[str, Any]) -> bool:
    """Whether a mount (of mountinfo, or behind a path) has no disk."""
    return mount["filesystem"] in _MEMORY or mount["source"].startswith("/dev/zram")


def _name(mount: Mapping[str, str]) -> str:
    return "a tmpfs" if mount["source"] in ("tmpfs", "none") else mount["source"]


def _fill(root: Path, point: str) -> int | None:
    try:
        space = os.statvfs(root / point.lstrip("/"))
    except OSError:
        return None
    return round(100 * (space.f_blocks - space.f_bavail) / space.f_blocks) if space.f_blocks else None


def _database(root: Path, run: Run) -> dict[str, Any]:
    folder = os.path.dirname(block_writes.DATABASE)
    where = block_writes.device_behind(folder, root, skip_memory=False)
    durable = folder
    below = where
    if where["in_memory"]:
        durable = STORE
        below = block_writes.device_behind(STORE, root)
    return {
        "path": folder,
        "filesystem": where["filesystem"],
        "in_memory": where["in_memory"],
        "durable_path": durable,
        "zfs_sync": _zfs_sync(below["source"], run) if below["filesystem"] == "zfs" else None,
        "nodatacow": _nodatacow(root, durable, below["mount_options"]) if below["filesystem"] == "btrfs" else None,
    }


def _zfs_sync(dataset: str, run: Run) -> str | None:
    try:
        result = run(["zfs", "get", "-H", "-o", "value", "sync", dataset], timeout=10)
    except PveguardError:
        return None
    return result.stdout.strip() or None if result.ok else None


def _nodatacow(root: Path, folder: str, options: str) -> bool | None:
    if "nodatacow" in options.split(","):
        return True
    flags = None
    for path in (root / folder.lstrip("/") / "config.db", root / folder.lstrip("/")):
        flags = _flags(path)
        if flags is not None:
            break
    return None if flags is None else bool(flags & _NOCOW)


def _flags(path: Path) -> int | None:
    """The inode's flags, as lsattr shows them. The database is opened for reading only, and no byte of it is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME)
    except OSError:
        return None
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8)), "little")
    except OSError:
        return None
    finally:
        os.close(fd)
