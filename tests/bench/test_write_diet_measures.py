# SPDX-License-Identifier: Apache-2.0
"""bench/write_diet_measures.py: its arithmetic and its words; what runs on a node is Python."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from tests.loading import load_file

FOUND = {
    "smartd": [16384, 0], "mounts_atime": [4096, 4096], "mounts_commit": [3000, 1000], "writeback": [3000, 1500],
    "writeback_and_commit": [3000, 500],
}  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_file("bench/write_diet_measures.py")


def test_what_is_saved_is_told_by_the_day(bench: Any) -> None:
    found = bench.report(FOUND, 600.0)["measures"]
    saved = {name: each["bytes_per_day_saved"] for name, each in found.items()}
    assert saved == {
        "smartd": 48 * 16384, "mounts_atime": 0, "mounts_commit": 2000 * 144, "writeback": 1500 * 144,
        "writeback_and_commit": 2500 * 144,
    }  # fmt: skip
    assert (found["smartd"]["factor"], found["mounts_commit"]["factor"]) == (None, 3)


def test_the_table(bench: Any) -> None:
    lines = bench.text(bench.report(FOUND, 600.0)).splitlines()
    assert lines[1].split() == ["smartd:", "one", "check", "of", "an", "NVMe", "16", "KiB", "0", "KiB", "-", "0.8", "MiB"]
    assert "600 s" in lines[-1]


def test_what_the_role_sets_is_what_is_measured(bench: Any) -> None:
    wanted = bench.writeback.settings({})
    assert wanted == {bench.writeback.EXPIRE: 12000, bench.writeback.WAKE: 2000}
    ast.parse(bench.PROGRAM)
