"""corosync.conf as a document: parsed, queried, edited and written back with everything else left as it was.

The grammar is that of corosync.conf(5): one statement per line, ``section {``, ``key: value`` or ``}``; empty
lines and lines that start with ``#`` are ignored. A document that was not edited serializes to the same
bytes. Edits of options, addresses and links are in corosync_edit.

What the man page does not say was seen on corosync 3.1.7 (tests/corosync/test_running.py): ``#`` after a value belongs to
it; of a key given twice the last counts, also across sections of one name; a second ``nodelist`` counts its nodes from
the first again, so that they overwrite those of the one before; an ``interface`` is of the link ``linknumber`` (0 where
there is none), and ``ringnumber`` is not looked at; numbers may have a sign and leading zeros.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..base.errors import PveguardError

#: Token of a new cluster in ms: corosync's own default since 3.1, see corosync.conf(5).
DEFAULT_TOKEN_MS = 3000
#: What each node beyond the second adds to the token, in ms, as ``pvecm create`` writes it (corosync's
#: default is 650).
DEFAULT_TOKEN_COEFFICIENT_MS = 125
#: knet carries at most eight links (corosync.conf(5), linknumber).
MAX_LINKS = 8
#: The highest node id: knet has 16 bits for it ("Knet requires nodeid to be less than 65536"), the others have 32.
MAX_NODE_ID = {"knet": 2**16 - 1, "udp": 2**32 - 1, "udpu": 2**32 - 1}
#: config_version has 64 bits, without a sign (totem.config_version in cmap).
MAX_CONFIG_VERSION = 2**64 - 1
#: corosync refuses a longer line ("Line too long"): it reads 512 bytes with the newline and a NUL (coroparse.c).
MAX_LINE_BYTES = 510
#: corosync's own token_coefficient in ms where the file has none (corosync.conf(5)).
COROSYNC_TOKEN_COEFFICIENT_MS = 650
TRANSPORTS = ("knet", "udp", "udpu")
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


class CorosyncConfError(PveguardError):
    """A text that is not a corosync.conf. ``line`` and ``column`` count from 1."""

    def __init__(self, line: int, column: int, message: str, source: str = "corosync.conf") -> None:
        super().__init__(f"{source}: line {line}, column {column}: {message}")
        self.line = line
        self.column = column


@dataclass
class Line:
    """One line that holds no section: ``key: value`` (``key`` set), or a comment or blank (``key`` None)."""

    raw: str
    key: str | None = None
    value: str = ""
    number: int = 0

    def replace_value(self, value: str) -> None:
        """Change the value; indentation, the space after the colon and trailing blanks stay."""
        colon = self.raw.index(":")
        rest = self.raw[colon + 1 :]
        if self.value:
            start = rest.index(self.value)
            rest = rest[:start] + value + rest[start + len(self.value) :]
        else:
            rest = " " + value + rest.lstrip(" \t")
        self.raw = self.raw[: colon + 1] + rest
        self.value = value


@dataclass
class Section:
    """A section with its statements in order. ``opening`` and ``closing`` are its own lines, empty for the
    document."""

    name: str
    items: list[Line | Section] = field(default_factory=list)
    opening: str = ""
    closing: str = ""
    number: int = 0

    def sections(self, name: str) -> list[Section]:
        return [item for item in self.items if isinstance(item, Section) and item.name == name]

    def pairs(self) -> list[Line]:
        return [item for item in self.items if isinstance(item, Line) and item.key is not None]

    def get(self, key: str) -> str | None:
        """The value of ``key``; the last one counts, as in corosync. None when it is absent."""
        found = [line.value for line in self.pairs() if line.key == key]
        return found[-1] if found else None

    def set(self, key: str, value: str | int, after: Line | None = None) -> bool:
        """Give ``key`` this value; a new one is added after the line ``after``, or the section's last pair. True
        when the text changed."""
        text = str(value)
        _check_value(key, text)
        existing = [line for line in self.pairs() if line.key == key]
        if existing:
            if existing[-1].value == text:
                return False
            existing[-1].replace_value(text)
            return True
        pairs = self.pairs()
        place = after if after is not None else pairs[-1] if pairs else None
        indent = indent_of(place.raw) if place else indent_of(self.opening) + "  "
        # By identity: two lines may be alike.
        where = next((i for i, item in enumerate(self.items, 1) if item is place), 0)
        self.items.insert(where, Line(f"{indent}{key}: {text}{self._newline()}", key, text))
        return True

    def remove(self, key: str) -> bool:
        before = len(self.items)
        self.items = [item for item in self.items if not (isinstance(item, Line) and item.key == key)]
        return len(self.items) != before

    def text(self) -> str:
        inner = "".join(item.raw if isinstance(item, Line) else item.text() for item in self.items)
        return self.opening + inner + self.closing

    def _newline(self) -> str:
        return newline_of(self.opening or next((item.raw for item in self.items if isinstance(item, Line)), ""))


@dataclass(frozen=True)
class Node:
    """A node of the nodelist. ``addresses`` maps link number to address; ``votes`` defaults to corosync's 1.

    ``name``: up to its first dot, as the cluster file system names a node. Where the file has none (clusters of Proxmox VE 4)
    that of ring0_addr; None where that is an address. ``named``: whether the file has one. ``node_id``: without knet the one
    that corosync makes of an IPv4 address where the file has none. ``sections``: where it is described, more than one where
    nodelists overwrite each other.
    """

    name: str | None
    node_id: int | None
    addresses: dict[int, str]
    votes: int
    number: int
    named: bool = True
    sections: tuple[Section, ...] = ()

    @property
    def label(self) -> str:
        return self.name or (
            f"node id {self.node_id}" if self.node_id is not None else f"the node of line {self.number}"
        )


class Document:
    """A parsed corosync.conf."""

    def __init__(self, root: Section) -> None:
        self.root = root

    def text(self) -> str:
        return self.root.text()

    def section(self, name: str) -> Section | None:
        """The first top-level section of that name."""
        found = self.root.sections(name)
        return found[0] if found else None

    def get(self, section: str, key: str) -> str | None:
        """A value of a top-level section; the same section may appear more than once, the last value
        counts."""
        found = [value for part in self.root.sections(section) if (value := part.get(key)) is not None]
        return found[-1] if found else None

    def ensure(self, section: str) -> Section:
        """The first top-level section of that name, made at the end of the text when it is missing."""
        existing = self.section(section)
        if existing:
            return existing
        text = self.text()
        newline = self.newline
        if text and not text.endswith("\n"):
            _end_with_newline(self.root, newline)
        if text.strip():
            self.root.items.append(Line(newline))
        new = Section(section, [], f"{section} {{{newline}", f"}}{newline}")
        self.root.items.append(new)
        return new

    @property
    def newline(self) -> str:
        """How the text ends its lines: as its first line does."""
        first, end, _ = self.text().partition("\n")
        return newline_of(first + end)

    def set(self, section: str, key: str, value: str | int) -> bool:
        """Give ``key`` of a top-level section this value, where corosync takes it from. True when the text
        changed."""
        parts = [part for part in self.root.sections(section) if part.get(key) is not None]
        return (parts[-1] if parts else self.ensure(section)).set(key, value)

    def unset(self, section: str, key: str) -> bool:
        """Take ``key`` off every top-level section of that name. True when the text changed."""
        removed = [part.remove(key) for part in self.root.sections(section)]
        return any(removed)

    @property
    def cluster_name(self) -> str | None:
        return self.get("totem", "cluster_name")

    @property
    def config_version(self) -> int | None:
        """totem.config_version, None when absent or not a number (the copy between both files then never
        happens)."""
        value = number(self.get("totem", "config_version"), MAX_CONFIG_VERSION, -MAX_CONFIG_VERSION)
        # strtoull: a minus sign is taken, and the number wraps.
        return value if value is None else value % 2**64

    @property
    def token_ms(self) -> int | None:
        """totem.token as configured, in ms, 0 for the default; the effective value is larger with more than two nodes."""
        return number(self.get("totem", "token"))

    @property
    def token_coefficient_ms(self) -> int | None:
        return number(self.get("totem", "token_coefficient"))

    @property
    def effective_token_ms(self) -> int:
        """The token that corosync works with, in ms: with three nodes and more the coefficient is added
        (corosync.conf(5), token_coefficient)."""
        coefficient = self.token_coefficient_ms
        # 0 is the default of the token, and no addition at all as a coefficient.
        coefficient = COROSYNC_TOKEN_COEFFICIENT_MS if coefficient is None else coefficient
        return (self.token_ms or DEFAULT_TOKEN_MS) + max(0, len(self.nodes()) - 2) * coefficient

    @property
    def transport(self) -> str:
        """totem.transport; corosync's default is knet."""
        return self.get("totem", "transport") or "knet"

    @property
    def crypto(self) -> tuple[str, str]:
        """Cipher and hash in force: secauth stands for aes256 and sha256 unless they are set (corosync.conf(5))."""
        on = self.get("totem", "secauth") == "on"
        cipher = self.get("totem", "crypto_cipher") or ("aes256" if on else "none")
        return cipher, self.get("totem", "crypto_hash") or ("sha256" if on else "none")

    @property
    def two_node(self) -> bool:
        return bool(number(self.get("quorum", "two_node")))

    @property
    def qdevice(self) -> bool:
        return any(part.sections("device") for part in self.root.sections("quorum"))

    def interface_sections(self) -> list[Section]:
        return [section for part in self.root.sections("totem") for section in part.sections("interface")]

    def link_numbers(self) -> list[int]:
        """Links that any node has an address on."""
        return sorted({number for node in self.nodes() for number in node.addresses})

    def node_sections(self) -> list[Section]:
        return [node for part in self.root.sections("nodelist") for node in part.sections("node")]

    @property
    def nodelists(self) -> int:
        """Sections with nodes. With more than one corosync counts the nodes from the first again in each."""
        return sum(bool(part.sections("node")) for part in self.root.sections("nodelist"))

    def require_one_nodelist(self) -> None:
        """Raise PveguardError where nodes cannot be edited, as it is not known which of them are meant."""
        if self.nodelists > 1:
            raise PveguardError(f"corosync.conf has {self.nodelists} {_NODELISTS}")

    def nodes(self) -> list[Node]:
        """The nodes as corosync has them."""
        places: list[list[Section]] = []
        for part in self.root.sections("nodelist"):
            for place, section in enumerate(part.sections("node")):
                if place == len(places):
                    places.append([])
                places[place].append(section)
        return [_node(sections, self) for sections in places]

    def node(self, name: str) -> Node | None:
        return next((node for node in self.nodes() if node.name == name), None)

    def bump(self) -> int:
        """Raise config_version by one and return it; without it no daemon copies the change."""
        version = next_version(self.config_version)
        self.set("totem", "config_version", version)
        return version

    def set_token(self, token_ms: int) -> bool:
        """Set totem.token (ms). True when the text changed; the caller raises config_version."""
        return self.set("totem", "token", token_ms)


_NODELISTS = (
    "nodelist sections, and corosync counts the nodes from the first again in each, so that they overwrite each other: write "
    "all nodes into one nodelist"
)
#: What corosync takes for a blank (coroparse.c); a form feed is text to it, and so is a second carriage return.
_BLANK = " \t"


def parse(text: str, source: str = "corosync.conf") -> Document:
    """Parse a corosync.conf. Raises CorosyncConfError with line and column and what was expected there."""
    root = Section("")
    stack = [root]
    for number, raw in enumerate(_lines(text), 1):
        body = raw.removesuffix("\n").removesuffix("\r")
        stripped = body.strip(_BLANK)
        column = len(body) - len(body.lstrip(_BLANK)) + 1
        if "\0" in body:
            # Also in a comment: corosync takes the rest for a line without an end.
            raise CorosyncConfError(number, body.index("\0") + 1, "a NUL byte; expected text", source)
        if not stripped or stripped.startswith("#"):
            stack[-1].items.append(Line(raw, number=number))
            continue
        if "{" in stripped:
            brace = body.index("{")
            name = body[:brace].strip(_BLANK).rstrip(_BLANK + ":")
            if not name:
                raise CorosyncConfError(number, column, "expected the name of a section before '{', found ''", source)
            if body[brace + 1 :].strip(_BLANK):
                extra = brace + 2 + len(body[brace + 1 :]) - len(body[brace + 1 :].lstrip(_BLANK))
                raise CorosyncConfError(number, extra, "expected the end of the line after '{'", source)
            section = Section(name, [], raw, "", number)
            stack[-1].items.append(section)
            stack.append(section)
        elif ":" in stripped:
            colon = body.index(":")
            # A colon by itself is a key to corosync.
            key = body[:colon].strip(_BLANK) or ":"
            stack[-1].items.append(Line(raw, key, body[colon + 1 :].strip(_BLANK), number))
        elif stripped == "}":
            if len(stack) == 1:
                raise CorosyncConfError(number, column, "'}' without an open section", source)
            stack.pop().closing = raw
        else:
            raise CorosyncConfError(
                number,
                column,
                f"expected 'key: value', 'section {{' or '}}', found {stripped[:40]!r}",
                source,
            )
    if len(stack) > 1:
        open_section = stack[-1]
        raise CorosyncConfError(
            open_section.number,
            len(indent_of(open_section.opening)) + 1,
            f"section {open_section.name!r} is opened here and never closed; expected '}}'",
            source,
        )
    return Document(root)


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
        _check_value("name", str(node["name"]))
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
    _check_value("cluster_name", cluster_name)
    refuse_problems(parse(text))
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
            f"corosync.conf already has {_describe(present.name, present.node_id, present.addresses)}, "
            "wanted "
            f"{_describe(name, node_id, wanted)}: correct corosync_node_id or corosync_links of this host"
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
        _check_value(key, str(value))
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
        refuse_problems(doc)
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
        yield _error(f"{doc.nodelists} {_NODELISTS}")
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
    for number, line in enumerate(doc.text().split("\n"), 1):
        size = len(line.encode("utf-8", "surrogateescape"))
        if size > MAX_LINE_BYTES:
            yield _error(f"line {number} has {size} bytes; corosync reads {MAX_LINE_BYTES} of a line")
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
        for number, address in node.addresses.items():
            # One address may be written in more than one way.
            key: tuple[str, object] = ("address", address_key(address))
            if key in keys:
                yield f"{node.label} has the address {address} twice (again as ring{number}_addr)"
            else:
                keys.append(key)
        for entry in keys:
            if entry in seen:
                yield f"{entry[0]} {entry[1]} belongs to both {seen[entry].label} and {node.label}"
            seen[entry] = node


def link_of(key: str | None) -> int | None:
    """The link of a ``ringX_addr``."""
    match = re.fullmatch(r"ring(0|[1-9][0-9]{0,8})_addr", key or "", flags=re.ASCII)
    return int(match.group(1)) if match else None


def _node(sections: Sequence[Section], doc: Document) -> Node:
    pairs = {line.key: line.value for section in sections for line in section.pairs()}
    addresses = {link: value for key, value in pairs.items() if (link := link_of(key)) is not None and value}
    votes, node_id = number(pairs.get("quorum_votes")), number(pairs.get("nodeid"))
    first = addresses.get(0, "")
    if not node_id and doc.transport != "knet" and (parsed := address(first)) is not None and parsed.version == 4:
        # Corosync makes one of the address then.
        node_id = int(parsed) & (2**31 - 1 if doc.get("totem", "clear_node_high_bit") == "yes" else 2**32 - 1)
    name = pairs.get("name") or (first if is_host_name(first) and address(first) is None else "")
    return Node(
        name=short_name(name) or None,
        node_id=node_id,
        addresses=addresses,
        votes=1 if votes is None else votes,
        number=sections[0].number,
        named="name" in pairs,
        sections=tuple(sections),
    )


def _describe(name: str | None, node_id: int | None, addresses: Mapping[int, str]) -> str:
    shown = ", ".join(f"ring{number} {address}" for number, address in sorted(addresses.items()))
    return f"node {name} with id {node_id} and {shown}"


def _lines(text: str) -> list[str]:
    """Split after each newline only: a form feed or a Unicode line separator does not end a line of
    corosync.conf."""
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def indent_of(raw: str) -> str:
    """The blanks that a line starts with."""
    return raw[: len(raw) - len(raw.lstrip(" \t"))]


def newline_of(raw: str) -> str:
    """How a line ends; with a plain newline where it does not."""
    return "\r\n" if raw.endswith("\r\n") else "\n"


def _end_with_newline(section: Section, newline: str) -> None:
    last = section.items[-1]
    if (last.raw if isinstance(last, Line) else last.closing).endswith("\r"):
        newline = "\n"  # the first half of its end is there
    if isinstance(last, Line):
        last.raw += newline
    else:
        last.closing += newline


def number(value: str | None, highest: int = 2**32 - 1, lowest: int = 0) -> int | None:
    """A number as corosync reads it (strtoll): a sign and leading zeros are taken. None for what it refuses."""
    match = re.fullmatch(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]{1,20})", value or "", flags=re.ASCII)
    if match is None:
        return None
    found = int(match.group(2)) * (-1 if match.group(1) == "-" else 1)
    return found if lowest <= found <= highest else None


def next_version(version: int | None) -> int:
    """The config_version after this one. Raises PveguardError where there is none."""
    if (version or 0) >= MAX_CONFIG_VERSION:
        raise PveguardError(
            f"totem.config_version is {version}, the highest that corosync takes, so no change can be told from the present "
            "text: set it to 1 on all nodes alike with corosync stopped"
        )
    return (version or 0) + 1


_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z")


def is_host_name(text: str) -> bool:
    """True for what could be a host name; something made of digits and dots alone is a broken address."""
    return bool(_HOST_NAME.match(text)) and not re.fullmatch(r"[0-9.]+", text)


def interface_number(section: Section) -> int | None:
    """The link of a totem.interface section: 0 without a linknumber; None when it is not a number.

    The ``ringnumber`` of corosync 2 is not looked at by corosync 3.
    """
    value = section.get("linknumber")
    return 0 if value is None else number(value, 2**8 - 1)


def short_name(name: str) -> str:
    """A host name up to its first dot, as the cluster file system names a node; an address as it is."""
    return name if address(name) is not None else name.partition(".")[0]


_OLD_IPV4 = re.compile(r"(?:0[xX][0-9a-fA-F]+|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]+|[0-9]+)){0,3}", flags=re.ASCII)


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address, also in the forms of old that the resolver takes for one (``10.1``, ``10.0.0.01``); None for others."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    if not _OLD_IPV4.fullmatch(text):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        return None


def address_key(text: str) -> str:
    """The same text for everything that is one address or host name, whatever the form in which it is written."""
    parsed = address(text)
    if parsed is None:
        return text.lower().rstrip(".")
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def same_addresses(one: Mapping[int, str], other: Mapping[int, str]) -> bool:
    """Whether these addresses by link are the same."""
    return {link: address_key(text) for link, text in one.items()} == {link: address_key(text) for link, text in other.items()}


def _is_loopback(text: str) -> bool:
    parsed = address(text)
    return address_key(text) == "localhost" if parsed is None else parsed.is_loopback


def _check_value(key: str, value: str) -> None:
    if re.search(r"[\r\n{}\0]", value):
        raise PveguardError(f"{key}: {value!r} cannot stand in corosync.conf (line break, brace or NUL)")
    if not value or value != value.strip(_BLANK):
        raise PveguardError(f"{key}: {value!r} cannot stand in corosync.conf (empty, or blanks around it)")
    if not re.fullmatch(r"[^\s:{}#\0][^\s:{}\0]*", key):
        raise PveguardError(f"{key!r} cannot be a key of corosync.conf")
    if len(f"{key}: {value}".encode("utf-8", "surrogateescape")) > MAX_LINE_BYTES:
        raise PveguardError(f"{key}: a value of {len(value)} characters; corosync reads {MAX_LINE_BYTES} bytes of a line")
