# SPDX-License-Identifier: Apache-2.0
"""The first call of a run: the lock and the facts together, and what becomes of it when another run has the lock."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.filters import playbooks

from tests.project import ansible_runs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

#: The lock of the node is a file here; who asks with its run id as takeover gets it.
MODULE = """#!/usr/bin/python
import json, pathlib
from ansible.module_utils.basic import AnsibleModule
NAMES = ("lock", "noise", "holder", "takeover", "cluster", "state")
module = AnsibleModule({name: {"type": "raw"} for name in NAMES}, supports_check_mode=True)
place, kind = pathlib.Path(module._remote_tmp), "NAME"
with open(place / "calls", "a") as calls:
    print(kind, file=calls)
found = {"node": {"counters": {"at": 1}}} if kind == "node_info" else {}
asked = module.params["lock"] if kind == "node_info" else module.params
if not asked:
    module.exit_json(changed=False, **found)
held = json.loads((place / "held").read_text()) if (place / "held").exists() else None
if held and asked.get("takeover") == held["run_id"]:
    (place / "held").unlink()
elif held:
    module.exit_json(changed=False, acquired=False, holder=held, where="/run/pveguard/run.lock", refusal="planted refusal")
module.exit_json(changed=False, acquired=True, holder={}, where="", refusal="", **found)
"""


def run(folder: Path, *arguments: str, held: dict[str, Any] | None = None) -> tuple[str, list[str]]:
    """``(what was printed, the modules that were called)`` of a play that looks, and shows what it has seen."""
    (folder / "library").mkdir(exist_ok=True)
    for name in ("node_info", "run_lock"):
        (folder / f"library/{name}.py").write_text(MODULE.replace("NAME", name))
    if held is not None:
        (folder / "held").write_text(json.dumps(held))
    (folder / "calls").write_text("")
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks/look.yml")},
            {"ansible.builtin.debug": {"msg": "seen {{ pveguard_node.node.counters.at }} {{ pveguard_counters.at }}"}},
        ],
    }
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_remote_tmp": str(folder)}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"pve1": host}}}))
    printed = ansible_runs.output(
        "ansible-playbook", "-i", folder / "hosts.yml", folder / "play.yml", *arguments, ANSIBLE_LIBRARY=str(folder / "library")
    )
    return printed, (folder / "calls").read_text().split()


def test_lock_and_facts_are_one_call(tmp_path: Path) -> None:
    printed, calls = run(tmp_path)
    assert calls == ["node_info"] and "seen 1 1" in printed


def test_the_lock_of_a_run_that_ended_here_is_taken_over(tmp_path: Path) -> None:
    holder = {**playbooks.run_holder(str(tmp_path)), "run_id": "gone", "started": 1}
    printed, calls = run(tmp_path, held=holder)
    assert calls == ["node_info", "run_lock", "run_lock", "node_info"]
    assert "seen 1 1" in printed


def test_the_lock_of_a_run_that_works_is_a_refusal(tmp_path: Path) -> None:
    printed, calls = run(tmp_path, held={"run_id": "other", "who": "bob@lap"})
    assert "planted refusal" in printed and "failed=1" in printed and "seen 1" not in printed
    assert calls == ["node_info", "run_lock"]


def test_a_takeover_that_the_operator_asks_for_is_one_call(tmp_path: Path) -> None:
    printed, calls = run(tmp_path, "-e", "pveguard_lock_takeover=other", held={"run_id": "other", "who": "bob@lap"})
    assert calls == ["node_info"] and "seen 1 1" in printed
