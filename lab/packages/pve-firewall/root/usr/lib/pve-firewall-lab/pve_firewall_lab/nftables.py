# SPDX-License-Identifier: Apache-2.0
"""The program ``proxmox-firewall``: the same files as an nftables table, where host.fw says ``nftables: 1``."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

from .iptables import Failed, Run, for_family, members, run
from .legacy import STOP_SIGNALS, seconds, set_kernel
from .node import ROOT, Node, Unready, load, log
from .rules import Compiler, Rule, Ruleset

#: All links of knet, which the legacy one does not open.
COROSYNC = "5405:5412"
TABLE = "inet proxmox-firewall"
GUESTS = "bridge proxmox-firewall-guests"
FORCE_DISABLE = f"{ROOT}/run/proxmox-nftables-firewall-force-disable"
HOOKS = {"HOST-IN": "input", "HOST-OUT": "output"}
ICMP_NAMES = {4: "icmp", 6: "icmpv6"}
STATES = {"INVALID": "invalid", "RELATED,ESTABLISHED": "{ related, established }"}


def compile_rules(node: Node) -> Ruleset:
    compiler = Compiler(node, accept="ACCEPT", corosync=COROSYNC, prefix="v-")
    if node.enabled and node.nftables:
        if node.host.on("enable", True):
            compiler.out.chains = {"HOST-IN": compiler.host_in(), "HOST-OUT": compiler.host_out()}
        for guest in compiler.awake():
            for tap in guest.taps:
                for kind in ("IN", "OUT"):
                    name = f"tap{guest.number}i{tap}-{kind}"
                    compiler.out.chains[name] = compiler.guest_chain(guest, kind, tap)
    return compiler.out


def set_name(name: str, version: int) -> str:
    return re.sub(r"[^a-zA-Z0-9_.-]", "-", f"{name}-v{version}")


def ports(value: str) -> str:
    parts = [part.replace(":", "-") for part in value.split(",")]
    return parts[0] if len(parts) == 1 else f"{{ {', '.join(parts)} }}"


def line(rule: Rule, version: int, bridge: bool = False) -> str:
    words = []
    if rule.iface_in:
        words.append(f'iifname "{rule.iface_in}"')
    if rule.iface_out:
        words.append(f'oifname "{rule.iface_out}"')
    ip = "ip" if version == 4 else "ip6"
    words.append(f"meta protocol {ip}" if bridge else f"meta nfproto ipv{version}")
    for value, side in ((rule.source, "saddr"), (rule.dest, "daddr")):
        if value.startswith("+"):
            name = set_name(value[1:], version)
            words.append(f"{ip} {side} != @{name}-except {ip} {side} @{name}")
        elif value:
            words.append(f"{ip} {side} {value}")
    if rule.state:
        words.append(f"ct state {STATES[rule.state]}")
    if rule.kind:
        words.append(f"fib daddr type {rule.kind.lower()}")
    if rule.icmp:
        words.append(f"{ICMP_NAMES[version]} type {rule.icmp}")
    elif rule.proto and not (rule.sport or rule.dport):
        words.append(f"meta l4proto {rule.proto.replace('icmpv6', 'ipv6-icmp')}")
    for value, flag in ((rule.sport, "sport"), (rule.dport, "dport")):
        if value:
            words.append(f"{rule.proto} {flag} {ports(value)}")
    if rule.log:
        words.append(f'log prefix ":0:6:{rule.log}" group 0')
    verdict = rule.verdict.lower()
    return " ".join([*words, f"jump {rule.verdict[1:]}" if rule.verdict.startswith(">") else verdict])


def table_text(rules: Ruleset, table: str) -> str:
    """For ``nft -f``: the table is made anew in one transaction; with no chains it is gone afterwards."""
    lines = [f"table {table}", f"delete table {table}"]
    chains = {name: written for name, written in rules.chains.items() if (name in HOOKS) == (table == TABLE)}
    if chains:
        lines += body(table, rules, chains)
    return "\n".join([*lines, ""])


def body(table: str, rules: Ruleset, chains: dict[str, list[Rule]]) -> list[str]:
    lines = [f"table {table} {{"]
    for name, entries in rules.sets.items():
        for version in (4, 6):
            listed = members(entries, version)
            for suffix, of in (("", [e for e in listed if e[0] != "!"]), ("-except", [e[1:] for e in listed if e[0] == "!"])):
                elements = f" elements = {{ {', '.join(of)} }};" if of else ""
                kind = f"type ipv{version}_addr; flags interval; auto-merge;"
                lines.append(f"  set {set_name(name, version)}{suffix} {{ {kind}{elements} }}")
    for name, written in chains.items():
        lines.append(f"  chain {name} {{")
        if name in HOOKS:
            lines.append(f"    type filter hook {HOOKS[name]} priority filter; policy accept;")
        for rule in written:
            lines += [f"    {line(rule, version, table == GUESTS)}" for version in (4, 6) if for_family(rule, version)]
        lines.append("  }")
    taps = [name for name in chains if name not in HOOKS]
    if taps:
        lines += ["  chain forward {", "    type filter hook forward priority filter; policy accept;"]
        for name in taps:
            tap, _, kind = name.rpartition("-")
            lines.append(f'    {"oifname" if kind == "IN" else "iifname"} "{tap}" jump {name}')
        lines.append("  }")
    return [*lines, "}"]


class Loop:
    def __init__(self, run: Run = run) -> None:
        self.run = run
        self.last: dict[str, str] = {}
        self.said = ""

    def say(self, text: str) -> None:
        if text and text != self.said:
            log(text)
        self.said = text

    def round(self) -> None:
        try:
            if os.path.exists(FORCE_DISABLE):
                rules, said = Ruleset(), [f"{FORCE_DISABLE}: no rules"]
            else:
                node = load()
                rules = compile_rules(node)
                said = list(rules.wrong)
                if rules.chains:
                    set_kernel(node.host.number("nf_conntrack_max", 0))
        except Unready as error:
            self.say(f"rules stay as they are: {error}")
            return
        # The guests' table wants more of the kernel: without it the node still has its own rules.
        for table in (TABLE, GUESTS):
            text = table_text(rules, table)
            if text == self.last.get(table) and (table != TABLE or not rules.chains or self.present()):
                continue
            try:
                self.run(("nft", "-f", "-"), text)
                self.last[table] = text
            except Failed as error:
                said.append(f"table {table} stays as it is: {error}")
        self.say("; ".join(said))

    def present(self) -> bool:
        try:
            return "chain HOST-IN" in self.run(("nft", "list", "chain", *TABLE.split(), "HOST-IN"), "")
        except Failed:
            return False


def main(arguments: list[str]) -> int:
    if arguments == ["compile"]:
        try:
            rules = compile_rules(load())
            print(table_text(rules, TABLE) + table_text(rules, GUESTS), end="")
        except Unready as error:
            log(str(error))
            return 255
        return 0
    if arguments != ["start"]:
        sys.stderr.write("usage: proxmox-firewall start|compile (lab double for tests)\n")
        return 255
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    log("starting proxmox-firewall: lab double for tests")
    loop, every = Loop(), seconds()
    while True:
        due = time.monotonic() + every
        loop.round()
        if signal.sigtimedwait(STOP_SIGNALS, max(0.0, due - time.monotonic())) is not None:
            break
    for table in (TABLE, GUESTS):
        run(("nft", "-f", "-"), table_text(Ruleset(), table))
    return 0
