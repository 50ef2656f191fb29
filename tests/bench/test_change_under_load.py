# SPDX-License-Identifier: Apache-2.0
"""The bench of changes under load: what it makes of a writer's lines."""

from __future__ import annotations

import errno
from pathlib import Path
from types import ModuleType

import pytest

from tests.loading import load_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return load_file("bench/change_under_load.py")


def test_the_longest_gap_spans_what_failed(bench: ModuleType) -> None:
    lines = [[0.0, 0.1, None], [0.1, 0.2, errno.EACCES], [0.3, 1.2, errno.EACCES], [1.3, 1.6, None], [1.7, 1.8, None]]
    found = bench.judge(lines)
    assert (found["writes"], found["failed"], found["errors"]) == (3, 2, {"Permission denied": 2})
    assert (found["longest_gap_ms"], found["longest_write_ms"]) == (1500, 300)


def test_a_write_that_blocks_counts_as_long_as_it_lasts(bench: ModuleType) -> None:
    assert bench.judge([[0.0, 0.1, None], [0.1, 5.1, None]])["longest_gap_ms"] == 5000


def test_a_writer_that_never_came_back_does_not_pass(bench: ModuleType) -> None:
    found = bench.judge([[0.0, 0.1, None], *([n / 10, n / 10 + 0.05, errno.EROFS] for n in range(1, 100))])
    assert found["longest_gap_ms"] > 9000
    assert bench.judge([]) == {"writes": 0, "failed": 0, "errors": {}, "longest_gap_ms": 0, "longest_write_ms": 0}


def test_the_program_of_the_writer_is_one(bench: ModuleType) -> None:
    compile(bench.WRITER, "writer", "exec")


def test_a_line_that_was_cut_off_is_left_out(bench: ModuleType) -> None:
    assert bench.whole_lines("[0.0, 0.1, null]\n[0.2, 0.3, 30]\n") == [[0.0, 0.1, None], [0.2, 0.3, 30]]
    assert bench.whole_lines("[0.0, 0.1, null]\n[0.2, 0.") == [[0.0, 0.1, None]]
    with pytest.raises(ValueError):
        bench.whole_lines("[0.0, 0.\n[0.2, 0.3, 30]\n[0.4")
