# SPDX-License-Identifier: Apache-2.0
"""The lock of a run is held from its first playbook to its last, however the playbooks are put together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RUNS = ("site.yml", "playbooks/join.yml")
#: What works on nodes and is a part of these runs.
PARTS = ("playbooks/gate.yml", "playbooks/cluster.yml", "playbooks/protect.yml", "playbooks/report.yml")


@pytest.fixture(scope="module")
def plays() -> dict[str, list[dict[str, Any]]]:
    program = Path(__file__).with_name("read_playbooks.py")
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(
        [sys.executable, program, *RUNS, *PARTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", [*RUNS, *PARTS])
def test_the_lock_is_given_back_once_and_in_the_last_play(name: str, plays: dict[str, list[dict[str, Any]]]) -> None:
    assert [play["play"] for play in plays[name] if play["releases"]] == [plays[name][-1]["play"]]


@pytest.mark.parametrize(("name", "alone"), [("site.yml", False), ("playbooks/join.yml", False), ("playbooks/gate.yml", True)])
def test_only_the_gate_by_itself_measures_every_host(
    name: str, alone: bool, plays: dict[str, list[dict[str, Any]]]
) -> None:
    assert [play["alone"] for play in plays[name] if play["alone"] is not None] == [alone]


@pytest.mark.parametrize("name", ["cluster.yml", "protect.yml"])
def test_no_playbook_passes_over_the_lock_for_what_another_one_saw(name: str) -> None:
    """Results of a playbook outlive it: ``ansible-playbook gate.yml cluster.yml`` gives the lock back in between."""
    plays = yaml.safe_load((ROOT / "playbooks" / name).read_text())
    tasks = next(play["tasks"] for play in plays if "tasks" in play)
    lock = next(i for i, task in enumerate(tasks) if task.get("ansible.builtin.import_tasks") == "tasks/look.yml")
    assert "when" not in tasks[lock]
    for task in tasks[:lock]:
        assert "pveguard_part_of_run | default(false, true) | pveguard_bool" in task["when"], task["name"]
