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
from ansible.module_utils.pveguard.gates import fsync_bench

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


@pytest.mark.usefixtures("unsuspected")
def test_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = fsync_bench.bench(str(tmp_path), 0.3)
    assert result["verdict"] == "pass" and result["reason"] == "ok"
    assert result["samples"] > 0 and result["fsyncs_per_second"] > 0
    assert result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"] <= result["p99_9_ms"] <= result["max_ms"]
    assert result["duration_seconds"] > 0
    assert result["filesystem"] and result["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_loop_is_pveperfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 files in turn, each opened with truncate, synced, and only then written to: Perl's buffer goes out at the close."""
    calls: list[tuple[Any, ...]] = []
    real_open, real_write, real_close = os.open, os.write, os.close

    def opened(path: str, flags: int, mode: int = 0o777) -> int:
        wanted = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        calls.append(("open", os.path.basename(path), flags & wanted == wanted))
        return real_open(path, flags, mode)

    def written(descriptor: int, data: bytes) -> int:
        calls.append(("write", len(data)))
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(os, "close", lambda descriptor: (calls.append(("close",)), real_close(descriptor)))
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(("fsync", os.fstat(descriptor).st_size)))
    turns = iter([True] * 301 + [False])
    fsync_bench.Pveperf(str(tmp_path)).round(1 << 62, lambda: next(turns))
    assert calls[:8] == [
        *[("open", "tf_0.dat", True), ("fsync", 0), ("write", 4001), ("close",)],
        *[("open", "tf_1.dat", True), ("fsync", 0), ("write", 4001), ("close",)],
    ]
    again = calls[calls.index(("open", "tf_299.dat", True)) + 4 :][:4]
    assert again == [("open", "tf_0.dat", True), ("fsync", 0), ("write", 4001), ("close",)]
    assert [call[1] for call in calls if call[0] == "open"][298:] == [
        "tf_298.dat",
        "tf_299.dat",
        "tf_0.dat",
        "tf_1.dat",
    ]
    assert (tmp_path / "tf_7.dat").read_bytes() == b"A" * 4000 + b"\n"


def test_the_append_is_etcds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2300 bytes one after the other, each followed by fdatasync; a bounded file, started anew when full."""
    sizes: list[int] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda descriptor: sizes.append(os.lseek(descriptor, 0, os.SEEK_CUR))
    )
    loop = fsync_bench.Fdatasync(str(tmp_path))
    turns = iter([True] * loop.turns + [False])
    loop.round(1 << 62, lambda: next(turns))
    loop.close()
    assert sizes[:3] == [2300, 4600, 6900]
    assert sizes[-2:] == [2300 * loop.turns, 2300]
    assert (tmp_path / "append.dat").stat().st_size <= fsync_bench.APPEND_BYTES


def test_commits_are_the_daemons(tmp_path: Path) -> None:
    """One frame of one page each, a checkpoint every 1000 pages, and the version counts the transactions."""
    loop = fsync_bench.Commit(str(tmp_path))
    turns = iter([True] * 2999 + [False])
    latencies, _ = loop.round(1 << 62, lambda: next(turns))
    assert len(latencies) == 3000
    assert (tmp_path / "commit.db-wal").stat().st_size < 1100 * 4120
    version = loop.database.execute("SELECT version FROM tree WHERE name='__version__'").fetchone()[0]
    assert version == 3002
    assert loop.database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert loop.database.execute("PRAGMA synchronous").fetchone() == (1,)
    assert loop.close()["checkpoints"] == 3


def test_each_method_gets_its_share_and_stays_small(tmp_path: Path) -> None:
    began = time.monotonic()
    result = fsync_bench.bench(str(tmp_path), 0.6, methods=fsync_bench.METHODS)
    assert list(result["methods"]) == ["pveperf", "fdatasync", "commit"]
    assert time.monotonic() - began >= 0.5
    for figures in result["methods"].values():
        assert figures["samples"] == sum(count for _, count in figures["histogram"]) > 0
        assert 1 <= len(figures["rounds_per_second"]) <= fsync_bench.ROUNDS
        assert figures["max_ms"] <= figures["histogram"][-1][0] * 1.01
    assert result["fsyncs_per_second"] == result["methods"]["pveperf"]["operations_per_second"]
    assert result["method"] == "pveperf"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_needs_less_than_ten_mebibytes(tmp_path: Path) -> None:
    fsync_bench.measure(str(tmp_path), fsync_bench.METHODS, 2.0)
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert used < fsync_bench.NEEDED_BYTES


def test_a_slow_round_takes_the_time_of_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: time.sleep(0.3))
    result = fsync_bench.measure(str(tmp_path), ["pveperf", "fdatasync"], 0.4)
    assert result["pveperf"]["samples"] <= 2
    assert result["fdatasync"]["samples"] >= 1


def test_without_pveperf_the_first_method_stands_at_the_top(tmp_path: Path) -> None:
    result = fsync_bench.bench(str(tmp_path), 0.1, methods=["commit"], min_fsyncs_per_second=1e9)
    assert result["method"] == "commit" and "commits per second" in result["message"]
    assert result["verdict"] == "pass", "the threshold is pveperf's"


def test_percentiles_are_nearest_rank() -> None:
    ms = 1_000_000
    result = fsync_bench.summary([([n * ms for n in range(100, 0, -1)], 2_000 * ms)])
    histogram = result.pop("histogram")
    assert result == {
        "operations_per_second": 50.0,
        "operations_per_second_interval": None,
        "rounds_per_second": [50.0],
        "p50_ms": 50.0,
        "p90_ms": 90.0,
        "p99_ms": 99.0,
        "p99_9_ms": 100.0,
        "max_ms": 100.0,
        "p99_ms_interval": None,
        "samples": 100,
        "duration_seconds": 2.0,
    }
    assert sum(count for _, count in histogram) == 100
    limits = [limit for limit, _ in histogram]
    assert limits == sorted(limits) and limits[-1] >= 100
    assert all(
        high / low == pytest.approx(2**0.5, rel=0.02)
        for low, high in zip(limits[4:], limits[5:], strict=False)
    )
    assert fsync_bench.summary([([500 * ms], 500 * ms)])["p50_ms"] == 500.0


def test_intervals() -> None:
    second = 1_000_000_000
    rounds = [([1] * count, second) for count in (90, 100, 110, 100, 95, 105)]
    result = fsync_bench.summary(rounds)
    # mean 100, standard deviation 7.071, t(5) 2.571: half 7.42
    assert result["operations_per_second_interval"] == [
        pytest.approx(92.58, abs=0.01),
        pytest.approx(107.42, abs=0.01),
    ]
    low, high = fsync_bench.summary([(list(range(0, 10_000_000, 1000)), second)])["p99_ms_interval"]
    # 10,000 samples: ranks 9900 -/+ 1.96 * sqrt(99)
    assert (low, high) == (pytest.approx(9.879, abs=0.002), pytest.approx(9.920, abs=0.002))
    # With 499 samples the upper rank would be past the last one.
    assert fsync_bench.summary([([5] * 300, second)])["p99_ms_interval"] is None


def figures(**more: Any) -> dict[str, Any]:
    """A result as bench has it before it is judged."""
    method = {"operations_per_second": 500.0, "p50_ms": 1.0, "p99_ms": 4.0}
    return {
        "method": "pveperf",
        "methods": {"pveperf": method, "fdatasync": dict(method)},
        "fsyncs_per_second": 500.0,
        "fsyncs_per_second_interval": [450.0, 550.0],
        "p99_ms": 4.0,
        "measured_path": "/var/lib",
        "device": "sda3",
        "filesystem": "ext4",
        "in_memory": False,
        "suspect": [],
        **more,
    }


def test_verdicts() -> None:
    limits: dict[str, Any] = {
        "min_fsyncs_per_second": 200,
        "warn_p99_ms": 10,
        "threshold_name": "fsync_gate_min_fsyncs",
        "p99_threshold_name": "fsync_gate_warn_p99_ms",
    }
    good = figures()
    fsync_bench.judge(good, **limits)
    assert (good["verdict"], good["reason"]) == ("pass", "ok")
    assert "500 fsyncs per second (95 % interval 450 to 550), p99 4 ms, on /var/lib" in good["message"]

    late = figures()
    late["methods"]["fdatasync"]["p99_ms"] = 10.0
    fsync_bench.judge(late, **limits)
    assert (late["verdict"], late["reason"]) == ("warn", "latency")
    assert "10 ms" in late["message"] and "fsync_gate_warn_p99_ms" in late["message"]

    commits = figures()
    commits["methods"]["commit"] = {"operations_per_second": 30000.0, "p50_ms": 0.01, "p99_ms": 12.0}
    fsync_bench.judge(commits, **limits)
    assert (commits["verdict"], commits["reason"]) == ("warn", "latency") and "p99 of commit is 12 ms" in commits["message"]

    truncated = figures()
    truncated["methods"]["pveperf"]["p99_ms"] = truncated["p99_ms"] = 900.0
    fsync_bench.judge(truncated, **limits)
    assert truncated["verdict"] == "pass", "what waits for no data decides no warning"

    late["suspect"] = [
        {"rule": "rotation", "evidence": "900 pveperf a second on sda, which turns 120 times a second"}
    ]
    fsync_bench.judge(late, **limits)
    assert (
        late["verdict"] == "warn" and "turns 120 times" in late["message"] and "power cut" in late["message"]
    )

    slow = {**late, "fsyncs_per_second": 199.0}
    fsync_bench.judge(slow, **limits)
    assert (slow["verdict"], slow["reason"]) == ("fail", "slow"), "a refusal goes before a warning"


def test_a_disk_that_lies_and_is_slow_is_refused_for_its_lies() -> None:
    """A faster one would be replaced for nothing."""
    proof = {"verdict": "convicted", "drive_identity": "eui.1", "time": "2026-11-01T00:00:00Z", "evidence": "20 lost"}
    result = figures(drive_identity="eui.1")
    fsync_bench.judge(result, min_fsyncs_per_second=1e9, power_cut=proof)
    assert (result["verdict"], result["reason"]) == ("fail", "lying") and "as a power cut proved" in result["message"]


def test_an_acquittal_does_not_outlive_the_protection() -> None:
    """The power cut was survived with it."""
    suspect = [{"rule": "latency", "evidence": "median fdatasync of 0.02 ms"}]
    proof = {"verdict": "acquitted", "drive_identity": "eui.1", "time": "2026-11-01T00:00:00Z"}
    for failed, verdict in ((False, "pass"), (True, "warn")):
        disk = {"name": "nvme0n1", "power_loss_failed": failed, "health": []}
        result = figures(suspect=suspect, drive_identity="eui.1", block_device={"disks": [disk]})
        fsync_bench.judge(result, power_cut=proof)
        assert result["verdict"] == verdict and ("0.02 ms" in result["message"]) == failed


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


@pytest.mark.usefixtures("unsuspected")
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
    monkeypatch.setattr(os, "fsync", lambda descriptor: time.sleep(600))
    began = time.monotonic()
    result = fsync_bench.bench(str(tmp_path), 0.1, stall_s=0.5)
    assert time.monotonic() - began < 300
    assert result["reason"] == "stalled" and result["fsyncs_per_second"] is None
    monkeypatch.undo()
    _wait_until(lambda: fsync_bench.remove_stale(str(tmp_path)) or list(tmp_path.iterdir()) == [])
    assert list(tmp_path.iterdir()) == []


def _wait_until(condition: Any, seconds: float = 60) -> None:
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
        "from pveguard.gates import fsync_bench\n"
        f"fsync_bench.bench({str(path)!r}, 60, methods=fsync_bench.METHODS)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    _wait_until(lambda: list(path.glob(f"{fsync_bench.PREFIX}*/tf_1.dat")))
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_ended_by_a_signal_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = _start(tmp_path)
    process.send_signal(number)
    assert process.wait(120) == -number
    _wait_until(lambda: list(tmp_path.iterdir()) == [])


def test_killed_altogether_the_next_one_cleans_up(tmp_path: Path) -> None:
    process = _start(tmp_path)
    running = fsync_bench.remove_stale(str(tmp_path))
    assert running == [], "a running measurement is not stale"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(120)
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


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Any]:
    """Mounts an ext4 of so many MiB on a loop device: its path, and a function that remounts it read-only."""
    mounted = []

    def make(mebibytes: int) -> Path:
        image, point = tmp_path / f"image{len(mounted)}", tmp_path / f"disk{len(mounted)}"
        point.mkdir()
        with image.open("wb") as stream:
            stream.truncate(mebibytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        mounted.append(point)
        return point

    yield make
    for point in mounted:
        subprocess.run(["umount", point], check=True)


@pytest.mark.usefixtures("unsuspected")
@needs_root
@pytest.mark.root
def test_a_real_disk_that_is_full_or_read_only(ext4: Any, run_module: Any) -> None:
    disk = ext4(24)
    good = run_module("fsync_bench", path=str(disk), duration=0.3, methods=list(fsync_bench.METHODS))
    assert good["verdict"] == "pass" and good["filesystem"] == "ext4" and good["device"].startswith("loop")
    assert [layer["kind"] for layer in good["block_device"]["layers"]][:1] == ["loop"]

    with (disk / "filler").open("wb") as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * (1 << 20))
            stream.flush()
    full = run_module("fsync_bench", path=str(disk), duration=0.1)
    assert full["failed"] and full["reason"] == "full" and "10 MiB" in full["msg"]
    (disk / "filler").unlink()

    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    read_only = run_module("fsync_bench", path=str(disk), duration=0.1)
    assert read_only["failed"] and read_only["reason"] == "read_only" and str(disk) in read_only["msg"]
    assert sorted(path.name for path in disk.iterdir()) == ["lost+found"]

    missing = run_module("fsync_bench", path=str(disk / "none"), duration=0.1)
    assert missing["failed"] and missing["reason"] == "missing" and str(disk / "none") in missing["msg"]


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("method", fsync_bench.METHODS)
def test_a_disk_that_fills_while_it_is_measured(
    mount: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    small = mount("size=40k" if method == "commit" else "size=100k")
    monkeypatch.setattr(fsync_bench, "NEEDED_BYTES", 0)
    result = fsync_bench.bench(str(small), 10, methods=[method])  # it ends when it is full
    assert (result["verdict"], result["reason"]) == ("fail", "full"), result["message"]
    assert list(small.iterdir()) == []


@pytest.mark.usefixtures("unsuspected")
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
