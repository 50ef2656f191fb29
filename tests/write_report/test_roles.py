# SPDX-License-Identifier: Apache-2.0
"""The roles ha and write_report played against this machine, with facts that the inventory gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.write_report.test_report import node

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def play(
    tmp_path: Path, hosts: dict[str, Any], roles: list[dict[str, Any]], *arguments: str
) -> tuple[int, str]:
    """Exit code and output of a play over ``hosts`` (name -> variables) on this machine."""
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_user": ""}
    inventory = {"all": {"hosts": {name: {**common, **variables} for name, variables in hosts.items()}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    tasks = [{"name": "Include", "ansible.builtin.include_role": role} for role in roles]
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"name": "Play", "hosts": "all", "gather_facts": False, "tasks": tasks}])
    )
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            "-i",
            tmp_path / "hosts.yml",
            tmp_path / "play.yml",
            *arguments,
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    return done.returncode, done.stdout + done.stderr


def test_report_of_all_nodes(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    facts = node()
    base = {"pveguard_reports_dir": str(reports), "write_report_window": 1, "write_report_measure": "always"}
    hosts = {
        "pve1": {**base, "pveguard_node": {"node": {**facts, "ram_state": {"state": "absent"}}}},
        "pve2": {
            **base,
            "pveguard_node": {"node": facts},
            "write_report_metrics_dir": str(tmp_path / "pve2"),
        },
    }
    (tmp_path / "pve2").mkdir()
    former = [reports / "2026-01-01", reports / "2026-01-02"]
    for folder in former:
        folder.mkdir(parents=True)
        (folder / "report.json").touch()
    (former[1] / "notes.txt").touch()
    both = [{"name": "write_report", "tasks_from": "baseline.yml"}, {"name": "write_report"}]
    code, output = play(tmp_path, hosts, both, "--check")
    assert code == 0, output
    assert "node  fsyncs/s" in output and not list((tmp_path / "pve2").iterdir())
    assert sorted(reports.iterdir()) == former and str(former[0]) in output, "named, and still there"
    assert "changed=1" not in output and str(former[1]) not in output
    code, output = play(tmp_path, hosts, both)
    assert code == 0, output
    assert output.count("node  fsyncs/s") == 1, "one table for all nodes"
    assert "changed=0" in output and "changed=1" not in output
    assert not former[0].exists() and (former[1] / "notes.txt").exists(), "an old report goes, a file of somebody stays"
    latest = json.loads((reports / "latest.json").read_text())
    assert set(latest["nodes"]) == {"pve1", "pve2"}
    assert latest["nodes"]["pve2"]["ha"]["state"] == "off"
    assert list(reports.glob("20*/report.json")) and (reports / "last/pve1.json").exists()
    assert list(reports.glob("20*/index.html")) and list(reports.glob("20*/pveguard.prom"))
    assert "pve2" in (reports / "index.html").read_text() and "gate.html" not in (reports / "index.html").read_text()
    # The exporter of each host gets that host alone; it is no change.
    assert 'node="pve2"' in (tmp_path / "pve2/pveguard.prom").read_text()
    assert "pve1" not in (tmp_path / "pve2/pveguard.prom").read_text() and not (tmp_path / "pve1").exists()
    code, output = play(tmp_path, hosts, both)
    assert code == 0 and "changed=1" not in output, output
    code, output = play(tmp_path, hosts, [{"name": "write_report", "tasks_from": "remove.yml"}])
    assert code == 0 and not list((tmp_path / "pve2").iterdir()), output


def test_assess_makes_a_page_and_leaves_alone_what_the_next_report_starts_from(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    inventory = {
        "all": {
            "hosts": {
                "here": {
                    "ansible_connection": "local",
                    "ansible_python_interpreter": sys.executable,
                    "ansible_user": "",
                    "pveguard_reports_dir": str(reports),
                }
            }
        }
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml", "playbooks/assess.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "site.yml would change:" in done.stdout and "changed=0" in done.stdout
    assert sorted(path.name for path in reports.iterdir()) == ["assess.html", "assess.json"]
    entry = json.loads((reports / "assess.json").read_text())["nodes"]["here"]
    assert entry["writes"]["observed"] is None and entry["assessment"]["findings"]
    assert "Nothing was changed on any node." in (reports / "assess.html").read_text()


def test_ha_is_left_alone_where_it_is_off_or_used(tmp_path: Path) -> None:
    off = node(
        ha__managers_off=True, ha__watchdog_off=True, ha__remembered=False, corosync__cluster_name="quiet"
    )
    used = node(ha__resources=["vm:100"], ha__disabled=False, ha__remembered=False)
    hosts = {"quiet": {"pveguard_node": {"node": off}}, "busy": {"pveguard_node": {"node": used}}}
    roles = [
        {"name": "ha"},
        {"name": "ha", "tasks_from": "watchdog.yml"},
        {"name": "ha", "tasks_from": "restore.yml"},
    ]
    code, output = play(tmp_path, hosts, roles)
    assert code == 0, output
    assert "HA is in use and stays as it is: vm:100" in output
    assert "Stop and mask" not in output and "Look whether" not in output


def test_ha_on_a_node_without_it(tmp_path: Path) -> None:
    roles = [
        {"name": "ha"},
        {"name": "ha", "tasks_from": "watchdog.yml"},
        {"name": "ha", "tasks_from": "restore.yml"},
    ]
    code, output = play(tmp_path, {"plain": {"ha_state": "disabled"}}, roles)
    assert code == 0 and "changed=0" in output, output


def test_ha_watchdog_is_stopped_nowhere_while_one_member_has_a_client(tmp_path: Path) -> None:
    """The fresh answers count, not the facts; here the answer of this machine is replaced by a module that says so."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "ha_info.py").write_text(
        "from ansible.module_utils.basic import AnsibleModule\n"
        "module = AnsibleModule(argument_spec={}, supports_check_mode=True)\n"
        "module.exit_json(changed=False, ha={'watchdog_active': True})\n"
    )
    (library / "ha_services.py").write_text("raise SystemExit('must not be called')\n")
    on = node(ha__watchdog_off=False, ha__disabled=False)
    hosts = {name: {"pveguard_node": {"node": on}} for name in ("pve1", "pve2")}
    code, output = play(tmp_path, hosts, [{"name": "ha", "tasks_from": "watchdog.yml"}])
    assert code == 2, output
    assert "a client still holds the watchdog of pve1, pve2" in output.replace("\n", " ")
    assert "must not be called" not in output
