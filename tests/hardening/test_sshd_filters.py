# SPDX-License-Identifier: Apache-2.0
"""What the controller makes of hosts and proofs, and what a run would change."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.pveguard.filters import hardening
from ansible.module_utils.pveguard.hardening import hardening_changes, sshd


def test_hosts_by_what_they_call_themselves_by_their_name_and_by_their_address() -> None:
    hosts: dict[str, Any] = {
        "here": {"ansible_host": "192.0.2.1"},
        "pve2.example.org": {"ansible_host": "192.0.2.2"},
        "cellar": {"ansible_host": "192.0.2.3", "pveguard_node": {"node": {"hostname": "pve3"}}},
    }
    assert hardening.hosts(hosts, "here") == {
        "pve2": "pve2.example.org",
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
