# SPDX-License-Identifier: Apache-2.0
"""The comparison of the gate's figures runs and says what it has to; how the figures come out is not asserted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.loading import load_file

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench/fsync_gate.py"
RATIOS = ("ratio_pveperf", "ratio_fio_p99", "ratio_fio_rate")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_file("bench/fsync_gate.py")


def test_percentile_over_bins_and_samples(bench: ModuleType) -> None:
    side = bench.Side()
    side.add(99, 1.0, [(1.0, 99)])
    side.add(1, 1.0, [(50.0, 1)])
    assert (side.rate, side.p99_ms) == (50.0, 1.0)
    side.add(1, 0.5, [(60.0, 1)])
    assert side.p99_ms == 50.0


def test_the_loop_in_c_is_pveperfs(bench: ModuleType, tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("needs cc")
    program = bench.compiled(tmp_path)
    (tmp_path / "files").mkdir()
    side = bench.Side()
    with bench.Worker([program, tmp_path / "files"], None) as worker:
        bench.c_turn(side, worker, 0.2)
        bench.c_turn(side, worker, 0.1)
    files = sorted((tmp_path / "files").iterdir())
    assert len(files) == min(side.count, 300)
    assert all(path.read_bytes() == b"A" * 4000 + b"\n" for path in files)


@pytest.mark.slow
@pytest.mark.root
def test_it_runs(tmp_path: Path) -> None:
    missing = [program for program in ("fio", "cc") if not shutil.which(program)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (scripts/bootstrap bench)")
    argv = [
        sys.executable,
        str(BENCH),
        "--json",
        "--rounds",
        "1",
        "--seconds",
        "0.6",
        "--path",
        str(tmp_path),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode == 2 and ("cgroup" in done.stderr or "in memory" in done.stderr):
        pytest.skip(done.stderr.strip())
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    assert bool(result["missed"]) == (done.returncode == 1)
    for place in ("disk", "throttled"):
        assert all(result["places"][place][key] > 0 for key in RATIOS)
    assert all(key in result for key in RATIOS)
    assert (
        "write_iops" in result["places"]["throttled"]["how"]
        or "io.max" in result["places"]["throttled"]["how"]
    )
    assert not list(tmp_path.iterdir())
