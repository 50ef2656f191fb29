# SPDX-License-Identifier: Apache-2.0
"""The published table beside ours: what is off is named, and nothing is compared where nothing reaches a device."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.loading import load_file

PROGRAM = Path(__file__).resolve().parents[2] / "bench/write_amplification.py"


def load() -> ModuleType:
    return load_file("bench/write_amplification.py")


bench = load()


def result(**changes: Any) -> dict[str, Any]:
    case = {"file_bytes": 1 << 20, "block_bytes": 512, "skipped": None, **bench.PUBLISHED[512], **changes}
    return {"cases": [case], "idle": {"transactions": 0}, "database_in_memory": False, "notes": []}


def test_equal_figures_are_not_off() -> None:
    report = bench.compare(result())
    assert report["missed"] == [] and set(report["cases"][0]["ratio"].values()) == {1.0}
    assert "2,794,303,488" in bench.table(report)


def test_what_is_off_is_named() -> None:
    report = bench.compare(result(device_bytes=3_300_000_000, pmxcfs_write_bytes=None, transactions=2050))
    assert report["missed"] == [f"{key} in blocks of 512" for key in ("transactions", "pmxcfs_write_bytes", "device_bytes")]
    text = bench.table(report)
    assert "1.177" in text and "unknown" in text and "more than 15 % off: device_bytes in blocks of 512" in text


def test_transactions_of_others_are_no_miss() -> None:
    given = result(transactions=2060)
    given["idle"]["transactions"] = 4
    assert bench.compare(given)["missed"] == []


def test_in_memory_there_is_nothing_to_compare() -> None:
    given = result(device_bytes=0, pmxcfs_write_bytes=0, factor=0.0)
    given["database_in_memory"] = True
    assert bench.compare(given)["missed"] == []


def test_the_default_node_is_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.ad_hoc, "run", lambda *_: {"pve1": result()})
    assert bench.on_node("inventory/lab", "all[0]", {}) == result()
    monkeypatch.setattr(bench.ad_hoc, "run", lambda *_: {"pve1": result(), "pve2": result()})
    with pytest.raises(bench.NotMeasuredError, match=r"--node all names 2 hosts \(pve1, pve2\)"):
        bench.on_node("inventory/lab", "all", {})


def test_the_modules_own_words_tell_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise bench.ad_hoc.ModuleFailed("write_amplification ended with 2", {"pve1": {"msg": "/etc/pve is not mounted"}})

    monkeypatch.setattr(bench.ad_hoc, "run", refused)
    with pytest.raises(bench.NotMeasuredError, match="^/etc/pve is not mounted$"):
        bench.on_node("inventory/lab", "all[0]", {})
