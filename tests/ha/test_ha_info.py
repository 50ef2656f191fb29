# SPDX-License-Identifier: Apache-2.0
"""Facts of the HA stack from recorded files and systemd's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    assert facts["lrm_states"] == {
        "pve1": {"state": "wait_for_agent_lock", "mode": "active", "timestamp": 1, "age_seconds": 0}
    }
    assert facts["crm_states"] == {"pve1": {"master": False, "state": "online"}}
    assert facts["watchdog"] == {
        "present": True,
        "identity": "Software Watchdog",
        "nowayout": False,
        "magic_close": True,
        "stoppable": True,
        "devices": [
            {
                "name": "watchdog0",
                "identity": "Software Watchdog",
                "state": None,
                "nowayout": False,
                "magic_close": True,
            }
        ],
        "clients": [],
    }
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


@pytest.mark.parametrize(
    ("identity", "options", "magic_close"),
    [
        ("i6300ESB timer", "0x8180", True),
        ("i6300ESB timer", "0x8080", False),
        ("Software Watchdog", "", True),  # a kernel before 6.4 shows no options
        ("Board Watchdog", "", None),
    ],
)
def test_magic_close(tmp_path: Path, identity: str, options: str, magic_close: bool | None) -> None:
    node = Node(tmp_path)
    device = tmp_path / "sys/class/watchdog/watchdog0"
    (device / "identity").write_text(identity)
    (device / "options").write_text(options)
    watchdog = node.facts()["watchdog"]
    assert watchdog["magic_close"] is magic_close and watchdog["stoppable"] is (magic_close is True)


@pytest.mark.parametrize(("flag", "stoppable"), [("N\n", True), ("Y\n", False), ("", False)])
def test_a_driver_outside_the_watchdog_class(tmp_path: Path, flag: str, stoppable: bool) -> None:
    node = Node(tmp_path, watchdogs=[])
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/watchdog").write_text("")
    assert node.facts()["watchdog"]["nowayout"] is None, "whose it is nobody knows"
    parameters = tmp_path / "sys/module/ipmi_watchdog/parameters"
    parameters.mkdir(parents=True)
    (parameters / "nowayout").write_text(flag)
    watchdog = node.facts()["watchdog"]
    assert watchdog["present"] and watchdog["identity"] == "ipmi_watchdog" and watchdog["stoppable"] is stoppable


def test_who_holds_the_watchdog(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.sockets = (
        'u_str ESTAB 0 0 /run/watchdog-mux.sock 23 * 22 users:(("watchdog-mux",pid=1,fd=5))\n'
        'u_str ESTAB 0 0 * 22 * 23 users:(("pve-ha-lrm",pid=812,fd=3))\n'
        'u_str ESTAB 0 0 /run/other.sock 33 * 32 users:(("systemd",pid=1,fd=8))\n'
        'u_str ESTAB 0 0 * 32 * 33 users:(("other",pid=900,fd=3))\n'
        "u_dgr ESTAB 0 0 * 40 * 41\n"
    )
    assert node.facts()["watchdog"]["clients"] == []
    node.hold_watchdog()
    facts = node.facts()
    assert facts["watchdog"]["clients"] == [{"pid": 812, "name": "pve-ha-lrm"}]
    assert facts["fencing"] == {"command": False, "state": None}
    node.fencing = "armed"
    assert node.facts()["fencing"] == {"command": True, "state": "armed"}


def test_managers_of_all_nodes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.now = 100.0
    node.lrm("active", name="pve2")
    status = {"master_node": "pve2", "timestamp": 99, "node_status": {"pve1": "online", "pve2": "online", "old": "gone"}}
    node.pve("ha/manager_status", json.dumps(status))
    node.pve("nodes/pve3/qemu-server/.keep", "")
    facts = node.facts()
    assert facts["crm_states"] == {
        "old": {"master": False, "state": "gone"},
        "pve1": {"master": False, "state": "online"},
        "pve2": {"master": True, "state": "online"},
        "pve3": {"master": False, "state": None},
    }
    assert {name: state["age_seconds"] for name, state in facts["lrm_states"].items()} == {"pve1": 99, "pve2": 0}


def test_resources_that_nothing_recovers(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.pve("ha/resources.cfg", "vm: 100\n")
    assert node.facts()["unattended"] == []
    node.run(["systemctl", "mask", ha_info.MUX])
    assert node.facts()["unattended"] == ["vm:100"], "without the multiplexer no LRM becomes active"


@pytest.mark.parametrize("state", ["stopped", "disarmed", "armed again"])
def test_resources_that_came_after_a_run_had_ended_in_the_middle(tmp_path: Path, state: str) -> None:
    node = Node(tmp_path)
    memory = {"version": 1, "units": {}, "disarmed": state != "stopped"}
    (tmp_path / "etc/pveguard").mkdir()
    (tmp_path / "etc/pveguard/ha.json").write_text(json.dumps(memory))
    node.fencing = {"disarmed": "disarmed"}.get(state, "armed")
    if state == "stopped":
        node.active[ha_info.LRM] = "inactive"
    assert node.facts()["unattended"] == []
    node.pve("ha/resources.cfg", "vm: 100\n")
    assert node.facts()["unattended"] == ([] if state == "armed again" else ["vm:100"])


def test_watchdog_holders() -> None:
    facts = {
        "a": {"watchdog_active": True, "lrm_states": {"a": {"state": "active"}, "c": {"state": "active"}}},
        "b": {"watchdog_active": False, "lrm_states": {"c": {"state": "active"}}},
        "silent": {},
    }
    assert ha_info.watchdog_holders(facts) == ["a", "c (its lrm_status says active)"]
    old = {"state": "active", "age_seconds": ha_info.HOLDER_SECONDS}
    assert ha_info.watchdog_holders({"b": {"lrm_states": {"c": old}}}) == [], "its watchdog would have reset it"


ACTIVE = {"state": "active", "age_seconds": 3}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resources": ["vm:100", "ct:101"]}, "HA is in use: ct:101, vm:100"),
        ({"other_requests": ["queued command 'stop vm:1'"]}, "queued command 'stop vm:1'"),
        ({"quorate": False}, "b: /etc/pve has no quorum, so it may not show what others have added"),
        ({"resources_known": False, "quorate": False}, "b: /etc/pve is not mounted"),
        ({"watchdog_active": True}, "a client holds the watchdog of b"),
        ({"lrm_states": {"c": ACTIVE}}, "a client holds the watchdog of c (its lrm_status says active)"),
    ],
)
def test_objections(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    node = Node(tmp_path)
    good = node.facts()
    assert ha_info.objections({"a": good, "b": good, "silent": {}}) == []
    assert ha_info.objections({"a": good, "b": {**good, **changes}}) == [named]


def test_objections_are_said_once(tmp_path: Path) -> None:
    busy = {**Node(tmp_path).facts(), "other_requests": ["node c is in maintenance"]}
    assert ha_info.objections({"a": busy, "b": busy}) == ["node c is in maintenance"]


def test_a_held_watchdog_is_no_objection_where_the_manager_can_disarm(tmp_path: Path) -> None:
    good = Node(tmp_path).facts()
    held = {**good, "watchdog_active": True, "fencing": {"command": True, "state": "armed"}}
    assert ha_info.objections({"a": good, "b": held}) == []


def test_fencing_is_asked_when_another_node_is_in_charge(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed"
    assert node.facts()["fencing"]["command"] is None
    node.lrm("active", name="pve2")
    assert node.facts()["fencing"] == {"command": True, "state": "armed"}
