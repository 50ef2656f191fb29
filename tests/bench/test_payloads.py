# SPDX-License-Identifier: Apache-2.0
"""bench/payloads.py: Ansible's own payloads of the calls of a second run, counted without a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.loading import ROOT, load_file

bench: Any = load_file("bench/payloads.py")


def test_the_payloads_of_this_checkout_are_counted(tmp_path: Path) -> None:
    floor, found = bench.measure(ROOT, tmp_path / "work")
    assert [name for name, _ in found] == list(bench.SECOND_RUN)
    assert floor > 50_000
    # Each carries Ansible's own and cores of ours.
    assert all(count > floor for _, count in found)


def test_a_run_with_other_calls_is_no_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECOND_RUN", ("run_lock",))
    with pytest.raises(bench.NothingMeasured, match="called were ping run_lock node_info"):
        bench.measure(ROOT, tmp_path / "work")


def test_what_is_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = iter([(100, [("a", 400), ("b", 600)]), (100, [("a", 300), ("b", 350)])])
    monkeypatch.setattr(bench, "measure", lambda checkout, work: next(figures))
    monkeypatch.setattr(bench, "former_checkout", lambda revision, target: target)
    result = bench.compare("then")
    assert result == {
        "former": "then",
        "modules": [
            {"module": "a", "bytes_before": 400, "bytes_now": 300},
            {"module": "b", "bytes_before": 600, "bytes_now": 350},
        ],
        "bytes_before": 1000,
        "bytes_now": 650,
        "own_before": 800,
        "own_now": 450,
        "own_ratio": 0.562,
        "ratio": 0.65,
        "aim": 0.5,
        "met": False,
    }
    assert "ratio 0.65 (aim: at most 0.5)" in bench.text(result)


def test_a_revision_that_is_not_here_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--revision", "no-such-revision"]) == 2
    assert "no-such-revision" in capsys.readouterr().err
