# SPDX-License-Identifier: Apache-2.0
"""What the page of a report shows of who writes to the drives that carry the system of each node; see :mod:`report_page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base.units import UNKNOWN, bytes_text, change_text, duration_text, percent_text, years_text
from ..diet import rrd_files
from ..writes import writer_classes, writers
from . import charts, report_summary
from .charts import REST, SERIES, Chart, Series
from .page_parts import MAX_GROUPS, MAX_NODES, Figure, LongTable, Table, long_table
from .report_summary import names_text

#: Rows that are open.
MAX_ROWS = 10

#: What is not told apart further: key of its amount, what it is called.
_REST, _GUESTS, _TOTAL = "rest", "guests", "total"
_SUMS = (
    (_REST, f"Rest: {writer_classes.REST_LABEL}"),
    (_GUESTS, "Guests' own, which are not judged"),
    (_TOTAL, "All, by the counters of the drives"),
)


def leagues(report: Mapping[str, Any]) -> dict[str, Any]:
    """``{nodes, more, all, known}``: a card for each node, those that write most first, at most :data:`MAX_NODES`; ``all``: a
    line for each where there are several; ``known``: names of all of them.
    """
    found = {}
    for name, node in report["nodes"].items():
        before, now = (report_summary.league(node, when) for when in ("before", "now"))
        if now or before:
            found[name] = before, now
    order = sorted(found, key=lambda name: (-(_own(found[name][1] or found[name][0], _MINUTE) or 0), name))
    cards = [_card(name, report["nodes"][name], *found[name]) for name in order[:MAX_NODES]]
    return {
        "nodes": cards[:MAX_GROUPS],
        "more": cards[MAX_GROUPS:],
        "all": _all(found, order) if len(order) > 1 else None,
        "known": set(found),
    }


def _all(found: Mapping[str, tuple[Any, Any]], order: Sequence[str]) -> LongTable | None:
    rows = []
    for name in order:
        before, now = found[name]
        old, new = _own(before, _MINUTE), _own(now, _MINUTE)
        most = next((str(row["label"]) for row in (now or before)["rows"]), "nobody that is known")
        rows.append((name, bytes_text(old), bytes_text(new), change_text(old, new), most))
    return long_table(
        "Written to the drives that carry the system a minute, guests aside",
        ("Node", "Before", "Now", "Change", "Writes most"),
        rows,
        "All nodes",
        numbers=(1, 2),
    )


def _card(name: str, node: Mapping[str, Any], before: Any, now: Any) -> dict[str, Any]:
    newest = now or before
    rated = {
        str(disk.get("disk")).rpartition("/")[2]: disk.get("rated_tbw_bytes") for disk in node.get("disks") or []
    }
    disks = names_text([str(device["disk"]) for device in newest["devices"]])
    windows = [(word, each) for word, each in (("before", before), ("now", now)) if each]
    return {
        "title": f"{name}: who writes to {disks}",
        "seen": f"{'; '.join(_seen(word, each) for word, each in windows)}. {_how(newest)}",
        "figures": _figures(before, now, rated, node.get("rrd")),
        "chart": _chart(name, windows),
        "table": _table(before, now, rated),
        "notes": list(newest["notes"]),
    }


def _seen(word: str, table: Mapping[str, Any]) -> str:
    time = duration_text(None if table["seconds"] is None else round(table["seconds"]))
    return f"{word}: counted for {time}{' since boot' if table['since'] == 'boot' else ''}"


def _how(table: Mapping[str, Any]) -> str:
    return f"Units: {table.get('source_label') or 'not known'}. ≈ marks what is not exact to the byte."


#: What is added to the key of an amount.
_MINUTE, _DAY = "_per_minute", "_per_day"


def _sum(table: Mapping[str, Any] | None, part: str, per: str) -> float | None:
    """``rest``, ``guests`` or ``total``."""
    value = (table or {}).get(f"{part}_bytes{per}")
    return None if value is None else float(value)


def _all_of(table: Mapping[str, Any] | None, per: str) -> float | None:
    return _sum(table, _TOTAL, per)


def _own(table: Mapping[str, Any] | None, per: str) -> float | None:
    """What the node itself writes: all but its guests."""
    total, guests = _sum(table, _TOTAL, per), _sum(table, _GUESTS, per)
    return None if total is None or guests is None else total - guests


def _figures(
    before: Any, now: Any, rated: Mapping[str, int | None], rrd: Mapping[str, Any] | None
) -> list[Figure]:
    newest = now or before
    old, new = _own(before, _MINUTE), _own(now, _MINUTE)
    change = "" if old is None or new is None else f"{change_text(old, new)}; before {bytes_text(old)}"
    figures = [
        Figure("The node's own a minute", bytes_text(new if now else old), change or "no figure of both times"),
        Figure(
            "The node's own a day",
            bytes_text(_own(newest, _DAY)),
            "" if _own(newest, _DAY) is not None else "counters of a day are needed",
        ),
    ]
    guests = bool(newest["guests_bytes"])
    for name, shown, of in (("The rating lasts", True, _all_of), ("The rating lasts without guests", guests, _own)):
        years = writers.years(newest, of(newest, _DAY), rated)
        if shown and years is not None:
            then = writers.years(before, of(before, _DAY), rated) if now else None
            note = "of a new drive, at this rate" if then is None else f"{years_text(then)} at the rate before"
            figures.append(Figure(name, years_text(years), note))
    if guests:
        how = "requested, not device" if newest["guests_source"] == "proc" else "not judged"
        figures.append(Figure("Guests' own a minute", bytes_text(_sum(newest, _GUESTS, _MINUTE)), how))
    if rrd:
        figures.append(Figure("Statistics", rrd_files.files_text(rrd), rrd_files.flush_text(rrd)))
    return figures


def _table(before: Any, now: Any, rated: Mapping[str, int | None]) -> LongTable:
    """Rows of both times, those that write or wrote most first, then what is left, the guests, and all of it."""
    tables = [each for each in (before, now) if each]
    newest = tables[-1]
    short = _sum(newest, _TOTAL, _MINUTE) is None
    unit = f"in {duration_text(round(newest['seconds'] or 0))}" if short else "a minute"
    with_rating = writers.years(newest, _sum(newest, _TOTAL, _DAY), rated) is not None
    header = ["What is written", "By whom"]
    header += [f"Before, {unit}"] if before and now else []
    header += [f"{'Now' if now else 'Before'}, {unit}", f"{'Now' if now else 'Before'}, a day"]
    header += ["Of the rating a year"] if with_rating else []

    def cells(amounts: Sequence[Mapping[str, Any]], prefix: str = "") -> list[str]:
        shown = [_amount(each, prefix, short) for each in amounts]
        day = amounts[-1][f"{prefix}bytes_per_day"]
        shown.append(bytes_text(day))
        if with_rating:
            last = writers.years(newest, day, rated)
            shown.append(percent_text(100 / last if last else 0))
        return shown

    keyed = [{(row["class"], row["unit"]): row for row in each["rows"]} for each in tables]
    # Who is not in a table wrote nothing in its time, as far as its time tells.
    none = [
        {f"bytes{per}": None if _sum(each, _TOTAL, per) is None else 0 for per in ("", _MINUTE, _DAY)} for each in tables
    ]
    worth = {
        key: max((row[key]["bytes"] / (table["seconds"] or 1) for row, table in zip(keyed, tables, strict=True) if key in row))
        for key in {key for each in keyed for key in each}
    }
    rows = []
    for key in sorted(worth, key=lambda key: (-worth[key], key)):
        row = next(each[key] for each in keyed[::-1] if key in each)
        found = [each.get(key, nothing) for each, nothing in zip(keyed, none, strict=True)]
        rows.append((str(row["label"]), str(row["unit"]) or "–", *cells(found)))
    sums = [(text, "–", *cells(tables, f"{part}_")) for part, text in _SUMS if part != _GUESTS or newest["guests_bytes"]]
    caption = "Bytes to the drives that carry the system"
    numbers = range(2, len(header))
    more = rows[MAX_ROWS:]
    first = Table(caption, header, [*rows[:MAX_ROWS], *sums], numbers)
    if not more:
        return LongTable(first)
    return LongTable(first, Table(f"{caption}, continued", header, more, numbers), f"{len(more)} more that write less")


def _amount(of: Mapping[str, Any], prefix: str, short: bool) -> str:
    value = of[f"{prefix}bytes{'' if short else _MINUTE}"]
    return UNKNOWN if value is None else f"{'' if of.get('exact', True) else '≈ '}{bytes_text(value)}"


def _chart(name: str, windows: Sequence[tuple[str, Mapping[str, Any]]]) -> Chart | None:
    """What is written a minute by class, before and now, guests aside."""
    known = [(word, table) for word, table in windows if _sum(table, _TOTAL, _MINUTE) is not None]
    if not known:
        return None
    classes = [writers.by_class(table, "bytes_per_minute") for _, table in known]
    worth: dict[str, float] = {}
    for each in classes:
        for kind, rate in each.items():
            worth[kind] = max(worth.get(kind, 0.0), rate)
    order = sorted(worth, key=lambda kind: -worth[kind])[: len(SERIES)]
    series = [
        Series(writer_classes.label(kind, ""), [each.get(kind, 0.0) for each in classes], colour=SERIES[at])
        for at, kind in enumerate(order)
    ]
    others = [
        sum(rate for kind, rate in each.items() if kind not in order) + max(0.0, _sum(table, _REST, _MINUTE) or 0.0)
        for each, (_, table) in zip(classes, known, strict=True)
    ]
    series.append(Series("metadata, the kernel and others", others, colour=REST))
    said = [
        f"{word}: " + ", ".join(
            [f"{writer_classes.label(kind, '')} {bytes_text(rate)}" for kind, rate in each.items()]
            + [f"rest {bytes_text(_sum(table, _REST, _MINUTE))}"]
        )
        for (word, table), each in zip(known, classes, strict=True)
    ]  # fmt: skip
    title = f"Bytes a minute to the system's drives of {name}, guests aside"
    return charts.bars(title, "; ".join(said), [word for word, _ in known], series, unit="bytes", stacked=True)
