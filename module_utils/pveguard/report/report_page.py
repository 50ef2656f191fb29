# SPDX-License-Identifier: Apache-2.0
"""The report of a run as a page: is the cluster safe and quiet, what changed, who writes, how long the drives last.

This makes the texts and figures that ``report/templates/report.html.j2`` puts into their places; see
:mod:`report_table` for the data and :mod:`report_summary` for what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base.units import (
    UNKNOWN,
    age_seconds,
    bytes_text,
    change_text,
    duration_text,
    number_text,
    time_text,
)
from . import charts, pages, report_drives, report_findings, report_hardening, report_summary, report_writers
from .charts import REST, SERIES, Chart, Series
from .page_parts import MAX_NODES, VERDICTS, Badge, Figure, LongTable, long_table
from .report_summary import names_text, rate

#: What a minute of a node is compared by: key, title of its chart, unit, what is counted.
_RATES = (
    (
        "transactions",
        "Transactions a minute",
        "",
        "Each transaction is one change of the cluster's database, stored on every member; their number is exact.",
    ),
    (
        "device_bytes",
        "Bytes to the disk a minute",
        "bytes",
        "By the kernel's counters, of everything that writes to that device.",
    ),
)


def page(report: Mapping[str, Any], gate_link: str = "", look_only: bool = False, scripts: bool = True) -> str:
    """The whole page as HTML.

    ``gate_link``: where gate.html is, seen from the page; empty when there is none. ``look_only``: the report of a run
    that changes nothing. Without ``scripts`` no chart is drawn; the tables have the same figures.
    """
    return pages.render("report.html.j2", view(report, gate_link, look_only), scripts=scripts)


def view(report: Mapping[str, Any], gate_link: str = "", look_only: bool = False) -> dict[str, Any]:
    """What the template takes; one entry for each part of the page, and what its head and its footer say."""
    verdict, sentence = report_findings.overall(report)
    return {
        "title": _title(report, look_only),
        "verdict": verdict,
        "lead": sentence,
        "now": _now(report),
        "changed": _changed(report),
        "writers": report_writers.writers(report),
        "drives": report_drives.drives(report),
        "gates": {"nodes": _gates(report), "link": gate_link},
        "hardening": report_hardening.hardening(report),
        "next": report_findings.next_steps(report),
        "look_only": look_only,
        "made": {
            "time": time_text(report["time"]),
            "schema": report["schema"],
            "version": report["schema_version"],
        },
    }


def _title(report: Mapping[str, Any], look_only: bool) -> str:
    clusters = {str(node["cluster"]["name"]) for node in report["nodes"].values() if node["cluster"]["name"]}
    count = len(report["nodes"])
    what = next(iter(clusters)) if len(clusters) == 1 else f"{count} node{'' if count == 1 else 's'}"
    return f"{what}: {'a look' if look_only else 'report'} of {str(report['time'])[:10]}"


# -- now


def _now(report: Mapping[str, Any]) -> dict[str, Any]:
    """``{tiles, notices, nodes}``."""
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    # A probe has no HA and is not protected: where there are others, these figures are theirs.
    own = {name: node for name, node in nodes.items() if not node["cluster"].get("probe")} or nodes
    rows = [
        (
            name,
            badge,
            _quorum(nodes[name]["cluster"]),
            _copies(nodes[name]["corosync"]),
            _ha(nodes[name]["ha"]),
            _ram(nodes[name]["ram_state"]),
            _lag(nodes[name]["ram_state"]),
            _ago(nodes[name]["ram_state"].get("last_save"), report["time"]),
        )
        for name, badge in report_findings.verdicts(report).items()
    ]
    return {
        "tiles": [_quorum_tile(nodes), _copies_tile(nodes), _ha_tile(own), *_ram_tiles(own, report["time"])],
        "notices": report_findings.notices(report),
        "nodes": long_table(
            "Each node, the worst first",
            ("Node", "Verdict", "Quorum", "corosync.conf", "HA", "RAM state", "Lag", "Last save"),
            rows,
            "All nodes",
        ),
    }


def _quorum_tile(nodes: Mapping[str, Mapping[str, Any]]) -> Figure:
    known = [
        node["cluster"] for node in nodes.values() if node["in_run"] and node["cluster"]["mode"] != "unknown"
    ]
    members = [each for each in known if each["name"] is not None]
    quorate = sum(bool(each["quorate"]) for each in members)
    rest = len(nodes) - len(known)
    note = f"{rest} unknown" if rest else "stand-alone nodes need none" if len(members) < len(known) else ""
    if not known:
        return Figure("Quorum", UNKNOWN, note)
    if not members:
        return Figure("Quorum", "stand-alone", "no cluster")
    return Figure("Nodes with quorum", f"{quorate} of {len(members)}", note)


def _copies_tile(nodes: Mapping[str, Mapping[str, Any]]) -> Figure:
    found = [node["corosync"] for node in nodes.values() if node["in_run"] and node["cluster"]["name"]]
    equal = sum(each["copies"] == "equal" for each in found)
    versions = sorted({each["config_version"] for each in found if each["config_version"] is not None})
    if not found:
        known = any(node["cluster"]["mode"] != "unknown" for node in nodes.values())
        return Figure("corosync.conf", "none", "no cluster") if known else Figure("corosync.conf", UNKNOWN)
    note = f"version {', '.join(str(version) for version in versions)}" if versions else "version unknown"
    return Figure("Equal copies of corosync.conf", f"{equal} of {len(found)}", note)


def _ha_tile(nodes: Mapping[str, Mapping[str, Any]]) -> Figure:
    states = [node["ha"] for node in nodes.values() if node["in_run"]]
    unknown = sum(each["state"] == UNKNOWN for each in states) + len(nodes) - len(states)
    quiet = sum(each["state"] in ("off", "not installed") for each in states)
    used = sorted({str(resource) for each in states for resource in each["resources"]})
    notes = [f"in use for {len(used)} resource{'' if len(used) == 1 else 's'}"] if used else []
    notes += [f"{unknown} unknown"] if unknown else []
    return Figure("Nodes with HA off", f"{quiet} of {len(nodes)}", ", ".join(notes))


def _ram_tiles(nodes: Mapping[str, Mapping[str, Any]], now: str) -> list[Figure]:
    states = [node["ram_state"] for node in nodes.values() if node["in_run"]]
    works = [each for each in states if each["state"] in ("enabled", "protected")]
    lags = [each["lag_seconds"] for each in works if each.get("lag_seconds") is not None]
    saves = [age for each in works if (age := age_seconds(each.get("last_save"), now)) is not None]
    tiles = [Figure("State in RAM", f"{len(works)} of {len(nodes)}", "healthy, with a replica")]
    if works:
        tiles.append(
            Figure("Longest lag of a change", duration_text(max(lags, default=None)), "what a power cut would lose")
        )
        tiles.append(
            Figure(
                "Last save",
                f"{duration_text(min(saves))} ago" if saves else UNKNOWN,
                f"the oldest {duration_text(max(saves))} ago" if len(saves) > 1 else "",
            )
        )
    return tiles


def _quorum(cluster: Mapping[str, Any]) -> str:
    if cluster["mode"] == "unknown":
        return UNKNOWN
    if cluster["name"] is None:
        return "no Proxmox" if cluster["installed"] is False else "stand-alone"
    if cluster["quorate"] is None:
        return UNKNOWN
    return f"{'yes' if cluster['quorate'] else 'NO'}, {cluster['live']} of {cluster['members']}"


def _copies(corosync: Mapping[str, Any]) -> str:
    version = f", version {corosync['config_version']}" if corosync["config_version"] is not None else ""
    return f"{corosync['copies']}{version if corosync['copies'] == 'equal' else ''}"


def _ha(ha: Mapping[str, Any]) -> str:
    resources = ha["resources"]
    return f"in use ({len(resources)})" if resources and ha["state"] != "off" else str(ha["state"])


def _ram(state: Mapping[str, Any]) -> str:
    kind = {"enabled": "healthy", "protected": "healthy"}.get(str(state["state"]), str(state["state"]))
    count = state.get("generations")
    return f"{kind}, {count} generation{'' if count == 1 else 's'}" if count else kind


def _lag(state: Mapping[str, Any]) -> str:
    # Where the database is on disk nothing lags.
    return "none" if state["state"] == "off" else duration_text(state.get("lag_seconds"))


def _ago(moment: object, now: str) -> str:
    age = age_seconds(moment, now)
    return "–" if moment is None else UNKNOWN if age is None else f"{duration_text(age)} ago"


# -- before and after


def _changed(report: Mapping[str, Any]) -> dict[str, Any]:
    """``{tiles, charts, nodes, missing}``; ``missing``: why figures are not there."""
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    order = sorted(
        nodes,
        key=lambda name: (
            -max((rate(nodes[name]["writes"][when], "transactions") or 0.0) for when in ("before", "after"))
        ),
    )
    drawn = [name for name in order if _any_rate(nodes[name])][:MAX_NODES]
    return {
        "tiles": _rate_tiles(report),
        "charts": _rate_charts(nodes, drawn, len(order)) if drawn else [],
        "nodes": _rates_table(report, order),
        "missing": _missing(nodes),
    }


def _rate_tiles(report: Mapping[str, Any]) -> list[Figure]:
    total = report_summary.totals(report)
    tiles = []
    for key, name, shown in (
        ("transactions", "Transactions a minute and node", number_text),
        ("device_bytes", "Disk writes a minute and node", bytes_text),
    ):
        known = total[key]
        if known["nodes"]:
            count = f"{known['nodes']} node{'' if known['nodes'] == 1 else 's'}"
            note = f"{change_text(known['before'], known['after'])}; mean of {count}"
            tiles.append(Figure(name, f"{shown(known['before'])} → {shown(known['after'])}", note))
        else:
            note = "no node has a rate of both times: it takes a window of a minute"
            tiles.append(Figure(name, UNKNOWN, note))
    spared = total["device_bytes"]
    if spared["nodes"]:
        less = spared["before"] - spared["after"]
        name = "Spared a minute and node" if less >= 0 else "More a minute and node"
        tiles.append(Figure(name, bytes_text(abs(less)), "of writes to the device behind the store"))
    return tiles


def _any_rate(node: Mapping[str, Any]) -> bool:
    return any(
        rate(node["writes"][when], key) is not None
        for when in ("before", "after")
        for key in ("transactions", "device_bytes")
    )


def _rate_charts(nodes: Mapping[str, Mapping[str, Any]], drawn: Sequence[str], count: int) -> list[dict[str, Any]]:
    """``{chart, caption}`` of each rate of the nodes ``drawn``, of ``count``."""
    limit = (
        f" {'The node' if len(drawn) == 1 else f'The {len(drawn)} nodes'} with most; all {count} are in the table below."
        if count > len(drawn)
        else ""
    )
    return [
        {"chart": _before_after(nodes, drawn, key, title, unit), "caption": what + limit}
        for key, title, unit, what in _RATES
    ]


def _before_after(
    nodes: Mapping[str, Mapping[str, Any]], drawn: Sequence[str], key: str, title: str, unit: str
) -> Chart:
    shown = bytes_text if unit == "bytes" else number_text
    values = {
        when: [rate(nodes[name]["writes"][when], key) for name in drawn] for when in ("before", "after")
    }
    said = "; ".join(
        f"{name}: before {shown(old)}, now {shown(new)}"
        for name, old, new in zip(drawn, values["before"], values["after"], strict=True)
    )
    series = [
        Series("before", values["before"], [shown(value) for value in values["before"]], REST),
        Series("now", values["after"], [shown(value) for value in values["after"]], SERIES[0]),
    ]
    return charts.bars(title, said, drawn, series, unit=unit)


def _rates_table(report: Mapping[str, Any], order: Sequence[str]) -> LongTable | None:
    nodes = report["nodes"]
    return long_table(
        "Transactions and bytes written to the device behind the store, per minute",
        (
            "Node",
            "Transactions before",
            "Transactions now",
            "Change",
            "Bytes before",
            "Bytes now",
            "Change",
            "How",
        ),
        [
            (
                name,
                *_three(nodes[name]["writes"], "transactions", number_text),
                *_three(nodes[name]["writes"], "device_bytes", bytes_text),
                _how(nodes[name]["writes"]["after"], report["time"]),
            )
            for name in order
        ],
        "All nodes",
        numbers=(1, 2, 3, 4, 5, 6),
    )


def _missing(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = {
        f"{name}: {note}"
        for name, node in nodes.items()
        for figures in (node["writes"]["before"], node["writes"]["after"])
        for note in (figures or {}).get("notes") or []
    }
    without = [name for name, node in nodes.items() if node["in_run"] and node["writes"]["before"] is None]
    why = (
        f"{names_text(without, 6)}: no figures from before, because nothing was observed before protection; "
        "they cannot be had later"
    )
    return [*sorted(notes), *([why] if without else [])]


def _three(writes: Mapping[str, Any], key: str, shown: Any) -> tuple[str, str, str]:
    old, new = rate(writes["before"], key), rate(writes["after"], key)
    said = [report_summary.rate_or_count(writes[when], key, shown) for when in ("before", "after")]
    return said[0], said[1], change_text(old, new)


def _how(figures: Mapping[str, Any] | None, now: str) -> str:
    if not figures:
        return "not measured"
    seconds = figures.get("seconds")
    age = age_seconds(figures.get("to"), now)
    old = f", {duration_text(age)} ago" if age and age >= 3600 else ""
    if figures["method"] == "window":
        return f"observed for {duration_text(round(seconds)) if seconds is not None else UNKNOWN}{old}"
    return f"counters of {duration_text(round(seconds)) if seconds is not None else UNKNOWN}{old}"


# -- gates


def _gates(report: Mapping[str, Any]) -> LongTable | None:
    rows = []
    for name, node in report["nodes"].items():
        gate, links = node["gate"], node.get("links") or {"verdict": "not measured"}
        rows.append(
            (
                name,
                _gate_badge(gate),
                number_text(gate["fsyncs_per_second"]),
                UNKNOWN if gate["p99_ms"] is None else f"{number_text(gate['p99_ms'])} ms",
                _gate_badge(links),
                _ago(gate["time"] or links.get("time"), report["time"]),
            )
        )
    rows.sort(key=lambda row: (row[1].kind, row[1].label, row[4].kind, row[4].label))
    return long_table(
        "Disk and links of each node; p99: 99 of 100 syncs were as fast or faster",
        ("Node", "Disk", "fsyncs/s", "p99", "Links", "Measured"),
        rows,
        "All nodes",
        numbers=(2, 3),
    )


def _gate_badge(result: Mapping[str, Any]) -> Badge:
    kind = str(result["verdict"])
    if kind not in VERDICTS:
        return Badge(UNKNOWN, "not measured" if kind == "not measured" else UNKNOWN)
    reason = result.get("reason")
    named = kind in ("warn", "fail") and reason
    return Badge(kind, f"{kind} {str(reason).replace('_', ' ')}" if named else kind)
