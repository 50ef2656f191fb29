# SPDX-License-Identifier: Apache-2.0
"""The disks that carry the system: those behind its file systems and its swap, below LVM, encryption, md, btrfs and ZFS."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from . import block_writes, layers

#: What a node needs to run; where guests alone are kept is not among them.
PATHS = ("/", "/var/lib", "/var/log", "/var/tmp", "/var/lib/rrdcached", block_writes.DATABASE, block_writes.STORE)
#: Layers that write by threads of the kernel's own: the disk below does not know for whom.
_HIDES = re.compile(r"crypt|bcache|zfs|md-raid[456]")


@dataclass(frozen=True)
class SystemDisk:
    """A whole disk. ``identity``: of the drive, as far as the kernel tells one from the next under this name. ``number``:
    ``"8:0"``. ``seen_at``: the devices at which it is known who writes to it, itself or the layer above one that hides it;
    empty where that layer is counted with another of its disks. ``hidden_by``: the kind and name of such a layer, or empty.
    """

    name: str
    identity: str
    number: str
    seen_at: tuple[str, ...]
    hidden_by: str = ""


@dataclass(frozen=True)
class Swap:
    """Swap space on a disk. ``number`` of its device, None for a file; ``whole``: no partition, so that ``io.stat`` has it."""

    name: str
    number: str | None
    whole: bool


@dataclass
class System:
    """``zfs``: a file system of the system is on ZFS. ``silent``: paths without a block device that is known."""

    disks: list[SystemDisk] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    zfs: bool = False
    silent: list[str] = field(default_factory=list)


def find(root: Path | str = Path("/"), run: Run = real_run, paths: Sequence[str] = PATHS) -> System:
    """What is behind ``paths`` and behind the swap in use. Where a path is on ZFS, zpool is asked; never raises."""
    root = Path(root)
    system = System()
    places: dict[str, Path] = {}
    hidden: dict[str, list[tuple[str, str]]] = {}
    for path in paths:
        where = block_writes.device_behind(path, root)
        above: list[dict[str, str]] = []
        found: dict[str, Path] = {}
        if where["filesystem"] == "zfs":
            system.zfs = True
            _pool(where["source"], root, run, found)
        elif where["filesystem"] == "btrfs":
            layers.btrfs(where["source"], where["device_number"], root, above, found)
        elif where["device_number"]:
            layers.down(layers.sys_path(where["device_number"], root), root, above, found)
        if not found and not where["in_memory"]:
            system.silent.append(where["measured_path"])
        _note(above, found, places, hidden, root)
    for swap, place in _swaps(root):
        above, found = [], {}
        if layers.down(place, root, above, found):
            continue  # in memory
        system.swaps.append(swap)
        _note(above, found, places, hidden, root)
    system.silent = list(dict.fromkeys(system.silent))
    system.disks = _disks(places, hidden)
    return system


def named(names: Sequence[str], root: Path | str = Path("/")) -> System:
    """The block devices ``names`` as if they were such disks; those that do not exist are left out."""
    root = Path(root)
    places = {name: Path(os.path.realpath(root / "sys/class/block" / name)) for name in names}
    return System(_disks({name: place for name, place in places.items() if place.exists()}, {}))


def _note(
    above: Sequence[dict[str, str]],
    found: dict[str, Path],
    places: dict[str, Path],
    hidden: dict[str, list[tuple[str, str]]],
    root: Path,
) -> None:
    places.update(found)
    told: set[str] = set()
    for layer in above:
        if _HIDES.fullmatch(layer["kind"]):
            place = Path(os.path.realpath(root / "sys/class/block" / layer["name"]))
            below: dict[str, Path] = {}
            layers.down(place, root, [], below)
            # The topmost counts: it is known there for whom all below it is written.
            for name in set(below) - told:
                hidden.setdefault(name, []).append((_text(place / "dev"), f"{layer['kind']} {layer['name']}"))
            told |= set(below)


def _disks(places: dict[str, Path], hidden: dict[str, list[tuple[str, str]]]) -> list[SystemDisk]:
    disks = []
    counted: set[str] = set()
    for name, place in sorted(places.items()):
        number = _text(place / "dev")
        layers_above = dict(hidden.get(name, []))
        seen = tuple(each for each in layers_above if each and each not in counted) if layers_above else (number,)
        counted.update(seen)
        # Another one for each disk that appears; before Linux 5.15 only the size tells one from the next.
        identity = _text(place / "diskseq") or _text(place / "size")
        disks.append(SystemDisk(name, identity, number, seen, ", ".join(dict.fromkeys(layers_above.values()))))
    return disks


def _pool(dataset: str, root: Path, run: Run, found: dict[str, Path]) -> None:
    """All devices of the pool that are written to, as :func:`layers.down` finds them."""
    try:
        status = run(["zpool", "status", "-P", "-L", dataset.partition("/")[0]], timeout=10).stdout
    except (PveguardError, OSError):
        return
    for section, path in layers.zpool_devices(status):
        name = layers.by_source(path, root)
        if name and section not in ("cache", "spares"):
            layers.down(Path(os.path.realpath(root / "sys/class/block" / name)), root, [], found)


def _swaps(root: Path) -> list[tuple[Swap, Path]]:
    """Swap in use (/proc/swaps), and the block device that it is on, in sysfs."""
    swaps = []
    for line in _text(root / "proc/swaps").splitlines()[1:]:
        name, kind = [*line.split(), "", ""][:2]
        if kind == "file":
            number = block_writes.device_behind(name, root)["device_number"]
            if number:
                swaps.append((Swap(name, None, False), layers.sys_path(number, root)))
            continue
        device = layers.by_source(name, root)
        place = Path(os.path.realpath(root / "sys/class/block" / device)) if device else None
        if place is not None and place.exists():
            swaps.append((Swap(name, _text(place / "dev") or None, not (place / "partition").exists()), place))
    return swaps


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
