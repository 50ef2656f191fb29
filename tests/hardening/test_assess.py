# SPDX-License-Identifier: Apache-2.0
"""The way from the module to what `make assess` tells, worst first; a node that did not answer is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.hardening import hardening_info

from tests.assess.test_assess import node as facts_of_a_node
from tests.hardening.node import cis, clean, dev_sec
from tests.loading import load_filters, load_module

ROOT = Path(__file__).resolve().parents[2]


def assessed(registered: Any) -> list[dict[str, str]]:
    own: dict[str, Any] = {"pveguard_node": {"node": facts_of_a_node()}}
    if registered is not None:
        own["pveguard_hardening"] = registered
    filters = load_filters("playbooks").FILTERS
    found = filters["pveguard_assessments"]({"pve1": own}, ["pve1"])["pve1"]["findings"]
    shown = filters["pveguard_assessment"]({"pve1": own}, ["pve1"])
    hardening = [each for each in found if each["id"].startswith("hardening-")]
    assert all(each["text"] in shown for each in hardening)
    return hardening


def test_the_verdict_is_told_worst_first(tmp_path: Path) -> None:
    node = cis(dev_sec(clean(tmp_path)))
    found = assessed({"changed": False, "facts": json.loads(json.dumps(node.look()))})
    levels = [each["level"] for each in found]
    assert levels == sorted(levels, key=["problem", "warning", "unknown", "good"].index)
    hardening = {each["id"] for each in found}
    assert hardening == node.ids() and len(hardening) > 15


@pytest.mark.parametrize(
    "registered",
    [
        {"failed": True, "msg": "planted failure\nwith more"},
        {"unreachable": True, "msg": "planted failure"},
        {"failed": True},
        {"facts": None},
        {"facts": {}},
        {"facts": {"sysctl": {"known": False, "error": "planted failure"}}},
    ],
)
def test_a_module_that_did_not_answer_makes_all_areas_unknown(registered: dict[str, Any]) -> None:
    found = assessed(registered)
    assert {each["id"] for each in found} == {f"hardening-{area}-unread" for area in hardening_info.AREAS}
    assert {each["level"] for each in found} == {"unknown"}
    assert any("planted failure" in each["text"] for each in found) is ("planted" in str(registered))


def test_a_run_that_did_not_ask_says_nothing() -> None:
    assert assessed(None) == []
    assert assessed({"skipped": True, "changed": False}) == []


def test_the_assessment_asks_for_all_and_a_report_for_what_is_switched_on() -> None:
    asking = {
        path.relative_to(ROOT).as_posix()
        for folder in ("playbooks", "roles")
        for path in (ROOT / folder).rglob("*.yml")
        if "hardening_info:" in path.read_text()
    }
    assert {path for path in asking if path.startswith("playbooks/")} == {"playbooks/assess.yml", "playbooks/report.yml"}
    tasks = {}
    for name in ("assess", "report"):
        (tasks[name],) = [
            task
            for play in yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text())
            for task in play.get("tasks", [])
            if "hardening_info" in task
        ]
        assert tasks[name]["register"] == "pveguard_hardening" and tasks[name]["failed_when"] is False
    assert not tasks["assess"]["hardening_info"] and "when" not in tasks["assess"]
    # An empty list would mean all of them.
    assert tasks["report"]["when"] == "hostvars | pveguard_hardening_areas(inventory_hostname) | length > 0"


@pytest.mark.parametrize(
    ("own", "areas"),
    [
        ({}, []),
        ({"node_hardening_enabled": True}, []),
        ({"node_hardening_sshd": True}, ["sshd"]),
        ({"node_hardening_sshd": "yes", "node_hardening_auditd": "on", "node_hardening_sysctl": "no"}, ["sshd", "auditd"]),
        ({"node_hardening_sshd": True, "node_hardening_enabled": "false"}, []),
        ({"node_hardening_sysctl": "audit", "node_hardening_pveproxy": "enforce", "node_hardening_updates": ""}, ["pveproxy"]),
    ],
)
def test_areas_that_are_switched_on(own: dict[str, Any], areas: list[str]) -> None:
    assert load_filters("hardening").FILTERS["pveguard_hardening_areas"]({"pve1": own}, "pve1") == areas


def test_the_module_looks_at_what_was_asked_for(
    run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = clean(tmp_path)
    module = load_module("hardening_info")
    collect = hardening_info.collect
    monkeypatch.setattr(module.hardening_info, "collect", lambda areas: collect(areas, node.root, node.run))
    found = run_module(module, areas=["sysctl", "auditd"], _ansible_check_mode=True)
    assert not found["changed"] and list(found["facts"]) == ["sysctl", "auditd"]
    assert set(run_module(module)["facts"]) == set(hardening_info.AREAS)
    assert run_module(module, areas=["nonsense"])["failed"]


def test_this_machine_can_be_looked_at() -> None:
    """Whatever it is: nothing is raised, and it fits into JSON."""
    try:
        facts = hardening_info.collect()
    except PveguardError as error:
        pytest.fail(str(error))
    assert json.loads(json.dumps(facts)).keys() == hardening_info.AREAS.keys()
    assert all(isinstance(each["known"], bool) for each in facts.values())
