# SPDX-License-Identifier: Apache-2.0
"""What the controller makes of hosts and proofs, and what a run would change."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.pveguard.filters import hardening
from ansible.module_utils.pveguard.hardening import hardening_changes, sshd
from ansible.module_utils.pveguard.hardening.peers import host_of


def test_hosts_by_what_they_call_themselves_by_their_name_and_by_their_address() -> None:
    hosts: dict[str, Any] = {
        "here": {"ansible_host": "192.0.2.1"},
        "pve2.example.org": {"ansible_host": "192.0.2.2"},
        "cellar": {"ansible_host": "192.0.2.3", "pveguard_node": {"node": {"hostname": "pve3"}}},
    }
    assert hardening.hosts(hosts, "here") == {
        "pve2": "pve2.example.org",
        "pve2.example.org": "pve2.example.org",
        "192.0.2.2": "pve2.example.org",
        "pve3": "cellar",
        "cellar": "cellar",
        "192.0.2.3": "cellar",
    }


def test_why_a_change_is_not_proved() -> None:
    good = {"changed": False, "proofs": []}
    looped = {"results": [{**good, "item": {"name": "pve2"}}]}
    assert hardening.failures(looped, good, good) == []
    # A member alone has nobody to ask, and a confirmation that was left out is no reason of its own.
    assert hardening.failures({"results": [], "skipped": True}, good, {"skipped": True}) == []
    lost = {"unreachable": True, "msg": "Connection refused", "item": {"name": "pve2"}}
    refused = {"failed": False, "failed_when_result": False, "msg": "root does not get there"}
    assert hardening.failures({"results": [lost]}, refused, {"unreachable": True}) == [
        "pve2: Connection refused",
        "root does not get there",
        "the controller's new login: no answer",
    ]


def test_what_a_run_would_change() -> None:
    wanted = {"node_hardening": {"node_hardening_sshd": True}}
    (said,) = hardening_changes.changes({}, {}, wanted)
    assert said.startswith(f"harden sshd ({sshd.DROP_IN})")
    kept: dict[str, Any] = {"hardening": {"sshd": {"managed": True, "drifted": {}}}}
    assert hardening_changes.changes(kept, {}, wanted) == []
    kept["hardening"]["sshd"]["drifted"] = {sshd.DROP_IN: "another content"}
    assert hardening_changes.changes(kept, {}, wanted)
    assert hardening_changes.changes({}, {}, {"node_hardening": {"node_hardening_sshd": False}}) == []
    assert hardening_changes.changes({}, {}, {"node_hardening": False}) == []


def test_members_of_another_cluster_are_not_asked_for_those_of_this_one() -> None:
    """Two clusters whose nodes have the same short names; of one the name is known by its facts alone."""
    looked = {"node": {"hostname": "pve2"}, "corosync": {"cluster_name": "a"}}
    hosts: dict[str, Any] = {
        "pve1.a": {"ansible_host": "192.0.2.1", "corosync_cluster_name": "a"},
        "pve2.a": {"ansible_host": "192.0.2.2", "pveguard_node": looked},
        "pve1.b": {"ansible_host": "198.51.100.1", "corosync_cluster_name": "b"},
        "pve2.b": {"ansible_host": "198.51.100.2", "corosync_cluster_name": "b"},
    }
    assert hardening.hosts(hosts, "pve2.b") == dict.fromkeys(("pve1.b", "198.51.100.1", "pve1"), "pve1.b")
    assert hardening.hosts(hosts, "pve1.a")["pve2"] == "pve2.a" and "198.51.100.2" not in hardening.hosts(hosts, "pve1.a")
    # Nobody knows of which cluster they are: the address says who it is.
    bare = {name: {"ansible_host": its["ansible_host"]} for name, its in hosts.items()}
    peer = {"name": "pve1", "address": "198.51.100.1"}
    assert host_of(peer, hardening.hosts(bare, "pve2.b")) == "pve1.b"
    assert host_of({"name": "pve1", "address": ""}, hardening.hosts(hosts, "pve2.b")) == "pve1.b"
    assert host_of({"name": "other", "address": "10.0.0.1"}, hardening.hosts(hosts, "pve2.b")) == ""


def test_hosts_that_are_named_by_their_address() -> None:
    assert hardening.hosts({"192.0.2.1": {}, "192.0.2.2": {}, "fd00::3": {}}, "192.0.2.1") == {
        "192.0.2.2": "192.0.2.2",
        "fd00::3": "fd00::3",
    }


def test_what_a_node_calls_itself_comes_before_the_name_of_another_in_the_inventory() -> None:
    hosts: dict[str, Any] = {"here": {}, "pve3": {}, "cellar": {"pveguard_node": {"node": {"hostname": "pve3"}}}}
    assert hardening.hosts(hosts, "here") == {"pve3": "cellar", "cellar": "cellar"}


def test_how_a_change_of_sshd_ended() -> None:
    def said(undone: dict[str, Any]) -> str:
        return hardening.sshd_ended(undone, 180)

    back = "It was taken back, and sshd is as it was before."
    assert said({"changed": True, "timer": "rolled_back"}) == said({"changed": False, "timer": "rolled_back"}) == back
    by_itself = "The node takes it back by itself, at the latest within 180 s."
    assert said({"failed": True, "msg": "no"}) == said({"unreachable": True}) == said({"timer": "armed"}) == by_itself
    assert said({"timer": "rolling_back"}) == "The node is taking it back."
    assert said({"timer": "confirmed"}) == "It was kept before that, and sshd has it: run again."
