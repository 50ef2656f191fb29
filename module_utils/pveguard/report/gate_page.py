# SPDX-License-Identifier: Apache-2.0
"""The report of the gates as a page; see :mod:`gate_report` for the data.

This makes the texts and figures that ``report/templates/gate.html.j2`` puts into their places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.units import UNKNOWN, bytes_text, number_text
from . import charts, pages
from .gate_report import advice, age_text, drive, messages, pair_name, verdict_text, worst
from .page_parts import Badge, Cell, Figure, Item, Notice, Table

#: What the methods of fsync_bench do, in the words of an operator.
METHODS = {
    "pveperf": "pveperf (truncation)",
    "fdatasync": "fdatasync (2,300 B)",
    "commit": "commit (SQLite)",
}
#: Links of one chart and rows of one table; the worst are shown, the rest is counted.
MAX_LINKS = 24
#: With more links than that their table is shown on demand.
MAX_OPEN_LINKS = 8

_CLASSES = {
    "usb-or-sd": "USB stick or SD card",
    "hdd": "hard disk",
    "ssd": "SSD",
    "nvme": "NVMe SSD",
    "ssd-with-power-loss-protection": "SSD with power-loss protection",
    "ram": "RAM",
}
_BADNESS = {"fail": 0, "warn": 1, UNKNOWN: 2, "pass": 3}


def page(report: Mapping[str, Any], scripts: bool = True) -> str:
    """The whole page as HTML. Without ``scripts`` no chart is drawn; the tables have the same figures."""
    return pages.render("gate.html.j2", view(report), scripts=scripts)


def view(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the template takes; one entry for each part of the page, and what its head and its footer say."""
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    return {
        "title": "Gates: disks and links",
        "verdict": Badge(report["verdict"], verdict_text(report["verdict"])),
        "lead": _lead(nodes),
        "overview": _overview(nodes),
        "todo": _todo(nodes),
        "disks": _disks(nodes),
        "links": _links(report["pairs"]),
        "tokens": [_token(name, cluster) for name, cluster in report["clusters"].items()],
        "made": {
            "time": _time(report["time"]),
            "schema": report["schema"],
            "version": report["schema_version"],
        },
    }


def _lead(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    refused = [name for name, node in nodes.items() if node["refused_for"]]
    counts = [
        (sum(node["verdict"] == verdict for node in nodes.values()), word)
        for verdict, word in (
            ("pass", "passed"),
            ("warn", "passed with a warning"),
            ("fail", "failed"),
            (UNKNOWN, "unknown"),
        )
    ]
    said = ", ".join(f"{count} {word}" for count, word in counts if count) or "none was measured"
    text = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}: {said}."
    if refused:
        text += f" Refused, and nothing was changed there: {', '.join(refused[:6])}{'…' if len(refused) > 6 else ''}."
    return text


def _overview(nodes: Mapping[str, Mapping[str, Any]]) -> Table:
    rows: list[Sequence[Cell]] = []
    for name, node in nodes.items():
        disk, links = node["disk"], node["links"]
        rows.append(
            (
                name,
                _badge(disk),
                _figure(disk["fsyncs_per_second"]),
                _figure((disk["methods"].get("fdatasync") or disk).get("p99_ms"), " ms"),
                _badge(links) if links["links"] or links["verdict"] != UNKNOWN else _not_asked(links),
                _figure(links["rtt_p99_ms"], " ms"),
                _when(disk, links),
            )
        )
    return Table(
        "Verdict of each node; p99: 99 of 100 were as fast or faster",
        ("Node", "Disk", "fsyncs/s", "Disk p99", "Links", "RTT p99", "Measured"),
        rows,
        numbers=(2, 3, 5),
    )


def _todo(nodes: Mapping[str, Mapping[str, Any]]) -> list[Notice]:
    notices = []
    for verdict in ("fail", "warn", UNKNOWN, "pass"):
        for name, node in nodes.items():
            said = messages(name, node)
            if node["verdict"] != verdict or not said:
                continue
            # The heading says the name already.
            items = [Item(_sentence(each.removeprefix(f"{name}: "))) for each in said]
            items += [Item(_sentence(each), "To do") for each in _steps(node)]
            title = f"{name} was refused" if node["refused_for"] else name
            notices.append(Notice(verdict if verdict != "pass" else UNKNOWN, items, title))
    return notices


def _steps(node: Mapping[str, Any]) -> list[str]:
    return advice(node) if node["verdict"] in ("fail", "warn") else []


def _disks(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """``{rates, nodes}``: the chart of all nodes, and a card for each."""
    if not nodes:
        return None
    measured = {name: node["disk"] for name, node in nodes.items() if node["disk"]["methods"]}
    axis = charts.latency_scale([figures for disk in measured.values() for figures in disk["methods"].values()], 10)
    return {
        "rates": _rates(nodes, measured) if measured else None,
        "nodes": [_disk(name, node["disk"], axis) for name, node in nodes.items()],
    }


def _rates(nodes: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Mapping[str, Any]]) -> charts.Chart:
    thresholds = {disk["thresholds"].get("min_fsyncs_per_second") for disk in measured.values()}
    keys = ("fsyncs_per_second", "fsyncs_per_second_interval", "verdict")
    return charts.rates(
        "fsyncs per second of each node",
        [(name, *(node["disk"][key] for key in keys)) for name, node in nodes.items()],
        threshold=next(iter(thresholds)) if len(thresholds) == 1 else None,
    )


def _disk(name: str, disk: Mapping[str, Any], axis: charts.Scale) -> dict[str, Any]:
    """A card; ``measured`` is None for a node without a measurement, which has only its message."""
    return {
        "name": name,
        "badge": _badge(disk),
        "message": _sentence(disk["message"]),
        "measured": _measured(name, disk, axis) if disk["methods"] else None,
    }


def _measured(name: str, disk: Mapping[str, Any], axis: charts.Scale) -> dict[str, Any]:
    limit = disk["thresholds"].get("warn_p99_ms")
    shown = {method: disk["methods"][method] for method in METHODS if method in disk["methods"]}
    return {
        "figures": _disk_figures(disk),
        "notices": _suspicion(disk),
        "chart": charts.latency(
            f"How long each sync took on {name}",
            shown,
            axis=axis,
            limits={"fdatasync": limit} if limit else {},
            names=METHODS,
        ),
        "limit": number_text(limit) if limit else "",
        "methods": Table(
            f"Figures of each method on {name}, latencies in milliseconds",
            ("Method", "per second", "95 % interval", "p50", "p90", "p99", "p99.9", "max", "samples"),
            [
                (
                    METHODS[method],
                    number_text(figures.get("operations_per_second")),
                    _span(figures.get("operations_per_second_interval")),
                    *(number_text(figures.get(f"{key}_ms")) for key in ("p50", "p90", "p99", "p99_9", "max")),
                    number_text(figures.get("samples")),
                )
                for method, figures in shown.items()
            ],
            numbers=range(1, 9),
        ),
        "facts": _disk_facts(disk),
    }


def _disk_figures(disk: Mapping[str, Any]) -> list[Figure]:
    appended = disk["methods"].get("fdatasync") or {}
    minimum, limit = disk["thresholds"].get("min_fsyncs_per_second"), disk["thresholds"].get("warn_p99_ms")
    low, high = disk["fsyncs_per_second_interval"] or (None, None)
    rate_notes = [
        *([f"{number_text(low)} to {number_text(high)}"] if low is not None else []),
        *([f"wanted {number_text(minimum)}"] if minimum else []),
    ]
    figures = [
        Figure("fsyncs per second", _figure(disk["fsyncs_per_second"]), ", ".join(rate_notes)),
        Figure(
            "fdatasync p99",
            _figure(appended.get("p99_ms"), " ms"),
            f"wanted below {number_text(limit)} ms" if limit and appended else "",
        ),
        Figure("Medium", _CLASSES.get(str(disk["class"]), disk["class"] or UNKNOWN), disk["class_rule"] or ""),
        Figure("Drive", drive(disk) or UNKNOWN, _size(disk)),
        Figure("Write cache", disk["write_cache"] or UNKNOWN, _protection(disk)),
        Figure(
            "Measured",
            _time(disk["time"]),
            ", ".join(filter(None, (age_text(disk), f"kernel {disk['kernel']}"))),
        ),
    ]
    drift = disk["drift"]
    if drift:
        change = drift["fsyncs_per_second_change_percent"]
        others = f", another {' and '.join(drift['changed'])}" if drift["changed"] else ""
        shown = UNKNOWN if change is None else f"{change:+.0f} %"
        figures.append(Figure("Rate since the run before", shown, f"{_time(drift['since'])}{others}"))
    return figures


def _disk_facts(disk: Mapping[str, Any]) -> list[Figure]:
    return [
        Figure(
            "Path",
            disk["measured_path"] or disk["path"] or UNKNOWN,
            disk["path"] if disk["path"] and disk["path"] != disk["measured_path"] else "",
        ),
        Figure("File system", disk["filesystem"] or UNKNOWN, disk["mount_options"] or ""),
        Figure("Device", disk["device"] or UNKNOWN, f"on {disk['disk']}" if disk["disk"] != disk["device"] else ""),
        Figure("Identity", disk["drive_identity"] or UNKNOWN, disk["transport"] or ""),
        Figure("Free space", bytes_text(disk["free_bytes"])),
    ]


def _suspicion(disk: Mapping[str, Any]) -> list[Notice]:
    proof = disk["power_cut"]
    parts = []
    if proof:
        kind = {"convicted": "fail", "acquitted": "pass"}.get(str(proof["verdict"]), UNKNOWN)
        tried = f"A power cut was tried on {_time(proof['time'])}: {proof['verdict']}."
        parts.append(Notice(kind, text=tried))
    unprotected = any(each.get("power_loss_failed") for each in disk["drives"])
    if disk["suspect"] and (unprotected or (proof or {}).get("verdict") != "acquitted"):
        why = [Item(str(each.get("evidence") or each.get("rule"))) for each in disk["suspect"]]
        text = "Suspect: the drive may acknowledge what it has not stored. Only a power cut proves it."
        parts.append(Notice("warn", why, text=text))
    return parts


def _links(every: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """``{chart, loaded, left, table, open}`` of the worst links; ``left`` says what is not shown."""
    pairs = sorted(every, key=lambda pair: (_BADNESS.get(pair["verdict"], 2), -(pair["rtt_p99_ms"] or 0.0)))
    if not pairs:
        return None
    shown, rest = pairs[:MAX_LINKS], pairs[MAX_LINKS:]
    thresholds = shown[0]["thresholds"]
    same = all(pair["thresholds"] == thresholds for pair in shown)
    return {
        "chart": charts.round_trips(
            "Round-trip times of the links",
            [(pair_name(pair), pair, pair["verdict"]) for pair in shown],
            warn=thresholds.get("rtt_warn_ms") if same else None,
            fail=thresholds.get("rtt_fail_ms") if same else None,
        ),
        "loaded": any(pair["load"] for pair in shown),
        "left": f"{len(rest)} more are not shown; the worst of them: {worst(p['verdict'] for p in rest)}." if rest else "",
        "table": _links_table(shown),
        "open": len(shown) <= MAX_OPEN_LINKS,
    }


def _links_table(pairs: Sequence[Mapping[str, Any]]) -> Table:
    loaded = any(pair["load"] for pair in pairs)
    drifted = any(pair["drift"] or pair["kept"] for pair in pairs)
    header = (
        *("Link", "Verdict", "p50 ms", "p99 ms", "max ms", "jitter ms"),
        *(["p99 load"] if loaded else []),
        *("loss %", "reordered %", "path MTU"),
        *(["since the run before"] if drifted else []),
    )
    rows: list[Sequence[Cell]] = [
        (
            pair_name(pair),
            _badge(pair),
            *(_figure(pair[key]) for key in ("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms", "jitter_ms")),
            *([_figure((pair["load"] or {}).get("rtt_p99_ms"))] if loaded else []),
            *(_figure(pair[key]) for key in ("loss_percent", "reordered_percent")),
            UNKNOWN if pair["path_mtu"] is None else str(pair["path_mtu"]),
            *([_drifted(pair)] if drifted else []),
        )
        for pair in pairs
    ]
    caption = "Round-trip times at rest (p99 load: under load), jitter, loss and path MTU"
    return Table(caption, header, rows, numbers=range(2, len(header) - drifted))


def _token(name: str, cluster: Mapping[str, Any]) -> dict[str, Any]:
    age = age_text(cluster)
    return {
        "name": name,
        "badge": Badge(str(cluster["verdict"]), verdict_text(str(cluster["verdict"]))),
        "message": _sentence(cluster["message"]) + (f" ({age})" if age else ""),
        "figures": [
            Figure("In force", _figure(cluster.get("effective_ms"), " ms"), f"{cluster.get('nodes')} nodes"),
            Figure("Needed at least", _figure(cluster.get("needed_ms"), " ms")),
            Figure(
                "Advised token",
                _figure(cluster.get("advised_token_ms"), " ms"),
                "value of token in corosync.conf",
            ),
            Figure("A slow round", _figure(cluster.get("round_ms"), " ms"), "all links and disks at their p99"),
        ],
    }


def _drifted(pair: Mapping[str, Any]) -> str:
    drift = pair["drift"]
    if not drift or drift["rtt_p99_ms_change_percent"] is None:
        return age_text(pair) or UNKNOWN
    return f"p99 {drift['rtt_p99_ms_change_percent']:+.0f} %"


def _badge(part: Mapping[str, Any]) -> Badge:
    return Badge(part["verdict"], verdict_text(part["verdict"], part["reason"]))


def _not_asked(links: Mapping[str, Any]) -> Badge:
    return Badge(UNKNOWN, {"no_links": "no links", "no_peers": "no peers"}.get(str(links["reason"]), UNKNOWN))


def _figure(value: float | None, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{number_text(value)}{unit}"


def _span(ends: Sequence[float] | None) -> str:
    return UNKNOWN if not ends else f"{number_text(ends[0])} to {number_text(ends[1])}"


def _size(disk: Mapping[str, Any]) -> str:
    drives = disk["drives"]
    sizes = [f"{each.get('name')} {bytes_text(each.get('size_bytes'))}" for each in drives]
    return ", ".join(sizes)


def _protection(disk: Mapping[str, Any]) -> str:
    known = {True: "survives a power cut", False: "lost with the power"}
    for each in disk["drives"]:
        if each.get("power_loss_failed"):
            return f"lost with the power: {each['name']}: {each['power_loss_rule']}"
    return known.get(disk["power_loss_protection"], "protection unknown")


def _when(disk: Mapping[str, Any], links: Mapping[str, Any]) -> str:
    times = [part for part in (disk, links) if part["time"]]
    if not times:
        return "never"
    newest = max(times, key=lambda part: str(part["time"]))
    age = age_text(newest)
    return _time(newest["time"]) + (f" ({age})" if age else "")


def _time(value: object) -> str:
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ", str(value))
    return f"{found[1]} {found[2]} UTC" if found else UNKNOWN


def _sentence(message: object) -> str:
    said = str(message)
    return said[:1].upper() + said[1:]
