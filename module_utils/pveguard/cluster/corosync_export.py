"""A live cluster's corosync.conf in the form in which the role takes it as input, and as an inventory.

Pure: works on texts and on the facts of the module ``node_info``. No secret is in what it makes: of the variables that
Ansible has for a host only those of :data:`CONNECTION` are taken.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..base import text_table
from ..base.errors import PveguardError
from ..corosync import probe_members
from ..formats import corosync_check, corosync_conf, corosync_edit
from ..formats.corosync_conf import Document, Node, Section
from . import corosync_compare
from . import inventory as inventory_rules
from .corosync_views import View

#: How Ansible reaches a host, as far as that is no secret. The first two are a host's own.
CONNECTION = ("ansible_host", "ansible_port", "ansible_user", "ansible_become")

#: Keys that become part of ``corosync_totem``, ``corosync_logging`` and ``corosync_quorum``, each with what Corosync takes
#: where the file says nothing (corosync.conf(5) and votequorum(5) of 3.1.7); None where that depends on other settings or
#: on the build. A key that is not here stays a comment, whatever it holds. So do two_node, expected_votes and votes: they
#: belong to the nodes of the moment, and as a wish would come back after a join or the setup of a QDevice.
_KEYS: dict[str, dict[str, str | None]] = {
    "totem": {
        "block_unlisted_ips": "yes",
        "cancel_token_hold_on_retransmit": "no",
        "consensus": None,
        "crypto_model": None,
        "downcheck": "1000",
        "fail_recv_const": "2500",
        "heartbeat_failures_allowed": "0",
        "hold": None,
        "ip_version": "ipv6-4",
        "join": "50",
        "knet_compression_level": None,
        "knet_compression_model": "none",
        "knet_compression_threshold": None,
        "knet_mtu": "0",
        "knet_pmtud_interval": "30",
        "link_mode": "passive",
        "max_messages": "17",
        "max_network_delay": "50",
        "merge": "200",
        "miss_count_const": "5",
        "netmtu": None,
        "send_join": "0",
        "seqno_unchanged_const": "30",
        "token_retransmit": None,
        "token_retransmits_before_loss_const": "4",
        "token_warning": "75",
        # As it is: it cannot be changed this way.
        "transport": "knet",
        "window_size": "50",
    },
    "logging": {
        "blackbox": "on",
        "debug": "off",
        "fileline": "off",
        "function_name": "off",
        "logfile": None,
        "logfile_priority": "info",
        "syslog_facility": "daemon",
        "syslog_priority": "info",
        "timestamp": None,
        "to_logfile": "no",
        "to_stderr": "yes",
        "to_syslog": "yes",
    },
    "quorum": {
        "allow_downscale": "0",
        "auto_tie_breaker": "0",
        "auto_tie_breaker_node": "lowest",
        "expected_votes_tracking": "0",
        "last_man_standing": "0",
        "last_man_standing_window": "10000",
        "wait_for_all": "0",
    },
}
#: The same for the options of a link, by their names in ``corosync_link_options``.
_LINK_OPTIONS: dict[str, str | None] = {
    "priority": None,
    "transport": "udp",
    "ping_interval": None,
    "ping_timeout": None,
    "ping_precision": "2048",
    "pong_count": "2",
}
_CRYPTO = ("totem.secauth", "totem.crypto_cipher", "totem.crypto_hash")
#: Statements that say nothing of what an operator chose: a counter, and what every inventory has.
_NOT_SETTINGS = ("totem.config_version", "totem.cluster_name")


def desired(text: str, probes: Collection[int] = ()) -> dict[str, Any]:
    """What the inventory would say of this corosync.conf. ``probes``: node ids of those members that are probes.

    ``cluster``: variables of the group: ``corosync_cluster_name``; ``corosync_token`` in ms where the file has one;
    ``corosync_token_coefficient`` in ms, ``corosync_link_options``, ``corosync_crypto``, ``corosync_totem``,
    ``corosync_logging`` and ``corosync_quorum``, with what the file says other than a new cluster's or, where that says
    nothing, Corosync. ``hosts``: ``{node name: {corosync_node_id, corosync_links}}``. ``not_expressed``: sentences on
    what no variable says.

    All of it is what the file says already: the role changes nothing for it. Raises CorosyncConfError for a text that
    cannot be read.
    """
    document = corosync_conf.parse(text, "/etc/pve/corosync.conf")
    hosts: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for node in document.nodes():
        notes += _notes(node, node.node_id in probes)
        links = [_plain_address(address) for _, address in sorted(node.addresses.items())]
        if node.name:
            hosts[node.name] = {"corosync_node_id": node.node_id, "corosync_links": links}
    variables, left = _settings(document)
    cluster = {"corosync_cluster_name": document.cluster_name, **variables}
    return {"cluster": cluster, "hosts": hosts, "not_expressed": notes + left}


def _plain_address(text: str) -> str:
    """An address as it is, but for the forms of old that an inventory does not take (``10.0.0.01``)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return str(corosync_conf.address(text) or text)
    return text


def _notes(node: Node, is_probe: bool) -> list[str]:
    notes = []
    if not node.named:
        notes.append(
            f"{node.label} has no name in corosync.conf; that of ring0_addr is taken"
            if node.name
            else f"{node.label} has no name, by which the cluster file system finds it"
        )
    if gaps := _gaps(node):
        notes.append(gaps)
    if node.votes != 1 and not (node.votes == 0 and is_probe):
        notes.append(f"{node.label} has {node.votes} votes (quorum_votes)")
    known = {"name", "nodeid", "quorum_votes", *(f"ring{number}_addr" for number in node.addresses)}
    return notes + [
        f"{node.label} has {_shown(name, value)}"
        for name, value in {key: value for section in node.sections for key, value in _statements(section)}.items()
        if name not in known
    ]


def _gaps(node: Node) -> str:
    """Why no list of addresses says what a node has; empty where one does."""
    if sorted(node.addresses) == list(range(len(node.addresses))):
        return ""
    keys = ", ".join(f"ring{number}_addr" for number in sorted(node.addresses))
    return f"{node.label} has {keys}, and the place of an address in corosync_links is the number of its link"


def _settings(document: Document) -> tuple[dict[str, Any], list[str]]:
    """Variables for what is outside of the nodelist and differs from the defaults; the rest of it, as ``key: value``.

    Every wish is put to the edits that the role makes: what they refuse or would write in another way is no variable.
    """
    example = corosync_conf.parse(corosync_edit.render_new("new", [{"name": "n", "node_id": 1, "links": ["192.0.2.1"]}]))
    defaults = _defaults(document, example)
    found = dict(_statements(document.root))
    left = {
        name: value
        for name, value in found.items()
        if defaults.get(name) != value
        and name not in _NOT_SETTINGS
        and not name.startswith("nodelist.")
        and not name.endswith(".linknumber")
    }
    tried = corosync_conf.parse(document.text())
    variables: dict[str, Any] = {}
    for key in ("token", "token_coefficient"):
        name = f"totem.{key}"
        number = _plain(found.get(name, ""))
        if isinstance(number, int) and (key == "token" or name in left) and _stays(tried.set, "totem", key, number):
            variables[f"corosync_{key}"] = number
            left.pop(name, None)
    links = [link for number in document.link_numbers() if len(link := _link(document, number, left, tried)) > 1]
    if links:
        variables["corosync_link_options"] = links
    cipher, digest = document.crypto
    sound = cipher in corosync_check.CIPHERS and digest in corosync_check.HASHES
    if sound and document.crypto != example.crypto:
        variables["corosync_crypto"] = {"cipher": cipher, "hash": digest}
    for name in _CRYPTO if sound else ():
        left.pop(name, None)
    for part, keys in _KEYS.items():
        wishes: dict[str, Any] = {}
        for key in keys:
            name = f"{part}.{key}"
            value = _plain(left.get(name, ""))
            if name in left and _readable(value) and _stays(corosync_edit.set_options, tried, part, {key: value}):
                wishes[key] = value
                del left[name]
        if wishes:
            variables[f"corosync_{part}"] = wishes
    return variables, [_shown(name, value) for name, value in left.items()]


def _defaults(document: Document, example: Document) -> dict[str, str | None]:
    """What is in force for each key where the inventory says nothing: a new cluster's value, else Corosync's own."""
    found = {f"{part}.{key}": value for part, keys in _KEYS.items() for key, value in keys.items()}
    found["quorum.two_node"] = "0"
    # votequorum(5): two_node switches it on.
    found["quorum.wait_for_all"] = "1" if document.two_node else "0"
    for number in document.link_numbers():
        for option, value in _LINK_OPTIONS.items():
            found[_link_key(number, option)] = value
    return {**found, **dict(_statements(example.root))}


def _link(document: Document, number: int, left: dict[str, str], tried: Document) -> dict[str, Any]:
    """A link as in ``corosync_link_options``; what it says is taken from ``left``."""
    link: dict[str, Any] = {"number": number}
    for option, text in corosync_edit.link_options(document, number).items():
        value = _plain(text)
        right = value in corosync_check.LINK_TRANSPORTS if option == "transport" else isinstance(value, int)
        name = _link_key(number, option)
        if name in left and right and _stays(corosync_edit.set_link, tried, number, None, {option: value}):
            link[option] = value
            del left[name]
    return link


def _link_key(number: int, option: str) -> str:
    return f"totem.{_interface(number)}.{corosync_edit.LINK_KEYS[option]}"


def _interface(number: int | str | None) -> str:
    return f"interface[{number}]" if number else "interface"


def _stays(edit: Callable[..., bool], *arguments: Any) -> bool:
    """Whether an edit is taken and changes nothing."""
    try:
        return not edit(*arguments)
    except PveguardError:
        return False


def _plain(value: str) -> int | str:
    """A number where the text is exactly that of one."""
    return int(value) if re.fullmatch("0|[1-9][0-9]{0,17}", value) else value


def _readable(value: int | str) -> bool:
    """Whether a value can stand in an inventory as it is; what is not UTF-8 in the file is not."""
    return isinstance(value, int) or (value.isprintable() and "\ufffd" not in value)


def _shown(name: str, value: str) -> str:
    return f"{name}: {'(not shown)' if _is_secret(name) else value}"


#: A key may have any name where Corosync does not know it, so more is held back than has to be.
_SECRET = re.compile(r"(?:\A|[._-])(?:key|psk|pass[a-z]*|pwd|secrets?|private|credentials?|authkey)(?:[._-]|\Z)", re.I)


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) or inventory_rules.is_secret_name(name.rpartition(".")[2])


def _statements(section: Section, path: str = "") -> list[tuple[str, str]]:
    """``(dotted name, value)`` of every statement; sections of a link carry its number, those of a logger its name."""
    found = [(f"{path}{line.key}", line.value) for line in section.pairs()]
    for item in section.items:
        if isinstance(item, Section):
            name = item.name
            if name == "interface":
                number = corosync_conf.interface_number(item)
                name = _interface(item.get("linknumber") if number is None else number)
            elif name == "logger_subsys" and (subsystem := item.get("subsys")):
                name = f"{name}[{subsystem}]"
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
                return desired(copy["text"], probe_members.ids(info))
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
        if _is_template(value)
    ]
    return found


def _is_template(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_is_template, value.values()))
    if isinstance(value, list):
        return any(map(_is_template, value))
    return isinstance(value, str) and bool(re.search(r"\{[{%#]", value))


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
    members = corosync_conf.parse(copy.text).nodes()
    gaps = [text for node in members if (text := _gaps(node))]
    if gaps:
        found.errors.append(f"cluster {name} cannot be described: {'; '.join(gaps)}")
        return
    is_probe = {view.node_id for view in views if view.probe and view.node_id is not None}
    wanted = desired(copy.text, is_probe)
    hosts: dict[str, dict[str, Any]] = {}
    there = {host for group in found.groups.values() for host in group["hosts"]}
    by_name = {view.name: view for view in views}
    addresses = _addresses(nodes[view.host] for view in asked if view.host)
    for member, own in wanted["hosts"].items():
        view = by_name.get(member)
        given = view.host if view and view.host else None
        host = given if given and corosync_conf.short_name(given) == member else member
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
    group: dict[str, Any] = dict(wanted["cluster"])
    if group.get("corosync_token") == corosync_conf.DEFAULT_TOKEN_MS:
        del group["corosync_token"]
    # RAM state is refused where HA is in use, and this run would describe a cluster that no run accepts.
    if any((nodes[view.host] or {}).get("ha", {}).get("resources") for view in asked if view.host):
        group["ram_state_enabled"] = False
        found.notes.append(f"cluster {name} uses HA, so its state stays on disk (ram_state_enabled: false)")
    group_of_probes = {host: own for host, own in hosts.items() if own.get("corosync_node_id") in is_probe}
    hosts = {host: own for host, own in hosts.items() if host not in group_of_probes}
    group |= _shared(hosts, [view.host or "" for view in asked], variables)
    found.notes += [f"cluster {name}, left as it is (in no variable): {note}" for note in wanted["not_expressed"]]
    found.groups[_group_name(name, found.groups)] = {"vars": group, "hosts": hosts}
    # They are hosts of their own group: what is said of the members is not said of them.
    votes = {node.node_id: node.votes for node in members}
    for host, own in group_of_probes.items():
        vote = {"probe_votes": 1} if votes.get(own["corosync_node_id"]) else {}
        probes = found.groups.setdefault(probe_members.GROUP, {"hosts": {}})["hosts"]
        probes[host] = {"corosync_cluster_name": name, **own, **vote}


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
        head = f"{' ' * indent}{scalar(name)}:"
        if isinstance(value, list):
            out.append(head + ("" if value else " []"))
            for item in value:
                lines = (_mapping(item, indent + 4) or ["{}"]) if isinstance(item, Mapping) else [scalar(item)]
                out += [f"{' ' * (indent + 2)}- {lines[0].lstrip(' ')}", *lines[1:]]
        elif isinstance(value, Mapping):
            out += [head + ("" if value else " {}"), *_mapping(value, indent + 2)]
        else:
            out.append(f"{head} {scalar(value)}")
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
