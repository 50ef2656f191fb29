"""The report of a run as a page: is the cluster safe and quiet, what changed, who writes, how long the drives last.

See :mod:`report_table` for the data, :mod:`report_summary` for what is made of it, :mod:`html_page` and
:mod:`canvas_charts` for what the page is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base.findings import VERDICTS, Finding, rank
from ..base.units import (
    MOST_YEARS,
    UNKNOWN,
    age_seconds,
    bytes_text,
    change_text,
    duration_text,
    number_text,
    percent_text,
    rate_text,
    time_text,
    years_text,
)
from ..disk import block_writes, drive_findings
from ..writes import ring_events
from . import canvas_charts, html_page, report_summary
from .canvas_charts import REST, SERIES, Series
from .html_page import Html, tag
from .report_summary import names_text, rate

#: Nodes of one chart and rows of a table that is open; the rest is in a table on demand.
MAX_NODES = 12
#: Classes and writers with a colour of their own.
MAX_SERIES = len(SERIES)
#: Files of a cluster, and services of a node.
MAX_FILES, MAX_SERVICES = 10, 5
#: Stand-alone hosts and clusters whose writers are open; more are on demand.
MAX_GROUPS = 3

#: Reasons that are named with a step.
MAX_REASONS = 3

_BADNESS = {"fail": 0, "warn": 1, UNKNOWN: 2, "pass": 3}
_WORDS = {"pass": "safe and quiet", "warn": "worth a look", "fail": "not safe", UNKNOWN: UNKNOWN}
_KINDS = {"nvme": "NVMe", "sata": "SATA", "sas": "SAS"}

_CSS = """
.todo{list-style:none;margin:0;padding:0;counter-reset:todo}
.todo>li{counter-increment:todo;display:grid;grid-template-columns:2rem minmax(0,1fr);gap:.1rem .6rem;
padding:.9rem 0;border-bottom:1px solid var(--line);break-inside:avoid}
.todo>li:last-child{border-bottom:0}
.todo>li::before{content:counter(todo);grid-row:1/span 3;font-weight:600;color:var(--muted);font-size:1.1rem}
.todo p{margin:.15rem 0;grid-column:2}
code{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
.badge{white-space:normal;overflow-wrap:anywhere;text-align:left}
.todo code,.code{background:var(--unknown-back);border-radius:.3rem;padding:.1rem .4rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1rem;align-items:start}
.pair>.card{margin:0;min-width:0}
.pair+.card,.pair+.pair{margin-top:1rem}
.big .figures{margin:0;grid-template-columns:repeat(auto-fill,minmax(min(13rem,100%),1fr))}
.big dd,.big dd.plain{font-size:1.55rem;font-weight:600;letter-spacing:-.015em}
.meter{display:block;height:.5rem;border-radius:99px;background:var(--grid);overflow:hidden;
margin:.15rem 0 .35rem;max-width:20rem}
.meter i{display:block;height:100%;background:var(--mark)}
.meter i.warn{background:var(--warn)}
.meter i.fail{background:var(--fail)}
.drive .figures{grid-template-columns:repeat(auto-fill,minmax(min(7.6rem,100%),1fr));gap:.7rem 1rem}
.drive{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem;margin:0}
.drive>.card{margin:0;min-width:0}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;margin:1.2rem 0 0;padding:0;font-size:.92rem}
@media (max-width:40rem){.big .figures{grid-template-columns:1fr 1fr}.big dd,.big dd.plain{font-size:1.25rem}}
@media print{nav{display:none}.pair{display:block}.pair>.card{margin-bottom:1rem}.scroll{overflow:visible}
table{font-size:8.5pt}th,td{padding-right:.6rem}tbody th{min-width:0}.badge{font-size:8pt;padding:0 .45rem}}
"""


def page(report: Mapping[str, Any], library: str = "", gate_link: str = "", look_only: bool = False) -> str:
    """The whole page as HTML.

    ``library``: the text of Chart.js; without it every chart is a table. ``gate_link``: where gate.html is, seen from
    the page; empty when there is none. ``look_only``: the report of a run that changes nothing.
    """
    judged = report_summary.verdicts(report)
    kind, sentence = report_summary.overall(report)
    parts = [
        ("now", "Is it safe and quiet now?", _now(report, judged)),
        ("changed", "What changed since before?", _changed(report)),
        ("writers", "Who writes what?", _writers(report)),
        ("drives", "How long will the drives last?", _drives(report)),
        ("gates", "What did the gates measure?", _gates(report, gate_link)),
        ("next", "What to do next", _next(report)),
    ]
    navigation = tag(
        "nav",
        tag(
            "ul",
            *(tag("li", tag("a", title, href=f"#{identity}")) for identity, title, _ in parts),
        ),
        aria_label="Parts of this page",
    )
    sections = [tag("section", tag("h2", title), *content, id=identity) for identity, title, content in parts]
    body = html_page.join([navigation, *sections, tag("div", class_="paper", aria_hidden="true")])
    # A map of the library's source would be asked for by the tools of a browser.
    code = library.partition("\n//# sourceMappingURL=")[0]
    note = Html(
        f"{'Looked at' if look_only else 'Made'} {html_page.text(time_text(report['time']))} from "
        f"<code>{'assess' if look_only else 'report'}.json</code> "
        f"(schema {html_page.text(report['schema'])}, version {html_page.text(report['schema_version'])}). What was not "
        "measured is unknown; nothing is estimated in its place. How each figure is had: <code>docs/report.md</code>."
        + (" Nothing was changed on any node." if look_only else "")
    )
    return html_page.page(
        _title(report, look_only),
        body,
        lead=sentence,
        mark=html_page.badge(kind, _WORDS[kind]),
        note=note,
        style=canvas_charts.CSS + canvas_charts.heights(body) + _CSS,
        scripts=[code, canvas_charts.SCRIPT] if code else [],
    )


def moved(made: str, gate_link: str, to: str) -> str:
    """The text of a :func:`page` for another folder, from where gate.html is ``to`` instead of ``gate_link``."""
    return made.replace(_gate_anchor(gate_link), _gate_anchor(to))


def _title(report: Mapping[str, Any], look_only: bool) -> str:
    clusters = {str(node["cluster"]["name"]) for node in report["nodes"].values() if node["cluster"]["name"]}
    count = len(report["nodes"])
    what = next(iter(clusters)) if len(clusters) == 1 else f"{count} node{'' if count == 1 else 's'}"
    return f"{what}: {'a look' if look_only else 'report'} of {str(report['time'])[:10]}"


# -- now


def _now(report: Mapping[str, Any], judged: Mapping[str, tuple[str, list[Finding]]]) -> list[Html]:
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    # A probe has no HA and is not protected: where there are others, these figures are theirs.
    own = {name: node for name, node in nodes.items() if not node["cluster"].get("probe")} or nodes
    tiles = tag(
        "div",
        html_page.key_figures(
            [_quorum_tile(nodes), _copies_tile(nodes), _ha_tile(own), *_ram_tiles(own, report["time"])]
        ),
        class_="card big",
    )
    rows = {
        name: (
            name,
            html_page.badge(judged[name][0], _WORDS[judged[name][0]]),
            _quorum(node["cluster"]),
            _copies(node["corosync"]),
            _ha(node["ha"]),
            _ram(node["ram_state"]),
            _lag(node["ram_state"]),
            _ago(node["ram_state"].get("last_save"), report["time"]),
        )
        for name, node in nodes.items()
    }
    order = sorted(nodes, key=lambda name: _BADNESS[judged[name][0]])
    table = _limited(
        "Each node, the worst first",
        ("Node", "Verdict", "Quorum", "corosync.conf", "HA", "RAM state", "Lag", "Last save"),
        [rows[name] for name in order],
        "All nodes",
    )
    return [tiles, *_notices(report, judged), *table]


def _limited(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    more: str,
    numbers: Sequence[int] = (),
    limit: int = MAX_NODES,
) -> list[Html]:
    """A table in a card; from ``limit`` rows on the others are shown on demand."""
    parts = [html_page.table(caption, header, rows[:limit], numbers=numbers)] if rows else []
    if len(rows) > limit:
        rest = html_page.table(f"{caption}, continued", header, rows[limit:], numbers=numbers)
        parts.append(html_page.details(f"{more}: {len(rows) - limit} more", rest))
    return [tag("div", *parts, class_="card")] if parts else []


def _notices(report: Mapping[str, Any], judged: Mapping[str, tuple[str, list[Finding]]]) -> list[Html]:
    """What is wrong, the same text once for all nodes that it is true of."""
    said: dict[tuple[str, str], list[str]] = {}
    for name, (_, found) in judged.items():
        for each in found:
            said.setdefault((VERDICTS[each.severity], each.text), []).append(name)
    made = []
    for kind in ("fail", "warn", UNKNOWN):
        items = [
            Html(f"<strong>{html_page.text(names_text(names, 6))}</strong>: {html_page.text(text)}")
            for (each, text), names in said.items()
            if each == kind
        ]
        for at in range(0, len(items), 12)[:1]:
            made.append(html_page.notice(kind, items=items[at : at + 12]))
        if len(items) > 12:
            made.append(
                html_page.details(f"{len(items) - 12} more", html_page.notice(kind, items=items[12:]))
            )
    return made


def _quorum_tile(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[str, object, object]:
    known = [
        node["cluster"] for node in nodes.values() if node["in_run"] and node["cluster"]["mode"] != "unknown"
    ]
    members = [each for each in known if each["name"] is not None]
    quorate = sum(bool(each["quorate"]) for each in members)
    rest = len(nodes) - len(known)
    note = f"{rest} unknown" if rest else "stand-alone nodes need none" if len(members) < len(known) else ""
    if not known:
        return "Quorum", UNKNOWN, note
    if not members:
        return "Quorum", "stand-alone", "no cluster"
    return "Nodes with quorum", f"{quorate} of {len(members)}", note


def _copies_tile(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[str, object, object]:
    found = [node["corosync"] for node in nodes.values() if node["in_run"] and node["cluster"]["name"]]
    equal = sum(each["copies"] == "equal" for each in found)
    versions = sorted({each["config_version"] for each in found if each["config_version"] is not None})
    if not found:
        known = any(node["cluster"]["mode"] != "unknown" for node in nodes.values())
        return ("corosync.conf", "none", "no cluster") if known else ("corosync.conf", UNKNOWN, "")
    note = f"version {', '.join(str(version) for version in versions)}" if versions else "version unknown"
    return "Equal copies of corosync.conf", f"{equal} of {len(found)}", note


def _ha_tile(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[str, object, object]:
    states = [node["ha"] for node in nodes.values() if node["in_run"]]
    unknown = sum(each["state"] == UNKNOWN for each in states) + len(nodes) - len(states)
    quiet = sum(each["state"] in ("off", "not installed") for each in states)
    used = sorted({str(resource) for each in states for resource in each["resources"]})
    notes = [f"in use for {len(used)} resource{'' if len(used) == 1 else 's'}"] if used else []
    notes += [f"{unknown} unknown"] if unknown else []
    return "Nodes with HA off", f"{quiet} of {len(nodes)}", ", ".join(notes)


def _ram_tiles(nodes: Mapping[str, Mapping[str, Any]], now: str) -> list[tuple[str, object, object]]:
    states = [node["ram_state"] for node in nodes.values() if node["in_run"]]
    works = [each for each in states if each["state"] in ("enabled", "protected")]
    lags = [each["lag_seconds"] for each in works if each.get("lag_seconds") is not None]
    saves = [age for each in works if (age := age_seconds(each.get("last_save"), now)) is not None]
    tiles: list[tuple[str, object, object]] = [
        ("State in RAM", f"{len(works)} of {len(nodes)}", "healthy, with a replica")
    ]
    if works:
        tiles.append(
            ("Longest lag of a change", duration_text(max(lags, default=None)), "what a power cut would lose")
        )
        tiles.append(
            (
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


def _changed(report: Mapping[str, Any]) -> list[Html]:
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    total = report_summary.totals(report)
    tiles: list[tuple[str, object, object]] = []
    for key, name, shown in (
        ("transactions", "Transactions a minute and node", number_text),
        ("device_bytes", "Disk writes a minute and node", bytes_text),
    ):
        known = total[key]
        if known["nodes"]:
            value = f"{shown(known['before'])} → {shown(known['after'])}"
            count = f"{known['nodes']} node{'' if known['nodes'] == 1 else 's'}"
            note = f"{change_text(known['before'], known['after'])}; mean of {count}"
        else:
            value, note = UNKNOWN, "no node has a rate of both times: it takes a window of a minute"
        tiles.append((name, value, note))
    spared = total["device_bytes"]
    if spared["nodes"]:
        less = spared["before"] - spared["after"]
        tiles.append(
            (
                "Spared a minute and node" if less >= 0 else "More a minute and node",
                bytes_text(abs(less)),
                "of writes to the device behind the store",
            )
        )
    parts = [tag("div", html_page.key_figures(tiles), class_="card big")]
    order = sorted(
        nodes,
        key=lambda name: (
            -max((rate(nodes[name]["writes"][when], "transactions") or 0.0) for when in ("before", "after"))
        ),
    )
    drawn = [name for name in order if _any_rate(nodes[name])][:MAX_NODES]
    if drawn:
        cards = [
            html_page.card(title, _before_after(nodes, drawn, key, title, unit, len(order)))
            for key, title, unit in (
                ("transactions", "Transactions a minute", ""),
                ("device_bytes", "Bytes to the disk a minute", "bytes"),
            )
        ]
        parts.append(tag("div", *cards, class_="pair"))
    rows = [
        (
            name,
            *_three(nodes[name]["writes"], "transactions", number_text),
            *_three(nodes[name]["writes"], "device_bytes", bytes_text),
            _how(nodes[name]["writes"]["after"], report["time"]),
        )
        for name in order
    ]
    parts += _limited(
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
        rows,
        "All nodes",
        numbers=(1, 2, 3, 4, 5, 6),
    )
    notes = {
        f"{name}: {note}"
        for name, node in nodes.items()
        for figures in (node["writes"]["before"], node["writes"]["after"])
        for note in (figures or {}).get("notes") or []
    }
    missing = [name for name, node in nodes.items() if node["in_run"] and node["writes"]["before"] is None]
    listed: list[object] = [*sorted(notes)]
    if missing:
        listed.append(
            f"{names_text(missing, 6)}: no figures from before, because nothing was observed before protection; "
            "they cannot be had later"
        )
    if listed:
        parts.append(
            html_page.details(
                f"Why figures are missing ({len(listed)})", html_page.notice(UNKNOWN, items=listed)
            )
        )
    return parts


def _any_rate(node: Mapping[str, Any]) -> bool:
    return any(
        rate(node["writes"][when], key) is not None
        for when in ("before", "after")
        for key in ("transactions", "device_bytes")
    )


def _before_after(
    nodes: Mapping[str, Mapping[str, Any]], drawn: Sequence[str], key: str, title: str, unit: str, count: int
) -> Html:
    shown = bytes_text if unit == "bytes" else number_text
    values = {
        when: [rate(nodes[name]["writes"][when], key) for name in drawn] for when in ("before", "after")
    }
    said = "; ".join(
        f"{name}: before {shown(old)}, now {shown(new)}"
        for name, old, new in zip(drawn, values["before"], values["after"], strict=True)
    )
    chart = canvas_charts.bars(
        title,
        said,
        drawn,
        [
            Series("before", values["before"], [shown(value) for value in values["before"]], REST),
            Series("now", values["after"], [shown(value) for value in values["after"]], SERIES[0]),
        ],
        unit=unit,
    )
    limit = (
        f" {'The node' if len(drawn) == 1 else f'The {len(drawn)} nodes'} with most; all {count} are in the table below."
        if count > len(drawn)
        else ""
    )
    what = (
        "Each transaction is one change of the cluster's database, stored on every member; their number is exact."
        if key == "transactions"
        else "By the kernel's counters, of everything that writes to that device."
    )
    return canvas_charts.figure(chart, what + limit)


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


# -- who writes


def _writers(report: Mapping[str, Any]) -> list[Html]:
    found = report_summary.groups(report)
    parts = []
    for name, hosts in found.items():
        now = report_summary.witness(report, hosts, "observed")
        then = report_summary.witness(report, hosts, "before")
        if now or then:
            parts.append(_group(name, hosts, then, now))
    silent = [
        name
        for name, hosts in found.items()
        if not any(report_summary.witness(report, hosts, when) for when in ("before", "observed"))
    ]
    rest = parts[MAX_GROUPS:]
    parts = parts[:MAX_GROUPS]
    if rest:
        parts.append(html_page.details(f"{len(rest)} more", *rest))
    parts += [*_rings(report), *_services(report)]
    if silent:
        parts.append(
            html_page.notice(
                UNKNOWN,
                Html(
                    f"Who writes on {html_page.text(names_text(silent, 6))} is unknown: no window was observed there. "
                    '<code class="code">-e write_report_measure=always</code> observes one.'
                ),
            )
        )
    return parts


def _group(
    name: str,
    hosts: Sequence[str],
    then: tuple[str, Mapping[str, Any]] | None,
    now: tuple[str, Mapping[str, Any]] | None,
) -> Html:
    newest = now or then
    assert newest is not None  # the caller has one of them
    shared = (
        f"Every one of the {len(hosts)} members stores all of this."
        if len(hosts) > 1
        else "A node by itself."
    )
    seen = " and ".join(
        dict.fromkeys(f"{word} from {each[0]}" for word, each in (("before", then), ("now", now)) if each)
    )
    parts: list[Html] = [tag("p", f"{shared} Seen {seen}; {_exactness(newest[1])}", class_="muted small")]
    windows = [(word, each[1]) for word, each in (("before", then), ("now", now)) if each]
    chart, causes = _classes(name, windows)
    parts += chart
    tables = [tag("div", *each) for each in (causes, _writing_nodes(windows)) if each]
    parts += [tag("div", *tables, class_="pair")] if tables else []
    parts += _files(newest[1], "now" if now else "before protection")
    return html_page.card(name, *parts)


def _rings(report: Mapping[str, Any]) -> list[Html]:
    """What the ring of each cluster did, from the node that observed it last."""
    parts = []
    for name, hosts in report_summary.groups(report).items():
        seen = [(host, ring) for host in hosts if (ring := report["nodes"][host].get("ring"))]
        if not seen:
            continue
        host, ring = max(seen, key=lambda each: str(each[1]["to"]))
        length = duration_text(round(ring["seconds"]))
        told = f"The ring as {host} saw it for {length}, until {time_text(ring['to'])}."
        body: list[Html] = [tag("p", told, class_="muted small")]
        if rows := ring_events.figures(ring):
            body.append(html_page.table("What happened", ("What", "How often"), rows, numbers=(1,)))
        else:
            body.append(html_page.notice("pass", "Quiet: no membership was formed, no token lost, no link went down."))
        body += [tag("p", note, class_="muted small") for note in ring["notes"]]
        if ring["events"]:
            shown = ring["events"][:MAX_FILES]
            more = f" ({len(ring['events']) - MAX_FILES} more in report.json)" if len(ring["events"]) > MAX_FILES else ""
            events = [(f"{each['seconds']:.1f}", each["source"], tag("code", each["text"])) for each in shown]
            table = html_page.table(f"In order{more}", ("Second", "Who said it", "What"), events, numbers=(0,))
            body.append(html_page.details(f"Events: {len(ring['events'])}", table))
        parts.append(html_page.card(f"{name}: the ring", *body))
    return parts


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


def _unit(windows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """What the columns of windows count."""
    return "Transactions a minute" if all(_column("", window) == "" for _, window in windows) else "Transactions"


def _classes(name: str, windows: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[Html], list[Html]]:
    """The chart and the table of what causes the writes."""
    windows = [each for each in windows if each[1].get("classes")]
    known = [(_column(word, window), window["classes"]) for word, window in windows]
    if not known:
        return [], []
    unit = _unit(windows)
    labels: dict[str, str] = {}
    worth: dict[str, float] = {}
    for _, classes in known:
        for each in classes:
            labels.setdefault(each["class"], str(each["label"]))
            worth[each["class"]] = max(worth.get(each["class"], 0.0), _amount(each) or 0.0)
    order = sorted((kind for kind in worth if worth[kind]), key=lambda kind: -worth[kind])
    # What was not seen is no class of its own: it has the colour of the rest.
    coloured = [kind for kind in order if kind != "unattributed"][:MAX_SERIES]
    rest = [kind for kind in order if kind not in coloured]
    rows = [word for word, _ in known]
    series = []
    for at, kind in enumerate([*coloured, *(["rest"] if rest else [])]):
        wanted = rest if kind == "rest" else [kind]
        values: list[float | Sequence[float] | None] = [
            sum(_amount(each) or 0.0 for each in classes if each["class"] in wanted)
            for _, classes in known
        ]
        label = labels[wanted[0]] if len(wanted) == 1 else "other"
        series.append(Series(label, values, (), REST if kind == "rest" else SERIES[at]))
    if not series:
        return [tag("p", "Nothing was written.")], []
    said = "; ".join(
        f"{word}: "
        + (
            ", ".join(
                f"{each['label']} {_marked(each['transactions_per_minute'], each['exact'])}"
                for each in classes
                if _amount(each)
            )
            or "nothing"
        )
        for word, classes in known
    )
    chart = canvas_charts.bars(
        f"{unit} by what causes them, {name}", said, rows, series, stacked=True
    )
    table = html_page.table(
        f"{unit} by cause; ≥ marks a lower bound",
        ("Cause", *rows),
        [
            (
                labels[kind],
                *(
                    next(
                        (
                            _marked(_amount(each), each["exact"])
                            for each in classes
                            if each["class"] == kind
                        ),
                        "0",
                    )
                    for _, classes in known
                ),
            )
            for kind in order
        ],
        numbers=range(1, 1 + len(rows)),
    )
    return [tag("figure", chart, tag("figcaption", f"{unit}."))], [tag("h4", "By cause"), table]


def _writing_nodes(windows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Html]:
    windows = [each for each in windows if each[1].get("writers")]
    known = [(_column(word, window), window["writers"]) for word, window in windows]
    if not known or max(len(writers) for _, writers in known) < 2:
        return []
    worth: dict[str, float] = {}
    shown: dict[str, dict[str, str]] = {}
    for word, writers in known:
        for each in writers:
            node = str(each["node"] or f"node id {each['node_id']}")
            worth[node] = max(worth.get(node, 0.0), _amount(each) or 0.0)
            shown.setdefault(node, {})[word] = _marked(_amount(each), each["exact"])
    order = sorted(worth, key=lambda node: -worth[node])
    rows = [word for word, _ in known]
    table = html_page.table(
        f"{_unit(windows)} by the node that writes; ≥ marks a lower bound",
        ("Writing node", *rows),
        [(node, *(shown[node].get(word, "0") for word in rows)) for node in order],
        numbers=range(1, 1 + len(rows)),
    )
    if len(order) > MAX_NODES:
        loudest = tag("p", f"Most comes from {names_text(order[:3])}.")
        return [tag("h4", "By node"), loudest, html_page.details(f"All {len(order)} writing nodes", table)]
    return [tag("h4", "By node"), table]


def _files(window: Mapping[str, Any], when: str) -> list[Html]:
    files = list(window.get("files") or [])
    if not files:
        return []
    rows = [
        (
            tag("code", each["path"]),
            str(each.get("node") or (f"node id {each['writer']}" if each.get("writer") else UNKNOWN)),
            _marked(each.get("transactions_at_least"), each.get("exact")),
        )
        for each in files[:MAX_FILES]
    ]
    more = f" ({len(files) - MAX_FILES} more in report.json)" if len(files) > MAX_FILES else ""
    table = html_page.table(
        f"Transactions of each file in the window, {when}{more}; ≥ marks a lower bound",
        ("File on /etc/pve", "Writing node", "Transactions"),
        rows,
        numbers=(2,),
    )
    return [html_page.details(f"Files, {when}: {len(files)}", table)]


def _services(report: Mapping[str, Any]) -> list[Html]:
    rows = []
    for name, node in report["nodes"].items():
        figures = node["writes"]["after"] or {}
        found = figures.get("services") or (node["writes"].get("observed") or {}).get("services") or []
        shown = [
            f"{str(each['service']).removesuffix('.service')} "
            + (bytes_text(each["bytes"]) if each["bytes_per_minute"] is None else rate_text(each["bytes_per_minute"]))
            for each in found[:MAX_SERVICES]
            if each["bytes"]
        ]
        if found:
            time_known = _column("", figures if figures.get("services") else node["writes"].get("observed") or {})
            rows.append((name, (", ".join(shown) or "nothing") + time_known))
    if not rows:
        return []
    table = html_page.table(
        f"What services write to the disks of their node, the {MAX_SERVICES} that write most, by the kernel's accounting",
        ("Node", "Services"),
        rows[:MAX_NODES],
    )
    more = html_page.table("What services write, continued", ("Node", "Services"), rows[MAX_NODES:])
    rest = [html_page.details(f"{len(rows) - MAX_NODES} more nodes", more)] if len(rows) > MAX_NODES else []
    return [html_page.card("By service", table, *rest)]


# -- drives


def _drives(report: Mapping[str, Any]) -> list[Html]:
    parts: list[Html] = []
    known = [(name, disk, node) for name, node in report["nodes"].items() for disk in node.get("disks") or []]
    parts += _lifetimes(known)
    cards = [_drive(name, disk, node, report["time"], len(report["nodes"]) > 1) for name, disk, node in known]
    if cards:
        parts.append(tag("div", *cards[:MAX_NODES], class_="drive"))
        if len(cards) > MAX_NODES:
            more = tag("div", *cards[MAX_NODES:], class_="drive")
            parts.append(html_page.details(f"{len(cards) - MAX_NODES} more drives", more))
    silent = [name for name, node in report["nodes"].items() if not node.get("disks")]
    if silent:
        parts.append(
            html_page.notice(
                UNKNOWN,
                f"No drive of {names_text(silent, 6)} has told anything: no drive with health data, no tool to ask it "
                "(smartmontools or nvme-cli), or not asked in this run.",
            )
        )
    return [*parts, *_amplification(report)]


def _lifetimes(known: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> list[Html]:
    """Years left, now and at the rate before, where both ends of the range are known."""
    rows = []
    for name, disk, _ in known:
        now = disk.get("endurance") or {}
        if now.get("years_left_low") is not None and now.get("years_left_high") is not None:
            rows.append((f"{name} {disk.get('disk')}", now, disk.get("endurance_before") or {}))
    if not rows:
        return []
    rows = sorted(rows, key=lambda row: row[1]["years_left_low"])[:MAX_NODES]
    # A longer bar would press the others to the edge.
    longest = float(MOST_YEARS)

    def ends(figures: Mapping[str, Any]) -> list[float] | None:
        low, high = figures.get("years_left_low"), figures.get("years_left_high")
        # A bar without a length would not be seen.
        return None if low is None or high is None else [min(low, longest - 1), min(high, longest)]

    with_before = any(ends(before) for _, _, before in rows)
    series = [
        Series("at the rate now", [ends(now) for _, now, _ in rows], [_years(now) for _, now, _ in rows])
    ]
    if with_before:
        labels = [_years(before) if ends(before) else None for _, _, before in rows]
        series.insert(0, Series("at the rate before", [ends(before) for _, _, before in rows], labels, REST))
    said = "; ".join(
        f"{name}: {_years(now)} ({_range(now)})"
        + (f", at the rate before {_years(before)}" if ends(before) else "")
        for name, now, before in rows
    )
    chart = canvas_charts.bars(
        "Years that the drives last", said, [name for name, _, _ in rows], series, unit="years"
    )
    return [
        html_page.card(
            "Years left",
            canvas_charts.figure(
                chart,
                "Each bar runs from the fewest to the most years that the figures allow, the number is the best estimate. "
                "It holds for the rate that was measured; another load gives another life.",
            ),
        )
    ]


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


def _drive(name: str, disk: Mapping[str, Any], node: Mapping[str, Any], now: str, several: bool) -> Html:
    left, before = disk.get("endurance") or {}, disk.get("endurance_before") or {}
    used = disk.get("percentage_used")
    kind = _drive_kind(disk)
    measured = ((node["counters"] or {}).get("device") or {}).get("disk")
    behind = str(disk.get("disk")).rpartition("/")[2] == measured
    day = node["writes"].get("day") if behind else None
    notes = [*(left.get("notes") or []), *(disk.get("notes") or [])]
    older = age_seconds(node.get("disks_time"), now)
    if older and older >= 3600:
        notes.append(f"asked {duration_text(older)} ago")
    meter = []
    if used is not None:
        shown = tag(
            "i", class_=kind if kind in ("warn", "fail") else None, style=f"width:{min(100, max(0, used)):g}%"
        )
        meter = [tag("span", shown, class_="meter", aria_hidden="true")]
    figures: list[tuple[str, object, object]] = [
        ("Life used", percent_text(used), "as the drive counts it"),
        ("Years left", _years(left), _range(left)),
        (
            "Written so far",
            bytes_text(disk.get("written_bytes")),
            f"rated for {bytes_text(disk['rated_tbw_bytes'])}"
            if disk.get("rated_tbw_bytes")
            else "rating unknown",
        ),
        (
            "Written a day now",
            bytes_text(day["device_bytes"] * 86400 / day["seconds"]) if day else UNKNOWN,
            f"counted for {duration_text(day['seconds'])}"
            if day
            else "counters of a day are needed"
            if behind
            else "not the drive behind the store",
        ),
    ]
    if before.get("years_left") is not None or before.get("years_left_low") is not None:
        figures.insert(2, ("At the rate before", _years(before), _range(before)))
    hours = disk.get("power_on_hours")
    more = [
        ("Spare blocks", percent_text(disk.get("spare_percent")), ""),
        ("Media errors", number_text(disk.get("media_errors")), ""),
        ("Unsafe shutdowns", number_text(disk.get("unsafe_shutdowns")), ""),
        ("Powered on", duration_text(None if hours is None else hours * 3600), ""),
        ("Written to flash", bytes_text(disk.get("nand_bytes")), _factor(disk.get("drive_amplification"))),
    ]
    label = {"pass": "well", "warn": "worth a look", "fail": "worn out"}.get(kind, UNKNOWN)
    return html_page.card(
        f"{f'{name}: ' if several else ''}{disk.get('disk')}",
        tag(
            "p",
            " · ".join(
                [str(disk.get("model") or "unknown model"), _KINDS.get(str(disk.get("kind")), "kind unknown")]
            ),
            class_="muted small",
        ),
        *meter,
        html_page.key_figures(figures),
        html_page.details(
            "Health", html_page.key_figures(more), *[tag("p", note, class_="muted small") for note in notes]
        ),
        mark=html_page.badge(kind, label),
    )


def _drive_kind(disk: Mapping[str, Any]) -> str:
    keys = ("percentage_used", "spare_percent", "media_errors")
    if all(disk.get(key) is None for key in keys):
        return UNKNOWN
    return report_summary.verdict(drive_findings.findings([disk]))


def _factor(value: float | None) -> str:
    return "" if value is None else f"{number_text(value)} times what the host wrote"


def _amplification(report: Mapping[str, Any]) -> list[Html]:
    found = [(name, node) for name, node in report["nodes"].items() if node.get("amplification")]
    parts = []
    for name, node in found[:MAX_GROUPS]:
        result = node["amplification"]
        cases = result.get("cases") or []
        measured = [case for case in cases if case.get("factor") is not None]
        names = [
            f"{bytes_text(case['file_bytes'])} in {bytes_text(case['block_bytes'])}" for case in measured
        ]
        charts = []
        if measured:
            said = "; ".join(
                f"{label}: {number_text(case['factor'])} times"
                for label, case in zip(names, measured, strict=True)
            )
            chart = canvas_charts.bars(
                f"Write amplification on {name}",
                said,
                names,
                [
                    Series(
                        "bytes to the device for each byte of the file",
                        [case["factor"] for case in measured],
                        [f"{number_text(case['factor'])} ×" for case in measured],
                        SERIES[1],
                    )
                ],
                logarithmic=True,
                unit="times",
            )
            charts.append(
                canvas_charts.figure(
                    chart,
                    "Bytes that reach the device for each byte of the file; logarithmic scale. Each write(2) replaces the "
                    "whole file in the database.",
                )
            )
        table = html_page.table(
            "What a file on /etc/pve costs at the device, by the size of the writes",
            ("File and write size", "Transactions", "Daemon wrote", "Device", "Noise of others", "Factor"),
            [
                (
                    f"{bytes_text(case['file_bytes'])} in {bytes_text(case['block_bytes'])}",
                    number_text(case.get("transactions")),
                    bytes_text(case.get("pmxcfs_write_bytes")),
                    bytes_text(case.get("device_bytes")),
                    bytes_text(case.get("noise_bytes")),
                    f"not tried: {case['skipped']}"
                    if case.get("skipped")
                    else number_text(case.get("factor")),
                )
                for case in cases
            ],
            numbers=(1, 2, 3, 4),
        )
        age = age_seconds(node.get("amplification_time"), report["time"])
        members = result.get("members") or []
        said_notes = [
            *(
                [f"Every member pays the same: {names_text([str(member) for member in members], 6)}."]
                if len(members) > 1
                else []
            ),
            *([f"Measured {duration_text(age)} ago."] if age and age >= 3600 else []),
            *(result.get("notes") or []),
        ]
        parts.append(
            html_page.card(
                f"Write amplification, measured on {name}",
                *charts,
                table,
                *(tag("p", note, class_="muted small") for note in said_notes),
            )
        )
    return parts


# -- gates, next


def _gates(report: Mapping[str, Any], gate_link: str) -> list[Html]:
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
    rows.sort(key=lambda row: str(row[1]) + str(row[4]))
    parts = _limited(
        "Disk and links of each node; p99: 99 of 100 syncs were as fast or faster",
        ("Node", "Disk", "fsyncs/s", "p99", "Links", "Measured"),
        rows,
        "All nodes",
        numbers=(2, 3),
    )
    if gate_link:
        parts.append(
            tag(
                "p",
                "Distributions, drives, links and what helps: ",
                _gate_anchor(gate_link),
                ".",
            )
        )
    return parts


def _gate_anchor(link: str) -> Html:
    return tag("a", "the report of the gates", href=link)


def _gate_badge(result: Mapping[str, Any]) -> Html:
    kind = str(result["verdict"])
    if kind not in html_page.VERDICTS:
        return html_page.badge(UNKNOWN, "not measured" if kind == "not measured" else UNKNOWN)
    reason = result.get("reason")
    return html_page.badge(
        kind, f"{kind} {str(reason).replace('_', ' ')}" if kind in ("warn", "fail") and reason else kind
    )


def _next(report: Mapping[str, Any]) -> list[Html]:
    items = []
    for step in report_summary.steps(report):
        why = [f"{name}: {text}" for name, text in step.reasons[:MAX_REASONS]]
        why += [f"and {len(step.reasons) - MAX_REASONS} more"] if len(step.reasons) > MAX_REASONS else []
        items.append(
            tag(
                "li",
                tag("p", html_page.badge(step.kind, names_text(step.nodes, 6))),
                tag("p", tag("strong", step.todo), " ", tag("code", step.code) if step.code else ""),
                tag("p", "; ".join(why), class_="muted small"),
            )
        )
    parts: list[Html] = [tag("div", tag("ol", *items, class_="todo"), class_="card")] if items else []
    assessed = {name: node["assessment"] for name, node in report["nodes"].items() if node.get("assessment")}
    if not items and not assessed:
        parts.append(
            html_page.notice(
                "pass",
                "Nothing. A second run of make site changes nothing; this page tells when that changes.",
            )
        )
    for name, assessment in list(assessed.items()):
        parts.append(_assessment(name, assessment, len(assessed) > MAX_GROUPS))
    return parts


def _assessment(name: str, assessment: Mapping[str, Any], many: bool) -> Html:
    found = [
        tag("li", html_page.badge(VERDICTS.get(each["level"], UNKNOWN), each["level"]), " ", each["text"])
        for each in assessment.get("findings") or []
    ]
    changes = assessment.get("changes") or []
    parts = [
        tag("ul", *found),
        tag("p", tag("strong", "make site would change: "), "nothing" if not changes else ""),
        *([tag("ul", *(tag("li", each) for each in changes))] if changes else []),
    ]
    levels = [each["level"] for each in assessment.get("findings") or []]
    worst = min(levels, key=rank, default=UNKNOWN)
    if many:
        count = len(changes)
        return html_page.details(f"{name}: {count} change{'' if count == 1 else 's'}", *parts)
    return html_page.card(
        name,
        *parts,
        mark=html_page.badge(VERDICTS[worst], worst),
    )
