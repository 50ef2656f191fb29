"""A live cluster's corosync.conf in the form in which the role takes it as input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import corosync_conf
from .corosync_conf import Document, Node, Section

#: Statements that say nothing of what an operator chose: they are the nodes', a counter, or variables of the role.
_NOT_SETTINGS = ("totem.config_version", "totem.cluster_name", "totem.token")


def desired(text: str) -> dict[str, Any]:
    """What the inventory would say of this corosync.conf.

    ``cluster``: variables of the group (``corosync_cluster_name``; ``corosync_token`` in ms where the file has one);
    ``hosts``: ``{node name: {corosync_node_id, corosync_links}}``; ``not_expressed``: sentences on what the role has
    no variable for. It leaves all of that as it is on an existing cluster. Raises CorosyncConfError for a text that
    cannot be read.
    """
    document = corosync_conf.parse(text, "/etc/pve/corosync.conf")
    cluster: dict[str, Any] = {"corosync_cluster_name": document.cluster_name}
    if document.token_ms is not None:
        cluster["corosync_token"] = document.token_ms
    hosts: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for node in document.nodes():
        notes += _notes(node)
        links = [address for _, address in sorted(node.addresses.items())]
        if node.name:
            hosts[node.name] = {"corosync_node_id": node.node_id, "corosync_links": links}
    return {"cluster": cluster, "hosts": hosts, "not_expressed": notes + _settings(document)}


def _notes(node: Node) -> list[str]:
    notes = []
    if not node.name:
        notes.append(f"{node.label} has no name, by which the cluster file system finds it")
    if sorted(node.addresses) != list(range(len(node.addresses))):
        numbers = ", ".join(map(str, sorted(node.addresses)))
        notes.append(
            f"{node.label} has the links {numbers}, and the place of an address in corosync_links is the number of its link"
        )
    if node.votes != 1:
        notes.append(f"{node.label} has {node.votes} votes (quorum_votes)")
    return notes


def _settings(document: Document) -> list[str]:
    """Statements outside of the nodelist that a new cluster would not have, or would have with another value."""
    node = {"name": "node", "node_id": 1, "links": ["192.0.2.1"]}
    new = dict(_statements(corosync_conf.parse(corosync_conf.render_new("new", [node])).root))
    found = dict(_statements(document.root))
    return [
        f"{name}: {value}"
        for name, value in found.items()
        if new.get(name) != value
        and name not in _NOT_SETTINGS
        and not name.startswith("nodelist.")
        and not name.endswith(".linknumber")
    ]


def _statements(section: Section, path: str = "") -> list[tuple[str, str]]:
    """``(dotted name, value)`` of every statement; sections of a link carry its number."""
    found = [(f"{path}{line.key}", line.value) for line in section.pairs()]
    for item in section.items:
        if isinstance(item, Section):
            number = item.get("linknumber") if item.name == "interface" else None
            name = f"{item.name}[{number}]" if number not in (None, "0") else item.name
            found += _statements(item, f"{path}{name}.")
    return found


def of_info(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """:func:`desired` of what corosync_info found: of the cluster's copy, else of the host's; None without either."""
    if info.get("example_conf"):
        return None
    for key in ("cluster", "host"):
        copy = info.get(key)
        if copy:
            try:
                return desired(copy["text"])
            except corosync_conf.CorosyncConfError:
                continue
    return None
