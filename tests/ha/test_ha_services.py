# SPDX-License-Identifier: Apache-2.0
"""The order of commands, the refusals, interruptions, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.errors import PveguardError
from ansible.module_utils.pveguard.run import Result

from tests.ha.systemd import CRM, LRM, MUX, Killed, Node

OFF_MANAGERS = [["stop", LRM], ["stop", CRM], ["mask", LRM, CRM]]
OFF_WATCHDOG = [["stop", MUX], ["mask", MUX]]
ON = [["unmask", MUX, CRM, LRM], ["start", MUX], ["start", CRM], ["start", LRM]]


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
    node.hook = lambda argv: node.lrm("active") if argv[1:] == ["stop", LRM] else None
    with pytest.raises(PveguardError, match="'active'"):
        node.apply("disabled", "managers")
    assert node.verbs == [["stop", LRM]]


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
    assert predicted["changed"] and predicted["steps"] == [f"systemctl stop {MUX}", f"systemctl mask {MUX}"]
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


def test_units_that_an_upgrade_brought_back_go_off_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    off(node)
    node.run(["systemctl", "unmask", LRM])
    node.run(["systemctl", "start", LRM])
    node.calls.clear()
    assert node.apply("disabled", "managers")["changed"]
    assert node.verbs == [["stop", LRM], ["mask", LRM]]


def test_modules(run_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.conftest import load_module

    node = Node(tmp_path)
    info = load_module("ha_info")
    with monkeypatch.context() as patch:
        facts = node.facts()
        patch.setattr(info.ha_info, "collect", lambda: facts)
        assert run_module(info)["ha"]["enabled"] is True

    services = load_module("ha_services")
    apply = services.ha_services.apply
    where = {"run": node.run, "root": tmp_path, "hostname": "pve1"}
    monkeypatch.setattr(
        services.ha_services, "apply", lambda state, part, check: apply(state, part, check=check, **where)
    )
    result = run_module(services, state="disabled", part="managers", _ansible_check_mode=True)
    assert result["changed"] and f"{LRM}: active, enabled" in result["diff"]["before"]
    assert f"{LRM}: inactive, masked" in result["diff"]["after"]
    resources(node)
    assert "vm:100" in run_module(services, state="disabled")["msg"]
