"""What an operator should know about a node before anything is changed, and what the main job would change.

Pure: judges the facts of the module ``node_info``; connects to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..base.findings import GOOD, PROBLEM, UNKNOWN, WARNING, Finding, judges, read, with_others, worst_first
from ..base.units import duration_text, rate_text
from ..state.status_findings import STOCK
from . import corosync_compare


@dataclass(frozen=True)
class Wishes:
    """The switches of the inventory for this host."""

    ha_state: str = "auto"
    ram_state: bool = True


def findings(node: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> list[Finding]:
    """What is there and what is wrong with it, the worst first. ``plan``: what becomes of it (core ``plan``).

    Every core ``*_findings`` that has a function ``of_node(node, plan)`` is asked.
    """
    found: list[Finding] = []
    for judge in judges("of_node"):
        found = with_others(found, judge(node, plan or {}))
    return worst_first(found)


def changes(node: Mapping[str, Any], plan: Mapping[str, Any], wishes: Wishes) -> list[str]:
    """What ``site.yml`` would change on this node with this inventory, in its order; empty when nothing."""
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
    ha = node["ha"]
    resources = ha.get("resources") or []
    if wishes.ha_state in ("auto", "disabled") and ha.get("installed") and not resources:
        running = [unit for unit, state in node["units"].items() if _is_ha(unit) and state["active"] == "active"]
        unmasked = [unit for unit, state in node["units"].items() if _is_ha(unit) and state["load"] == "loaded"]
        if running or unmasked:
            todo.append("stop and mask " + ", ".join(sorted(set(running) | set(unmasked))))
        elif ha.get("leftovers"):
            todo.append("remove the status of HA managers that do not run: " + ", ".join(ha["leftovers"]))
    if resources and wishes.ram_state:
        todo.append("nothing in RAM: the run would be refused while HA is in use; set ram_state_enabled: false")
    present = node["packages"].get("pve-cluster") or action in ("bootstrap", "join")
    if wishes.ram_state and not resources and present and node["ram_state"].get("state") in STOCK:
        todo.append("move /var/lib/pve-cluster to RAM, with its replica in /var/lib/pveguard/state")
        if node["login"]["authorized_keys_depends_on_pve"]:
            todo.append("keep the key in use in /root/.ssh/authorized_keys2, a login that does not need /etc/pve")
    return todo


def _is_ha(unit: str) -> bool:
    return unit.startswith(("pve-ha-", "watchdog-mux"))


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


def render(host: str, node: Mapping[str, Any], plan: Mapping[str, Any], wishes: Wishes, writes: Mapping[str, Any] | None) -> str:
    """The assessment of one node as text for a terminal."""
    signs = {PROBLEM: "  [!!] ", WARNING: "  [! ] ", UNKNOWN: "  [? ] ", GOOD: "  [ok] "}
    pve = node["packages"].get("pve-manager") or node["packages"].get("pve-cluster") or "no Proxmox packages"
    lines = [f"{host}: {node['machine_codename'] or 'unknown distribution'}, kernel {node['kernel']}, {pve}"]
    lines += [f"{signs[finding.severity]}{finding.sentence}" for finding in findings(node, plan)]
    if writes and writes.get("daemon_bytes_per_day") is not None:
        since = duration_text(3600 * writes.get("hours", 0))
        rate = rate_text(writes["daemon_bytes_per_day"], "day")
        lines.append(f"  [  ] the daemon wrote {rate} over the {since} since it started")
    todo = changes(node, plan, wishes)
    lines.append("  site.yml would change:" + ("" if todo else " nothing"))
    lines += [f"    - {item}" for item in todo]
    return "\n".join(lines)
