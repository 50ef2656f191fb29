"""A report as metrics for the textfile collector of node_exporter.

The text format of Prometheus: names with their unit, HELP and TYPE once for each, base units (bytes, seconds, ratios).
What is unknown has no sample, so that nothing unknown is ever averaged as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base import metrics_text
from ..base.findings import PROBLEM, UNKNOWN, WARNING
from ..base.units import MOST_YEARS, YEAR_DAYS, age_seconds
from . import report_hardening, report_summary

#: Seconds since 1970 are asked of the age of a time, so that one parser does.
_EPOCH = "1970-01-01T00:00:00Z"

#: Name after ``pveguard_`` -> what it is. All are gauges: a report is a look at one moment.
METRICS = {
    "report_timestamp_seconds": "When the report was made",
    "report_in_run": "Whether the node was measured in this report; 0 when it was refused, failed or not reachable",
    "report_healthy": "Whether the report has nothing to say about the node; 0 calls for reports/index.html",
    "report_measured_timestamp_seconds": "When the counters of the node were last read",
    "cluster_quorate": "Whether the node saw quorum; no sample on a stand-alone node",
    "cluster_members": "Members of its cluster by configuration",
    "cluster_members_live": "Members of its cluster that were up",
    "corosync_conf_equal": "Whether both copies of corosync.conf were equal",
    "ha_resources": "HA resources of its cluster",
    "ha_resources_unattended": "HA resources that nothing recovers because HA is masked on the node",
    "ha_units_returned": "HA services that were switched off and came back, after an upgrade or by hand",
    "ha_off": "Whether the HA services were off on the node",
    "hardening_findings": "Findings on how the node is hardened, by severity; no sample where it was not looked at",
    "figures_seconds": "How long that was counted of which the rates are; no rate is made of less than a minute",
    "pmxcfs_transactions": "Transactions of the cluster file system that the node stored in that time",
    "device_bytes": "Bytes written to the device behind the store in that time, by everybody",
    "pmxcfs_transactions_per_second": "Transactions of the cluster file system that the node stored",
    "pmxcfs_written_bytes_per_second": "Bytes that the daemon of the cluster file system caused to be written",
    "device_written_bytes_per_second": "Bytes written to the device behind the store, by everybody",
    "class_transactions_per_second": "Transactions by cause in the last observed window; lower bounds where sampled",
    "writer_transactions_per_second": "Transactions by writing node in the last observed window; lower bounds where sampled",
    "service_written_bytes_per_second": "Bytes by service",
    "system_figures_seconds": "How long that was counted which the writers of the system's drives are told from",
    "system_written_bytes_per_second": "Bytes to the drives that carry the system, by what is written and by unit; the classes "
    "rest and guests have no unit, and all together are what the drives count",
    "ring_window_seconds": "How long the ring was last observed from the node",
    "ring_events": "What the ring and the synchronisation did in that window, by kind",
    "ring_updates_received": "Inodes that synchronisations brought to the node in that window",
    "gate_fsyncs_per_second": "Rate of pveperf's loop at the last gate",
    "gate_fsync_p99_seconds": "99th percentile of a sync at the last gate",
    "gate_passed": "Whether the last gate let the node pass, with or without a warning",
    "disk_written_bytes": "Bytes that the host wrote to the drive in its life",
    "disk_rated_bytes": "Bytes that the drive is rated for",
    "disk_used_ratio": "Used part of the life that the drive is rated for; may exceed 1",
    "disk_spare_ratio": "Spare blocks that are left",
    "disk_media_errors": "Media errors in the life of the drive",
    "disk_unsafe_shutdowns": "Power losses without a shutdown in the life of the drive",
    "disk_powered_on_seconds": "How long the drive was powered on in its life",
    "disk_life_left_seconds": f"How long the drive lasts at the measured rate, {MOST_YEARS} years or more as {MOST_YEARS}; "
    "bound: low, estimate, high",
    "write_amplification_ratio": "Bytes to the device for each byte of a file on /etc/pve",
}


def render(report: Mapping[str, Any], only: str = "") -> str:
    """The metrics of all nodes, or those of the node ``only``, as text."""
    kinds = {name: (description, "gauge") for name, description in METRICS.items()}
    return metrics_text.render(kinds, _samples(report, only))


def _samples(report: Mapping[str, Any], only: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def add(name: str, value: Any, **labels: object) -> None:
        if value is None:
            return
        key = tuple((label, str(each)) for label, each in labels.items())
        # One sample for each set of labels: a second one would make the file invalid.
        found.setdefault(name, {}).setdefault(key, float(value))

    for node, entry in report["nodes"].items():
        if only and node != only:
            continue
        verdict = report_summary.verdict(report_summary.findings(entry, report["time"]))
        add("report_timestamp_seconds", age_seconds(_EPOCH, report["time"]), node=node)
        add("report_in_run", entry["in_run"], node=node)
        add("report_healthy", verdict == report_summary.PASS, node=node)
        measured = (entry["counters"] or {}).get("time")
        add("report_measured_timestamp_seconds", age_seconds(_EPOCH, measured), node=node)
        cluster = entry["cluster"]
        if cluster["name"] is not None:
            add("cluster_quorate", cluster["quorate"], node=node)
            add("cluster_members", cluster["members"], node=node)
            add("cluster_members_live", cluster["live"], node=node)
        if entry["corosync"]["copies"] in ("equal", "differ"):
            add("corosync_conf_equal", entry["corosync"]["copies"] == "equal", node=node)
        if entry["ha"]["state"] != "unknown":
            add("ha_resources", len(entry["ha"]["resources"]), node=node)
            add("ha_resources_unattended", len(entry["ha"].get("unattended") or []), node=node)
            add("ha_units_returned", len(entry["ha"].get("returned") or []), node=node)
            add("ha_off", entry["ha"]["state"] in ("off", "not installed"), node=node)
        # None where it was not looked at: that is no zero.
        for severity in (PROBLEM, WARNING, UNKNOWN) if entry.get("hardening") is not None else ():
            its = [each["severity"] for each in entry.get("findings") or [] if report_hardening.is_one(each["id"])]
            add("hardening_findings", its.count(severity), node=node, severity=severity)
        _writes(add, node, entry["writes"])
        _league(add, node, entry)
        _ring(add, node, entry.get("ring"))
        gate = entry["gate"]
        add("gate_fsyncs_per_second", gate["fsyncs_per_second"], node=node)
        add("gate_fsync_p99_seconds", _scaled(gate["p99_ms"], 0.001), node=node)
        if gate["verdict"] in ("pass", "warn", "fail"):
            add("gate_passed", gate["verdict"] != "fail", node=node)
        for disk in entry.get("disks") or []:
            _disk(add, node, disk)
        for case in (entry.get("amplification") or {}).get("cases") or []:
            labels = {"file_bytes": case["file_bytes"], "block_bytes": case["block_bytes"]}
            add("write_amplification_ratio", case.get("factor"), node=node, **labels)
    return {name: [(dict(key), value) for key, value in each.items()] for name, each in found.items()}


def _writes(add: Any, node: str, writes: Mapping[str, Any]) -> None:
    for when in ("before", "after"):
        figures = writes[when] or {}
        for name, key in (
            ("figures_seconds", "seconds"),
            ("pmxcfs_transactions", "transactions"),
            ("device_bytes", "device_bytes"),
        ):
            add(name, figures.get(key), node=node, when=when)
        for name, key in (
            ("pmxcfs_transactions_per_second", "transactions_per_minute"),
            ("pmxcfs_written_bytes_per_second", "pmxcfs_write_bytes_per_minute"),
            ("device_written_bytes_per_second", "device_bytes_per_minute"),
        ):
            add(name, _scaled(figures.get(key), 1 / 60), node=node, when=when)
    for when, key in (("before", "before"), ("after", "observed")):
        window = writes.get(key) or {}
        for each in window.get("classes") or []:
            rate = _scaled(each["transactions_per_minute"], 1 / 60)
            add("class_transactions_per_second", rate, node=node, when=when, **{"class": each["class"]})
        for each in window.get("writers") or []:
            writer = each["node"] or f"id {each['node_id']}"
            rate = _scaled(each["transactions_per_minute"], 1 / 60)
            add("writer_transactions_per_second", rate, node=node, when=when, writer=writer)
    services = (writes["after"] or {}).get("services") or (writes.get("observed") or {}).get("services")
    for each in services or []:
        rate = _scaled(each["bytes_per_minute"], 1 / 60)
        add("service_written_bytes_per_second", rate, node=node, service=each["service"])


def _league(add: Any, node: str, entry: Mapping[str, Any]) -> None:
    for when, key in (("before", "before"), ("after", "now")):
        table = report_summary.league(entry, key)
        if not table or table["total_bytes_per_minute"] is None:
            continue
        add("system_figures_seconds", table["seconds"], node=node, when=when)
        parts = [(row["class"], row["unit"], row["bytes_per_minute"]) for row in table["rows"]]
        parts += [(part, "", table[f"{part}_bytes_per_minute"]) for part in ("rest", "guests")]
        for kind, unit, rate in parts:
            labels = {"node": node, "when": when, "class": kind, "unit": unit}
            add("system_written_bytes_per_second", _scaled(rate, 1 / 60), **labels)


def _ring(add: Any, node: str, ring: Mapping[str, Any] | None) -> None:
    if not ring:
        return
    add("ring_window_seconds", ring["seconds"], node=node)
    for kind, count in ring["counts"].items():
        add("ring_events", count, node=node, kind=kind)
    add("ring_updates_received", ring["updates_received"], node=node)


def _disk(add: Any, node: str, disk: Mapping[str, Any]) -> None:
    labels = {"node": node, "disk": disk.get("disk"), "model": disk.get("model") or "unknown"}
    add("disk_written_bytes", disk.get("written_bytes"), **labels)
    add("disk_rated_bytes", disk.get("rated_tbw_bytes"), **labels)
    add("disk_used_ratio", _scaled(disk.get("percentage_used"), 0.01), **labels)
    add("disk_spare_ratio", _scaled(disk.get("spare_percent"), 0.01), **labels)
    add("disk_media_errors", disk.get("media_errors"), **labels)
    add("disk_unsafe_shutdowns", disk.get("unsafe_shutdowns"), **labels)
    add("disk_powered_on_seconds", _scaled(disk.get("power_on_hours"), 3600), **labels)
    for bound, key in (("low", "years_left_low"), ("estimate", "years_left"), ("high", "years_left_high")):
        years = (disk.get("endurance") or {}).get(key)
        years = None if years is None else min(years, MOST_YEARS)
        add("disk_life_left_seconds", _scaled(years, YEAR_DAYS * 86400), **labels, bound=bound)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else float(value) * factor
