"""What an operator should know about a node before anything is changed, and what the main job would change.

Pure: judges the facts of the module ``node_info``; connects to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.units import bytes_text, duration_text, rate_text
from ..corosync import probe_members
from ..ha import ha_changes, ha_info
from ..pmxcfs import left_nodes
from ..pmxcfs.daemon_mode import NOT_MET
from ..state.ram_changes import STOCK
from .roles import Changes

PROBLEM, WARNING, GOOD = "problem", "warning", "good"


@dataclass(frozen=True)
class Finding:
    """``level`` is ``problem``, ``warning`` or ``good``; ``text`` is one sentence with what helps."""

    level: str
    text: str


def findings(node: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> list[Finding]:
    """What is there and what is wrong with it, the worst first. ``plan``: what becomes of it (core ``plan``)."""
    # What a probe stores is nobody's, also where it has left its cluster.
    ram = [] if (plan or {}).get("action") == "probe" else _ram(node)
    found = [*_names(node), *_filesystem(node), *_corosync(node), *_ha(node), *ram, *_login(node)]
    order = {PROBLEM: 0, WARNING: 1, GOOD: 2}
    return sorted(found, key=lambda finding: order[finding.level])


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


def _names(node: Mapping[str, Any]) -> list[Finding]:
    address = node.get("resolved_address")
    name = node.get("hostname")
    if address is None:
        return [Finding(PROBLEM, f"the host name {name} does not resolve: add its address to /etc/hosts")]
    if address.startswith("127.") or address == "::1":
        return [
            Finding(
                PROBLEM,
                f"the host name {name} resolves to {address}: the daemon does not start; put the node's real address "
                "into /etc/hosts",
            )
        ]
    return []


def _filesystem(node: Mapping[str, Any]) -> list[Finding]:
    pmxcfs = node["pmxcfs"]
    if not node["packages"].get("pve-cluster"):
        return [Finding(GOOD, "no cluster file system is installed (plain Debian)")]
    if not pmxcfs["mounted"]:
        return [Finding(PROBLEM, "/etc/pve is not mounted: look at 'journalctl -u pve-cluster'")]
    found = []
    if pmxcfs.get("error"):
        found.append(Finding(PROBLEM, str(pmxcfs["error"])))
    if pmxcfs["mode"] == "cluster" and pmxcfs["quorate"] is None:
        found.append(Finding(PROBLEM, "whether it has quorum is not known: the daemon does not say so in a form that is known"))
    elif pmxcfs["mode"] == "cluster" and not pmxcfs["quorate"]:
        if pmxcfs.get("met_corosync") is False:
            text = f"no quorum: {NOT_MET}; 'journalctl -u corosync' and 'corosync -t' say why, then 'systemctl start corosync'"
        else:
            text = "no quorum: /etc/pve is read-only; look at 'corosync-quorumtool -s'"
        found.append(Finding(PROBLEM, text))
    found += [Finding(WARNING, left_nodes.sentence(each)) for each in pmxcfs.get("left_nodes") or []]
    size = pmxcfs.get("database_bytes")
    shown = f", database {bytes_text(size)}" if size else ""
    if pmxcfs["guests"] is None:
        found.append(Finding(PROBLEM, f"/etc/pve is mounted, and what it holds is not known{shown}"))
        return found
    guests = len(pmxcfs["guests"])
    found.append(
        Finding(GOOD, f"/etc/pve is mounted ({pmxcfs['mode']} mode, {guests} guest{'s' if guests != 1 else ''}{shown})")
    )
    return found


def _corosync(node: Mapping[str, Any]) -> list[Finding]:
    corosync = node["corosync"]
    if node["pmxcfs"]["mode"] != "cluster" and not node["pmxcfs"]["has_corosync_conf"]:
        return []
    found = []
    host, cluster = corosync.get("host"), corosync.get("cluster")
    if host and cluster and not corosync.get("copies_equal"):
        found.append(
            Finding(
                PROBLEM,
                "the two copies of corosync.conf differ: /etc/pve/corosync.conf has config_version "
                f"{cluster.get('config_version')}, /etc/corosync/corosync.conf {host.get('config_version')}",
            )
        )
    running = corosync.get("running_config_version")
    if host and running and host.get("config_version") and running != host["config_version"]:
        found.append(
            Finding(
                WARNING,
                f"corosync runs config_version {running}, its file has {host['config_version']}: "
                "reload with 'corosync-cfgtool -R'",
            )
        )
    if corosync.get("two_node"):
        found.append(
            Finding(WARNING, "two_node is set: both halves of a split may write and one of them loses; add a QDevice instead")
        )
    if not corosync.get("running"):
        found.append(Finding(PROBLEM, "corosync does not run on a cluster member: look at 'journalctl -u corosync'"))
    if corosync.get("authkey_exposed"):
        found.append(
            Finding(
                PROBLEM,
                f"/etc/corosync/authkey has mode {corosync.get('authkey_mode')} or another owner than root: whoever reads it can "
                "join the traffic of the cluster. The role corosync sets 0400 (by hand: 'chown root:root /etc/corosync/authkey; "
                "chmod 0400 /etc/corosync/authkey'); where others log in to the node, change the key too (playbooks/authkey.yml)",
            )
        )
    probes = probe_members.ids(corosync)
    members = sum(not probe_members.is_listed(each) for each in corosync.get("members") or [])
    live = sum(number not in probes for number in corosync.get("live_member_ids") or [])
    if probe_members.is_one(node):
        found.append(Finding(GOOD, f"a probe of {corosync.get('cluster_name')}: it watches, and nothing depends on it"))
    if live < members:
        found.append(Finding(WARNING, f"{members - live} of {members} members of {corosync.get('cluster_name')} are not up"))
    elif members:
        text = f"member of {corosync.get('cluster_name')}: {members} of {members} members up"
        found.append(Finding(GOOD, text + (", quorate" if corosync.get("quorate") else "")))
    if members > 2 and members % 2 == 0 and not corosync.get("qdevice"):
        found.append(
            Finding(WARNING, f"{members} votes: an even split has no quorum on either side; consider a QDevice or another node")
        )
    return found


def _ha(node: Mapping[str, Any]) -> list[Finding]:
    ha = node["ha"]
    if not ha.get("installed"):
        return []
    resources = ha.get("resources") or []
    running = sorted(unit for unit, state in node["units"].items() if ha_changes.is_unit(unit) and state["active"] == "active")
    if ha.get("unattended"):
        unattended = ha_info.shown(ha["unattended"])
        return [
            Finding(
                PROBLEM,
                f"HA is masked although it has resources ({unattended}): nothing recovers them. Set ha_state: enabled, or remove "
                "them",
            )
        ]
    if resources:
        shown = ", ".join(str(resource) for resource in resources[:5])
        return [Finding(GOOD, f"HA is in use ({shown}): it stays on, and the state stays on disk")]
    found = []
    if ha.get("returned"):
        found.append(
            Finding(WARNING, f"{', '.join(ha['returned'])} had been switched off and came back: an upgrade, or somebody by hand")
        )
    if ha.get("watchdog_active"):
        found.append(Finding(WARNING, "the watchdog is armed although no HA resource exists: a stalled node would be reset"))
    if running:
        found.append(
            Finding(
                WARNING, f"{', '.join(running)} run although no HA resource exists: 36 transactions a minute from this node alone"
            )
        )
    elif not found:
        found.append(Finding(GOOD, "HA is off and unused"))
    return found


def _ram(node: Mapping[str, Any]) -> list[Finding]:
    state = node["ram_state"].get("state")
    if state in STOCK:
        if node["pmxcfs"]["mounted"] and not probe_members.is_one(node):
            return [Finding(WARNING, "the daemon's database is on disk: every transaction is written there")]
        return []
    if state == "enabled":
        return [Finding(GOOD, "the daemon's state is in RAM with a verified replica on disk")]
    reason = node["ram_state"].get("error") or node["ram_state"].get("reason") or "see 'pve-state status'"
    if state == "starting":
        return [Finding(WARNING, f"RAM state is starting: {reason}. Look again in a few seconds")]
    return [Finding(PROBLEM, f"RAM state is {state}: {reason}")]


def _login(node: Mapping[str, Any]) -> list[Finding]:
    if node["login"]["authorized_keys_depends_on_pve"]:
        return [
            Finding(
                WARNING,
                "root's authorized_keys lies on /etc/pve: while the daemon is down, a login by those keys fails",
            )
        ]
    return []


#: Kinds of a comparison of nodes that the facts of one node do not tell.
ACROSS = frozenset(
    "other_cluster false_leader leader_to_be trees_differ database_lost local_mode database_missing went_back "
    "membership_split copy_unreadable cluster_copies_split host_copies_split authkey_differs authkey_missing".split()
)


def across(host: str, clusters: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """What only a comparison with the other nodes says of ``host``; ``clusters`` as ``corosync_compare`` returns them."""
    found = []
    for cluster in clusters:
        names = {row["node"] for row in cluster["nodes"] if row["host"] == host}
        for each in cluster["findings"]:
            if each["kind"] in ACROSS and names & set(each["nodes"]):
                level = PROBLEM if each["severity"] == "problem" else WARNING
                found.append(Finding(level, f"{each['seen']}: {each['means']}; {each['helps']}"))
    return found


def render_clusters(clusters: Iterable[Mapping[str, Any]]) -> list[str]:
    """Text for a terminal on each cluster of more than one node: one line where its nodes agree, else all of it."""
    parts = []
    for cluster in clusters:
        asked = [row for row in cluster["nodes"] if row["asked"]]
        if len(cluster["nodes"]) < 2:
            continue
        if len(asked) < 2 and not any(each["kind"] in ACROSS for each in cluster["findings"]):
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
    signs = {PROBLEM: "  [!!] ", WARNING: "  [! ] ", GOOD: "  [ok] "}
    pve = node["packages"].get("pve-manager") or node["packages"].get("pve-cluster") or "no Proxmox packages"
    lines = [f"{host}: {node['machine_codename'] or 'unknown distribution'}, kernel {node['kernel']}, {pve}"]
    lines += [f"{signs[finding.level]}{finding.text}" for finding in findings(node, plan)]
    if writes and writes.get("daemon_bytes_per_day") is not None:
        since = duration_text(3600 * writes.get("hours", 0))
        rate = rate_text(writes["daemon_bytes_per_day"], "day")
        lines.append(f"  [  ] the daemon wrote {rate} over the {since} since it started")
    lines.append("  site.yml would change:" + ("" if todo else " nothing"))
    lines += [f"    - {item}" for item in todo]
    return "\n".join(lines)
