# SPDX-License-Identifier: Apache-2.0
"""A member's disk is measured once a week, and again when anything about it changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.gates import fsync_bench, fsync_gate


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "state" / "fsync_gate.json"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def gate(disk: Path, cache: Path, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"cache_days": 7, "store": True, **more}
    return fsync_gate.gate(str(disk), 0.1, cache_file=str(cache), **values)


def change(cache: Path, **values: Any) -> None:
    saved = json.loads(cache.read_text())
    saved["result"].update(values)
    cache.write_text(json.dumps(saved))


def test_the_second_time_nothing_is_measured(
    disk: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gate(disk, cache)
    assert not first["cached"] and first["cache"] == "never measured" and first["drift"] is None
    assert cache.stat().st_mode & 0o777 == 0o600

    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("it was measured"))
    second = gate(disk, cache)
    assert second["cached"] and second["cache"] == "used" and second["time"] == first["time"]
    assert second["methods"] == first["methods"]


@pytest.mark.usefixtures("unsuspected")
def test_a_stored_result_is_judged_by_the_thresholds_of_now(disk: Path, cache: Path) -> None:
    assert gate(disk, cache)["verdict"] == "pass"
    result = gate(disk, cache, min_fsyncs_per_second=1e9, threshold_name="fsync_gate_min_fsyncs")
    assert result["cached"] and (result["verdict"], result["reason"]) == ("fail", "slow")
    assert "fsync_gate_min_fsyncs" in result["message"] and "days ago" in result["message"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"drive_identity": "naa.another"}, "another drive: naa.another, now"),
        ({"kernel": "6.8.12-1-pve"}, "another kernel: 6.8.12-1-pve, now"),
        ({"filesystem": "zfs"}, "another file system"),
        ({"time": "2020-01-01T00:00:00Z"}, "days old"),
        ({"time": "2100-01-01T00:00:00Z"}, "clock"),
        ({"methods": {"commit": {}}}, "not measured by pveperf"),
    ],
)
def test_what_makes_a_stored_result_void(disk: Path, cache: Path, values: dict[str, Any], why: str) -> None:
    gate(disk, cache)
    change(cache, **values)
    result = gate(disk, cache)
    assert not result["cached"] and why in result["cache"]
    assert gate(disk, cache)["cached"], "the new one was stored"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema": "x"}', '{"schema": "pveguard-fsync-gate", "schema_version": 1}']
)
def test_a_damaged_file_is_measured_anew(disk: Path, cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert not gate(disk, cache)["cached"]
    assert gate(disk, cache)["cached"]


def test_nothing_is_stored_unless_asked_and_no_failure(disk: Path, cache: Path) -> None:
    gate(disk, cache, store=False)
    assert not cache.parent.exists()
    result = gate(disk / "none", cache)
    assert result["verdict"] == "fail" and not cache.parent.exists()


def test_stored_only_measures_nothing(disk: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsync_gate.fsync_bench, "bench", lambda *_, **__: pytest.fail("measured"))
    assert gate(disk, cache, stored_only=True) == {"cached": False, "cache": "never measured"}
    monkeypatch.undo()
    first = gate(disk, cache)
    monkeypatch.setattr(fsync_gate.fsync_bench, "bench", lambda *_, **__: pytest.fail("measured"))
    taken = gate(disk, cache, stored_only=True)
    assert taken["cached"] and taken["time"] == first["time"]
    change(cache, kernel="6.8.12-1-pve")
    found = gate(disk, cache, stored_only=True)
    assert set(found) == {"cached", "cache"} and "another kernel" in found["cache"]


def test_a_result_of_the_loop_that_wrote_before_it_synced_is_measured_anew(disk: Path, cache: Path) -> None:
    gate(disk, cache)
    saved = json.loads(cache.read_text())
    saved["schema_version"] = 1
    cache.write_text(json.dumps(saved))
    result = gate(disk, cache)
    assert not result["cached"] and "another version" in result["cache"]


def test_a_stored_result_is_judged_by_the_drive_of_now(
    disk: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures that a protected cache explained are suspect once the protection has failed."""
    described = fsync_bench.block_device.describe
    drive: dict[str, Any] = {
        "name": "nvme0n1", "rotational": False, "rpm": None, "transport": "nvme", "virtual": False,
        "write_cache": "write through", "drive_write_cache": "write through", "volatile_cache": False,
        "power_loss_protection": True, "power_loss_rule": "it says so", "power_loss_failed": False, "health": [],
    }  # fmt: skip

    def describe(*arguments: Any, **more: Any) -> dict[str, Any]:
        found = described(*arguments, **more)
        return {**found, "disks": [dict(drive)], "power_loss_protection": drive["power_loss_protection"]}

    monkeypatch.setattr(fsync_bench.block_device, "describe", describe)
    gate(disk, cache)
    saved = json.loads(cache.read_text())
    for figures in saved["result"]["methods"].values():
        figures["p50_ms"] = 0.02
    cache.write_text(json.dumps(saved))
    result = gate(disk, cache)
    assert result["cached"] and (result["verdict"], result["suspect"]) == ("pass", [])

    drive.update(
        power_loss_protection=False,
        power_loss_failed=True,
        power_loss_rule="its power-loss protection has failed: of old age",
        health=["the backup of its volatile memory has failed"],
    )
    result = gate(disk, cache)
    assert result["cached"] and (result["verdict"], result["reason"]) == ("warn", "suspect")
    assert "its power-loss protection has failed: of old age" in result["message"]
    assert "nvme0n1: the backup of its volatile memory has failed" in result["message"]
    assert result["power_loss_protection"] is False


def test_drift(disk: Path, cache: Path) -> None:
    first = gate(disk, cache)
    rate = first["fsyncs_per_second"] * 1000
    change(
        cache,
        time="2020-01-01T00:00:00Z",
        fsyncs_per_second=rate,
        fsyncs_per_second_interval=[rate * 0.99, rate * 1.01],
        kernel="5.15.0-1-pve",
    )
    result = gate(disk, cache)
    drift = result["drift"]
    assert drift["since"] == "2020-01-01T00:00:00Z" and drift["fsyncs_per_second_before"] == rate
    assert (
        drift["fsyncs_per_second_change_percent"] < -90
        and drift["changed"] == ["kernel"]
        and drift["notable"]
    )
    assert "since 2020-01-01T00:00:00Z" in result["message"]


def test_drift_within_the_noise_is_not_notable() -> None:
    before = {
        "method": "pveperf",
        "time": "2026-01-01T00:00:00Z",
        "fsyncs_per_second": 1000.0,
        "fsyncs_per_second_interval": [900.0, 1100.0],
        "p99_ms": 2.0,
    }
    now = {**before, "fsyncs_per_second": 700.0, "fsyncs_per_second_interval": [650.0, 750.0], "p99_ms": 2.5}
    found = fsync_gate.drift(before, now)
    assert found is not None and not found["notable"] and found["changed"] == []
    assert fsync_gate.drift(before, {**now, "p99_ms": 8.0})["notable"]  # type: ignore[index]
    assert fsync_gate.drift(before, {**now, "method": "commit"}) is None
    assert fsync_gate.drift(before, {**now, "measures": "fsync of a truncated file"}) is None, "another loop"
    assert fsync_gate.drift({}, now) is None and fsync_gate.drift(before, {"time": "x"}) is None


def test_a_candidate_drifts_from_what_the_controller_knows(disk: Path) -> None:
    before = {
        **fsync_bench.bench(str(disk), 0.1),
        "fsyncs_per_second": 1e9,
        "fsyncs_per_second_interval": None,
    }
    result = fsync_gate.gate(str(disk), 0.1, previous=before)
    assert result["drift"]["notable"] and result["cache"] == "no file for results was given"


def test_module_stores_only_outside_check_mode(run_module: Any, disk: Path, cache: Path) -> None:
    arguments = {
        "path": str(disk),
        "duration": 0.1,
        "methods": ["fdatasync", "pveperf"],
        "warn_p99_ms": 0.000001,
        "p99_threshold_name": "fsync_gate_warn_p99_ms",
        "cache_file": str(cache),
        "cache_days": 7,
        "store": True,
    }
    checked = run_module("fsync_bench", _ansible_check_mode=True, **arguments)
    assert checked["verdict"] == "warn" and not checked["changed"] and not cache.exists()
    nothing = run_module("fsync_bench", **arguments, stored_only=True)
    assert not nothing["cached"] and "verdict" not in nothing and not cache.exists()
    assert "fsync_gate_warn_p99_ms" in str(checked["warnings"])
    stored = run_module("fsync_bench", **arguments)
    assert cache.exists() and not stored["changed"] and stored["warnings"]
    used = run_module("fsync_bench", **arguments)
    assert used["cached"] and used["verdict"] == "warn"
    assert used["warnings"] == stored["warnings"], "in one process they add up: nothing was said again"
    assert "methods" in run_module("fsync_bench", path=str(disk), methods=[])["msg"]
