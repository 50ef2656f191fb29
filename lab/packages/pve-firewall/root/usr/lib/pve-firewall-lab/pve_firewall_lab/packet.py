# SPDX-License-Identifier: Apache-2.0
"""``pve-firewall simulate``: what a new connection meets in a chain."""

from __future__ import annotations

import ipaddress
import socket

from .rules import Rule, Ruleset


def verdict(rules: Ruleset, chain: str, packet: dict[str, str]) -> str:
    """ACCEPT, DROP or REJECT; without a chain nothing is filtered."""
    for rule in rules.chains.get(chain, []):
        if matches(rule, rules, packet):
            return "ACCEPT" if rule.verdict == "RETURN" else rule.verdict
    return "ACCEPT"


def matches(rule: Rule, rules: Ruleset, packet: dict[str, str]) -> bool:
    if rule.state or rule.kind or rule.icmp or rule.iface_in or rule.iface_out:
        return False  # a new connection to one address, by no card in particular
    if rule.proto and rule.proto != packet["protocol"]:
        return False
    for wanted, value in ((rule.source, packet["source"]), (rule.dest, packet["dest"])):
        if wanted and not within(wanted, value, rules):
            return False
    return all(
        not wanted or in_ports(wanted, value, packet["protocol"])
        for wanted, value in ((rule.sport, packet["sport"]), (rule.dport, packet["dport"]))
    )


def within(wanted: str, value: str, rules: Ruleset) -> bool:
    if not value:
        return False
    address = ipaddress.ip_address(value)
    if wanted.startswith("+"):
        members = rules.sets[wanted[1:]]
        # The narrowest entry decides, as in a set of the kernel.
        hits = [each for each in members if address in ipaddress.ip_network(each.lstrip("!"))]
        hits.sort(key=lambda each: ipaddress.ip_network(each.lstrip("!")).prefixlen)
        return bool(hits) and not hits[-1].startswith("!")
    if "-" in wanted:
        first, last = (ipaddress.ip_address(each) for each in wanted.split("-"))
        return address.version == first.version and int(first) <= int(address) <= int(last)
    return address in ipaddress.ip_network(wanted)


def in_ports(wanted: str, value: str, proto: str) -> bool:
    for part in wanted.split(",") if value else ():
        if part[0].isalpha():
            try:
                part = str(socket.getservbyname(part, proto))
            except OSError:
                continue
        first, _, last = part.partition(":")
        if int(first) <= int(value) <= int(last or first):
            return True
    return False
