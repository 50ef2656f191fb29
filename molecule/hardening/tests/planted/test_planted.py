# SPDX-License-Identifier: Apache-2.0
"""The judgement is switched off, the change locks out, and the controller dies: the node takes it back by itself."""

from __future__ import annotations

import os
from pathlib import Path

from nodes import bench_summary


def test_nobody_is_locked_out(ephemeral: Path) -> None:
    which = ("--depths", "blind", "--faults", "kill", "--plants", "no_key,allow_users,no_rsa,no_forwarding")
    seed = os.environ.get("CAMPAIGN_SEED") or os.urandom(4).hex()
    summary = bench_summary(
        "hardening_rounds.py", "--rounds", "1", "--seed", seed, *which, "--work", ephemeral / "rounds"
    )
    assert summary["violations"] == [] and summary["lock_outs"] == 0
    assert summary["taken_back"] == summary["lock_outs_for_real"] == 1
