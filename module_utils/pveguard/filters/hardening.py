# SPDX-License-Identifier: Apache-2.0
"""Filters of the role node_hardening."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..base.host_variables import rendered
from ..base.rollback_timer import CONFIRMED, NONE, ROLLED_BACK, ROLLING_BACK
from ..cluster import kinds
from ..hardening import asked, firewall_rules
from ..hardening.peers import host_of


def hosts(hostvars: Any, host: str) -> dict[str, str]:
    """``{name or address: host of the inventory}`` of all hosts but this one and those that are known to be of another cluster,
    --limit or not: by the address that Ansible goes to, by what a node calls itself where it was looked at, by the name in the
    inventory, and by its first part.
    """
    everybody = rendered(hostvars)
    cluster = _cluster_of(everybody.get(host))
    keys: tuple[dict[str, str], ...] = ({}, {}, {}, {})
    for name, own in everybody.items():
        theirs = _cluster_of(own)
        if name == host or (cluster and theirs and theirs != cluster):
            continue
        node = (own.get("pveguard_node") or {}).get("node") or {}
        short = "" if _is_address(str(name)) else str(name).partition(".")[0]
        for found, key in zip(keys, (own.get("ansible_host"), node.get("hostname"), name, short), strict=True):
            if key:
                found.setdefault(str(key), str(name))
    return {**keys[3], **keys[2], **keys[1], **keys[0]}


def _cluster_of(variables: Any) -> str:
    """As its facts say, and where it was not looked at, as the inventory says; empty where neither does."""
    own = variables or {}
    facts = (own.get("pveguard_node") or {}).get("corosync") or {}
    return str(facts.get("cluster_name") or own.get("corosync_cluster_name") or "")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def areas(hostvars: Any, host: str) -> list[str]:
    """The areas of hardening whose concern is switched on for a host."""
    return asked.switched_on(rendered(hostvars)[host])


def failures(came_in: Mapping[str, Any], went_out: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> list[str]:
    """Why a change of sshd is not proved, from the results of the proofs (the first of a loop) and of the confirmation."""
    named = [*((f"{(each.get('item') or {}).get('name')}: ", each) for each in came_in.get("results") or []), ("", went_out)]
    if kept is not None and not kept.get("skipped"):
        named.append(("the controller's new login: ", kept))
    return [f"{who}{each.get('msg') or 'no answer'}" for who, each in named if _failed(each)]


def sshd_ended(undone: Mapping[str, Any], seconds: int) -> str:
    """What became of a change of sshd that was not proved, from what its undo has registered."""
    state = "" if _failed(undone) else undone.get("timer")
    return {
        ROLLED_BACK: "It was taken back, and sshd is as it was before.",
        ROLLING_BACK: "The node is taking it back.",
        CONFIRMED: "It was kept before that, and sshd has it: run again.",
    }.get(str(state), f"The node takes it back by itself, at the latest within {seconds} s.")


def _failed(result: Mapping[str, Any]) -> bool:
    # With failed_when: false a module that failed has left its message alone.
    if result.get("skipped"):
        return False
    return bool(result.get("unreachable") or result.get("failed") or result.get("msg") or result.get("exception"))


#: What the tasks of the firewall register on each host.
LOOK, ARMED, WRITTEN, MADE, PROOF, WEB, KEPT, UNDONE = (
    f"__node_hardening_firewall{end}" for end in ("_look", "", "_written", "_made", "_proof", "_web", "_kept", "_undone")
)


def firewall_facts(hostvars: Any, host: str) -> dict[str, Any]:
    """The facts of a host's firewall, with what concerns the one cluster.fw of all members and not each of them can see: where
    the controller comes from, and DRBD's resources. So all members come to the same rules.
    """
    everybody = rendered(hostvars)
    own = _looked(everybody.get(host))
    known = hosts(hostvars, host)
    others = [host_of(each, known) for each in own.get("members") or [] if not each.get("own")]
    return firewall_rules.together([own, *(_looked(everybody.get(each)) for each in others if each)])


def firewall_together(hostvars: Any, host: str, play_hosts: Sequence[str]) -> dict[str, Any]:
    """What the members of a host's cluster have come to: ``{hosts, peers, writer, todo, problems}``. ``peers``: the other members
    that prove something; ``writer`` changes the file for all; ``problems`` says why nobody may. A probe has no cluster.fw, and no
    part in it.
    """
    everybody = rendered(hostvars)
    own = _result(everybody, host, ARMED)
    if _failed(own) or "digest" not in own:
        return {"hosts": [host], "peers": [], "writer": "", "todo": False, "problems": [_why(own)]}
    known, found, problems, todo = hosts(hostvars, host), [host], [], bool(own.get("todo"))
    peers = [each for each in own.get("members") or [] if not _is_probe(everybody.get(host_of(each, known)))]
    for member in peers:
        name = host_of(member, known)
        result = _result(everybody, name, ARMED)
        if not name:
            problems.append(f"{member['name']} of the cluster is not in the inventory under its name or address")
        elif name not in play_hosts:
            problems.append(f"this run does not reach {member['name']} of the cluster; run it for all members, without --limit")
        elif not result or result.get("skipped"):
            problems.append(f"{member['name']} was not asked: node_hardening_firewall is one for all members of a cluster")
        elif _failed(result) or "digest" not in result:
            problems.append(f"{member['name']}: {_why(result)}")
        elif result["digest"] != own["digest"]:
            problems.append(f"{member['name']} sees another cluster.fw, or its inventory asks for something else; run again")
        found += [name] if name else []
        todo = todo or bool(result.get("todo"))
    # Where nothing is to be done nobody needs to be there.
    return {"hosts": sorted(found), "peers": peers, "writer": min(found), "todo": todo, "problems": problems if todo else []}


def firewall_failures(hostvars: Any, members: Sequence[str]) -> list[str]:
    """Why a change is not proved, from what all members have registered so far."""
    everybody = rendered(hostvars)
    names = [(WRITTEN, ""), (MADE, ""), (PROOF, ""), (WEB, "the controller: "), (KEPT, "the confirmation: ")]
    results = [(host, what, _result(everybody, host, name)) for name, what in names for host in members]
    found = [f"{host}: {what}{_why(result)}" for host, what, result in results if _failed(result)]
    return list(dict.fromkeys(found))


def firewall_ended(hostvars: Any, host: str, writer: str, seconds: int) -> str:
    """What became on a host of a change that was not proved. Without a timer (rules in a firewall that is off) there is nothing
    to take back.
    """
    everybody = rendered(hostvars)
    undone = _result(everybody, host, UNDONE)
    state = "" if _failed(undone) else str(undone.get("timer") or "")
    live = bool(_result(everybody, host, ARMED).get("unproved"))
    if _result(everybody, writer, WRITTEN).get("untouched") and (state == NONE or not live):
        return "Nothing was written, and cluster.fw is as it was before."
    if not live:
        return "The rules may stand in cluster.fw already. They do nothing, as the firewall is off: run again."
    if state == ROLLED_BACK and undone.get("held_open"):
        return (
            "It was taken back, but somebody has edited cluster.fw: that stays, and this node's firewall is held open until a "
            "run has proved it."
        )
    return {
        ROLLED_BACK: "It was taken back, and cluster.fw is as it was before.",
        ROLLING_BACK: "The node has opened its firewall and is taking it back.",
        CONFIRMED: "This node had kept it; the member that had not puts the former cluster.fw back for all.",
    }.get(state, f"The node opens its firewall and takes it back by itself, at the latest within {seconds} s.")


def _is_probe(variables: Any) -> bool:
    own = variables or {}
    node, plan = (own.get("pveguard_node") or {}).get("node"), own.get("pveguard_plan") or {}
    return kinds.kind(node, own.get("group_names") or [], str(plan.get("action") or "")) == kinds.PROBE


def _looked(variables: Any) -> dict[str, Any]:
    facts = ((variables or {}).get(LOOK) or {}).get("facts") or {}
    return dict(facts.get("firewall") or {"known": False, "error": "it was not looked at"})


def _result(everybody: Mapping[str, Any], host: str, variable: str) -> dict[str, Any]:
    return dict((everybody.get(host) or {}).get(variable) or {}) if host else {}


def _why(result: Mapping[str, Any]) -> str:
    return str(result.get("msg") or "no answer")


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_firewall_ended": firewall_ended,
    "pveguard_firewall_facts": firewall_facts,
    "pveguard_firewall_failures": firewall_failures,
    "pveguard_firewall_together": firewall_together,
    "pveguard_hardening_areas": areas,
    "pveguard_hardening_failures": failures,
    "pveguard_hardening_hosts": hosts,
    "pveguard_sshd_ended": sshd_ended,
}
