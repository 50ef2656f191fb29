"""What lies behind a path: file system, layers, disks, and what kind of medium they are, as far as the kernel tells.

Everything is read from sysfs, udev's database and, where installed, smartctl, zpool and zfs. What nobody says is None or
``unknown``; nothing is guessed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import Run, run
from . import block_writes, drive_health
from . import layers as layers_below
from .block_writes import SECTOR_BYTES

#: From the slowest kind of medium to the fastest. Of several disks the slowest counts: a mirror waits for all of them.
CLASSES = ("usb-or-sd", "hdd", "ssd", "nvme", "ssd-with-power-loss-protection", "ram")
UNKNOWN = "unknown"

#: Transports on which the hypervisor decides what the medium is and what a flush means.
VIRTUAL = frozenset({"virtio", "xen", "hyperv"})
#: Transports whose other end is not this machine's.
REMOTE = frozenset({"iscsi", "fc", "nbd", "rbd", "drbd", "nvme-fabrics"})
#: Makers and models of disks that a hypervisor emulates (SCSI INQUIRY, NVMe Identify).
_EMULATED = re.compile(
    r"QEMU|VBOX|VMware|Virtual[ _]disk|Msft|Google|Amazon Elastic|Linode|DO *Volume", re.IGNORECASE
)

#: sysfs paths of the parents of a disk, from Documentation/ABI and seen layouts; the first that matches.
_TRANSPORTS = (
    (re.compile(r"/usb\d+/"), "usb"),
    (re.compile(r"/mmc_host/|/mmc\d+/"), "mmc"),
    (re.compile(r"/virtio\d+/"), "virtio"),
    (re.compile(r"/(?:vmbus|VMBUS)"), "hyperv"),
    (re.compile(r"/vbd-\d+"), "xen"),
    (re.compile(r"/ata\d+/"), "sata"),
    (re.compile(r"/session\d+/"), "iscsi"),
    (re.compile(r"/rport-"), "fc"),
    (re.compile(r"/end_device-"), "sas"),
    (re.compile(r"/nvme-fabrics/"), "nvme-fabrics"),
    (re.compile(r"/nvme"), "nvme"),
    (re.compile(r"/host\d+/target"), "scsi"),
)
_NAMES = (("nbd", "nbd"), ("rbd", "rbd"), ("drbd", "drbd"), ("xvd", "xen"))


def describe(
    path: str,
    root: Path | str = Path("/"),
    *,
    skip_memory: bool = True,
    run: Run = run,
    tools: bool | None = None,
    smart: bool | None = None,
) -> dict[str, Any]:
    """The file system of ``path`` (or of its nearest parent, see :func:`block_writes.device_behind`) and its disks.

    ``root``: where /sys, /proc and /run are. ``tools``: whether to ask smartctl, zpool and zfs; by default only for
    the real root. ``smart``: whether to ask smartctl, by default as ``tools`` says. Never raises.

    Keys of device_behind, and: ``free_bytes``; ``layers`` (from the file system down: ``{name, kind}``, kind one of
    ``partition lvm crypt multipath dm md-LEVEL loop bcache btrfs zfs zfs-log``); ``disks`` (list of :func:`disk`);
    ``rotational``, ``transport``, ``write_cache``, ``volatile_cache``, ``power_loss_protection`` (of all disks where
    they agree, else None); ``drive_identity`` (None without a disk); ``class`` (of :data:`CLASSES` or ``unknown``) and
    ``class_rule``; ``zfs_sync`` (the property of the dataset, None elsewhere).
    """
    root = Path(root)
    tools = root == Path("/") if tools is None else tools
    where = block_writes.device_behind(path, root, skip_memory=skip_memory)
    layers: list[dict[str, str]] = []
    found: dict[str, Path] = {}
    zfs_sync = None
    memory = where["in_memory"]
    if where["filesystem"] == "zfs":
        zfs_sync = _zfs(where["source"], root, run, tools, layers, found)
    elif where["filesystem"] == "btrfs":
        layers_below.btrfs(where["source"], where["device_number"], root, layers, found)
    elif where["device_number"]:
        memory |= layers_below.down(layers_below.sys_path(where["device_number"], root), root, layers, found)
    asked = tools if smart is None else smart
    disks = [disk(place, root, run=run, tools=asked) for place in found.values()]
    kind, rule = _class(disks, memory, where["filesystem"])
    try:
        space = os.statvfs(where["measured_path"])
        free = (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
    except OSError:
        free = None
    return {
        **where,
        "free_bytes": free,
        "layers": layers,
        "disks": disks,
        **{
            key: _common(disks, key)
            for key in ("rotational", "transport", "write_cache", "volatile_cache", "power_loss_protection")
        },
        "drive_identity": "+".join(sorted(entry["identity"] for entry in disks)) or None,
        "class": kind,
        "class_rule": rule,
        "zfs_sync": zfs_sync,
    }


def whole_disks(root: Path | str = Path("/")) -> list[Path]:
    """Places in sysfs of all disks with a medium, as :func:`disk` takes them: no partitions, no layers over others.

    What has no device of its own (loop, device mapper, md, zram, ZFS volumes) is no disk; neither are optical and
    floppy drives.
    """
    places = (Path(os.path.realpath(path)) for path in sorted((Path(root) / "sys/class/block").glob("*")))
    return [
        place
        for place in places
        if (place / "device").exists()
        and not (place / "partition").exists()
        and not re.match(r"(?:sr|fd)\d", place.name)
        and _int(place / "size")
    ]


def disk(place: Path, root: Path, *, run: Run = run, tools: bool = False) -> dict[str, Any]:
    """One whole disk, by its real path in sysfs.

    ``name``; ``size_bytes``; ``written_since_boot_bytes`` (by this kernel); ``link_bytes_per_second`` (of NVMe, at
    most); ``rotational``, ``removable`` (bool); ``rpm``; ``transport`` (usb, mmc, virtio, hyperv, xen, sata, sas, scsi,
    nvme, iscsi, fc, nbd, rbd, drbd, zram); ``virtual`` (a hypervisor's); ``vendor``, ``model``, ``serial``, ``wwn``;
    ``identity`` (wwn or model and serial; name and size where the drive says nothing of itself); ``write_cache`` (what
    the kernel believes: ``write back`` needs flushes, ``write through`` does not); ``drive_write_cache`` (what the
    drive says); ``volatile_cache`` (either of them says write back; None: nobody says); ``power_loss_protection``
    (True, False: none, None: not known) with ``power_loss_rule``; ``power_loss_failed`` (True: the drive has it and
    says that it does not work, so it counts as none); ``health`` (list of what the drive complains of, a sentence
    each).
    """
    name = place.name
    udev = _udev(place, root)
    device = place / "device"
    size = _int(place / "size")
    transport = _transport(place, root)
    model = (
        _first(device / "model", device / "name")
        or udev.get("ID_MODEL", "").replace("_", " ").strip()
        or None
    )
    vendor = _first(device / "vendor")
    if vendor and re.match(r"0x[0-9a-f]+\Z", vendor):
        vendor = None  # a number of the bus (virtio, NVMe), not a name
    # Page 0x80 of a SCSI disk: four bytes of header, then the serial number.
    page = _bytes(device / "vpd_pg80")[4:].decode(errors="replace").strip(" \0") or None
    serial = _first(device / "serial", place / "serial") or page or udev.get("ID_SERIAL_SHORT")
    wwn = _first(place / "wwid", device / "wwid") or udev.get("ID_WWN_WITH_EXTENSION") or udev.get("ID_WWN")
    rotational = _flag(place / "queue/rotational")
    virtual = transport in VIRTUAL or bool(_EMULATED.search(f"{vendor or ''} {model or ''}"))
    told = [_text(path) for path in sorted(device.glob("scsi_disk/*/cache_type"))]
    drive_cache = told[0] if told else None
    if drive_cache is None and "ID_ATA_WRITE_CACHE_ENABLED" in udev:
        drive_cache = "write back" if udev["ID_ATA_WRITE_CACHE_ENABLED"] == "1" else "write through"
    rpm = (
        int(udev["ID_ATA_ROTATION_RATE_RPM"]) if udev.get("ID_ATA_ROTATION_RATE_RPM", "").isdigit() else None
    )
    asked = tools and not virtual and transport not in (*REMOTE, "zram", "mmc")
    smart = _smart(name, transport, run) if asked else {}
    model = model or _said(smart.get("model_name"))
    serial = serial or _said(smart.get("serial_number"))
    turns = drive_health.count(smart.get("rotation_rate"))
    if turns is not None:
        rpm = turns or None
    enabled = drive_health.mapping(smart.get("write_cache")).get("enabled")
    if isinstance(enabled, bool):
        drive_cache = "write back" if enabled else "write through"
    cache = _text(place / "queue/write_cache") or None
    volatile = None if not cache and not drive_cache else "write back" in (cache, drive_cache)
    if transport == "nvme" and cache:
        drive_cache = cache  # the kernel has it from the drive: bit 0 of VWC
    protection, rule = protection_of(transport, virtual, rotational, volatile, smart)
    identity = wwn or " ".join(part for part in (vendor, model, serial) if part) if wwn or serial else None
    return {
        "name": name,
        "size_bytes": size * SECTOR_BYTES if size is not None else None,
        "written_since_boot_bytes": _written(place),
        "link_bytes_per_second": _link_speed(place) if transport == "nvme" else None,
        "rotational": rotational,
        "removable": _flag(place / "removable"),
        "rpm": rpm,
        "transport": transport,
        "virtual": virtual,
        "vendor": vendor,
        "model": model,
        "serial": serial,
        "wwn": wwn,
        "identity": identity
        or f"{transport or 'disk'} {name} {size * SECTOR_BYTES if size is not None else '?'}",
        "write_cache": cache,
        "drive_write_cache": drive_cache,
        "volatile_cache": volatile,
        "power_loss_protection": protection,
        "power_loss_rule": rule,
        "power_loss_failed": drive_health.power_loss_failure(smart) is not None,
        "health": drive_health.findings(smart),
    }


def protection_of(
    transport: str | None,
    virtual: bool,
    rotational: bool | None,
    volatile: bool | None,
    smart: Mapping[str, Any],
) -> tuple[bool | None, str]:
    """``power_loss_protection`` and its rule of a disk, see :func:`disk`; ``smart``: JSON of smartctl, {} without."""
    # What has failed is no protection, whatever the drive is built with.
    failure = drive_health.power_loss_failure(smart)
    if failure:
        return False, f"its power-loss protection has failed: {failure}"
    if virtual or transport in REMOTE:
        return None, "the drive is not this machine's"
    capacitors = drive_health.capacitors(smart)
    if capacitors:
        return True, capacitors
    if transport in ("nvme", "sas") and rotational is False and volatile is False:
        return True, f"the {transport} drive says that it has no volatile write cache"
    if transport in ("usb", "mmc"):
        return False, f"no {transport} medium is known to have any"
    if rotational and volatile:
        return False, "a rotating disk with a volatile write cache"
    return None, "the drive does not say"


def _class(disks: list[dict[str, Any]], memory: bool, filesystem: str) -> tuple[str, str]:
    if memory:
        return "ram", f"{filesystem} in memory"
    if not disks:
        return UNKNOWN, f"no block device is known behind {filesystem}"
    classes = [_class_of(entry) for entry in disks]
    for kind, rule in classes:
        if kind == UNKNOWN:
            return kind, rule
    kind, rule = min(classes, key=lambda entry: CLASSES.index(entry[0]))
    return kind, rule if len({name for name, _ in classes}) == 1 else f"the slowest of several: {rule}"


def _class_of(entry: Mapping[str, Any]) -> tuple[str, str]:
    name, transport = entry["name"], entry["transport"]
    if transport == "zram":
        return "ram", f"{name} is in memory"
    if transport in ("usb", "mmc"):
        return "usb-or-sd", f"{name} is on {transport}"
    if entry["virtual"]:
        return (
            UNKNOWN,
            f"{name} is a virtual disk ({entry['model'] or transport}): only the host knows its medium",
        )
    if transport in REMOTE:
        return UNKNOWN, f"{name} is on {transport}: only the other end knows its medium"
    if entry["rotational"]:
        return "hdd", f"{name}: queue/rotational is 1"
    if entry["power_loss_protection"]:
        return "ssd-with-power-loss-protection", f"{name}: {entry['power_loss_rule']}"
    lost = f"; {entry['power_loss_rule']}" if entry["power_loss_failed"] else ""
    if transport == "nvme":
        cache = lost or ", with a volatile write cache or none known"
        return "nvme", f"{name} is on nvme{cache}"
    if entry["rotational"] is False:
        return "ssd", f"{name}: queue/rotational is 0{lost}"
    return UNKNOWN, f"{name}: neither transport nor queue/rotational says"


def _zfs(
    dataset: str,
    root: Path,
    run: Run,
    tools: bool,
    layers: list[dict[str, str]],
    found: dict[str, Path],
) -> str | None:
    """The devices of the pool that a synchronous write waits for; the property ``sync`` of the dataset."""
    if not tools:
        return None
    pool = dataset.partition("/")[0]
    status = _output(run, ["zpool", "status", "-P", "-L", pool])
    devices = list(layers_below.zpool_devices(status))
    # With a log device of its own, that is where a synchronous write becomes durable.
    logs = [path for section, path in devices if section == "logs"]
    layers.append({"name": pool, "kind": "zfs-log" if logs else "zfs"})
    for path in logs or [path for section, path in devices if section in ("data", "special")]:
        name = layers_below.by_source(path, root)
        if name:
            layers_below.down(Path(os.path.realpath(root / "sys/class/block" / name)), root, layers, found)
    return _output(run, ["zfs", "get", "-H", "-o", "value", "sync", dataset]).strip() or None


def _smart(name: str, transport: str | None, run: Run) -> dict[str, Any]:
    """What smartctl says of a disk; {} where it is not installed or cannot. Bits of its exit status are the disk's.

    Of an NVMe drive that smartctl cannot read, the health log that nvme prints.
    """
    # The log of NVMe and the table of ATA have the drive's complaints in them; SCSI drives are asked for theirs.
    health = [] if transport in ("nvme", "sata") else ["-H"]
    smart = _json(_output(run, ["smartctl", "-j", "-i", *health, "-A", "-g", "wcache", f"/dev/{name}"]))
    if transport == "nvme" and not drive_health.nvme_log(smart):
        log = _json(_output(run, ["nvme", "smart-log", "-o", "json", f"/dev/{name}"]))
        if log:
            smart["nvme_smart_health_information_log"] = log
    return smart


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _output(run: Run, argv: list[str]) -> str:
    try:
        return run(argv, timeout=10).stdout
    except (PveguardError, OSError):
        return ""


def _udev(place: Path, root: Path) -> dict[str, str]:
    """Properties of udev's database (systemd's, /run/udev/data)."""
    text = _text(root / "run/udev/data" / f"b{_text(place / 'dev')}")
    return dict(line[2:].split("=", 1) for line in text.splitlines() if line.startswith("E:") and "=" in line)


def _transport(place: Path, root: Path) -> str | None:
    name = place.name
    for prefix, kind in _NAMES:
        if re.match(rf"{prefix}[0-9a-z]", name):
            return kind
    if name.startswith("zram"):
        return "zram"
    try:
        path = f"/{place.relative_to(os.path.realpath(root))}/"
    except ValueError:
        path = f"{place}/"
    for pattern, kind in _TRANSPORTS:
        if pattern.search(path):
            return kind
    return None


def _common(disks: list[dict[str, Any]], key: str) -> Any:
    values = [entry[key] for entry in disks]
    return values[0] if values and all(value == values[0] for value in values) else None


def _flag(path: Path) -> bool | None:
    return {"0": False, "1": True}.get(_text(path))


def _int(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _written(place: Path) -> int | None:
    """The seventh field of stat counts sectors written (Documentation/block/stat.rst)."""
    fields = _text(place / "stat").split()
    return int(fields[6]) * SECTOR_BYTES if len(fields) > 6 and fields[6].isdigit() else None


def _link_speed(place: Path) -> int | None:
    """What the PCI Express link of an NVMe drive can carry at most, from its own capabilities."""
    bus = place / "device/device"
    speed = re.match(r"(\d+(?:\.\d)?) GT/s", _text(bus / "max_link_speed"))
    width = _int(bus / "max_link_width")
    if not speed or not width or width > 32:
        return None
    # 8b/10b coding up to 5 GT/s, 128b/130b or better above.
    return round(float(speed[1]) * 1e9 * (0.8 if float(speed[1]) <= 5 else 1) * width / 8)


def _first(*paths: Path) -> str | None:
    return next((text for text in map(_text, paths) if text), None)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace").strip(" \n\0")
