# SPDX-License-Identifier: Apache-2.0
"""The facts alone say that nothing is to be done: the program is not sent to nodes that have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        # What the scenario wants of the nodes.
        "vars": yaml.safe_load((ROOT / "molecule/default/converge.yml").read_text())[0]["vars"],
        "tasks": [
            {"node_info": {}, "register": "pveguard_node"},
            {"ansible.builtin.include_role": {"name": "ram_state"}},
        ],
    }
]


def test_a_node_that_is_as_it_is_wanted_is_only_looked_at(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(json.dumps(PLAY))
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", request.config.getoption("ansible_inventory"), "--check"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run([*command, tmp_path / "play.yml"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "included: ram_state for " in done.stdout, done.stdout
    assert "Keep the cluster file system's database in RAM" not in done.stdout, done.stdout
