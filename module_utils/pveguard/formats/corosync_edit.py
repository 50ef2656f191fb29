"""Edits of a corosync.conf: options, addresses, votes and links; which of them a running Corosync takes, and in what order.

Every edit touches only its own lines and does nothing when the text says so already; the caller raises
config_version. What a reload applies is from votequorum(5), from exec/cfg.c and exec/totemconfig.c of corosync 3.1,
and was tried with two nodes of corosync 3.1.7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..base.errors import PveguardError
from . import corosync_check, corosync_conf
from .corosync_conf import (
    DEFAULT_TOKEN_COEFFICIENT_MS,
    DEFAULT_TOKEN_MS,
    Document,
    Line,
    Section,
    check_value,
    describe,
    indent_of,
    interface_number,
    newline_of,
    next_version,
    parse,
    same_addresses,
)

#: Keys of totem that a reload applies (totem_volatile_config_read, and crypto since 3.1). All others are read at
#: the start only: some are reported as "cannot be changed at run-time" (remove_ro_entries), link_mode is not even that.
RELOADED_TOTEM = frozenset(
    "block_unlisted_ips cancel_token_hold_on_retransmit config_version consensus crypto_cipher crypto_hash crypto_model "
    "downcheck fail_recv_const heartbeat_failures_allowed hold join key keyfile knet_compression_level "
    "knet_compression_model knet_compression_threshold knet_mtu knet_pmtud_interval max_messages max_network_delay merge "
    "miss_count_const secauth send_join seqno_unchanged_const token token_coefficient token_retransmit "
    "token_retransmits_before_loss_const token_warning window_size".split()
)
#: votequorum(5): "Only votes, quorum_votes, expected_votes and two_node can be changed at runtime."
RELOADED_QUORUM = frozenset({"votes", "expected_votes", "two_node"})
#: Keys of an interface section that a reload applies; knet_transport only to a link that is made anew.
RELOADED_LINK = frozenset(
    "linknumber knet_link_priority knet_ping_interval knet_ping_timeout knet_ping_precision knet_pong_count "
    "knet_transport".split()
)
#: What corosync takes where the file says nothing (corosync.conf(5)), for keys that a reload does not apply.
_DEFAULTS = {"totem.transport": "knet", "totem.link_mode": "passive", "totem.ip_version": "ipv6-4"}

#: Names of the options of a link, as the module has them, and their keys.
LINK_KEYS = {
    "priority": "knet_link_priority",
    "transport": "knet_transport",
    "ping_interval": "knet_ping_interval",
    "ping_timeout": "knet_ping_timeout",
    "ping_precision": "knet_ping_precision",
    "pong_count": "knet_pong_count",
}
#: Keys of totem with an option, a guard or a meaning of their own.
RESERVED_TOTEM = {
    "version": "it is always 2",
    "config_version": "it is raised with every change",
    "cluster_name": "a live cluster keeps its name",
    "transport": "every member would have to be stopped at once",
    "token": "use the option token",
    "token_coefficient": "use the option token_coefficient",
    "secauth": "use the option crypto",
    "crypto_cipher": "use the option crypto",
    "crypto_hash": "use the option crypto",
    "key": "the key is /etc/corosync/authkey",
    "keyfile": "the key is /etc/corosync/authkey",
    "nodeid": "it is node_id of a node",
    "interface": "use the option links",
}
RESERVED_QUORUM = {
    "provider": "it is always corosync_votequorum",
    "device": "use 'pvecm qdevice setup' and 'pvecm qdevice remove'",
}


def set_options(doc: Document, section: str, options: Mapping[str, object]) -> bool:
    """Give keys of a top-level section their values; None takes a key off. True when the text changed.

    Booleans become the words that corosync has for that key. Raises PveguardError for a key with an option of its own,
    unless it has that value already.
    """
    reserved = {"totem": RESERVED_TOTEM, "quorum": RESERVED_QUORUM}.get(section, {})
    changed = False
    for key, value in options.items():
        if key in reserved:
            if value is not None and doc.get(section, key) == word(section, key, value):
                continue
            raise PveguardError(f"{section}.{key} is not set this way: {reserved[key]}")
        if value is None:
            changed |= doc.unset(section, key)
        else:
            changed |= doc.set(section, key, word(section, key, value))
    return changed


def word(section: str, key: str, value: object) -> str:
    """A value as corosync writes it. YAML makes a boolean of a bare yes or on."""
    if not isinstance(value, bool):
        return str(value)
    if section == "quorum":
        return "1" if value else "0"
    if section == "logging" and not key.startswith("to_"):
        return "on" if value else "off"
    return "yes" if value else "no"


def set_crypto(doc: Document, cipher: str | None = None, digest: str | None = None) -> bool:
    """Cipher and hash; None leaves one as it is. True when what is in force changed.

    secauth is kept in step: off with neither, on with a cipher where it was off.
    """
    before = doc.crypto
    wanted = (cipher or before[0], digest or before[1])
    if wanted == before:
        return False
    for key, value, old in zip(("crypto_cipher", "crypto_hash"), wanted, before, strict=True):
        if value != old or doc.get("totem", key) is not None:
            doc.set("totem", key, value)
    secauth = doc.get("totem", "secauth")
    if wanted == ("none", "none"):
        if secauth == "on":
            doc.set("totem", "secauth", "off")
    elif secauth is not None and secauth != "on":
        doc.set("totem", "secauth", "on")
    if doc.crypto != wanted:  # what secauth implied before is said outright
        for key, value in zip(("crypto_cipher", "crypto_hash"), wanted, strict=True):
            doc.set("totem", key, value)
    return True


def update_node(
    doc: Document, name: str, addresses: Mapping[int, str] | None = None, votes: int | None = None
) -> bool:
    """Give a listed node exactly these addresses (by link) and votes; None leaves them. True when the text changed.

    Raises PveguardError when the node is not listed.
    """
    section = _node_section(doc, name)
    have = next(node for node in doc.nodes() if node.sections == (section,))
    changed = False
    if addresses is not None:
        if not addresses:
            raise PveguardError(f"{name} needs an address on a link; to take it off the cluster, remove the node")
        if not corosync_conf.same_addresses(have.addresses, addresses):
            changed |= _keep_name(have)
        for number in have.addresses:
            if number not in addresses:
                changed |= section.remove(f"ring{number}_addr")
        for number, address in sorted(addresses.items()):
            changed |= _set_address(section, number, address)
    if votes is not None and have.votes != votes:
        changed |= section.set("quorum_votes", votes)
    return changed


def set_link(
    doc: Document,
    number: int,
    addresses: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
) -> bool:
    """Addresses of nodes (by name) on a link, and its options (names of LINK_KEYS; None takes one off).

    An interface section is made where there are options, or where the other links have one. True when the text
    changed. Raises PveguardError for a number beyond knet's, an unknown option, a node that is not listed.
    """
    if not 0 <= number < corosync_conf.MAX_LINKS:
        raise PveguardError(f"link {number}: knet has the links 0 to {corosync_conf.MAX_LINKS - 1}")
    changed = False
    for name, address in (addresses or {}).items():
        section = _node_section(doc, name)
        if _key(section.get(f"ring{number}_addr")) != _key(address):
            changed |= _keep_name(next(node for node in doc.nodes() if node.sections == (section,)))
        changed |= _set_address(section, number, address)
    keys: dict[str, object] = {}
    for option, value in (options or {}).items():
        if option not in LINK_KEYS:
            raise PveguardError(f"link {number}: unknown option {option!r}, known are {', '.join(sorted(LINK_KEYS))}")
        keys[LINK_KEYS[option]] = value
    sections = [part for part in doc.interface_sections() if interface_number(part) == number]
    wanted = {key: str(value) for key, value in keys.items() if value is not None}
    new_here = number in doc.link_numbers() and bool(doc.interface_sections())
    if not sections and (wanted or new_here):
        sections = [_add_interface(doc, number)]
        changed = True
    for key, value in keys.items():
        if value is None:
            for part in sections:
                changed |= part.remove(key)
            continue
        holder = [part for part in sections if part.get(key) is not None] or sections
        changed |= holder[-1].set(key, str(value))
    return changed


def remove_link(doc: Document, number: int) -> bool:
    """Take a link off every node, with its interface section. True when the text changed."""
    doc.require_one_nodelist()
    changed = False
    for node in doc.nodes():
        section = node.sections[0]
        if number in node.addresses:
            changed |= _keep_name(node)
        for key in [line.key for line in section.pairs() if _link_of(line.key) == number]:
            changed |= section.remove(key or "")
    for totem in doc.root.sections("totem"):
        kept = [
            item
            for item in totem.items
            if not (isinstance(item, Section) and item.name == "interface" and interface_number(item) == number)
        ]
        changed |= len(kept) != len(totem.items)
        totem.items = kept
    return changed


def addresses_of(doc: Document) -> dict[int, dict[str, str]]:
    """``{link: {node: address}}``."""
    links: dict[int, dict[str, str]] = {}
    for node in doc.nodes():
        for number, address in node.addresses.items():
            links.setdefault(number, {})[node.label] = address
    return links


def link_options(doc: Document, number: int) -> dict[str, str]:
    """Options of a link by the names of LINK_KEYS; the last value counts."""
    found: dict[str, str] = {}
    for part in doc.interface_sections():
        if interface_number(part) == number:
            for name, key in LINK_KEYS.items():
                if value := part.get(key):
                    found[name] = value
    return found


def unchanged_links(before: Document, after: Document) -> set[int]:
    """Links that both texts have, with the same addresses for the nodes in both and the same transport."""
    old, new = addresses_of(before), addresses_of(after)
    same = set()
    for number in old.keys() & new.keys():
        nodes = {node.label for node in before.nodes()} & {node.label for node in after.nodes()}
        if all(_key(old[number].get(name)) == _key(new[number].get(name)) for name in nodes) and (
            _transport(before, number) == _transport(after, number)
        ):
            same.add(number)
    return same


def steps(before: Document, after: Document) -> list[str]:
    """The texts to be written one after the other so that Corosync can reload each, the last is ``after``'s.

    A reload refuses a link whose addresses or transport differ ("To reconfigure an interface it must be deleted and
    recreated"), so such a link is first taken off. A link that is new comes before one that goes. config_version is
    not touched here.
    """
    old, new = set(addresses_of(before)), set(addresses_of(after))
    moved = sorted((old & new) - unchanged_links(before, after))
    added = sorted(new - old)
    if not moved and not (added and old - new):
        return [after.text()]
    current, texts = before.text(), []
    if added:
        current = _with_links(current, after, added)
        texts.append(current)
    for number in moved:
        without = corosync_conf.parse(current)
        remove_link(without, number)
        texts.append(without.text())
        current = _with_links(current, after, [number])
        texts.append(current)
    if current == after.text():
        return texts
    if unchanged_links(corosync_conf.parse(current), after) and moved and not old - new:
        # What else changes goes with the last link.
        texts[-1] = after.text()
    else:
        texts.append(after.text())
    return texts


def changed_keys(before: Document, after: Document) -> list[str]:
    """Keys whose value differs, as ``section.key``, without those of nodes and links. config_version is left out."""
    old, new = dict(_flat(before.root)), dict(_flat(after.root))
    differ = [key for key in sorted(old.keys() | new.keys()) if _value(old, key) != _value(new, key)]
    return [key for key in differ if key != "totem.config_version"]


def restart_keys(before: Document, after: Document) -> list[str]:
    """Changed keys that a running Corosync takes only at its next start."""
    found = []
    for key in changed_keys(before, after):
        section, _, rest = key.partition(".")
        live = (
            section in ("logging", "nodelist")
            or (section == "totem" and rest in RELOADED_TOTEM)
            # The QDevice's own daemon reads its section.
            or (section == "quorum" and (rest in RELOADED_QUORUM or rest.startswith("device.")))
        )
        if not live:
            found.append(key)
    for number in sorted(set(addresses_of(before)) & set(addresses_of(after))):
        old, new = _interface_values(before, number), _interface_values(after, number)
        found += [
            f"totem.interface.{number}.{key}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key not in RELOADED_LINK
        ]
    return found


def _with_links(text: str, target: Document, numbers: Sequence[int]) -> str:
    doc = corosync_conf.parse(text)
    listed = {node.name for node in doc.nodes()}
    for number in numbers:
        addresses = {
            name: address for name, address in addresses_of(target).get(number, {}).items() if name in listed
        }
        options: dict[str, object] = dict.fromkeys(link_options(doc, number))
        set_link(doc, number, addresses, {**options, **link_options(target, number)})
    return doc.text()


def _transport(doc: Document, number: int) -> str:
    return link_options(doc, number).get("transport", "udp")


def _interface_values(doc: Document, number: int) -> dict[str, str]:
    return {
        line.key or "": line.value
        for part in doc.interface_sections()
        if interface_number(part) == number
        for line in part.pairs()
    }


def _flat(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    subsystem = section.get("subsys") if section.name == "logger_subsys" else None
    if subsystem:
        prefix += f"{subsystem}."
    for item in section.items:
        if isinstance(item, Line):
            if item.key is not None:
                yield prefix + item.key, item.value
        elif not (item.name == "interface" and prefix == "totem.") and item.name != "nodelist":
            yield from _flat(item, f"{prefix}{item.name}.")


def _value(values: Mapping[str, str], key: str) -> str | None:
    return values.get(key, _DEFAULTS.get(key))


def _key(address: str | None) -> str | None:
    return None if address is None else corosync_conf.address_key(address)


def _keep_name(node: corosync_conf.Node) -> bool:
    """Give a node without a name the one that its ring0_addr stands for, before that changes. True when it got one.

    With a second link corosync wants a name of every node.
    """
    return not node.named and node.name is not None and node.sections[0].set("name", node.name)


def _node_section(doc: Document, name: str) -> Section:
    doc.require_one_nodelist()
    found = doc.node(name)
    if found is None:
        listed = ", ".join(node.label for node in doc.nodes()) or "no node"
        raise PveguardError(f"corosync.conf lists no node {name!r}, it lists {listed}")
    return found.sections[0]


_link_of = corosync_conf.link_of


def _set_address(section: Section, number: int, address: str) -> bool:
    key = f"ring{number}_addr"
    # The same address in another form is no change.
    if _key(section.get(key)) == _key(address):
        return False
    before = [line for line in section.pairs() if (link := _link_of(line.key)) is not None and link < number]
    place = before[-1] if before else None
    return section.set(key, address, after=place)


def _add_interface(doc: Document, number: int) -> Section:
    siblings = doc.interface_sections()
    totem = next((part for part in doc.root.sections("totem") if siblings and siblings[-1] in part.items), None)
    if totem is not None:
        sibling = siblings[-1]
        outer, newline = indent_of(sibling.opening), newline_of(sibling.opening)
        pairs = sibling.pairs()
        inner = indent_of(pairs[0].raw) if pairs else outer + "  "
        where = next(i for i, item in enumerate(totem.items) if item is sibling) + 1
    else:
        totem = doc.ensure("totem")
        pairs = totem.pairs()
        newline = newline_of(totem.opening)
        outer = indent_of(pairs[-1].raw) if pairs else indent_of(totem.opening) + "  "
        inner, where = outer + (outer[len(indent_of(totem.opening)) :] or "  "), len(totem.items)
    line = Line(f"{inner}linknumber: {number}{newline}", "linknumber", str(number))
    section = Section("interface", [line], f"{outer}interface {{{newline}", f"{outer}}}{newline}")
    totem.items.insert(where, section)
    return section


def render_new(
    cluster_name: str,
    nodes: Sequence[Mapping[str, object]],
    token_ms: int = DEFAULT_TOKEN_MS,
    config_version: int = 1,
    token_coefficient_ms: int = DEFAULT_TOKEN_COEFFICIENT_MS,
) -> str:
    """The text of a new cluster's corosync.conf, with the settings ``pvecm create`` chooses.

    ``nodes``: ``{name, node_id, links: [address, ...], votes (1)}``. Raises PveguardError for what a member
    must not have.
    """
    out = ["logging {", "  debug: off", "  to_syslog: yes", "}", "", "nodelist {"]
    links = 0
    for node in nodes:
        addresses = list(node["links"])  # type: ignore[call-overload]
        links = max(links, len(addresses))
        check_value("name", str(node["name"]))
        out += ["  node {", f"    name: {node['name']}", f"    nodeid: {node['node_id']}"]
        out += [f"    quorum_votes: {node.get('votes', 1)}"]
        out += [f"    ring{number}_addr: {address}" for number, address in enumerate(addresses)]
        out += ["  }"]
    out += ["}", "", "quorum {", "  provider: corosync_votequorum", "}", "", "totem {"]
    out += [f"  cluster_name: {cluster_name}", f"  config_version: {config_version}"]
    for number in range(links):
        out += ["  interface {", f"    linknumber: {number}", "  }"]
    out += ["  ip_version: ipv4-6", "  link_mode: passive", "  secauth: on", f"  token: {token_ms}"]
    out += [f"  token_coefficient: {token_coefficient_ms}", "  transport: knet", "  version: 2", "}"]
    text = "\n".join(out) + "\n"
    check_value("cluster_name", cluster_name)
    corosync_check.refuse_problems(parse(text))
    return text


def add_node(doc: Document, name: str, node_id: int, links: Sequence[str], votes: int = 1) -> bool:
    """Add a node to the nodelist and raise config_version. False when it is there already with the same
    addresses. ``links``: the index is the link's number, an empty text a link that it does not have.

    Raises PveguardError when a node of that name or id is there with other values, when the result would be
    refused by :func:`problems`, or when a QDevice is configured (its votes depend on the number of nodes).
    """
    doc.require_one_nodelist()
    for present in doc.nodes():
        if present.name != name and present.node_id != node_id:
            continue
        wanted = {number: address for number, address in enumerate(links) if address}
        if present.name == name and present.node_id == node_id and same_addresses(present.addresses, wanted):
            return False
        raise PveguardError(
            f"corosync.conf already has {describe(present.name, present.node_id, present.addresses)}, "
            "wanted "
            f"{describe(name, node_id, wanted)}: correct corosync_node_id or corosync_links of this host"
        )
    if doc.qdevice:
        raise PveguardError(
            "corosync.conf has a QDevice, which must not be there while a node is added: remove it with "
            "'pvecm qdevice remove' on a member, add the node, and set it up again"
        )
    next_version(doc.config_version)
    before = doc.text()
    siblings = doc.node_sections()
    if siblings:
        parent = next(part for part in doc.root.sections("nodelist") if siblings[-1] in part.items)
        outer, inner = indent_of(siblings[-1].opening), None
        pairs = siblings[-1].pairs()
        inner = indent_of(pairs[0].raw) if pairs else outer + "  "
        where = parent.items.index(siblings[-1]) + 1
    else:
        parent = doc.ensure("nodelist")
        outer = indent_of(parent.opening) + "  "
        inner, where = outer + "  ", len(parent.items)
    newline = newline_of(parent.opening)
    section = Section("node", [], f"{outer}node {{{newline}", f"{outer}}}{newline}")
    values: list[tuple[str, object]] = [("name", name), ("nodeid", node_id), ("quorum_votes", votes)]
    values += [(f"ring{number}_addr", address) for number, address in enumerate(links) if address]
    for key, value in values:
        check_value(key, str(value))
        section.items.append(Line(f"{inner}{key}: {value}{newline}", key, str(value)))
    # A blank line between the nodes before is kept up.
    if where >= 2 and siblings and len(siblings) > 1:
        previous = parent.items[where - 2]
        if isinstance(previous, Line) and not previous.raw.strip():
            parent.items.insert(where, Line(previous.raw))
            where += 1
    parent.items.insert(where, section)
    doc.bump()
    try:
        corosync_check.refuse_problems(doc)
    except PveguardError:
        doc.root = parse(before).root
        raise
    return True


def remove_node(doc: Document, name: str) -> bool:
    """Take a node off the nodelist and raise config_version. False when it is not there.

    Raises PveguardError for the last node, and when a QDevice is configured.
    """
    node = doc.node(name)
    if node is None:
        return False
    doc.require_one_nodelist()
    (section,) = node.sections
    if len(doc.node_sections()) == 1:
        raise PveguardError(f"corosync.conf has no other node than {name}; the last one stays")
    if doc.qdevice:
        raise PveguardError(
            "corosync.conf has a QDevice, which must not be there while a node is removed: remove it with "
            "'pvecm qdevice remove' on a member first"
        )
    next_version(doc.config_version)
    for part in doc.root.sections("nodelist"):
        index = next((i for i, item in enumerate(part.items) if item is section), None)
        if index is not None:
            del part.items[index]
            # The blank line that stood between it and the node before goes with it.
            if index > 0 and isinstance(blank := part.items[index - 1], Line) and not blank.raw.strip():
                del part.items[index - 1]
    doc.bump()
    return True
