"""What the main job does with each host's cluster membership, decided once from what every host said.

Pure: the same facts give the same plan, whatever the order of connections. A plan never proposes a second cluster where
a host of the inventory has not been heard: that host may be a member of the first one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from ..corosync import probe_members
from ..formats.corosync_conf import address_key, short_name

Plan = dict[str, Any]


def cluster_plan(
    hosts: Mapping[str, Mapping[str, Any]],
    play_hosts: Collection[str],
    bootstrap: str | None = None,
    joining_probe: str | None = None,
) -> dict[str, Plan]:
    """The plan for each host.

    ``hosts``: every host of the inventory -> ``{cluster: name or None, node: facts of node_info or None, probe (False)}``,
    in the inventory's order. ``play_hosts``: hosts that are still in the play. ``bootstrap``: the host an operator named to
    found the cluster although other hosts could not be asked (``corosync_bootstrap``). ``joining_probe``: the probe that is
    to join; any other stays what it is, and none of them founds a cluster or is joined through.

    Each plan is ``{action, seed, cluster, members, reason}``: ``action`` is one of ``adopt`` (a member already; stays
    as it is), ``bootstrap`` (found the cluster), ``join`` (through ``seed``, a member or the host that bootstraps),
    ``standalone`` (no cluster wanted), ``probe`` (one that is not a member and stays so), ``refuse`` (``reason`` says why
    and what helps). ``members`` are the inventory hosts that belong to the live cluster, its probes last.
    """
    plans: dict[str, Plan] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    for host, entry in hosts.items():
        if entry.get("cluster"):
            groups[str(entry["cluster"])].append(host)
            continue
        live = live_cluster(entry.get("node"))
        if live:
            plans[host] = _plan("adopt", cluster=live, reason="already a member of a cluster the inventory does not describe")
        else:
            plans[host] = _plan("standalone", reason="corosync_cluster_name is not set")
    # Members that the inventory does not describe still protect each other's quorum: know them as one cluster.
    for plan in plans.values():
        if plan["action"] == "adopt":
            plan["members"] = [other for other, p in plans.items() if p["cluster"] == plan["cluster"]]
    for cluster, names in groups.items():
        nodes = {name: hosts[name].get("node") for name in names if not hosts[name].get("probe")}
        group = _group_plan(cluster, nodes, play_hosts, bootstrap)
        probes = {name: hosts[name].get("node") for name in names if hosts[name].get("probe")}
        group.update(_probe_plans(cluster, probes, nodes, group, joining_probe))
        live_probes = [name for name in probes if group[name]["action"] == "adopt"]
        for plan in group.values():
            plan["members"] += live_probes if plan["members"] else []
        plans.update(group)
    return plans


def _probe_plans(
    cluster: str,
    probes: Mapping[str, Mapping[str, Any] | None],
    nodes: Mapping[str, Mapping[str, Any] | None],
    plans: Mapping[str, Plan],
    joining: str | None,
) -> dict[str, Plan]:
    members = [host for host, plan in plans.items() if plan["action"] == "adopt"]
    quorate = [host for host in members if ((nodes[host] or {}).get("corosync") or {}).get("quorate")]
    found = {}
    for host, node in probes.items():
        live = live_cluster(node)
        held = _holdings(node or {})
        if node is None:
            found[host] = _plan("refuse", cluster=cluster, members=members, reason="could not be asked in this run")
        elif live and live != cluster:
            reason = f"{host} is a probe of {cluster!r} in the inventory and a member of {live!r}: let it leave that one first"
            found[host] = _plan("refuse", cluster=cluster, reason=reason)
        elif live and (why := _removed(host, [*members, host], {**nodes, host: node})):
            found[host] = _plan("refuse", cluster=cluster, members=members, reason=why)
        elif live:
            found[host] = _plan("adopt", cluster=cluster, members=members, reason="a probe of the cluster")
        elif host != joining:
            reason = "a probe: playbooks/probe.yml -e probe_state=present lets it join"
            found[host] = _plan("probe", cluster=cluster, members=members, reason=reason)
        elif not members:
            reason = (
                f"no host of this run is a member of {cluster!r}: nodes by themselves have no ring that a probe could watch. "
                "Form the cluster first (site.yml); of a node by itself the report says what it writes (playbooks/report.yml)"
            )
            found[host] = _plan("refuse", cluster=cluster, reason=reason)
        elif held:
            found[host] = _refuse_holder(host, cluster, members, held)
        elif not quorate:
            reason = f"no member of {cluster!r} is quorate ({', '.join(members)}): restore quorum first"
            found[host] = _plan("refuse", cluster=cluster, members=members, reason=reason)
        else:
            reason = "a probe that is to join"
            found[host] = _plan("join", cluster=cluster, seed=quorate[0], members=members, reason=reason)
    return found


def live_cluster(node: Mapping[str, Any] | None) -> str | None:
    """The name of the cluster a host belongs to, or None.

    Debian's package of corosync ships an example configuration without ``config_version``; it is not a membership.
    """
    if not node:
        return None
    corosync = node.get("corosync") or {}
    copy = corosync.get("cluster") or corosync.get("host")
    if not copy or not copy.get("config_version"):
        return None
    name = corosync.get("cluster_name")
    return str(name) if name else None


def node_name(host: str, node: Mapping[str, Any] | None) -> str:
    """The name of a host as a node: its own host name where it was asked, else that of the inventory, to the first dot."""
    return short_name(str((node or {}).get("hostname") or host))


def _holdings(node: Mapping[str, Any]) -> list[str]:
    """What a host's own database holds that a join would throw away."""
    pmxcfs = node.get("pmxcfs") or {}
    held = []
    if pmxcfs.get("database_bytes") is not None and pmxcfs.get("root_version") is None and pmxcfs.get("error"):
        held.append(f"a database that is not understood ({pmxcfs['error']})")
    if pmxcfs.get("guests"):
        shown = ", ".join(str(guest) for guest in pmxcfs["guests"][:5])
        more = len(pmxcfs["guests"]) - 5
        held.append(f"guests {shown}" + (f" and {more} more" if more > 0 else ""))
    if pmxcfs.get("storage"):
        held.append("storage definitions")
    if pmxcfs.get("users"):
        held.append("users or permissions")
    if pmxcfs.get("has_corosync_conf"):
        held.append("a corosync.conf of its own")
    return held


def _group_plan(
    cluster: str,
    nodes: Mapping[str, Mapping[str, Any] | None],
    play_hosts: Collection[str],
    bootstrap: str | None,
) -> dict[str, Plan]:
    live = {host: live_cluster(node) for host, node in nodes.items()}
    names = sorted({name for name in live.values() if name})
    foreign = [name for name in names if name != cluster]
    if foreign:
        shown = "; ".join(f"{host} is in {name}" for host, name in live.items() if name)
        reason = (
            f"the inventory calls this cluster {cluster!r} but its hosts report: {shown}. "
            "Correct corosync_cluster_name, or take the host out of this group"
        )
        return {host: _plan("refuse", cluster=cluster, reason=reason) for host in nodes}

    members = [host for host, name in live.items() if name == cluster]
    returned = {host: why for host in members if (why := _removed(host, members, nodes))}
    members = [host for host in members if host not in returned]
    plans = {host: _plan("adopt", cluster=cluster, members=members, reason="already a member") for host in members}
    for host, old_state in returned.items():
        plans[host] = _plan("refuse", cluster=cluster, members=members, reason=old_state)
    candidates = [host for host in nodes if host not in plans]
    unheard = [host for host in candidates if nodes[host] is None]
    for host in unheard:
        plans[host] = _plan("refuse", cluster=cluster, members=members, reason="could not be asked in this run")
    candidates = [host for host in candidates if nodes[host] is not None and host in play_hosts]
    for host in nodes:
        # Heard, but refused by a gate or failed since.
        if host not in plans and host not in candidates:
            plans[host] = _plan("refuse", cluster=cluster, members=members, reason="left the play before (see above)")
    for name, same in _namesakes([*members, *candidates], nodes).items():
        # Each would be listed under this name, and /etc/pve/nodes has one directory for both.
        reason = f"{' and '.join(same)} are both called {name}: give each node a host name of its own"
        for host in same:
            if host in candidates:
                plans[host] = _plan("refuse", cluster=cluster, members=members, reason=reason)
    candidates = [host for host in candidates if host not in plans]
    if not candidates:
        return plans

    if members:
        return {**plans, **_joins(cluster, members, candidates, nodes)}
    return {**plans, **_founding(cluster, candidates, unheard, bootstrap, nodes)}


def _joins(
    cluster: str, members: list[str], candidates: list[str], nodes: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Plan]:
    """The plans of hosts that are to join a cluster that exists."""
    plans: dict[str, Plan] = {}
    corosyncs = {host: (nodes[host] or {}).get("corosync") or {} for host in members}
    quorate = [host for host in members if corosyncs[host].get("quorate")]
    if not quorate:
        quorate = _waiting_for(corosyncs, candidates, nodes)
    for host in candidates:
        held = _holdings(nodes[host] or {})
        if held:
            plans[host] = _refuse_holder(host, cluster, members, held)
        elif not quorate:
            plans[host] = _plan(
                "refuse",
                cluster=cluster,
                members=members,
                reason=f"no member of {cluster!r} is quorate ({', '.join(members)}); "
                "restore quorum first ('corosync-quorumtool -s' on a member)",
            )
        else:
            plans[host] = _plan("join", cluster=cluster, seed=quorate[0], members=members, reason="not a member yet")
    return plans


def _founding(
    cluster: str,
    candidates: list[str],
    unheard: list[str],
    bootstrap: str | None,
    nodes: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Plan]:
    """The plans of hosts of a cluster that does not exist yet: one founds it, the others join."""
    if bootstrap is not None and bootstrap in nodes and bootstrap not in candidates:
        reason = f"corosync_bootstrap names {bootstrap}, which is not in this run or was refused"
        return {host: _plan("refuse", cluster=cluster, reason=reason) for host in candidates}
    if unheard and bootstrap not in candidates:
        reason = (
            f"{', '.join(unheard)} of cluster {cluster!r} could not be asked (--limit, or unreachable) and may already be "
            "members: founding the cluster here could make a second one. Run without --limit, or name the founder with "
            f"-e corosync_bootstrap={candidates[0]}"
        )
        return {host: _plan("refuse", cluster=cluster, reason=reason) for host in candidates}

    holders = {host: _holdings(nodes[host] or {}) for host in candidates}
    holders = {host: held for host, held in holders.items() if held}
    if len(holders) > 1 and bootstrap not in candidates:
        shown = "; ".join(f"{host} holds {', '.join(held)}" for host, held in holders.items())
        reason = (
            f"more than one host has content of its own ({shown}) and a join keeps only the cluster's. Back up and remove "
            "the guests of all but one, or take those hosts out of the group"
        )
        return {host: _plan("refuse", cluster=cluster, reason=reason) for host in candidates}
    # A host with content founds the cluster, so that nothing of it has to be given up.
    seed = bootstrap if bootstrap in candidates else next(iter(holders), candidates[0])
    plans: dict[str, Plan] = {}
    for host in candidates:
        if host == seed:
            plans[host] = _plan("bootstrap", cluster=cluster, reason="no cluster exists yet")
        elif host in holders:
            plans[host] = _refuse_holder(host, cluster, [], holders[host])
        else:
            plans[host] = _plan("join", cluster=cluster, seed=seed, reason="not a member yet")
    return plans


def names_by_address(node: Mapping[str, Any]) -> dict[str, str]:
    """``{address: name}`` of the members that a node (facts of node_info) knows, by corosync.conf before what they tell each
    other; addresses in the form of :func:`corosync_conf.address_key`.
    """
    told = ((node.get("pmxcfs") or {}).get("member_addresses") or {}).items()
    found = {address_key(str(address)): str(name) for name, address in told}
    for member in (node.get("corosync") or {}).get("members") or ():
        if member.get("name"):
            found.update({address_key(str(address)): str(member["name"]) for address in member.get("addresses") or ()})
    return found


def _namesakes(hosts: Collection[str], nodes: Mapping[str, Mapping[str, Any] | None]) -> dict[str, list[str]]:
    """Hosts that have the same host name, by it. A host that did not say its own is left out."""
    names: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        if (nodes[host] or {}).get("hostname"):
            names[node_name(host, nodes[host])].append(host)
    return {name: same for name, same in names.items() if len(same) > 1}


def _removed(host: str, members: Collection[str], nodes: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Why a host that takes itself for a member is none: a quorate member with a newer corosync.conf does not list it.

    It was away while it was removed and has come back with its old state, which must not return with it.
    """
    own = (nodes[host] or {}).get("corosync") or {}
    copy = own.get("cluster") or own.get("host") or {}
    name = node_name(host, nodes[host])
    number = next((member.get("id") for member in own.get("members") or [] if member.get("name") == name), None)
    for other in members:
        corosync = (nodes[other] or {}).get("corosync") or {}
        version = (corosync.get("cluster") or {}).get("config_version") or 0
        listed = [(member.get("name"), member.get("id")) for member in corosync.get("members") or []]
        if other == host or not corosync.get("quorate") or version <= (copy.get("config_version") or 0) or not listed:
            continue
        if not any(each == name and number in (None, node_id) for each, node_id in listed):
            return (
                f"{host} holds the state of a former member: its corosync.conf has config_version "
                f"{copy.get('config_version')}, that of {other} {version} and does not list {name}. It must not come back "
                f"with it: make it a node by itself (playbooks/leave.yml -e leave_node={host}), then it joins as a new one"
            )
    return None


def _waiting_for(
    corosyncs: Mapping[str, Mapping[str, Any]],
    candidates: Collection[str],
    nodes: Mapping[str, Mapping[str, Any] | None],
) -> list[str]:
    """Members without quorum that lack only nodes which are listed already and are to join now.

    A run that was interrupted between listing a node and its join leaves them so; the join itself brings the quorum.
    """
    names = {node_name(host, nodes[host]) for host in candidates}
    found = []
    for host, corosync in corosyncs.items():
        live = set(corosync.get("live_member_ids") or [])
        away = {
            member.get("name")
            for member in corosync.get("members") or []
            # Without a vote it keeps no quorum away.
            if member.get("id") not in live and member.get("votes", 1) and not probe_members.is_listed(member)
        }
        if corosync.get("running") and away and away <= names:
            found.append(host)
    return found


def _refuse_holder(host: str, cluster: str, members: list[str], held: list[str]) -> Plan:
    return _plan(
        "refuse",
        cluster=cluster,
        members=members,
        reason=f"{host} must not join {cluster!r}: its /etc/pve holds {', '.join(held)}, which a join would replace by the "
        "cluster's. Back up and remove them first, or take the host out of the cluster's group",
    )


def _plan(
    action: str, *, seed: str | None = None, cluster: str | None = None, members: list[str] | None = None, reason: str = ""
) -> Plan:
    return {"action": action, "seed": seed, "cluster": cluster, "members": list(members or []), "reason": reason}
