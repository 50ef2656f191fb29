# SPDX-License-Identifier: Apache-2.0
"""bench/payloads.py: Ansible's own payloads of the calls of a second run, counted without a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.loading import ROOT, load_file

bench: Any = load_file("bench/payloads.py")


@pytest.mark.campaign
def test_the_payloads_of_this_checkout_are_counted(tmp_path: Path) -> None:
    floor, found = bench.measure(ROOT, tmp_path / "work")
    assert [name for name, _ in found] == list(bench.SECOND_RUN)
    assert floor > 50_000
    # Each carries Ansible's own and cores of ours.
    assert all(count > floor for _, count in found)


def test_a_run_with_other_calls_is_no_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(bench.NothingMeasured, match="called were ping node_info fsync_bench"):
        bench.measure(ROOT, tmp_path / "work", calls=("run_lock",))


def test_a_node_whose_ram_state_differs_is_sent_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = bench.facts()
    former["ram_state"]["installed"]["program"] = "0123456789abcdef"
    monkeypatch.setattr(bench, "facts", lambda: former)
    calls = ("node_info", "fsync_bench", "ram_state", "node_info", "pmxcfs_writes")
    _, found = bench.measure(ROOT, tmp_path / "work", calls=calls)
    assert dict(found)["ram_state"] > 1.2 * dict(found)["node_info"]


def test_what_is_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = iter([(100, [("a", 400), ("b", 600)]), (100, [("c", 650)])])
    monkeypatch.setattr(bench, "measure", lambda *_: next(figures))
    monkeypatch.setattr(bench, "former_checkout", lambda revision, target: target)
    result = bench.compare("then")
    assert result == {
        "former": "then",
        "modules_before": [{"module": "a", "bytes": 400}, {"module": "b", "bytes": 600}],
        "modules_now": [{"module": "c", "bytes": 650}],
        "bytes_before": 1000,
        "bytes_now": 650,
        "own_before": 800,
        "own_now": 550,
        "own_ratio": 0.688,
        "ratio": 0.65,
        "aim": 0.5,
        "met": False,
    }
    assert "ratio 0.65 (aim: at most 0.5)" in bench.text(result)


def test_a_revision_that_is_not_here_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--revision", "no-such-revision"]) == 2
    assert "no-such-revision" in capsys.readouterr().err
