# SPDX-License-Identifier: Apache-2.0
"""What the page of a report shows of who writes: causes, nodes, files, services, the ring; see :mod:`report_page`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..base.units import UNKNOWN, bytes_text, duration_text, number_text, rate_text, time_text
from ..disk import block_writes
from ..writes import ring_events
from . import charts, report_league, report_summary
from .charts import REST, SERIES, Chart, Series
from .page_parts import MAX_GROUPS, MAX_NODES, Code, LongTable, Table, long_table
from .report_summary import names_text

#: Classes and writers with a colour of their own.
MAX_SERIES = len(SERIES)
#: Files of a cluster or events of its ring, and services of a node.
MAX_FILES, MAX_SERVICES = 10, 5

#: A window with the word for its time: before, now.
Windows = Sequence[tuple[str, Mapping[str, Any]]]


def writers(report: Mapping[str, Any]) -> dict[str, Any]:
    """``{clusters, more_clusters, rings, leagues, services, silent}``; ``services``: of nodes without a league, ``silent``: names
    of hosts whose writers are unknown.
    """
    found = report_summary.groups(report)
    clusters, silent = [], []
    for name, hosts in found.items():
        then, now = (report_summary.witness(report, hosts, when) for when in ("before", "observed"))
        if then or now:
            clusters.append(_cluster(name, hosts, then, now))
        else:
            silent.append(name)
    leagues = report_league.leagues(report)
    return {
        "clusters": clusters[:MAX_GROUPS],
        "more_clusters": clusters[MAX_GROUPS:],
        "rings": _rings(report, found),
        "leagues": leagues,
        "services": _services(report, leagues["known"]),
        "silent": names_text(silent, 6),
    }


def _cluster(
    name: str,
    hosts: Sequence[str],
    then: tuple[str, Mapping[str, Any]] | None,
    now: tuple[str, Mapping[str, Any]] | None,
) -> dict[str, Any]:
    newest = now or then
    assert newest is not None  # the caller has one of them
    shared = (
        f"Every one of the {len(hosts)} members stores all of this." if len(hosts) > 1 else "A node by itself."
    )
    known = [(word, each) for word, each in (("before", then), ("now", now)) if each]
    seen = " and ".join(dict.fromkeys(f"{word} from {each[0]}" for word, each in known))
    windows = [(word, each[1]) for word, each in known]
    return {
        "name": name,
        "seen": f"{shared} Seen {seen}; {_exactness(newest[1])}",
        "unit": _unit([each for each in windows if each[1].get("classes")]),
        "causes": _causes(name, windows),
        "nodes": _writing_nodes(windows),
        "files": _files(newest[1], "now" if now else "before protection"),
    }


def _exactness(window: Mapping[str, Any]) -> str:
    seconds = duration_text(round(window["seconds"])) if window.get("seconds") is not None else UNKNOWN
    if window.get("attribution") == "journal":
        cost = (window.get("journal") or {}).get("bytes")
        return f"counted in the daemon's debug log for {seconds}, exact, at the cost of {bytes_text(cost)} of journal."
    return (
        f"the rows of the database were sampled for {seconds}: figures marked ≥ are lower bounds, because a file that "
        "changed twice between two samples counts once."
    )


def _marked(value: float | None, exact: object) -> str:
    """A figure; with ≥ where more than that may have been written."""
    return number_text(value) if value is None or exact else f"≥ {number_text(value)}"


def _amount(each: Mapping[str, Any]) -> float | None:
    """Of a class or a writer: what it writes a minute, and in a window shorter than that what it wrote in it."""
    known: float | None = each["transactions_per_minute"]
    return each.get("transactions") if known is None else known


def _column(word: str, window: Mapping[str, Any]) -> str:
    seconds = window.get("seconds")
    if seconds is None or block_writes.per_minute(0, seconds) is not None:
        return word
    return f"{word}, in {duration_text(round(seconds))}"


def _unit(windows: Windows) -> str:
    """What the columns of windows count."""
    return "Transactions a minute" if all(_column("", window) == "" for _, window in windows) else "Transactions"


def _causes(name: str, windows: Windows) -> dict[str, Any] | None:
    """The chart and the table of what causes the writes; both None when nothing was written."""
    windows = [each for each in windows if each[1].get("classes")]
    known = [(_column(word, window), window["classes"]) for word, window in windows]
    if not known:
        return None
    labels: dict[str, str] = {}
    worth: dict[str, float] = {}
    for _, classes in known:
        for each in classes:
            labels.setdefault(each["class"], str(each["label"]))
            worth[each["class"]] = max(worth.get(each["class"], 0.0), _amount(each) or 0.0)
    order = sorted((kind for kind in worth if worth[kind]), key=lambda kind: -worth[kind])
    if not order:
        return {"chart": None, "table": None}
    rows = [word for word, _ in known]

    def shown(kind: str, classes: Sequence[Mapping[str, Any]]) -> str:
        found = (_marked(_amount(each), each["exact"]) for each in classes if each["class"] == kind)
        return next(found, "0")

    table = Table(
        f"{_unit(windows)} by cause; ≥ marks a lower bound",
        ("Cause", *rows),
        [(labels[kind], *(shown(kind, classes) for _, classes in known)) for kind in order],
        numbers=range(1, 1 + len(rows)),
    )
    title = f"{_unit(windows)} by what causes them, {name}"
    return {"chart": _causes_chart(title, known, order, labels), "table": table}


def _causes_chart(
    title: str,
    known: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    order: Sequence[str],
    labels: Mapping[str, str],
) -> Chart:
    # What was not seen is no class of its own: it has the colour of the rest.
    coloured = [kind for kind in order if kind != "unattributed"][:MAX_SERIES]
    rest = [kind for kind in order if kind not in coloured]
    parts = [([kind], labels[kind], SERIES[at]) for at, kind in enumerate(coloured)]
    if rest:
        parts.append((rest, labels[rest[0]] if len(rest) == 1 else "other", REST))
    series = [
        Series(
            label,
            [
                sum(_amount(each) or 0.0 for each in classes if each["class"] in wanted)
                for _, classes in known
            ],
            colour=colour,
        )
        for wanted, label, colour in parts
    ]
    said = []
    for word, classes in known:
        figures = [
            f"{each['label']} {_marked(each['transactions_per_minute'], each['exact'])}"
            for each in classes
            if _amount(each)
        ]
        said.append(f"{word}: {', '.join(figures) or 'nothing'}")
    return charts.bars(title, "; ".join(said), [word for word, _ in known], series, stacked=True)


def _writing_nodes(windows: Windows) -> dict[str, Any] | None:
    """``{table, loudest, count}``; ``loudest``: names, where the table is too long to be open. None for one writer."""
    windows = [each for each in windows if each[1].get("writers")]
    known = [(_column(word, window), window["writers"]) for word, window in windows]
    if not known or max(len(found) for _, found in known) < 2:
        return None
    worth: dict[str, float] = {}
    shown: dict[str, dict[str, str]] = {}
    for word, found in known:
        for each in found:
            node = str(each["node"] or f"node id {each['node_id']}")
            worth[node] = max(worth.get(node, 0.0), _amount(each) or 0.0)
            shown.setdefault(node, {})[word] = _marked(_amount(each), each["exact"])
    order = sorted(worth, key=lambda node: -worth[node])
    rows = [word for word, _ in known]
    table = Table(
        f"{_unit(windows)} by the node that writes; ≥ marks a lower bound",
        ("Writing node", *rows),
        [(node, *(shown[node].get(word, "0") for word in rows)) for node in order],
        numbers=range(1, 1 + len(rows)),
    )
    return {
        "table": table,
        "loudest": names_text(order[:3]) if len(order) > MAX_NODES else "",
        "count": len(order),
    }


def _files(window: Mapping[str, Any], when: str) -> dict[str, Any] | None:
    files = list(window.get("files") or [])
    if not files:
        return None
    rows = [
        (
            Code(str(each["path"])),
            str(each.get("node") or (f"node id {each['writer']}" if each.get("writer") else UNKNOWN)),
            _marked(each.get("transactions_at_least"), each.get("exact")),
        )
        for each in files[:MAX_FILES]
    ]
    more = f" ({len(files) - MAX_FILES} more in report.json)" if len(files) > MAX_FILES else ""
    table = Table(
        f"Transactions of each file in the window, {when}{more}; ≥ marks a lower bound",
        ("File on /etc/pve", "Writing node", "Transactions"),
        rows,
        numbers=(2,),
    )
    return {"title": f"Files, {when}: {len(files)}", "table": table}


def _rings(report: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """What the ring of each cluster did, from the node that observed it last."""
    made = []
    for name, hosts in groups.items():
        seen = [(host, ring) for host in hosts if (ring := report["nodes"][host].get("ring"))]
        if not seen:
            continue
        host, ring = max(seen, key=lambda each: str(each[1]["to"]))
        figures = ring_events.figures(ring)
        made.append(
            {
                "name": name,
                "seen": f"The ring as {host} saw it for {duration_text(round(ring['seconds']))}, "
                f"until {time_text(ring['to'])}.",
                "figures": Table("What happened", ("What", "How often"), figures, numbers=(1,)) if figures else None,
                "notes": list(ring["notes"]),
                "events": _events(ring["events"]),
                "count": len(ring["events"]),
            }
        )
    return made


def _events(events: Sequence[Mapping[str, Any]]) -> Table | None:
    if not events:
        return None
    more = f" ({len(events) - MAX_FILES} more in report.json)" if len(events) > MAX_FILES else ""
    return Table(
        f"In order{more}",
        ("Second", "Who said it", "What"),
        [(f"{each['seconds']:.1f}", str(each["source"]), Code(str(each["text"]))) for each in events[:MAX_FILES]],
        numbers=(0,),
    )


def _services(report: Mapping[str, Any], known: Collection[str]) -> LongTable | None:
    """Of nodes that are not ``known`` better."""
    rows = []
    for name, node in report["nodes"].items():
        if name in known:
            continue
        figures = node["writes"]["after"] or {}
        observed = node["writes"].get("observed") or {}
        found = figures.get("services") or observed.get("services") or []
        shown = [
            f"{str(each['service']).removesuffix('.service')} "
            + (bytes_text(each["bytes"]) if each["bytes_per_minute"] is None else rate_text(each["bytes_per_minute"]))
            for each in found[:MAX_SERVICES]
            if each["bytes"]
        ]
        if found:
            in_time = _column("", figures if figures.get("services") else observed)
            rows.append((name, (", ".join(shown) or "nothing") + in_time))
    return long_table(
        f"What services write to the disks of their node, the {MAX_SERVICES} that write most, by the kernel's accounting",
        ("Node", "Services"),
        rows,
        "All nodes",
    )
