# SPDX-License-Identifier: Apache-2.0
"""The filters and the tasks of the gates' report, the latter with ansible-playbook on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.loading import load_filters

from . import sample

ROOT = Path(__file__).resolve().parents[2]


def filters() -> ModuleType:
    return load_filters("gate")


def hosts(**more: Any) -> dict[str, dict[str, Any]]:
    """name -> variables of a host, as a run of the gates leaves them."""
    return {
        name: {
            "fsync_gate_result": known["disk"],
            "link_gate_result": known["links"],
            "pveguard_plan": known["plan"],
            **more,
        }
        for name, known in sample.three().items()
    }


def write(files: list[dict[str, str]]) -> None:
    for file in files:
        Path(file["path"]).parent.mkdir(parents=True, exist_ok=True)
        Path(file["path"]).write_text(file["content"])


def test_thresholds_are_those_of_the_host_or_of_the_roles(tmp_path: Path) -> None:
    hostvars = hosts()
    hostvars["pve2"]["fsync_gate_min_fsyncs"] = "50"
    nodes = filters().report(hostvars, list(hostvars), ["pve1"], str(tmp_path))["nodes"]
    defaults = yaml.safe_load((ROOT / "roles/fsync_gate/defaults/main.yml").read_text())
    assert nodes["pve1"]["disk"]["thresholds"]["min_fsyncs_per_second"] == defaults["fsync_gate_min_fsyncs"]
    assert nodes["pve2"]["disk"]["thresholds"]["min_fsyncs_per_second"] == 50.0
    assert None not in nodes["pve1"]["links"]["thresholds"].values(), "every name is a variable of the role"


def test_files_and_the_run_after(tmp_path: Path) -> None:
    hostvars = hosts()
    first = filters().report(hostvars, list(hostvars), ["pve1"], str(tmp_path), sample.TOKEN)
    files = filters().files(first, str(tmp_path))
    assert [Path(file["path"]).relative_to(tmp_path).parts[-1] for file in files] == [
        "gate.json",
        "gate.json",
        "gate.html",
    ]
    write(files)
    assert json.loads((tmp_path / "gate.json").read_text()) == json.loads(json.dumps(first))
    second = filters().report({"pve1": hostvars["pve1"]}, ["pve1"], ["pve1"], str(tmp_path))
    assert (
        second["nodes"]["pve2"]["disk"]["kept"]
        and second["nodes"]["pve2"]["disk"]["fsyncs_per_second"] == 14.1
    )
    assert not second["nodes"]["pve1"]["disk"]["kept"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "pveguard-gate", "schema_version": 99, "nodes": {"x": {}}}']
)
def test_a_damaged_file_of_the_last_run_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.json").write_text(text)
    assert list(filters().report(hosts(), ["pve1"], ["pve1"], str(tmp_path))["nodes"]) == ["pve1"]


def play(tmp_path: Path, tasks: list[dict[str, Any]], *arguments: str) -> tuple[int, str]:
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_user": ""}
    known = hosts(pveguard_reports_dir=str(tmp_path / "reports"), corosync_cluster_name="lab", **common)
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": json.loads(json.dumps(known))}}))
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"name": "Play", "hosts": "all", "gather_facts": False, "tasks": tasks}])
    )
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        [program, "-i", tmp_path / "hosts.yml", tmp_path / "play.yml", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    return done.returncode, done.stdout + done.stderr


REPORT = {"name": "Report", "ansible.builtin.include_tasks": str(ROOT / "playbooks/tasks/gate_report.yml")}
REFUSE = {
    "name": "Refuse",
    "ansible.builtin.fail": {"msg": "{{ fsync_gate_result.message }}"},
    "when": "inventory_hostname in refused",
}


@pytest.mark.slow
def test_one_report_for_all_hosts_also_the_refused(tmp_path: Path) -> None:
    refused = ("-e", json.dumps({"refused": ["pve2", "pve3"]}))
    code, output = play(tmp_path, [REFUSE, REPORT], *refused, "--check")
    assert code == 2 and not (tmp_path / "reports").exists(), output
    assert "node  fsyncs/s" in output
    code, output = play(tmp_path, [REFUSE, REPORT], *refused)
    assert code == 2 and output.count("node  fsyncs/s") == 1, output
    assert "changed=0" in output and "changed=1" not in output
    saved = json.loads((tmp_path / "reports/gate.json").read_text())
    assert saved["nodes"]["pve2"]["refused_for"] == ["disk"] and saved["nodes"]["pve1"]["in_run"]
    assert list(saved["clusters"]) == ["lab"]
    assert "pve2 was refused" in (tmp_path / "reports/gate.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("refused", [["pve1"], ["pve1", "pve2", "pve3"]], ids=["first", "all"])
def test_at_the_end_of_a_block_it_reports_also_when_all_were_refused(
    tmp_path: Path, refused: list[str]
) -> None:
    """A play without hosts ends, so the gates stand in a block whose end is always reached."""
    block = {"name": "Gates", "block": [REFUSE], "always": [REPORT]}
    code, output = play(tmp_path, [block], "-e", json.dumps({"refused": refused}))
    assert code == 2 and output.count("node  fsyncs/s") == 1, output
    saved = json.loads((tmp_path / "reports/gate.json").read_text())
    assert [name for name, node in saved["nodes"].items() if not node["in_run"]] == refused
