"""Bytes written to the disk behind a path and by the cluster file system's daemon, from the kernel's
counters.

Reading counters costs nothing and writes nothing. They are kept with the boot id, so that two readings,
however far apart, give a rate without anybody having waited.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..base.mountinfo import mountinfo
from ..pmxcfs import live_database
from ..pmxcfs.places import DATABASE as DATABASE
from ..pmxcfs.places import PID_FILE as PID_FILE

#: Unit of the sector counts in /sys/block/*/stat, whatever the device's own sector size
#: (Documentation/block/stat.rst of the kernel).
SECTOR_BYTES = 512

#: The store of the RAM state: on the disk that protection spares, before and after.
STORE = "/var/lib/pveguard"

#: So many services are named in a difference, those that wrote most.
TOP_SERVICES = 10

#: What writes once a minute (a scheduler) comes once in a whole minute, and once or not at all in a shorter time.
MINUTE = 60
#: A window that ran this much longer than whole minutes, in seconds, counts as whole ones: the last look is a little late.
LATE_SECONDS = 3.0
#: From so many minutes on a rate is made of any length: one writer that is seen once more or once less weighs a tenth at most.
MINUTES_ENOUGH = 10

#: Kernel threads, and processes on a machine without systemd.
NO_UNIT = "(no unit)"
#: The unit of process 1.
INIT = "init.scope"

_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


def device_behind(path: str, root: Path | str = Path("/"), skip_memory: bool = True) -> dict[str, Any]:
    """The disk behind ``path``, or behind its nearest parent that exists and, with ``skip_memory``, is not in
    RAM.

    Keys: ``path`` (asked for), ``measured_path`` (the one found), ``mount_point``, ``filesystem``,
    ``mount_options`` (of the mount and of the file system), ``source``, ``in_memory`` (bool), ``device``
    (kernel name such as vdb or dm-0), ``device_number`` (``"254:16"``) and ``disk`` (the whole disk of a
    partition); the last three are None for a file system without a block device of its own (tmpfs, ZFS,
    network).
    """
    root = Path(root)
    mounts = mountinfo(str(root))
    here = Path(os.path.normpath(path))
    while True:
        found = _mount_of(here, mounts)
        in_memory = found["filesystem"] in _MEMORY
        if here == here.parent or (
            (root / str(here).lstrip("/")).exists() and not (in_memory and skip_memory)
        ):
            break
        here = here.parent
    number = _block_number(found, root)
    name, disk = _names(number, root)
    options = [each for key in ("mount_options", "filesystem_options") for each in found[key].split(",")]
    return {
        "path": path,
        "measured_path": str(here),
        "mount_point": _shown(found["mount_point"]),
        "filesystem": found["filesystem"],
        "mount_options": _shown(",".join(dict.fromkeys(options))),
        "source": _shown(found["source"]),
        "in_memory": in_memory,
        "device": name,
        "device_number": number,
        "disk": disk,
    }


def counters(
    store: str = STORE,
    database: str = DATABASE,
    pid_file: str = PID_FILE,
    root: Path | str = Path("/"),
) -> dict[str, Any]:
    """All counters now; never raises, what cannot be read is None.

    Keys: ``time`` (UTC, ISO 8601), ``boot_id``, ``machine`` (hash that tells one installation from another),
    ``uptime_seconds``; ``device`` (:func:`device_behind` the store, plus ``bytes_written`` and ``writes``
    since boot); ``database`` (``path``, ``in_memory``, ``inode``, ``bytes`` of the file and its log); ``pmxcfs`` (``pid``,
    ``start_ticks``, ``write_bytes``: what the daemon caused to be written since it started); and those of
    :func:`service_counters` for that device.
    """
    root = Path(root)
    device = device_behind(store, root)
    written, writes = device_counters(device["device_number"], root)
    uptime = _text(root / "proc/uptime").split()
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "boot_id": _text(root / "proc/sys/kernel/random/boot_id").strip() or None,
        "machine": _machine(root),
        "uptime_seconds": float(uptime[0]) if uptime else None,
        "device": {**device, "bytes_written": written, "writes": writes},
        "database": _database(database, root),
        "pmxcfs": daemon(pid_file, root),
        **service_counters(device["device_number"], root),
    }


def service_counters(device_number: str | None, root: Path | str = Path("/")) -> dict[str, Any]:
    """Bytes that each systemd unit caused to be written, by the kernel's counters.

    Keys: ``services_source``: ``cgroup`` (``wbytes`` of the disk ``device_number``, in ``io.stat`` of the units'
    control groups, where the io controller is on for system.slice), ``proc`` (``write_bytes`` in ``/proc/PID/io`` of
    the processes that live, to whatever device), or None where neither can be read. ``services``: {UNIT: bytes};
    units that wrote nothing are left out, and what belongs to none is under :data:`NO_UNIT`. ``services_identity``:
    {UNIT: words}, what was counted: the inode of the control group, or PID.START of the processes that wrote. A word
    that is missing in a later reading took its count with it.

    What the kernel writes for itself (the journal of ext4, for instance) belongs to no unit. The kernel adds what a
    process wrote in its life to the one that waited for its end, so with ``proc`` what daemons wrote that have ended
    is found with :data:`INIT`.
    """
    root = Path(root)
    found = _by_cgroup(device_number, root)
    source = "cgroup"
    if found is None:
        found, source = by_process(root), "proc"
    written = {unit: count for unit, (count, _) in sorted(found.items()) if count}
    return {
        "services_source": source if found else None,
        "services": written,
        "services_identity": {unit: found[unit][1] for unit in written},
    }


def difference(
    before: Mapping[str, Any], after: Mapping[str, Any], window_seconds: float | None = None
) -> dict[str, Any]:
    """What was written between two readings of :func:`counters`.

    ``window_seconds``: how long the window was that both enclose; it took time to write back what it caused.

    Keys: ``seconds``, ``device_bytes``, ``device_bytes_per_minute``, ``pmxcfs_write_bytes``,
    ``pmxcfs_write_bytes_per_minute``, ``services`` (``[{service, bytes, bytes_per_minute, exact}]``, most first, at
    most :data:`TOP_SERVICES`; ``exact`` false: a lower bound), ``services_source``, ``services_notes``,
    ``notes``. A figure that the readings cannot give (a reboot, another device, a counter that went back) is None, and
    ``notes`` says why.
    """
    notes: list[str] = []
    seconds: float | None = None
    device: int | None = None
    daemon: int | None = None
    services: list[dict[str, Any]] | None = None
    service_notes: list[str] = []
    if not before.get("boot_id") or before.get("boot_id") != after.get("boot_id"):
        notes.append("the node was rebooted in between")
    else:
        seconds = _elapsed(before.get("uptime_seconds"), after.get("uptime_seconds"))
        seconds = seconds if window_seconds is None else window_seconds
        old, new = before.get("device") or {}, after.get("device") or {}
        if not new.get("device_number"):
            notes.append(f"no block device is known behind {new.get('measured_path', 'the store')}")
        elif (old.get("device_number"), old.get("device")) != (new.get("device_number"), new.get("device")):
            notes.append(f"the device changed from {old.get('device')} to {new.get('device')}")
        else:
            device = rise(old.get("bytes_written"), new.get("bytes_written"))
            if device is None:
                notes.append(f"the write counter of {new.get('device')} went back or is missing")
        if same_daemon(before, after):
            daemon = rise(before["pmxcfs"]["write_bytes"], after["pmxcfs"]["write_bytes"])
        else:
            notes.append("the daemon of the cluster file system was restarted in between or does not run")
        services = _service_difference(before, after, seconds, service_notes)
    return {
        "seconds": seconds,
        "device_bytes": device,
        "device_bytes_per_minute": per_minute(device, seconds),
        "pmxcfs_write_bytes": daemon,
        "pmxcfs_write_bytes_per_minute": per_minute(daemon, seconds),
        "services": services,
        "services_source": after.get("services_source") if services is not None else None,
        "services_notes": service_notes,
        "notes": notes,
    }


def _service_difference(
    before: Mapping[str, Any], after: Mapping[str, Any], seconds: float | None, notes: list[str]
) -> list[dict[str, Any]] | None:
    source = after.get("services_source")
    if source is None or "services" not in before:
        return None
    if source != before.get("services_source"):
        notes.append("writes of services are counted in another way than before")
        return None
    old_disk, new_disk = ((counters.get("device") or {}).get("device_number") for counters in (before, after))
    if source == "cgroup" and old_disk != new_disk:
        return None  # the counters are those of one disk; that it is another one is noted already
    found: list[dict[str, Any]] = []
    then, now = ((each.get("services") or {}, each.get("services_identity") or {}) for each in (before, after))
    rises = unit_rises(then, now, source)
    for unit, (written, exact) in rises.items():
        if written or not exact:
            found.append(
                {
                    "service": unit,
                    "bytes": written,
                    "bytes_per_minute": per_minute(written, seconds),
                    "exact": exact,
                }
            )
    found.sort(key=lambda entry: (-int(entry["bytes"]), str(entry["service"])))
    top = found[:TOP_SERVICES]
    bounds = sorted(str(entry["service"]) for entry in top if not entry["exact"] and entry["service"] != INIT)
    if bounds:
        notes.append(f"lower bounds, because processes ended in between: writes of {', '.join(bounds)}")
    if source == "proc" and any(entry["service"] == INIT for entry in top):
        notes.append(f"{INIT} includes what processes that ended wrote in their whole life")
    return top


def unit_rises(
    before: tuple[Mapping[str, int], Mapping[str, str]],
    after: tuple[Mapping[str, int], Mapping[str, str]],
    source: str,
) -> dict[str, tuple[int, bool]]:
    """What each unit wrote between two readings, and whether that is all of it; else it is a lower bound.

    ``before`` and ``after``: bytes and identities by unit, ``source`` where they are from, see :func:`service_counters`.
    """
    (old, old_identity), (new, new_identity) = before, after
    found = {}
    for unit in {*old, *new}:
        was, now = old.get(unit, 0), new.get(unit, 0)
        gone = set(old_identity.get(unit, "").split()) - set(new_identity.get(unit, "").split())
        exact = not gone and now >= was
        if exact or source == "proc":
            # Processes that ended took their counts with them, and what the others wrote may be hidden by that.
            written = max(0, now - was)
        else:
            written = now  # a control group that was made again counts from nothing
        found[unit] = written, exact and not (source == "proc" and unit == INIT)
    return found


def same_daemon(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """True when one and the same daemon process ran at both readings."""
    old, new = before.get("pmxcfs") or {}, after.get("pmxcfs") or {}
    identity = ("pid", "start_ticks")
    same_boot = before.get("boot_id") == after.get("boot_id")
    return same_boot and old.get("pid") is not None and all(old.get(k) == new.get(k) for k in identity)


def per_minute(amount: float | None, seconds: float | None) -> float | None:
    """``amount`` in ``seconds`` as a rate per minute, None where that cannot be told.

    Known are whole minutes (see :func:`whole_minutes`), and ten minutes and more. A shorter time is never scaled up, nor one
    in between: in 20 s a writer that comes once a minute is seen once or not at all, in 90 s once or twice.
    """
    if amount is None or seconds is None:
        return None
    minutes: float | None = whole_minutes(seconds)
    if minutes is None and seconds >= MINUTES_ENOUGH * MINUTE:
        minutes = seconds / MINUTE
    return None if minutes is None else round(amount / minutes, 2)


def whole_minutes(seconds: float) -> int | None:
    """How many whole minutes ``seconds`` are, at most :data:`LATE_SECONDS` aside, None when they are not."""
    # Clocks tick in hundredths.
    minutes = int((seconds + 0.05) // MINUTE)
    return minutes if minutes and seconds - minutes * MINUTE <= LATE_SECONDS else None


def _elapsed(old: float | None, new: float | None) -> float | None:
    return round(new - old, 3) if old is not None and new is not None and new >= old else None


def rise(old: int | None, new: int | None) -> int | None:
    """How far a counter went up; None when a reading is missing or it went back."""
    return new - old if old is not None and new is not None and new >= old else None


def _shown(text: str) -> str:
    """Text for people and JSON, also where it is not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _mount_of(path: Path, mounts: list[dict[str, str]]) -> dict[str, str]:
    best = {**dict.fromkeys(("number", "source", "mount_options", "filesystem_options"), ""), "mount_point": "/"}
    best["filesystem"] = "unknown"
    depth = -1
    for mount in mounts:
        point = Path(mount["mount_point"])
        # The last of several mounts on one point is the one that is seen.
        if (point == path or point in path.parents) and len(point.parts) >= depth:
            best, depth = mount, len(point.parts)
    return best


def _block_number(mount: Mapping[str, str], root: Path) -> str | None:
    if (root / "sys/dev/block" / mount["number"]).exists() and mount["number"]:
        return mount["number"]
    # btrfs has an anonymous device number; its source still names a device.
    if mount["source"].startswith("/dev/"):
        try:
            rdev = os.stat(root / mount["source"].lstrip("/")).st_rdev
        except OSError:
            return None
        number = f"{os.major(rdev)}:{os.minor(rdev)}"
        if rdev and (root / "sys/dev/block" / number).exists():
            return number
    return None


def _names(number: str | None, root: Path) -> tuple[str | None, str | None]:
    if number is None:
        return None, None
    link = Path(os.path.realpath(root / "sys/dev/block" / number))
    disk = link.parent.name if (link / "partition").exists() else link.name
    return link.name, disk


def device_counters(number: str | None, root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Bytes and writes to the block device ``number`` (``"254:16"``) since boot; None each when not known."""
    fields = _text(root / "sys/dev/block" / number / "stat").split() if number else []
    if len(fields) < 7:
        return None, None
    return int(fields[6]) * SECTOR_BYTES, int(fields[4])


def _database(path: str, root: Path) -> dict[str, Any]:
    mount = _mount_of(Path(os.path.normpath(path)), mountinfo(str(root)))
    try:
        status = os.stat(root / path.lstrip("/"))
    except OSError:
        return {"path": path, "in_memory": False, "inode": None, "bytes": None}
    in_memory = mount["filesystem"] in _MEMORY
    # What the database holds may lie in its log for long.
    size = live_database.whole_size(str(root / path.lstrip("/")))
    return {"path": path, "in_memory": in_memory, "inode": status.st_ino, "bytes": size}


def daemon(pid_file: str, root: Path = Path("/")) -> dict[str, Any]:
    """``pid``, ``start_ticks`` and ``write_bytes`` (caused to be written since its start) of the process in ``pid_file``.

    All None when none runs; the bytes alone when only root may read them. See :func:`same_daemon`.
    """
    nothing = {"pid": None, "start_ticks": None, "write_bytes": None}
    pid = _text(root / pid_file.lstrip("/")).strip()
    # The name of a process may hold blanks and brackets: count from the last one.
    status = _text(root / "proc" / pid / "stat").rpartition(")")[2].split() if pid.isdigit() else []
    if len(status) < 20:
        return nothing
    found = re.search(r"^write_bytes: (\d+)$", _text(root / "proc" / pid / "io"), flags=re.MULTILINE)
    written = int(found.group(1)) if found else None
    return {"pid": int(pid), "start_ticks": int(status[19]), "write_bytes": written}


_UNIT = re.compile(r".+\.(service|scope|socket|mount|swap)\Z")
#: Where LXC has its containers, at the top; what runs within has units of the same names as those of the node.
_CONTAINERS = re.compile(r"lxc(\..+)?")
_WBYTES = re.compile(r"^(\d+:\d+) .*\bwbytes=(\d+)", re.MULTILINE)


def _by_cgroup(device_number: str | None, root: Path) -> dict[str, tuple[int, str]] | None:
    if device_number is None:
        return None
    # io.stat speaks of whole disks.
    _, disk = _names(device_number, root)
    number = _text(root / "sys/class/block" / str(disk) / "dev").strip() or device_number
    found = control_groups([number], root)
    return {unit: (each.written[0], each.identity) for unit, each in found.units.items()} if found and found.by_unit else None


@dataclass(frozen=True)
class ControlGroup:
    """``identity``: a group that is made again under the same name has another one. ``written``: bytes to each device that was
    asked for. ``group``: the one at the top that it is in, or is.
    """

    identity: str
    written: list[int]
    group: str


@dataclass(frozen=True)
class ControlGroups:
    """``controller``: whether the io controller is cgroup v2's here, ``by_unit``: whether it is on for the units of system.slice.
    ``groups``: the ones at the top, which hold what their units wrote, those that ended included. ``units``: the ones with
    counters that are not divided further.
    """

    controller: bool
    by_unit: bool
    groups: dict[str, ControlGroup]
    units: dict[str, ControlGroup]


def control_groups(numbers: Sequence[str], root: Path | str = Path("/")) -> ControlGroups | None:
    """What control groups wrote to the devices ``numbers`` (``"8:0"``; ``io.stat`` knows no partitions), None where it is not
    counted: without cgroup v2.

    A slice whose units have no counters counts as one unit, and so does a container, whatever runs in it (``lxc/101``).
    """
    root = Path(root)
    mounts = [mount for mount in mountinfo(str(root)) if mount["filesystem"] == "cgroup2"]
    if not mounts or not numbers:
        return None
    top = root / mounts[0]["mount_point"].lstrip("/")
    groups: dict[str, ControlGroup] = {}
    units: dict[str, ControlGroup] = {}
    for entry in _folders(top):
        for name, leaf in _leaves(entry):
            each = _control_group(leaf, numbers, entry.name)
            same = units.get(name)
            if each is not None:
                both = [a + b for a, b in zip(each.written, same.written, strict=True)] if same else each.written
                units[name] = ControlGroup(each.identity, both, entry.name)
        # After its units: so it holds all of what they were seen to have written.
        total = _control_group(entry, numbers, entry.name)
        if total is not None:
            groups[entry.name] = total
    controller, by_unit = (
        "io" in _text(top / file).split() for file in ("cgroup.controllers", "system.slice/cgroup.subtree_control")
    )
    return ControlGroups(controller or by_unit, by_unit, groups, units)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError:
        return []


def _leaves(entry: Path) -> Iterator[tuple[str, Path]]:
    if _CONTAINERS.fullmatch(entry.name):
        each = [below for below in _folders(entry) if below.name.isdigit() and (below / "io.stat").exists()]
        yield from ((f"{entry.name}/{below.name}", below) for below in each) if each else [(entry.name, entry)]
    elif _UNIT.fullmatch(entry.name) or not any(path.is_file() for path in entry.glob("*/io.stat")):
        yield entry.name, entry
    else:
        for below in _folders(entry):
            yield from _leaves(below)


def _control_group(folder: Path, numbers: Sequence[str], group: str) -> ControlGroup | None:
    try:
        text = (folder / "io.stat").read_text(errors="replace")
        identity = str(folder.stat().st_ino)
    except OSError:
        return None
    counted = {match[1]: int(match[2]) for match in _WBYTES.finditer(text)}
    return ControlGroup(identity, [counted.get(number, 0) for number in numbers], group)


def by_process(root: Path) -> dict[str, tuple[int, str]]:
    """``write_bytes`` of the processes that live, by unit, and who they are: PID.START of each that wrote."""
    sums: dict[str, int] = {}
    processes: dict[str, list[str]] = {}
    try:
        entries = [entry for entry in (root / "proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return {}
    for entry in entries:
        counted = re.search(r"^write_bytes: (\d+)$", _text(entry / "io"), flags=re.MULTILINE)
        fields = _text(entry / "stat").rpartition(")")[2].split()
        if counted is None or len(fields) < 20:
            continue  # ended meanwhile, or another user's
        if not int(counted.group(1)):
            continue
        unit = _unit_of(_text(entry / "cgroup"))
        sums[unit] = sums.get(unit, 0) + int(counted.group(1))
        processes.setdefault(unit, []).append(f"{entry.name}.{fields[19]}")
    return {unit: (count, " ".join(sorted(processes[unit]))) for unit, count in sums.items()}


def _unit_of(cgroups: str) -> str:
    """The systemd unit in the text of ``/proc/PID/cgroup``."""
    for line in cgroups.splitlines():
        # The unified hierarchy, or systemd's own where there are two.
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in path.split("/") if part]
        if controllers in ("", "name=systemd") and parts:
            if _CONTAINERS.fullmatch(parts[0]):
                return "/".join(parts[:2])
            return next((part for part in parts if _UNIT.fullmatch(part)), parts[-1])
    return NO_UNIT


def _machine(root: Path) -> str | None:
    """A hash of the machine id, which itself is confidential (machine-id(5))."""
    machine = _text(root / "etc/machine-id").strip()
    return hashlib.sha256(f"pveguard:{machine}".encode()).hexdigest()[:16] if machine else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
