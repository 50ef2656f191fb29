# SPDX-License-Identifier: Apache-2.0
"""What Proxmox's firewall makes of one packet, by its files and by what it lets pass by itself. Pure; no connection is known, as
if the table of connections had just been flushed.

What cannot be told lets nothing pass: a rule with source ports, a macro or a network card that is not known accepts nothing. A
packet is taken to come by the card that has its address.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..base.errors import PveguardError
from ..formats.firewall_config import Rule, parse_rule

ACCEPT, DROP, REJECT = "ACCEPT", "DROP", "REJECT"
#: What Proxmox opens to the set "management": the web interface, VNC, SPICE, ssh, migration.
MANAGEMENT_PORTS = ((8006, 8006), (5900, 5999), (3128, 3128), (22, 22), (60000, 60050))
#: What it opens of Corosync between ring addresses: the legacy one link 0 alone, the one with nftables all links.
COROSYNC_PORTS = {"legacy": (5404, 5405), "nftables": (5405, 5412)}
#: Macros that may be about what a node needs; others fit nothing here.
MACROS = {
    "ssh": (("tcp", "22"),),
    "vnc": (("tcp", "5900:5999"),),
    "spiceproxy": (("tcp", "3128"),),
    "pmg": (("tcp", "8006"),),
    "ceph": (("tcp", "6789"), ("tcp", "3300"), ("tcp", "6800:7300")),
    "vxlan": (("udp", "4789"),),
    "bgp": (("tcp", "179"),),
    # Its source ports are those of DHCP too.
    "dhcpfwd": (("udp", "67:68"),),
}
_SIDES = ("source", "dest")
_WITH_PORTS = ("tcp", "udp", "sctp", "dccp")
#: Of /etc/services, what is asked for here.
_NAMES = {("tcp", "ssh"): 22}


class Packet(NamedTuple):
    """``kind``: IN or OUT. ``what``: for which it is, for a sentence."""

    what: str
    kind: str
    proto: str
    source: str
    dest: str
    port: int

    @property
    def ring(self) -> bool:
        return self.what.startswith("corosync link")


class Verdict(NamedTuple):
    """``by``: what decided, as ``cluster.fw: IN DROP -p tcp``, ``policy_in`` or ``management``."""

    action: str
    by: str


class Filter:
    """The firewall of a node as its facts tell it. ``first``: rules that stand before all others of cluster.fw; ``enforced``:
    whether it is on with policy DROP for what comes in."""

    def __init__(self, facts: Mapping[str, Any], first: Sequence[Rule] = (), enforced: bool = False) -> None:
        self.cluster, self.host = facts.get("cluster") or {}, facts.get("host") or {}
        self.local, self.members = facts.get("local_network") or "", facts.get("members") or []
        self.cards = facts.get("cards") or {}
        self.implementation = facts.get("implementation") or "none"
        self.files = [
            ("host.fw", _rules(self.host.get("rules") or [])),
            ("cluster.fw", [*first, *_rules(self.cluster.get("rules") or [])]),
        ]
        self.on = enforced or bool(self.cluster.get("enable"))
        self.on = self.on and self.host.get("enable") is not False
        self.policies = {
            "IN": DROP if enforced else self.cluster.get("policy_in") or DROP,
            "OUT": self.cluster.get("policy_out") or ACCEPT,
        }

    def verdict(self, packet: Packet) -> Verdict:
        if not self.on:
            return Verdict(ACCEPT, "the firewall is off")
        if (
            packet.kind == "IN"
            and "blacklist" in (self.cluster.get("sets") or {})
            and self._in("+blacklist", packet.source)
        ):
            return Verdict(DROP, "ipset blacklist")
        for name, rules in self.files:
            for rule in rules:
                for each in self._written_out(rule):
                    if each.enabled and each.kind == packet.kind and self._fits(each, packet):
                        return Verdict(each.action, f"{name}: {each.text()}")
        if self._by_itself(packet):
            return Verdict(ACCEPT, "management" if packet.proto == "tcp" else "ring")
        policy = self.policies[packet.kind]
        return Verdict(policy, f"policy_{packet.kind.lower()} {policy}")

    def _written_out(self, rule: Rule) -> list[Rule]:
        """A rule, or those of its group."""
        if rule.kind != "GROUP":
            return [rule]
        if not rule.enabled:
            return []
        iface = {"iface": rule.params["iface"]} if "iface" in rule.params else {}
        texts = (self.cluster.get("groups") or {}).get(rule.action.lower()) or []
        return [each._replace(params={**each.params, **iface}) for each in _rules(texts)]

    def _fits(self, rule: Rule, packet: Packet) -> bool:
        params = rule.params
        if rule.action == ACCEPT and "sport" in params:
            return False
        if "iface" in params:
            card = self.cards.get(packet.dest if packet.kind == "IN" else packet.source)
            if card != params["iface"] and (card is not None or rule.action == ACCEPT):
                return False
        # One that Proxmox makes no sense of is left out, all of it.
        proto = params.get("proto", "")
        if any(
            self.networks(part) is None for key in _SIDES for part in params.get(key, "").split(",") if part
        ):
            return False
        if not all(_are_ports(params.get(key, "")) for key in ("dport", "sport")):
            return False
        if (rule.macro and (proto or "dport" in params)) or (
            "dport" in params and proto not in ("", *_WITH_PORTS)
        ):
            return False
        for key, address in zip(_SIDES, (packet.source, packet.dest), strict=True):
            if key in params and not any(self._in(part, address) for part in params[key].split(",")):
                return False
        if rule.macro:
            known = MACROS.get(rule.macro.lower(), ())
            return any(proto == packet.proto and _has(ports, packet) for proto, ports in known)
        if not proto:
            return "dport" not in params
        return proto == packet.proto and ("dport" not in params or _has(params["dport"], packet))

    def _in(self, text: str, address: str) -> bool:
        return within(address, self.networks(text) or [])

    def networks(self, text: str) -> list[str] | None:
        """What a source or destination stands for: of a set its entries, with "!" before what is left out, of an alias its
        network. None for what Proxmox does not know.
        """
        if not text.startswith("+"):
            return None if (found := self._entry(text)) is None else [found]
        name = text[1:].lower().removeprefix("dc/")
        sets = self.cluster.get("sets") or {}
        if name not in sets and name != "management":
            return None
        entries = list(sets.get(name) or [])
        if name == "management" and self.local:
            entries.insert(0, "local_network")
        # A set has no ranges.
        return [found for each in entries if (found := self._entry(each)) is not None and "-" not in found]

    def _entry(self, entry: str) -> str | None:
        sign, text = ("!", entry[1:].strip()) if entry.startswith("!") else ("", entry)
        name = text.lower().removeprefix("dc/")
        aliases = self.cluster.get("aliases") or {}
        text = aliases.get(name) or (self.local if name == "local_network" else text)
        return f"{sign}{text}" if _range(text) is not None else None

    def _by_itself(self, packet: Packet) -> bool:
        if packet.proto == "udp":
            low, high = COROSYNC_PORTS.get(self.implementation, (1, 0))
            source, dest = (
                (packet.source, packet.dest) if packet.kind == "IN" else (packet.dest, packet.source)
            )
            return low <= packet.port <= high and self._of_one_link(source, dest)
        if not any(low <= packet.port <= high for low, high in MANAGEMENT_PORTS):
            return False
        if packet.kind == "IN":
            return self._in("+management", packet.source)
        # Migration is not among what it lets out.
        return packet.port < 60000 and bool(self.local) and self._in("local_network", packet.dest)

    def _of_one_link(self, theirs: str, ours: str) -> bool:
        own = [
            (link, each)
            for member in self.members
            if member.get("own")
            for link, each in (member.get("links") or {}).items()
        ]
        others = [
            (link, each)
            for member in self.members
            if not member.get("own")
            for link, each in (member.get("links") or {}).items()
        ]
        return any(here == ours and (link, theirs) in others for link, here in own)


def management_of(facts: Mapping[str, Any]) -> list[str]:
    """The networks that Proxmox lets in to ssh and 8006, with "!" those left out."""
    return Filter(facts).networks("+management") or []


def within(address: str, networks: Iterable[str]) -> bool:
    """Whether an address is in one of the networks or ranges; the narrowest one decides, and "!" says that it is not."""
    try:
        own = ipaddress.ip_address(address)
    except ValueError:
        return False
    hits = []
    for each in networks:
        ends = _range(each.removeprefix("!"))
        if ends is not None and ends[0].version == own.version and int(ends[0]) <= int(own) <= int(ends[1]):
            hits.append((int(ends[1]) - int(ends[0]), not each.startswith("!")))
    return min(hits)[1] if hits else False


def _rules(texts: Iterable[str]) -> list[Rule]:
    found = []
    for text in texts:
        try:
            found.append(parse_rule(text))
        except PveguardError:
            continue  # facts have none of these
    return found


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@functools.lru_cache(4096)
def _range(text: str) -> tuple[_Address, _Address] | None:
    try:
        first, dash, last = text.partition("-")
        if dash:
            return ipaddress.ip_address(first), ipaddress.ip_address(last)
        net = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    return net[0], net[-1]


def _are_ports(ports: str) -> bool:
    """Names are taken as they are."""
    return (
        all(re.fullmatch("[a-z][a-z0-9-]*", part) or _span(part) for part in ports.split(","))
        if ports
        else True
    )


def _span(part: str) -> tuple[int, int] | None:
    match = re.fullmatch("([0-9]{1,5})(?::([0-9]{1,5}))?", part)
    if match is None or max(int(match[1]), int(match[2] or 0)) > 65535:
        return None
    return int(match[1]), int(match[2] or match[1])


def _has(ports: str, packet: Packet) -> bool:
    for part in ports.split(","):
        span = _span(part)
        if (span and span[0] <= packet.port <= span[1]) or _NAMES.get((packet.proto, part)) == packet.port:
            return True
    return False
