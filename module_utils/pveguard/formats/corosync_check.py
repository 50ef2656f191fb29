# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a corosync.conf: what ``corosync -t`` accepts and a cluster suffers from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..base.errors import PveguardError
from .corosync_conf import (
    DEFAULT_TOKEN_MS,
    MAX_LINE_BYTES,
    MAX_LINKS,
    MAX_NODE_ID,
    NODELISTS,
    TRANSPORTS,
    Document,
    Line,
    Node,
    Section,
    address,
    address_key,
    interface_number,
    is_host_name,
    link_of,
    number,
)
from .corosync_version import MAX_CONFIG_VERSION

#: The shortest token in ms that corosync takes; 0 stands for the default ("may not be less than (30 ms)").
MIN_TOKEN_MS = 30
#: Bytes of a key with the names of its sections before it (cmap takes 3 to 254; "makes total cmap path too long").
KEY_BYTES = range(3, 255)
#: Keys of which corosync wants a number (else it does not start), with the highest one; by their section.
NUMBERS: dict[str, dict[str, int]] = {
    "totem": dict.fromkeys(
        "version nodeid threads token token_coefficient token_retransmit token_warning hold "
        "token_retransmits_before_loss_const join send_join consensus merge downcheck fail_recv_const "
        "seqno_unchanged_const heartbeat_failures_allowed max_network_delay window_size max_messages miss_count_const "
        "netmtu knet_pmtud_interval knet_mtu knet_compression_threshold rrp_token_expired_timeout "
        "rrp_problem_count_timeout rrp_problem_count_threshold rrp_problem_count_mcast_threshold "
        "rrp_autorecovery_check_timeout".split(),
        2**32 - 1,
    ),
    "totem.interface": {
        **dict.fromkeys(("ttl", "knet_link_priority"), 2**8 - 1),
        "mcastport": 2**16 - 1,
        **dict.fromkeys(("knet_ping_interval", "knet_ping_timeout", "knet_ping_precision", "knet_pong_count"), 2**32 - 1),
    },
    "nodelist.node": dict.fromkeys(("nodeid", "quorum_votes"), 2**32 - 1),
    "quorum": {
        **dict.fromkeys(("expected_votes", "votes", "last_man_standing_window", "leaving_timeout"), 2**32 - 1),
        **dict.fromkeys(
            "two_node expected_votes_tracking allow_downscale wait_for_all auto_tie_breaker last_man_standing".split(), 2**8 - 1
        ),
    },
    "quorum.device": {**dict.fromkeys(("timeout", "sync_timeout", "votes"), 2**32 - 1), "master_wins": 2**8 - 1},
}
LINK_TRANSPORTS = ("udp", "sctp")
LINK_MODES = ("passive", "active", "rr")
IP_VERSIONS = ("ipv4", "ipv6", "ipv4-6", "ipv6-4")
CIPHERS = ("none", "aes256", "aes192", "aes128")
HASHES = ("none", "md5", "sha1", "sha256", "sha384", "sha512")
#: The addresses that a host name stands for; empty when it does not resolve.
Resolve = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Problem:
    """Something ``corosync -t`` accepts and a cluster suffers from. ``severity`` is ``error`` or
    ``warning``."""

    severity: str
    message: str


def problems(
    doc: Document, with_pmxcfs: bool = True, resolve: Resolve | None = None, probes: Collection[int] = ()
) -> list[Problem]:
    """Semantic mistakes, most serious first.

    ``with_pmxcfs``: the cluster carries the cluster file system. ``resolve`` looks host names up; without it none
    is looked up, so that the answer depends on the text alone. ``probes``: ids of nodes that have no vote on purpose.
    """
    found = [*_of_nodes(doc, with_pmxcfs), *_of_addresses(doc, resolve), *_of_links(doc)]
    found += _of_quorum(doc, with_pmxcfs, probes)
    found += [*_of_totem(doc, with_pmxcfs), *_of_crypto(doc), *_of_lines(doc), *_of_keys(doc.root)]
    return sorted(found, key=lambda problem: problem.severity)


def refuse_problems(
    doc: Document,
    with_pmxcfs: bool = True,
    resolve: Resolve | None = None,
    known: Iterable[Problem] = (),
) -> None:
    """Raise PveguardError that lists every error of :func:`problems`, but for those ``known`` before."""
    old = {problem.message for problem in known}
    errors = [
        problem.message
        for problem in problems(doc, with_pmxcfs, resolve)
        if problem.severity == "error" and problem.message not in old
    ]
    if errors:
        raise PveguardError("corosync.conf would be wrong: " + "; ".join(errors))


def _error(message: str) -> Problem:
    return Problem("error", message)


def _warning(message: str) -> Problem:
    return Problem("warning", message)


def _of_totem(doc: Document, with_pmxcfs: bool) -> Iterator[Problem]:
    if not doc.cluster_name:
        yield _error("totem.cluster_name is missing")
    if with_pmxcfs and not doc.config_version:
        yield _error("totem.config_version is missing or 0; the copy to the other nodes needs a number above 0")
    given = doc.get("totem", "config_version")
    if given is not None and doc.config_version is None:
        yield _error(f"totem.config_version is {given!r}, wanted a number up to {MAX_CONFIG_VERSION}; corosync ends at it")
    if number(version := doc.get("totem", "version")) != 2:
        yield _error(f"totem.version is {version}, wanted 2")
    transport = doc.transport
    if transport not in TRANSPORTS:
        yield _error(f"totem.transport is {transport!r}, wanted {_or(TRANSPORTS)}")
    elif transport != "knet":
        yield _warning(f"totem.transport is {transport}: no second link and no encryption, wanted knet")
        if len(doc.link_numbers()) > 1:
            yield _error(f"totem.transport is {transport} with {len(doc.link_numbers())} links; only knet carries several")
    if (mode := doc.get("totem", "link_mode")) is not None and mode not in LINK_MODES:
        yield _error(f"totem.link_mode is {mode!r}, wanted {_or(LINK_MODES)}")
    if (version := doc.get("totem", "ip_version")) is not None and version not in IP_VERSIONS:
        yield _error(f"totem.ip_version is {version!r}, wanted {_or(IP_VERSIONS)}")
    if doc.token_ms is not None and 0 < doc.token_ms < MIN_TOKEN_MS:
        yield _error(f"totem.token is {doc.token_ms}, wanted {MIN_TOKEN_MS} ms at least (0 stands for {DEFAULT_TOKEN_MS})")
    consensus, token = number(doc.get("totem", "consensus")), doc.effective_token_ms
    # corosync.conf(5): the minimum value for consensus must be 1.2 * token. 0 is as if there were none.
    if consensus and consensus * 10 < token * 12:
        yield _warning(
            f"totem.consensus is {consensus} ms, below 1.2 times the token of {token} ms; without it corosync takes "
            "the right value"
        )


def _of_nodes(doc: Document, with_pmxcfs: bool) -> Iterator[Problem]:
    nodes = doc.nodes()
    if not nodes:
        yield _error("nodelist has no node")
    yield from (_error(text) for text in _duplicates(nodes))
    if doc.nodelists > 1:
        yield _error(f"{doc.nodelists} {NODELISTS}")
    links = {number for node in nodes for number in node.addresses}
    highest = MAX_NODE_ID.get(doc.transport, 2**32 - 1)
    for node in nodes:
        if not node.node_id:
            yield _error(f"{node.label} has no nodeid above 0")
        elif node.node_id > highest:
            yield _error(f"{node.label} has the nodeid {node.node_id}; {doc.transport} takes 1 to {highest}")
        if with_pmxcfs and not node.name:
            yield _error(
                f"{node.label} has no name, and its ring0_addr is an address; the cluster file system finds a node by its host "
                "name: add 'name: HOSTNAME'"
            )
        if not node.named and len(links) > 1 and doc.transport == "knet":
            yield _error(f"{node.label} has no name; with more than one link corosync wants one of every node")
        yield from _of_rings(node)
        missing = sorted(links - set(node.addresses))
        if not node.addresses:
            yield _error(f"{node.label} has no ring0_addr")
        elif missing:
            keys = ", ".join(f"ring{number}_addr" for number in missing)
            yield _error(f"{node.label} has no {keys}, which other nodes have")
    if links and max(links) >= MAX_LINKS:
        yield _error(f"link {max(links)} is beyond corosync's {MAX_LINKS} links (0 to {MAX_LINKS - 1})")


def _of_rings(node: Node) -> Iterator[Problem]:
    for section in node.sections:
        for line in section.pairs():
            if re.fullmatch(r"ring[0-9]+_addr", line.key or "", flags=re.ASCII):
                if not line.value:
                    yield _error(f"{line.key} of {node.label} is empty; corosync does not start with it")
                elif link_of(line.key) is None:
                    yield _error(f"{line.key} of {node.label}: the number of a link has no leading zeros")
        for inner in (item for item in section.items if isinstance(item, Section)):
            yield _error(f"{node.label} has a section {inner.name!r}, at whose end corosync takes the node to end")


def _of_addresses(doc: Document, resolve: Resolve | None) -> Iterator[Problem]:
    wanted = {"ipv4": 4, "ipv6": 6}.get(doc.get("totem", "ip_version") or "")
    families: dict[int, tuple[int, str]] = {}
    owners: dict[str, str] = {}
    for node in doc.nodes():
        for link, text in sorted(node.addresses.items()):
            label = f"ring{link}_addr of {node.label}"
            parsed = address(text)
            if parsed is None and not is_host_name(text):
                yield _error(f"{label} is {text!r}, neither an address nor a host name")
                continue
            if parsed is None:
                names = list(resolve(text)) if resolve else []
                if resolve and not names:
                    yield _error(f"{label} is the host name {text}, which does not resolve here")
                looked_up = [found for name in names if (found := address(name))]
                matching = [found for found in looked_up if wanted in (None, found.version)]
                if looked_up and not matching:
                    yield _error(f"{label}: {text} has no address that totem.ip_version ipv{wanted} allows")
                if _is_loopback(text) or any(found.is_loopback for found in matching):
                    yield _error(f"{label} is the loopback address {text}")
                for name in sorted({address_key(str(found)) for found in matching}):
                    owner = owners.setdefault(name, label)
                    if owner != label:
                        yield _error(f"{name} is both {owner} and {label} ({text})")
                continue
            if parsed.is_loopback:
                yield _error(f"{label} is the loopback address {text}")
            elif parsed.is_unspecified or parsed.is_multicast:
                yield _error(f"{label} is {text}, which is not the address of one host")
            elif wanted is not None and parsed.version != wanted:
                yield _error(f"{label} is {text}, which totem.ip_version ipv{wanted} does not allow")
            family, first = families.setdefault(link, (parsed.version, text))
            if family != parsed.version:
                yield _error(f"link {link} has addresses of both families ({first} and {text}); take one")
            owners.setdefault(address_key(text), label)


def _of_links(doc: Document) -> Iterator[Problem]:
    numbers = doc.link_numbers()
    seen: set[int] = set()
    transports: set[str] = set()
    for section in doc.interface_sections():
        number = interface_number(section)
        if number is None:
            yield _error(f"the interface section of line {section.number} has the linknumber {section.get('linknumber')!r}")
            continue
        if number >= MAX_LINKS:
            yield _error(f"the interface section of line {section.number} is of link {number}; corosync has 0 to {MAX_LINKS - 1}")
        if number in seen:
            yield _warning(f"link {number} has two interface sections; corosync takes the last value of each key")
        seen.add(number)
        if doc.node_sections() and number not in numbers:
            yield _warning(f"totem.interface {number} describes a link that no node has")
        transport = section.get("knet_transport")
        if transport is not None and transport not in LINK_TRANSPORTS:
            yield _error(f"knet_transport of link {number} is {transport!r}, wanted {_or(LINK_TRANSPORTS)}")
        elif doc.transport == "knet" and number in numbers:
            transports.add(transport or "udp")
        if section.get("ringnumber") not in (None, str(number)):
            yield _warning(
                f"the interface section of line {section.number} has ringnumber {section.get('ringnumber')}, which corosync does "
                f"not look at: it is taken for link {number} (linknumber)"
            )
        pings = [key for key in ("knet_ping_interval", "knet_ping_timeout") if section.get(key) is not None]
        if len(pings) == 1:
            yield _warning(f"link {number} has {pings[0]} without its pair; corosync wants both or none")
    if len(transports) > 1:
        yield _warning(f"links use different transports ({', '.join(sorted(transports))}); their MTU and loss differ")


def _of_quorum(doc: Document, with_pmxcfs: bool, probes: Collection[int]) -> Iterator[Problem]:
    nodes = doc.nodes()
    if doc.two_node and len(nodes) != 2:
        yield _error(f"quorum.two_node is 1 with {len(nodes)} nodes")
    elif doc.two_node and with_pmxcfs:
        yield _error(
            "quorum.two_node is 1: both halves of a split would write to /etc/pve and one side's changes be "
            "lost; remove it and set up a QDevice ('pvecm qdevice setup')"
        )
    if doc.get("quorum", "provider") != "corosync_votequorum":
        yield _error("quorum.provider is not corosync_votequorum")
    votes = sum(node.votes for node in nodes)
    if nodes and votes % 2 == 0 and not doc.qdevice and not doc.two_node:
        yield _warning(f"an even number of votes ({votes}) and no QDevice: half of the nodes cannot go on alone")
    for node in nodes:
        if node.votes == 0 and node.node_id in probes:
            continue
        if node.votes == 0:
            yield _warning(f"{node.label} has no vote")
        elif len(nodes) > 2 and node.votes * 2 >= votes:
            yield _warning(f"{node.label} has {node.votes} of {votes} votes: without it the others have no quorum")
    # 0 is as if there were none.
    expected = number(doc.get("quorum", "expected_votes"))
    if expected and nodes and expected < votes:
        yield _warning(
            f"quorum.expected_votes is {expected} and the nodes have {votes} votes: it overrides them, so that two parts "
            "may both have quorum"
        )


def _of_crypto(doc: Document) -> Iterator[Problem]:
    secauth = doc.get("totem", "secauth")
    cipher, digest = doc.crypto
    if secauth not in (None, "on", "off"):
        yield _warning(f"totem.secauth is {secauth!r}, which corosync takes for off; wanted on or off")
    if cipher not in CIPHERS:
        yield _error(f"totem.crypto_cipher is {cipher!r}, wanted {_or(CIPHERS)}")
    if digest not in HASHES:
        yield _error(f"totem.crypto_hash is {digest!r}, wanted {_or(HASHES)}")
    if cipher != "none" and digest == "none":
        yield _error(f"totem.crypto_cipher is {cipher} with crypto_hash none; corosync wants a hash with every cipher")
    if cipher == "none" and digest == "none":
        if secauth == "on":
            yield _error("totem.secauth is on, but crypto_cipher and crypto_hash are none, which switches it off")
        yield _warning("totem.secauth is off: anyone on the ring's network can join or stop the cluster")
    else:
        if cipher == "none":
            yield _warning(f"totem.crypto_cipher is none: messages are authenticated ({digest}) and not encrypted")
        if secauth == "off":
            yield _warning(f"totem.secauth is off, but crypto_cipher and crypto_hash are {cipher} and {digest}: crypto is on")
        if doc.transport in ("udp", "udpu"):
            yield _error(f"crypto is on with totem.transport {doc.transport}; only knet has it")
    if doc.get("totem", "key") is not None:
        yield _warning("totem.key holds the secret in a file that others can read; keep it in /etc/corosync/authkey")


def _of_lines(doc: Document) -> Iterator[Problem]:
    for place, line in enumerate(doc.text().split("\n"), 1):
        size = len(line.encode("utf-8", "surrogateescape"))
        if size > MAX_LINE_BYTES:
            yield _error(f"line {place} has {size} bytes; corosync reads {MAX_LINE_BYTES} of a line")
    for name, label in (("totem", "totem."), ("quorum", "quorum."), ("logging", "logging.")):
        lines = [line for part in doc.root.sections(name) for line in part.pairs()]
        yield from _repeated(lines, label)
    for node in doc.nodes():
        if len(node.sections) == 1:
            yield from _repeated(node.sections[0].pairs(), f"{node.label}: ")


def _of_keys(section: Section, path: str = "") -> Iterator[Problem]:
    """What corosync cannot store, or takes for a key of another section: it joins the names with dots."""
    numbers = NUMBERS.get(path.removesuffix("."), {})
    for line in section.pairs():
        key = line.key or ""
        name = f"{path}{key}"
        if not re.fullmatch(r"[A-Za-z0-9._/:-]+", name):
            yield _error(f"line {line.number}: corosync takes letters, digits and . _ - / : in the name of a key, not {name!r}")
        elif len(name) not in KEY_BYTES:
            yield _error(
                f"line {line.number}: the key {name[:40]!r} has {len(name)} characters with its sections; corosync takes "
                f"{KEY_BYTES[0]} to {KEY_BYTES[-1]}"
            )
        elif "." in key and name.startswith(("totem.", "nodelist.", "quorum.", "logging.")):
            yield _warning(f"line {line.number}: corosync takes {name} for what the section and key of these names say")
        if key in numbers and number(line.value, numbers[key]) is None:
            whose = f"{key} of {_owner(path, section)}" if path in _OWNED else name
            yield _error(f"{whose} is {line.value!r}, wanted a number from 0 to {numbers[key]}")
    for inner in (item for item in section.items if isinstance(item, Section)):
        if "." in inner.name:
            yield _warning(f"line {inner.number}: corosync takes the section {inner.name!r} for sections in each other")
        yield from _of_keys(inner, f"{path}{inner.name}.")


#: Sections of which there are several, so that a message says which.
_OWNED = ("nodelist.node.", "totem.interface.")


def _owner(path: str, section: Section) -> str:
    if path == "totem.interface.":
        return f"link {section.get('linknumber') or 0}"
    return section.get("name") or f"the node of line {section.number}"


def _repeated(lines: Iterable[Line], label: str) -> Iterator[Problem]:
    values: dict[str, list[str]] = {}
    for line in lines:
        values.setdefault(line.key or "", []).append(line.value)
    for key, given in values.items():
        if len(set(given)) > 1:
            yield _warning(f"{label}{key} is given more than once ({', '.join(given)}); corosync takes the last")


def _or(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _duplicates(nodes: Iterable[Node]) -> Iterator[str]:
    seen: dict[tuple[str, object], Node] = {}
    for node in nodes:
        keys: list[tuple[str, object]] = []
        if node.node_id is not None:
            keys.append(("nodeid", node.node_id))
        if node.name:
            keys.append(("name", node.name))
        for link, text in node.addresses.items():
            # One address may be written in more than one way.
            key: tuple[str, object] = ("address", address_key(text))
            if key in keys:
                yield f"{node.label} has the address {text} twice (again as ring{link}_addr)"
            else:
                keys.append(key)
        for entry in keys:
            if entry in seen:
                yield f"{entry[0]} {entry[1]} belongs to both {seen[entry].label} and {node.label}"
            seen[entry] = node


def _is_loopback(text: str) -> bool:
    parsed = address(text)
    return address_key(text) == "localhost" if parsed is None else parsed.is_loopback
