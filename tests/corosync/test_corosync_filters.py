# SPDX-License-Identifier: Apache-2.0
"""The filters over Corosync as a playbook calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.loading import load_filters

from .cluster_facts import NAME, conf, healthy, node

ROOT = Path(__file__).resolve().parents[2]


def filters() -> dict[str, Any]:
    module = load_filters("corosync")
    found: dict[str, Any] = module.FILTERS
    return found


def hostvars(nodes: dict[str, Any], **variables: Any) -> dict[str, dict[str, Any]]:
    return {host: {"pveguard_node": {"node": facts}, **variables} if facts else dict(variables) for host, facts in nodes.items()}


def test_differences_of_hosts_that_were_asked_and_that_were_not() -> None:
    nodes = healthy() | {"pve2": node(2, conf(), conf(note="other")), "pve3": None, "solo": None}
    variables = hostvars(nodes, corosync_cluster_name=NAME)
    variables["solo"] = {}
    (found,) = filters()["pveguard_corosync_differences"](variables, ["pve1"])
    assert found["cluster"] == NAME
    told = {each["id"]: each["nodes"] for each in found["findings"]}
    assert told == {"corosync-copies-same-version": ["pve2"], "cluster-not-asked": ["pve3"]}
    assert found["survivor"]["path"] == "/etc/pve/corosync.conf" and found["lines"][0] == f"cluster {NAME}:"


def test_the_group_of_the_inventory_makes_a_probe_and_no_number_does() -> None:
    nodes = healthy() | {"pve3": None}
    variables = hostvars(nodes, corosync_cluster_name=NAME)
    variables["pve3"]["group_names"] = ["pve_probe"]
    (found,) = filters()["pveguard_corosync_differences"](variables, ["pve1"])
    assert [each["seen"].startswith("a probe that was not asked") for each in found["findings"]] == [True]
    variables["pve3"]["group_names"] = []
    (found,) = filters()["pveguard_corosync_differences"](variables, ["pve1"])
    assert [each["seen"].startswith("not asked in this run") for each in found["findings"]] == [True]


@pytest.mark.slow
def test_a_report_ends_with_the_differences_and_is_silent_without(tmp_path: Path) -> None:
    play = [
        {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.set_fact": {"pveguard_node": {"node": "{{ facts[inventory_hostname] }}"}}},
                {"ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks/differences.yml")},
            ],
        }
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    for nodes, differs in ((healthy(), False), (healthy() | {"pve2": node(2, authkey="b" * 64)}, True)):
        (tmp_path / "facts.json").write_text(json.dumps({"facts": nodes}))
        done = playbook("pve1,pve2,pve3,", str(tmp_path / "play.yml"), "-e", f"@{tmp_path}/facts.json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("cluster production:" in done.stdout) is differs
        assert ("pve2: bbbbbbbb" in done.stdout) is differs


def test_the_export_goes_below_the_reports_unless_told_otherwise(tmp_path: Path) -> None:
    export = filters()["pveguard_corosync_export"]
    variables = hostvars({"pve1": node(1)})
    found = export(variables, ["pve1"], "", False, str(tmp_path))
    assert found["path"] == str(tmp_path / "inventory" / NAME / "hosts.yml") and found["errors"] == []
    assert list(found["hosts"]) == ["pve1", "pve2", "pve3"]
    assert export(variables, ["pve1"], str(tmp_path))["path"] == str(tmp_path / "hosts.yml")
    assert export(variables, ["pve1"], f"{tmp_path}/new/")["path"] == str(tmp_path / "new/hosts.yml")
    assert export(variables, ["pve1"], f"{tmp_path}/mine.yml")["path"] == str(tmp_path / "mine.yml")


def test_a_name_from_a_node_cannot_leave_the_directory(tmp_path: Path) -> None:
    text = conf().replace("cluster_name: production", "cluster_name: ../../etc")
    found = filters()["pveguard_corosync_export"](hostvars({"pve1": node(1, text, text)}), ["pve1"], "", False, str(tmp_path))
    assert Path(found["path"]).parent.parent == tmp_path / "inventory"


def test_a_file_with_another_content_is_kept(tmp_path: Path) -> None:
    export = filters()["pveguard_corosync_export"]
    variables = hostvars({"pve1": node(1)})
    file = tmp_path / "hosts.yml"
    found = export(variables, ["pve1"], str(file))
    file.write_text(found["text"])
    # The same content again is no obstacle: nothing would be changed.
    assert export(variables, ["pve1"], str(file))["errors"] == []
    file.write_text("all: {hosts: {mine: }}\n")
    (error,) = export(variables, ["pve1"], str(file))["errors"]
    assert str(file) in error and "export_overwrite=true" in error
    assert export(variables, ["pve1"], str(file), True)["errors"] == []


def playbook(inventory: str, *more: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [program, "-i", inventory, "-c", "local", *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_playbook_writes_once_and_only_what_it_may(tmp_path: Path) -> None:
    """On this machine, whatever it is: what is exported passes validate.yml, and a second export changes nothing."""
    file = tmp_path / "inventory" / "hosts.yml"
    export = ("playbooks/export.yml", "-e", f"export_path={file}")
    dry = playbook("machine,", *export, "--check", "--diff")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "changed=1" in dry.stdout and "+all:" in dry.stdout and not file.exists()
    done = playbook("machine,", *export)
    assert done.returncode == 0 and "changed=1" in done.stdout, done.stdout + done.stderr
    groups = yaml.safe_load(file.read_text())["all"]["children"]
    assert groups and f"make assess INVENTORY={file}" in done.stdout.replace("\n", "")
    again = playbook("machine,", *export)
    assert again.returncode == 0 and "changed=0" in again.stdout
    valid = playbook(str(file), "playbooks/validate.yml")
    assert valid.returncode == 0, valid.stdout
    file.write_text("all: {hosts: {mine: }}\n")
    refused = playbook("machine,", *export)
    assert refused.returncode != 0 and "export_overwrite=true" in refused.stdout
    assert file.read_text() == "all: {hosts: {mine: }}\n"
