# SPDX-License-Identifier: Apache-2.0
"""A node loses its power while HA goes off; `make campaign` does thirty interruptions, of all kinds, off and on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from nodes import bench_summary

#: One takes three minutes; CI interrupts the doubles' own programs besides (tests/ha/test_on_double.py). The last round
#: leaves HA off, for tests/later.
KINDS = ("power", "kill", "connection")[: 3 if "PVEGUARD_CAMPAIGN" in os.environ else 1]


@pytest.fixture(scope="module")
def summary(ephemeral: Path) -> dict[str, Any]:
    kinds = ("--rounds", str(len(KINDS)), "--kinds", ",".join(KINDS))
    return bench_summary("ha_interruptions.py", *kinds, "--work", ephemeral / "ha_interruptions")


def test_no_node_was_reset_and_every_second_run_completed(summary: dict[str, Any]) -> None:
    assert summary["violations"] == [] and summary["unwanted_resets"] == 0


def test_each_kind_came_in_time(summary: dict[str, Any]) -> None:
    assert summary["kinds"] == dict.fromkeys(KINDS, 1)
    assert summary["too_late"] < len(KINDS)
