# SPDX-License-Identifier: Apache-2.0
"""Facts of the HA stack from recorded files and systemd's answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.pveguard import ha_info
from ansible.module_utils.pveguard.run import CommandMissing

from tests.ha.systemd import Node


def test_nothing_installed_is_off_and_raises_nothing(tmp_path: Path) -> None:
    def run(argv, **_):
        raise CommandMissing("systemctl")

    facts = ha_info.collect(run=run, root=tmp_path, hostname="pve1")
    assert not facts["installed"]
    assert facts["disabled"] and not facts["enabled"] and not facts["masked"]
    assert facts["resources"] == [] and not facts["resources_known"]
    assert facts["lrm"] == {"state": None, "mode": None, "timestamp": None}


def test_running_stack(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.pve(
        "ha/manager_status",
        json.dumps({"master_node": "pve2", "timestamp": 5, "node_status": {"pve1": "online"}}),
    )
    facts = node.facts()
    assert facts["installed"] and facts["enabled"] and not facts["disabled"] and not facts["masked"]
    assert facts["lrm"]["state"] == "wait_for_agent_lock"
    assert facts["crm"] == {"master": "pve2", "timestamp": 5}
    assert facts["other_requests"] == []
    assert facts["watchdog"] == {"present": True, "identity": "Software Watchdog", "nowayout": False}
    assert node.calls == [
        ["systemctl", "show", "-p", "Id,LoadState,ActiveState,UnitFileState", *ha_info.UNITS],
    ]


@pytest.mark.parametrize(
    ("text", "resources"),
    [
        ("", []),
        ("\n# nothing\n\n", []),
        ("vm: 100\n\tgroup a\n\tstate started\n\nct: 101\n", ["vm:100", "ct:101"]),
        ("what is this\n", ["resources.cfg: text that is not a resource"]),
    ],
)
def test_resources(tmp_path: Path, text: str, resources: list[str]) -> None:
    node = Node(tmp_path)
    node.pve("ha/resources.cfg", text)
    assert node.facts()["resources"] == resources


def test_requests_that_are_not_finished(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.pve("ha/manager_status", json.dumps({"node_status": {"pve1": "online", "pve2": "fence"}}))
    node.pve("ha/crm_commands", "migrate vm:100 pve2\n")
    node.pve("nodes/pve3/lrm_status", json.dumps({"state": "active", "mode": "maintenance"}))
    assert node.facts()["other_requests"] == [
        "node pve2 is in state 'fence'",
        "node pve3 is in maintenance",
        "queued command 'migrate vm:100 pve2'",
    ]


def test_damaged_status_files_are_unknown(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.pve("ha/manager_status", "{")
    node.pve("nodes/pve1/lrm_status", "[]")
    facts = node.facts()
    assert facts["manager_status"] is None
    assert facts["lrm"]["state"] is None


@pytest.mark.parametrize(
    ("flags", "nowayout"), [([], False), (["0"], False), (["0", "1"], True), ([""], None)]
)
def test_nowayout(tmp_path: Path, flags: list[str], nowayout: bool | None) -> None:
    node = Node(tmp_path, watchdogs=flags)
    assert node.facts()["watchdog"]["nowayout"] is nowayout


def test_watchdog_holders() -> None:
    facts = {
        "a": {"watchdog_active": True, "lrm_states": {"a": {"state": "active"}, "c": {"state": "active"}}},
        "b": {"watchdog_active": False, "lrm_states": {"c": {"state": "active"}}},
        "silent": {},
    }
    assert ha_info.watchdog_holders(facts) == ["a", "c (its lrm_status says active)"]
