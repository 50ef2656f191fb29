"""Which links are measured before a join, and which node a bad one is held against.

Pure: decided on the controller from the inventory, the plan of membership and what the nodes measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .link_bench import worst

#: Peers of one node that are measured. With it clusters of up to eight nodes are measured in full.
DEFAULT_MAX_PEERS = 7

#: What the plan may say of a host that belongs to the ring, now or after this run.
IN_RING = ("adopt", "bootstrap", "join")

#: Reasons of :func:`link_bench.judge` that lie at the measuring node, whoever the peer is.
_OWN = ("address_missing", "no_route", "not_sent")

_NOT_MEASURED: dict[str, Any] = {
    "rtt_p99_ms": None,
    "samples": 0,
    "duration_seconds": 0.0,
    "time": None,
    "kernel": None,
    "under_load": False,
    "links": [],
}


@dataclass(frozen=True)
class Node:
    """A host of the inventory. ``action``: what the cluster plan says of it, None without a plan."""

    cluster: str | None
    links: Sequence[str] = ()
    action: str | None = None


def pairs(nodes: Mapping[str, Node], host: str, max_peers: int = DEFAULT_MAX_PEERS) -> list[dict[str, Any]]:
    """The pairs of addresses that ``host`` measures: ``[{peer, link, source, target}]``, in the inventory's order.

    Only pairs that touch ``host``. Peers are the hosts of its cluster that are in the ring or are to join it; without
    a plan all hosts of the cluster. Of more than ``max_peers`` a sample is measured: live members first, then by a
    hash of both names, so that each node has a sample of its own and the same one in every run.
    """
    own = nodes[host]
    if not own.cluster:
        return []
    peers = [
        name
        for name, node in nodes.items()
        if name != host and node.cluster == own.cluster and (own.action is None or node.action in IN_RING)
    ]
    if len(peers) > max_peers:
        ranked = sorted(peers, key=lambda name: (nodes[name].action != "adopt", _hash(host, name)))
        chosen = set(ranked[:max_peers])
        peers = [name for name in peers if name in chosen]
    return [
        {"peer": peer, "link": link, "source": str(source), "target": str(target)}
        for peer in peers
        for link, (source, target) in enumerate(zip(own.links, nodes[peer].links, strict=False))
    ]


def not_measured(reason: str, message: str) -> dict[str, Any]:
    """A result with every key of a measured one. ``reason``: ``not_asked``, ``check_mode``, ``no_links``, ``no_peers``."""
    return {"verdict": "not measured", "reason": reason, "message": message, **_NOT_MEASURED}


def settle(nodes: Mapping[str, Node], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The result of each measured host, with every bad link held against one of its two ends.

    ``measured``: host -> result of :func:`link_bench.bench`. A bad link to a live member is held against the node that
    is to join. Between two nodes that are both to join it is held against the one with more bad links: of three nodes
    of which one has a bad cable, that one is refused, not all three. In a tie the founder stays, then the one that
    comes first in the inventory, and the message says that it was a tie.

    The other end keeps a warning with the reason ``peer_refused``.
    """
    order = {name: number for number, name in enumerate(nodes)}
    refused: dict[str, list[dict[str, Any]]] = {}
    edges: dict[frozenset[str], list[dict[str, Any]]] = {}
    for host, result in measured.items():
        for entry in result["links"]:
            if entry["verdict"] != "fail":
                continue
            peer = str(entry["peer"])
            guest, member = _action(nodes, host) != "adopt", _action(nodes, peer) == "adopt"
            if entry["reason"] in _OWN or (guest and member):
                refused.setdefault(host, []).append(entry)
            elif not guest and not member and peer in nodes:
                refused.setdefault(peer, []).append(entry)
            else:
                edges.setdefault(frozenset((host, peer)), []).append(entry)
    ties: set[str] = set()
    while True:
        left = [ends for ends in edges if not ends & refused.keys()]
        if not left:
            break
        degree: dict[str, int] = {}
        for ends in left:
            for name in ends:
                degree[name] = degree.get(name, 0) + 1
        blamed = max(degree, key=lambda name: (degree[name], _action(nodes, name) != "bootstrap", order.get(name, -1)))
        about = [ends for ends in left if blamed in ends]
        if all(degree[name] == degree[blamed] for ends in about for name in ends):
            ties.add(blamed)
        refused[blamed] = [entry for ends in about for entry in edges[ends]]
    return {host: _settled(host, result, refused, ties) for host, result in measured.items()}


def _settled(
    host: str, result: Mapping[str, Any], refused: Mapping[str, Sequence[Mapping[str, Any]]], ties: set[str]
) -> dict[str, Any]:
    links = []
    for entry in result["links"]:
        if entry["verdict"] == "fail" and host not in refused:
            # The figures stay; what is taken back is the reproach.
            entry = {
                **entry,
                "verdict": "warn",
                "reason": "peer_refused",
                "message": f"{entry['message']} ({entry['peer']} is refused for it)",
            }
        links.append(dict(entry))
    own = [entry for entry in links if entry["verdict"] != "pass"]
    if host in refused:
        causes = {entry["message"]: entry for entry in [*refused[host], *own]}
        message = "\n".join(causes)
        if host in ties:
            message += (
                "\nBoth ends of this link were to join and neither has more bad links than the other: if this node's end "
                "is sound, look at the other one"
            )
        reason = str(refused[host][0]["reason"])
        return {**result, "verdict": "fail", "reason": reason, "message": message, "links": links}
    verdict = worst([entry["verdict"] for entry in links])
    reason = next((entry["reason"] for entry in own if entry["verdict"] == verdict), "ok")
    message = "\n".join(entry["message"] for entry in own) or str(result["message"])
    return {**result, "verdict": verdict, "reason": reason, "message": message, "links": links}


def _action(nodes: Mapping[str, Node], name: str) -> str | None:
    return nodes[name].action if name in nodes else None


def _hash(*names: str) -> str:
    return hashlib.sha256("\0".join(names).encode()).hexdigest()
