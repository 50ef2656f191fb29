"""The report of a run: one entry per node from whatever is known of it, as data and as a table.

Nothing here is ever guessed. A figure that was not measured is None in the data and ``unknown`` in the table,
and a note under the table says why, so that one node without an answer never takes the rows of the others
with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base import text_table
from ..base.units import UNKNOWN, bytes_text, duration_text, number_text, time_text
from ..corosync import corosync_findings, probe_members
from ..corosync.corosync_findings import version_told
from ..diet import rrd_files
from ..disk import block_writes, drive_endurance
from ..gates import gate_findings
from ..ha import ha_findings
from ..hardening import asked
from ..pmxcfs import pmxcfs_findings
from ..writes import writers
from . import report_summary

SCHEMA = "pveguard-report"
#: Raised when a key changes its meaning or goes away; new keys alone do not raise it.
SCHEMA_VERSION = 1

#: Years that a drive lasts are told from the rate of a day or more: backups and jobs come daily, the daemon's checkpoint and
#: what others flush hourly.
DAY_SECONDS = 86400

HEADER = (
    "node",
    "fsyncs/s",
    "quorum",
    "corosync.conf",
    "HA",
    "RAM state",
    "transactions/min",
    "disk bytes/min",
)


def build(nodes: Mapping[str, Mapping[str, Any]], now: str) -> dict[str, Any]:
    """The report of all ``nodes`` (name -> :func:`entry`), made at ``now`` (UTC, ISO 8601)."""
    found = {name: [each.as_dict() for each in report_summary.findings(node, now)] for name, node in nodes.items()}
    judged = {name: {**node, "findings": found[name]} for name, node in nodes.items()}
    return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "time": now, "nodes": judged}


def entry(
    *,
    now: str,
    in_run: bool,
    node: Mapping[str, Any] | None = None,
    gate: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    last: Mapping[str, Any] | None = None,
    baseline: Mapping[str, Any] | None = None,
    links: Mapping[str, Any] | None = None,
    wear: Mapping[str, Any] | None = None,
    amplification: Mapping[str, Any] | None = None,
    assessment: Mapping[str, Any] | None = None,
    ring: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is known of one node.

    ``in_run``: the host is still in the play. ``node``: facts of node_info. ``gate``: result of fsync_bench
    in this run. ``plan``: the cluster plan. ``measured``: result of pmxcfs_writes in this run. ``last``: the
    entry of the last report. ``baseline``: what was saved before protection, ``{machine, window}``.
    ``links``: ``link_gate_result``. ``wear``: what the drives said, as disk_wear returns it. ``amplification``: result of
    write_amplification. ``assessment``: ``{findings, changes}`` of a run that only looks. ``ring``: result of
    ring_events. Anything may be missing or empty. See docs/report.md for the keys of the result; ``findings`` are those of
    cores that the report does not know by name, :func:`build` adds the others.
    """
    notes: list[str] = []
    last = last or {}
    counters = (measured or {}).get("counters")
    machine = (counters or {}).get("machine")
    if last and machine and last.get("machine") not in (None, machine):
        last = {}  # the name was given to another installation
    if not in_run:
        notes.append(
            "left the run before the report (refused, failed or not reachable); see the messages above"
        )
    elif node is None:
        notes.append("no facts of this node in this run")
    if in_run and not counters:
        why = (measured or {}).get("msg") or "not measured in this run"
        notes.append(f"no counters: {why}")
    before = _before(baseline, machine, notes if in_run else [])
    after = _after(measured, last, notes)
    days = _days(counters, node, last, baseline if machine in (None, (baseline or {}).get("machine")) else None)
    result: dict[str, Any] = {
        "time": now,
        "in_run": in_run,
        "machine": machine or last.get("machine"),
        "gate": _gate(gate, last),
        "links": _links(links, last),
        "cluster": {**_cluster(node, plan), "last_name": _last_name(node, last)},
        "corosync": _corosync(node),
        "ha": _ha(node),
        "ram_state": _ram_state(node, counters),
        "writes": {
            "before": before,
            "after": after,
            "observed": _observed(measured, last),
            "day": days["day"],
            "day_before": days["day_before"],
            "since_boot": _since_boot(after, days["day"], counters),
        },
        "rrd": rrd_files.summary(node) if node else last.get("rrd"),
        "rate_from": days["rate_from"],
        **_disks(wear, last, days, counters or last.get("counters"), now, notes),
        **_amplification(amplification, last, now),
        "ring": dict((ring or {}).get("ring") or last.get("ring") or {}) or None,
        "assessment": dict(assessment) if assessment else None,
        "counters": counters or last.get("counters"),
        "hardening": asked.known_areas(node),
        "findings": [each.as_dict() for each in report_summary.of_facts(node)] if node else [],
        "notes": notes,
    }
    if plan and plan.get("action") == "refuse":
        notes.append(f"cluster: {plan.get('reason')}")
    notes += _said(result, bool(gate))
    return result


def _said(node: Mapping[str, Any], gate: bool) -> list[str]:
    """Notes on what is judged about a node. ``gate``: it was measured in this run."""
    ha = node["ha"]
    texts = {
        gate_findings.DISK.id: f"gate: {node['gate']['message']}" if gate else "",
        pmxcfs_findings.NOT_UNDERSTOOD.id: f"not understood: {node['cluster']['error']}",
        ha_findings.UNATTENDED.id: f"HA is off but has resources: {', '.join(ha['unattended'])}",
        ha_findings.RETURNED.id: f"HA was switched off and came back: {', '.join(ha['returned'])}",
        ha_findings.UNTIL_REBOOT.id: "watchdog-mux is masked but runs until the next boot: its driver cannot be stopped",
        **dict.fromkeys(
            (each.id for each in corosync_findings.COPIES),
            "the two copies of corosync.conf differ: see 'journalctl -u pve-cluster'",
        ),
    }
    # Also of a node that left the run later.
    found = {each.id for each in report_summary.findings({**node, "in_run": True}, node["time"])}
    return [text for id, text in texts.items() if text and id in found]


def render(report: Mapping[str, Any]) -> str:
    """The report as an aligned table, the notes below it. No trailing newline, no trailing blanks."""
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    lines = text_table.lines(HEADER, [_row(name, node) for name, node in nodes.items()])
    notes = [f"{name}: {note}" for name, node in nodes.items() for note in node["notes"]]
    times = {_how(node["writes"][when]) for node in nodes.values() for when in ("before", "after")} - {""}
    if times:
        notes.append(f"writes: {'; '.join(sorted(times))}")
    if notes:
        lines += ["", *notes]
    return "\n".join(lines)


def _row(name: str, node: Mapping[str, Any]) -> tuple[str, ...]:
    writes = node["writes"]
    return (
        name,
        _gate_text(node["gate"]),
        _quorum_text(node["cluster"]),
        _copies_text(node["corosync"]),
        _ha_text(node["ha"]),
        str(node["ram_state"]["state"]),
        _change(writes, "transactions", number_text),
        _change(writes, "device_bytes", bytes_text),
    )


def _change(writes: Mapping[str, Any], key: str, text: Any) -> str:
    values = [report_summary.rate_or_count(writes[when], key, text) for when in ("before", "after")]
    return UNKNOWN if values == [UNKNOWN, UNKNOWN] else " → ".join(values)


def _how(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return ""
    if figures["method"] == "window":
        return f"observed for {duration_text(round(figures['seconds']))}"
    return "counters since the last report"


_VERDICTS = {"pass": "ok", "warn": "warn"}


def _gate_text(gate: Mapping[str, Any]) -> str:
    if gate["verdict"] == "not measured":
        return "not measured"
    shown = (
        number_text(gate["fsyncs_per_second"]) if gate["fsyncs_per_second"] is not None else gate["reason"]
    )
    return f"{shown} {_VERDICTS.get(gate['verdict'], 'FAIL')}"


def _quorum_text(cluster: Mapping[str, Any]) -> str:
    if cluster["mode"] == "unknown":
        return UNKNOWN
    if cluster["name"] is None:
        return "stand-alone"
    count = f"{cluster['live']}/{cluster['members']}"
    return UNKNOWN if cluster["quorate"] is None else f"{'yes' if cluster['quorate'] else 'NO'} {count}"


def _copies_text(corosync: Mapping[str, Any]) -> str:
    copies = str(corosync["copies"])
    if copies == "equal" and corosync["config_version"] is not None:
        return f"equal v{corosync['config_version']}"
    return copies.upper() if copies == "differ" else copies


def _ha_text(ha: Mapping[str, Any]) -> str:
    return (
        f"in use ({len(ha['resources'])})" if ha["resources"] and ha["state"] != "off" else str(ha["state"])
    )


def _before(
    baseline: Mapping[str, Any] | None, machine: str | None, notes: list[str]
) -> dict[str, Any] | None:
    if not baseline or not baseline.get("window"):
        notes.append("no figures from before: nothing was observed before protection")
        return None
    if machine and baseline.get("machine") != machine:
        notes.append("no figures from before: the saved ones are of another installation of this name")
        return None
    return _told(baseline["window"])


def _after(
    measured: Mapping[str, Any] | None, last: Mapping[str, Any], notes: list[str]
) -> dict[str, Any] | None:
    measured = measured or {}
    if measured.get("window"):
        after = dict(measured["window"])
        notes += after["notes"]
        return after
    since = measured.get("since") or {}
    whole = since.get("transactions") is not None and since.get("device_bytes") is not None
    # A time too short for a rate says too little to replace the figure of a window.
    if whole and block_writes.per_minute(0, since.get("seconds")) is not None:
        return dict(since)
    return _told((last.get("writes") or {}).get("after")) if last else None


def _told(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Saved figures, without the rates that an earlier version scaled up from a window shorter than a minute."""
    if not figures:
        return None
    if block_writes.per_minute(0, figures.get("seconds")) is not None:
        return dict(figures)

    def bare(value: Any, key: str = "") -> Any:
        if key == "lrm_status_nodes":
            return dict.fromkeys(value or {})
        if isinstance(value, Mapping):
            return {name: bare(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [bare(each) for each in value]
        return None if key.endswith("_per_minute") else value

    found: dict[str, Any] = bare(figures)
    return found


def _observed(measured: Mapping[str, Any] | None, last: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last window after protection: counters alone do not tell which file was written."""
    window = (measured or {}).get("window") or (last.get("writes") or {}).get("observed")
    if not window:
        former = (last.get("writes") or {}).get("after") or {}
        window = former if former.get("method") == "window" else None
    return _told(window)


def _since_boot(
    after: Mapping[str, Any] | None, day: Mapping[str, Any] | None, counters: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Who wrote since boot, where no other figure tells who writes: of a node that is looked at for the first time."""
    reading = (counters or {}).get("league")
    known = [(each or {}).get("league") or {} for each in (after, day)]
    if not reading or any(league.get("total_bytes") is not None for league in known):
        return None
    league = writers.table(None, reading)
    return {"seconds": (league or {}).get("seconds"), "league": league}


def _measures(node: Mapping[str, Any] | None) -> list[str] | None:
    """The measures of the write diet that are on; None where that is not known."""
    diet = (node or {}).get("write_diet")
    return None if diet is None else sorted(name for name, facts in diet.items() if facts.get("kept"))


def _days(
    counters: Mapping[str, Any] | None,
    node: Mapping[str, Any] | None,
    last: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """``rate_from``: the counters from which a long time is counted, as long as one boot, one device, one place of the
    database and the same measures of the write diet last. ``day`` and ``day_before`` (protection): the last figures ``{from, to,
    seconds, device_bytes}`` that cover a day or more, None where there are none yet.
    """
    former = last.get("writes") or {}
    start, day, before = last.get("rate_from"), former.get("day"), former.get("day_before")
    if counters:
        in_memory = counters["database"]["in_memory"]
        if start and start["database"]["in_memory"] != in_memory:
            start, before, day = None, (day or before) if in_memory else None, None
        measures = _measures(node)
        if start and measures is not None and measures != (start.get("write_diet") or []):
            start, day = None, None
        written = block_writes.difference(start, counters) if start else {}
        # An earlier release did not note who wrote: that is counted from now on.
        unknown = start is not None and counters.get("league") and not start.get("league")
        # A machine that was set back to a snapshot of its memory is in the same boot, with less uptime.
        if start is None or written["device_bytes"] is None or written["seconds"] is None or unknown:
            keys = ("time", "boot_id", "uptime_seconds", "device", "database", "league")
            start = {**{key: counters.get(key) for key in keys}, "write_diet": measures or []}
        elif written["seconds"] >= DAY_SECONDS:
            day = {
                "from": start.get("time"),
                "to": counters.get("time"),
                **{key: written[key] for key in ("seconds", "device_bytes")},
                "league": writers.table(start.get("league"), counters.get("league")),
            }
    since_boot = (baseline or {}).get("since_boot") or {}
    if before is None and (since_boot.get("seconds") or 0) >= DAY_SECONDS:
        before = dict(since_boot)
    return {"rate_from": start, "day": day, "day_before": before}


def _disks(
    wear: Mapping[str, Any] | None,
    last: Mapping[str, Any],
    days: Mapping[str, Any],
    counters: Mapping[str, Any] | None,
    now: str,
    notes: list[str],
) -> dict[str, Any]:
    """``disks``, each with how long it lasts at the rate now and at the one before, and ``disks_time``."""
    wear = wear or {}
    found: Sequence[Mapping[str, Any]]
    moment: str | None
    if wear.get("disks") is not None:
        found, moment = wear["disks"], now
        notes += [f"drives: {note}" for note in wear.get("notes") or []]
    else:
        found, moment = last.get("disks") or [], last.get("disks_time")
    measured_disk = ((counters or {}).get("device") or {}).get("disk")
    disks = []
    for disk in found:
        # The rate is that of the drive behind the store; what others are written is not known.
        here = measured_disk and str(disk.get("disk")).rpartition("/")[2] == measured_disk
        shown = {
            key: value for key, value in disk.items() if key not in ("endurance", "endurance_before")
        }
        for key, figures in (("endurance", days["day"]), ("endurance_before", days["day_before"])):
            per_day = figures["device_bytes"] * DAY_SECONDS / figures["seconds"] if here and figures else None
            shown[key] = drive_endurance.endurance(disk, per_day)
            if here and figures is None and key == "endurance" and days["rate_from"]:
                shown[key]["notes"].append(
                    "years are told from the writes of a day or more, which are counted since "
                    f"{time_text(days['rate_from'].get('time'))}"
                )
        disks.append(shown)
    return {"disks": disks, "disks_time": moment}


def _amplification(
    result: Mapping[str, Any] | None, last: Mapping[str, Any], now: str
) -> dict[str, Any]:
    keys = ("cases", "device_write_budget_bytes", "members", "path", "notes")
    if result and result.get("cases") is not None:
        return {"amplification": {key: result.get(key) for key in keys}, "amplification_time": now}
    former = last.get("amplification")
    return {
        "amplification": dict(former) if former else None,
        "amplification_time": last.get("amplification_time"),
    }


def _links(links: Mapping[str, Any] | None, last: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("verdict", "reason", "message", "time")
    if links and links.get("verdict"):
        return {key: links.get(key) for key in keys}
    former = last.get("links")
    return dict(former) if former else {**dict.fromkeys(keys), "verdict": "not measured"}


def _gate(gate: Mapping[str, Any] | None, last: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "verdict",
        "reason",
        "message",
        "fsyncs_per_second",
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "p99_9_ms",
        "max_ms",
        "measured_path",
        "device",
        "filesystem",
        "mount_options",
        "time",
    )
    if gate and gate.get("verdict"):
        return {key: gate.get(key) for key in keys}
    former = last.get("gate")
    return dict(former) if former else {**dict.fromkeys(keys), "verdict": "not measured"}


def _cluster(node: Mapping[str, Any] | None, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    if node is None:
        return {
            "name": None,
            "node": None,
            "installed": None,
            "mode": "unknown",
            "quorate": None,
            "met_corosync": None,
            "error": None,
            "members": 0,
            "live": 0,
            "probe": None,
        }
    corosync = node.get("corosync") or {}
    packages = node.get("packages") or {}
    pmxcfs = node.get("pmxcfs") or {}
    clustered = bool((corosync.get("cluster") or corosync.get("host") or {}).get("config_version"))
    members, live = probe_members.members_up(corosync) if clustered else (0, 0)
    return {
        "name": corosync.get("cluster_name") if clustered else None,
        "node": node.get("hostname"),
        "installed": bool(packages["pve-cluster"]) if "pve-cluster" in packages else None,
        "mode": pmxcfs.get("mode", "down"),
        "quorate": _quorate(corosync, pmxcfs) if clustered else None,
        "met_corosync": pmxcfs.get("met_corosync"),
        "error": pmxcfs.get("error"),
        "members": members,
        "live": live,
        "probe": (clustered and probe_members.is_one(node)) or (plan or {}).get("action") == "probe",
    }


def _quorate(corosync: Mapping[str, Any], pmxcfs: Mapping[str, Any]) -> bool | None:
    """What Corosync says; where it does not run, whether the daemon has quorum."""
    said: bool | None = corosync.get("quorate")
    return pmxcfs.get("quorate") if said is None and pmxcfs.get("mode") == "cluster" else said


def _last_name(node: Mapping[str, Any] | None, last: Mapping[str, Any]) -> str | None:
    """The cluster that the node was in when it was last looked at, where it was not looked at now."""
    former = last.get("cluster") or {}
    return None if node is not None else former.get("name") or former.get("last_name")


def _corosync(node: Mapping[str, Any] | None) -> dict[str, Any]:
    if node is None:
        keys = ("config_version", "cluster_config_version", "host_config_version", "host_sha256", "cluster_sha256")
        return {"copies": UNKNOWN, **dict.fromkeys(keys)}
    corosync = node.get("corosync") or {}
    host, cluster = corosync.get("host") or {}, corosync.get("cluster") or {}
    in_cluster, on_host = version_told(cluster.get("config_version")), version_told(host.get("config_version"))
    if not on_host and not cluster:
        copies = "none"
    elif not host or not cluster:
        copies = "host only" if host else "cluster only"
    else:
        copies = "equal" if corosync.get("copies_equal") else "differ"
    return {
        "copies": copies,
        "config_version": in_cluster or on_host,
        "cluster_config_version": in_cluster,
        "host_config_version": on_host,
        "host_sha256": host.get("sha256"),
        "cluster_sha256": cluster.get("sha256"),
    }


def _ha(node: Mapping[str, Any] | None) -> dict[str, Any]:
    ha = (node or {}).get("ha")
    if not ha:
        return {
            "state": UNKNOWN,
            "resources": [],
            "unattended": [],
            "returned": [],
            "watchdog_until_reboot": False,
        }
    return {
        "state": ha_findings.state(ha),
        "resources": list(ha.get("resources") or []),
        "unattended": ha_findings.nothing_recovers(ha),
        "returned": list(ha.get("returned") or []),
        "watchdog_until_reboot": ha_findings.until_reboot(ha),
    }


#: What is taken over from ``pve-state status``; see docs/ram-state.md.
_STATE_KEYS = (
    "reason",
    "fix",
    "ready",
    "lag_seconds",
    "lag_versions",
    "unsaved_files",
    "last_save",
    "generations",
    "generations_damaged",
    "fill_percent",
    "findings",
)


def _ram_state(node: Mapping[str, Any] | None, counters: Mapping[str, Any] | None) -> dict[str, Any]:
    in_memory = ((counters or {}).get("database") or {}).get("in_memory")
    status = (node or {}).get("ram_state")
    state = str(status.get("state")) if status and status.get("state") else UNKNOWN
    status = status or {}
    return {
        "state": "off" if state in ("absent", "disabled") else state,
        "database_in_memory": in_memory,
        **{key: status.get(key) for key in _STATE_KEYS},
    }
