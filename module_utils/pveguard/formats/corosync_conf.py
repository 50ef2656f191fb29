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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..base.errors import PveguardError
from .corosync_version import MAX_CONFIG_VERSION

#: Token of a new cluster in ms: corosync's own default since 3.1, see corosync.conf(5).
DEFAULT_TOKEN_MS = 3000
#: What each node beyond the second adds to the token, in ms, as ``pvecm create`` writes it (corosync's
#: default is 650).
DEFAULT_TOKEN_COEFFICIENT_MS = 125
#: knet carries at most eight links (corosync.conf(5), linknumber).
MAX_LINKS = 8
#: The highest node id: knet has 16 bits for it ("Knet requires nodeid to be less than 65536"), the others have 32.
MAX_NODE_ID = {"knet": 2**16 - 1, "udp": 2**32 - 1, "udpu": 2**32 - 1}
#: corosync refuses a longer line ("Line too long"): it reads 512 bytes with the newline and a NUL (coroparse.c).
MAX_LINE_BYTES = 510
#: corosync's own token_coefficient in ms where the file has none (corosync.conf(5)).
COROSYNC_TOKEN_COEFFICIENT_MS = 650
TRANSPORTS = ("knet", "udp", "udpu")


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
        check_value(key, text)
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
            raise PveguardError(f"corosync.conf has {self.nodelists} {NODELISTS}")

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


NODELISTS = (
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


def describe(name: str | None, node_id: int | None, addresses: Mapping[int, str]) -> str:
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


def check_value(key: str, value: str) -> None:
    if re.search(r"[\r\n{}\0]", value):
        raise PveguardError(f"{key}: {value!r} cannot stand in corosync.conf (line break, brace or NUL)")
    if not value or value != value.strip(_BLANK):
        raise PveguardError(f"{key}: {value!r} cannot stand in corosync.conf (empty, or blanks around it)")
    if not re.fullmatch(r"[^\s:{}#\0][^\s:{}\0]*", key):
        raise PveguardError(f"{key!r} cannot be a key of corosync.conf")
    if len(f"{key}: {value}".encode("utf-8", "surrogateescape")) > MAX_LINE_BYTES:
        raise PveguardError(f"{key}: a value of {len(value)} characters; corosync reads {MAX_LINE_BYTES} bytes of a line")
