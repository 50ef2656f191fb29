"""The report of the gates as a page; see :mod:`gate_report` for the data and :mod:`html_page` for what it is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.units import UNKNOWN, bytes_text, number_text
from . import charts, html_page
from .gate_report import advice, age_text, drive, messages, pair_name, verdict_text, worst
from .html_page import Html, tag

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


def page(report: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    return html_page.page(
        "Gates: disks and links",
        _overview(report),
        *_todo(nodes),
        *_disks(nodes),
        *_links(report),
        *_tokens(report["clusters"]),
        lead=_lead(nodes),
        mark=html_page.badge(report["verdict"], verdict_text(report["verdict"])),
        note=Html(
            f"Made {html_page.text(_time(report['time']))} from <code>gate.json</code> (schema "
            f"{html_page.text(report['schema'])}, version {html_page.text(report['schema_version'])}). What was not measured is "
            "unknown; nothing is estimated in its place. The thresholds and where they come from: <code>docs/gates.md</code>."
        ),
    )


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


def _overview(report: Mapping[str, Any]) -> Html:
    rows = []
    for name, node in report["nodes"].items():
        disk, links = node["disk"], node["links"]
        rows.append(
            (
                name,
                _marked(disk),
                _figure(disk["fsyncs_per_second"]),
                _figure((disk["methods"].get("fdatasync") or disk).get("p99_ms"), " ms"),
                _marked(links) if links["links"] or links["verdict"] != UNKNOWN else _not_asked(links),
                _figure(links["rtt_p99_ms"], " ms"),
                _when(disk, links),
            )
        )
    return html_page.section(
        "At a glance",
        tag(
            "div",
            html_page.table(
                "Verdict of each node; p99: 99 of 100 were as fast or faster",
                ("Node", "Disk", "fsyncs/s", "Disk p99", "Links", "RTT p99", "Measured"),
                rows,
                numbers=(2, 3, 5),
            ),
            class_="card",
        ),
    )


def _todo(nodes: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    notices = []
    for verdict in ("fail", "warn", UNKNOWN, "pass"):
        for name, node in nodes.items():
            said = messages(name, node)
            if node["verdict"] != verdict or not said:
                continue
            kind = verdict if verdict != "pass" else UNKNOWN
            headline = f"{name} was refused" if node["refused_for"] else name
            notices.append(
                html_page.notice(
                    kind,
                    tag("strong", headline),
                    items=[
                        # The heading says the name already.
                        *(_sentence(each.removeprefix(f"{name}: ")) for each in said),
                        *(
                            Html(f"<strong>To do:</strong> {html_page.text(_sentence(each))}")
                            for each in _steps(node)
                        ),
                    ],
                )
            )
    return [html_page.section("What to know, what to do", *notices)] if notices else []


def _steps(node: Mapping[str, Any]) -> list[str]:
    return advice(node) if node["verdict"] in ("fail", "warn") else []


def _disks(nodes: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    measured = {name: node for name, node in nodes.items() if node["disk"]["methods"]}
    if not nodes:
        return []
    axis = charts.latency_scale(
        [figures for node in measured.values() for figures in node["disk"]["methods"].values()], 10
    )
    parts: list[Html] = []
    rows = [
        (
            name,
            node["disk"]["fsyncs_per_second"],
            node["disk"]["fsyncs_per_second_interval"],
            node["disk"]["verdict"],
        )
        for name, node in nodes.items()
    ]
    if measured:
        thresholds = {node["disk"]["thresholds"].get("min_fsyncs_per_second") for node in measured.values()}
        threshold = next(iter(thresholds)) if len(thresholds) == 1 else None
        parts.append(
            html_page.card(
                "Synchronous writes",
                charts.figure(
                    charts.rates("rates", "fsyncs per second of each node", rows, threshold=threshold),
                    "Rate of pveperf's loop, which syncs a truncated file and waits for none of the data; the whisker is the "
                    "interval that holds the true rate with 95 % confidence, from several short rounds. Logarithmic scale.",
                ),
            )
        )
    parts += [_disk(name, node["disk"], number, axis) for number, (name, node) in enumerate(nodes.items())]
    return [html_page.section("Disks", *parts)]


def _disk(name: str, disk: Mapping[str, Any], number: int, axis: charts.Scale) -> Html:
    mark = html_page.badge(disk["verdict"], verdict_text(disk["verdict"], disk["reason"]))
    if not disk["methods"]:
        return html_page.card(name, tag("p", _sentence(disk["message"]), class_="muted"), mark=mark)
    limit = disk["thresholds"].get("warn_p99_ms")
    shown = {method: disk["methods"][method] for method in METHODS if method in disk["methods"]}
    dashed = (
        f" The dashed line is the {number_text(limit)} ms that the p99 of fdatasync has to stay below."
        if limit
        else ""
    )
    chart = charts.figure(
        charts.latency(
            f"latency-{number}",
            f"How long each sync took on {name}",
            shown,
            axis=axis,
            limits={"fdatasync": limit} if limit else {},
            names=METHODS,
        ),
        "Time of the sync alone in milliseconds, logarithmic scale, the same for all nodes; the height of a bar is "
        f"the logarithm of the number of syncs.{dashed}",
    )
    table = html_page.table(
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
    )
    return html_page.card(
        name,
        html_page.key_figures(_disk_figures(disk)),
        *_suspicion(disk),
        chart,
        html_page.details("All figures", table, html_page.key_figures(_disk_facts(disk))),
        mark=mark,
    )


def _disk_figures(disk: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    appended = disk["methods"].get("fdatasync") or {}
    minimum, limit = disk["thresholds"].get("min_fsyncs_per_second"), disk["thresholds"].get("warn_p99_ms")
    low, high = disk["fsyncs_per_second_interval"] or (None, None)
    rate_notes = [
        *([f"{number_text(low)} to {number_text(high)}"] if low is not None else []),
        *([f"wanted {number_text(minimum)}"] if minimum else []),
    ]
    figures: list[tuple[str, object, object]] = [
        ("fsyncs per second", _figure(disk["fsyncs_per_second"]), ", ".join(rate_notes)),
        (
            "fdatasync p99",
            _figure(appended.get("p99_ms"), " ms"),
            f"wanted below {number_text(limit)} ms" if limit and appended else "",
        ),
        ("Medium", _CLASSES.get(str(disk["class"]), disk["class"] or UNKNOWN), disk["class_rule"] or ""),
        ("Drive", drive(disk) or UNKNOWN, _size(disk)),
        ("Write cache", disk["write_cache"] or UNKNOWN, _protection(disk)),
        (
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
        figures.append(("Rate since the run before", shown, f"{_time(drift['since'])}{others}"))
    return figures


def _disk_facts(disk: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    return [
        (
            "Path",
            disk["measured_path"] or disk["path"] or UNKNOWN,
            disk["path"] if disk["path"] != disk["measured_path"] else "",
        ),
        ("File system", disk["filesystem"] or UNKNOWN, disk["mount_options"] or ""),
        ("Device", disk["device"] or UNKNOWN, f"on {disk['disk']}" if disk["disk"] != disk["device"] else ""),
        ("Identity", disk["drive_identity"] or UNKNOWN, disk["transport"] or ""),
        ("Free space", bytes_text(disk["free_bytes"]), ""),
    ]


def _suspicion(disk: Mapping[str, Any]) -> list[Html]:
    proof = disk["power_cut"]
    parts = []
    if proof:
        kind = {"convicted": "fail", "acquitted": "pass"}.get(str(proof["verdict"]), UNKNOWN)
        parts.append(
            html_page.notice(kind, f"A power cut was tried on {_time(proof['time'])}: {proof['verdict']}.")
        )
    unprotected = any(each.get("power_loss_failed") for each in disk["drives"])
    if disk["suspect"] and (unprotected or (proof or {}).get("verdict") != "acquitted"):
        parts.append(
            html_page.notice(
                "warn",
                "Suspect: the drive may acknowledge what it has not stored. Only a power cut proves it.",
                items=[each.get("evidence") or each.get("rule") for each in disk["suspect"]],
            )
        )
    return parts


def _links(report: Mapping[str, Any]) -> list[Html]:
    pairs: Sequence[Mapping[str, Any]] = sorted(
        report["pairs"],
        key=lambda pair: (_BADNESS.get(pair["verdict"], 2), -(pair["rtt_p99_ms"] or 0.0)),
    )
    if not pairs:
        return []
    shown, rest = pairs[:MAX_LINKS], pairs[MAX_LINKS:]
    thresholds = shown[0]["thresholds"]
    same = all(pair["thresholds"] == thresholds for pair in shown)
    left = (
        f" {len(rest)} more are not shown; the worst of them: {worst(p['verdict'] for p in rest)}."
        if rest
        else ""
    )
    loaded = any(pair["load"] for pair in shown)
    drifted = any(pair["drift"] or pair["kept"] for pair in shown)
    chart = charts.figure(
        charts.round_trips(
            "links",
            "Round-trip times of the links",
            [(pair_name(pair), pair, pair["verdict"]) for pair in shown],
            warn=thresholds.get("rtt_warn_ms") if same else None,
            fail=thresholds.get("rtt_fail_ms") if same else None,
        ),
        f"From the median to the p99, the line to the longest; {'the pale bar is under load; ' if loaded else ''}"
        f"milliseconds, logarithmic scale. Of the two ends of a link the worse figures are shown.{left}",
    )
    rows = [
        (
            pair_name(pair),
            html_page.badge(pair["verdict"], verdict_text(pair["verdict"], pair["reason"])),
            *(_figure(pair[key]) for key in ("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms", "jitter_ms")),
            _figure((pair["load"] or {}).get("rtt_p99_ms")) if loaded else None,
            *(_figure(pair[key]) for key in ("loss_percent", "reordered_percent")),
            UNKNOWN if pair["path_mtu"] is None else str(pair["path_mtu"]),
            _drifted(pair) if drifted else None,
        )
        for pair in shown
    ]
    header = (
        *("Link", "Verdict", "p50 ms", "p99 ms", "max ms", "jitter ms"),
        *(["p99 load"] if loaded else []),
        *("loss %", "reordered %", "path MTU"),
        *(["since the run before"] if drifted else []),
    )
    cells = [tuple(cell for cell in row if cell is not None) for row in rows]
    table = html_page.table(
        "Round-trip times at rest (p99 load: under load), jitter, loss and path MTU",
        header,
        cells,
        numbers=range(2, len(header) - drifted),
    )
    figures = html_page.details("All figures", table) if len(shown) > MAX_OPEN_LINKS else table
    return [
        html_page.section(
            "Links", html_page.card("Round-trip times", chart), tag("div", figures, class_="card")
        )
    ]


def _tokens(clusters: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    cards = []
    for name, cluster in clusters.items():
        figures: list[tuple[str, object, object]] = [
            ("In force", _figure(cluster.get("effective_ms"), " ms"), f"{cluster.get('nodes')} nodes"),
            ("Needed at least", _figure(cluster.get("needed_ms"), " ms"), ""),
            (
                "Advised token",
                _figure(cluster.get("advised_token_ms"), " ms"),
                "value of token in corosync.conf",
            ),
            ("A slow round", _figure(cluster.get("round_ms"), " ms"), "all links and disks at their p99"),
        ]
        age = age_text(cluster)
        cards.append(
            html_page.card(
                name,
                tag("p", _sentence(cluster["message"]) + (f" ({age})" if age else "")),
                html_page.key_figures(figures),
                mark=html_page.badge(str(cluster["verdict"]), verdict_text(str(cluster["verdict"]))),
            )
        )
    note = tag(
        "p",
        "Advice only: pveguard writes no token timeout to an existing configuration.",
        class_="muted small",
    )
    return [html_page.section("Token timeout", *cards, note)] if cards else []


def _drifted(pair: Mapping[str, Any]) -> str:
    drift = pair["drift"]
    if not drift or drift["rtt_p99_ms_change_percent"] is None:
        return age_text(pair) or UNKNOWN
    return f"p99 {drift['rtt_p99_ms_change_percent']:+.0f} %"


def _marked(part: Mapping[str, Any]) -> Html:
    return html_page.badge(part["verdict"], verdict_text(part["verdict"], part["reason"]))


def _not_asked(links: Mapping[str, Any]) -> Html:
    shown = {"no_links": "no links", "no_peers": "no peers"}.get(str(links["reason"]), UNKNOWN)
    return html_page.badge(UNKNOWN, shown)


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
