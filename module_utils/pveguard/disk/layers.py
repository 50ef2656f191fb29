# SPDX-License-Identifier: Apache-2.0
"""What lies between a file system and its disks, from sysfs: partitions, device mapper, md, loop devices, btrfs, pools of ZFS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from . import block_writes

_DEPTH = 12


def down(place: Path, root: Path, layers: list[dict[str, str]], found: dict[str, Path], depth: int = 0) -> bool:
    """Follow a block device down to whole disks, into ``layers`` and ``found``; True when it ends in memory."""
    name = place.name
    if depth > _DEPTH or not place.exists():
        return False
    if (place / "partition").exists():
        layers.append({"name": name, "kind": "partition"})
        return down(place.parent, root, layers, found, depth + 1)
    slaves = [Path(os.path.realpath(slave)) for slave in sorted((place / "slaves").glob("*"))]
    backing = _text(place / "loop/backing_file")
    if backing:
        layers.append({"name": name, "kind": "loop"})
        below = block_writes.device_behind(backing.removesuffix(" (deleted)"), root, skip_memory=False)
        if below["in_memory"]:
            return True
        number = below["device_number"]
        return bool(number) and down(sys_path(number, root), root, layers, found, depth + 1)
    kind = _kind(place)
    if slaves:
        layers.append({"name": name, "kind": kind})
        memories = [down(slave, root, layers, found, depth + 1) for slave in slaves]
        return all(memories)
    if name.startswith(("zram", "ram")):
        layers.append({"name": name, "kind": "ram"})
        return True
    found.setdefault(name, place)
    return False


def _kind(place: Path) -> str:
    uuid = _text(place / "dm/uuid")
    for prefix, kind in (("LVM-", "lvm"), ("CRYPT-", "crypt"), ("mpath-", "multipath")):
        if uuid.startswith(prefix):
            return kind
    if (place / "dm").is_dir():
        return "dm"
    if (place / "md").is_dir():
        return f"md-{_text(place / 'md/level') or 'unknown'}"
    return "bcache" if (place / "bcache").exists() else "unknown"


def btrfs(source: str, number: str | None, root: Path, layers: list[dict[str, str]], found: dict[str, Path]) -> None:
    """All devices of the btrfs that ``source`` is one of: its mount has an anonymous number and names only one."""
    name = sys_path(number, root).name if number else by_source(source, root)
    for devices in sorted((root / "sys/fs/btrfs").glob("*/devices")):
        members = sorted(path.name for path in devices.iterdir())
        if name in members:
            layers.append({"name": devices.parent.name, "kind": "btrfs"})
            for member in members:
                down(Path(os.path.realpath(devices / member)), root, layers, found)
            return
    if name:
        down(Path(os.path.realpath(root / "sys/class/block" / name)), root, layers, found)


def by_source(source: str, root: Path) -> str | None:
    """The kernel's name of /dev/NAME or /dev/mapper/NAME."""
    if not source.startswith("/dev/"):
        return None
    base = source.rpartition("/")[2]
    if (root / "sys/class/block" / base).exists():
        return base
    for path in (root / "sys/class/block").glob("*/dm/name"):
        if _text(path) == base:
            return path.parent.parent.name
    return None


def zpool_devices(status: str) -> Iterator[tuple[str, str]]:
    """(section, /dev path) of each device in the output of ``zpool status -P -L``; the section of the data is data."""
    section, inside = "data", False
    for line in status.splitlines():
        words = line.split()
        if line.startswith("config:"):
            inside = True
        elif line.startswith("errors:"):
            inside = False
        elif inside and words:
            if words[0] in ("logs", "cache", "spares", "special", "dedup"):
                section = words[0]
            elif words[0].startswith("/dev/"):
                yield section, words[0]


def sys_path(number: str, root: Path) -> Path:
    """The place in sysfs of the block device ``number`` (``"254:16"``)."""
    return Path(os.path.realpath(root / "sys/dev/block" / number))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip(" \n\0")
    except OSError:
        return ""
