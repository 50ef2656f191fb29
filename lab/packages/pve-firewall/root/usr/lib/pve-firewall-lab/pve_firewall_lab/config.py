# SPDX-License-Identifier: Apache-2.0
"""The firewall's files: cluster.fw, host.fw and a guest's ID.fw."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SECTION = re.compile(r"\[(\S+)(?:\s+(\S+))?\]\s*(?:#.*)?", re.IGNORECASE)
OPTION = re.compile(r"([a-z][a-z0-9_]*):\s*(.*?)\s*", re.IGNORECASE)
ALIAS = re.compile(r"(\S+)\s+(\S+)(?:\s+#.*)?")
VERDICTS = ("ACCEPT", "DROP", "REJECT")
PARAMETERS = {
    "i": "iface", "iface": "iface", "p": "proto", "proto": "proto", "source": "source", "dest": "dest",
    "sport": "sport", "dport": "dport", "log": "log", "icmp-type": "icmp_type",
}  # fmt: skip
#: (protocol, destination ports or ICMP type) of the documented macros that nodes are asked for; the real list is longer.
MACROS: dict[str, tuple[tuple[str, str], ...]] = {
    "Ceph": (("tcp", "6789"), ("tcp", "3300"), ("tcp", "6800:7300")),
    "DNS": (("udp", "53"), ("tcp", "53")),
    "HTTP": (("tcp", "80"),),
    "HTTPS": (("tcp", "443"),),
    "NTP": (("udp", "123"),),
    "PMG": (("tcp", "8006"),),
    "Ping": (("icmp", "echo-request"),),
    "RDP": (("tcp", "3389"),),
    "Rsync": (("tcp", "873"),),
    "SMTP": (("tcp", "25"),),
    "SNMP": (("udp", "161:162"), ("tcp", "161")),
    "SPICEproxy": (("tcp", "3128"),),
    "SSH": (("tcp", "22"),),
    "Syslog": (("udp", "514"), ("tcp", "514")),
    "Telnet": (("tcp", "23"),),
    "VNC": (("tcp", "5900:5999"),),
    "Web": (("tcp", "80"), ("tcp", "443")),
}


@dataclass
class Line:
    """A rule as written: ``kind`` IN, OUT, FORWARD or GROUP; ``action`` a verdict or a group's name."""

    number: int
    kind: str
    action: str
    macro: str = ""
    values: dict[str, str] = field(default_factory=dict)


@dataclass
class Config:
    """One file. ``wrong`` are sentences about lines that were passed over."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=dict)
    rules: list[Line] = field(default_factory=list)
    groups: dict[str, list[Line]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def on(self, option: str, default: bool) -> bool:
        value = self.options.get(option, "").lower()
        if value in ("1", "yes", "on", "true"):
            return True
        return False if value in ("0", "no", "off", "false") else default

    def policy(self, option: str, default: str) -> str:
        value = self.options.get(option, default).upper()
        return value if value in VERDICTS else default

    def number(self, option: str, default: int) -> int:
        value = self.options.get(option, "")
        return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else default


class Wrong(Exception):
    """A line that is passed over."""


def parse_rule(text: str, number: int) -> Line | None:
    """None for one that is switched off by ``|``. Raises Wrong."""
    text = text.partition("#")[0].strip()
    off = text.startswith("|")
    words = text.lstrip("|").split()
    if len(words) < 2:
        raise Wrong("a rule is TYPE ACTION [OPTIONS]")
    rule = Line(number, words[0].upper(), words[1])
    if rule.kind not in ("IN", "OUT", "FORWARD", "GROUP"):
        raise Wrong(f"unknown type {words[0]!r}")
    if rule.kind != "GROUP":
        match = re.fullmatch(r"(?:(\w+)\()?([A-Za-z]+)(\))?", words[1])
        if match is None or bool(match[1]) != bool(match[3]) or match[2].upper() not in VERDICTS:
            raise Wrong(f"unknown action {words[1]!r}")
        rule.action, rule.macro = match[2].upper(), match[1] or ""
        if rule.macro and not any(name.lower() == rule.macro.lower() for name in MACROS):
            raise Wrong(f"unknown macro {rule.macro!r}")
    rest = words[2:]
    if len(rest) % 2:
        raise Wrong(f"{rest[-1]!r}: a parameter without a value")
    for key, value in zip(rest[::2], rest[1::2], strict=True):
        known = PARAMETERS.get(key.lstrip("-")) if key.startswith("-") else None
        if known is None:
            raise Wrong(f"unknown parameter {key!r}")
        rule.values[known] = value
    return None if off else rule


def parse(name: str, text: str) -> Config:
    """Never raises: what cannot be read is passed over, as the real one does with a line in the journal."""
    config = Config(name)
    section, key = "", ""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("["):
                section, key = "", ""
                section, key = _section(config, line)
            elif section == "options":
                _option(config, line)
            elif section == "aliases":
                match = ALIAS.fullmatch(line)
                if match is None:
                    raise Wrong("an alias is NAME CIDR")
                config.aliases[match[1].lower()] = match[2]
            elif section == "ipset":
                config.sets[key].append(re.sub(r"^!\s*", "!", line.partition("#")[0].strip()))
            elif section in ("rules", "group"):
                rule = parse_rule(line, number)
                if rule is not None:
                    (config.rules if section == "rules" else config.groups[key]).append(rule)
            else:
                raise Wrong("in no section")
        except Wrong as error:
            config.wrong.append(f"{name} (line {number}): {error}: {line}")
    return config


def _section(config: Config, line: str) -> tuple[str, str]:
    match = SECTION.fullmatch(line)
    kind, name = (match[1].lower(), (match[2] or "").lower()) if match else ("", "")
    if kind in ("options", "aliases", "rules") and not name:
        return kind, ""
    if kind == "ipset" and name:
        config.sets.setdefault(name, [])
        return kind, name
    if kind == "group" and name:
        config.groups.setdefault(name, [])
        return kind, name
    # What follows belongs to nothing; the section before has ended.
    raise Wrong("unknown section")


def _option(config: Config, line: str) -> None:
    match = OPTION.fullmatch(line)
    if match is None:
        raise Wrong("an option is KEY: VALUE")
    config.options[match[1].lower()] = match[2]
