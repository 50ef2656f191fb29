# SPDX-License-Identifier: Apache-2.0
"""The comparison of the gate's figures runs and says what it has to; how the figures come out is not asserted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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


def test_the_loop_in_perl_is_pveperfs(bench: ModuleType, tmp_path: Path) -> None:
    if not shutil.which("perl"):
        pytest.skip("needs perl")
    (tmp_path / "files").mkdir()
    side = bench.Side()
    with bench.Worker(bench.perl_loop(tmp_path / "files"), None) as worker:
        bench.perl_turn(side, worker, 0.2)
        bench.perl_turn(side, worker, 0.1)
    files = sorted((tmp_path / "files").iterdir())
    assert len(files) == min(side.count, 300)
    assert all(path.read_bytes() == b"A" * 4000 + b"\n" for path in files)


#: Runs the loop of the product for one turn of a few milliseconds, as the worker of the comparison does.
OURS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pveguard.gates import fsync_bench
fsync_bench.Pveperf(sys.argv[2]).round(time.perf_counter_ns() + 50_000_000, lambda: True)
"""


def calls(argv: list[Any], folder: Path, text: str = "") -> list[str]:
    """What a program does with the files ``tf_N.dat``, as the kernel sees it: ``open tf_0.dat WRONLY|CREAT|TRUNC``,
    ``fsync``, ``write 4001``, ``close``."""
    folder.mkdir()
    log = folder.parent / f"{folder.name}.strace"
    done = subprocess.run(
        ["strace", "-f", "-o", log, "-e", "trace=openat,fsync,fdatasync,write,pwrite64,ftruncate,close", *argv],
        input=text,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()[-200:]}")
    found, descriptor = [], None
    for line in log.read_text().splitlines():
        call = line.split(None, 1)[1]
        opened = re.match(r'openat\(\S+ ".*/(tf_\d+\.dat)", ([A-Z_|]+).*= (\d+)$', call)
        if opened:
            flags = {flag.removeprefix("O_") for flag in opened[2].split("|")} - {"CLOEXEC", "NOFOLLOW"}
            descriptor = opened[3]
            found.append(f"open {opened[1]} {'|'.join(sorted(flags))}")
        elif descriptor and (of_file := re.match(rf"(\w+)\({descriptor}[,)](.*)", call)):
            size = re.search(r"= (\d+)$", of_file[2])
            found.append(f"write {size[1]}" if of_file[1] == "write" and size else of_file[1])
            descriptor = None if of_file[1] == "close" else descriptor
    return found


def test_ours_and_perls_make_the_same_calls(bench: ModuleType, tmp_path: Path) -> None:
    """The real program was seen to open with truncate, fsync, write 4001 bytes, close: the data comes after the sync."""
    missing = [program for program in ("strace", "perl") if not shutil.which(program)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    ours = calls([sys.executable, "-I", "-c", OURS, ROOT / "module_utils", tmp_path / "ours"], tmp_path / "ours")
    perl = calls(bench.perl_loop(tmp_path / "perl"), tmp_path / "perl", "0.05\n")
    assert perl[:5] == ["open tf_0.dat CREAT|TRUNC|WRONLY", "fsync", "write 4001", "close", perl[4]]
    both = min(len(ours), len(perl))
    assert both >= 4 and ours[:both] == perl[:both]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.campaign
def test_it_runs(tmp_path: Path) -> None:
    missing = [program for program in ("fio", "perl") if not shutil.which(program)]
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
