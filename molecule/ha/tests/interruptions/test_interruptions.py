# SPDX-License-Identifier: Apache-2.0
"""A play killed and a node without power while HA goes off and on; `make campaign` does thirty, of all kinds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from nodes import bench_summary

#: The third, which leaves HA off for tests/later, is in `make campaign`.
KINDS = ("kill", "power", "connection")[: 3 if "PVEGUARD_CAMPAIGN" in os.environ else 2]


@pytest.fixture(scope="module")
def summary(ephemeral: Path) -> dict[str, Any]:
    kinds = ("--rounds", str(len(KINDS)), "--kinds", ",".join(KINDS))
    return bench_summary("ha_interruptions.py", *kinds, "--work", ephemeral / "ha_interruptions")


def test_no_node_was_reset_and_every_second_run_completed(summary: dict[str, Any]) -> None:
    assert summary["violations"] == [] and summary["unwanted_resets"] == 0


def test_each_kind_came_in_time(summary: dict[str, Any]) -> None:
    assert summary["kinds"] == dict.fromkeys(KINDS, 1)
    assert summary["too_late"] < len(KINDS)
