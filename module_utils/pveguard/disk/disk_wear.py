"""What the drives have behind them and what they have left: data written, percentage used, spare, errors, endurance.

Read with smartctl, or with nvme where smartctl is missing. Every figure names what it was read from. What a drive does
not say, says in a unit that nobody documents, or contradicts by other figures of its own, is None and a note says why;
nothing is guessed. Nothing is written, and a sleeping drive stays asleep.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run, run
from ..base.units import bytes_text, number_text
from ..pmxcfs import places
from . import block_device, drive_endurance, drive_health, wear_plausibility
from .block_writes import STORE
from .drive_health import count as _count
from .drive_health import items as _items
from .drive_health import mapping as _map

#: Where to look by default: what pveguard writes, and what it spares.
PATHS = (STORE, places.FOLDER)

#: Seconds that one drive may take to answer. A drive that retries on bad sectors can take several.
TIMEOUT_S = 20.0

#: Identity, health, attributes, the error log (of SAS: with the gigabytes written) and the Device Statistics log, page 7
#: of which is that of solid-state drives (of SAS: the page of solid-state media). Less than -x, whose SCT and phy logs
#: some USB bridges choke on. -n: a drive that sleeps is not woken.
_SMARTCTL = (
    "smartctl", "-j", "-n", "standby", "-i", "-H", "-A", "-l", "error", "-l", "devstat", "-l", "ssd",
)  # fmt: skip
_NVME = ("nvme", "smart-log", "-o", "json")

#: smartctl(8), EXIT STATUS: bits 0 and 1 say that nothing was read. The others are findings of a drive that answered;
#: bit 2 only says that it lacks one of the logs.
_UNREAD = 0b11
_FINDINGS = (
    (3, "the drive says that it is failing: copy what is on it, then replace it"),
    (4, "an attribute is below its threshold: the drive expects to fail"),
    (5, "an attribute was below its threshold in the past"),
    (7, "a self-test found errors (smartctl -l selftest)"),
)
_ASLEEP = re.compile(r"Device is in .+ mode")

#: NVM Express Base Specification, SMART / Health Information log: thousands of units of 512 bytes, whatever the
#: namespace's block size. 0 means that the drive does not report it.
NVME_DATA_UNIT_BYTES = 512_000

#: ACS-4, Device Statistics log: (page, offset) of a statistic.
_SECTORS_WRITTEN = (1, 24)
_UNCORRECTABLE = (4, 8)
_PERCENTAGE_USED = (7, 8)

#: The unit is part of the name that smartmontools' database of drives gives to an attribute. GB is what the makers of
#: some drives call 2^30 bytes.
_UNIT = re.compile(r"(?:^|_)(\d{0,4})([KMGT]i?B)(?=_|$)")
_UNIT_BYTES = {
    **{f"{prefix}iB": 1 << 10 * power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("KMGT", 1)},
}
_WRITES = re.compile(r"Writ|Wts|Prog|Prg", re.IGNORECASE)
_NAND = re.compile(r"NAND|Flash|Flsh|TLC|SLC", re.IGNORECASE)
#: Parts of a sum; all other names are of a total.
_NAND_PART = re.compile(r"(?:^|_)[TS]LC(?:_|$)")
#: Sectors of the drive's logical size. Only the database tells whether that is true: to a drive that it does not know
#: smartctl gives this name as well.
_SECTOR_NAMES = ("Total_LBAs_Written",)
#: Sizes of a sector, with those that carry protection information.
_SECTOR_SIZES = frozenset({512, 520, 528, 4096, 4104, 4160, 4224})
#: Families that count in another unit than the name says: (family or model, name, bytes). Publicly reported of the HK4R,
#: whose figure is otherwise some kilobytes an hour.
_OTHER_UNITS = ((re.compile(r"Toshiba HK4R|THNSN8\w+CSE", re.IGNORECASE), "Total_LBAs_Written", 32 << 20),)
#: A raw value has 48 bits; with the topmost set it is a negative number or none at all, and so is one of 32 set bits.
_RAW_LIMIT, _RAW_NONE = 1 << 47, (1 << 32) - 1

#: Erasures of the average block, of the least and of the most erased one. Of Erase_Count alone nobody says which it is:
#: at least so many there were.
_ERASES_AVERAGE = re.compile(r"(?:Ave|Avg|Average)[_-].*(?:Erase|P/?E|Prog)", re.IGNORECASE)
_ERASES_LEAST = re.compile(r"(?:Min(?:imum)?[_-].*Erase.*|Erase_Count)\Z", re.IGNORECASE)
_ERASES_MOST = re.compile(r"Max(?:imum)?[_-].*Erase", re.IGNORECASE)
_NOT_ERASES = re.compile(r"Fail|Total", re.IGNORECASE)
_MAX_ERASES = 500_000

#: Micron, TN-FD-23 (and its successors): pages programmed for the host and by the drive for itself.
_HOST_PAGES, _DRIVE_PAGES = "Host_Program_Page_Count", ("FTL_Program_Page_Count", "Bckgnd_Program_Page_Cnt")

#: Attributes whose normalised value is what is left of the rated life, in percent: {name: model family or ''}. Samsung
#: and Intel count down to 1. With some other makers the same names mean something else.
_LEFT = {
    "Percent_Lifetime_Remain": "",
    "Percent_Lifetime_Used": "",
    "Perc_Rated_Life_Used": "",
    "Perc_Rated_Life_Remain": "",
    "Percent_Life_Remaining": "",
    "SSD_Life_Left": "",
    "SSD_Life_Left_Perc": "",
    "Media_Wearout_Indicator": "Intel|Solidigm",
    "Wear_Leveling_Count": "Samsung",
}
#: The same, but the raw value counts and the normalised one stays at 100 (controllers of Silicon Motion).
_LEFT_RAW = ("Remaining_Lifetime_Perc",)
_UNSAFE = (
    "Unsafe_Shutdown_Count", "Unexpect_Power_Loss_Ct", "Unexpect_Power_Loss", "Unexpected_Power_Loss",
    "POR_Recovery_Count",
)  # fmt: skip
_MEDIA_ERRORS = ("Reported_Uncorrect", "Uncorrectable_Error_Cnt")
_SPARE = ("Available_Reservd_Space",)

#: A shorter serial number is none, and would be found in ordinary words.
_SERIAL_LENGTH = 4
#: Every bit set: 255 % or more, or a drive that does not count.
_PERCENTAGE_FULL = 255

#: No drive has a petabyte yet.
_MAX_CAPACITY = 10**15


def wear(
    paths: Iterable[str] = PATHS,
    *,
    all_disks: bool = False,
    table: Iterable[Mapping[str, Any]] = (),
    root: Path | str = Path("/"),
    run: Run = run,
    tools: bool | None = None,
    timeout: float = TIMEOUT_S,
) -> dict[str, Any]:
    """The wear of the disks behind ``paths``, and with ``all_disks`` of every other one. Never raises.

    ``table``: rated endurance, entries ``{model, tbw or tbw_bytes, source}``; the first that fits counts, see
    :func:`rated`. ``root``: where /sys and /proc are. ``tools``: whether to ask zpool which disks a pool has, by
    default for the real root only. ``timeout``: seconds for each drive.

    ``disks``: a list of :func:`read`; ``notes``: what could not be found out of no disk in particular.
    """
    root = Path(root)
    notes: list[str] = []
    entries = drive_endurance.checked(table, notes)
    found: dict[str, dict[str, Any]] = {}
    behind: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        where = block_device.describe(path, root, run=run, tools=tools, smart=False)
        if not where["disks"]:
            notes.append(f"{path}: no disk is known behind {where['filesystem']} at {where['measured_path']}")
        for disk in where["disks"]:
            found.setdefault(disk["name"], disk)
            behind.setdefault(disk["name"], []).append(path)
    if all_disks:
        for place in block_device.whole_disks(root):
            if place.name not in found:
                found[place.name] = block_device.disk(place, root)
    drives: dict[str, dict[str, Any]] = {}
    for name, disk in found.items():
        # A drive that is reached by several paths (multipath) is one drive.
        identity = disk["wwn"] or (disk["serial"] and f"{disk['model']} {disk['serial']}") or name
        if identity in drives:
            drives[identity]["notes"].append(f"{name} is another path to this drive")
            drives[identity]["paths"] += [
                path for path in behind.get(name, []) if path not in drives[identity]["paths"]
            ]
        else:
            drives[identity] = read(disk, run=run, table=entries, timeout=timeout)
            drives[identity]["paths"] = behind.get(name, [])
    return {"disks": list(drives.values()), "notes": notes}


def read(
    disk: Mapping[str, Any],
    *,
    run: Run = run,
    table: Sequence[Mapping[str, Any]] = (),
    timeout: float = TIMEOUT_S,
) -> dict[str, Any]:
    """The wear of one disk, a result of :func:`block_device.disk`.

    ``disk`` (kernel name); ``model``; ``serial_sha256`` (16 digits of a hash: tells one drive from another without its
    number); ``kind`` (nvme, sata, sas, unknown); ``virtual``, ``rotational`` (bool or None); ``size_bytes``;
    ``written_bytes`` (by the host, in the drive's life) and ``written_from``; ``nand_bytes`` (programmed into the
    flash) and ``nand_from``; ``drive_amplification`` (their ratio); ``percentage_used`` (of the rated life, up to 255)
    and ``percentage_from``; ``spare_percent``; ``media_errors``; ``unsafe_shutdowns``; ``power_on_hours``;
    ``health_passed`` (bool); ``health`` (what the drive complains of, a sentence each); ``power_loss_protection`` (True,
    False: none or failed, None: not known) and ``power_loss_rule``; ``rated_tbw_bytes`` and ``rated_from``; ``tool``
    (smartctl, nvme or None); ``notes``. Everything may be None but ``disk``, ``kind``, ``health`` and ``notes``.

    ``written_bytes``, ``nand_bytes`` and ``power_on_hours`` agree with what else the drive says
    (:mod:`wear_plausibility`); what does not is None, and a note names the contradiction.
    """
    notes: list[str] = []
    name, transport = disk["name"], disk["transport"]
    result = _nothing_known(disk, notes)
    serial = disk["serial"]
    counts = _Counts()
    answer: dict[str, Any] | None = None
    if transport in block_device.VIRTUAL:
        notes.append(f"a virtual disk ({transport}) has no SMART: the drive is the host's")
    elif transport in block_device.REMOTE:
        notes.append(f"the drive is not this machine's ({transport})")
    elif transport in ("mmc", "zram"):
        notes.append(f"{transport} has no SMART")
    else:
        answer = _ask_smartctl(name, run, timeout, notes)
        if answer is not None:
            serial = _said(answer.get("serial_number")) or serial
            _from_smartctl(answer, result, notes, counts)
        if result["kind"] == "nvme" and result["tool"] is None and not any("asleep" in note for note in notes):
            log = _from_nvme(name, run, timeout, result, notes, counts)
            answer = {**(answer or {}), **log}
        result["health"] = drive_health.findings(answer or {})
        notes += result["health"]
        if disk["virtual"] and result["tool"]:
            notes.append("an emulated drive: what it says is the hypervisor's, no flash wears by it")
    if serial:
        result["serial_sha256"] = hashlib.sha256(f"pveguard:{serial}".encode()).hexdigest()[:16]
        # A serial number identifies its owner; a message of a tool may hold it.
        if len(str(serial)) >= _SERIAL_LENGTH:
            notes[:] = [note.replace(str(serial), "...") for note in notes]
    result["power_loss_protection"], result["power_loss_rule"] = block_device.protection_of(
        transport, disk["virtual"], result["rotational"], disk.get("volatile_cache"), answer or {}
    )
    if result["model"] and not disk["virtual"]:
        _rate(result, table, notes)
    _settle(result, counts, disk, notes)
    return result


def _nothing_known(disk: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """A result of :func:`read` before the drive is asked."""
    return {
        "disk": disk["name"],
        "model": disk["model"],
        "serial_sha256": None,
        "kind": {"nvme": "nvme", "sata": "sata", "sas": "sas"}.get(disk["transport"] or "", "unknown"),
        "virtual": disk["virtual"],
        "rotational": disk["rotational"],
        "size_bytes": disk["size_bytes"],
        "written_bytes": None,
        "written_from": None,
        "nand_bytes": None,
        "nand_from": None,
        "drive_amplification": None,
        "percentage_used": None,
        "percentage_from": None,
        "spare_percent": None,
        "media_errors": None,
        "unsafe_shutdowns": None,
        "power_on_hours": None,
        "health_passed": None,
        "health": [],
        "power_loss_protection": None,
        "power_loss_rule": None,
        "rated_tbw_bytes": None,
        "rated_from": None,
        "tool": None,
        "notes": notes,
    }


@dataclass
class _Counts:
    """What a drive counts, before it is known which of it can be true."""

    #: (bytes, what it was read from, whether a standard defines the unit), what counts most first.
    written: list[tuple[int, str, bool]] = field(default_factory=list)
    #: Pages that were programmed for the host and by the drive for itself.
    pages: tuple[int, int] | None = None
    nand: tuple[int, str] | None = None
    erases_low: int | None = None
    erases_high: int | None = None
    commands: int | None = None
    #: Of the whole drive; the disk may be one of several namespaces of it.
    capacity: int | None = None


def _rate(result: dict[str, Any], table: Iterable[Mapping[str, Any]], notes: list[str]) -> None:
    amount, source = drive_endurance.rated(result["model"], table)
    size = result["size_bytes"]
    if amount is not None and size and not drive_endurance.RATED_WRITES[0] <= amount / size <= drive_endurance.RATED_WRITES[1]:
        notes.append(
            f"{source}: {bytes_text(amount)} are {number_text(amount / size)} full writes of a drive of "
            f"{bytes_text(size)}, which no maker promises (tbw is in terabytes)"
        )
        return
    result["rated_tbw_bytes"], result["rated_from"] = amount, source


def _settle(result: dict[str, Any], counts: _Counts, disk: Mapping[str, Any], notes: list[str]) -> None:
    """Take of what the drive counts what agrees with the rest, and note what does not."""
    hours = result["power_on_hours"]
    if hours is not None and hours > wear_plausibility.MAX_HOURS:
        notes.append(f"power-on hours: {number_text(hours)} are more than such a drive can have been on")
        result["power_on_hours"] = None
    _settle_percentage(result, counts, notes)
    drive = wear_plausibility.Drive(
        kind=result["kind"],
        size=max(filter(None, (result["size_bytes"], counts.capacity)), default=None),
        hours=result["power_on_hours"],
        percentage_used=result["percentage_used"],
        erases_low=counts.erases_low,
        erases_high=counts.erases_high,
        since_boot=disk.get("written_since_boot_bytes"),
        commands=counts.commands,
        rated=result["rated_tbw_bytes"],
        link=disk.get("link_bytes_per_second"),
    )
    if disk["virtual"]:
        # A hypervisor's figures are those of a machine, not of a drive.
        good = counts.written
    else:
        good = []
        for written, origin, standard in counts.written:
            against = wear_plausibility.contradictions(written, drive)
            if not against:
                good.append((written, origin, standard))
            elif not good:
                notes.append(f"{origin}: {bytes_text(written)} cannot be right: {'; '.join(against)}")
    if good:
        result["written_bytes"], result["written_from"], standard = good[0]
        # Sectors may be counted in eighths of their size; beyond that the two count different things.
        other = next((entry for entry in good[1:] if entry[2] != standard), None)
        if other and max(good[0][0], other[0]) > 16 * max(1, min(good[0][0], other[0])):
            notes.append(
                f"{good[0][1]}: {bytes_text(good[0][0])}, but {other[1]}: {bytes_text(other[0])}; one of them is wrong"
            )
            result["written_bytes"] = result["written_from"] = None
    elif not counts.written and not notes:
        notes.append("the drive does not report what was written to it")
    _settle_nand(result, counts, drive, notes)
    for key in ("media_errors", "unsafe_shutdowns"):
        if (result[key] or 0) >= _RAW_LIMIT:
            notes.append(f"{key.replace('_', ' ')}: {result[key]} is no count")
            result[key] = None


def _settle_percentage(result: dict[str, Any], counts: _Counts, notes: list[str]) -> None:
    used = result["percentage_used"]
    if used is None or used < _PERCENTAGE_FULL:
        return
    most = max((written for written, _, _ in counts.written), default=0)
    limit = result["rated_tbw_bytes"] or _PERCENTAGE_FULL * (result["size_bytes"] or 0)
    spare = result["spare_percent"]
    worn = bool(
        limit and most >= limit
        or spare is not None and spare < 100
        or result["media_errors"]
        or result["health_passed"] is False
    )  # fmt: skip
    if used == _PERCENTAGE_FULL and worn:
        notes.append(f"{result['percentage_from']}: {used} stands for {used} % or more")
        return
    notes.append(
        f"{result['percentage_from']}: {used} is what a drive says that does not count (or has used 255 % or more, "
        "which nothing else it says bears out)"
    )
    result["percentage_used"] = result["percentage_from"] = None


def _settle_nand(
    result: dict[str, Any], counts: _Counts, drive: wear_plausibility.Drive, notes: list[str]
) -> None:
    written = result["written_bytes"]
    if counts.pages:
        host, own = counts.pages
        if host + own > wear_plausibility.MAX_AMPLIFICATION * host:
            notes.append("ATA attributes 247 and 248: more pages for the drive itself than any drive needs")
            return
        result["drive_amplification"] = round((host + own) / host, 2)
        if written:
            result["nand_bytes"] = written * (host + own) // host
            result["nand_from"] = "ATA attributes 247 and 248: pages programmed for the host and by the drive"
    elif counts.nand:
        nand, origin = counts.nand
        against = wear_plausibility.flash_contradictions(nand, written, drive)
        if against:
            notes.append(f"{origin}: {bytes_text(nand)} cannot be right: {'; '.join(against)}")
            return
        result["nand_bytes"], result["nand_from"] = nand, origin
        if written:
            result["drive_amplification"] = round(nand / written, 2)


def _ask_smartctl(name: str, run: Run, timeout: float, notes: list[str]) -> dict[str, Any] | None:
    """What smartctl prints of a disk; None, and a note, where it printed nothing that can be read."""
    try:
        done = run([*_SMARTCTL, f"/dev/{name}"], timeout=timeout)
    except CommandMissing:
        notes.append("smartctl is not installed (apt install smartmontools)")
        return None
    except (PveguardError, OSError) as error:
        notes.append(f"smartctl: {error}")
        return None
    if done.rc == 124:
        notes.append(f"smartctl: no answer within {timeout:g} s")
        return None
    try:
        answer = json.loads(done.stdout)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        said = (done.stderr or done.stdout).strip().splitlines()
        notes.append(
            f"smartctl ended with {done.rc} and without JSON (7.0 or later is needed): {said[-1] if said else ''}"
        )
        return None
    about = _map(answer.get("smartctl"))
    status = _count(about.get("exit_status"))
    status = done.rc if status is None else status
    said = [str(_map(entry).get("string", "")) for entry in _items(about.get("messages"))]
    asleep = next((text for text in said if _ASLEEP.search(text)), None)
    if asleep or "power_mode" in answer and status & _UNREAD:
        notes.append("asleep and left asleep: no figures this time")
    elif status & _UNREAD:
        notes.append(f"smartctl: {'; '.join(filter(None, said)) or f'ended with {status}'}")
    else:
        notes += [text for bit, text in _FINDINGS if status >> bit & 1]
    return answer


def _from_smartctl(
    answer: Mapping[str, Any], result: dict[str, Any], notes: list[str], counts: _Counts
) -> None:
    protocol = _map(answer.get("device")).get("protocol")
    sas = str(_map(answer.get("scsi_transport_protocol")).get("name", "")).startswith("SAS")
    kind = {"NVMe": "nvme", "ATA": "sata"}.get(str(protocol)) or ("sas" if sas else None)
    result["kind"] = kind or result["kind"]
    result["model"] = (
        _said(answer.get("model_name")) or _said(answer.get("scsi_model_name")) or result["model"]
    )
    capacity = _count(_map(answer.get("user_capacity")).get("bytes"))
    result["size_bytes"] = result["size_bytes"] or capacity
    total = _count(answer.get("nvme_total_capacity")) or 0
    counts.capacity = min(total, _MAX_CAPACITY) or None
    rate = _count(answer.get("rotation_rate"))
    if rate is not None:
        result["rotational"] = rate > 0
    result["power_on_hours"] = _count(_map(answer.get("power_on_time")).get("hours"))
    passed = _map(answer.get("smart_status")).get("passed")
    if isinstance(passed, bool):
        result["health_passed"] = passed
    support = answer.get("smart_support")
    if isinstance(support, dict) and support.get("available") is False:
        notes.append("the drive has no SMART")
    elif isinstance(support, dict) and support.get("enabled") is False:
        notes.append(f"SMART is switched off in the drive (smartctl -s on /dev/{result['disk']})")
    health = answer.get("nvme_smart_health_information_log")
    if isinstance(health, dict):
        result["tool"] = "smartctl"
        _nvme_log(health, result, notes, counts)
    elif "ata_smart_attributes" in answer or "ata_device_statistics" in answer:
        result["tool"] = "smartctl"
        _ata(answer, result, notes, counts)
    elif "scsi_error_counter_log" in answer or "scsi_percentage_used_endurance_indicator" in answer:
        result["tool"] = "smartctl"
        _scsi(answer, result, notes, counts)
    elif not notes:
        notes.append("the drive answers, but without any figure of its wear (a bridge or a RAID controller between?)")


def _nvme_log(
    health: Mapping[str, Any], result: dict[str, Any], notes: list[str], counts: _Counts
) -> None:
    """The SMART / Health Information log, with the names of smartctl or of nvme."""

    def value(*names: str) -> int | None:
        return next((found for name in names if (found := _count(health.get(name))) is not None), None)

    units = value("data_units_written")
    if units:
        counts.written.append((units * NVME_DATA_UNIT_BYTES, "NVMe data_units_written", True))
    else:
        notes.append("the drive does not report what was written to it")
    counts.commands = value("host_writes", "host_write_commands")
    result["percentage_used"] = value("percentage_used", "percent_used")
    result["percentage_from"] = "NVMe percentage_used" if result["percentage_used"] is not None else None
    spare = value("available_spare", "avail_spare")
    result["spare_percent"] = spare if spare is not None and spare <= 100 else None
    result["media_errors"] = value("media_errors")
    result["unsafe_shutdowns"] = value("unsafe_shutdowns")
    hours = value("power_on_hours")
    result["power_on_hours"] = hours if hours is not None else result["power_on_hours"]
    threshold = value("available_spare_threshold", "spare_thresh")
    if result["spare_percent"] is not None and threshold and result["spare_percent"] < threshold:
        notes.append(f"spare is at {result['spare_percent']} %, below the drive's threshold of {threshold} %")


def _from_nvme(
    name: str, run: Run, timeout: float, result: dict[str, Any], notes: list[str], counts: _Counts
) -> dict[str, Any]:
    """The health log as nvme prints it, by smartctl's name for it; {} where there is none."""
    try:
        done = run([*_NVME, f"/dev/{name}"], timeout=timeout)
        health = json.loads(done.stdout) if done.ok else None
    except (ValueError, RecursionError):
        health = None
    except (PveguardError, OSError):
        return {}
    if not isinstance(health, dict):
        said = (done.stderr or done.stdout).strip().splitlines()
        notes.append(f"nvme smart-log ended with {done.rc}: {said[-1] if said else 'no JSON'}")
        return {}
    result["tool"] = "nvme"
    _nvme_log(health, result, notes, counts)
    if "critical_warning" in health:
        result["health_passed"] = not drive_health.nvme_warnings(health)
    return {"nvme_smart_health_information_log": health}


def _ata(answer: Mapping[str, Any], result: dict[str, Any], notes: list[str], counts: _Counts) -> None:
    statistics = _statistics(answer)
    known = answer.get("in_smartctl_database") is True
    table = list(drive_health.attributes(answer))
    # A name of the database is a statement about this drive; any other is what most drives mean by the number.
    attributes = {row["name"]: row for row in table if isinstance(row.get("name"), str)} if known else {}
    family = f"{_said(answer.get('model_family')) or ''} {_said(answer.get('model_name')) or ''}"
    sector = _sector(answer, notes)

    _ata_written(statistics, attributes, sector, family, notes, counts)
    _ata_nand(attributes, counts)
    _ata_erases(attributes, family, counts)
    _ata_percentage(statistics, attributes, str(answer.get("model_family", "")), result)
    if not known and table and result["rotational"] is not True:
        lacking = [
            text
            for text, missing in (
                ("what was written", not counts.written),
                ("the percentage used", result["percentage_used"] is None),
            )
            if missing
        ]
        if lacking:
            notes.append(
                f"{' and '.join(lacking)}: smartctl's database does not know this drive, so the units of its"
                " attributes are not known (update-smart-drivedb)"
            )
    result["media_errors"] = statistics.get(_UNCORRECTABLE)
    if result["media_errors"] is None:
        result["media_errors"] = _raw(attributes, _MEDIA_ERRORS)
    result["unsafe_shutdowns"] = _raw(attributes, _UNSAFE)
    result["spare_percent"] = next(
        (value for name in _SPARE if (value := _percent(attributes.get(name))) is not None), None
    )


def _sector(answer: Mapping[str, Any], notes: list[str]) -> int | None:
    """Bytes of a logical sector: 512 where the drive does not say, as all did once; None where it says what none has."""
    if answer.get("logical_block_size") is None:
        return 512
    size = _count(answer["logical_block_size"])
    if size in _SECTOR_SIZES:
        return size
    notes.append(f"sectors of {str(answer['logical_block_size'])[:40]} bytes do not exist, so no count of sectors is used")
    return None


def _ata_written(
    statistics: Mapping[tuple[int, int], int],
    attributes: Mapping[str, Mapping[str, Any]],
    sector: int | None,
    family: str,
    notes: list[str],
    counts: _Counts,
) -> None:
    """The standard's statistic, then attributes with a unit in their name, the finest first, then those in sectors."""
    if statistics.get(_SECTORS_WRITTEN) is not None and sector:
        origin = "ATA Device Statistics, Logical Sectors Written"
        counts.written.append((statistics[_SECTORS_WRITTEN] * sector, origin, True))
    for name in attributes:
        raw = _count(_map(attributes[name].get("raw")).get("value"))
        if raw is not None and not _is_count(raw) and (name in _SECTOR_NAMES or _counts_writes(name)):
            notes.append(f"{_title(attributes, name)}: its raw value {raw} is no count (all bits set, or negative)")
    named = sorted(_with_unit(attributes, lambda name: not _NAND.search(name)), key=lambda entry: entry[2])
    for name, raw, unit in named:
        counts.written.append((raw * unit, _title(attributes, name), False))
    if named and not _UNIT.search(named[0][0])[2].endswith("iB"):  # type: ignore[index]
        notes.append(f"{named[0][0]} is taken as units of 10^9 bytes; it is 7 % more where the maker means 2^30")
    for name in _SECTOR_NAMES:
        raw = _raw(attributes, (name,))
        if raw is None:
            continue
        for pattern, other, unit in _OTHER_UNITS:
            if other == name and pattern.search(family):
                origin = f"{_title(attributes, name)}, which this family counts in units of {bytes_text(unit)}"
                counts.written.append((raw * unit, origin, False))
        if sector:
            counts.written.append((raw * sector, _title(attributes, name), False))


def _title(attributes: Mapping[str, Mapping[str, Any]], name: str) -> str:
    number = _count(attributes[name].get("id"))
    return f"ATA attribute {'?' if number is None else number} {name[:60]}"


def _counts_writes(name: str) -> bool:
    return bool(_UNIT.search(name) and _WRITES.search(name))


def _ata_nand(attributes: Mapping[str, Mapping[str, Any]], counts: _Counts) -> None:
    host = _raw(attributes, (_HOST_PAGES,))
    own = _raw(attributes, _DRIVE_PAGES)
    if host and own is not None:
        counts.pages = (host, own)
        return
    named = _with_unit(attributes, lambda name: bool(_NAND.search(name)))
    totals = [entry for entry in named if not _NAND_PART.search(entry[0])]
    if totals:
        name, raw, unit = min(totals, key=lambda entry: entry[2])
        counts.nand = (raw * unit, _title(attributes, name))
    elif named:
        origin = f"ATA attributes {', '.join(name for name, _, _ in named)}"
        counts.nand = (sum(raw * unit for _, raw, unit in named), origin)


def _ata_erases(attributes: Mapping[str, Mapping[str, Any]], family: str, counts: _Counts) -> None:
    low, high = [], []
    for name in attributes:
        raw = _raw(attributes, (name,))
        if raw is None or raw > _MAX_ERASES or _NOT_ERASES.search(name):
            continue
        samsung = name == "Wear_Leveling_Count" and "samsung" in family.lower()
        average = bool(_ERASES_AVERAGE.match(name)) or samsung
        if average or _ERASES_LEAST.match(name):
            low.append(raw)
        if average or _ERASES_MOST.match(name):
            high.append(raw)
    counts.erases_low, counts.erases_high = max(low, default=None), max(high, default=None)


def _ata_percentage(
    statistics: Mapping[tuple[int, int], int],
    attributes: Mapping[str, Mapping[str, Any]],
    family: str,
    result: dict[str, Any],
) -> None:
    if statistics.get(_PERCENTAGE_USED) is not None:
        result["percentage_used"] = statistics[_PERCENTAGE_USED]
        result["percentage_from"] = "ATA Device Statistics, Percentage Used Endurance Indicator"
        return
    for name, maker in _LEFT.items():
        left = _percent(attributes.get(name))
        if left is not None and re.search(maker, family, re.IGNORECASE):
            result["percentage_used"] = 100 - left
            result["percentage_from"] = f"{_title(attributes, name)}, normalised value"
            return
    for name in _LEFT_RAW:
        raw = _raw(attributes, (name,))
        if raw is not None and raw <= 100:
            result["percentage_used"] = 100 - raw
            result["percentage_from"] = f"{_title(attributes, name)}, raw value"
            return


def _scsi(answer: Mapping[str, Any], result: dict[str, Any], notes: list[str], counts: _Counts) -> None:
    log = _map(answer.get("scsi_error_counter_log"))
    # Units of 10^9 bytes with three decimals, as a string (smartctl 7.3) or a number.
    said = _map(log.get("write")).get("gigabytes_processed")
    try:
        gigabytes = float(said) if isinstance(said, (str, int, float)) and not isinstance(said, bool) else -1.0
    except (ValueError, OverflowError):
        gigabytes = -1.0
    if 0 <= gigabytes < 1e15:
        counts.written.append((round(gigabytes * 10**9), "SAS error counter log, gigabytes written", True))
    elif said is not None:
        notes.append(f"SAS error counter log, gigabytes written: {str(said)[:40]} is no amount of data")
    used = _count(answer.get("scsi_percentage_used_endurance_indicator"))
    if used is not None:
        result["percentage_used"] = used
        result["percentage_from"] = "SAS percentage used endurance indicator"
    errors = [
        count
        for part in log.values()
        if (count := _count(_map(part).get("total_uncorrected_errors"))) is not None
    ]
    result["media_errors"] = sum(errors) if errors else None


def _statistics(answer: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    """{(page, offset): value} of the Device Statistics log, as far as the drive says that they are valid."""
    found = {}
    for page in _items(_map(answer.get("ata_device_statistics")).get("pages")):
        for entry in _items(_map(page).get("table")):
            number, offset = _count(_map(page).get("number")), _count(_map(entry).get("offset"))
            value = _count(_map(entry).get("value"))
            valid = _map(_map(entry).get("flags")).get("valid") is True
            if valid and None not in (number, offset, value):
                found[(number, offset)] = value
    return found  # type: ignore[return-value]


def _with_unit(attributes: Mapping[str, Mapping[str, Any]], wanted: Any) -> list[tuple[str, int, int]]:
    """(name, raw value, bytes of its unit) of attributes that count writes and have a unit in their name."""
    found = []
    for name in attributes:
        unit = _UNIT.search(name)
        raw = _raw(attributes, (name,))
        if unit and raw is not None and _WRITES.search(name) and wanted(name):
            found.append((name, raw, int(unit[1] or 1) * _UNIT_BYTES[unit[2]]))
    return found


def _is_count(raw: int) -> bool:
    return raw < _RAW_LIMIT and raw != _RAW_NONE


def _raw(attributes: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> int | None:
    """Raw value of the first of ``names`` that the drive has and counts by."""
    for name in names:
        value = _count(_map(_map(attributes.get(name)).get("raw")).get("value"))
        if value is not None and _is_count(value):
            return value
    return None


def _percent(attribute: Mapping[str, Any] | None) -> int | None:
    """Normalised value of an attribute; above 100 it is no percentage."""
    value = _count(_map(attribute).get("value"))
    return value if value is not None and value <= 100 else None


def _said(value: Any) -> str | None:
    """Text that a drive says of itself, None for anything else."""
    return value.strip()[:200] or None if isinstance(value, str) else None
