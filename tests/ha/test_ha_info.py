# SPDX-License-Identifier: Apache-2.0
"""Facts of the HA stack from recorded files and systemd's answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.ha import ha_fencing, ha_files, ha_info

from tests.ha.systemd import Node


def fencing(command: bool | None, state: str | None = None, said: str | None = None, error: str | None = None) -> dict[str, Any]:
    return {"command": command, "state": state, "said": said, "error": error}


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
    assert facts["watchdog"]["clients"] == [{"pid": 812, "name": "pve-ha-lrm", "manager": True}]
    assert facts["fencing"] == fencing(False)
    node.fencing = "armed (CRM watchdog active)"
    assert node.facts()["fencing"] == fencing(True, "armed", "armed (CRM watchdog active)")


def test_a_client_is_a_manager_by_its_name_or_its_unit(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.hold_watchdog()
    names = {11: "pve-ha-crm", 12: "perl", 13: "perl", 14: "backup-tool"}
    node.sockets = "".join(
        f'u_str ESTAB 0 0 /run/watchdog-mux.sock {pid}1 * {pid}2 users:(("watchdog-mux",pid=1,fd=5))\n'
        f'u_str ESTAB 0 0 * {pid}2 * {pid}1 users:(("{name}",pid={pid},fd=3))\n'
        for pid, name in names.items()
    )
    for pid, unit in ((12, "pve-ha-lrm.service"), (13, "other.service")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/cgroup").write_text(f"0::/system.slice/{unit}\n")
    facts = node.facts()
    assert {each["pid"]: each["manager"] for each in facts["watchdog"]["clients"]} == {11: True, 12: True, 13: False, 14: False}
    assert ha_info.objections({"b": {**facts, "fencing": fencing(True, "armed")}}) == [
        "b: the watchdog is held by perl, pid 13; backup-tool, pid 14, which is no part of HA: end it in good order"
    ]


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
HELD = "there is no HA resource any more, but the LRM is still active and holds the watchdog: "


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resources": ["vm:100", "ct:101"]}, "HA is in use: ct:101, vm:100 (remove them with 'ha-manager remove SID')"),
        ({"other_requests": ["queued command 'stop vm:1'"]}, "queued command 'stop vm:1'"),
        ({"quorate": False}, "b: /etc/pve has no quorum, so it may not show what others have added"),
        (
            {"resources_known": False, "quorate": False},
            "b: /etc/pve is not mounted (start it with 'systemctl start pve-cluster')",
        ),
        (
            {"resources_known": False, "quorate": False, "pve_error": "/etc/pve does not answer within 20 s"},
            "b: /etc/pve does not answer within 20 s",
        ),
        ({"watchdog_active": True, "node": "b"}, f"{HELD}b."),
        ({"lrm_states": {"c": ACTIVE}}, f"{HELD}c (its lrm_status says active)."),
        (
            {"lrm_states": {"c": {"state": "dozing", "age_seconds": 3}}},
            f"{HELD}c (its lrm_status says 'dozing', which is not known).",
        ),
        ({"lrm_states": {"c": {"state": None, "age_seconds": None}}}, f"{HELD}c (its lrm_status cannot be read)."),
    ],
)
def test_objections(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    node = Node(tmp_path)
    good = node.facts()
    assert ha_info.objections({"a": good, "b": good, "silent": {}}) == []
    (said,) = ha_info.objections({"a": good, "b": {**good, **changes}})
    assert said == named or said.startswith(f"{named} The managers let go by themselves some ten minutes after")


def test_a_held_watchdog_is_told_with_what_helps_and_nothing_else(tmp_path: Path) -> None:
    """Nobody is offline: the last resource was removed a minute ago."""
    good = Node(tmp_path).facts()
    client = {"pid": 812, "name": "pve-ha-lrm", "manager": True}
    held = {**good, "watchdog_active": True, "watchdog": {**good["watchdog"], "clients": [client]}}
    (said,) = ha_info.objections({"web1": held})
    assert said.startswith(f"{HELD}web1 (pve-ha-lrm, pid 812). ")
    for part in ("ten minutes after the last resource was removed", "ha_release_wait_seconds", "crm-command disarm-ha freeze"):
        assert part in said
    assert "online" not in said and "offline" not in said
    assert ha_info.objections({"web1": held}, held=False) == []
    unknown = {**held, "fencing": fencing(None, error="'ha-manager help crm-command' failed: no answer within 120 s")}
    (said,) = ha_info.objections({"web1": unknown})
    assert said.endswith("Whether this one has it is not known: 'ha-manager help crm-command' failed: no answer within 120 s.")


def test_what_is_waited_for(tmp_path: Path) -> None:
    good = Node(tmp_path).facts()
    held = {**good, "watchdog_active": True}
    assert ha_info.release_awaited({"a": good}) == []
    assert ha_info.release_awaited({"a": good, "b": {**held, "node": "b"}}) == ["b"]
    # Not where waiting is not what helps.
    stranger = {"pid": 7, "name": "backup-tool", "manager": False}
    for changes in (
        {"resources": ["vm:100"]},
        {"fencing": fencing(True, "armed")},
        {"other_requests": ["node c is in maintenance"]},
        {"quorate": False},
        {"watchdog": {**good["watchdog"], "clients": [stranger]}},
    ):
        assert ha_info.release_awaited({"a": {**held, **changes}}) == [], changes


def test_waiting_ends_when_they_have_let_go_or_at_its_end(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.hold_watchdog()
    node.lrm("active")

    def let_go() -> None:
        node.hold_watchdog(False)
        node.lrm("wait_for_agent_lock")

    def wait(seconds: float) -> dict[str, Any]:
        return ha_info.await_release(seconds, lambda: node.facts(False), node.sleep, lambda: node.now)

    node.events = {20: let_go}
    began = node.now
    assert wait(60)["watchdog_active"] and node.now - began == 60
    assert not wait(60)["watchdog_active"] and node.now - began == 100
    # A resource that comes meanwhile ends it too.
    node.hold_watchdog()
    node.events = {node.sleeps + 2: lambda: node.pve("ha/resources.cfg", "vm: 100\n")}
    assert wait(60)["resources"] == ["vm:100"] and node.now - began == 110
    assert not [call for call in node.calls if call[0] == "ha-manager"], "these calls are slow"


def test_objections_are_said_once(tmp_path: Path) -> None:
    busy = {**Node(tmp_path).facts(), "other_requests": ["node c is in maintenance"]}
    assert ha_info.objections({"a": busy, "b": busy}) == ["node c is in maintenance"]


def test_a_held_watchdog_is_no_objection_where_the_manager_can_disarm(tmp_path: Path) -> None:
    good = Node(tmp_path).facts()
    held = {**good, "watchdog_active": True, "fencing": fencing(True, "armed")}
    assert ha_info.objections({"a": good, "b": held}) == []


def test_fencing_is_asked_when_another_node_is_in_charge(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed"
    assert node.facts()["fencing"]["command"] is None
    node.lrm("active", name="pve2")
    assert node.facts()["fencing"] == fencing(True, "armed", "armed")
    assert node.facts(False)["fencing"] == fencing(None)
    # With resources nobody disarms, so nobody waits for two slow calls.
    node.pve("ha/resources.cfg", "vm: 100\n")
    node.calls.clear()
    assert node.facts()["fencing"] == fencing(None)
    assert [call for call in node.calls if call[0] == "ha-manager"] == []


# --- formats ---------------------------------------------------------------------------------------------------------

#: As a real one looks: keys in any order, results of what it did.
BUSY = (
    '{"results":{"p4a/Zq+9bFVtq1Jr3WcTdw":{"exit_code":0,"state":"started","sid":"vm:100"},'
    '"Sx1":{"sid":"ct:101","state":"stopped","exit_code":7}},"timestamp":%s,"state":"%s","mode":"active"}'
)


@pytest.mark.parametrize(
    "text",
    [
        BUSY % (90, "active"),
        BUSY % ('"90"', "active"),
        (BUSY % ("90.0", "active")).replace(",", ",\r\n  ").replace(":{", " : {\t"),
        "\ufeff" + BUSY % (90, "active") + "\r\n\r\n",
        '{"state":"active","timestamp":90,"mode":"active","results":null,"more":[1]}',
    ],
)
def test_a_status_is_read_whatever_its_order_and_space(tmp_path: Path, text: str) -> None:
    node = Node(tmp_path)
    node.now = 100.0
    node.pve("nodes/pve2/lrm_status", text)
    facts = node.facts(False)
    assert facts["lrm_states"]["pve2"] == {"state": "active", "mode": "active", "timestamp": 90, "age_seconds": 10}
    assert facts["not_understood"] == []
    assert ha_info.watchdog_holders({"a": facts}) == ["pve2 (its lrm_status says active)"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lrm_status is no JSON object"),
        ('{"state":"wait_for_agent_lock","mo', "lrm_status is no JSON object"),
        ('["wait_for_agent_lock"]', "lrm_status is no JSON object"),
        ("[" * 100_000, "lrm_status is no JSON object"),
        ('{"mode":"active","timestamp":90}', "says state None"),
        ('{"state":"dozing","mode":"active","timestamp":90}', "says state 'dozing'"),
        ('{"state":["active"],"mode":"active","timestamp":90}', "says state ['active']"),
        ('{"state":"active","mode":"turbo","timestamp":NaN}', "says mode 'turbo'"),
        ('{"state":"active","mode":{},"timestamp":1e999}', "says mode {}"),
        ('{"state":"lost_agent_lock","mode":"active","timestamp":true}', ""),
    ],
)
def test_a_status_that_is_not_known_is_told_and_never_taken_for_a_free_watchdog(tmp_path: Path, text: str, said: str) -> None:
    node = Node(tmp_path)
    node.now = 100.0
    node.pve("nodes/pve2/lrm_status", text)
    facts = node.facts()
    assert said in " ".join(facts["not_understood"])
    (holder,) = ha_info.watchdog_holders({"a": facts})
    assert holder.startswith("pve2 (its lrm_status ")
    (objection,) = ha_info.objections({"a": facts})
    assert holder in objection
    # Whether a node that was asked holds a watchdog does not depend on a word, unless that is the word for it.
    other = {**facts, "node": "pve2"}
    known = ["pve2 (its lrm_status says active)", "pve2 (its lrm_status says lost_agent_lock)"]
    assert ha_info.watchdog_holders({"a": facts, "b": other}) in ([], *([each] for each in known))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "manager_status is no JSON object"),
        ("{", "manager_status is no JSON object"),
        ('{"node_status":{"pve2":"vanishing"}}', "node pve2 is in state 'vanishing'"),
        ('{"node_status":{"pve2":null}}', "node pve2 is in state None"),
        ('{"node_status":{"pve2":["online"]}}', "node pve2 is in state ['online']"),
    ],
)
def test_a_manager_status_that_is_not_known_stops_the_run(tmp_path: Path, text: str, said: str) -> None:
    node = Node(tmp_path)
    node.pve("ha/manager_status", text)
    facts = node.facts()
    assert said in " ".join(facts["other_requests"]) and facts["not_understood"]
    assert said in " ".join(ha_info.objections({"a": facts}))


def test_nodes_that_are_gone_are_in_nobodys_way(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.now = 10_000.0
    node.lrm("wait_for_agent_lock")
    node.pve("nodes/gone/lrm_status", json.dumps({"state": "active", "mode": "active", "timestamp": 100}))
    node.pve("nodes/left/.keep", "")
    node.pve("ha/manager_status", json.dumps({"node_status": {"pve1": "online", "gone": "gone", "left": "unknown"}}))
    assert ha_info.objections({"a": node.facts()}) == []


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        ("quorum OK\nfencing armed (CRM watchdog active)\n", "armed", "armed (CRM watchdog active)"),
        ("quorum OK\r\n  fencing:\tstandby (CRM watchdog standby)  \r\n", "standby", "standby (CRM watchdog standby)"),
        ("fencing disarmed (resource mode: freeze)\nlrm pve1 (idle)\n", "disarmed", "disarmed (resource mode: freeze)"),
        ("Fencing (Disarming, waiting)", "disarming", "Disarming, waiting)"),
        ("quorum OK\nfencing half-armed (x)\n", None, "half-armed (x)"),
        ("quorum OK\nfencing\n", None, None),
        ("fencing armed\nfencing disarmed\n", None, "armed; disarmed"),
        ("quorum OK\nlrm fencing (active, watchdog active, x)\nservice vm:100 (fencing, started)\n", None, None),
        ("fencingstate armed\n", None, None),
        ("", None, None),
    ],
)
def test_the_line_of_fencing(text: str, state: str | None, said: str | None) -> None:
    assert ha_fencing.parse(text) == (state, said)


def test_a_manager_that_does_not_answer_is_unknown_and_not_one_that_cannot(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed"
    node.hold_watchdog()
    silent = Result(124, "", "ha-manager: no answer within 120 s")
    node.manager_hook = lambda arguments: silent
    facts = node.facts()
    assert facts["fencing"]["command"] is None
    assert "'ha-manager help crm-command' failed: ha-manager: no answer" in " ".join(facts["not_understood"])
    node.manager_hook = lambda arguments: silent if arguments == ["status"] else None
    assert node.facts()["fencing"] == fencing(True, error="'ha-manager status' failed: ha-manager: no answer within 120 s")
    # What it had printed until then need not be all of it.
    node.manager_hook = lambda arguments: Result(124, "fencing disarmed\n", "") if arguments == ["status"] else None
    assert node.facts()["fencing"]["state"] is None


def test_a_request_of_ours_that_waits_is_nobody_elses(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.pve("ha/crm_commands", "\r\n disarm-ha freeze\r\n\n")
    assert node.facts()["other_requests"] == []
    node.pve("ha/crm_commands", "disarm-ha freeze\narm-ha\n")
    assert node.facts()["other_requests"] == ["queued command 'arm-ha'"]


# --- /etc/pve that does not answer ---------------------------------------------------------------------------------


def test_a_daemon_that_hangs_hangs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named pipe that nobody writes to is opened for ever, as a file of a daemon that does not answer."""
    node = Node(tmp_path)
    os.mkfifo(tmp_path / "etc/pve/ha/resources.cfg")
    monkeypatch.setattr(ha_files, "ANSWER_S", 0.5)
    facts = node.facts()
    assert facts["pve_error"] == "/etc/pve does not answer within 0.5 s"
    assert not facts["resources_known"] and not facts["quorate"] and facts["resources"] == []
    assert facts["services"][ha_info.LRM]["active"] == "active", "the rest is known"
    assert ha_info.objections({"a": facts}) == ["a: /etc/pve does not answer within 0.5 s"]


def test_a_file_that_cannot_be_read_is_no_empty_file(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "etc/pve/ha/resources.cfg").mkdir()  # Is a directory: as good an error as any
    facts = node.facts()
    assert facts["pve_error"] == "/etc/pve/ha/resources.cfg cannot be read: Is a directory"
    assert not facts["resources_known"]
