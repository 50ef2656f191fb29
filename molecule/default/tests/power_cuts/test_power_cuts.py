# SPDX-License-Identifier: Apache-2.0
"""Power cuts in a busy time, of all nodes at once and of one; `make campaign` does more than a hundred."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nodes import bench_summary
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[4]
#: Node cuts: all three at once, then one.
CUTS = 4
#: The second round begins within that, also on a busy machine; nothing is cut later.
MINUTES = 25


@pytest.fixture(scope="module")
def last_words() -> str:
    """A critical message of each node from right before the cuts: the journal is synced every 15 minutes otherwise. By journald's
    own protocol, as one by syslog(3) waits with the others; and by the lab, as a connection of the tests would not outlive it.
    """
    words = f"molecule: {time.time_ns()}"
    command = f"printf 'MESSAGE={words}\\nPRIORITY=2\\n' | logger --journald"
    subprocess.run(
        [sys.executable, "-m", "lab", "--name", os.environ["PVEGUARD_LAB"], "exec", "all", command], cwd=ROOT, check=True
    )
    return words


@pytest.fixture(scope="module")
def summary(ephemeral: Path, last_words: str) -> dict[str, Any]:
    limits = ("--cuts", str(CUTS), "--minutes", str(MINUTES), "--busy", "3.5", "8")
    return bench_summary("power_cuts.py", *limits, "--work", ephemeral / "power_cuts")


def test_nothing_was_violated(summary: dict[str, Any]) -> None:
    assert summary["violations"] == []


def test_single_nodes_and_all_at_once_lost_their_power(summary: dict[str, Any]) -> None:
    """The two rounds."""
    assert summary["cuts_of_all_nodes"] and summary["cuts_of_one_node"]


def test_the_time_was_busy(summary: dict[str, Any]) -> None:
    assert summary["changes_older_than_rpo"] > 10 * summary["cuts"]
    assert summary["disks_checked"] == summary["node_cuts"]


def test_no_more_than_the_rpo_was_lost(summary: dict[str, Any]) -> None:
    # The loss is counted up to the end of the last QEMU, and killing all takes a busy machine seconds.
    assert summary["max_loss_seconds"] <= summary["rpo_seconds"] + 5


def test_critical_messages_had_reached_the_disk(summary: dict[str, Any], last_words: str, nodes: dict[str, Host]) -> None:
    for name, host in nodes.items():
        assert last_words in host.run("journalctl --no-pager -p crit -o cat").stdout, name


def test_no_unit_was_ordered_in_a_cycle(summary: dict[str, Any], nodes: dict[str, Host]) -> None:
    for name, host in nodes.items():
        assert "ordering cycle" not in host.run("journalctl -b --no-pager -o cat _PID=1").stdout, name
