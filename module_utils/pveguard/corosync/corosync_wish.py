# SPDX-License-Identifier: Apache-2.0
"""What is wanted of a cluster's corosync.conf, and the texts that lead there."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import PveguardError
from ..formats import corosync_check, corosync_conf, corosync_edit
from ..formats.corosync_conf import Document


@dataclass
class Wanted:
    """What the configuration must say. None and what is not named leave a value as it is.

    ``nodes``: ``{name, node_id, links, votes}``; with ``absent`` the nodes that must not be there, by name. In
    ``links`` of a node the index is the link's number, an empty text a link that it does not have. A listed node with
    other addresses or votes is refused unless ``update_nodes``.
    ``links``: ``{number, absent (False), addresses ({node: address}), priority, transport, ping_interval,
    ping_timeout, ping_precision, pong_count}`` (times in ms).
    ``crypto``: ``{cipher, hash}``; refused while the cluster runs unless ``allow_crypto_change``.
    ``totem``, ``logging``, ``quorum``: other keys of these sections; a value of None takes a key off.
    """

    cluster_name: str | None = None
    nodes: Sequence[dict[str, Any]] = field(default_factory=list)
    token_ms: int | None = None
    absent: bool = False
    update_nodes: bool = False
    links: Sequence[Mapping[str, Any]] = field(default_factory=list)
    token_coefficient_ms: int | None = None
    crypto: Mapping[str, str | None] | None = None
    allow_crypto_change: bool = False
    totem: Mapping[str, object] = field(default_factory=dict)
    logging: Mapping[str, object] = field(default_factory=dict)
    quorum: Mapping[str, object] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Nothing but the cluster's name is asked for."""
        return not (
            self.nodes
            or self.links
            or self.token_ms is not None
            or self.token_coefficient_ms is not None
            or any(self.crypto.values() if self.crypto else ())
            or self.totem
            or self.logging
            or self.quorum
        )


def resolve_host(name: str) -> list[str]:
    """The addresses of a host name as this node resolves it; empty when it does not."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)})
    except OSError:
        return []


def merge(text: str, wanted: Wanted, probes: Collection[int] = ()) -> tuple[str, list[str]]:
    """The text with what is wanted merged in (config_version raised) and warnings. The same text if nothing differs.

    Raises PveguardError when it must not be done.
    """
    texts, warnings = sequence(text, wanted, probes)
    return (texts[-1] if texts else text), warnings


def sequence(text: str, wanted: Wanted, probes: Collection[int] = ()) -> tuple[list[str], list[str]]:
    """The texts to be written one after the other, each with a higher config_version, and warnings.

    No text when nothing differs; more than one where Corosync must first let a link go to take it with other
    addresses. ``probes``: node ids of those that have no vote on purpose. Raises PveguardError for what must not be done,
    whatever the state of the cluster.
    """
    document = corosync_conf.parse(text, "/etc/pve/corosync.conf")
    before = corosync_conf.parse(text)
    version = document.config_version or 0
    if wanted.cluster_name and document.cluster_name != wanted.cluster_name:
        raise PveguardError(
            f"/etc/pve/corosync.conf is of the cluster {document.cluster_name!r}, wanted "
            f"{wanted.cluster_name!r}: correct "
            "corosync_cluster_name, or take this host out of the group. A live cluster keeps its name"
        )
    known = corosync_check.problems(document, resolve=resolve_host)
    if not _edit(document, wanted):
        return [], []
    if (document.config_version or 0) != version:
        document.set("totem", "config_version", version)
    if document.text() == text:
        return [], []
    corosync_check.refuse_problems(document, resolve=resolve_host, known=known)
    texts = []
    for step in corosync_edit.steps(before, document):
        stepped = corosync_conf.parse(step)
        version = corosync_conf.next_version(version)
        stepped.set("totem", "config_version", version)
        texts.append(stepped.text())
    listed = {int(node["node_id"]) for node in wanted.nodes if node.get("votes") == 0 and node.get("node_id")}
    after = corosync_check.problems(document, probes={*probes, *listed})
    found = [problem.message for problem in after if problem.severity == "warning"]
    # Mistakes of before do not hold up a change, but they are not passed over either.
    found += [problem.message for problem in known if problem.severity == "error" and problem in after]
    # While a cluster grows node by node its votes are even every other time.
    return texts, [message for message in found if not (wanted.nodes and "even number" in message)]


def _edit(document: Document, wanted: Wanted) -> bool:
    changed = False
    for node in wanted.nodes:
        if wanted.absent:
            _refuse_namesake(document, node)
            changed |= corosync_edit.remove_node(document, node["name"])
            continue
        votes = None if node.get("votes") is None else int(node["votes"])
        present = document.node(node["name"])
        if wanted.update_nodes and present is not None and present.node_id == int(node["node_id"]):
            addresses = {number: address for number, address in enumerate(node["links"]) if address}
            changed |= corosync_edit.update_node(document, node["name"], addresses, votes)
        else:
            links = list(node["links"])
            changed |= corosync_edit.add_node(
                document, node["name"], int(node["node_id"]), links, 1 if votes is None else votes
            )
    listed = set(document.link_numbers())
    for link in wanted.links:
        number = int(link["number"])
        if link.get("absent"):
            changed |= corosync_edit.remove_link(document, number)
            continue
        options = {name: link[name] for name in corosync_edit.LINK_KEYS if link.get(name) is not None}
        addresses_of_link = dict(link.get("addresses") or {})
        if number not in listed and not addresses_of_link:
            raise PveguardError(
                f"link {number} is not in corosync.conf, which has {', '.join(map(str, sorted(listed))) or 'none'}: give "
                "it addresses, or correct corosync_link_options"
            )
        changed |= corosync_edit.set_link(document, number, addresses_of_link, options)
    # A link that no node is on any more goes with its section, one that is new gets one as the others have.
    for number in listed - set(document.link_numbers()):
        changed |= corosync_edit.remove_link(document, number)
    for number in document.link_numbers():
        if wanted.update_nodes or wanted.links:
            changed |= number not in listed and corosync_edit.set_link(document, number)
    if wanted.token_ms is not None:
        changed |= document.set_token(wanted.token_ms)
    if wanted.token_coefficient_ms is not None:
        changed |= document.set("totem", "token_coefficient", wanted.token_coefficient_ms)
    if wanted.crypto:
        changed |= corosync_edit.set_crypto(document, wanted.crypto.get("cipher"), wanted.crypto.get("hash"))
    for section in ("totem", "logging", "quorum"):
        changed |= corosync_edit.set_options(document, section, getattr(wanted, section))
    return changed


def _refuse_namesake(document: corosync_conf.Document, node: dict[str, Any]) -> None:
    """Only the node that was meant is removed, not another one of its name (a wrong id given, or links)."""
    present = document.node(node["name"])
    if present is None:
        return
    links = {number: link for number, link in enumerate(node["links"]) if link} if node.get("links") else present.addresses
    same = corosync_conf.same_addresses(links, present.addresses)
    if int(node.get("node_id") or present.node_id or 0) != (present.node_id or 0) or not same:
        raise PveguardError(
            f"corosync.conf lists {node['name']} with id {present.node_id} and addresses "
            f"{', '.join(present.addresses.values())}, not with those given: it is not removed"
        )


def int_or_zero(value: str | None) -> int:
    return corosync_conf.number(value) or 0
