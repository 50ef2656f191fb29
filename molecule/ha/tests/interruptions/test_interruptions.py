# SPDX-License-Identifier: Apache-2.0
"""A play killed, a connection lost and a node without power while HA goes off, on and off; `make campaign` does thirty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
KINDS = ("kill", "connection", "power")


@pytest.fixture(scope="module")
def summary(ephemeral: Path) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "bench/ha_interruptions.py", "--name", os.environ["PVEGUARD_LAB"], "--json"),
            *("--rounds", str(len(KINDS)), "--kinds", ",".join(KINDS), "--work", ephemeral / "ha_interruptions"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode in (0, 1), "the interruptions could not be done"
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=2))
    assert isinstance(found, dict)
    return found


def test_no_node_was_reset_and_every_second_run_completed(summary: dict[str, Any]) -> None:
    assert summary["violations"] == [] and summary["unwanted_resets"] == 0


def test_each_kind_came_in_time(summary: dict[str, Any]) -> None:
    assert summary["kinds"] == dict.fromkeys(KINDS, 1)
    assert summary["too_late"] < len(KINDS)
