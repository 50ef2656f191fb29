# SPDX-License-Identifier: Apache-2.0
"""The firewall's rules that a node needs, as text of cluster.fw and as a table of nftables. Pure: facts and texts go in, and
texts come out.

``facts`` are those of the core ``firewall``, through JSON or not. Own rules are known by their comment, which begins with
``MARK``; so they are found again after somebody has saved the file in the web interface.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.errors import PveguardError
from ..formats import firewall_config
from ..formats.firewall_config import Refused, Rule
from ..pmxcfs.places import CLUSTER_FW
from . import firewall_verdict
from .firewall_verdict import Filter, Packet

ROLE = "node_hardening"
AUDIT, RULES, ENFORCE = "audit", "rules", "enforce"
MODES = (AUDIT, RULES, ENFORCE)
#: What the comment of each own rule begins with, of those that are wanted with a colon.
MARK = "pveguard"
_OWN = f"{MARK}:"
#: The comment of a rule that is switched off, and keeps what the options were before :func:`enforced`. A rule, as comments that
#: stand alone are lost when the file is saved in the web interface.
_BEFORE = f"{MARK} before enforce"
#: The comment line above a section that was added.
_SECTION = f"{MARK}: this section was added"
_ENFORCED = {"enable": "1", "policy_in": "DROP"}
#: Of link 0; link N has this and N.
COROSYNC_PORT = 5405
QDEVICE_PORT = 5403
#: What the members of an EVPN zone ask each other beside VXLAN.
EVPN = (("BGP", "tcp", 179), ("BFD", "udp", 3784))
DHCP_PORT = 67
#: ssh, the SPICE proxy, VNC, the web interface, migration.
MANAGEMENT_PORTS = "22,3128,5900:5999,8006,60000:60050"
#: A source or destination may have this many characters, and may not mix IPv4 and IPv6.
LIST_CHARACTERS = 512
#: The own table on a host without Proxmox's firewall, and where its text lies.
TABLE = "inet pveguard"
NFTABLES_FILE = "/etc/nftables.d/pveguard.nft"

#: iptables takes so many ports in one rule; a range counts twice.
PORTS_IN_A_RULE = 15
VARIABLE = "node_hardening_firewall_management"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """``management``: networks and addresses of who may manage the nodes. ``confirm``: the cluster's name (without a cluster that
    of the node) as it was typed for ``enforce``, which wakes the rules of guests.
    """

    mode: str = AUDIT
    management: tuple[str, ...] = ()
    confirm: str = ""

    @classmethod
    def of(cls, variables: Mapping[str, Any]) -> Options:
        """From the role's variables ``node_hardening_firewall``, ``_management`` and ``_cluster_name``. Raises
        PveguardError for what is no mode and no network.
        """
        mode = str(variables.get("node_hardening_firewall") or AUDIT)
        if mode not in MODES:
            raise PveguardError(f"node_hardening_firewall: {mode!r} is none of {', '.join(MODES)}")
        given = variables.get("node_hardening_firewall_management") or []
        found = []
        for each in [given] if isinstance(given, str) else given:
            try:
                found.append(_plain(ipaddress.ip_network(str(each), strict=False)))
            except ValueError:
                raise PveguardError(
                    f"node_hardening_firewall_management: {str(each)!r} is neither an address nor a network"
                ) from None
        return cls(mode, tuple(found), str(variables.get("node_hardening_firewall_cluster_name") or ""))


def together(nodes: Sequence[Facts]) -> dict[str, Any]:
    """The facts of a cluster for :func:`wanted`, from those of its nodes: cluster.fw is one file for all, and DRBD resources and
    the address of the controller are known to each node for itself. Raises ValueError without any.
    """
    if not nodes:
        raise ValueError("no facts of any node")
    found = dict(nodes[0])
    found["controllers"] = sorted({each for node in nodes for each in _controllers(node)})
    found["ssh_ports"] = sorted({int(node.get("ssh_port") or 22) for node in nodes})
    drbd = {}
    for node in nodes:
        for each in node.get("drbd") or []:
            drbd[each["resource"], each["port"], tuple(each["addresses"])] = each
    found["drbd"] = [drbd[key] for key in sorted(drbd)]
    return found


def management(facts: Facts, options: Options) -> list[str]:
    """Who is let in to ssh and 8006 by the own rules: the operators' networks, all members, the network of migration and the
    controller; each once, sorted."""
    wanted = [*options.management, *_controllers(facts)]
    for each in facts.get("members") or []:
        wanted += [each.get("address") or "", *(each.get("links") or {}).values()]
    wanted.append((facts.get("migration") or {}).get("network") or "")
    return _networks(wanted)


def wanted(facts: Facts, options: Options) -> list[Rule]:
    """Rules for cluster.fw, which all nodes share: each link of Corosync, management, DRBD and QDevice where they are used.

    Those for what goes out matter with policy_out DROP alone. With several nodes ask with what :func:`together` makes of their
    facts, so that each has the same rules.
    """
    found = []
    members = facts.get("members") or []
    for link in facts.get("links") or []:
        ring = _networks([(each.get("links") or {}).get(str(link)) or "" for each in members])
        found += _among(ring, "udp", str(COROSYNC_PORT + int(link)), f"corosync link {link}")
    managers, peers = management(facts, options), _networks([each.get("address") or "" for each in members])
    for sources in lists(managers):
        found.append(_rule("IN", "management", source=sources, proto="tcp", dport=_management_ports(facts)))
    network = (facts.get("migration") or {}).get("network") or ""
    for dests in lists(_networks([*peers, network])):
        found.append(_rule("OUT", "to other members", dest=dests, proto="tcp", dport=MANAGEMENT_PORTS))
    pairs: dict[tuple[str, ...], set[int]] = {}
    for each in facts.get("drbd") or []:
        pairs.setdefault(tuple(_networks(each["addresses"])), set()).add(int(each["port"]))
    for addresses in sorted(pairs):
        for ports in _ports(pairs[addresses]):
            found += _among(addresses, "tcp", ports, "DRBD")
    device = facts.get("qdevice")
    if device and device.get("address"):
        found.append(_rule("OUT", "QDevice", dest=device["address"], proto="tcp", dport=str(QDEVICE_PORT)))
    return found


def merged(cluster_fw_text: str, wanted: Sequence[Rule]) -> str:
    """The text with the own rules as wanted, before all others; others' lines stay byte for byte, but that the last one may get
    its end. Twice is once, also after the file was saved in the web interface.

    Raises firewall_config.Refused with the numbers of the lines that are not understood, and for a rule without the mark.
    """
    _require_plain(cluster_fw_text)
    if not wanted:
        return firewall_config.without_section(firewall_config.remove_rules(cluster_fw_text, _OWN), _SECTION)
    return firewall_config.put_rules(
        firewall_config.with_section(cluster_fw_text, "rules", _SECTION), wanted, _OWN
    )


def enforced(cluster_fw_text: str) -> str:
    """The text with the firewall on and policy DROP for what comes in; what was set before is noted for :func:`reverted`, in a
    rule that is switched off. Twice is once.

    Raises firewall_config.Refused as :func:`merged`, and where an option has no sense.
    """
    parsed = _require_plain(cluster_fw_text)
    for key, form in (("enable", r"[0-9]+"), ("policy_in", r"(?i:accept|drop|reject)")):
        if not re.fullmatch(form, parsed.options.get(key, _ENFORCED[key])):
            raise Refused(
                f"{CLUSTER_FW}: {key}: {parsed.options[key]!r} has no sense; set it right, or take the line out"
            )
    changes = {}
    if not parsed.on("enable", False):
        changes["enable"] = _ENFORCED["enable"]
    if parsed.options.get("policy_in", "").upper() != "DROP":
        changes["policy_in"] = _ENFORCED["policy_in"]
    text = cluster_fw_text
    if not changes:
        return text
    # Of an earlier run: what counts is what was before that.
    if not _memory(parsed):
        before = " ".join(f"{key}={parsed.options.get(key, '-')}" for key in _ENFORCED)
        params = {"source": "127.0.0.1", "dest": "127.0.0.1"}
        note = Rule("IN", "ACCEPT", "", params, False, f"{_BEFORE}: {before}")
        text = firewall_config.add_rules(
            firewall_config.with_section(text, "rules", _SECTION), [note], first=False
        )
    text = firewall_config.with_section(text, "options", _SECTION)
    for key, value in changes.items():
        text = firewall_config.set_option(text, key, value)
    return text


def reverted(text: str) -> str:
    """The text without the own rules, and with the options as they were before :func:`enforced`, unless somebody has set them
    since. Never raises: lines that are not understood stay.
    """
    parsed = firewall_config.parse(text)
    for key, before in _memory(parsed).items():
        if parsed.options.get(key) == _ENFORCED[key]:
            text = firewall_config.set_option(text, key, before)
    return firewall_config.without_section(firewall_config.remove_rules(text, MARK), _SECTION)


def _memory(parsed: firewall_config.Parsed) -> dict[str, str | None]:
    """What the options were before."""
    for rule in parsed.rules:
        if rule.comment.startswith(_BEFORE):
            pairs = [word.partition("=") for word in rule.comment[len(_BEFORE) :].strip(": ").split()]
            return {
                key: None if value == "-" else value
                for key, _, value in pairs
                if key in _ENFORCED and re.fullmatch(r"-|\w+", value)
            }
    return {}


def _require_plain(text: str) -> firewall_config.Parsed:
    """Raises Refused where a line is not understood."""
    parsed = firewall_config.parse(text)
    if parsed.strange:
        raise Refused(
            _malformed(CLUSTER_FW, [{"line": each.number, "why": each.why} for each in parsed.strange])
        )
    return parsed


def _malformed(path: str, strange: Sequence[Mapping[str, Any]]) -> str:
    told = "; ".join(f"line {each['line']}: {each['why']}" for each in strange[:5])
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    return f"{path}: {told}{more}: Proxmox passes such a line over; correct it or take it out"


# --- what speaks against it -------------------------------------------------------------------------------------


def needs(facts: Facts) -> list[Packet]:
    """What this node must get and send, one packet each: the ring, ssh and 8006 of members and controller, DRBD, QDevice, zones
    of SDN."""
    members = facts.get("members") or []
    own: Mapping[str, Any] = next((each for each in members if each.get("own")), {})
    address = facts.get("address") or own.get("address") or ""
    found = []
    for each in members:
        if each.get("own"):
            continue
        name = each["name"]
        for link, theirs in sorted((each.get("links") or {}).items()):
            ours, port = (own.get("links") or {}).get(link) or "", COROSYNC_PORT + int(link)
            if theirs and ours:
                found.append(Packet(f"corosync link {link} from {name}", "IN", "udp", theirs, ours, port))
                found.append(Packet(f"corosync link {link} to {name}", "OUT", "udp", ours, theirs, port))
        if each.get("address") and address:
            for port, what in ((22, "ssh"), (8006, "port 8006"), (60000, "migration")):
                found.append(Packet(f"{what} from {name}", "IN", "tcp", each["address"], address, port))
                found.append(Packet(f"{what} to {name}", "OUT", "tcp", address, each["address"], port))
    for controller in _controllers(facts):
        for port, what in ((int(facts.get("ssh_port") or 22), "ssh"), (8006, "port 8006")):
            found.append(Packet(f"{what} from the controller", "IN", "tcp", controller, address, port))
    own_addresses = {each.partition("/")[0] for each in facts.get("addresses") or []} | {address}
    for each in facts.get("drbd") or []:
        for ours in own_addresses.intersection(each["addresses"]):
            for theirs in set(each["addresses"]) - own_addresses:
                what = f"DRBD resource {each['resource']}"
                found.append(Packet(what, "IN", "tcp", theirs, ours, int(each["port"])))
                found.append(Packet(what, "OUT", "tcp", ours, theirs, int(each["port"])))
    device = facts.get("qdevice")
    if device and device.get("address"):
        found.append(Packet("the QDevice", "OUT", "tcp", address, device["address"], QDEVICE_PORT))
    for each in facts.get("inbound") or []:
        for peer in members:
            if not peer.get("own") and peer.get("address"):
                found.append(Packet(each["what"], "IN", "tcp", peer["address"], address, int(each["port"])))
    return [*found, *_sdn_needs(facts, address, own_addresses)]


def _sdn_needs(facts: Facts, address: str, own_addresses: set[str]) -> list[Packet]:
    found = []
    for zone in facts.get("sdn") or []:
        name = f"SDN zone {zone['zone']}"
        if zone["dhcp"]:
            found.append(Packet(f"{name} (DHCP of guests)", "IN", "udp", "0.0.0.0", "255.255.255.255", DHCP_PORT))
        if zone["kind"] not in ("vxlan", "evpn") or zone["fabric"]:
            continue
        ours = next((each for each in zone["peers"] if each in own_addresses), address)
        peers = zone["peers"] or [each.get("address") or "" for each in facts.get("members") or []]
        for theirs in peers:
            if not theirs or not ours or theirs in own_addresses:
                continue
            for what, proto, port in (("VXLAN", "udp", zone["port"]), *(EVPN if zone["kind"] == "evpn" else ())):
                found.append(Packet(f"{name} ({what})", "IN", proto, theirs, ours, port))
                found.append(Packet(f"{name} ({what})", "OUT", proto, ours, theirs, port))
    return found


def unmet(facts: Facts, rules: Sequence[Rule] = (), enforced: bool = False) -> list[tuple[Packet, str]]:
    """Which of :func:`needs` Proxmox's firewall does not let pass, and what decides so. ``rules``: those that come first."""
    filter = Filter(facts, rules, enforced)
    judged = [(each, filter.verdict(each)) for each in needs(facts)]
    return [(each, verdict.by) for each, verdict in judged if verdict.action != firewall_verdict.ACCEPT]


def declared(facts: Facts, options: Options) -> list[str]:
    """The management set that somebody has written down: the operators' networks, and on Proxmox its own set; "!" before what
    is left out."""
    if facts.get("implementation") == "none":
        return list(options.management)
    return [*options.management, *firewall_verdict.management_of(facts)]


def refusals(facts: Facts, mode: str, options: Options, rules: Sequence[Rule] | None = None) -> list[str]:
    """Why a mode must not be set here, in sentences that name file and fix; empty when nothing speaks against it. ``rules``: what
    is written, by default :func:`wanted` of these facts alone.
    """
    if mode == AUDIT:
        return []
    found = []
    if not facts.get("known"):
        found.append(
            f"not all that the firewall depends on could be read: {facts.get('error') or 'the node said nothing'}"
        )
    for key in ("cluster", "host"):
        if strange := (facts.get(key) or {}).get("strange"):
            found.append(_malformed(facts[key]["path"], strange))
    for each in facts.get("members") or []:
        for link, address in sorted((each.get("links") or {}).items()):
            if not address:
                written = (each.get("written") or {}).get(link) or "none"
                found.append(
                    f"corosync.conf: the address of {each['name']} on link {link} ({written}) is not known: write it as an "
                    "address, or add the name to /etc/hosts"
                )
    if facts.get("qdevice") and not facts["qdevice"].get("address"):
        found.append(
            f"corosync.conf: the address of the QDevice ({facts['qdevice'].get('host')}) is not known: add it to /etc/hosts"
        )
    for each in facts.get("drbd_strange") or []:
        found.append(f"{each['path']}: {each['why']}, so the ports of DRBD are not known")
    if mode == ENFORCE:
        found += _against_enforcing(facts, options, wanted(facts, options) if rules is None else rules)
    return found


def _against_enforcing(facts: Facts, options: Options, rules: Sequence[Rule]) -> list[str]:
    found = []
    where = f"add it to {VARIABLE}"
    if facts.get("implementation") != "none":
        where += f", or to [IPSET management] of {CLUSTER_FW}"
    networks = declared(facts, options)
    controllers = _controllers(facts)
    if not controllers:
        found.append(
            "the address of the controller is not known (this run did not come by ssh): it would be cut off"
        )
    for each in controllers:
        if not firewall_verdict.within(each, networks):
            found.append(f"the controller ({each}) is not in the management set: {where}")
    for each in facts.get("members") or []:
        if each.get("own"):
            continue
        if not each.get("address"):
            found.append(f"the address of {each['name']} is not known: /etc/pve/.members has none")
        elif facts.get("implementation") != "none" and not firewall_verdict.within(each["address"], networks):
            found.append(f"{each['name']} ({each['address']}) is not in the management set: {where}")
    if facts.get("implementation") == "none":
        return found
    host = facts.get("host") or {}
    for key, file in (("cluster", facts.get("cluster") or {}), ("host", host)):
        if file.get("present") and file.get("enable", False) is None:
            found.append(
                f"{file['path']}: the value of enable of the {key} is neither yes nor no: set 1 or 0"
            )
    if host.get("enable") is False:
        found.append(f"{host['path']}: enable: 0 keeps the firewall off on this node: take the line out")
    found += [
        f"SDN zone {each['zone']} lies on a fabric, and whether its packets would pass cannot be judged: leave the mode at rules"
        for each in facts.get("sdn") or []
        if each["fabric"]
    ]
    helped: dict[str, list[Packet]] = {}
    for packet, by in unmet(facts, rules, enforced=True):
        if packet.what.startswith("SDN zone"):
            helped.setdefault(f"{packet.what} would not pass ({by})", []).append(packet)
            continue
        found.append(
            f"{packet.what} ({packet.proto} {packet.port}, {packet.source} to {packet.dest}) would not pass ({by})"
        )
    found += [f"{said}: put this rule into [RULES] of {CLUSTER_FW}: {_helping(its)}" for said, its in helped.items()]
    found += _guests(facts, options)
    return found


def _helping(packets: Sequence[Packet]) -> str:
    """The rule that lets all of these pass, which differ in the other end alone."""
    one = packets[0]
    key, others = ("source", {each.source for each in packets}) if one.kind == "IN" else ("dest", {each.dest for each in packets})
    side = {} if one.port == DHCP_PORT else {key: ",".join(_networks(sorted(others)))}
    return Rule(one.kind, "ACCEPT", "", {**side, "proto": one.proto, "dport": str(one.port)}, True, "").text()


def _guests(facts: Facts, options: Options) -> list[str]:
    found = [_malformed(each["path"], [each]) for each in facts.get("guests_strange") or []]
    awake = (facts.get("cluster") or {}).get("enable")
    name = facts.get("cluster_name") or facts.get("node") or ""
    guests = facts.get("guests") or []
    if guests and not awake and (not name or options.confirm != name):
        told = ", ".join(shown_guest(each) for each in guests)
        given = f"{options.confirm!r} was typed" if options.confirm else "it was not typed"
        found.append(
            f"the sleeping rules of {len(guests)} guest{'s' if len(guests) > 1 else ''} would wake: {told}: look at their "
            f"files in /etc/pve/firewall, then set node_hardening_firewall_cluster_name to the cluster's name ({given})"
        )
    return found


def shown_guest(guest: Mapping[str, Any]) -> str:
    """A guest with what its rules do, for a sentence."""
    name = f" {guest['name']}" if guest.get("name") else ""
    rules = f"{guest['rules']} rule{'' if guest['rules'] == 1 else 's'}"
    return f"{guest['id']}{name} on {guest['node']} ({', '.join(guest['cards'])}, {rules}, policy_in {guest['policy_in']})"


# --- nftables ---------------------------------------------------------------------------------------------------


def nftables(facts: Facts, options: Options) -> str:
    """The own table for a host without Proxmox's firewall: a file for ``nft -f``, which replaces that table and touches no other.

    ``rules``: accept rules, and what they do not meet is accepted too. ``enforce``: the rest is dropped. Raises PveguardError for
    ``audit``, which sets nothing.
    """
    if options.mode not in (RULES, ENFORCE):
        raise PveguardError(f"node_hardening_firewall: {options.mode} sets no rules")
    rules = [each for each in wanted(facts, options) if each.kind == "IN"]
    if facts.get("qnetd"):
        rules += [
            _rule("IN", "QDevice", source=sources, proto="tcp", dport=str(QDEVICE_PORT))
            for sources in lists(management(facts, options))
        ]
    lines = [
        "#!/usr/sbin/nft -f",
        f"# {MARK}: what may come in to this host; made anew from the inventory, so do not edit it.",
        f"# By hand: nft -f {NFTABLES_FILE}; nft delete table {TABLE}",
        # So that it can be deleted where it was not there.
        f"table {TABLE}",
        f"delete table {TABLE}",
        f"table {TABLE} {{",
        "    chain input {",
        f"        type filter hook input priority filter; policy {'drop' if options.mode == ENFORCE else 'accept'};",
        '        iifname "lo" accept',
    ]
    # Before the table of connections is asked: the ring must not depend on it.
    lines += [f"        {_nft(each)}" for each in rules]
    lines += [
        "        ct state established,related accept",
        "        icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept",
        "        icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request } accept",
        "        icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query } accept",
        # Answers to a request by multicast belong to no connection.
        "        ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
        "    }",
        "}",
    ]
    return "\n".join([*lines, ""])


def _nft(rule: Rule) -> str:
    words = []
    for key, side in (("source", "saddr"), ("dest", "daddr")):
        if key in rule.params:
            family = "ip6" if ":" in rule.params[key] else "ip"
            words.append(f"{family} {side} {{ {rule.params[key].replace(',', ', ')} }}")
    ports = rule.params["dport"].replace(":", "-").replace(",", ", ")
    comment = rule.comment.removeprefix(_OWN).strip()
    return " ".join([*words, f"{rule.params['proto']} dport {{ {ports} }} accept", f'comment "{comment}"'])


# --- parts of rules ---------------------------------------------------------------------------------------------


def _rule(kind: str, why: str, **params: str) -> Rule:
    return Rule(kind, "ACCEPT", "", params, True, f"{_OWN} {why}")


def _among(addresses: Sequence[str], proto: str, dport: str, why: str) -> list[Rule]:
    """From any of these addresses to any, on the way in and on the way out."""
    parts = lists(addresses)
    return [
        _rule(kind, why, source=source, dest=dest, proto=proto, dport=dport)
        for source in parts
        for dest in parts
        if (":" in source) == (":" in dest)
        for kind in ("IN", "OUT")
    ]


def _ports(ports: set[int]) -> list[str]:
    """Ports as lists that iptables takes, neighbours as ranges."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    found: list[str] = []
    room = 0
    for low, high in runs:
        size = 1 if low == high else 2
        text = str(low) if low == high else f"{low}:{high}"
        if size > room:
            found.append(text)
            room = PORTS_IN_A_RULE - size
        else:
            found[-1] += f",{text}"
            room -= size
    return found


def _management_ports(facts: Facts) -> str:
    """With the port that the controller's login has come to."""
    others = {*(facts.get("ssh_ports") or []), int(facts.get("ssh_port") or 22)} - {22}
    return ",".join([MANAGEMENT_PORTS, *(str(port) for port in sorted(others))])


def _controllers(facts: Facts) -> list[str]:
    return [each for each in [*(facts.get("controllers") or []), facts.get("controller") or ""] if each]


def lists(networks: Sequence[str]) -> list[str]:
    """Networks as values of ``-source`` and ``-dest``: IPv4 and IPv6 apart, none too long."""
    found: list[str] = []
    for version in (4, 6):
        line = ""
        for each in networks:
            if (6 if ":" in each else 4) != version:
                continue
            if line and len(line) + 1 + len(each) > LIST_CHARACTERS:
                found.append(line)
                line = ""
            line = f"{line},{each}" if line else each
        found += [line] if line else []
    return found


def _networks(texts: Sequence[str]) -> list[str]:
    """Those that are networks or addresses, sorted; none that is in another, which a set of nftables would not take."""
    found = set()
    for each in texts:
        try:
            found.add(ipaddress.ip_network(each, strict=False))
        except ValueError:
            continue
    kept: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for net in sorted(found, key=lambda net: (net.version, int(net.network_address), net.prefixlen)):
        # A network comes before what is in it.
        if (
            not kept
            or kept[-1].version != net.version
            or int(net.network_address) > int(kept[-1].broadcast_address)
        ):
            kept.append(net)
    return [_plain(net) for net in kept]


def _plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)
