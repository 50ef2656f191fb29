"""A live cluster's corosync.conf in the form in which the role takes it as input, and as an inventory.

Pure: works on texts and on the facts of the module ``node_info``. No secret is in what it makes: of the variables that
Ansible has for a host only those of :data:`CONNECTION` are taken.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import corosync_compare, corosync_conf, text_table
from . import inventory as inventory_rules
from .corosync_compare import View
from .corosync_conf import Document, Node, Section

#: How Ansible reaches a host, as far as that is no secret. The first two are a host's own.
CONNECTION = ("ansible_host", "ansible_port", "ansible_user", "ansible_become")

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
        f"{name}: {'(not shown)' if _is_secret(name) else value}"
        for name, value in found.items()
        if new.get(name) != value
        and name not in _NOT_SETTINGS
        and not name.startswith("nodelist.")
        and not name.endswith(".linknumber")
    ]


def _is_secret(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "key" or inventory_rules.is_secret_name(last)


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


@dataclass
class Inventory:
    """``groups``: ``{group: {vars, hosts: {host: variables}}}`` in order. ``notes`` become comments.

    ``errors``: why it must not be written.
    """

    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Every host with the variables it would have, those of its group included."""
        return {
            host: {**group.get("vars", {}), **variables}
            for group in self.groups.values()
            for host, variables in group["hosts"].items()
        }

    @property
    def clusters(self) -> list[str]:
        names = (group.get("vars", {}).get("corosync_cluster_name") for group in self.groups.values())
        return [str(name) for name in names if name]


def inventory(nodes: Mapping[str, Mapping[str, Any] | None], variables: Mapping[str, Mapping[str, Any]]) -> Inventory:
    """The inventory that describes these nodes as they are.

    ``nodes``: host -> facts of ``node_info``, None when it could not be asked; one member is enough to know its cluster.
    ``variables``: host -> variables of Ansible. A setting is written only where it differs from what a run without it
    would do.
    """
    found = Inventory()
    clusters = corosync_compare.group(nodes, {})
    for name, views in clusters.items():
        _cluster(found, name, views, nodes, variables)
    members = {view.host for views in clusters.values() for view in views}
    alone: dict[str, dict[str, Any]] = {}
    for host, facts in nodes.items():
        if host in members:
            continue
        if facts is None:
            found.notes.append(f"{host} could not be asked and is left out")
            continue
        alone[host] = _connection(variables.get(host, {}))
        if (facts.get("ha") or {}).get("resources"):
            alone[host]["ram_state_enabled"] = False
    if alone:
        found.groups["standalone"] = {"hosts": alone}
    if not found.groups and not found.errors:
        found.errors.append("no host could be asked, so there is nothing to export")
    found.errors += [
        f"{host}: {name} is {value!r}, which Ansible would take for a template"
        for host, values in found.hosts().items()
        for name, value in values.items()
        if isinstance(value, str) and re.search(r"\{[{%#]", value)
    ]
    return found


def _cluster(
    found: Inventory,
    name: str,
    views: Sequence[View],
    nodes: Mapping[str, Mapping[str, Any] | None],
    variables: Mapping[str, Mapping[str, Any]],
) -> None:
    asked = [view for view in views if view.asked]
    copies = {copy.sha256: copy for view in asked for copy in (view.local, view.cluster) if copy}
    bare = [view.name for view in asked if not view.cluster and not view.local]
    if len(copies) != 1 or bare:
        shown = "; ".join(line.strip() for line in corosync_compare.table(asked)[2:])
        found.errors.append(
            f"cluster {name}: the copies of corosync.conf are not the same everywhere ({shown}), so it is not known which "
            "cluster to describe; make them equal first"
        )
        return
    (copy,) = copies.values()
    if copy.error:
        found.errors.append(f"cluster {name}: {copy.error}")
        return
    wanted = desired(copy.text)
    hosts: dict[str, dict[str, Any]] = {}
    there = {host for group in found.groups.values() for host in group["hosts"]}
    by_name = {view.name: view for view in views}
    addresses = _addresses(nodes[view.host] for view in asked if view.host)
    for member, own in wanted["hosts"].items():
        view = by_name.get(member)
        given = view.host if view and view.host else None
        host = given if given and given.split(".")[0] == member else member
        connection = _connection(variables.get(given, {})) if given else {}
        if given and given != host:
            connection = {"ansible_host": given, **connection}
        if not given and member in addresses:
            connection["ansible_host"] = addresses[member]
        elif not given:
            found.notes.append(f"{member} was not asked; Ansible has to find it by its name, or set ansible_host")
        if host in there:
            found.errors.append(
                f"cluster {name}: there is another host {host}; give the hosts of one of them by their full names (host.domain)"
            )
        hosts[host] = {**connection, **own}
    group: dict[str, Any] = {"corosync_cluster_name": wanted["cluster"]["corosync_cluster_name"]}
    token = wanted["cluster"].get("corosync_token")
    if token not in (None, corosync_conf.DEFAULT_TOKEN_MS):
        group["corosync_token"] = token
    # RAM state is refused where HA is in use, and this run would describe a cluster that no run accepts.
    if any((nodes[view.host] or {}).get("ha", {}).get("resources") for view in asked if view.host):
        group["ram_state_enabled"] = False
        found.notes.append(f"cluster {name} uses HA, so its state stays on disk (ram_state_enabled: false)")
    group |= _shared(hosts, [view.host or "" for view in asked], variables)
    found.notes += [f"cluster {name}, left as it is (no variable for it): {note}" for note in wanted["not_expressed"]]
    found.groups[_group_name(name, found.groups)] = {"vars": group, "hosts": hosts}


def _connection(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of :data:`CONNECTION` that are set, as plain values."""
    found: dict[str, Any] = {}
    for name in CONNECTION:
        value = variables.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, bool):
            found[name] = value
        elif isinstance(value, int):
            found[name] = int(value)
        else:
            found[name] = str(value)
    return found


def _shared(
    hosts: dict[str, dict[str, Any]], asked: list[str], variables: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """User and become move to the group where all that were asked have the same: the others are reached like them."""
    moved: dict[str, Any] = {}
    for name in CONNECTION[2:]:
        values = [_connection(variables.get(host, {})).get(name) for host in asked]
        if values[0] is not None and all(value == values[0] for value in values):
            moved[name] = values[0]
            for own in hosts.values():
                own.pop(name, None)
    return moved


def _addresses(facts: Iterable[Mapping[str, Any] | None]) -> dict[str, str]:
    """``{node name: address}`` as the members tell each other; what is no address is left out."""
    found: dict[str, str] = {}
    for each in facts:
        for name, address in (((each or {}).get("pmxcfs") or {}).get("member_addresses") or {}).items():
            try:
                found.setdefault(str(name), str(ipaddress.ip_address(str(address))))
            except ValueError:
                continue
    return found


def _group_name(cluster: str, taken: Iterable[str]) -> str:
    """``cluster_NAME`` in letters, digits and underscores, and not ``taken``."""
    base = name = "cluster_" + re.sub(r"[^A-Za-z0-9_]", "_", cluster)
    number = 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def render(found: Inventory) -> str:
    """The inventory as YAML, always the same for the same nodes: it carries no date."""
    out = ["# Written by playbooks/export.yml from what the nodes are; holds no secret."]
    out += [f"# {text_table.clean(note)}" for note in found.notes]
    out += ["---", "all:", "  children:"]
    for group, content in found.groups.items():
        out.append(f"    {scalar(group)}:")
        if content.get("vars"):
            out.append("      vars:")
            out += _mapping(content["vars"], 8)
        out.append("      hosts:")
        for host, variables in content["hosts"].items():
            out.append(f"        {scalar(host)}:" + ("" if variables else " {}"))
            out += _mapping(variables, 10)
    return "\n".join(out) + "\n"


def _mapping(values: Mapping[str, Any], indent: int) -> list[str]:
    out = []
    for name, value in values.items():
        if isinstance(value, list):
            out.append(f"{' ' * indent}{scalar(name)}:" + ("" if value else " []"))
            out += [f"{' ' * (indent + 2)}- {scalar(item)}" for item in value]
        else:
            out.append(f"{' ' * indent}{scalar(name)}: {scalar(value)}")
    return out


#: Words that YAML 1.1 does not read as text.
_WORDS = frozenset("y n yes no true false on off null".split())
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*|[0-9]{1,3}(\.[0-9]{1,3}){3}")


def scalar(value: Any) -> str:
    """A value as YAML: plain where it can only be text, else in double quotes with every other character escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    escaped = {'"': '\\"', "\\": "\\\\"}
    inner = "".join(
        escaped.get(char, char) if " " <= char <= "~" else f"\\U{ord(char):08x}" for char in text
    )
    return f'"{inner}"'
