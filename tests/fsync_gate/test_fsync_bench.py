# SPDX-License-Identifier: Apache-2.0
"""Real measurements. Nothing here asserts how fast this machine is."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard import fsync_bench

ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Any]:
    """Mounts a tmpfs with the given options and gives its path."""
    mounted = []

    def tmpfs(options: str) -> Path:
        point = tmp_path / f"mount{len(mounted)}"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], check=True)
        mounted.append(point)
        return point

    yield tmpfs
    for point in mounted:
        subprocess.run(["umount", "-l", point], check=True)


def test_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = fsync_bench.bench(str(tmp_path), 0.3)
    assert result["verdict"] == "pass" and result["reason"] == "ok"
    assert result["samples"] > 0 and result["fsyncs_per_second"] > 0
    assert result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"] <= result["p99_9_ms"] <= result["max_ms"]
    assert result["duration_seconds"] >= 0.3
    assert result["filesystem"] and result["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_loop_is_pveperfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 files in turn, each opened with truncate, 4001 bytes, fsync, close."""
    calls: list[tuple[Any, ...]] = []
    real_open, real_write = os.open, os.write

    def opened(path: str, flags: int, mode: int = 0o777) -> int:
        calls.append(("open", os.path.basename(path), bool(flags & os.O_TRUNC)))
        return real_open(path, flags, mode)

    def written(descriptor: int, data: bytes) -> int:
        calls.append(("write", len(data)))
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(("fsync",)))
    turns = iter([True] * 302 + [False])
    fsync_bench._loop(str(tmp_path), 1000, lambda: next(turns))
    assert calls[:6] == [
        *[("open", "tf_0.dat", True), ("write", 4001), ("fsync",)],
        *[("open", "tf_1.dat", True), ("write", 4001), ("fsync",)],
    ]
    assert [call[1] for call in calls if call[0] == "open"][298:] == [
        "tf_298.dat",
        "tf_299.dat",
        "tf_0.dat",
        "tf_1.dat",
    ]
    assert (tmp_path / "tf_7.dat").read_bytes() == b"A" * 4000 + b"\n"


def test_percentiles_are_nearest_rank() -> None:
    result = fsync_bench.summary([n / 1000 for n in range(100, 0, -1)], 2.0)
    assert result == {
        "fsyncs_per_second": 50.0,
        "p50_ms": 50.0,
        "p90_ms": 90.0,
        "p99_ms": 99.0,
        "p99_9_ms": 100.0,
        "max_ms": 100.0,
        "samples": 100,
        "duration_seconds": 2.0,
    }
    assert fsync_bench.summary([0.5], 0.5)["p50_ms"] == 500.0


def test_slow_names_path_seen_wanted_and_variable(tmp_path: Path) -> None:
    result = fsync_bench.bench(
        str(tmp_path), 0.1, min_fsyncs_per_second=10**9, threshold_name="fsync_gate_min_fsyncs"
    )
    assert result["verdict"] == "fail" and result["reason"] == "slow"
    for part in (str(tmp_path), "1,000,000,000", "fsync_gate_min_fsyncs"):
        assert part in result["message"]
    assert result["fsyncs_per_second"] > 0


def test_missing_path(tmp_path: Path) -> None:
    result = fsync_bench.bench(str(tmp_path / "none" / "here"), 0.1)
    assert (result["verdict"], result["reason"]) == ("fail", "missing")
    assert str(tmp_path / "none/here") in result["message"]


def test_missing_path_with_its_nearest_parent(tmp_path: Path) -> None:
    result = fsync_bench.bench(str(tmp_path / "none" / "here"), 0.1, nearest_parent=True)
    assert result["verdict"] == "pass"
    assert not (tmp_path / "none").exists() and list(tmp_path.iterdir()) == []


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert fsync_bench.bench(str(tmp_path / "file"), 0.1)["reason"] == "not_a_directory"


@needs_root
@pytest.mark.root
def test_read_only_full_and_in_memory(mount: Any) -> None:
    read_only = mount("size=16m,ro")
    result = fsync_bench.bench(str(read_only), 0.1)
    assert result["reason"] == "read_only" and str(read_only) in result["message"]

    full = mount("size=12m")
    (full / "filler").write_bytes(b"x" * (8 << 20))
    result = fsync_bench.bench(str(full), 0.1)
    assert result["reason"] == "full" and "4 MiB" in result["message"] and "10 MiB" in result["message"]
    assert [path.name for path in full.iterdir()] == ["filler"]

    few_inodes = mount("size=16m,nr_inodes=100")
    assert fsync_bench.bench(str(few_inodes), 0.1)["reason"] == "full"

    memory = mount("size=16m")
    result = fsync_bench.bench(str(memory), 0.1)
    assert result["verdict"] == "pass" and result["in_memory"] and "in memory" in result["message"]
    result = fsync_bench.bench(str(memory), 0.1, nearest_parent=True)
    assert not result["in_memory"] and not result["measured_path"].startswith(str(memory))


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "full"), (errno.EROFS, "read_only"), (errno.EIO, "io_error"), (errno.EACCES, "denied")],
)
def test_errors_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    result = fsync_bench.bench(str(tmp_path), 0.2)
    assert (result["verdict"], result["reason"]) == ("fail", reason)
    assert os.strerror(number) in result["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_hangs_does_not_hang_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: time.sleep(60))
    began = time.monotonic()
    result = fsync_bench.bench(str(tmp_path), 0.1, stall_s=0.5)
    assert time.monotonic() - began < 20
    assert result["reason"] == "stalled" and result["fsyncs_per_second"] is None
    monkeypatch.undo()
    _wait_until(lambda: fsync_bench.remove_stale(str(tmp_path)) or list(tmp_path.iterdir()) == [])
    assert list(tmp_path.iterdir()) == []


def _wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def _start(path: Path) -> subprocess.Popen[bytes]:
    # The test itself may have been started with a signal ignored, as under nohup.
    code = (
        "import signal\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)\n"
        f"import sys; sys.path.insert(0, {str(ROOT / 'module_utils')!r})\n"
        "from pveguard import fsync_bench\n"
        f"fsync_bench.bench({str(path)!r}, 60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    _wait_until(lambda: list(path.glob(f"{fsync_bench.PREFIX}*/tf_1.dat")))
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_ended_by_a_signal_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = _start(tmp_path)
    process.send_signal(number)
    assert process.wait(30) == -number
    _wait_until(lambda: list(tmp_path.iterdir()) == [])


def test_killed_altogether_the_next_one_cleans_up(tmp_path: Path) -> None:
    process = _start(tmp_path)
    running = fsync_bench.remove_stale(str(tmp_path))
    assert running == [], "a running measurement is not stale"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    _wait_until(lambda: fsync_bench.bench(str(tmp_path), 0.05) and list(tmp_path.iterdir()) == [])


def test_stale_directories_only(tmp_path: Path) -> None:
    stale = tmp_path / f"{fsync_bench.PREFIX}abc"
    stale.mkdir()
    (stale / "tf_3.dat").write_text("x")
    foreign = tmp_path / f"{fsync_bench.PREFIX}def"
    foreign.mkdir()
    (foreign / "precious").write_text("x")
    (tmp_path / f"{fsync_bench.PREFIX}link").symlink_to(foreign)
    fsync_bench.bench(str(tmp_path), 0.05)
    assert not stale.exists()
    assert (foreign / "precious").exists() and (tmp_path / f"{fsync_bench.PREFIX}link").is_symlink()


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
def test_module(run_module: Any, tmp_path: Path, check: bool) -> None:
    result = run_module("fsync_bench", path=str(tmp_path), duration=0.1, _ansible_check_mode=check)
    assert not result["changed"] and result["verdict"] == "pass" and result["samples"] > 0
    slow = {
        "path": str(tmp_path),
        "duration": 0.1,
        "min_fsyncs_per_second": 1e9,
        "_ansible_check_mode": check,
    }
    refused = run_module("fsync_bench", **slow)
    assert refused["failed"] and refused["verdict"] == "fail" and "1,000,000,000" in refused["msg"]
    warned = run_module("fsync_bench", enforce=False, **slow)
    assert not warned.get("failed") and warned["verdict"] == "fail" and warned["warnings"]
    assert list(tmp_path.iterdir()) == []


def test_module_refuses_a_duration_without_sense(run_module: Any, tmp_path: Path) -> None:
    assert "duration" in run_module("fsync_bench", path=str(tmp_path), duration=0)["msg"]
