# SPDX-License-Identifier: Apache-2.0
"""What is judged about a node's firewall: each finding where it belongs, and none on a node in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import PROBLEM, UNKNOWN, WARNING, Finding
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.hardening import firewall_findings
from ansible.module_utils.pveguard.hardening import firewall_rules as fw

from tests.findings import finding, well_said
from tests.hardening.firewall_facts import GUEST, MANAGED, ON, facts
from tests.hardening.node import clean, corosync

PLAIN = {"pve-manager": None, "pve-cluster": None}


def judged(found: dict[str, Any], packages: dict[str, Any] | None = None) -> list[Finding]:
    node = {"hardening": {"firewall": found}, **({"packages": packages} if packages else {})}
    said = firewall_findings.of_node(node, {})
    for each in said:
        well_said(each)
    return said


def ids(found: dict[str, Any]) -> set[str]:
    return {each.id for each in judged(found)}


def with_rules(text: str, **more: Any) -> dict[str, Any]:
    """A node whose cluster.fw has the own rules."""
    wanted = fw.wanted(facts(text, **more), fw.Options(fw.RULES, ("192.0.2.0/24",)))
    return facts(fw.merged(text, wanted), **more)


def test_a_node_with_the_own_rules_that_is_enforced_has_nothing_to_say() -> None:
    assert judged(with_rules(ON)) == []
    assert judged(with_rules(f"[OPTIONS]\nenable: 1\npolicy_out: DROP\n{MANAGED}")) == []


def test_what_could_not_be_read_is_unknown() -> None:
    said = finding(judged({"known": False, "error": "planted"}), "hardening-firewall-unread")
    assert said.severity == UNKNOWN and "planted" in said.text
    ring = with_rules(ON)
    ring["members"][1]["links"]["1"] = ""
    ring |= {
        "qdevice": {"host": "q", "address": ""},
        "drbd_strange": [{"path": "/etc/drbd.d/x.res", "why": "odd"}],
    }
    text = finding(judged(ring), "hardening-firewall-unread").text
    for each in ("the address of pve2 on link 1", "the address of the QDevice", "/etc/drbd.d/x.res: odd"):
        assert each in text


@pytest.mark.parametrize("missing", ["ip", "systemctl", "/etc/pve"])
def test_of_what_is_not_known_nothing_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50000 10.0.0.11 22")
    node = clean(tmp_path)
    if missing == "/etc/pve":
        for path in (".version", ".members", "corosync.conf"):
            node.remove(f"/etc/pve/{path}")
    else:
        node.write("/etc/pve/firewall/cluster.fw", "[OPTIONS]\nenable: 1\n")
        del node.answers[missing]
    found = firewall_findings.of_node(node.facts("firewall"), {})
    assert [each.id for each in found] == ["hardening-firewall-unread"] and missing in found[0].text


def test_a_firewall_that_is_off() -> None:
    said = finding(judged(facts()), "hardening-firewall-off")
    assert (
        said.severity == WARNING
        and "cluster.fw does not switch it on" in said.text
        and "node_hardening_firewall" in said.code
    )
    host = finding(judged(facts(ON, host="[OPTIONS]\nenable: 0\n")), "hardening-firewall-off")
    assert "/etc/pve/nodes/pve1/host.fw has enable: 0" in host.text and "host.fw" in host.code


def test_a_service_that_does_not_run() -> None:
    services = {name: {"active": False, "enabled": True} for name in ("pve-firewall", "proxmox-firewall")}
    said = finding(judged(with_rules(ON, services=services)), "hardening-firewall-stopped")
    assert said.severity == PROBLEM and said.code == "systemctl enable --now pve-firewall"
    assert "hardening-firewall-stopped" not in ids(facts(services=services)), "there is nothing to do for it"


def test_the_file_that_keeps_the_nftables_firewall_from_working() -> None:
    works = with_rules(ON, implementation="nftables", force_disable=True)
    said = finding(judged(works), "hardening-firewall-force-disabled")
    assert said.severity == PROBLEM and said.code == "rm /run/proxmox-nftables-firewall-force-disable"
    assert (
        finding(judged(with_rules(ON, force_disable=True)), "hardening-firewall-force-disabled").severity
        == WARNING
    )


def test_links_above_0_that_live_by_tracked_connections() -> None:
    said = finding(judged(facts(ON)), "hardening-firewall-links-conntrack")
    assert said.severity == WARNING and said.text.startswith("link 1 (UDP 5406)") and "5406" in said.code
    assert not {"hardening-firewall-ring-cut", "hardening-firewall-ring-out"} & ids(facts(ON))
    assert "hardening-firewall-links-conntrack" not in ids(facts(ON, implementation="nftables")), (
        "it opens all links"
    )
    assert "hardening-firewall-links-conntrack" not in ids(
        facts(f"[OPTIONS]\nenable: 1\npolicy_in: ACCEPT\n{MANAGED}")
    )
    assert "hardening-firewall-links-conntrack" not in ids(facts()), "nothing is dropped while it is off"


@pytest.mark.parametrize("planted", ["IN DROP -p udp", "IN REJECT -source 10.1.0.0/24", "GROUP closed"])
def test_a_rule_that_cuts_a_link(planted: str) -> None:
    said = finding(
        judged(facts(f"{ON}[group closed]\nIN DROP -p udp\n[RULES]\n{planted}\n")),
        "hardening-firewall-ring-cut",
    )
    assert said.severity == PROBLEM and "link 1 by cluster.fw: IN" in said.text
    assert ("quorum" in said.means) is (planted != "IN REJECT -source 10.1.0.0/24")


def test_policy_out_that_cuts_the_ring() -> None:
    """The legacy firewall lets out what it lets in: link 0 alone."""
    found = judged(facts(f"[OPTIONS]\nenable: 1\npolicy_out: DROP\n{MANAGED}"))
    said = finding(found, "hardening-firewall-ring-out")
    assert said.severity == PROBLEM and "link 1 by policy_out DROP" in said.text and "OUT ACCEPT" in said.code
    assert "link 1" in finding(found, "hardening-firewall-ring-cut").text, (
        "no answer comes to what is not sent"
    )
    assert "hardening-firewall-links-conntrack" not in {each.id for each in found}


def test_a_controller_that_does_not_get_in() -> None:
    said = finding(judged(facts("[OPTIONS]\nenable: 1\n")), "hardening-firewall-controller")
    assert (
        said.severity == PROBLEM
        and "ssh from the controller (192.0.2.9)" in said.text
        and "[192.0.2.9]" in said.code
    )
    off = finding(judged(facts("")), "hardening-firewall-controller")
    assert off.severity == WARNING and "would not pass once" in off.text
    assert "hardening-firewall-controller" not in ids(facts("", controller=""))


def test_a_member_that_does_not_get_in() -> None:
    said = finding(judged(facts(ON, local_network="10.0.0.11/32")), "hardening-firewall-peer")
    assert (
        said.severity == PROBLEM
        and "ssh from pve2 (10.0.0.12)" in said.text
        and "10.0.0.12, 10.0.0.13" in said.code
    )
    assert "hardening-firewall-peer" not in ids(facts(ON))


def test_drbd_qdevice_and_linstor_that_are_cut_off() -> None:
    drbd = [
        {
            "resource": "r0",
            "path": "/etc/drbd.d/r0.res",
            "port": 7790,
            "addresses": ["10.1.0.11", "10.1.0.12"],
        }
    ]
    said = finding(judged(facts(ON, drbd=drbd)), "hardening-firewall-needed-port")
    assert said.severity == PROBLEM and "DRBD resource r0 (10.1.0.12)" in said.text
    assert "hardening-firewall-needed-port" not in {each.id for each in judged(with_rules(ON, drbd=drbd))}
    device = {"host": "q", "address": "10.9.0.5"}
    closed = f"[OPTIONS]\nenable: 1\npolicy_out: DROP\n{MANAGED}"
    assert (
        "the QDevice (10.9.0.5)"
        in finding(judged(facts(closed, qdevice=device)), "hardening-firewall-needed-port").text
    )
    assert judged(with_rules(closed, qdevice=device)) == []
    linstor = [{"what": "LINSTOR satellite", "port": 3366}]
    assert finding(judged(facts(inbound=linstor)), "hardening-firewall-needed-port").severity == WARNING


def test_guests_whose_rules_sleep() -> None:
    said = finding(judged(facts(guests=[GUEST])), "hardening-firewall-guests-sleep")
    assert (
        said.severity == WARNING
        and "100 web on pve2" in said.text
        and said.code == "cat /etc/pve/firewall/100.fw"
    )
    assert "hardening-firewall-guests-sleep" not in ids(with_rules(ON, guests=[GUEST])), "they are awake"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (facts(f"{ON}[RULES]\nIN WHAT\n"), "/etc/pve/firewall/cluster.fw:6 'WHAT' is neither"),
        (facts(ON, host="nonsense\n"), "/etc/pve/nodes/pve1/host.fw:1 in no section"),
        (facts("[OPTIONS]\nenable: maybe\n"), "enable is neither yes nor no"),
        (facts("[OPTIONS]\npolicy_in: LOG\n"), "policy_in is none of"),
        (
            facts(guests_strange=[{"path": "/etc/pve/firewall/100.fw", "line": 3, "why": "odd"}]),
            "100.fw:3 odd",
        ),
    ],
)
def test_lines_that_are_not_understood(found: dict[str, Any], told: str) -> None:
    said = finding(judged(found), "hardening-firewall-lines")
    assert said.severity == UNKNOWN and told in said.text


@pytest.mark.parametrize(
    ("text", "by"),
    [
        ("[OPTIONS]\nenable: 1\n[IPSET management]\n0.0.0.0/0\n", "management"),
        ("[OPTIONS]\nenable: 1\n[IPSET management]\n::/0\n192.0.2.0/24\n", "management"),
        (f"{ON}[RULES]\nIN ACCEPT -p tcp -dport 8006\n", "cluster.fw: IN ACCEPT -p tcp -dport 8006"),
        (f"{ON}[RULES]\nIN SSH(ACCEPT)\n", "cluster.fw: IN SSH(ACCEPT)"),
        (f"[OPTIONS]\nenable: 1\npolicy_in: ACCEPT\n{MANAGED}", "policy_in ACCEPT"),
    ],
)
def test_a_firewall_that_lets_everybody_in(text: str, by: str) -> None:
    said = finding(judged(facts(text)), "hardening-firewall-open")
    assert said.severity == WARNING and by in said.text
    assert "hardening-firewall-open" not in ids(facts(ON)) and "hardening-firewall-open" not in ids(facts())


def test_a_second_firewall() -> None:
    said = finding(judged(facts(ON, other_units=["ufw", "nftables"])), "hardening-firewall-second")
    assert (
        said.severity == PROBLEM
        and said.code == "systemctl disable --now ufw nftables"
        and "a CIS role" in said.text
    )
    table = {"where": "nftables inet mine", "hooks": ["input"], "policy": "drop", "rules": 3, "drops": 0}
    said = finding(judged(facts(ON, others=[table])), "hardening-firewall-second")
    assert said.severity == PROBLEM and "nft list table 'inet mine'" in said.code
    docker = finding(judged(facts(ON, others=[{**table, "hooks": ["forward"]}])), "hardening-firewall-second")
    assert docker.severity == WARNING
    masquerade = {**table, "policy": "accept"}
    assert "hardening-firewall-second" not in ids(facts(ON, others=[masquerade])), "it drops nothing"


def test_nothing_is_told_of_a_plain_host_or_a_probe() -> None:
    assert judged(facts("", other_units=["nftables"]), packages=PLAIN) == []
    assert judged(facts("", implementation="none")) == []


def test_from_files_to_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with two links whose firewall somebody has switched on in the web interface, from a network of its own."""
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.9 50000 10.0.0.11 22")
    node = clean(tmp_path)
    node.write("/etc/pve/corosync.conf", corosync(links=2))
    node.write("/etc/pve/firewall/cluster.fw", "[OPTIONS]\n\nenable: 1\n")
    node.write("/proc/modules", "nf_tables 1 2 - Live 0x0\n")
    node.answers["nft"] = lambda argv: Result(0, json.dumps({"nftables": []}))
    found = firewall_findings.of_node(node.facts("firewall"), {})
    assert {each.id: each.severity for each in found} == {
        "hardening-firewall-links-conntrack": WARNING,
        "hardening-firewall-controller": PROBLEM,
    }
    looked = node.facts("firewall")["hardening"]["firewall"]
    options = fw.Options(fw.RULES, ("192.0.2.0/24",))
    node.write(
        "/etc/pve/firewall/cluster.fw", fw.merged("[OPTIONS]\n\nenable: 1\n", fw.wanted(looked, options))
    )
    assert firewall_findings.of_node(node.facts("firewall"), {}) == []


def test_a_change_that_waits_and_a_node_that_an_undo_holds_open() -> None:
    assert not ids(with_rules(ON, timer="confirmed")) and not ids(with_rules(ON, timer="rolled_back"))
    waits = finding(judged(with_rules(ON, timer="rolling_back")), "hardening-firewall-unproved")
    assert waits.severity == WARNING and "is being taken back" in waits.text
    held = finding(judged(with_rules(ON, held_open=True)), "hardening-firewall-held-open")
    assert held.severity == PROBLEM and "held-open" in held.text


def test_both_are_looked_at(tmp_path: Path) -> None:
    node = clean(tmp_path)
    found = node.look("firewall")["firewall"]
    assert (found["held_open"], found["timer"]) == (False, "none")
    node.write("/var/lib/pveguard/node_hardening/firewall/held-open", "")
    armed = {"argv": ["true"], "seconds": 60, "retry_s": 5, "time": "", "boot_id": "another", "until": 0}
    node.write("/var/lib/pveguard/rollback/hardening-firewall/armed.json", json.dumps(armed))
    found = node.look("firewall")["firewall"]
    assert (found["held_open"], found["timer"]) == (True, "armed")


def test_a_plain_host_and_a_report_are_told_of_a_change_that_waits() -> None:
    plain = {"known": True, "error": "", "implementation": "none", "timer": "armed", "held_open": False}
    assert [each.id for each in judged(plain, PLAIN)] == ["hardening-firewall-unproved"]
    node = {"hardening": {"firewall": with_rules(ON, held_open=True)}}
    assert {each.id for each in firewall_findings.of_report(node)} == {"hardening-firewall-held-open"}


def test_a_zone_of_sdn_that_is_cut_off_is_none_of_the_ring() -> None:
    zone = {"zone": "pve2", "kind": "vxlan", "port": 4789, "peers": [], "fabric": False, "dhcp": False}
    said = finding(judged(with_rules(ON, sdn=[zone])), "hardening-firewall-needed-port")
    assert said.severity == PROBLEM and "SDN zone pve2 (VXLAN) (10.0.0.12)" in said.text
    assert ids(with_rules(ON, sdn=[zone])) == {"hardening-firewall-needed-port"}
