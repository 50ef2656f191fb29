# SPDX-License-Identifier: Apache-2.0
"""The order of commands, the refusals, interruptions, and what comes back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.ha import ha_files, ha_info, ha_services

from tests.ha.systemd import CRM, LRM, MUX, Killed, Node

OFF_MANAGERS = [["stop", LRM], ["stop", CRM], ["mask", LRM, CRM]]
OFF_WATCHDOG = [["stop", MUX], ["mask", MUX]]
ON = [["unmask", MUX, CRM, LRM], ["start", MUX], ["start", CRM], ["start", LRM]]


@pytest.fixture(autouse=True)
def _read_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No child for each of some hundred looks, but where /etc/pve is to hang."""
    if "hangs" not in request.node.name:
        monkeypatch.setattr(ha_files, "read", ha_files.read_here)


def off(node: Node) -> None:
    node.apply("disabled", "managers")
    node.apply("disabled", "watchdog")
    node.calls.clear()


def test_managers_go_lrm_first_then_the_watchdog(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first = node.apply("disabled", "managers")
    assert node.verbs == OFF_MANAGERS
    assert first["changed"] and first["steps"][0] == f"systemctl stop {LRM}"
    assert node.active == {LRM: "inactive", CRM: "inactive", MUX: "active"}
    node.calls.clear()
    second = node.apply("disabled", "watchdog")
    assert second["changed"] and node.verbs == OFF_WATCHDOG
    assert node.facts()["disabled"] and node.facts()["masked"]


@pytest.mark.parametrize("part", ["managers", "watchdog", "all"])
def test_second_time_changes_nothing(tmp_path: Path, part: str) -> None:
    node = Node(tmp_path)
    off(node)
    before = node.snapshot()
    assert not node.apply("disabled", part)["changed"]
    assert node.verbs == [] and node.snapshot() == before


def test_without_ha_there_is_nothing_to_do(tmp_path: Path) -> None:
    node = Node(tmp_path, installed=False)
    for state in ("disabled", "enabled", "restored"):
        assert not node.apply(state)["changed"]
    assert node.verbs == []


@pytest.mark.parametrize("nowayout", ["1", ""], ids=["nowayout", "unknown"])
def test_a_watchdog_that_cannot_be_stopped_is_masked_only(tmp_path: Path, nowayout: str) -> None:
    node = Node(tmp_path, watchdogs=[nowayout])
    node.apply("disabled", "managers")
    node.calls.clear()
    result = node.apply("disabled", "watchdog")
    assert node.verbs == [["mask", MUX]]
    assert result["watchdog_until_reboot"] and node.active[MUX] == "active"
    assert node.facts()["watchdog_off"]
    assert not node.apply("disabled", "watchdog")["changed"]
    node.reboot()
    assert node.active[MUX] == "inactive"
    assert not node.apply("disabled", "watchdog")["changed"]


def resources(node: Node) -> None:
    node.pve("ha/resources.cfg", "vm: 100\n\tstate started\n")


def fenced(node: Node) -> None:
    node.pve("ha/manager_status", json.dumps({"node_status": {"pve2": "fence"}}))


REFUSALS: list[tuple[Callable[[Node], None], str]] = [
    (resources, "vm:100"),
    (lambda node: node.pve("ha/resources.cfg", "garbage\n"), "not a resource"),
    (lambda node: node.hold_watchdog(), "watchdog"),
    (fenced, "pve2"),
    (lambda node: node.pve("ha/crm_commands", "stop vm:1\n"), "queued command"),
    (lambda node: node.unmount(), "/etc/pve is not mounted"),
    (lambda node: node.lose_quorum(), "no quorum"),
    (lambda node: node.lrm("wait_for_agent_lock", "maintenance", "pve3"), "node pve3 is in maintenance"),
]


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
@pytest.mark.parametrize("part", ["managers", "watchdog", "all"])
@pytest.mark.parametrize(("prepare", "named"), REFUSALS)
def test_refusals_change_nothing(
    tmp_path: Path, prepare: Callable[[Node], None], named: str, part: str, check: bool
) -> None:
    node = Node(tmp_path)
    prepare(node)
    before = node.snapshot()
    with pytest.raises(PveguardError, match=named) as refusal:
        node.apply("disabled", part, check=check)
    assert "Nothing was changed" in str(refusal.value)
    assert node.verbs == [] and node.snapshot() == before


def test_watchdog_is_refused_while_managers_run(tmp_path: Path) -> None:
    node = Node(tmp_path)
    before = node.snapshot()
    with pytest.raises(PveguardError, match=LRM):
        node.apply("disabled", "watchdog")
    assert node.verbs == [] and node.snapshot() == before


def test_a_client_that_takes_the_watchdog_meanwhile(tmp_path: Path) -> None:
    node = Node(tmp_path)

    def take(argv: list[str]) -> None:
        if argv[1:] == ["stop", CRM]:
            node.hold_watchdog()

    node.hook = take
    with pytest.raises(PveguardError, match="still holds the watchdog"):
        node.apply("disabled", "all")
    assert ["stop", MUX] not in node.verbs


def test_resources_added_later_are_a_warning(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    resources(node)
    result = node.apply("disabled", "managers")
    assert not result["changed"] and "vm:100" in result["warnings"][0]


def test_a_stop_that_fails_is_named_and_nothing_after_it_is_done(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.hook = lambda argv: Result(124, "", "no answer within 120 s") if argv[1:] == ["stop", LRM] else None
    with pytest.raises(PveguardError, match=f"systemctl stop {LRM}' failed: no answer"):
        node.apply("disabled", "managers")
    assert node.verbs == [["stop", LRM]]


def test_an_lrm_that_stays_in_charge_stops_the_work(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.stopped = ("active", "active")
    with pytest.raises(PveguardError, match="'active'"):
        node.apply("disabled", "managers")
    assert node.verbs == [["stop", LRM]]


def test_a_crm_that_goes_on_as_the_master_stops_the_work(tmp_path: Path) -> None:
    node = Node(tmp_path)

    def write() -> None:
        node.pve("ha/manager_status", json.dumps({"master_node": "pve1", "timestamp": node.now + 1}))

    node.hook = lambda argv: write() if argv[1:] == ["stop", CRM] else None
    node.events = dict.fromkeys(range(1, 100), write)
    with pytest.raises(PveguardError, match="still written by the CRM of pve1"):
        node.apply("disabled", "all")
    assert ["stop", MUX] not in node.verbs


def test_a_client_that_lets_go_in_a_moment_is_waited_for(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.hook = lambda argv: node.hold_watchdog() if argv[1:] == ["stop", CRM] else None
    node.events = {3: lambda: node.hold_watchdog(False)}
    assert node.apply("disabled", "all")["changed"]
    assert node.facts()["disabled"]


@pytest.mark.parametrize(("options", "nowayout"), [("0x8080", "0"), ("", "0"), ("0x8180", "1")])
def test_a_driver_without_magic_close_or_unknown_is_masked_only(tmp_path: Path, options: str, nowayout: str) -> None:
    node = Node(tmp_path, watchdogs=[nowayout])
    device = tmp_path / "sys/class/watchdog/watchdog0"
    (device / "options").write_text(options)
    (device / "identity").write_text("Board Watchdog\n")
    result = node.apply("disabled", "all")
    assert ["stop", MUX] not in node.verbs and ["mask", MUX] in node.verbs
    assert result["watchdog_until_reboot"] and node.facts()["disabled"]


# --- what the managers leave in /etc/pve ---------------------------------------------------------------------------


def status_files(node: Node) -> list[str]:
    pve = node.root / "etc/pve"
    return sorted(str(path.relative_to(pve)) for path in pve.rglob("*_status"))


def test_the_status_of_managers_that_are_off_goes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.pve("ha/manager_status", "{}")
    node.apply("disabled", "managers")
    assert node.facts()["leftovers"] == ["nodes/pve1/lrm_status", "ha/manager_status"]
    node.apply("disabled", "watchdog")
    assert status_files(node) == [] and node.facts()["leftovers"] == []


def test_the_status_of_others_stays(tmp_path: Path) -> None:
    """The manager's goes with the last LRM of the cluster."""
    node = Node(tmp_path)
    node.lrm("wait_for_agent_lock", name="pve2")
    node.pve("ha/manager_status", json.dumps({"master_node": "pve2"}))
    node.apply("disabled", "all")
    assert status_files(node) == ["ha/manager_status", "nodes/pve2/lrm_status"]
    assert not node.apply("disabled", "all")["changed"]
    (tmp_path / "etc/pve/nodes/pve2/lrm_status").unlink()
    assert node.facts()["leftovers"] == ["ha/manager_status"]
    assert node.apply("disabled", "watchdog")["steps"] == ["remove /etc/pve/ha/manager_status"]


def test_of_two_nodes_at_once_the_last_removes_the_managers_status(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.lrm("wait_for_agent_lock", name="pve2")
    node.pve("ha/manager_status", "{}")

    def other_node(argv: list[str]) -> None:
        if argv[1:] == ["mask", MUX]:
            (tmp_path / "etc/pve/nodes/pve2/lrm_status").unlink()

    node.apply("disabled", "managers")
    node.hook = other_node
    result = node.apply("disabled", "watchdog")
    assert result["steps"][-2:] == ["remove /etc/pve/nodes/pve1/lrm_status", "remove /etc/pve/ha/manager_status"]
    assert status_files(node) == []


def test_a_status_is_removed_when_a_passing_loss_of_quorum_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    node.pve("ha/manager_status", "{}")
    real, until = Path.unlink, [6.0]
    began = node.now

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "manager_status" and node.now - began < until[0]:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    node.apply("disabled", "managers")
    assert "remove /etc/pve/ha/manager_status" in node.apply("disabled", "watchdog")["steps"]
    assert status_files(node) == []
    # One that lasts is told.
    node.pve("ha/manager_status", "{}")
    until[0] = 1e12
    with pytest.raises(PveguardError, match="/etc/pve/ha/manager_status could not be removed: Permission denied.*run again"):
        node.apply("disabled", "watchdog")


def test_with_resources_no_status_is_touched(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    resources(node)
    node.lrm("wait_for_agent_lock")
    assert not node.apply("disabled", "all")["changed"]
    assert status_files(node) == ["nodes/pve1/lrm_status"] and node.facts()["leftovers"] == []


# --- units that came back ------------------------------------------------------------------------------------------


def test_units_that_an_upgrade_brought_back_are_named(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    assert node.facts()["returned"] == []
    node.run(["systemctl", "unmask", LRM, CRM])
    node.run(["systemctl", "start", LRM])
    assert node.facts()["returned"] == [LRM, CRM]
    result = node.apply("disabled", "managers")
    assert result["returned"] == [LRM, CRM]
    assert f"{LRM}, {CRM} had been switched off and came back" in result["warnings"][0]
    assert node.facts()["returned"] == []


def test_an_interrupted_run_is_no_return(tmp_path: Path) -> None:
    node = Node(tmp_path)

    def kill(argv: list[str]) -> None:
        if argv[1:] == ["stop", CRM]:
            raise Killed

    node.hook = kill
    with pytest.raises(Killed):
        node.apply("disabled", "managers")
    node.hook = lambda argv: None
    assert node.facts()["returned"] == []
    assert node.apply("disabled", "managers")["warnings"] == []


# --- the manager's own disarm --------------------------------------------------------------------------------------


def disarms(node: Node) -> Callable[[list[str]], Result | None]:
    """A manager that does as it is told, a moment later."""

    def request(argv: list[str]) -> Result | None:
        if argv[:2] == ["ha-manager", "crm-command"]:
            node.fencing = {"disarm-ha": "disarming", "arm-ha": "standby"}[argv[2]]
            if argv[2] == "disarm-ha":

                def done() -> None:
                    node.fencing = "disarmed"
                    node.hold_watchdog(False)

                node.events[node.sleeps + 2] = done
        return None

    return request


DISARM = ["ha-manager", "crm-command", "disarm-ha", "freeze"]
ARM = ["ha-manager", "crm-command", "arm-ha"]


def test_the_manager_disarms_first_where_it_can(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed"
    node.hold_watchdog()
    node.hook = disarms(node)
    predicted = node.apply("disabled", "all", check=True)
    assert node.verbs == [] and predicted["steps"][0] == " ".join(DISARM)
    assert node.apply("disabled", "all")["steps"] == predicted["steps"]
    assert node.verbs == [DISARM, *OFF_MANAGERS, *OFF_WATCHDOG]
    node.calls.clear()
    assert node.apply("restored")["changed"]
    assert node.verbs == [*ON, ARM] and node.fencing == "standby"


def test_where_nothing_is_armed_there_is_nothing_to_disarm(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "standby"
    node.apply("disabled", "all")
    assert node.verbs == [*OFF_MANAGERS, *OFF_WATCHDOG]


def test_a_manager_that_was_disarmed_by_others_stays_so_unless_enabled(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "disarmed"
    node.hook = disarms(node)
    node.apply("disabled", "all")
    node.apply("restored")
    assert ARM not in node.verbs and DISARM not in node.verbs
    node.apply("disabled", "all")
    node.apply("enabled")
    assert node.verbs[-1] == ARM


def test_a_manager_that_does_not_disarm_is_asked_to_forget_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed (CRM watchdog active)"
    node.hold_watchdog()
    before = node.snapshot()
    with pytest.raises(PveguardError, match="did not disarm within 180 s: .* says fencing 'armed'.*nothing was stopped"):
        node.apply("disabled", "managers")
    assert node.verbs == [DISARM, ARM]
    assert node.snapshot() == before


@pytest.mark.parametrize("shown", ["resting (all is well)", "standby (CRM watchdog standby)", ""])
def test_what_the_manager_shows_besides_is_not_taken_for_free(tmp_path: Path, shown: str) -> None:
    """The watchdog is held; only 'disarmed', or standby with a free watchdog, ends the wait."""
    node = Node(tmp_path)
    node.fencing = "x"
    node.status_text = f"quorum OK\nfencing {shown}\n" if shown else "quorum OK\n"
    node.hold_watchdog()
    before = node.snapshot()
    with pytest.raises(PveguardError, match="a client holds the watchdog of this node") as refusal:
        node.apply("disabled", "managers")
    assert node.verbs == [DISARM, ARM] and node.snapshot() == before
    if shown.startswith("resting"):
        assert "says fencing 'resting (all is well)', which is not known" in str(refusal.value)
    # The same words, and a watchdog that was let go.
    node.calls.clear()

    def disarmed() -> None:
        node.hold_watchdog(False)
        if not shown.startswith("standby"):
            node.status_text = "fencing disarmed (resource mode: freeze)\r\n"

    node.events = {node.sleeps + 3: disarmed}
    assert node.apply("disabled", "managers")["steps"][0] == " ".join(DISARM)
    assert node.verbs == [DISARM, *OFF_MANAGERS]


def test_what_was_waited_for_is_said(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed"
    node.hold_watchdog()
    node.hook = disarms(node)
    (said,) = node.apply("disabled", "managers")["waited"]
    assert said == "4 s until 'ha-manager status' said fencing 'disarmed' and the watchdog was free"


def test_slow_calls_of_the_manager_do_not_make_the_deadline_longer(tmp_path: Path) -> None:
    """A call costs 10 s of processor time on an emulated node, 30 s where three of them share one."""
    node = Node(tmp_path)
    node.fencing = "armed"
    node.hold_watchdog()
    node.manager_seconds = 30.0
    began = node.now
    with pytest.raises(PveguardError, match="did not disarm within 180 s"):
        node.apply("disabled", "managers")
    assert node.now - began < 180 + 6 * 30 + 10
    for argv in (["ha-manager", "status"], ["ha-manager", "help", "crm-command"], DISARM, ARM):
        assert node.timeouts[" ".join(argv)] >= 120


def test_a_request_that_fails_changes_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed"
    node.hold_watchdog()
    before = node.snapshot()
    node.hook = lambda argv: Result(255, "", "no quorum!\n")
    with pytest.raises(PveguardError, match="disarm-ha freeze' failed: no quorum!. Nothing was changed"):
        node.apply("disabled", "managers")
    assert node.verbs == [DISARM] and node.snapshot() == before
    # One that did not answer may have been taken, so it is taken back.
    node.calls.clear()
    node.hook = lambda argv: Result(124, "", "no answer within 120 s") if argv == DISARM else None
    with pytest.raises(PveguardError, match="no answer within 120 s. The request was taken back"):
        node.apply("disabled", "managers")
    assert node.verbs == [DISARM, ARM] and node.snapshot() == before


def test_a_request_that_cannot_be_taken_back_is_remembered(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed (CRM watchdog active)"
    node.hold_watchdog()
    node.pve("ha/manager_status", "{}")

    def fails(argv: list[str]) -> Result | None:
        node.fencing = "disarming"
        return Result(255, "", "no quorum!") if argv == ARM else None

    node.hook = fails
    with pytest.raises(PveguardError, match=r"arm-ha' failed too \(no quorum!\): HA may be disarmed, so run it by hand"):
        node.apply("disabled", "managers")
    assert all(state == "active" for state in node.active.values())
    node.calls.clear()
    node.hook = disarms(node)
    assert node.apply("restored")["steps"] == [" ".join(ARM)]


def test_a_client_that_is_no_manager_is_named(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed"
    node.hold_watchdog()
    node.sockets = (
        'u_str ESTAB 0 0 /run/watchdog-mux.sock 23 * 22 users:(("watchdog-mux",pid=1,fd=5))\n'
        'u_str ESTAB 0 0 * 22 * 23 users:(("backup-tool",pid=77,fd=3))\n'
    )
    before = node.snapshot()
    for check in (True, False):
        with pytest.raises(PveguardError, match=r"backup-tool, pid 77, which is no part of HA.*Nothing was changed"):
            node.apply("disabled", "managers", check=check, wait=900)
    assert node.verbs == [] and node.snapshot() == before and node.sleeps == 0


def test_the_way_back_looks_again_when_the_managers_run(tmp_path: Path) -> None:
    """A manager_status that another node wrote meanwhile: disarmed is seen only after the start."""
    node = Node(tmp_path)
    node.fencing = "armed (CRM watchdog active)"
    node.hold_watchdog()
    node.hook = disarms(node)
    node.apply("disabled", "all")
    assert json.loads((tmp_path / "etc/pveguard/ha.json").read_text())["fencing"] == "armed (CRM watchdog active)"
    node.fencing = "standby"
    node.calls.clear()

    def start(argv: list[str]) -> Result | None:
        if argv[1:] == ["start", LRM]:
            node.fencing = "disarmed (resource mode: freeze)"
        return disarms(node)(argv)

    node.hook = start
    assert node.apply("restored")["steps"][-1] == " ".join(ARM)
    assert node.verbs == [*ON, ARM] and node.fencing == "standby"


def test_the_way_back_says_when_it_does_not_know(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fencing = "armed (CRM watchdog active)"
    node.hold_watchdog()
    node.hook = disarms(node)
    node.apply("disabled", "all")
    node.status_text = "quorum OK\nfencing resting\n"
    (warning,) = node.apply("restored")["warnings"]
    assert "whether HA is armed again is not known: fencing is 'resting', which is not known" in warning
    assert "(before it was disarmed: 'armed (CRM watchdog active)')" in warning and "crm-command arm-ha" in warning


# --- managers that cannot disarm: they let go by themselves ----------------------------------------------------------


def idle(node: Node) -> None:
    node.hold_watchdog(False)
    node.lrm("wait_for_agent_lock")


@pytest.fixture
def armed(tmp_path: Path) -> Node:
    """A minute after the last resource was removed, with a manager that cannot disarm."""
    node = Node(tmp_path)
    node.hold_watchdog()
    node.lrm("active")
    node.sockets = (
        'u_str ESTAB 0 0 /run/watchdog-mux.sock 23 * 22 users:(("watchdog-mux",pid=1,fd=5))\n'
        'u_str ESTAB 0 0 * 22 * 23 users:(("pve-ha-lrm",pid=812,fd=3))\n'
    )
    return node


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
@pytest.mark.parametrize("part", ["managers", "watchdog", "all"])
def test_a_watchdog_that_is_still_held_is_refused_with_what_helps(armed: Node, part: str, check: bool) -> None:
    before = armed.snapshot()
    with pytest.raises(PveguardError) as refusal:
        armed.apply("disabled", part, check=check)
    said = str(refusal.value)
    assert said.startswith("there is no HA resource any more, but the LRM is still active and holds the watchdog: pve1 (")
    for words in ("pve-ha-lrm, pid 812", "ten minutes", "ha_release_wait_seconds", "disarm-ha freeze", "Nothing was changed"):
        assert words in said
    assert "online" not in said
    assert armed.verbs == [] and armed.snapshot() == before


def test_a_run_waits_until_they_let_go_and_goes_on(armed: Node) -> None:
    predicted = armed.apply("disabled", "all", check=True, wait=900)
    assert armed.verbs == [] and armed.sleeps == 0
    armed.events = {7: lambda: idle(armed)}
    result = armed.apply("disabled", "all", wait=900)
    assert result["steps"] == predicted["steps"] and armed.verbs == [*OFF_MANAGERS, *OFF_WATCHDOG]
    assert result["waited"] == ["35 s until the managers had let go of the watchdog"]


def test_a_run_that_waited_in_vain_says_so_and_changes_nothing(armed: Node) -> None:
    before, began = armed.snapshot(), armed.now
    with pytest.raises(PveguardError, match="Nothing was changed. Waited: 900 s"):
        armed.apply("disabled", "all", wait=900)
    assert armed.verbs == [] and armed.snapshot() == before and armed.now - began == 900


def test_a_resource_that_comes_while_a_run_waits(armed: Node) -> None:
    armed.events = {3: lambda: resources(armed)}
    with pytest.raises(PveguardError, match="HA is in use: .*vm:100. Nothing was changed"):
        armed.apply("disabled", "all", wait=900)
    assert armed.verbs == [] and armed.sleeps == 3


def test_where_the_manager_can_disarm_nobody_waits(armed: Node) -> None:
    armed.fencing = "armed (CRM watchdog active)"
    armed.hook = disarms(armed)
    assert armed.apply("disabled", "managers", wait=900)["steps"][0] == " ".join(DISARM)
    assert armed.sleeps == 2


# --- managers that act on SIGTERM after seconds ----------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [15, 95])
def test_slow_stops_break_no_deadline(tmp_path: Path, seconds: float) -> None:
    """Systemd waits 95 s for an LRM; it writes its status, and holds what it holds, to the last."""
    node = Node(tmp_path)

    def slow(argv: list[str]) -> None:
        if argv[1] == "stop":
            node.lrm("wait_for_agent_lock")
            node.now += seconds

    node.hook = slow
    assert node.apply("disabled", "all")["warnings"] == []
    assert node.verbs == [*OFF_MANAGERS, *OFF_WATCHDOG] and node.facts()["disabled"]
    assert node.timeouts[f"systemctl stop {LRM}"] > 95 + 60


def test_a_manager_that_systemd_had_to_end_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    real = node.run

    def run(argv: Any, **more: Any) -> Result:
        done = real(argv, **more)
        if list(argv[1:]) == ["stop", LRM]:
            node.active[LRM] = "failed"
        return done

    node.run = run  # type: ignore[method-assign]
    (warning,) = node.apply("disabled", "managers")["warnings"]
    assert f"{LRM} did not end in good order" in warning


@pytest.mark.parametrize("at", [LRM, CRM])
def test_a_watchdog_that_is_taken_right_before_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """By a resource that somebody has just added: whoever holds it goes on."""
    node = Node(tmp_path)
    save, lrm_state = ha_services._save, ha_info.lrm_state

    def saved(root: Path, memory: dict[str, Any]) -> None:
        save(root, memory)
        node.hold_watchdog(at == LRM)

    def seen(host: str, root: Path) -> Any:
        node.hold_watchdog()
        return lrm_state(host, root)

    (tmp_path / "run/watchdog-mux.active").mkdir(parents=True)
    node.hold_watchdog(False)
    monkeypatch.setattr(ha_services, "_save" if at == LRM else "unused", saved, raising=False)
    monkeypatch.setattr(ha_info, "lrm_state" if at == CRM else "unused", seen, raising=False)
    said = f"still holds the watchdog of pve1.*before 'systemctl stop {at}', which was not run"
    with pytest.raises(PveguardError, match=said):
        node.apply("disabled", "all")
    assert ["stop", at] not in node.verbs and ["stop", MUX] not in node.verbs
    assert (tmp_path / "etc/pveguard/ha.json").exists(), "what ran before is known"


def test_a_cluster_file_system_that_hangs_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    monkeypatch.setattr(ha_files, "ANSWER_S", 0.5)

    def hang(argv: list[str]) -> None:
        if argv[1:] == ["stop", LRM]:
            os.mkfifo(tmp_path / "etc/pve/ha/crm_commands")

    node.hook = hang
    with pytest.raises(PveguardError, match="/etc/pve does not answer within 0.5 s, after the LRM was stopped. The CRM was left"):
        node.apply("disabled", "all")
    assert node.verbs == [["stop", LRM]]


def test_a_cluster_file_system_that_hangs_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    before = node.snapshot()
    monkeypatch.setattr(ha_files, "ANSWER_S", 0.5)
    os.mkfifo(tmp_path / "etc/pve/ha/resources.cfg")
    with pytest.raises(PveguardError, match="not known: /etc/pve does not answer within 0.5 s. Nothing was changed"):
        node.apply("disabled", "all")
    (tmp_path / "etc/pve/ha/resources.cfg").unlink()
    assert node.verbs == [] and node.snapshot() == before


# --- until the LRM is active ---------------------------------------------------------------------------------------


def test_enabled_waits_until_the_lrm_says_that_it_works(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    node.started = None
    node.events = {4: lambda: node.lrm("wait_for_agent_lock", "restart"), 8: lambda: node.lrm("wait_for_agent_lock")}
    node.apply("enabled")
    assert node.sleeps == 8


def test_an_lrm_with_resources_has_to_be_active(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    resources(node)

    def manager(name: str) -> None:
        services = {"vm:100": {"node": name, "state": "started"}}
        node.pve("ha/manager_status", json.dumps({"timestamp": node.now, "service_status": services}))

    node.events = {5: lambda: manager("pve1"), 9: lambda: node.lrm("active")}
    node.apply("enabled")
    assert node.sleeps == 9
    # Resources of other nodes leave it waiting for work.
    node.lrm("wait_for_agent_lock")
    manager("pve2")
    assert not node.apply("enabled")["changed"]


def test_an_lrm_that_never_becomes_active_is_a_failure(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    node.started = ("wait_for_agent_lock", "maintenance")
    with pytest.raises(PveguardError, match="not active after 180 s.*'maintenance'"):
        node.apply("enabled")
    node.started = ("wait_for_agent_lock", "active")
    node.lrm("wait_for_agent_lock")
    assert not node.apply("enabled")["steps"], "a second run completes it"


def test_the_way_back_goes_on_with_a_warning(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    node.started = None
    result = node.apply("restored")
    assert "its LRM is not active after 180 s" in result["warnings"][0]
    assert node.facts()["enabled"] and not node.facts()["remembered"]


# --- softdog -------------------------------------------------------------------------------------------------------


def test_softdog_is_taken_out_and_comes_back(tmp_path: Path) -> None:
    node = Node(tmp_path)
    loaded = tmp_path / "sys/module/softdog"
    loaded.mkdir(parents=True)
    file = tmp_path / "etc/modprobe.d/pveguard-softdog.conf"
    node.apply("disabled", "managers", blacklist_softdog=True)
    assert loaded.exists() and not file.exists()
    predicted = node.apply("disabled", "watchdog", check=True, blacklist_softdog=True)
    assert not file.exists()
    result = node.apply("disabled", "watchdog", blacklist_softdog=True)
    assert result["steps"] == predicted["steps"] and "modprobe -r softdog" in result["steps"]
    assert not loaded.exists() and "install softdog /bin/false\n" in file.read_text()
    assert not node.apply("disabled", "watchdog", blacklist_softdog=True)["changed"]
    node.calls.clear()
    assert node.apply("restored")["steps"][0] == "remove /etc/modprobe.d/pveguard-softdog.conf"
    assert not file.exists() and not (tmp_path / "var/lib/pveguard/managed").exists()


def test_softdog_that_a_former_version_took_out_comes_back_too(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.apply("disabled", "all", blacklist_softdog=True)
    shutil.rmtree(tmp_path / "var/lib/pveguard/managed")
    assert "remove /etc/modprobe.d/pveguard-softdog.conf" in node.apply("restored")["steps"]
    assert not (tmp_path / "etc/modprobe.d/pveguard-softdog.conf").exists()


def test_softdog_that_is_in_use_is_kept_out_at_the_next_boot(tmp_path: Path) -> None:
    node = Node(tmp_path, watchdogs=["1"])
    (tmp_path / "sys/module/softdog").mkdir(parents=True)
    result = node.apply("disabled", "all", blacklist_softdog=True)
    assert "modprobe -r softdog" not in result["steps"] and result["watchdog_until_reboot"]
    assert (tmp_path / "etc/modprobe.d/pveguard-softdog.conf").exists()
    # Without the variable it comes off again.
    assert node.apply("disabled", "watchdog")["steps"] == ["remove /etc/modprobe.d/pveguard-softdog.conf"]


def test_restored_gives_back_exactly_what_was(tmp_path: Path) -> None:
    node = Node(tmp_path)
    # An operator had the CRM disabled and stopped.
    (tmp_path / "etc/systemd/system/multi-user.target.wants" / CRM).unlink()
    node.active[CRM] = "inactive"
    before = node.snapshot()
    off(node)
    result = node.apply("restored")
    assert result["changed"] and node.verbs == [["unmask", MUX, CRM, LRM], ["start", MUX], ["start", LRM]]
    assert node.snapshot() == before
    assert not node.apply("restored")["changed"]


def test_restored_without_a_memory_does_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.run(["systemctl", "mask", LRM])
    node.calls.clear()
    assert not node.apply("restored")["changed"]
    assert node.verbs == []


def test_enabled_brings_all_back_whatever_was(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    (tmp_path / "etc/pveguard/ha.json").unlink()
    (tmp_path / "etc/systemd/system/multi-user.target.wants" / LRM).unlink()
    assert node.apply("enabled")["changed"]
    assert node.verbs == [ON[0], ["enable", LRM], *ON[1:]]
    assert node.facts()["enabled"]
    assert not node.apply("enabled")["changed"]


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    (tmp_path / "etc/pveguard/ha.json").write_text("{}")
    with pytest.raises(PveguardError, match="/etc/pveguard/ha.json"):
        node.apply("restored")
    assert node.verbs == []


@pytest.mark.parametrize("state", ["disabled", "restored", "enabled"])
@pytest.mark.parametrize("start", ["on", "managers off", "off", "half off"])
def test_check_mode_says_what_the_run_does(tmp_path: Path, start: str, state: str) -> None:
    node = Node(tmp_path)
    if start == "half off":
        node.active[LRM] = "inactive"
    if start in ("managers off", "off"):
        node.apply("disabled", "managers")
    if start == "off":
        node.apply("disabled", "watchdog")
    node.calls.clear()
    before = node.snapshot()
    predicted = node.apply(state, check=True)
    assert node.verbs == [] and node.snapshot() == before
    real = node.apply(state)
    assert predicted == real
    assert real["changed"] == (node.snapshot() != before)


def test_check_mode_predicts_the_watchdog_before_the_managers_are_off(tmp_path: Path) -> None:
    node = Node(tmp_path)
    predicted = node.apply("disabled", "watchdog", check=True)
    assert predicted["changed"] and predicted["steps"] == [
        f"systemctl stop {MUX}",
        f"systemctl mask {MUX}",
        "remove /etc/pve/nodes/pve1/lrm_status",
    ]
    node.apply("disabled", "managers")
    assert node.apply("disabled", "watchdog")["steps"] == predicted["steps"]


@pytest.mark.parametrize("reboot", [False, True], ids=["killed", "rebooted"])
@pytest.mark.parametrize("at", range(5))
def test_an_interrupted_run_is_completed_and_still_restored(tmp_path: Path, at: int, reboot: bool) -> None:
    node = Node(tmp_path)
    before = node.snapshot()
    commands = 0

    def kill(argv: list[str]) -> None:
        nonlocal commands
        commands += 1
        if commands == at + 1:
            raise Killed

    node.hook = kill
    with pytest.raises(Killed):
        node.apply("disabled", "managers")
        node.apply("disabled", "watchdog")
    node.hook = lambda argv: None
    if reboot:
        node.reboot()
    node.apply("disabled", "managers")
    node.apply("disabled", "watchdog")
    assert node.facts()["disabled"]
    node.apply("restored")
    assert node.snapshot() == before


@pytest.mark.parametrize("at", range(4))
def test_an_interrupted_restore_is_completed(tmp_path: Path, at: int) -> None:
    node = Node(tmp_path)
    before = node.snapshot()
    off(node)
    commands = 0

    def kill(argv: list[str]) -> None:
        nonlocal commands
        commands += 1
        if commands == at + 1:
            raise Killed

    node.hook = kill
    with pytest.raises(Killed):
        node.apply("restored")
    node.hook = lambda argv: None
    node.apply("restored")
    assert node.snapshot() == before


def test_a_module_that_goes_on_without_its_run_is_waited_for(tmp_path: Path) -> None:
    node = Node(tmp_path)
    path = tmp_path / "run/pveguard/ha.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PveguardError, match="an earlier run still works on HA"):
            node.apply("disabled")
        assert node.calls == []
        node.apply("disabled", check=True)
        node.events = {node.sleeps + 5: lambda: fcntl.flock(held, fcntl.LOCK_UN)}
        assert node.apply("disabled")["changed"]


def test_units_that_an_upgrade_brought_back_go_off_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    node.run(["systemctl", "unmask", LRM])
    node.run(["systemctl", "start", LRM])
    node.calls.clear()
    assert node.apply("disabled", "managers")["changed"]
    assert node.verbs == [["stop", LRM], ["mask", LRM]]


def test_modules(run_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.loading import load_module

    node = Node(tmp_path)
    info = load_module("ha_info")
    with monkeypatch.context() as patch:
        facts = node.facts()
        patch.setattr(info.ha_info, "collect", lambda: facts)
        assert run_module(info)["ha"]["enabled"] is True
        facts["unattended"] = ["vm:100"]
        assert "HA is off on pve1 but there are HA resources: vm:100" in str(run_module(info)["warnings"])

    services = load_module("ha_services")
    apply = services.ha_services.apply
    where = {"run": node.run, "root": tmp_path, "hostname": "pve1"}
    monkeypatch.setattr(
        services.ha_services, "apply", lambda state, part, **options: apply(state, part, **options, **where)
    )
    result = run_module(services, state="disabled", part="managers", _ansible_check_mode=True)
    assert result["returned"] == []
    assert result["changed"] and f"{LRM}: active, enabled" in result["diff"]["before"]
    assert f"{LRM}: inactive, masked" in result["diff"]["after"]
    resources(node)
    assert "vm:100" in run_module(services, state="disabled")["msg"]
