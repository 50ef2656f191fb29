"""What an operator should know about a node before anything is changed, and what the main job would change.

Pure: judges the facts of the module ``node_info``; connects to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..base.findings import GOOD, PROBLEM, UNKNOWN, WARNING, Finding, judges, read, with_others, worst_first
from ..base.units import duration_text, rate_text
from ..diet import rrd_files
from ..writes import writers
from . import corosync_compare
from .roles import Changes


def findings(node: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> list[Finding]:
    """What is there and what is wrong with it, the worst first. ``plan``: what becomes of it (core ``plan``).

    Every core ``*_findings`` that has a function ``of_node(node, plan)`` is asked.
    """
    found: list[Finding] = []
    for judge in judges("of_node"):
        found = with_others(found, judge(node, plan or {}))
    return worst_first(found)


def changes(
    node: Mapping[str, Any], plan: Mapping[str, Any], desired: Mapping[str, Any], parts: Iterable[Changes]
) -> list[str]:
    """What ``site.yml`` would change on this node with this inventory, in its order; empty when nothing.

    ``desired``: role -> what the inventory wants of it, ``parts``: what says so of the roles (core ``roles``), in their order.
    """
    todo: list[str] = []
    action = plan.get("action")
    if action == "refuse":
        return [f"nothing: it would be refused ({plan.get('reason')})"]
    if not node["packages"].get("pve-cluster") and action in ("bootstrap", "join"):
        todo.append("install pve-cluster (the cluster file system) and start it")
    if action == "bootstrap":
        todo.append(f"found the cluster {plan.get('cluster')!r} on this node")
    if action == "join":
        todo.append(f"join the cluster {plan.get('cluster')!r} through {plan.get('seed')}, after its database was saved")
    if action == "adopt" and node["corosync"].get("authkey_exposed"):
        todo.append("give /etc/corosync/authkey to root alone (mode 0400)")
    return todo + [text for part in parts for text in part(node, plan, desired)]


def across(host: str, clusters: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """What only a comparison with the other nodes says of ``host``; ``clusters`` as ``corosync_compare`` returns them."""
    found = []
    for cluster in clusters:
        names = {row["node"] for row in cluster["nodes"] if row["host"] == host}
        for each in cluster["findings"]:
            if each["id"] in corosync_compare.ACROSS and names & set(each["nodes"]):
                found.append(read(each))
    return found


def render_clusters(clusters: Iterable[Mapping[str, Any]]) -> list[str]:
    """Text for a terminal on each cluster of more than one node: one line where its nodes agree, else all of it."""
    parts = []
    for cluster in clusters:
        asked = [row for row in cluster["nodes"] if row["asked"]]
        if len(cluster["nodes"]) < 2:
            continue
        if len(asked) < 2 and not any(each["id"] in corosync_compare.ACROSS for each in cluster["findings"]):
            continue
        if not cluster["agree"]:
            parts.append("\n".join(cluster["lines"]))
            continue
        parts.append(
            f"cluster {cluster['cluster']}: {len(asked)} of {len(cluster['nodes'])} nodes were asked and agree on "
            "corosync.conf, its key and the membership"
        )
    return parts


def render(
    host: str, node: Mapping[str, Any], plan: Mapping[str, Any], todo: Sequence[str], writes: Mapping[str, Any] | None
) -> str:
    """The assessment of one node as text for a terminal; ``todo``: what :func:`changes` says."""
    signs = {PROBLEM: "  [!!] ", WARNING: "  [! ] ", UNKNOWN: "  [? ] ", GOOD: "  [ok] "}
    pve = node["packages"].get("pve-manager") or node["packages"].get("pve-cluster") or "no Proxmox packages"
    lines = [f"{host}: {node['machine_codename'] or 'unknown distribution'}, kernel {node['kernel']}, {pve}"]
    lines += [f"{signs[finding.severity]}{finding.sentence}" for finding in findings(node, plan)]
    if writes and writes.get("daemon_bytes_per_day") is not None:
        since = duration_text(3600 * writes.get("hours", 0))
        rate = rate_text(writes["daemon_bytes_per_day"], "day")
        lines.append(f"  [  ] the daemon wrote {rate} over the {since} since it started")
    # One look is enough for it: the counters begin at boot.
    who = writers.lines(writers.table(None, (node.get("counters") or {}).get("league")))
    lines += [f"  [  ] who writes to {who[0]}", *(f"         {line}" for line in who[1:])] if who else []
    if rrd := rrd_files.summary(node):
        lines.append(f"  [  ] statistics: {rrd_files.files_text(rrd)}; {rrd_files.flush_text(rrd)}")
    lines.append("  site.yml would change:" + ("" if todo else " nothing"))
    lines += [f"    - {item}" for item in todo]
    return "\n".join(lines)
