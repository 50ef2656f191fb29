# SPDX-License-Identifier: Apache-2.0
"""The nodes by their serial consoles, and the part of the main job that is about HA."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "molecule/shared")]

import ha_interruptions  # noqa: E402
import nodes as shared  # noqa: E402

from lab.labs import Lab  # noqa: E402

ephemeral = shared.ephemeral
Protect = Callable[[str], tuple[int, str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    shared.sort_by_folder(items, ["order", "refusal", "interruptions", "later"])


@pytest.fixture(scope="session")
def nodes() -> ha_interruptions.Nodes:
    return ha_interruptions.Nodes(Lab(os.environ["PVEGUARD_LAB"]))


@pytest.fixture(scope="session")
def protect() -> Protect:
    """Run it with this ``ha_state``: exit code and output on one line (Ansible breaks long messages)."""

    def run(ha_state: str) -> tuple[int, str]:
        done = subprocess.run(
            ha_interruptions.command(ha_state, str(ROOT / "inventory/lab")),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
            stdin=subprocess.DEVNULL,
        )
        print(done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run
