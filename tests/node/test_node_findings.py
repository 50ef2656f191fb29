# SPDX-License-Identifier: Apache-2.0
"""What the facts of one node say of its cluster file system, its name and its logins."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.base import findings
from ansible.module_utils.pveguard.base.findings import GOOD, PROBLEM, UNKNOWN, WARNING, Finding
from ansible.module_utils.pveguard.cluster import assess
from ansible.module_utils.pveguard.pmxcfs import left_nodes_findings
from ansible.module_utils.pveguard.pmxcfs import pmxcfs_findings as judge

from tests.assess.test_assess import node
from tests.findings import finding, well_said


def of(**changes: Any) -> list[Finding]:
    return assess.findings(node(**changes))


def test_the_cluster_file_system() -> None:
    assert finding(of(), "pmxcfs-mounted").text == "/etc/pve is mounted (cluster mode, 1 guest, database 40 KiB)"
    assert finding(of(packages={"pve-cluster": None}), "pmxcfs-absent").severity == GOOD
    down = {"mounted": False, "mode": "down"}
    assert "journalctl -u pve-cluster" in finding(of(pmxcfs=down), "pmxcfs-not-mounted").helps
    lost = finding(of(pmxcfs={**down, "database_bytes": None}), "pmxcfs-database-missing")
    assert lost.severity == PROBLEM and "no /var/lib/pve-cluster/config.db" in lost.text
    # What is not known is not missing.
    assert [each.id for each in [judge.mounted(False)] if each] == ["pmxcfs-not-mounted"]


def test_what_is_not_understood_is_unknown() -> None:
    found = of(pmxcfs={"error": "config.db: its schema is not known", "guests": None, "quorate": None})
    assert finding(found, "pmxcfs-not-understood").severity == UNKNOWN
    # A path would say little to whoever reads one line.
    assert finding(found, "pmxcfs-not-understood").headline == "what its cluster file system holds or says is not known"
    assert finding(found, "pmxcfs-content-unknown").severity == UNKNOWN
    assert finding(found, "quorum-unknown").severity == UNKNOWN


@pytest.mark.parametrize("address", ["127.0.1.1", "::1"])
def test_a_name_that_means_the_node_itself(address: str) -> None:
    assert address in finding(of(resolved_address=address), "host-name-loopback").text
    assert finding(of(resolved_address=None), "host-name-unresolved").severity == PROBLEM


def test_what_a_node_left_behind() -> None:
    left = {"name": "pve4", "guests": [], "files": 2, "private_key": True, "authorized_key": False}
    assert "rm -r /etc/pve/nodes/pve4" in finding([left_nodes_findings.finding(left)], "node-left-behind").sentence


def test_a_login_that_needs_the_daemon() -> None:
    found = finding(of(), "login-on-pve")
    assert found.severity == WARNING and "authorized_keys2" in found.helps
    assert not [each for each in of(login={"authorized_keys_depends_on_pve": False}) if each.id == found.id]


def test_the_state_on_disk() -> None:
    assert "ram_state_enabled: true" in finding(of(), "state-on-disk").helps
    used = of(ha={"resources": ["vm:1"]})
    assert not [each for each in used if each.id == "state-on-disk"], "it stays there where HA is used"


def test_what_the_node_judged_itself_is_told_once() -> None:
    """HA with resources: by the facts and in the findings of pve-state."""
    told = Finding("ha-resources-with-ram-state", WARNING, "said by the node", "x").as_dict()
    late = Finding("state-save-late", WARNING, "a change is old", "Look.", "pve-state status").as_dict()
    found = of(ha={"resources": ["vm:1"]}, ram_state={"state": "enabled", "findings": [told, late]})
    assert finding(found, "ha-resources-with-ram-state").text != "said by the node"
    assert finding(found, "state-save-late").code == "pve-state status"


def test_everything_that_assess_says_ends_with_what_helps() -> None:
    bad = of(
        resolved_address=None, pmxcfs={"quorate": False}, corosync={"copies_equal": False, "running": False, "two_node": True},
        ram_state={"state": "broken", "error": "no JSON"},
    )  # fmt: skip
    assert len(bad) > 6
    for each in bad:
        well_said(each)


def test_a_core_of_a_later_role_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Finding("diet-late", WARNING, "the write diet is off", "Switch it on.", "write_diet: true")
    cores = findings._cores()
    assert {each.__name__.rpartition(".")[2] for each in cores} >= {"node_findings", "ha_findings", "status_findings"}
    later = type("later_findings", (), {"of_node": staticmethod(lambda node, plan: [found])})
    monkeypatch.setattr(findings, "_cores", lambda: [*cores, later])
    assert finding(of(), "diet-late") == found
