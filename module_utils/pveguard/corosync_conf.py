"""corosync.conf as a document: parsed, queried, edited and written back with everything else left as it was.

The grammar is that of corosync.conf(5): one statement per line, ``section {``, ``key: value`` or ``}``; empty
lines and lines that start with ``#`` are ignored. A document that was not edited serializes to the same
bytes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import PveguardError

#: Token of a new cluster in ms: corosync's own default since 3.1, see corosync.conf(5).
DEFAULT_TOKEN_MS = 3000
#: What each node beyond the second adds to the token, in ms, as ``pvecm create`` writes it (corosync's
#: default is 650).
DEFAULT_TOKEN_COEFFICIENT_MS = 125
#: knet carries at most eight links (corosync.conf(5), linknumber).
MAX_LINKS = 8


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

    def set(self, key: str, value: str | int) -> bool:
        """Give ``key`` this value; a new one is added after the section's last pair. True when the text
        changed."""
        text = str(value)
        _check_value(key, text)
        existing = [line for line in self.pairs() if line.key == key]
        if existing:
            if existing[-1].value == text:
                return False
            existing[-1].replace_value(text)
            return True
        pairs = self.pairs()
        indent = _indent(pairs[-1].raw) if pairs else _indent(self.opening) + "  "
        where = self.items.index(pairs[-1]) + 1 if pairs else 0
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
        return "\r\n" if self.opening.endswith("\r\n") else "\n"


@dataclass(frozen=True)
class Node:
    """A node of the nodelist. ``addresses`` maps link number to address; ``votes`` defaults to corosync's
    1."""

    name: str | None
    node_id: int | None
    addresses: dict[int, str]
    votes: int
    number: int

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
        if text and not text.endswith("\n"):
            _end_with_newline(self.root)
        if text.strip():
            self.root.items.append(Line("\n"))
        new = Section(section, [], f"{section} {{\n", "}\n")
        self.root.items.append(new)
        return new

    @property
    def cluster_name(self) -> str | None:
        return self.get("totem", "cluster_name")

    @property
    def config_version(self) -> int | None:
        """totem.config_version, None when absent or not a number (the copy between both files then never
        happens)."""
        return _number(self.get("totem", "config_version"))

    @property
    def token_ms(self) -> int | None:
        """totem.token as configured, in ms; the effective value is larger with more than two nodes."""
        return _number(self.get("totem", "token"))

    @property
    def token_coefficient_ms(self) -> int | None:
        return _number(self.get("totem", "token_coefficient"))

    @property
    def two_node(self) -> bool:
        return self.get("quorum", "two_node") == "1"

    @property
    def qdevice(self) -> bool:
        return any(part.sections("device") for part in self.root.sections("quorum"))

    def node_sections(self) -> list[Section]:
        return [node for part in self.root.sections("nodelist") for node in part.sections("node")]

    def nodes(self) -> list[Node]:
        return [_node(section) for section in self.node_sections()]

    def node(self, name: str) -> Node | None:
        return next((node for node in self.nodes() if node.name == name), None)

    def bump(self) -> int:
        """Raise config_version by one and return it; without it no daemon copies the change."""
        version = (self.config_version or 0) + 1
        self.ensure("totem").set("config_version", version)
        return version

    def set_token(self, token_ms: int) -> bool:
        """Set totem.token (ms). True when the text changed; the caller raises config_version."""
        return self.ensure("totem").set("token", token_ms)


_SECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def parse(text: str, source: str = "corosync.conf") -> Document:
    """Parse a corosync.conf. Raises CorosyncConfError with line and column and what was expected there."""
    root = Section("")
    stack = [root]
    for number, raw in enumerate(_lines(text), 1):
        body = raw.rstrip("\r\n")
        stripped = body.strip(" \t\r\f\v")
        column = len(body) - len(body.lstrip(" \t\r\f\v")) + 1
        if not stripped or stripped.startswith("#"):
            stack[-1].items.append(Line(raw, number=number))
            continue
        if "\0" in stripped:
            raise CorosyncConfError(number, body.index("\0") + 1, "a NUL byte; expected text", source)
        if "{" in stripped:
            brace = body.index("{")
            name = body[:brace].strip(" \t")
            if not _SECTION_NAME.match(name):
                wanted = "expected the name of a section before '{'"
                raise CorosyncConfError(number, column, f"{wanted}, found {name!r}", source)
            if body[brace + 1 :].strip():
                extra = brace + 2 + len(body[brace + 1 :]) - len(body[brace + 1 :].lstrip())
                raise CorosyncConfError(number, extra, "expected the end of the line after '{'", source)
            section = Section(name, [], raw, "", number)
            stack[-1].items.append(section)
            stack.append(section)
        elif ":" in stripped:
            colon = body.index(":")
            key = body[:colon].strip(" \t")
            if not key:
                raise CorosyncConfError(number, column, "expected the name of a key before ':'", source)
            stack[-1].items.append(Line(raw, key, body[colon + 1 :].strip(" \t\r\f\v"), number))
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
            len(_indent(open_section.opening)) + 1,
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
    addresses.

    Raises PveguardError when a node of that name or id is there with other values, when the result would be
    refused by :func:`problems`, or when a QDevice is configured (its votes depend on the number of nodes).
    """
    for present in doc.nodes():
        if present.name != name and present.node_id != node_id:
            continue
        wanted = dict(enumerate(links))
        if present.name == name and present.node_id == node_id and present.addresses == wanted:
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
    before = doc.text()
    siblings = doc.node_sections()
    if siblings:
        parent = next(part for part in doc.root.sections("nodelist") if siblings[-1] in part.items)
        outer, inner = _indent(siblings[-1].opening), None
        pairs = siblings[-1].pairs()
        inner = _indent(pairs[0].raw) if pairs else outer + "  "
        where = parent.items.index(siblings[-1]) + 1
    else:
        parent = doc.ensure("nodelist")
        outer = _indent(parent.opening) + "  "
        inner, where = outer + "  ", len(parent.items)
    newline = "\r\n" if parent.opening.endswith("\r\n") else "\n"
    section = Section("node", [], f"{outer}node {{{newline}", f"{outer}}}{newline}")
    values: list[tuple[str, object]] = [("name", name), ("nodeid", node_id), ("quorum_votes", votes)]
    values += [(f"ring{number}_addr", address) for number, address in enumerate(links)]
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
    section = next((node for node in doc.node_sections() if node.get("name") == name), None)
    if section is None:
        return False
    if len(doc.node_sections()) == 1:
        raise PveguardError(f"corosync.conf has no other node than {name}; the last one stays")
    if doc.qdevice:
        raise PveguardError(
            "corosync.conf has a QDevice, which must not be there while a node is removed: remove it with "
            "'pvecm qdevice remove' on a member first"
        )
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


def problems(doc: Document, with_pmxcfs: bool = True) -> list[Problem]:
    """Semantic mistakes, most serious first. ``with_pmxcfs``: the cluster carries the cluster file system."""
    return sorted(_problems(doc, with_pmxcfs), key=lambda problem: problem.severity)


def refuse_problems(doc: Document, with_pmxcfs: bool = True) -> None:
    """Raise PveguardError that lists every error of :func:`problems`."""
    errors = [problem.message for problem in problems(doc, with_pmxcfs) if problem.severity == "error"]
    if errors:
        raise PveguardError("corosync.conf would be wrong: " + "; ".join(errors))


def _problems(doc: Document, with_pmxcfs: bool) -> Iterator[Problem]:
    def error(message: str) -> Problem:
        return Problem("error", message)

    nodes = doc.nodes()
    if not doc.cluster_name:
        yield error("totem.cluster_name is missing")
    if with_pmxcfs and not doc.config_version:
        yield error(
            "totem.config_version is missing or 0; the copy to the other nodes needs a number above 0"
        )
    if (version := doc.get("totem", "version")) != "2":
        yield error(f"totem.version is {version}, wanted 2")
    if not nodes:
        yield error("nodelist has no node")
    yield from (error(text) for text in _duplicates(nodes))
    links = {number for node in nodes for number in node.addresses}
    for node in nodes:
        if node.node_id is None or node.node_id < 1:
            yield error(f"{node.label} has no nodeid above 0")
        if with_pmxcfs and not node.name:
            yield error(f"{node.label} has no name; the cluster file system finds a node by its host name")
        missing = sorted(links - set(node.addresses))
        if not node.addresses:
            yield error(f"{node.label} has no ring0_addr")
        elif missing:
            keys = ", ".join(f"ring{number}_addr" for number in missing)
            yield error(f"{node.label} has no {keys}, which other nodes have")
        for number, address in node.addresses.items():
            if _is_loopback(address):
                yield error(f"ring{number}_addr of {node.label} is the loopback address {address}")
    if links and max(links) >= MAX_LINKS:
        yield error(f"link {max(links)} is beyond corosync's {MAX_LINKS} links (0 to {MAX_LINKS - 1})")
    if doc.two_node and len(nodes) != 2:
        yield error(f"quorum.two_node is 1 with {len(nodes)} nodes")
    elif doc.two_node and with_pmxcfs:
        yield error(
            "quorum.two_node is 1: both halves of a split would write to /etc/pve and one side's changes be "
            "lost; "
            "remove it and set up a QDevice ('pvecm qdevice setup')"
        )
    if doc.get("quorum", "provider") != "corosync_votequorum":
        yield error("quorum.provider is not corosync_votequorum")
    crypto = doc.get("totem", "secauth") == "on" or (doc.get("totem", "crypto_cipher") or "none") != "none"
    if not crypto:
        yield Problem(
            "warning", "totem.secauth is off: anyone on the ring's network can join or stop the cluster"
        )
    votes = sum(node.votes for node in nodes)
    if nodes and votes % 2 == 0 and not doc.qdevice and not doc.two_node:
        yield Problem(
            "warning",
            f"an even number of votes ({votes}) and no QDevice: half of the nodes cannot go on alone",
        )


def _duplicates(nodes: Iterable[Node]) -> Iterator[str]:
    seen: dict[tuple[str, object], Node] = {}
    for node in nodes:
        keys: list[tuple[str, object]] = []
        if node.node_id is not None:
            keys.append(("nodeid", node.node_id))
        if node.name:
            keys.append(("name", node.name))
        for number, address in node.addresses.items():
            if ("address", address) in keys:
                yield f"{node.label} has the address {address} twice (again as ring{number}_addr)"
            else:
                keys.append(("address", address))
        for key in keys:
            if key in seen:
                yield f"{key[0]} {key[1]} belongs to both {seen[key].label} and {node.label}"
            seen[key] = node


def _node(section: Section) -> Node:
    addresses = {}
    for line in section.pairs():
        match = re.fullmatch(r"ring([0-9]+)_addr", line.key or "")
        if match and line.value:
            addresses[int(match.group(1))] = line.value
    votes = _number(section.get("quorum_votes"))
    return Node(
        name=section.get("name") or None,
        node_id=_number(section.get("nodeid")),
        addresses=addresses,
        votes=1 if votes is None else votes,
        number=section.number,
    )


def _describe(name: str | None, node_id: int | None, addresses: Mapping[int, str]) -> str:
    shown = ", ".join(f"ring{number} {address}" for number, address in sorted(addresses.items()))
    return f"node {name} with id {node_id} and {shown}"


def _lines(text: str) -> list[str]:
    """Split after each newline only: a form feed or a Unicode line separator does not end a line of
    corosync.conf."""
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _indent(raw: str) -> str:
    return raw[: len(raw) - len(raw.lstrip(" \t"))]


def _end_with_newline(section: Section) -> None:
    last = section.items[-1]
    if isinstance(last, Line):
        last.raw += "\n"
    else:
        last.closing += "\n"


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"[0-9]{1,18}", value, flags=re.ASCII) else None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _check_value(key: str, value: str) -> None:
    if re.search(r"[\r\n{}\0]", value):
        raise PveguardError(f"{key}: {value!r} cannot stand in corosync.conf (line break, brace or NUL)")
