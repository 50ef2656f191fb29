# SPDX-License-Identifier: Apache-2.0
"""A play killed, a connection lost and a node without power while HA goes off, on and off; `make campaign` does thirty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nodes import bench_summary

KINDS = ("kill", "connection", "power")


@pytest.fixture(scope="module")
def summary(ephemeral: Path) -> dict[str, Any]:
    kinds = ("--rounds", str(len(KINDS)), "--kinds", ",".join(KINDS))
    return bench_summary("ha_interruptions.py", *kinds, "--work", ephemeral / "ha_interruptions")


def test_no_node_was_reset_and_every_second_run_completed(summary: dict[str, Any]) -> None:
    assert summary["violations"] == [] and summary["unwanted_resets"] == 0


def test_each_kind_came_in_time(summary: dict[str, Any]) -> None:
    assert summary["kinds"] == dict.fromkeys(KINDS, 1)
    assert summary["too_late"] < len(KINDS)
