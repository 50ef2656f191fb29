# SPDX-License-Identifier: Apache-2.0
"""Who writes how much to the drives that carry the system: a table by systemd unit and by what is written.

A :func:`reading` is the kernel's counters of one moment. It waits for nothing and writes nothing, so two of them, however far
apart, make a :func:`table`, and one alone makes the table since boot. The rows, the guests and the rest of a table are always
what the drives' own counters say.

Bytes of a unit are those of its control group to these drives. Where control groups do not know (without cgroup v2, without
the io controller, on ZFS, whose own threads write) they are what its living processes asked to be written, to any device. What
a unit writes is told by its name (writer_classes); where one unit writes several things, by what is known of some of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..base.units import bytes_text, duration_text
from ..disk import block_writes
from . import writer_classes
from .writer_counters import GUEST_GROUPS, counters, reading

__all__ = ["DAY", "SOURCES", "by_class", "counters", "lines", "per_day", "reading", "table", "years"]

DAY = 86400
#: What a row's bytes are, by its ``source``.
SOURCES = {
    "cgroup": "written to the drives, by control group",
    "proc": "requested, not device",
    "files": "growth of the files",
    "rrdcached": "counted by rrdcached",
    "kernel": "counted by the kernel",
}
#: Why control groups were not asked, by ``why`` of a reading.
_WHY = {
    "zfs": "the system is on ZFS, which writes by threads of its own",
    "v1": "cgroup v2 does not have the io controller here",
    "off": "the io controller is off for system.slice ('systemctl set-property systemd-journald.service IOAccounting=yes' turns "
    "it on)",
}
#: Units of guests, where processes are counted.
_GUEST_UNITS = re.compile(r"\d+\.scope|qemu\.slice|lxc(\..+)?(/.+)?|machine-.+\.scope|machine\.slice")
#: Processes of any unit that ended are counted with process 1, which waits for them, with all that they ever wrote; and kernel
#: threads are the kernel.
_IN_THE_REST = frozenset({block_writes.INIT, block_writes.NO_UNIT})


def table(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, window_seconds: float | None = None
) -> dict[str, Any] | None:
    """Who wrote how much between two readings; without ``before`` since boot. None without ``after``.

    ``window_seconds``: how long the window was that both enclose.

    Keys: ``since`` (``reading`` or ``boot``), ``from``, ``to``, ``seconds``; ``source`` and ``source_label`` (of
    :data:`SOURCES`); ``devices`` (``[{disk, bytes, ...}]``), ``rows`` (``[{class, label, unit, bytes, exact, source, ...}]``,
    most first; ``exact`` false: not to the byte), ``guests_bytes``, ``guests_source``, ``rest_bytes`` (file-system metadata,
    the kernel, what is not known to belong to anybody), ``total_bytes`` and ``notes``. Each ``bytes`` has ``bytes_per_minute``
    (None in a time too short for it, see :func:`block_writes.per_minute`) and ``bytes_per_day`` (None below a day) beside it,
    and ``total_bytes``, ``rest_bytes`` and ``guests_bytes`` have theirs.

    ``total_bytes`` is what the devices' counters rose by, and rows + guests + rest always make it up; the rest is below 0
    where less reached the drives than was asked of them. A device that was replaced or whose counter went back is left out, with
    all that was written to it. After a reboot in between nothing is known: no rows, and None for each figure.
    """
    if not after:
        return None
    notes: list[str] = []
    result: dict[str, Any] = {
        "since": "reading" if before else "boot",
        "from": (before or {}).get("time"),
        "to": after.get("time"),
        "seconds": None,
        "source": after.get("source"),
        "source_label": SOURCES.get(str(after.get("source")), ""),
        "devices": [],
        "rows": [],
        "guests_source": None,
        **dict.fromkeys(f"{part}_bytes{per}" for part in ("guests", "rest", "total") for per in _RATES),
        "notes": notes,
    }
    if before and (not before.get("boot_id") or before.get("boot_id") != after.get("boot_id")):
        notes.append("the node was rebooted in between")
        return result
    seconds = _seconds(before, after) if window_seconds is None else window_seconds
    result["seconds"] = seconds
    then, columns, devices = _devices(before, after, notes)
    result["devices"] = [_amount({"disk": name}, "bytes", rise, seconds) for name, rise in devices]
    if not devices:
        return result
    total = sum(rise for _, rise in devices)
    rows, guests = _attributed(before or {}, after, then, columns, seconds, notes)
    made = [_row(each, seconds) for each in rows if each[2]]
    result["rows"] = sorted(made, key=lambda each: (-int(each["bytes"]), str(each["class"]), str(each["unit"])))
    result["guests_source"] = guests[1]
    rest = total - guests[0] - sum(int(each["bytes"]) for each in made)
    for part, count in (("guests", guests[0]), ("rest", rest), ("total", total)):
        _amount(result, f"{part}_bytes", count, seconds)
    if rest < 0:
        notes.append("less reached the drives in that time than was asked of them, so the rest is below 0")
    return result


#: What is added to the key of an amount.
_RATES = ("", "_per_minute", "_per_day")


def per_day(amount: float | None, seconds: float | None) -> float | None:
    """``amount`` in ``seconds`` as a rate per day; None below a day: what comes daily would be in it by chance."""
    known = amount is not None and seconds is not None and seconds >= DAY
    return round(amount * DAY / seconds, 2) if known and amount is not None and seconds else None


def years(table: Mapping[str, Any] | None, bytes_per_day: float | None, rated: Mapping[str, int | None]) -> float | None:
    """How many years ``bytes_per_day`` take to use up what the devices of a table are rated for, from new; None where that
    is not known of each. ``rated``: bytes by the name of the disk.
    """
    ratings = [rated.get(str(device["disk"])) for device in (table or {}).get("devices") or []]
    if not ratings or not all(ratings) or bytes_per_day is None or bytes_per_day <= 0:
        return None
    return sum(each or 0 for each in ratings) / bytes_per_day / 365.25


def by_class(table: Mapping[str, Any], key: str) -> dict[str, float]:
    """The sum of ``key`` (``bytes_per_minute``) of the rows of each class, most first; empty where it is not known."""
    sums: dict[str, float] = {}
    for row in table["rows"]:
        if row[key] is not None:
            sums[row["class"]] = sums.get(row["class"], 0) + row[key]
    return dict(sorted(sums.items(), key=lambda each: (-each[1], each[0])))


def lines(table: Mapping[str, Any] | None, limit: int = 6) -> list[str]:
    """The table as text for a terminal: the devices, the rows that wrote most, guests, rest and notes."""
    if not table or table["total_bytes"] is None:
        return []
    known = "bytes_per_day" if table["total_bytes_per_day"] is not None else "bytes_per_minute"
    per = "" if table[f"total_{known}"] is None else "/day" if known == "bytes_per_day" else "/min"

    def text(of: Mapping[str, Any], prefix: str = "") -> str:
        return bytes_text(of[prefix + (known if per else "bytes")]) + per

    disks = ", ".join(str(device["disk"]) for device in table["devices"])
    since = f"{duration_text(table['seconds'])}{' since boot' if table['since'] == 'boot' else ''}"
    said = [f"{disks}: {text(table, 'total_')} over {since}, by unit {table['source_label'] or 'not known'}"]
    for row in table["rows"][:limit]:
        unit = f" ({row['unit']})" if row["unit"] and row["class"] != "service" else ""
        said.append(f"{'' if row['exact'] else '≈ '}{text(row)}  {row['label']}{unit}")
    more = table["rows"][limit:]
    if more:
        others: dict[str, Any] = {"bytes": 0, "bytes_per_minute": 0, "bytes_per_day": 0}
        for row in more:
            others = {key: value + (row[key] or 0) for key, value in others.items()}
        said.append(f"{text(others)}  {len(more)} more")
    said.append(f"{text(table, 'rest_')}  {writer_classes.REST_LABEL}")
    if table["guests_bytes"]:
        said.append(f"{text(table, 'guests_')}  guests, which are not judged")
    return said + [f"note: {note}" for note in table["notes"]]


def _amount(of: dict[str, Any], key: str, count: int, seconds: float | None) -> dict[str, Any]:
    of[key] = count
    of[f"{key}_per_minute"] = block_writes.per_minute(count, seconds)
    of[f"{key}_per_day"] = per_day(count, seconds)
    return of


def _row(row: writer_classes.Row, seconds: float | None) -> dict[str, Any]:
    kind, unit, count, exact, source = row
    made = {"class": kind, "label": writer_classes.label(kind, unit), "unit": unit, "exact": exact, "source": source}
    return _amount(made, "bytes", count, seconds)


def _seconds(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> float | None:
    old, new = (before or {"uptime_seconds": 0.0}).get("uptime_seconds"), after.get("uptime_seconds")
    return round(new - old, 3) if old is not None and new is not None and new >= old else None


def _devices(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], notes: list[str]
) -> tuple[list[int | None], list[int], list[tuple[str, int]]]:
    """``(then, columns, devices)``: which of the disks can be compared: the column of each in ``before`` (None: there was
    none, all of it counts) and in ``after``, and its name and rise.
    """
    known = {disk[0]: (column, disk) for column, disk in enumerate((before or {}).get("disks") or [])}
    then: list[int | None] = []
    columns: list[int] = []
    devices: list[tuple[str, int]] = []
    for column, (name, identity, written) in enumerate(after.get("disks") or []):
        was, old = known.pop(name, (None, [name, identity, 0]))
        if before and was is None:
            notes.append(f"{name} carries the system only since then: left out")
            continue
        if old[1] != identity:
            notes.append(f"{name} was replaced by another drive: left out")
            continue
        rise = block_writes.rise(old[2], written)
        if rise is None:
            notes.append(f"the write counter of {name} went back or is missing: left out")
            continue
        then.append(was)
        columns.append(column)
        devices.append((name, rise))
    notes += [f"{name} no longer carries the system: left out" for name in known]
    if not after.get("disks"):
        notes.append("no block device is known that carries the system")
    notes += [
        f"{name}: who writes is counted above {layer}, which hides it"
        for name, layer in (after.get("hidden") or {}).items()
        if name in dict(devices)
    ]
    return then, columns, devices


class _Column:
    """What one kind of counter of a reading says by name, of the disks that can be compared."""

    def __init__(self, reading: Mapping[str, Any], kind: str, columns: Sequence[int | None], proc: bool = False) -> None:
        found: Mapping[str, Sequence[Any]] = reading.get(kind) or {}
        self.identity = {name: str(row[0]) for name, row in found.items()}
        self.swap = {name: int(row[1]) for name, row in found.items()}
        used = [0] if proc else [column for column in columns if column is not None]
        self.bytes = {name: sum(int(row[2 + column]) for column in used) for name, row in found.items()}


def _rises(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    kind: str,
    then: Sequence[int | None],
    columns: Sequence[int],
    source: str,
) -> tuple[dict[str, tuple[int, bool]], dict[str, int]]:
    """Bytes of each unit or group and whether they are exact, without swap; and its swap."""
    proc = source == "proc"
    old, new = _Column(before, kind, then, proc), _Column(after, kind, columns, proc)
    rises = block_writes.unit_rises((old.bytes, old.identity), (new.bytes, new.identity), source)
    swaps = block_writes.unit_rises((old.swap, old.identity), (new.swap, new.identity), source)
    if not before:
        rises = {name: (count, False) for name, (count, _) in rises.items()}
    return {name: (count - swaps[name][0], exact) for name, (count, exact) in rises.items()}, {
        name: count for name, (count, _) in swaps.items()
    }


def _attributed(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    then: Sequence[int | None],
    columns: Sequence[int],
    seconds: float | None,
    notes: list[str],
) -> tuple[list[writer_classes.Row], tuple[int, str | None]]:
    """The rows, and the guests' bytes with their source."""
    source = after.get("source")
    if source is None or (before and before.get("source") != source):
        notes.append("writes of units are counted in another way than before" if source else "writes of units are not counted")
        return [], (0, None)
    groups, group_swaps = _rises(before, after, "groups", then, columns, "cgroup")
    units, unit_swaps = _rises(before, after, "units", then, columns, source)
    # A guest that was stopped is still in what its group wrote.
    guests = sum(count for name, (count, _) in groups.items() if GUEST_GROUPS.fullmatch(name))
    guests_source = "cgroup"
    if source == "proc" and not groups:
        guests_source = "proc"
        guests = sum(count for name, (count, _) in units.items() if _GUEST_UNITS.fullmatch(name))
    apart = _IN_THE_REST if source == "proc" else ()
    units = {name: each for name, each in units.items() if name not in apart and not _GUEST_UNITS.fullmatch(name)}
    ended = _ended(before, after, groups, units) if source == "cgroup" else 0
    if source == "proc":
        notes.append(
            f"units by what their processes requested, to any device, because {_WHY[str(after.get('why'))]}; what processes "
            "wrote that have ended is in the rest"
        )
    elif not before:
        notes.append(
            f"what a service wrote before it was started last is in '{writer_classes.label('ended', '')}'"
        )
    rows = writer_classes.rows(
        units, source, ended, writer_classes.known(before.get("files"), after.get("files"), _start(before, after), seconds)
    )
    return rows + _swap_row(before, after, source, {**group_swaps, **unit_swaps}, notes), (guests, guests_source)


def _ended(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    groups: Mapping[str, tuple[int, bool]],
    units: Mapping[str, tuple[int, bool]],
) -> int:
    """What the groups wrote beyond their units: services that ended, or were started again, took their counters with them."""
    sums: dict[str, int] = {}
    for name, each in (after.get("units") or {}).items():
        sums[each[-1]] = sums.get(each[-1], 0) + units.get(name, (0, True))[0]
    left = 0
    for name, (count, _) in groups.items():
        alone = name in (after.get("units") or {}) or name in (before.get("units") or {})
        if not alone and not GUEST_GROUPS.fullmatch(name):
            left += max(0, count - sums.get(name, 0))
    return left


def _swap_row(
    before: Mapping[str, Any], after: Mapping[str, Any], source: str, swaps: Mapping[str, int], notes: list[str]
) -> list[writer_classes.Row]:
    old, new = before.get("swap") if before else {"bytes": 0}, after.get("swap")
    if not new or not old:
        return []  # what its device counted before it was swap is not known
    rise = block_writes.rise(old["bytes"], new["bytes"])
    if not rise:
        return []
    if source == "proc" or new["by_unit"]:
        return [("swap", "", rise, True, "kernel")]
    notes.append(
        f"{bytes_text(rise)} of it went to swap, which is in the rows of those whose memory it was: a partition or a file of "
        "swap has no counters by unit"
    )
    return []


def _start(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """When the time began, in seconds since 1970."""
    said, back = (before.get("time"), 0.0) if before else (after.get("time"), after.get("uptime_seconds"))
    try:
        moment = datetime.fromisoformat(str(said)).timestamp()
    except ValueError:
        return None
    return None if back is None else moment - float(back)
