# SPDX-License-Identifier: Apache-2.0
"""The nodes as in the scenario default, the lab, and playbooks as an operator runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT)]

from lab.labs import Lab  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "default_conftest", ROOT / "molecule/default/tests/conftest.py"
)
assert _spec is not None and _spec.loader is not None
_default = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_default)
ephemeral, nodes = _default.ephemeral, _default.nodes

Playbook = Callable[..., "subprocess.CompletedProcess[str]"]
FINGERPRINT = ROOT / "molecule/default/files/fingerprint.py"


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


@pytest.fixture(scope="session")
def fingerprints(lab: Lab) -> Callable[..., dict[str, Any]]:
    """Files, units, packages, mounts and rows of nodes."""

    def one(name: str) -> Any:
        done = subprocess.run(
            lab.ssh_argv(name, ["/usr/bin/python3", "-"]), input=FINGERPRINT.read_bytes(), stdout=subprocess.PIPE, check=True
        )
        return json.loads(done.stdout)

    def at(*names: str) -> dict[str, Any]:
        with ThreadPoolExecutor() as pool:
            return dict(zip(names, pool.map(one, names), strict=True))

    return at
