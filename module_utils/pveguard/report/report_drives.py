# SPDX-License-Identifier: Apache-2.0
"""What the page of a report shows of drives: years left, wear, write amplification; see :mod:`report_page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base.units import (
    MOST_YEARS,
    UNKNOWN,
    age_seconds,
    bytes_text,
    duration_text,
    number_text,
    percent_text,
    years_text,
)
from . import charts, report_findings
from .charts import REST, SERIES, Chart, Series
from .page_parts import MAX_GROUPS, MAX_NODES, Figure, Notice, Table
from .report_summary import names_text

_KINDS = {"nvme": "NVMe", "sata": "SATA", "sas": "SAS"}


def drives(report: Mapping[str, Any]) -> dict[str, Any]:
    """``{lifetimes, drives, more_drives, silent, amplification}``."""
    known = [(name, disk, node) for name, node in report["nodes"].items() for disk in node.get("disks") or []]
    cards = [_drive(name, disk, node, report["time"], len(report["nodes"]) > 1) for name, disk, node in known]
    silent = [name for name, node in report["nodes"].items() if not node.get("disks")]
    text = (
        f"No drive of {names_text(silent, 6)} has told anything: no drive with health data, no tool to ask it "
        "(smartmontools or nvme-cli), or not asked in this run."
    )
    found = [(name, node) for name, node in report["nodes"].items() if node.get("amplification")]
    return {
        "lifetimes": _lifetimes(known),
        "drives": cards[:MAX_NODES],
        "more_drives": cards[MAX_NODES:],
        "silent": Notice(UNKNOWN, text=text) if silent else None,
        "amplification": [_amplification(name, node, report["time"]) for name, node in found[:MAX_GROUPS]],
    }


def _lifetimes(known: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> Chart | None:
    """Years left, now and at the rate before, where both ends of the range are known."""
    rows = []
    for name, disk, _ in known:
        now = disk.get("endurance") or {}
        if now.get("years_left_low") is not None and now.get("years_left_high") is not None:
            rows.append((f"{name} {disk.get('disk')}", now, disk.get("endurance_before") or {}))
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row[1]["years_left_low"])[:MAX_NODES]
    # A longer bar would press the others to the edge.
    longest = float(MOST_YEARS)

    def ends(figures: Mapping[str, Any]) -> list[float] | None:
        low, high = figures.get("years_left_low"), figures.get("years_left_high")
        # A bar without a length would not be seen.
        return None if low is None or high is None else [min(low, longest - 1), min(high, longest)]

    with_before = any(ends(before) for _, _, before in rows)
    series = [Series("at the rate now", [ends(now) for _, now, _ in rows], [_years(now) for _, now, _ in rows])]
    if with_before:
        labels = [_years(before) if ends(before) else None for _, _, before in rows]
        series.insert(0, Series("at the rate before", [ends(before) for _, _, before in rows], labels, REST))
    said = "; ".join(
        f"{name}: {_years(now)} ({_range(now)})"
        + (f", at the rate before {_years(before)}" if ends(before) else "")
        for name, now, before in rows
    )
    return charts.bars("Years that the drives last", said, [name for name, _, _ in rows], series, unit="years")


def _years(figures: Mapping[str, Any]) -> str:
    left, low = figures.get("years_left"), figures.get("years_left_low")
    # A drive that has used next to nothing tells only how long it lasts at least.
    return f"at least {years_text(low)}" if left is None and low is not None else years_text(left)


def _range(figures: Mapping[str, Any]) -> str:
    low, high = figures.get("years_left_low"), figures.get("years_left_high")
    if low is None or high is None:
        return ""
    ends = (years_text(low), years_text(high))
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _drive(
    name: str, disk: Mapping[str, Any], node: Mapping[str, Any], now: str, several: bool
) -> dict[str, Any]:
    used, badge = disk.get("percentage_used"), report_findings.drive(disk)
    notes = [*((disk.get("endurance") or {}).get("notes") or []), *(disk.get("notes") or [])]
    older = age_seconds(node.get("disks_time"), now)
    if older and older >= 3600:
        notes.append(f"asked {duration_text(older)} ago")
    hours = disk.get("power_on_hours")
    kind = _KINDS.get(str(disk.get("kind")), "kind unknown")
    factor = disk.get("drive_amplification")
    return {
        "title": f"{f'{name}: ' if several else ''}{disk.get('disk')}",
        "model": f"{disk.get('model') or 'unknown model'} · {kind}",
        "badge": badge,
        # Percent of the meter's width.
        "used": None if used is None else f"{min(100, max(0, used)):g}%",
        "figures": _drive_figures(disk, node),
        "health": [
            Figure("Spare blocks", percent_text(disk.get("spare_percent"))),
            Figure("Media errors", number_text(disk.get("media_errors"))),
            Figure("Unsafe shutdowns", number_text(disk.get("unsafe_shutdowns"))),
            Figure("Powered on", duration_text(None if hours is None else hours * 3600)),
            Figure(
                "Written to flash",
                bytes_text(disk.get("nand_bytes")),
                "" if factor is None else f"{number_text(factor)} times what the host wrote",
            ),
        ],
        "notes": notes,
    }


def _drive_figures(disk: Mapping[str, Any], node: Mapping[str, Any]) -> list[Figure]:
    left, before = disk.get("endurance") or {}, disk.get("endurance_before") or {}
    measured = ((node["counters"] or {}).get("device") or {}).get("disk")
    behind = str(disk.get("disk")).rpartition("/")[2] == measured
    day = node["writes"].get("day") if behind else None
    rated = disk.get("rated_tbw_bytes")
    if day:
        counted = f"counted for {duration_text(day['seconds'])}"
    else:
        counted = "counters of a day are needed" if behind else "not the drive behind the store"
    figures = [
        Figure("Life used", percent_text(disk.get("percentage_used")), "as the drive counts it"),
        Figure("Years left", _years(left), _range(left)),
        Figure(
            "Written so far",
            bytes_text(disk.get("written_bytes")),
            f"rated for {bytes_text(rated)}" if rated else "rating unknown",
        ),
        Figure(
            "Written a day now",
            bytes_text(day["device_bytes"] * 86400 / day["seconds"]) if day else UNKNOWN,
            counted,
        ),
    ]
    if before.get("years_left") is not None or before.get("years_left_low") is not None:
        figures.insert(2, Figure("At the rate before", _years(before), _range(before)))
    return figures


def _amplification(name: str, node: Mapping[str, Any], now: str) -> dict[str, Any]:
    """What a file on /etc/pve costs at the device: ``{name, chart, table, notes}``."""
    result = node["amplification"]
    cases = result.get("cases") or []

    def label(case: Mapping[str, Any]) -> str:
        return f"{bytes_text(case['file_bytes'])} in {bytes_text(case['block_bytes'])}"

    table = Table(
        "What a file on /etc/pve costs at the device, by the size of the writes",
        ("File and write size", "Transactions", "Daemon wrote", "Device", "Noise of others", "Factor"),
        [
            (
                label(case),
                number_text(case.get("transactions")),
                bytes_text(case.get("pmxcfs_write_bytes")),
                bytes_text(case.get("device_bytes")),
                bytes_text(case.get("noise_bytes")),
                f"not tried: {case['skipped']}" if case.get("skipped") else number_text(case.get("factor")),
            )
            for case in cases
        ],
        numbers=(1, 2, 3, 4),
    )
    notes = []
    members = [str(member) for member in result.get("members") or []]
    if len(members) > 1:
        notes.append(f"Every member pays the same: {names_text(members, 6)}.")
    age = age_seconds(node.get("amplification_time"), now)
    if age and age >= 3600:
        notes.append(f"Measured {duration_text(age)} ago.")
    measured = [(label(case), case["factor"]) for case in cases if case.get("factor") is not None]
    chart = _factors(name, measured) if measured else None
    return {"name": name, "chart": chart, "table": table, "notes": [*notes, *(result.get("notes") or [])]}


def _factors(name: str, measured: Sequence[tuple[str, float]]) -> Chart:
    return charts.bars(
        f"Write amplification on {name}",
        "; ".join(f"{label}: {number_text(factor)} times" for label, factor in measured),
        [label for label, _ in measured],
        [
            Series(
                "bytes to the device for each byte of the file",
                [factor for _, factor in measured],
                [f"{number_text(factor)} ×" for _, factor in measured],
                SERIES[1],
            )
        ],
        logarithmic=True,
        unit="times",
    )
