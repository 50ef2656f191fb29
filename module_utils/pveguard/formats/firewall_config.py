# SPDX-License-Identifier: Apache-2.0
"""The format of the Proxmox firewall's files: cluster.fw, host.fw and a guest's ID.fw.

Sections ``[OPTIONS]``, ``[ALIASES]``, ``[IPSET name]``, ``[RULES]`` and ``[group name]``; lines ``KEY: VALUE``, ``NAME CIDR``,
``[!]CIDR-OR-ALIAS`` and rules::

    IN SSH(ACCEPT) -source +management -log nolog # why
    |OUT DROP -p tcp -dport 25
    GROUP web -i net0

``|`` switches a rule off; ``#`` begins a comment. Names of sections, options, aliases, sets and groups have no case.

An edit changes the lines that it is about and no other, nor the way their lines end. When somebody saves a file in the web
interface, Proxmox writes it anew: comments that stand alone and blank lines are lost, those behind a rule or an entry stay.
So an own rule is known by the comment behind it (``mark``), and rules are compared by what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..base.errors import PveguardError

_SECTION = re.compile(r"\[(\S+)(?:[ \t]+(\S+))?[ \t]*\][ \t]*(?:#.*)?\Z")
_OPTION = re.compile(r"([A-Za-z][A-Za-z0-9_]*):[ \t]*(.*?)[ \t]*\Z")
_ALIAS = re.compile(r"([A-Za-z][\w-]*)[ \t]+(\S+)\Z")
_MEMBER = re.compile(r"(!?)[ \t]*(\S+)\Z")
_ACTION = re.compile(r"(?:(\w+)\((ACCEPT|DROP|REJECT)\)|(ACCEPT|DROP|REJECT))\Z", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z][\w-]*\Z")
#: What stands around the value of an option.
_VALUE = re.compile(r"(\s*\w+:[ \t]*)(.*?)(\s*)\Z")
_TYPES = ("IN", "OUT", "FORWARD", "GROUP")
#: Both ways of writing a parameter.
_PARAMETERS = {
    "i": "iface", "iface": "iface", "p": "proto", "proto": "proto", "source": "source", "dest": "dest", "sport": "sport",
    "dport": "dport", "log": "log", "icmp-type": "icmp-type",
}  # fmt: skip
_WRITTEN = {"iface": "-i", "proto": "-p"}
_PLAIN_SECTIONS = ("options", "aliases", "rules")
#: Said where the line above had no end.
_CLOSED = ", and the end of the line above"


class Rule(NamedTuple):
    """``action`` is a verdict in capitals, or of a GROUP its name. ``params`` has long names: proto, iface, dport..."""

    kind: str
    action: str
    macro: str = ""
    params: Mapping[str, str] = {}
    enabled: bool = True
    comment: str = ""

    def means(self) -> tuple[object, ...]:
        """Equal for rules that do the same; the level of the log and the comment do not count."""
        params = {key: value.lower() for key, value in self.params.items() if key != "log"}
        return self.kind, self.action.lower(), self.macro.lower(), tuple(sorted(params.items())), self.enabled

    def text(self) -> str:
        action = f"{self.macro}({self.action})" if self.macro else self.action
        words = [f"{'' if self.enabled else '|'}{self.kind}", action]
        for key, value in self.params.items():
            words += [_WRITTEN.get(key, f"-{key}"), value]
        return " ".join([*words, *(["#", self.comment] if self.comment else [])])


class Member(NamedTuple):
    """Of an ipset: an address, a network or an alias; ``but`` is the ``!`` before one that is left out."""

    value: str
    but: bool = False
    comment: str = ""


class Strange(NamedTuple):
    """A line that Proxmox would pass over, or that is not understood here: its number and why."""

    number: int
    why: str


class _Line(NamedTuple):
    """``section``: ("rules", ""), ("ipset", name)...; ``what``: header, entry, blank, strange."""

    section: tuple[str, str]
    what: str
    found: object = None


class Parsed:
    """``options`` and ``aliases``: the last of a name counts. ``groups`` and ``sets`` by name in small letters."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.sets: dict[str, list[Member]] = {}
        self.rules: list[Rule] = []
        self.groups: dict[str, list[Rule]] = {}
        self.strange: list[Strange] = []

    def on(self, option: str, default: bool) -> bool | None:
        """None for a value that is neither yes nor no."""
        value = self.options.get(option)
        if value is None:
            return default
        if value.lower() in ("1", "on", "yes", "true"):
            return True
        if value.lower() in ("0", "off", "no", "false"):
            return False
        # cluster.fw's "enable" is a number.
        return int(value) > 0 if re.fullmatch(r"[0-9]{1,9}", value) else None


class Refused(PveguardError):
    """Text that would not be a line of its section."""


def parse(text: str) -> Parsed:
    """Read a text; never raises."""
    found = Parsed()
    for number, line in enumerate(_lines(text), 1):
        if line.what == "strange":
            found.strange.append(Strange(number, str(line.found)))
        kind, name = line.section
        if line.what == "header":
            if kind == "ipset":
                found.sets.setdefault(name, [])
            elif kind == "group":
                found.groups.setdefault(name, [])
        elif line.what == "entry":
            if isinstance(line.found, Rule):
                (found.rules if kind == "rules" else found.groups[name]).append(line.found)
            elif isinstance(line.found, Member):
                found.sets[name].append(line.found)
            elif isinstance(line.found, tuple):
                (found.options if kind == "options" else found.aliases)[str(line.found[0])] = str(line.found[1])
    return found


def parse_rule(text: str) -> Rule:
    """Raises Refused."""
    plain, _, comment = text.partition("#")
    plain = plain.strip()
    words = plain.removeprefix("|").split()
    if len(words) < 2:
        raise Refused("a rule is TYPE ACTION [OPTIONS]")
    kind, macro = words[0].upper(), ""
    if kind not in _TYPES:
        raise Refused(f"{words[0]!r} is none of {', '.join(_TYPES)}")
    action = words[1]
    if kind == "GROUP":
        if not _NAME.match(action):
            raise Refused(f"{action!r} is no name of a security group")
    else:
        match = _ACTION.match(action)
        if match is None:
            raise Refused(f"{action!r} is neither ACCEPT, DROP or REJECT nor MACRO(ACCEPT)")
        macro, action = match[1] or "", (match[2] or match[3]).upper()
    rest = words[2:]
    params: dict[str, str] = {}
    for place in range(0, len(rest), 2):
        key = _PARAMETERS.get(rest[place].lstrip("-")) if rest[place].startswith("-") else None
        if key is None:
            raise Refused(f"{rest[place]!r} is no parameter of a rule")
        if place + 1 == len(rest):
            raise Refused(f"{rest[place]!r} has no value")
        if key in params:
            raise Refused(f"{rest[place]!r} is there twice")
        params[key] = rest[place + 1]
    return Rule(kind, action, macro, params, not plain.startswith("|"), comment.strip())


# --- edits ------------------------------------------------------------------------------------------------------


def set_option(text: str, key: str, value: str | None) -> str:
    """The text with this option; None takes it out. Of a line that is there only the value changes. Raises Refused."""
    if value is not None and (not _OPTION.match(f"{key}: {value}") or value != value.strip() or not value):
        raise Refused(f"{key}: {value!r} is no option of the firewall")
    return _replace(
        text,
        ("options", ""),
        lambda entry: isinstance(entry, tuple) and entry[0] == key.lower(),
        None if value is None else f"{key}: {value}",
    )


def add_rules(text: str, rules: Sequence[Rule], *, group: str = "", first: bool = True) -> str:
    """The text with those of ``rules`` that it has not, in their order, before or behind the others. Raises Refused.

    The first rule that fits decides, so what must pass belongs before a rule that drops. A rule that is there further down,
    behind one that could drop, counts as there: whether that is enough is the caller's question.
    """
    section = ("group", group.lower()) if group else ("rules", "")
    there = {entry.means() for entry in _entries(text, section) if isinstance(entry, Rule)}
    wanted = []
    for rule in rules:
        if parse_rule(rule.text()) != rule:
            raise Refused(f"{rule.text()!r} cannot be written as a rule")
        if rule.means() not in there:
            there.add(rule.means())
            wanted.append(rule.text())
    return _insert(text, section, wanted, first)


def remove_rules(text: str, mark: str, *, group: str = "") -> str:
    """The text without rules whose comment begins with ``mark``."""
    section = ("group", group.lower()) if group else ("rules", "")
    return _replace(text, section, lambda entry: isinstance(entry, Rule) and _marked(entry.comment, mark), None)


def put_rules(text: str, rules: Sequence[Rule], mark: str) -> str:
    """The text with exactly ``rules`` under this mark, before all others; the same text where they are there already and none
    that could drop stands before them. Raises Refused, also for a rule without the mark.
    """
    for rule in rules:
        if not _marked(rule.comment, mark) or parse_rule(rule.text()) != rule:
            raise Refused(f"{rule.text()!r} cannot be written as a rule with the mark {mark!r}")
    there = [entry for entry in _entries(text, ("rules", "")) if isinstance(entry, Rule)]
    own = [place for place, rule in enumerate(there) if _marked(rule.comment, mark)]
    if [there[place].text() for place in own] == [rule.text() for rule in rules]:
        ahead = there[: own[-1]] if own else []
        if all((rule.kind != "GROUP" and rule.action == "ACCEPT") or not rule.enabled for rule in ahead):
            return text
    return _insert(remove_rules(text, mark), ("rules", ""), [rule.text() for rule in rules], first=True)


def with_section(text: str, kind: str, note: str) -> str:
    """The text with a section [OPTIONS], [ALIASES] or [RULES]. One that was not there is added at the end, below the comment
    ``note``, by which :func:`without_section` knows it."""
    title = f"[{kind.upper()}]"
    _one_line_each([note])
    if any(line.what == "header" and line.section == (kind.lower(), "") for line in _lines(text)):
        return text
    raw = _split(text)
    ending = "\r\n" if raw and raw[0].endswith("\r\n") else "\n"
    closed = _closed(raw, ending)
    said = f"# {note}{'' if closed == raw else _CLOSED}"
    return "".join([*closed, f"{said}{ending}", f"{title}{ending}", ending])


def without_section(text: str, note: str) -> str:
    """The text without the comment of :func:`with_section`, and without the section below it unless something stands in it."""
    raw, lines = _split(text), _lines(text)
    for place in reversed(range(len(raw))):
        said = raw[place].strip()
        if lines[place].what != "blank" or said not in (f"# {note}", f"# {note}{_CLOSED}"):
            continue
        end = next((other for other in range(place + 2, len(raw)) if lines[other].what == "header"), len(raw))
        inside = raw[place + 2 : end]
        gone = 1
        if place + 1 < len(raw) and lines[place + 1].what == "header" and not any(line.strip() for line in inside):
            # The blank line behind it was added with it.
            gone = 3 if inside else 2
        before = raw[:place]
        if said.endswith(_CLOSED) and place + gone >= len(raw) and before:
            before = [*before[:-1], before[-1].removesuffix("\r\n" if raw[place].endswith("\r\n") else "\n")]
        raw, lines = [*before, *raw[place + gone :]], [*lines[:place], *lines[place + gone :]]
    return "".join(raw)


# --- lines ------------------------------------------------------------------------------------------------------


def _marked(comment: str, mark: str) -> bool:
    """A mark ends where a word does: "pveguard" is none of "pveguardian"."""
    return bool(mark) and re.match(rf"{re.escape(mark)}(?!\w)", comment) is not None


def _split(text: str) -> list[str]:
    """Lines with their ends. Not splitlines(): a comment may hold what Unicode takes for the end of a line."""
    return re.findall(r"[^\n]*\n|[^\n]+\Z", text)


def _lines(text: str) -> list[_Line]:
    found: list[_Line] = []
    section = ("", "")
    for raw in _split(text):
        line = raw.strip()
        if not line or line.startswith("#"):
            found.append(_Line(section, "blank"))
            continue
        try:
            if line.startswith("["):
                # What follows a header that is not understood belongs to nothing.
                section = ("", "")
                section = _header(line)
                found.append(_Line(section, "header"))
            else:
                found.append(_Line(section, "entry", _entry(section, line)))
        except Refused as error:
            found.append(_Line(section, "strange", str(error)))
    return found


def _header(line: str) -> tuple[str, str]:
    match = _SECTION.match(line)
    kind, name = (match[1].lower(), (match[2] or "").lower()) if match else ("", "")
    if kind in _PLAIN_SECTIONS and not name:
        return kind, ""
    if kind in ("ipset", "group") and _NAME.match(name):
        return kind, name
    raise Refused("no section of a firewall's file")


def _entry(section: tuple[str, str], line: str) -> object:
    """A Rule, a Member or (key, value). Raises Refused."""
    kind = section[0]
    if kind in ("rules", "group"):
        rule = parse_rule(line)
        if kind == "group" and rule.kind == "GROUP":
            raise Refused("a group within a group")
        return rule
    plain, _, comment = line.partition("#")
    if kind == "ipset" and (match := _MEMBER.match(plain.strip())):
        return Member(match[2], bool(match[1]), comment.strip())
    if kind == "aliases" and (match := _ALIAS.match(plain.strip())):
        return match[1].lower(), match[2]
    if kind == "options" and (match := _OPTION.match(line)):
        return match[1].lower(), match[2]
    raise Refused({"": "in no section", "ipset": "no entry of an ipset"}.get(kind, f"no line of [{kind.upper()}]"))


def _entries(text: str, section: tuple[str, str]) -> list[object]:
    return [line.found for line in _lines(text) if line.section == section and line.what == "entry"]


def _replace(text: str, section: tuple[str, str], fits: object, wanted: str | None) -> str:
    """The lines that fit go; ``wanted`` takes the place of the last one, which counts, or is added."""
    assert callable(fits)
    raw = _split(text)
    places = [
        place for place, line in enumerate(_lines(text)) if line.section == section and line.what == "entry" and fits(line.found)
    ]
    _one_line_each([wanted or ""])
    if wanted is None:
        return "".join(line for place, line in enumerate(raw) if place not in places)
    if not places:
        return _insert(text, section, [wanted], first=False)
    last = places[-1]
    if match := _VALUE.match(raw[last]):
        raw[last] = f"{match[1]}{wanted.partition(': ')[2]}{match[3]}"
    return "".join(raw)


def _insert(text: str, section: tuple[str, str], wanted: Sequence[str], first: bool) -> str:
    """The text with these lines in the first section of that name, which is made at the end where there is none."""
    if not wanted:
        return text
    _one_line_each(wanted)
    raw, lines = _split(text), _lines(text)
    ending = "\r\n" if raw and raw[0].endswith("\r\n") else "\n"
    new = [f"{line}{ending}" for line in wanted]
    headers = [place for place, line in enumerate(lines) if line.what == "header"]
    own = next((place for place in headers if lines[place].section == section), None)
    if own is None:
        kind, name = section
        title = f"[{kind.upper()}]" if kind in _PLAIN_SECTIONS else f"[{kind} {name}]"
        before = ending if raw and raw[-1].strip() else ""
        return "".join([*_closed(raw, ending), before, f"{title}{ending}", ending, *new])
    end = next((place for place in headers if place > own), len(lines))
    entries = [place for place in range(own + 1, end) if lines[place].what in ("entry", "strange")]
    if first:
        place = entries[0] if entries else own + 1
    else:
        place = entries[-1] + 1 if entries else own + 1
    if not entries and place < end and not raw[place].strip():
        place += 1  # Proxmox leaves a blank line behind a header
    return "".join([*_closed(raw[:place], ending), *new, *raw[place:]])


def _one_line_each(wanted: Iterable[str]) -> None:
    """What has an end of a line in it would be more than it says. Raises Refused."""
    for line in wanted:
        if re.search(r"[\r\n\0]", line):
            raise Refused(f"{line!r} is more than one line")


def _closed(raw: Sequence[str], ending: str) -> list[str]:
    """The last line of a file may have no end."""
    if raw and not raw[-1].endswith("\n"):
        return [*raw[:-1], raw[-1] + ending]
    return list(raw)
