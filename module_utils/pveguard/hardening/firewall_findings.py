# SPDX-License-Identifier: Apache-2.0
"""What is judged about the firewall of a node: whether it is on, and what it cuts or will cut."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..base import rollback_timer
from ..base.findings import PROBLEM, UNKNOWN, WARNING, Finding, check, some
from ..pmxcfs.places import CLUSTER_FW
from . import firewall, firewall_rules
from .firewall_rules import COROSYNC_PORT, VARIABLE
from .firewall_verdict import ACCEPT, Filter, Packet
from .looking import facts_of, proxmox, shown

#: Of documentation: no network of anybody (RFC 5737, RFC 3849).
ANYBODY = ("203.0.113.77", "2001:db8:7777::77")
USUAL = "a CIS role"

UNREAD = check(
    "hardening-firewall-unread",
    UNKNOWN,
    "The firewall's files, the members' addresses or what needs a port could not be read",
    "Look at them by hand, as root.",
    "pve-firewall compile; pve-firewall localnet",
)
OFF = check(
    "hardening-firewall-off",
    WARNING,
    "The node's firewall is off (CIS Debian 12 4.3.8 wants a policy that drops): everybody who reaches the node "
    "reaches its ssh, its web interface and its ring",
    "Set the rules first, then switch it on.",
    "node_hardening_firewall: rules, later enforce",
)
STOPPED = check(
    "hardening-firewall-stopped",
    PROBLEM,
    "The firewall is switched on and its service does not run, so changes of its rules do nothing, or there are none",
    "Start the service.",
    "systemctl enable --now pve-firewall",
)
FORCED = check(
    "hardening-firewall-force-disabled",
    (PROBLEM, WARNING),
    f"{firewall.FORCE_DISABLE} is there: proxmox-firewall sets no rules; a warning where it has none to set",
    "Remove it once the rules are right.",
    f"rm {firewall.FORCE_DISABLE}",
)
UNPROVED = check(
    "hardening-firewall-unproved",
    WARNING,
    "A change of the firewall waits for its proof, or is being taken back",
    "Wait until it is, or have it taken back now.",
    f"systemctl start {rollback_timer.PREFIX}{firewall.TIMER}",
)
HELD = check(
    "hardening-firewall-held-open",
    PROBLEM,
    "An unproved change of the firewall was taken back while somebody had edited cluster.fw: this node's firewall is held open, "
    "also at boot",
    "Look at cluster.fw, then run again.",
    "make site",
)
CONNTRACK = check(
    "hardening-firewall-links-conntrack",
    WARNING,
    "Links of Corosync above 0 pass only as answers to what this node has sent: pve-firewall opens UDP 5404 and 5405 "
    "alone. With a full or flushed table of connections, or after a start, they may be cut",
    "Give each link a rule.",
    "node_hardening_firewall: rules",
)
RING = check(
    "hardening-firewall-ring-cut",
    PROBLEM,
    "Packets of a link of Corosync are dropped on their way in",
    "Give the link a rule that stands before the one that drops.",
    "node_hardening_firewall: rules",
)
POLICY_OUT = check(
    "hardening-firewall-ring-out",
    PROBLEM,
    "Packets of a link of Corosync are dropped on their way out (policy_out)",
    "Give the link a rule for what goes out, or let all out.",
    "node_hardening_firewall: rules",
)
CONTROLLER = check(
    "hardening-firewall-controller",
    (PROBLEM, WARNING),
    "The controller does not get in to ssh or 8006: only its open connections still work. A warning while the firewall is off",
    "Add its address to the management set.",
    VARIABLE,
)
PEER = check(
    "hardening-firewall-peer",
    (PROBLEM, WARNING),
    "A member does not get in to ssh, 8006 or migration: no migration, no replication, no shell of another node. A "
    "warning while the firewall is off",
    "Add the network of the members to the management set.",
    VARIABLE,
)
NEEDED = check(
    "hardening-firewall-needed-port",
    (PROBLEM, WARNING),
    "DRBD, QDevice, LINSTOR, Ceph or a zone of SDN of this node is cut off from other members, or guests from its DHCP. A "
    "warning while the firewall is off",
    "Give it a rule.",
    "node_hardening_firewall: rules",
)
GUESTS = check(
    "hardening-firewall-guests-sleep",
    WARNING,
    "Guests have rules that sleep as long as the cluster's firewall is off: switching it on cuts what they do not allow",
    "Look at them before.",
    "grep -r . /etc/pve/firewall",
)
LINES = check(
    "hardening-firewall-lines",
    UNKNOWN,
    "Lines of the firewall's files are not understood: Proxmox passes them over, so that a rule that seems to be there is not",
    "Correct them or take them out.",
    "pve-firewall compile",
)
OPEN = check(
    "hardening-firewall-open",
    WARNING,
    "The firewall is on and lets everybody in to ssh or 8006: a management set of all addresses, a rule without a source, or "
    "policy_in ACCEPT",
    "Let in only the networks of the operators.",
    f"{VARIABLE}, and policy_in: DROP",
)
SECOND = check(
    "hardening-firewall-second",
    (PROBLEM, WARNING),
    "Another firewall is on beside Proxmox's (a CIS role installs ufw, CIS Debian 12 4.1.1): they fight, and it closes 8006 "
    "and the ring. A warning for tables of others that drop what is forwarded alone",
    "Remove it.",
    "systemctl disable --now ufw",
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts that ``hardening_info`` brought; nothing where it was not asked."""
    facts = facts_of(node, firewall.AREA)
    return [] if facts is None else findings(facts, proxmox(node))


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any], on_proxmox: bool = True) -> list[Finding]:
    """``facts``: of the core ``firewall``."""
    found = [*_unread(facts), *_waiting(facts)]
    if not on_proxmox or facts.get("implementation", firewall.NONE) == firewall.NONE:
        return found
    found += _lines(facts)
    if facts["read"]:
        found += _judged(facts, Filter(facts))
    return [*found, *_forced(facts), *_second(facts)]


def _judged(facts: Mapping[str, Any], filter: Filter) -> list[Finding]:
    """What the files say. Of what is not known nothing is judged, neither good nor bad."""
    found = _state(facts, filter)
    if facts.get("members"):
        found += _links(facts, filter)
        if facts["known"]:
            found += _cut(facts, filter)
    if filter.on:
        found += _open(facts, filter)
    elif guests := facts.get("guests"):
        files = [f"/etc/pve/firewall/{each['id']}.fw" for each in guests]
        found.append(
            GUESTS(
                f"rules of {len(guests)} guest{'s' if len(guests) > 1 else ''} sleep: "
                f"{some([shown(firewall_rules.shown_guest(each), 160) for each in guests])}",
                means="switching the cluster's firewall on cuts what they do not allow",
                code=f"cat {' '.join(files[:5])}",
            )
        )
    return found


def _unread(facts: Mapping[str, Any]) -> list[Finding]:
    why = [] if facts["known"] else [str(facts["error"])]
    for each in facts.get("members") or []:
        why += [
            f"the address of {each['name']} on link {link} is not known"
            for link, its in each["links"].items()
            if not its
        ]
    if (facts.get("qdevice") or {}).get("address") == "":
        why.append("the address of the QDevice is not known")
    why += [f"{each['path']}: {each['why']}" for each in facts.get("drbd_strange") or []]
    return (
        [UNREAD(f"not all that the firewall depends on is known: {shown('; '.join(why), 600)}")]
        if why
        else []
    )


def _state(facts: Mapping[str, Any], filter: Filter) -> list[Finding]:
    cluster, host, services = facts["cluster"], facts["host"], facts["services"]
    unit = "proxmox-firewall" if facts["implementation"] == firewall.NFTABLES else "pve-firewall"
    found = []
    if not filter.on:
        by = (
            f"{host['path']} has enable: 0"
            if cluster.get("enable")
            else f"{CLUSTER_FW} does not switch it on"
        )
        code = (
            f"sed -Ei 's/^enable:.*/enable: 1/' {shlex.quote(host['path'])}"
            if cluster.get("enable")
            else None
        )
        means = "everybody who reaches the node reaches its ssh, its web interface and its ring"
        found.append(OFF(f"the firewall is off ({by})", means=means, code=code))
    elif facts["known"] and not services[unit]["active"]:
        found.append(
            STOPPED(
                f"the firewall is switched on, and {unit} does not run",
                means="there are no rules, or changes of them do nothing",
                code=f"systemctl enable --now {unit}",
            )
        )
    return found


def _waiting(facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    if facts.get("timer") in (rollback_timer.ARMED, rollback_timer.ROLLING_BACK):
        state = "waits for its proof" if facts["timer"] == rollback_timer.ARMED else "is being taken back"
        found.append(UNPROVED(f"a change of the firewall {state}", means="nobody has proved it yet"))
    if facts.get("held_open"):
        found.append(
            HELD(
                f"{firewall.HELD_OPEN} is there: an undo holds this node's firewall open",
                means="everybody who reaches the node reaches its ssh, its web interface and its ring",
            )
        )
    return found


def _forced(facts: Mapping[str, Any]) -> list[Finding]:
    if not facts["force_disable"]:
        return []
    works = Filter(facts).on and facts["implementation"] == firewall.NFTABLES
    return [
        FORCED(
            f"{firewall.FORCE_DISABLE} is there",
            severity=PROBLEM if works else WARNING,
            means="proxmox-firewall sets no rules" + ("" if works else " once it is in use"),
        )
    ]


def _lines(facts: Mapping[str, Any]) -> list[Finding]:
    told = []
    for key in ("cluster", "host"):
        file = facts[key]
        told += [f"{file['path']}:{each['line']} {each['why']}" for each in file["strange"]]
        if file["enable"] is None:
            told.append(f"{file['path']} enable is neither yes nor no")
        for option in ("policy_in", "policy_out"):
            if file[option] not in ("ACCEPT", "DROP", "REJECT"):
                told.append(f"{file['path']} {option} is none of ACCEPT, DROP, REJECT")
    told += [f"{each['path']}:{each['line']} {each['why']}" for each in facts.get("guests_strange") or []]
    if not told:
        return []
    means = "Proxmox passes them over, so that a rule that seems to be there is not"
    return [LINES(f"not understood: {some([shown(each, 160) for each in told])}", means=means)]


def _rule_of(link: int, kind: str) -> str:
    """The line of cluster.fw that helps, where the role is not used."""
    return f"{kind} ACCEPT -p udp -dport {COROSYNC_PORT + link} -source RING -dest RING, in [RULES] of {CLUSTER_FW}"


def _shown_links(links: Sequence[int]) -> str:
    return ", ".join(f"link {each} (UDP {COROSYNC_PORT + each})" for each in links)


def _links(facts: Mapping[str, Any], filter: Filter) -> list[Finding]:
    """Ring packets, each link once."""
    tracked: dict[int, str] = {}
    cut: dict[int, str] = {}
    out: dict[int, str] = {}
    ring = [each for each in firewall_rules.needs(facts) if each.ring]
    for packet in ring:
        verdict = filter.verdict(packet)
        if packet.kind == "OUT" and verdict.action != ACCEPT:
            out.setdefault(packet.port - COROSYNC_PORT, verdict.by)
    for packet in ring:
        verdict, link = filter.verdict(packet), packet.port - COROSYNC_PORT
        if packet.kind == "OUT" or verdict.action == ACCEPT:
            continue
        # What a rule drops is meant for others, and what this node cannot send has no answer.
        by_policy = verdict.by.startswith("policy_in")
        (tracked if by_policy and link not in out else cut).setdefault(link, verdict.by)
    found = []
    if tracked:
        found.append(
            CONNTRACK(
                f"{_shown_links(sorted(tracked))} passes only as an answer to what this node has sent",
                means="with a full or flushed table of connections, or after a start, it may be cut",
                code=f"node_hardening_firewall: rules; by hand: {_rule_of(min(tracked), 'IN')}",
            )
        )
    for check_of, links, kind in ((RING, cut, "IN"), (POLICY_OUT, out, "OUT")):
        if links:
            by = some([f"link {link} by {shown(each, 100)}" for link, each in sorted(links.items())])
            found.append(
                check_of(
                    f"packets of Corosync on their way {kind.lower()} are dropped: {by}",
                    means="the link is down"
                    if len(links) < len(facts["links"])
                    else "the node loses its quorum",
                    code=f"node_hardening_firewall: rules; by hand: {_rule_of(min(links), kind)}",
                )
            )
    return found


def _cut(facts: Mapping[str, Any], filter: Filter) -> list[Finding]:
    """Who and what does not get through; while the firewall is off, who would not."""
    severity = PROBLEM if filter.on else WARNING
    judge = filter if filter.on else Filter(facts, enforced=True)
    by_check: dict[Any, list[Packet]] = {CONTROLLER: [], PEER: [], NEEDED: []}
    names = {each["name"] for each in facts["members"]}
    for packet in firewall_rules.needs(facts):
        if packet.ring or judge.verdict(packet).action == ACCEPT:
            continue
        of_member = packet.what.rpartition(" ")[2] in names
        by_check[
            CONTROLLER if packet.what.endswith("the controller") else PEER if of_member else NEEDED
        ].append(packet)
    found = []
    for check_of, packets in by_check.items():
        if not packets:
            continue
        told = list(
            dict.fromkeys(
                f"{each.what} ({each.dest if each.kind == 'OUT' else each.source})" for each in packets
            )
        )
        does = "does not pass" if filter.on else "would not pass once the firewall is on"
        code = None
        if check_of is not NEEDED:
            missing = list(dict.fromkeys(each.source if each.kind == "IN" else each.dest for each in packets))
            code = f"{VARIABLE}: [{', '.join(missing[:8])}]; by hand: in [IPSET management] of {CLUSTER_FW}"
        found.append(check_of(f"{does}: {some(told)}", severity=severity, code=code))
    return found


def _open(facts: Mapping[str, Any], filter: Filter) -> list[Finding]:
    told: dict[str, str] = {}
    for source in ANYBODY:
        for port, what in ((22, "ssh"), (8006, "port 8006")):
            verdict = filter.verdict(Packet(what, "IN", "tcp", source, facts["address"], port))
            if verdict.action == ACCEPT:
                told.setdefault(what, verdict.by)
    if not told:
        return []
    by = sorted(set(told.values()))
    return [OPEN(f"{' and '.join(told)} is open to everybody (by {shown(' and '.join(by), 160)})")]


def _second(facts: Mapping[str, Any]) -> list[Finding]:
    units: Sequence[str] = facts.get("other_units") or []
    tables = [each for each in facts.get("others") or [] if each["policy"] == "drop" or each["drops"]]
    if not units and not tables:
        return []
    told = [*units, *(f"{each['where']} ({each['drops']} of {each['rules']} rules drop)" for each in tables)]
    incoming = bool(units) or any("input" in each["hooks"] for each in tables)
    undo = [f"systemctl disable --now {' '.join(shlex.quote(each) for each in units)}"] if units else []
    undo += [
        f"nft list table {shlex.quote(each['where'].removeprefix('nftables '))}"
        for each in tables
        if "nftables" in each["where"]
    ]
    usual = USUAL if units else "Docker or an administrator"
    return [
        SECOND(
            f"beside Proxmox's firewall there is {' and '.join(told)} (set by: usually {usual})",
            severity=PROBLEM if incoming else WARNING,
            means="they fight, and it closes 8006 and the ring"
            if incoming
            else "it may drop what guests send and get",
            code="; ".join(undo) or "iptables-legacy-save",
        )
    ]
