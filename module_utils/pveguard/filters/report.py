# SPDX-License-Identifier: Apache-2.0
"""Filters of the roles ha and write_report, and the texts of bytes, rates and durations for every output."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..base import units, variables
from ..base.host_variables import facts_of, rendered
from ..corosync import probe_members
from ..gates import power_cut
from ..ha import ha_info
from ..hardening import asked
from ..report import report_metrics, report_page, report_table
from ..writes import ring_events, writers

Hosts = Mapping[str, Mapping[str, Any]]


def _get(hostvars: Hosts, host: str, name: str) -> Any:
    """A variable of another host, None where the host or the variable does not exist."""
    return hostvars[host].get(name) if host in hostvars else None


def _node(hostvars: Hosts, host: str) -> dict[str, Any] | None:
    """The facts of node_info of a host, as registered in ``pveguard_node``."""
    return facts_of(hostvars[host]) if host in hostvars else None


def _hardened(hostvars: Hosts, host: str) -> dict[str, Any] | None:
    """The same with the facts of hardening_info, where it was asked."""
    node = _node(hostvars, host)
    return None if node is None else asked.with_answer(node, hostvars[host])


def cluster_peers(hostvars: Hosts, hosts: Iterable[str], host: str) -> list[str]:
    """Those of ``hosts`` that are in the same cluster as ``host``, itself included. No step waits for a probe."""
    nodes = {name: _node(hostvars, name) or {} for name in hosts}
    cluster = ((_node(hostvars, host) or {}).get("corosync") or {}).get("cluster_name")
    return [
        name
        for name, node in nodes.items()
        if name == host
        or (
            cluster
            and (node.get("corosync") or {}).get("cluster_name") == cluster
            and not probe_members.is_one(node)
            and probe_members.GROUP not in (_get(hostvars, name, "group_names") or ())
        )
    ]


def next_peers(hostvars: Hosts, hosts: Iterable[str], host: str, done: Iterable[str]) -> list[str]:
    """Those of ``hosts`` that come after ``host`` in its cluster, the first after the last, until one that may be switched next.

    ``done`` are the states of ``ram_state`` of nodes that are not switched any more. Empty where ``host`` is alone.
    """
    every = rendered(hostvars)
    peers = cluster_peers(every, hosts, host)
    at, states, found = peers.index(host), set(done), []
    for peer in peers[at + 1 :] + peers[:at]:
        found.append(peer)
        state = ((_node(every, peer) or {}).get("ram_state") or {}).get("state", "absent")
        if state not in states and variables.as_bool(every[peer].get("ram_state_enabled", True)):
            break
    return found


def ha_on(hostvars: Hosts, hosts: Iterable[str]) -> list[str]:
    """Those of ``hosts`` that have something of HA to switch off or to clean up, as far as the facts tell."""
    facts = {host: (_node(hostvars, host) or {}).get("ha") or {} for host in hosts}
    return [
        host
        for host, ha in facts.items()
        if not (ha.get("watchdog_off") and ha.get("managers_off")) or ha.get("leftovers")
    ]


def _ha(hostvars: Hosts, hosts: Iterable[str], *names: str) -> dict[str, dict[str, Any]]:
    """What ha_info said of each host: the first of ``names`` under which a result was registered, {} where there is none."""
    found = {host: [(_get(hostvars, host, name) or {}).get("ha") for name in names] for host in hosts}
    return {host: next(filter(None, results), {}) for host, results in found.items()}


def ha_objections(hostvars: Hosts, hosts: Iterable[str], *names: str, held: bool = True) -> list[str]:
    """Why HA must not be switched off now, from the results of ha_info registered on each host, as the first of ``names`` that
    exists. ``held`` False: without the watchdogs that the managers will let go by themselves.
    """
    return ha_info.objections(_ha(hostvars, hosts, *names), held)


def ha_release_awaited(hostvars: Hosts, hosts: Iterable[str], name: str) -> list[str]:
    """Who holds a watchdog that the managers will let go by themselves, where nothing else is in the way."""
    return ha_info.release_awaited(_ha(hostvars, hosts, name))


def ha_watchdog_holders(hostvars: Hosts, hosts: Iterable[str], name: str) -> list[str]:
    """Who holds a watchdog, from the results of ha_info registered as ``name`` on each host."""
    return ha_info.watchdog_holders(_ha(hostvars, hosts, name))


def _file(directory: str, kind: str, host: str) -> Path:
    return Path(directory) / kind / f"{quote(host, safe='')}.json"


def saved(directory: str, kind: str, host: str) -> dict[str, Any]:
    """What was saved of a host on the controller (``baseline`` or ``last``), {} when nothing usable."""
    try:
        value = json.loads(_file(directory, kind, host).read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _json_file(path: Path, value: Any) -> dict[str, str]:
    return {"path": str(path), "content": json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"}


#: Earlier results that the file of a gate keeps: a year of weeks.
_GATE_HISTORY = 52
_GATE_NO_FIGURES = frozenset({"changed", "failed", "failed_when_result", "message", "msg", "mount_options"})


def gate_files(
    hostvars: Hosts, hosts: Iterable[str], directory: str, kind: str, name: str
) -> list[dict[str, str]]:
    """The files ``KIND/HOST.json`` for the results of a gate that each host registered as ``name``.

    ``result`` is the last one; ``history`` has the key figures of it and of those before, oldest first.
    """
    files = []
    for host in hosts:
        result = _get(hostvars, host, name) or {}
        if not result.get("verdict"):
            continue
        short = {
            key: value
            for key, value in result.items()
            if key not in _GATE_NO_FIGURES
            and (value is None or isinstance(value, (str, int, float)) or key.endswith("_interval"))
        }
        history = [
            entry
            for entry in saved(directory, kind, host).get("history", [])
            if entry.get("time") != result.get("time")
        ]
        value = {
            "schema": f"pveguard-{kind.replace('_', '-')}",
            "schema_version": 1,
            "time": result.get("time"),
            "host": host,
            "result": {key: value for key, value in result.items() if not key.startswith("_ansible")},
            "history": [*history, short][-_GATE_HISTORY:],
        }
        files.append(_json_file(_file(directory, kind, host), value))
    return files


def power_cut_files(
    hostvars: Hosts, hosts: Iterable[str], directory: str, name: str
) -> list[dict[str, str]]:
    """The files to write and remove for the verdicts of a power cut that each host registered as ``name``.

    Without a conviction or an acquittal the acknowledgements stay: the power may still be cut.
    """
    files = []
    for host in hosts:
        result = _get(hostvars, host, name) or {}
        if result.get("verdict"):
            keys = (
                "verdict evidence message lost highest acknowledged drive_identity device path time".split()
            )
            value = {
                "schema": "pveguard-power-cut",
                "schema_version": 1,
                "host": host,
                **{key: result.get(key) for key in keys},
            }
            files.append(_json_file(_file(directory, "power_cut", host), value))
            if result["verdict"] != "inconclusive":
                files.append({"path": power_cut_notes(directory, host), "state": "absent"})
    return files


def power_cut_notes(directory: str, host: str) -> str:
    """The file in which the acknowledgements of a host are noted."""
    return str(_file(directory, "power_cut", host).with_suffix(".acknowledged"))


def baseline_files(hostvars: Hosts, hosts: Iterable[str], directory: str, name: str) -> list[dict[str, str]]:
    """The files to write for the windows observed before protection (registered as ``name``)."""
    files = []
    for host in hosts:
        result = _get(hostvars, host, name) or {}
        if result.get("window"):
            counters = result["counters"]
            value = {
                "schema": "pveguard-baseline",
                "schema_version": report_table.SCHEMA_VERSION,
                "time": counters["time"],
                "machine": counters["machine"],
                "window": result["window"],
                # The only figure of a longer time before protection.
                "since_boot": {
                    "from": None,
                    "to": counters["time"],
                    "seconds": counters.get("uptime_seconds"),
                    "device_bytes": (counters.get("device") or {}).get("bytes_written"),
                    "league": writers.table(None, counters.get("league")),
                },
            }
            files.append(_json_file(_file(directory, "baseline", host), value))
    return files


def report(
    hostvars: Hosts,
    hosts: Iterable[str],
    in_run: Iterable[str],
    directory: str,
    name: str,
    amplification: str = "__write_report_amplification",
    ring: str = "__write_report_ring",
    assessments: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The report of ``hosts``; ``in_run``: those still in the play; ``name``: where writes are registered.

    ``amplification`` and ``ring``: where the results of write_amplification and ring_events are registered; a host without
    them keeps what it told last. ``assessments``: what ``pveguard_assessments`` returned.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    present = set(in_run)
    nodes = {}
    for host in hosts:
        here = host in present
        measured = _get(hostvars, host, name) if here else None
        nodes[host] = report_table.entry(
            now=now,
            in_run=here,
            node=_hardened(hostvars, host),
            gate=_get(hostvars, host, "fsync_gate_result"),
            links=_get(hostvars, host, "link_gate_result"),
            plan=_get(hostvars, host, "pveguard_plan"),
            measured=measured,
            wear=(measured or {}).get("drives"),
            amplification=_get(hostvars, host, amplification) if here else None,
            ring=_get(hostvars, host, ring) if here else None,
            assessment=(assessments or {}).get(host),
            last=saved(directory, "last", host),
            baseline=saved(directory, "baseline", host),
        )
    return report_table.build(nodes, now)


def report_files(value: Mapping[str, Any], directory: str) -> list[dict[str, str]]:
    """The files of a report: ``DATE/`` with report.json, index.html and pveguard.prom, each with a copy of the last one
    beside it, and ``last/HOST.json`` of hosts that were measured.
    """
    base, day = Path(directory), Path(directory) / value["time"][:10]
    metrics = report_metrics.render(value)
    files = [
        _json_file(base / "latest.json", value),
        _json_file(day / "report.json", value),
        {"path": str(base / "index.html"), "content": _page(value, base)},
        {"path": str(day / "index.html"), "content": _page(value, base, "../")},
        {"path": str(base / "pveguard.prom"), "content": metrics},
        {"path": str(day / "pveguard.prom"), "content": metrics},
    ]
    for host, node in value["nodes"].items():
        # The counters of a host that left the run stay as they were.
        if node["in_run"] and node["counters"]:
            files.append(_json_file(_file(directory, "last", host), node))
    return files


def ring_lines(result: Mapping[str, Any], host: str) -> list[str]:
    """What the module ring_events returned as lines of text, or why it returned nothing."""
    return ring_events.lines(host, result.get("ring"), str(result.get("msg") or ""))


#: What the reports and the gates write into the folder of a day.
_OF_A_DAY = frozenset({"report.json", "index.html", "pveguard.prom", "gate.json"})


def old_reports(directory: str, now: str, keep_days: int | str) -> list[str]:
    """Folders of days more than ``keep_days`` before the day of ``now`` (UTC, ISO 8601), oldest first; 0 or less: none.

    Only those whose name is a date and which hold nothing but what a report writes: one to which somebody added a file
    is theirs, and so is a link.
    """
    days, base = int(keep_days), Path(directory)
    if days < 1 or not base.is_dir():
        return []
    first = date.fromisoformat(now[:10]) - timedelta(days=days)
    return [
        str(folder)
        for folder in sorted(base.iterdir())
        if (day := _day(folder.name)) is not None
        and day < first
        and folder.is_dir()
        and not folder.is_symlink()
        and all(each.name in _OF_A_DAY and each.is_file() for each in folder.iterdir())
    ]


def _day(name: str) -> date | None:
    # The name as it is written; fromisoformat takes other forms too.
    try:
        day = date.fromisoformat(name)
    except ValueError:
        return None
    return day if day.isoformat() == name else None


def assess_files(value: Mapping[str, Any], directory: str) -> list[dict[str, str]]:
    """``assess.html`` and ``assess.json``: no report of a day, and nothing that a later report starts from."""
    base = Path(directory)
    content = _page(value, base, look_only=True)
    return [_json_file(base / "assess.json", value), {"path": str(base / "assess.html"), "content": content}]


#: Written beside the page by the gates.
_GATE = "gate.html"


def _page(value: Mapping[str, Any], base: Path, up: str = "", look_only: bool = False) -> str:
    """``up``: the way from the folder of the page to ``base``."""
    link = f"{up}{_GATE}" if (base / _GATE).exists() else ""
    return report_page.page(value, link, look_only)


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_bytes": units.bytes_text,
    "pveguard_duration": units.duration_text,
    "pveguard_number": units.number_text,
    "pveguard_rate": units.rate_text,
    "pveguard_change": units.change_text,
    "pveguard_percent": units.percent_text,
    "pveguard_time": units.time_text,
    "pveguard_years": units.years_text,
    "pveguard_cluster_peers": cluster_peers,
    "pveguard_next_peers": next_peers,
    "pveguard_ha_on": ha_on,
    "pveguard_ha_objections": ha_objections,
    "pveguard_ha_release_awaited": ha_release_awaited,
    "pveguard_ha_watchdog_holders": ha_watchdog_holders,
    "pveguard_gate_files": gate_files,
    "pveguard_power_cut_acknowledged": power_cut.acknowledged,
    "pveguard_power_cut_files": power_cut_files,
    "pveguard_power_cut_notes": power_cut_notes,
    "pveguard_saved": saved,
    "pveguard_baseline_files": baseline_files,
    "pveguard_report": report,
    "pveguard_report_files": report_files,
    "pveguard_old_reports": old_reports,
    "pveguard_assess_files": assess_files,
    "pveguard_report_metrics": report_metrics.render,
    "pveguard_report_table": report_table.render,
    "pveguard_ring_lines": ring_lines,
}
