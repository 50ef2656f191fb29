# SPDX-License-Identifier: Apache-2.0
"""The judge of the interruptions: it accepts what a complete run leaves and nothing else."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ha_interruptions as bench
import pytest

Seen = dict[str, dict[str, Any]]
LRM, CRM, MUX = bench.UNITS


def nodes(on: bool) -> Seen:
    unit = {"load": "loaded", "active": "active"} if on else {"load": "masked", "active": "inactive"}
    one = {
        "boot_id": "1",
        "units": {name: dict(unit) for name in bench.UNITS},
        "held": on,
        "watchdogs": ["active" if on else "inactive"],
        "mounted": True,
        "lrm": {"state": "active"} if on else {},
        "status_files": [],
        "remembered": not on,
    }
    return {name: copy.deepcopy(one) for name in ("pve1", "pve2", "pve3")}


def test_complete_runs() -> None:
    assert bench.unlike("enabled", nodes(on=True)) == []
    assert bench.unlike("disabled", nodes(on=False)) == []
    assert len(bench.unlike("enabled", nodes(on=False))) == 12
    assert len(bench.unlike("disabled", nodes(on=True))) == 15


@pytest.mark.parametrize(
    ("wanted", "change", "named"),
    [
        ("disabled", lambda node: node["units"][CRM].update(active="active"), "pve-ha-crm.service is active, masked"),
        ("disabled", lambda node: node["units"][MUX].update(load="loaded"), "watchdog-mux.service is inactive, loaded"),
        ("disabled", lambda node: node["watchdogs"].append("active"), "its watchdog is armed"),
        ("disabled", lambda node: node["status_files"].append("/etc/pve/ha/manager_status"), "manager_status is still there"),
        ("disabled", lambda node: node.update(remembered=False), "nobody knows"),
        ("enabled", lambda node: node["units"][LRM].update(load="masked"), "pve-ha-lrm.service is active, masked"),
        ("enabled", lambda node: node["lrm"].update(state="wait_for_agent_lock"), "'wait_for_agent_lock', not active"),
    ],
)
def test_one_thing_is_wrong(wanted: str, change: Any, named: str) -> None:
    seen = nodes(on=wanted == "enabled")
    change(seen["pve2"])
    (said,) = bench.unlike(wanted, seen)
    assert said.startswith("pve2: ") and named in said


def test_a_reset_is_seen_unless_the_round_took_the_node_down() -> None:
    before = dict.fromkeys(("pve1", "pve2", "pve3"), "1")
    seen = nodes(on=True)
    seen["pve2"]["boot_id"] = seen["pve3"]["boot_id"] = "2"
    assert bench.resets(before, seen, ["pve3"]) == ["pve2: was reset"]


def test_a_watchdog_without_a_feeder() -> None:
    node = nodes(on=True)["pve1"]
    assert bench.unfed("pve1", node) == []
    node["units"][MUX]["active"] = "inactive"
    assert bench.unfed("pve1", node) == ["pve1: a watchdog is armed and watchdog-mux is inactive"]
    node["watchdogs"] = ["inactive"]
    assert bench.unfed("pve1", node) == []


def test_rounds_come_from_the_seed_and_begin_with_each_kind(tmp_path: Path) -> None:
    class Names:
        names = ("pve1", "pve2", "pve3")

    def rounds(seed: str) -> list[tuple[str, str, str, str, float]]:
        campaign = bench.Campaign(Names(), seed, "inventory", tmp_path)  # type: ignore[arg-type]
        return [campaign.plan(number) for number in range(1, 31)]

    first = rounds("1")
    assert first == rounds("1") != rounds("2")
    assert [kind for _, _, kind, _, _ in first[:4]] == list(bench.KINDS)
    assert all(second == wanted for wanted, second, *_ in first[:4])
    undone = [wanted for wanted, second, *_ in first if second != wanted]
    assert 3 <= len(undone) <= 12
    assert {victim for *_, victim, _ in first} == {"pve1", "pve2", "pve3"}
    assert {part < 0.5 for *_, part in first} == {True, False}


def test_the_look_is_json_also_on_a_machine_without_ha() -> None:
    done = subprocess.run([sys.executable, "-c", bench.LOOK], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["boot_id"] and set(seen) == set(nodes(on=True)["pve1"])


def test_wrong_kinds_are_named() -> None:
    program = Path(bench.__file__)
    done = subprocess.run([sys.executable, program, "--kinds", "kill,nap"], capture_output=True, text=True)
    assert done.returncode == 2 and "nap" in done.stderr
