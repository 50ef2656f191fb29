# SPDX-License-Identifier: Apache-2.0
"""Rules of both firewalls, before they are written for one of them: a chain is a list of rules, a set a list of networks."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from . import config
from .node import Guest, Node

MANAGEMENT_PORTS = ("8006", "5900:5999", "3128", "22", "60000:60050")
#: Towards other members, where policy_out drops.
CLUSTER_PORTS = ("8006", "22", "5900:5999", "3128")
DROPPED_QUIETLY = (("tcp", "43"), ("udp", "135"), ("udp", "445"), ("udp", "137:139"), ("udp", "1900"), ("tcp", "135"),
                   ("tcp", "139"), ("tcp", "445"))  # fmt: skip
NDP = ("133", "134", "135", "136")


@dataclass(frozen=True)
class Rule:
    """``verdict``: ACCEPT, DROP, REJECT, RETURN, or ``>CHAIN``. ``source`` and ``dest``: +SET, CIDR or A-B. ``log``: a prefix."""

    verdict: str
    proto: str = ""
    source: str = ""
    dest: str = ""
    sport: str = ""
    dport: str = ""
    icmp: str = ""
    iface_in: str = ""
    iface_out: str = ""
    state: str = ""
    kind: str = ""
    tap_in: str = ""
    tap_out: str = ""
    log: str = ""

    def families(self) -> set[int]:
        found = {4, 6}
        for each in (self.source, self.dest):
            if each and not each.startswith("+"):
                found &= {family(each)}
        if self.proto in ("igmp", "icmp"):
            found &= {4}
        if self.proto == "icmpv6":
            found &= {6}
        return found


@dataclass
class Ruleset:
    chains: dict[str, list[Rule]] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def family(network: str) -> int:
    return 6 if ":" in network else 4


class Compiler:
    """``accept``: what "let it pass" is in a host's chain. ``corosync``: the ports that are open between members."""

    def __init__(self, node: Node, *, accept: str, corosync: str, prefix: str) -> None:
        self.node, self.accept, self.corosync, self.prefix = node, accept, corosync, prefix
        self.out = Ruleset(wrong=node.wrong())

    # --- names -> addresses -----------------------------------------------------------------------------------

    def addresses(self, text: str, guest: config.Config | None = None) -> list[str]:
        """Of ``-source`` or ``-dest``; "" alone for none. Raises config.Wrong."""
        if not text:
            return [""]
        return [self.address(part, guest) for part in text.split(",")]

    def address(self, text: str, guest: config.Config | None) -> str:
        if text.startswith("+"):
            scope, _, name = text[1:].lower().rpartition("/")
            if scope in ("", "guest") and guest is not None and name in guest.sets:
                return "+" + self.use_set(f"{guest.name[:-3]}-{name}", guest.sets[name], guest)
            if scope in ("", "dc") and (name in self.node.cluster.sets or name == "management"):
                return "+" + self.use_set(f"0-{name}", self.node.cluster.sets.get(name, []), None)
            raise config.Wrong(f"no such ipset {text!r}")
        alias = self.alias(text, guest)
        if alias is not None:
            text = alias
        return network(text)

    def alias(self, text: str, guest: config.Config | None) -> str | None:
        scope, _, name = text.lower().rpartition("/")
        if scope in ("", "guest") and guest is not None and name in guest.aliases:
            return guest.aliases[name]
        if scope in ("", "dc"):
            if name == "local_network" and self.node.local_network:
                return self.node.local_network
            return self.node.cluster.aliases.get(name)
        return None

    def use_set(self, name: str, entries: list[str], guest: config.Config | None) -> str:
        full = f"{self.prefix}{name}"
        if full in self.out.sets:
            return full
        members = self.out.sets.setdefault(full, [])
        if name == "0-management" and self.node.local_network:
            entries = [self.node.local_network, *entries]
        for entry in entries:
            sign = "!" if entry.startswith("!") else ""
            entry = entry.lstrip("!")
            try:
                value = sign + network(self.alias(entry, guest) or entry)
            except config.Wrong as error:
                self.out.wrong.append(f"ipset {name}: {error}")
                continue
            if "-" in value:
                self.out.wrong.append(f"ipset {name}: {entry!r} is no network")
            elif value not in members:
                members.append(value)
        return full

    # --- rules of the files -----------------------------------------------------------------------------------

    def written(
        self, file: config.Config, kind: str, accept: str, guest: config.Config | None = None, taps: tuple[str, ...] = ()
    ) -> list[Rule]:
        """The rules of a file for one direction, groups written out where they are used."""
        found: list[Rule] = []
        for line in file.rules:
            try:
                if line.kind == "GROUP":
                    group = self.node.cluster.groups.get(line.action.lower())
                    if group is None:
                        raise config.Wrong(f"no such security group {line.action!r}")
                    iface = line.values.get("iface", "")
                    for each in group:
                        if each.kind == kind:
                            found += self.one(each, kind, accept, guest, taps, iface)
                elif line.kind == kind:
                    found += self.one(line, kind, accept, guest, taps)
            except config.Wrong as error:
                said = f"{file.name} (line {line.number}): {error}"
                if said not in self.out.wrong:  # a group is used for both directions
                    self.out.wrong.append(said)
        return found

    def one(
        self, line: config.Line, kind: str, accept: str, guest: config.Config | None, taps: tuple[str, ...], iface: str = ""
    ) -> list[Rule]:
        """Raises config.Wrong."""
        values = line.values
        iface = iface or values.get("iface", "")
        if guest is not None:
            if iface and iface not in taps:
                return []
            iface = ""
        for name in ("sport", "dport"):
            check_ports(values.get(name, ""))
        parts = [(values.get("proto", ""), values.get("dport", ""), values.get("icmp_type", ""))]
        if line.macro:
            if values.get("proto") or values.get("dport"):
                raise config.Wrong(f"the macro {line.macro} brings its own protocol and port")
            name = next(name for name in config.MACROS if name.lower() == line.macro.lower())
            parts = []
            for proto, what in config.MACROS[name]:
                parts.append((proto, "", what) if proto == "icmp" else (proto, what, ""))
        found = []
        log = values.get("log", "nolog")
        for source in self.addresses(values.get("source", ""), guest):
            for dest in self.addresses(values.get("dest", ""), guest):
                for proto, dport, icmp in parts:
                    if (dport or values.get("sport")) and proto not in ("tcp", "udp", "sctp", "dccp"):
                        raise config.Wrong("ports without a protocol that has them")
                    found.append(
                        Rule(
                            accept if line.action == "ACCEPT" else line.action,
                            proto=proto,
                            source=source,
                            dest=dest,
                            sport=values.get("sport", ""),
                            dport=dport,
                            icmp=icmp,
                            iface_in=iface if kind == "IN" else "",
                            iface_out=iface if kind == "OUT" else "",
                            log="" if log == "nolog" else f"{line.action}: ",
                        )
                    )
        return found

    # --- the node ---------------------------------------------------------------------------------------------

    def start(self, direction: str) -> list[Rule]:
        """What every chain of a host begins with."""
        if direction == "IN":
            rules = [Rule("ACCEPT", iface_in="lo")]
        else:
            rules = [Rule("ACCEPT", iface_out="lo")]
        if not self.node.host.on("nf_conntrack_allow_invalid", False):
            rules.append(Rule("DROP", state="INVALID"))
        rules += [Rule("ACCEPT", state="RELATED,ESTABLISHED"), Rule(self.accept, proto="igmp")]
        if self.node.host.on("ndp", True):
            rules += [Rule(self.accept, proto="icmpv6", icmp=number) for number in NDP]
        return rules

    def ring(self, direction: str) -> list[Rule]:
        found = []
        for _name, _link, theirs, ours in self.node.peers:
            if family(theirs) == family(ours):
                source, dest = (theirs, ours) if direction == "IN" else (ours, theirs)
                found.append(Rule(self.accept, proto="udp", source=source, dest=dest, dport=self.corosync))
        return found

    def host_in(self) -> list[Rule]:
        rules = self.start("IN")
        if "blacklist" in self.node.cluster.sets:
            rules.append(Rule("DROP", source=self.address("+dc/blacklist", None)))
        for file in (self.node.host, self.node.cluster):
            rules += self.written(file, "IN", self.accept)
        management = self.address("+dc/management", None)
        rules += [Rule(self.accept, proto="tcp", source=management, dport=port) for port in MANAGEMENT_PORTS]
        rules += self.ring("IN")
        if self.node.local_network:
            try:
                local = network(self.node.local_network)
                rules.append(Rule(self.accept, proto="udp", source=local, dport=self.corosync, kind="MULTICAST"))
            except config.Wrong as error:
                self.out.wrong.append(f"alias local_network: {error}")
        policy = self.node.cluster.policy("policy_in", "DROP")
        return rules + self.policy(policy, "log_level_in")

    def host_out(self) -> list[Rule]:
        rules = self.start("OUT")
        for file in (self.node.host, self.node.cluster):
            rules += self.written(file, "OUT", self.accept)
        if self.node.local_network:
            try:
                local = network(self.node.local_network)
                rules += [Rule(self.accept, proto="tcp", dest=local, dport=port) for port in CLUSTER_PORTS]
            except config.Wrong:
                pass  # said already
        rules += self.ring("OUT")
        return rules + self.policy(self.node.cluster.policy("policy_out", "ACCEPT"), "log_level_out")

    def policy(self, policy: str, level: str) -> list[Rule]:
        if policy == "ACCEPT":
            return [Rule(self.accept)]
        rules = [Rule("ACCEPT", proto="icmp", icmp=number) for number in ("3", "4", "11")]
        rules += [Rule("ACCEPT", proto="icmpv6", icmp=number) for number in ("1", "2", "3", "4")]
        rules += [Rule("DROP", kind="BROADCAST"), Rule("DROP", kind="MULTICAST")]
        rules += [Rule(policy, proto=proto, dport=port) for proto, port in DROPPED_QUIETLY]
        rules.append(Rule("DROP", proto="udp", sport="53"))
        logged = self.node.host.options.get(level, "nolog")
        return [*rules, Rule(policy, log="" if logged == "nolog" else f"policy {policy}: ")]

    # --- guests -----------------------------------------------------------------------------------------------

    def awake(self) -> list[Guest]:
        """Guests with a firewall of their own that is switched on; all sleep until the cluster's is."""
        return [guest for guest in self.node.guests if guest.files.on("enable", False) and guest.taps]

    def guest_chain(self, guest: Guest, kind: str, tap: int) -> list[Rule]:
        file = guest.files
        rules = [Rule("DROP", state="INVALID"), Rule("ACCEPT", state="RELATED,ESTABLISHED")]
        if file.on("dhcp", True):
            rules.append(Rule("ACCEPT", proto="udp", sport="67" if kind == "IN" else "68", dport="68" if kind == "IN" else "67"))
        if file.on("ndp", True):
            rules += [Rule("ACCEPT", proto="icmpv6", icmp=number) for number in NDP]
        rules += self.written(file, kind, "ACCEPT", file, (f"net{tap}",))
        default = "DROP" if kind == "IN" else "ACCEPT"
        return [*rules, Rule(file.policy(f"policy_{kind.lower()}", default))]


def network(text: str) -> str:
    """A network, an address or a range in its own way of writing. Raises config.Wrong."""
    try:
        if "-" in text:
            first, last = (ipaddress.ip_address(each) for each in text.split("-"))
            if first.version != last.version:
                raise ValueError
            return f"{first}-{last}"
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise config.Wrong(f"{text!r} is no address, network, range, alias or ipset") from None
    return str(found.network_address) if found.num_addresses == 1 else str(found)


def check_ports(text: str) -> None:
    """Raises config.Wrong."""
    for part in text.split(",") if text else ():
        if re.fullmatch(r"[a-z][a-z0-9-]*", part):
            continue
        ends = part.split(":")
        if len(ends) > 2 or not all(re.fullmatch(r"[0-9]{1,5}", end) and int(end) < 65536 for end in ends):
            raise config.Wrong(f"{part!r} is no port")
