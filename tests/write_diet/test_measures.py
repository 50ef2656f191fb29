# SPDX-License-Identifier: Apache-2.0
"""Each measure: its file, switch and tag in the role, its facts, its row in the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.diet import diet_changes, measures, write_diet

from tests.conftest import RunModule
from tests.loading import load_filters, load_module
from tests.write_diet.node import Node, options

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/write_diet"
Make = Callable[..., Node]
EVERY = pytest.mark.parametrize("name", list(measures.MEASURES))


def _yaml(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text())


@EVERY
def test_a_measure_has_one_file_one_switch_and_one_tag(name: str) -> None:
    (task,) = [task for task in _yaml("tasks/main.yml") if task["ansible.builtin.import_tasks"] == f"{name}.yml"]
    assert task["tags"] == ["write_diet", name] and task["when"] == "write_diet_enabled | pveguard_bool"
    (call,) = _yaml(f"tasks/{name}.yml")
    assert list(yaml.safe_load(call["write_diet"]["measures"].strip("{ }").partition(":")[0]).split()) == [name]
    assert f"pveguard_write_diet_is_current('{name}', __write_diet_measures.{name})" in call["when"]


@EVERY
def test_the_role_and_the_assessment_want_the_same(name: str) -> None:
    """The options that the role hands to the module are those that the assessment makes of the variables."""
    defaults = _yaml("defaults/main.yml")
    handed = _yaml("vars/main.yml")["__write_diet_measures"][name]
    made = diet_changes.options(defaults)[name]
    assert set(handed) == set(made)
    for option, template in handed.items():
        variable = f"write_diet_{name}" if option == "enabled" else f"write_diet_{name}_{option}"
        assert variable in template.split(), f"{name}: {option}: {template}"


@EVERY
def test_the_core_takes_the_defaults_that_the_role_documents(name: str, make: Make) -> None:
    """Without options a measure does what it does with the role's defaults."""
    node = make()
    node.start_rrdcached()
    facts = measures.collect(node.run, node.root)[name]
    made = diet_changes.options(_yaml("defaults/main.yml"))[name]
    core = measures.measure(name)
    if facts["installed"]:
        assert core.owned(made, facts) == core.owned({}, facts) and core.differs(made, facts) == core.differs({}, facts)


def test_what_is_on_by_default() -> None:
    made = diet_changes.options(_yaml("defaults/main.yml"))
    assert {name for name, each in made.items() if each["enabled"]} == {"rrdcached", "journald"}


@EVERY
def test_what_it_saves_what_it_can_lose_and_how_it_is_undone_is_said(name: str) -> None:
    rows = [line for line in (ROOT / "docs/write-diet.md").read_text().splitlines() if line.startswith("| `write_diet_")]
    (row,) = [line for line in rows if line.startswith(f"| `write_diet_{name}` ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 5 and all(cells), row
    assert len(rows) == len(measures.MEASURES)


def everything(**more: Any) -> dict[str, Any]:
    return {**diet_changes.options(_yaml("defaults/main.yml")), **more}


def test_a_second_run_finds_nothing_by_the_facts_alone(make: Make) -> None:
    node = make()
    node.start_rrdcached()
    before = node.picture()
    wanted = everything()
    facts = {"write_diet": measures.collect(node.run, node.root)}
    assert [name for name in wanted if not measures.is_current(name, wanted[name], facts)] == ["rrdcached", "journald"]
    done = write_diet.apply(wanted, False, node.run, node.root)
    # As JSON has them on the controller.
    facts = json.loads(json.dumps({"write_diet": done.facts}))
    assert all(measures.is_current(name, wanted[name], facts) for name in wanted)
    assert not write_diet.apply(wanted, False, node.run, node.root).changed
    write_diet.revert(run=node.run, root=node.root)
    assert node.picture() == before and not (node.root / "var/lib/pveguard/write_diet").exists()


def test_the_assessment_says_what_the_run_does(make: Make) -> None:
    node = make()
    node.start_rrdcached()
    facts = {"write_diet": measures.collect(node.run, node.root)}
    values = _yaml("defaults/main.yml")
    foreseen = diet_changes.changes(facts, {}, {"write_diet": values})
    done = write_diet.apply(diet_changes.options(values), False, node.run, node.root)
    assert foreseen == done.todo and len(foreseen) == 3
    assert diet_changes.changes({"write_diet": done.facts}, {}, {"write_diet": values}) == []
    assert diet_changes.changes(facts, {}, {"write_diet": None}) == []
    assert diet_changes.changes({}, {}, {"write_diet": values}) == []
    (said,) = diet_changes.changes({"packages": {"pve-cluster": None}}, {"action": "join"}, {"write_diet": values})
    assert said == "write RRD files late, once rrdcached has come with pve-cluster"


def test_the_assessment_is_told_the_variables_of_the_role() -> None:
    filters = load_filters("playbooks")
    from tests.assess import test_assess

    node = {**test_assess.node(ram_state={"state": "enabled"}), "write_diet": {"journald": {"installed": True, "kept": True}}}
    own = {"write_diet_journald": "no", "group_names": []}
    assert "take the measure journald back" in filters._changes(own, node, {"action": "adopt"})
    assert "take the measure journald back" not in filters._changes(
        {**own, "write_diet_enabled": "false"}, node, {"action": "adopt"}
    )


def test_facts_of_a_host_without_systemd(tmp_path: Path) -> None:
    def missing(argv: Any, **rest: Any) -> Result:
        raise CommandMissing(argv[0])

    facts = measures.collect(missing, tmp_path)
    assert set(facts) == {measures.SURROUNDINGS, *measures.MEASURES}
    assert not any(facts[name]["kept"] or facts[name]["pending"] for name in measures.MEASURES)
    wanted = everything()
    assert [name for name in wanted if measures.todo(name, wanted[name], facts[name])] == []


def test_facts_that_cannot_be_read_are_told_and_stop_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make()

    def broken(*_: Any) -> dict[str, Any]:
        raise OSError("damaged disk")

    monkeypatch.setattr(measures.MEASURES["journald"], "look", broken)
    found = measures.collect(node.run, node.root)
    assert "damaged disk" in found["journald"]["error"] and found["rrdcached"]["installed"]
    # What is wanted and cannot be looked at is not taken for done.
    wanted = {"journald": options()}
    assert not measures.is_current("journald", options(), {"write_diet": found})
    with pytest.raises(PveguardError, match="journald: .*damaged disk"):
        write_diet.apply(wanted, False, node.run, node.root)
    assert node.changing() == [] and not write_diet.apply({"journald": {"enabled": False}}, False, node.run, node.root).changed


def test_filters() -> None:
    filters = load_filters("write_diet")
    node = {"write_diet": {"journald": {"installed": True, "persistent": False, "kept": False, "pending": False}}}
    assert filters.is_current(node, "journald", options()) is True
    # Without facts of the node the module is asked; facts without the measure say that there is nothing.
    assert filters.is_current({}, "journald", options()) is False and filters.is_current(None, "journald", {}) is False
    assert filters.is_current({"hostname": "a"}, "journald", options()) is True
    fresh = {**node, "packages": {"pve-cluster": None}}
    assert filters.is_current(fresh, "journald", options()) is False
    assert filters.is_current(fresh, "journald", {"enabled": False}) is True
    assert filters.is_on({}) and not filters.is_on(node) and not filters.is_on({"hostname": "a"})
    assert filters.is_on({"write_diet": {"journald": {"kept": True}}})
    with pytest.raises(AnsibleFilterError, match="'jornald' is no measure of the write diet, known are rrdcached"):
        filters.is_current(node, "jornald", options())


@pytest.fixture
def module(make: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Node]:
    node = make()
    node.start_rrdcached()
    loaded = load_module("write_diet")
    apply, revert = write_diet.apply, write_diet.revert
    monkeypatch.setattr(write_diet, "apply", lambda wanted, check: apply(wanted, check, node.run, node.root))
    monkeypatch.setattr(write_diet, "revert", lambda check, drift: revert(check, drift, node.run, node.root))
    return loaded, node


def test_the_module(module: tuple[ModuleType, Node], run_module: RunModule) -> None:
    loaded, node = module
    wanted = {"journald": options()}
    foreseen = run_module(loaded, measures=wanted, _ansible_check_mode=True, _ansible_diff=True)
    assert foreseen["changed"] and not node.exists("/etc/systemd/journald.conf.d")
    assert "SystemMaxUse=512M" in foreseen["diff"][0]["after"]
    done = run_module(loaded, measures=wanted)
    assert done["changed_paths"] == foreseen["changed_paths"] and done["done"] == ["systemd-journald restarted"]
    assert done["write_diet"]["journald"]["kept"] and not run_module(loaded, measures=wanted)["changed"]
    node.write("/etc/systemd/journald.conf.d/50-pveguard.conf", "# mine\n")
    assert "somebody changed" in run_module(loaded, state="reverted")["msg"]
    assert any("somebody changed it" in str(each) for each in run_module(loaded, measures=wanted)["warnings"])
    assert run_module(loaded, state="reverted")["changed"] and not run_module(loaded, state="reverted")["changed"]


def test_a_measure_that_is_not_known_is_named_before_anything_is_changed(
    module: tuple[ModuleType, Node], run_module: RunModule
) -> None:
    loaded, node = module
    said = run_module(loaded, measures={"journald": options(), "atimes": options()})
    assert said["failed"] and "'atimes' is no measure" in said["msg"] and node.changing() == []


def test_nothing_is_taken_back_where_one_file_was_changed(make: Make) -> None:
    node = make()
    node.start_rrdcached()
    write_diet.apply(everything(), False, node.run, node.root)
    before = node.picture()
    node.write("/etc/systemd/journald.conf.d/50-pveguard.conf", "# mine\n")
    with pytest.raises(PveguardError, match="nothing was changed now"):
        write_diet.revert(run=node.run, root=node.root)
    assert {path for path, what in node.picture().items() if before[path] != what} == {
        "etc/systemd/journald.conf.d/50-pveguard.conf"
    }
