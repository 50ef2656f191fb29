# SPDX-License-Identifier: Apache-2.0
"""The nodes as in the scenario default, the lab, and playbooks as an operator runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "molecule/shared")]

import nodes as shared  # noqa: E402

from lab.labs import Lab  # noqa: E402

ephemeral, everywhere, nodes = shared.ephemeral, shared.everywhere, shared.nodes
Playbook = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(os.environ["PVEGUARD_LAB"])


@pytest.fixture(scope="session")
def playbook(ephemeral: Path) -> Playbook:
    """Run a playbook on the lab: ``playbook("playbooks/join.yml", "--limit", "pve1")``."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["ansible-playbook", "-i", ROOT / "inventory/lab", ROOT / name, *arguments]
        reports = ["-e", f"pveguard_reports_dir={ephemeral / 'reports'}"]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
        done = subprocess.run(
            [*argv, *reports], capture_output=True, text=True, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL
        )
        print(done.stdout, done.stderr)
        return done

    return run


@pytest.fixture(scope="session")
def gate(ephemeral: Path) -> Callable[[], dict[str, Any]]:
    """What the report of the last run says."""

    def read() -> dict[str, Any]:
        found = json.loads((ephemeral / "reports/gate.json").read_text())
        assert isinstance(found, dict)
        return found

    return read
