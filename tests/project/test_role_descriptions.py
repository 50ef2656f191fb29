# SPDX-License-Identifier: Apache-2.0
"""A role is known by its own files: what it describes is seen in protect, revert and assess without an edit elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import kinds, roles

from tests.loading import load_filters

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTIONS = {path.parent.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("roles/*/meta/pveguard.yml")}
EVERY_ROLE = roles.read(DESCRIPTIONS)


def done(stage: str, kind: str = kinds.NODE) -> list[tuple[str, str]]:
    return [(step["role"], step["tasks"]) for step in roles.steps(EVERY_ROLE, stage, kind)]


def test_the_order_of_a_protected_node_and_back() -> None:
    assert {stage: done(stage) for stage in roles.STAGES} == {
        "look": [],
        "observe": [("write_report", "baseline.yml")],
        "check": [("ha", "check.yml")],
        "prepare": [("ha", "main.yml")],
        "prepare_together": [("ha", "watchdog.yml")],
        "change": [("ram_state", "main.yml"), ("write_diet", "main.yml"), ("node_hardening", "main.yml")],
        "change_together": [("node_hardening", "together.yml")],
        "revert": [
            ("node_hardening", "revert.yml"),
            ("write_diet", "revert.yml"),
            ("ram_state", "disable.yml"),
            ("ha", "restore.yml"),
            ("write_report", "remove.yml"),
        ],
    }


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind != kinds.NODE])
def test_state_in_ram_is_for_nodes_alone_and_taken_back_everywhere(kind: str) -> None:
    assert done("change", kind) == ([("node_hardening", "main.yml")] if kind == kinds.PLAIN else [])
    assert done("revert", kind) == done("revert")
    assert done("check", kind) == done("check")


def test_a_description_names_files_that_are_there() -> None:
    filters = load_filters("playbooks")
    specs = filters._specs()
    for role in EVERY_ROLE:
        for stage, step in role.steps.items():
            assert step["files"] or (ROOT / f"roles/{role.name}/tasks/{step['tasks']}").is_file(), f"{role.name}: {stage}"
        assert not role.switch or role.switch in specs[role.name], role.name
        assert not role.changes or callable(filters._core(role.changes).changes), role.name


def test_how_many_nodes_a_stage_works_on_at_once() -> None:
    plays = {}
    for name in ("protect", "revert"):
        for play in yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text()):
            for task in play.get("tasks", []):
                if task.get("ansible.builtin.import_tasks") == "tasks/roles.yml":
                    plays[task["vars"]["__pveguard_stage"]] = play
    assert [roles.LOOK, *plays] == list(roles.STAGES)
    one_by_one = {stage for stage, play in plays.items() if play.get("serial") == 1}
    assert one_by_one == {stage for stage, words in roles.STAGES.items() if words.startswith("on one node after the other")}
    assert [stage for stage, play in plays.items() if play.get("any_errors_fatal")] == ["check"]
    assert plays["revert"]["max_fail_percentage"] == 0


@pytest.mark.parametrize("name", ["assess", "report"])
def test_roles_look_before_anything_is_said(name: str) -> None:
    (play,) = [play for play in yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text()) if "hosts" in play]
    first, second, *_ = play["tasks"]
    assert first["register"] == "pveguard_node" and second["vars"] == {"__pveguard_stage": roles.LOOK}


def test_no_playbook_and_no_core_of_the_assessment_names_a_described_role() -> None:
    for path in ("playbooks/protect.yml", "playbooks/revert.yml", "playbooks/tasks/roles.yml", "playbooks/tasks/role.yml"):
        for name in DESCRIPTIONS:
            assert not re.search(rf"name: {name}\b", (ROOT / path).read_text()), f"{path}: {name}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ordre": 1}, "unknown key 'ordre'"),
        ({"order": "10"}, "order '10' is no whole number"),
        ({"order": 20}, "order 20 is that of ha too"),
        ({"switch": "ha_state"}, "'ha_state' is no variable of the role"),
        ({"kinds": ["nodes"]}, "kinds has 'nodes'"),
        ({"changes": "os.path.join"}, "is not ROOM.FILE"),
        ({"limits": {"ha_x": [1, 2]}}, "ha_x: [1, 2] is not [LOWEST, HIGHEST] of a variable of the role"),
        ({"limits": {"later_x": [2, 1]}}, "later_x: [2, 1] is not [LOWEST, HIGHEST]"),
        ({"limits": [1]}, "limits: [1] is not"),
        ({"steps": {"changes": {"name": "x"}}}, "unknown key 'changes'"),
        ({"steps": {"change": {}}}, "steps.change has no name"),
        ({"steps": {"change": {"name": "x", "files": True}}}, "files: true is for the stage revert"),
        ({"steps": ["change"]}, "steps is no mapping"),
    ],
)
def test_a_mistake_in_a_description_is_named_with_its_file(change: dict[str, Any], told: str) -> None:
    with pytest.raises(PveguardError, match=f"^roles/later/meta/pveguard.yml.*{re.escape(told)}"):
        roles.read({**DESCRIPTIONS, "later": {"order": 99, **change}})


def test_a_limit_without_a_number_is_named() -> None:
    (role,) = roles.read({"later": {"order": 1, "limits": {"later_list.days": [1, 2]}}})
    options: dict[str, Any] = {"later_list": {"type": "list", "options": {"days": {"type": "int"}}}}
    roles.add_limits(role, options)
    assert options["later_list"]["options"]["days"]["limits"] == (1, 2)
    with pytest.raises(PveguardError, match="limits: later_list.days is no number of meta/argument_specs.yml"):
        roles.add_limits(role, {"later_list": {"type": "list"}})


def facts(packages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"hostname": "a", "packages": {"pve-cluster": None, **packages}, **more}


PROBE = {"corosync": {"node_id": 7, "members": [{"id": 7, "name": "a", "probe": True}]}}


@pytest.mark.parametrize(
    ("node", "groups", "action", "kind"),
    [
        (facts({"pve-cluster": "9", "pve-manager": "9"}), [], "adopt", kinds.NODE),
        (facts({"pve-cluster": "9", "proxmox-backup-server": "4"}), [], "standalone", kinds.NODE),
        (facts({}), [], "join", kinds.NODE),
        (facts({}), [], "bootstrap", kinds.NODE),
        (facts({}), [], "refuse", kinds.PLAIN),
        (facts({}), [], "", kinds.PLAIN),
        (None, [], "", kinds.PLAIN),
        (facts({"proxmox-backup-server": "4"}), [], "standalone", kinds.BACKUP),
        (facts({"pve-cluster": "9"}), ["all", "pve_probe"], "adopt", kinds.PROBE),
        (facts({}), [], "probe", kinds.PROBE),
        (facts({"pve-cluster": "9"}, **PROBE), [], "adopt", kinds.PROBE),
        (facts({"pve-cluster": "9", "pve-manager": "9"}, **PROBE), [], "adopt", kinds.NODE),
    ],
)
def test_what_kind_of_host_it_is(node: dict[str, Any] | None, groups: list[str], action: str, kind: str) -> None:
    assert kinds.kind(node, groups, action) == kind


# -- a role that only its own files know

ROLE = {
    "roles/empty/meta/pveguard.yml": """
order: 45
switch: empty_enabled
kinds: [node]
changes: writes.empty
limits: {empty_days: [1, 5]}
steps:
  look: {name: Read nothing, tasks: look.yml}
  check: {name: Look at nothing, tasks: check.yml}
  change: {name: Do nothing}
  revert: {name: Put nothing back, files: true}
""",
    "roles/empty/meta/main.yml": """
galaxy_info: {role_name: empty, author: a, description: d, license: Apache-2.0, min_ansible_version: "2.19"}
dependencies: []
""",
    "roles/empty/meta/argument_specs.yml": """
argument_specs:
  main:
    short_description: nothing
    options:
      empty_enabled: {type: bool, default: false, description: [Whether nothing is done.]}
      empty_days: {type: int, default: 3, description: [For how long.]}
""",
    "roles/empty/defaults/main.yml": "empty_enabled: false\nempty_days: 3\n",
    "roles/empty/tasks/main.yml": """
- name: Say what is done
  ansible.builtin.debug: {msg: "nothing was changed on {{ inventory_hostname }}"}
  when: empty_enabled | pveguard_bool
""",
    "roles/empty/tasks/look.yml": """
- name: Say what was read
  ansible.builtin.set_fact:
    __empty_look: {facts: {already: "{{ inventory_hostname == 'pve2' }}"}}
""",
    "roles/empty/tasks/check.yml": """
- name: Say what was seen
  ansible.builtin.debug: {msg: "nothing was seen on {{ inventory_hostname }}"}
""",
    "module_utils/pveguard/writes/empty.py": """
def changes(node, plan, desired):
    already = node.get("empty", {}).get("already")
    return ["do nothing at all"] if desired.get("empty") and not already else []
""",
}

#: The modules of the playbooks; those of roles that are not asked for are never called.
STUB = """
from ansible.module_utils.basic import AnsibleModule
spec = {name: {"type": "raw"} for name in "holder takeover cluster lock state kept_for daemon_reload files".split()}
module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
module.exit_json(changed=False, acquired=True, where="", holder={}, node=NODE)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with one more role."""
    root = tmp_path_factory.mktemp("copy") / "pveguard"
    root.mkdir()
    for name in ("playbooks", "roles", "filter_plugins", "module_utils", "library"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "ansible.cfg", root)
    for path, text in ROLE.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def node_facts() -> dict[str, Any]:
    from tests.assess import test_assess

    node = test_assess.node(ram_state={"state": "enabled"}, units={}, pmxcfs={"mode": "local"}, corosync={"members": []})
    return {**node, "counters": {}}


def play(copy: Path, *arguments: str, **extra: Any) -> str:
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_user": ""}
    inventory = {"all": {"hosts": dict.fromkeys(("pve1", "pve2"), common)}}
    (copy / "hosts.yml").write_text(json.dumps(inventory))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", copy / "hosts.yml", *arguments, "-e", json.dumps(extra)],
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(copy / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=copy,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@pytest.mark.slow
def test_its_variables_are_validated(copy: Path) -> None:
    play(copy, "playbooks/validate.yml", empty_enabled="yes")
    with pytest.raises(AssertionError, match="empty_enabled 'perhaps' is not true or false"):
        play(copy, "playbooks/validate.yml", empty_enabled="perhaps")
    with pytest.raises(AssertionError, match="empty_days 9 is not a whole number from 1 to 5"):
        play(copy, "playbooks/validate.yml", empty_days=9)
    with pytest.raises(AssertionError, match=r"empty_enabeld is not a variable of pveguard; did you mean empty_enabled"):
        play(copy, "playbooks/validate.yml", empty_enabeld=True)


@pytest.mark.slow
def test_it_is_a_part_of_protect_and_of_revert(copy: Path) -> None:
    for name in ("node_info", "run_lock", "managed_file"):
        (copy / f"library/{name}.py").write_text(STUB.replace("NODE", repr(node_facts())))
    shutil.rmtree(copy / "roles/ha")
    shutil.rmtree(copy / "roles/ram_state")
    # Its modules take the lock of this machine themselves.
    shutil.rmtree(copy / "roles/node_hardening")
    off = {"write_report_measure": "never", "write_report_metrics_dir": ""}
    output = play(copy, "playbooks/protect.yml", empty_enabled=True, **off)
    # All are looked at before the first is changed, and they are changed one after the other.
    places = [output.index(f"nothing was {what} on {host}") for what in ("seen", "changed") for host in ("pve1", "pve2")]
    assert max(places[:2]) < places[2] < places[3], output
    assert len(re.findall(r"TASK \[empty : Say what is done\]", output)) == 2
    assert len(re.findall(r"TASK \[empty : Say what was seen\]", output)) == 1
    assert "nothing was changed" not in play(copy, "playbooks/protect.yml", empty_enabled=False, **off)
    output = play(copy, "playbooks/revert.yml", **off)
    assert output.index("TASK [Put nothing back]") < output.index("TASK [Remove what reports left]"), output


@pytest.mark.slow
def test_the_assessment_says_what_it_would_change(copy: Path) -> None:
    for name in ("node_info", "managed_file"):
        (copy / f"library/{name}.py").write_text(STUB.replace("NODE", repr(node_facts())))
    output = play(copy, "playbooks/assess.yml", "--check", empty_enabled="yes", write_report_disks=False)
    of = {host: output.partition(f"{host}: trixie")[2].partition(": trixie")[0] for host in ("pve1", "pve2")}
    # The second has been looked at and needs nothing.
    assert "do nothing at all" in of["pve1"] and "do nothing at all" not in of["pve2"], output
    output = play(copy, "playbooks/assess.yml", "--check", write_report_disks=False)
    assert "site.yml would change: nothing" in output and "do nothing at all" not in output
