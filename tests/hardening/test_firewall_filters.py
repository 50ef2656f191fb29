# SPDX-License-Identifier: Apache-2.0
"""What the controller makes of the members' facts, proofs and wishes about the firewall, and what still must answer."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ansible.module_utils.pveguard.corosync import probe_members
from ansible.module_utils.pveguard.filters import hardening
from ansible.module_utils.pveguard.hardening import firewall_proof, firewall_rules, hardening_changes
from ansible.module_utils.pveguard.hardening.firewall_rules import Options
from ansible.module_utils.pveguard.hardening.sshd import Who


def hosts() -> dict[str, Any]:
    members = [{"name": f"pve{each}", "address": f"10.0.0.{each}"} for each in (1, 2)]
    found = {}
    for each in (1, 2):
        name = f"pve{each}"
        facts = {
            "known": True, "implementation": "legacy", "node": name, "controller": f"192.0.2.{each}", "links": [],
            "drbd": [{"resource": name, "path": "", "port": 7788 + each, "addresses": ["10.0.0.1", "10.0.0.2"]}],
            "members": [{**one, "own": one["name"] == name, "links": {}} for one in members],
        }  # fmt: skip
        found[f"{name}.example.org"] = {"__node_hardening_firewall_look": {"facts": {"firewall": facts}}}
    return found


def test_members_come_to_the_same_rules_whatever_each_of_them_sees() -> None:
    found = [hardening.firewall_facts(hosts(), f"pve{each}.example.org") for each in (1, 2)]
    assert found[0]["controllers"] == found[1]["controllers"] == ["192.0.2.1", "192.0.2.2"]
    assert [each["node"] for each in found] == ["pve1", "pve2"], "the rest is the node's own"
    rules = [[rule.text() for rule in firewall_rules.wanted(each, Options("rules"))] for each in found]
    assert rules[0] == rules[1] and any("7789" in each for each in rules[0]) and any("7790" in each for each in rules[0])


def test_a_probe_has_no_part_in_it() -> None:
    armed = {"digest": "d", "todo": ["set rules"], "members": [{"name": "pve2", "address": ""}, {"name": "watch", "address": ""}]}
    everybody: dict[str, Any] = {
        "pve1": {"__node_hardening_firewall": armed},
        "pve2": {"__node_hardening_firewall": {**armed, "members": []}},
        "watch": {"group_names": [probe_members.GROUP]},
    }
    found = hardening.firewall_together(everybody, "pve1", ["pve1", "pve2", "watch"])
    assert found["problems"] == [] and [each["name"] for each in found["peers"]] == ["pve2"]
    everybody["watch"] = {}
    assert hardening.firewall_together(everybody, "pve1", list(everybody))["problems"] == [
        "watch was not asked: node_hardening_firewall is one for all members of a cluster"
    ]


def test_a_host_that_was_not_looked_at_is_not_judged() -> None:
    found = hardening.firewall_facts({"pve1": {}}, "pve1")
    assert found["known"] is False and found["error"] == "it was not looked at"


def test_what_a_run_would_change() -> None:
    def said(mode: str, facts: dict[str, Any] | None = None) -> list[str]:
        wanted = {"node_hardening": {"node_hardening_firewall": mode, "node_hardening_firewall_management": ["192.0.2.0/24"]}}
        return hardening_changes.changes({"hardening": {"firewall": facts or {}}}, {}, wanted)

    assert said("audit") == []
    assert said("rules") == ["set the firewall's rules (/etc/pve/firewall/cluster.fw)"]
    rules, on = said("enforce")
    assert on.startswith("switch the firewall on, with policy DROP, for all nodes of the cluster; kept only when ring, quorum")
    facts = hardening.firewall_facts(hosts(), "pve1.example.org")
    there = [rule.text() for rule in firewall_rules.wanted(facts, Options("rules", ("192.0.2.0/24",)))]
    facts["cluster"] = {"enable": False, "policy_in": "DROP", "rules": there}
    assert said("rules", facts) == [] and said("enforce", facts) == [on]
    facts["cluster"]["enable"] = True
    assert said("enforce", facts) == []
    facts["cluster"]["rules"] = there[1:]
    assert "kept only when ring, quorum" in said("rules", facts)[0]


def ring(**more: Any) -> dict[str, Any]:
    return {
        "running": True, "quorate": True, "node_id": 1, "live_member_ids": [1, 2],
        "members": [{"id": each, "name": f"pve{each}", "addresses": ["a", "b"]} for each in (1, 2)],
        "links": [{"link": each, "peers": {"1": "localhost", "2": "connected"}} for each in (0, 1)], **more,
    }  # fmt: skip


def test_a_ring_is_whole_when_all_links_to_all_members_are_there() -> None:
    assert firewall_proof.ring(ring()) == [] and firewall_proof.ring({"members": []}) == []
    cut = [{"link": 0, "peers": {"2": "connected"}}, {"link": 1, "peers": {"2": "disconnected"}}]
    assert firewall_proof.ring(ring(links=cut)) == ["link 1 to pve2: disconnected"]
    assert firewall_proof.ring(ring(quorate=False, live_member_ids=[1])) == ["no quorum", "pve2 is not in the membership"]
    assert firewall_proof.ring(ring(running=False)) == ["corosync does not run"]
    unknown = [{"link": 0, "peers": {"2": "connected"}}, {"link": 1, "peers": {}}]
    assert firewall_proof.ring(ring(links=unknown)) == ["link 1 to pve2: not known"]
    watch = {"id": 9, "name": "watch", "addresses": ["c"], "probe": True}
    assert firewall_proof.ring(ring(members=[*ring()["members"], watch])) == [], "a probe may be off"
    assert firewall_proof.ring(ring(links=[])) == ["corosync does not say how its links are"]


def test_a_ring_that_forms_anew_is_waited_for() -> None:
    looks = iter([ring(quorate=False), ring(quorate=False), ring()])
    waited: list[float] = []
    found = firewall_proof.prove([], [], lambda: next(looks), sleep=waited.append, clock=lambda: float(len(waited)))
    assert found == [] and len(waited) == 2
    now = iter(range(100))
    found = firewall_proof.prove([], [], lambda: ring(quorate=False), sleep=lambda _s: None, clock=lambda: float(next(now)))
    assert found == ["no quorum"]


def test_a_web_interface_that_answered_before_must_answer_afterwards() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        here = Who("pve2", "127.0.0.1")
        assert firewall_proof.answering([here], port) == ["pve2"]
        assert firewall_proof.prove([here], ["pve2"], dict, logins=False, web_port=port) == []
    assert firewall_proof.answering([here], port) == []
    assert firewall_proof.prove([here], ["pve2"], dict, logins=False, web_port=port) == [
        f"pve2 (127.0.0.1): TCP {port}: Connection refused"
    ]
    assert firewall_proof.prove([here], [], dict, logins=False, web_port=port) == [], "it did not answer before"


def test_members_do_not_all_begin_with_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def proof(who: Who, **_more: Any) -> dict[str, Any]:
        asked.append(who.name)
        return {"error": ""}

    monkeypatch.setattr(firewall_proof.sshd_proof, "prove", proof)
    monkeypatch.setattr(firewall_proof, "AT_ONCE", 1)
    everybody = [Who(f"pve{each}", f"10.0.0.{each}") for each in range(1, 5)]
    firsts = []
    for own in everybody:
        asked.clear()
        targets = [each for each in everybody if each is not own]
        assert firewall_proof.prove(targets, [], dict, own=own.name) == []
        assert sorted(asked) == [each.name for each in targets]
        firsts.append(asked[0])
    assert firsts == ["pve2", "pve3", "pve4", "pve1"]


@pytest.mark.parametrize(
    ("said", "tries"),
    [
        ("kex_exchange_identification: read: Connection reset by peer Connection reset by 10.0.0.2 port 22", 2),
        ("kex_exchange_identification: Connection closed by remote host", 2),
        ("ssh: connect to host 10.0.0.2 port 22: Connection timed out", 1),
        ("root@10.0.0.2: Permission denied (publickey).", 1),
    ],
)
def test_a_login_that_a_busy_sshd_has_reset_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, said: str, tries: int
) -> None:
    """sshd resets new connections where many wait for their login (MaxStartups)."""
    answers = [said, "", ""]
    slept: list[float] = []
    monkeypatch.setattr(firewall_proof.sshd_proof, "prove", lambda *_a, **_k: {"error": answers.pop(0)})
    found = firewall_proof.prove([Who("pve2", "10.0.0.2")], [], dict, sleep=slept.append)
    assert 3 - len(answers) == tries == 1 + len(slept) and bool(found) is (tries == 1)
    answers[:] = [said, said, ""]
    assert firewall_proof.prove([Who("pve2", "10.0.0.2")], [], dict, sleep=slept.append) == [f"ssh to pve2 (10.0.0.2): {said}"]


def test_how_a_change_of_the_firewall_ended() -> None:
    def said(undone: dict[str, Any], live: bool = True, **written: Any) -> str:
        everybody = {"pve1": {"__node_hardening_firewall_written": written}, "pve2": {
            "__node_hardening_firewall": {"unproved": live}, "__node_hardening_firewall_undone": undone,
        }}  # fmt: skip
        return hardening.firewall_ended(everybody, "pve2", "pve1", 300)

    assert said({"timer": "rolled_back"}) == "It was taken back, and cluster.fw is as it was before."
    # Where the firewall is off there is no timer and nothing to take back.
    off = "The rules may stand in cluster.fw already. They do nothing, as the firewall is off: run again."
    assert said({"timer": "none"}, live=False) == said({"unreachable": True}, live=False) == off
    untouched = "Nothing was written, and cluster.fw is as it was before."
    assert said({"timer": "none"}, untouched=True) == said({"timer": "none"}, live=False, untouched=True) == untouched
    assert said({"timer": "rolled_back", "held_open": True}) == (
        "It was taken back, but somebody has edited cluster.fw: that stays, and this node's firewall is held open until a run "
        "has proved it."
    )
    by_itself = "The node opens its firewall and takes it back by itself, at the latest within 300 s."
    assert said({"failed": True, "msg": "no quorum"}) == said({"unreachable": True}) == said({"timer": "armed"}) == by_itself
    assert said({"timer": "confirmed"}).startswith("This node had kept it; the member that had not puts the former cluster.fw")
