# SPDX-License-Identifier: Apache-2.0
"""The legacy firewall: a rule set for ipset and iptables-legacy-restore, and its way into the kernel."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable, Sequence

from .node import Node
from .rules import Compiler, Rule, Ruleset, family

#: knet uses 5405 + N for link N: those of links above 0 are not open. So it is with the real one.
COROSYNC = "5404:5405"
PREFIX = "PVEFW-"
HOOKS = ("INPUT", "OUTPUT", "FORWARD")
ICMP = {4: "--icmp-type", 6: "--icmpv6-type"}
MAX_SET_NAME = 31 - len("-v4")

Run = Callable[[Sequence[str], str], str]


class Failed(Exception):
    """A command of netfilter said no; nothing of the rules has changed."""


def run(argv: Sequence[str], text: str = "") -> str:
    """Raises Failed."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failed(f"{argv[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def compile_rules(node: Node) -> Ruleset:
    """Nothing where the cluster's firewall is off, or this node uses the other one."""
    compiler = Compiler(node, accept="RETURN", corosync=COROSYNC, prefix=PREFIX)
    out = compiler.out
    if not node.enabled or node.nftables:
        return out
    out.chains = {f"{PREFIX}{hook}": [] for hook in HOOKS}
    if node.host.on("enable", True):
        out.chains[f"{PREFIX}HOST-IN"] = compiler.host_in()
        out.chains[f"{PREFIX}HOST-OUT"] = compiler.host_out()
        out.chains[f"{PREFIX}INPUT"].append(Rule(f">{PREFIX}HOST-IN"))
        out.chains[f"{PREFIX}OUTPUT"].append(Rule(f">{PREFIX}HOST-OUT"))
    for guest in compiler.awake():
        for tap in guest.taps:
            name = f"tap{guest.number}i{tap}"
            out.chains[f"{name}-IN"] = compiler.guest_chain(guest, "IN", tap)
            out.chains[f"{name}-OUT"] = compiler.guest_chain(guest, "OUT", tap)
            forward = out.chains[f"{PREFIX}FORWARD"]
            forward += [Rule(f">{name}-IN", tap_out=name), Rule(f">{name}-OUT", tap_in=name)]
    return out


# --- text -------------------------------------------------------------------------------------------------------


def set_name(name: str, version: int) -> str:
    """ipset takes 31 characters."""
    if len(name) > MAX_SET_NAME:
        name = PREFIX + hashlib.sha256(name.encode()).hexdigest()[: MAX_SET_NAME - len(PREFIX)]
    return f"{name}-v{version}"


def line(chain: str, rule: Rule, version: int) -> list[str]:
    words = ["-A", chain]
    for flag, value in (("-i", rule.iface_in), ("-o", rule.iface_out), ("-p", rule.proto)):
        if value:
            words += [flag, value]
    if rule.tap_in:
        words += ["-m", "physdev", "--physdev-is-bridged", "--physdev-in", rule.tap_in]
    if rule.tap_out:
        words += ["-m", "physdev", "--physdev-is-bridged", "--physdev-out", rule.tap_out]
    for value, flag, side in ((rule.source, "-s", "src"), (rule.dest, "-d", "dst")):
        if value.startswith("+"):
            words += ["-m", "set", "--match-set", set_name(value[1:], version), side]
        elif "-" in value:
            words += ["-m", "iprange", f"--{side}-range", value]
        elif value:
            words += [flag, value]
    if rule.state:
        words += ["-m", "conntrack", "--ctstate", rule.state]
    if rule.kind:
        words += ["-m", "addrtype", "--dst-type", rule.kind]
    if rule.icmp:
        words += ["-m", rule.proto if version == 4 else "icmp6", ICMP[version], rule.icmp]
    for value, flag in ((rule.sport, "sport"), (rule.dport, "dport")):
        if "," in value:
            words += ["-m", "multiport", f"--{flag}s", value]
        elif value:
            words += [f"--{flag}", value]
    lines = []
    if rule.log:
        lines.append(" ".join([*words, "-j", "NFLOG", "--nflog-prefix", f'":0:6:{chain}: {rule.log}"']))
    lines.append(" ".join([*words, "-j", rule.verdict.lstrip(">")]))
    return lines


def for_family(rule: Rule, version: int) -> bool:
    return version in rule.families() and not (version == 6 and rule.kind == "BROADCAST")


def ours(chain: str) -> bool:
    return chain.startswith(PREFIX) or re.fullmatch(r"tap[0-9]+i[0-9]+-(IN|OUT)", chain) is not None


def restore_text(rules: Ruleset, version: int, saved: str) -> str:
    """For iptables-legacy-restore --noflush: other people's chains and rules stay; ``saved`` is what is in the kernel."""
    old = [name for name in re.findall(r"^:(\S+) ", saved, re.MULTILINE) if ours(name)]
    stale = [name for name in old if name not in rules.chains]
    lines = ["*filter"]
    lines += [f":{name} - [0:0]" for name in (*rules.chains, *stale)]
    for hook in HOOKS:
        hooked = re.search(rf"^-A {hook} -j {PREFIX}{hook}$", saved, re.MULTILINE) is not None
        if rules.chains and not hooked:
            lines.append(f"-A {hook} -j {PREFIX}{hook}")
        if not rules.chains and hooked:
            lines.append(f"-D {hook} -j {PREFIX}{hook}")
    for chain, written in rules.chains.items():
        for rule in written:
            if for_family(rule, version):
                lines += line(chain, rule, version)
    lines += [f"-X {name}" for name in stale]
    return "\n".join([*lines, "COMMIT", ""])


def members(entries: list[str], version: int) -> list[str]:
    return [entry for entry in entries if family(entry) == version]


def ipset_text(rules: Ruleset) -> str:
    """For ``ipset -exist restore``: each set is filled beside the old one and swapped in."""
    lines = []
    for name, entries in rules.sets.items():
        for version, inet in ((4, "inet"), (6, "inet6")):
            full = set_name(name, version)
            lines.append(f"create {full} hash:net family {inet} maxelem 65536")
            lines.append(f"create PVEFW-lab-swap hash:net family {inet} maxelem 65536")
            for entry in members(entries, version):
                address, except_ = entry.lstrip("!"), " nomatch" if entry.startswith("!") else ""
                # hash:net takes no /0.
                halves = [address]
                if address.endswith("/0"):
                    halves = ["0.0.0.0/1", "128.0.0.0/1"] if version == 4 else ["::/1", "8000::/1"]
                lines += [f"add PVEFW-lab-swap {half}{except_}" for half in halves]
            lines += [f"swap {full} PVEFW-lab-swap", "destroy PVEFW-lab-swap"]
    return "".join(f"{each}\n" for each in lines)


def describe(rules: Ruleset) -> str:
    """What ``pve-firewall compile`` prints."""
    lines = ["ipset cmdlist:"]
    for name, entries in rules.sets.items():
        for version in (4, 6):
            lines.append(f"create {set_name(name, version)}")
            lines += [f"\tadd {entry}" for entry in members(entries, version)]
    for version, tool in ((4, "iptables"), (6, "ip6tables")):
        lines += ["", f"{tool} cmdlist:"]
        for chain, written in rules.chains.items():
            lines.append(f"create {chain}")
            for rule in written:
                if for_family(rule, version):
                    lines += [f"\t{each}" for each in line(chain, rule, version)]
    return "\n".join([*lines, "", *(f"# {each}" for each in rules.wrong)]).rstrip() + "\n"


# --- kernel -----------------------------------------------------------------------------------------------------


def in_kernel(saved: str, rules: Ruleset) -> bool:
    """Whether the chains are there with as many rules; what somebody flushed comes back in the next round."""
    found = {name for name in re.findall(r"^:(\S+) ", saved, re.MULTILINE) if ours(name)}
    hooked = all(re.search(rf"^-A {hook} -j {PREFIX}{hook}$", saved, re.MULTILINE) for hook in HOOKS)
    counts = all(
        len(re.findall(rf"^-A {re.escape(chain)} ", saved, re.MULTILINE))
        == sum(len(line(chain, rule, 4)) for rule in written if for_family(rule, 4))
        for chain, written in rules.chains.items()
    )
    return found == set(rules.chains) and (hooked or not rules.chains) and counts


class Kernel:
    """Remembers what it wrote, so that a round without a change writes nothing."""

    def __init__(self, run: Run = run) -> None:
        self.run = run
        self.last = ""

    def apply(self, rules: Ruleset) -> bool:
        """Whether something was written. Raises Failed."""
        saved = {4: self.run(("iptables-legacy-save", "-t", "filter"), "")}
        wanted = describe(rules)
        if wanted == self.last and in_kernel(saved[4], rules):
            return False
        saved[6] = self.run(("ip6tables-legacy-save", "-t", "filter"), "")
        if rules.sets:
            self.run(("ipset", "-exist", "restore"), ipset_text(rules))
        for version, tool in ((4, "iptables-legacy-restore"), (6, "ip6tables-legacy-restore")):
            text = restore_text(rules, version, saved[version])
            # Both are tried before one is written.
            self.run((tool, "--noflush", "--test"), text)
        for version, tool in ((4, "iptables-legacy-restore"), (6, "ip6tables-legacy-restore")):
            self.run((tool, "--noflush"), restore_text(rules, version, saved[version]))
        keep = {set_name(name, version) for name in rules.sets for version in (4, 6)}
        for name in self.run(("ipset", "list", "-name"), "").split():
            if name.startswith(PREFIX) and name not in keep:
                self.run(("ipset", "destroy", name), "")
        self.last = wanted
        return True
