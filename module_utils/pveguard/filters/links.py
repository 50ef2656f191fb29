# SPDX-License-Identifier: Apache-2.0
"""Filters of the role link_gate: which links are measured, whom a bad one is held against, the token timeout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..base import variables
from ..base.errors import PveguardError
from ..base.host_variables import HostVariables, facts_of, rendered
from ..cluster import plan
from ..corosync import token_advice
from ..formats import corosync_conf
from ..gates import fsync_bench, link_gate

#: Where the role registers what its module measured, and keeps the result.
MEASURED = "__link_gate_measured"
RESULT = "link_gate_result"


def _action(variables: Mapping[str, Any]) -> str | None:
    return (variables.get("pveguard_plan") or {}).get("action")


def _nodes(hosts: HostVariables) -> dict[str, link_gate.Node]:
    nodes = {}
    for host, own in hosts.items():
        cluster = own.get("corosync_cluster_name")
        links = own.get("corosync_links")
        nodes[host] = link_gate.Node(
            cluster=str(cluster) if cluster else None,
            links=[str(link) for link in links] if isinstance(links, list) else [],
            action=_action(own),
        )
    return nodes


def link_pairs(hostvars: Any, host: str, max_peers: int = link_gate.DEFAULT_MAX_PEERS) -> list[dict[str, Any]]:
    """``{{ hostvars | pveguard_link_pairs(inventory_hostname, link_gate_max_peers) }}``: the module's ``pairs``."""
    return link_gate.pairs(_nodes(rendered(hostvars)), host, variables.as_int(max_peers))


def link_result(hostvars: Any, host: str, check_mode: bool = False) -> dict[str, Any]:
    """The role's ``link_gate_result`` of a host, from what all hosts of the play measured."""
    nodes = _nodes(rendered(hostvars))
    measured = {
        name: {key: value for key, value in result.items() if key in _RESULT_KEYS}
        for name in nodes
        if (result := hostvars[name].get(MEASURED)) and "links" in result
    }
    if host in measured:
        return link_gate.settle(nodes, measured)[host]
    if not nodes[host].cluster:
        return link_gate.not_measured("no_links", "corosync_cluster_name is not set, so there is no link to measure")
    if not link_gate.pairs(nodes, host):
        return link_gate.not_measured("no_peers", "no other node has a link with this one yet")
    if check_mode:
        return link_gate.not_measured("check_mode", "link_gate_in_check_mode is false")
    return link_gate.not_measured("not_asked", "pveguard_gate_enforce and the cluster plan ask for no measurement")


#: What the module returned, without what Ansible adds.
_RESULT_KEYS = (
    *("verdict", "reason", "message", "rtt_p99_ms", "samples", "duration_seconds", "time", "kernel"),
    *("under_load", "links"),
)


def token(hostvars: Any, hosts: list[str]) -> dict[str, dict[str, Any]]:
    """``{{ hostvars | pveguard_token_advice(ansible_play_hosts_all) }}``: cluster -> advice of the core token_advice.

    Counted are the nodes that are in the ring or are to join it and are not refused by link_gate. The configuration is
    that of a live member; without one, what pveguard would found the cluster with; ``corosync_token`` goes before both.
    """
    clusters: dict[str, list[str]] = {}
    every = rendered(hostvars)
    for host in hosts:
        own = every[host]
        name = own.get("corosync_cluster_name") or plan.live_cluster(facts_of(own))
        if name:
            clusters.setdefault(str(name), []).append(host)
    return {name: _advice(every, members) for name, members in clusters.items()}


def _advice(hostvars: Any, hosts: list[str]) -> dict[str, Any]:
    ring, rtts, fsyncs, listed = [], [], {}, 0
    token_ms, coefficient_ms = corosync_conf.DEFAULT_TOKEN_MS, corosync_conf.DEFAULT_TOKEN_COEFFICIENT_MS
    for host in hosts:
        own = hostvars[host]
        result = own.get(RESULT) or {}
        if _action(own) not in (None, *link_gate.IN_RING) or result.get("verdict") == "fail":
            continue
        ring.append(host)
        fsyncs[host] = fsync_bench.data_p99_ms(own.get("fsync_gate_result") or {})
        # A link to a refused node is not going to be part of the ring.
        rtts += [
            figures["rtt_p99_ms"]
            for link in result.get("links") or []
            if link.get("reason") != "peer_refused"
            for figures in (link, link.get("load") or {})
            if figures.get("rtt_p99_ms") is not None
        ]
        facts = facts_of(own)
        if plan.live_cluster(facts):
            corosync = (facts or {}).get("corosync") or {}
            listed = max(listed, len(corosync.get("members") or []))
            token_ms, coefficient_ms = _configured(corosync)
    # What the run is going to configure.
    wanted = [token for host in hosts if (token := variables.as_int(hostvars[host].get("corosync_token") or 0))]
    token_ms = wanted[0] if wanted else token_ms
    joining = sum(_action(hostvars[host]) == "join" for host in ring)
    # Members that the inventory does not name are in the ring all the same.
    nodes = max(len(ring), listed + joining if listed else 0)
    return token_advice.advise(
        nodes, max(rtts, default=None), fsyncs, token_ms=token_ms, coefficient_ms=coefficient_ms
    )


def _configured(corosync: Mapping[str, Any]) -> tuple[int, int]:
    """token and token_coefficient of a member's corosync.conf, with corosync's defaults for what it does not say."""
    text = (corosync.get("cluster") or corosync.get("host") or {}).get("text") or ""
    try:
        document = corosync_conf.parse(text)
    except PveguardError:
        return token_advice.DEFAULT_TOKEN_MS, token_advice.DEFAULT_COEFFICIENT_MS
    token_ms, coefficient = document.token_ms, document.token_coefficient_ms
    return (
        # 0 stands for the default.
        token_ms or token_advice.DEFAULT_TOKEN_MS,
        token_advice.DEFAULT_COEFFICIENT_MS if coefficient is None else coefficient,
    )


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_link_pairs": link_pairs,
    "pveguard_link_result": link_result,
    "pveguard_token_advice": token,
}
