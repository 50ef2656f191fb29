#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The gate's figures beside a plain pveperf loop in C and beside fio, interleaved in one run on one path.

    python bench/fsync_gate.py [--json] [--path DIRECTORY] [--rounds N] [--seconds S] [--iops N]

ours is module_utils/pveguard/fsync_bench.py, methods pveperf and fdatasync; the loop in C is in this file and compiled
with cc; the last is etcd's check. A round of each pair is a row of short turns, ours and theirs by turns (and the other
way round in the next one), so that what else the machine does falls on both; rates and percentiles are those of all turns
of the round together, and the median of the rounds counts. Three places:

disk        the directory (default: the temporary directory, which must not be in memory)
throttled   the same with at most --iops write operations a second, by a cgroup of its own: blkio.throttle (version 1) or
            io.max (version 2). Needs root
tmpfs       /dev/shm, shown without an aim: nothing is made durable there, so what is compared is the interpreter's cost

Exits 1 when an aim is missed on the disk or the throttled disk, 2 when something is missing to measure with.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "module_utils"))

from pveguard import block_device  # type: ignore[import-not-found]  # noqa: E402

#: Ratios of ours by theirs.
AIMS = {"ratio_pveperf": (0.95, 1.05), "ratio_fio_p99": (0.8, 1.25), "ratio_fio_rate": (0.9, 1.1)}
MEMORY = Path("/dev/shm")
#: Turns of either side in a round.
TURNS = 6
#: Write operations a second of the throttled disk: some 100 fsyncs a second, a slow SATA disk.
IOPS = 300

PVEPERF = r"""
/* pveperf's loop: DIRECTORY SECONDS; prints the number of fsyncs and the seconds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static char block[4001], name[4096];
    if (argc != 3)
        return 2;
    memset(block, 'A', 4000);
    block[4000] = '\n';
    double begin = now(), end = begin + atof(argv[2]), at = begin;
    long count = 0;
    while (at < end) {
        snprintf(name, sizeof name, "%s/tf_%ld.dat", argv[1], count % 300);
        int file = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (file < 0 || write(file, block, sizeof block) != sizeof block || fsync(file) || close(file)) {
            perror(name);
            return 1;
        }
        count++;
        at = now();
    }
    printf("%ld %f\n", count, at - begin);
    return 0;
}
"""


#: Called in a child before it runs, to enter a cgroup.
Enter = Callable[[], object] | None


class CannotMeasure(Exception):
    """Something is missing; the message says what helps."""


def require(program: str, package: str) -> str:
    found = shutil.which(program)
    if not found:
        raise CannotMeasure(
            f"{program} is not installed: scripts/bootstrap bench, or apt-get install {package}"
        )
    return found


def compiled(folder: Path) -> Path:
    """The loop in C as a program in ``folder``."""
    source, program = folder / "pveperf.c", folder / "pveperf"
    source.write_text(PVEPERF)
    done = subprocess.run(
        [require("cc", "gcc libc6-dev"), "-O2", "-o", program, source], capture_output=True, text=True
    )
    if done.returncode:
        raise CannotMeasure(f"cc: {done.stderr.strip()}")
    return program


def run(argv: list[Any], enter: Enter) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, preexec_fn=enter)
    if done.returncode:
        raise CannotMeasure(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


class Side:
    """What all turns of one side in a round came to: operations, seconds, latencies as (ms, count)."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        self.latencies: list[tuple[float, int]] = []

    def add(self, count: int, seconds: float, latencies: Iterable[tuple[float, int]] = ()) -> None:
        self.count += count
        self.seconds += seconds
        self.latencies += latencies

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    @property
    def p99_ms(self) -> float:
        left = math.ceil(0.99 * sum(count for _, count in self.latencies))
        for value, count in sorted(self.latencies):
            left -= count
            if left <= 0:
                return value
        raise CannotMeasure("no latencies")


def c_turn(side: Side, program: Path, directory: Path, seconds: float, enter: Enter) -> None:
    count, elapsed = run([program, directory, f"{seconds:g}"], enter).split()
    side.add(int(count), float(elapsed))


def fio_turn(side: Side, directory: Path, seconds: float, enter: Enter) -> None:
    """etcd's check, ended after ``seconds``; the bins of json+ are at most 1.6 % wide."""
    argv = [
        require("fio", "fio"),
        "--name=check",
        f"--directory={directory}",
        "--rw=write",
        "--ioengine=sync",
    ]
    argv += ["--fdatasync=1", "--size=22m", "--bs=2300", f"--runtime={round(seconds * 1000)}ms"]
    text = run([*argv, "--output-format=json+"], enter)
    job = json.loads(text[text.index("{") :])["jobs"][0]
    latencies = [(int(bin_) / 1e6, count) for bin_, count in job["sync"]["lat_ns"]["bins"].items()]
    side.add(job["write"]["total_ios"], max(1, job["write"]["runtime"]) / 1000, latencies)


OURS = """
import gc, json, sys, time
sys.path.insert(0, sys.argv[1])
from pveguard import fsync_bench
loop = {"pveperf": fsync_bench.Pveperf, "fdatasync": fsync_bench.Fdatasync}[sys.argv[2]](sys.argv[3])
gc.disable()
latencies, elapsed = loop.round(time.perf_counter_ns() + int(float(sys.argv[4]) * 1e9), lambda: True)
print(json.dumps([latencies, elapsed]))
"""


def our_turn(side: Side, method: str, directory: Path, seconds: float, enter: Enter) -> None:
    """The loop of the product, in a process of its own."""
    argv = [sys.executable, "-I", "-c", OURS, ROOT / "module_utils", method, directory, f"{seconds:g}"]
    latencies, elapsed = json.loads(run(argv, enter))
    side.add(len(latencies), elapsed / 1e9, [(latency / 1e6, 1) for latency in latencies])


def pair(
    method: str, directory: Path, program: Path, seconds: float, enter: Enter, first: bool
) -> tuple[Side, Side]:
    """One round: ours and theirs. pveperf's files are kept from turn to turn, as in one long loop; a file that is
    appended to is always new, since fio preallocates only new ones."""
    mine, other = Side(), Side()
    with ExitStack() as stack:
        kept = [Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory))) for _ in range(2)]
        for turn in range(TURNS):
            sides = [mine, other] if first == (turn % 2 == 0) else [other, mine]
            for side in sides:
                if method == "pveperf":
                    folder = kept[side is mine]
                else:
                    folder = Path(tempfile.mkdtemp(dir=kept[0]))
                if side is mine:
                    our_turn(side, method, folder, seconds / TURNS, enter)
                elif method == "pveperf":
                    c_turn(side, program, folder, seconds / TURNS, enter)
                else:
                    fio_turn(side, folder, seconds / TURNS, enter)
                if method != "pveperf":
                    shutil.rmtree(folder)
    return mine, other


def place(directory: Path, program: Path, rounds: int, seconds: float, enter: Enter = None) -> dict[str, Any]:
    """Ratios and figures on one path."""
    ratios: dict[str, list[float]] = {key: [] for key in AIMS}
    figures: dict[str, list[float]] = {}
    for number in range(rounds):
        mine, other = pair("pveperf", directory, program, seconds, enter, number % 2 == 0)
        append, fio = pair("fdatasync", directory, program, seconds, enter, number % 2 == 0)
        ratios["ratio_pveperf"].append(mine.rate / other.rate)
        ratios["ratio_fio_rate"].append(append.rate / fio.rate)
        ratios["ratio_fio_p99"].append(append.p99_ms / fio.p99_ms)
        for key, value in (
            ("ours_pveperf_per_second", mine.rate),
            ("c_pveperf_per_second", other.rate),
            ("ours_fdatasync_per_second", append.rate),
            ("fio_per_second", fio.rate),
            ("ours_fdatasync_p99_ms", append.p99_ms),
            ("fio_p99_ms", fio.p99_ms),
        ):
            figures.setdefault(key, []).append(value)
    found: dict[str, Any] = {key: round(statistics.median(values), 3) for key, values in ratios.items()}
    found.update({key: float(f"{statistics.median(values):.4g}") for key, values in figures.items()})
    found["rounds"] = {key: [round(value, 3) for value in values] for key, values in ratios.items()}
    return found


@contextmanager
def throttle(directory: Path, iops: int) -> Iterator[tuple[Enter, str]]:
    """A cgroup that may write so often a second to the disk under ``directory``: what a child calls to enter it, and by
    which controller."""
    if os.geteuid() != 0:
        raise CannotMeasure("a throttled disk needs root")
    where = block_device.describe(str(directory))
    if len(where["disks"]) != 1:
        raise CannotMeasure(f"{directory}: the disk behind {where['filesystem']} is not known")
    name = where["disks"][0]["name"]
    number = Path("/sys/class/block", name, "dev").read_text().strip()
    first, second = Path("/sys/fs/cgroup/blkio"), Path("/sys/fs/cgroup")
    group = f"pveguard-bench-{os.getpid()}"
    if (first / "blkio.throttle.write_iops_device").exists():
        folder, limit, value = first / group, "blkio.throttle.write_iops_device", f"{number} {iops}"
    elif "io" in (second / "cgroup.controllers").read_text().split():
        control = second / "cgroup.subtree_control"
        if "io" not in control.read_text().split():
            control.write_text("+io")
        folder, limit, value = second / group, "io.max", f"{number} wiops={iops}"
    else:
        raise CannotMeasure("no cgroup controller for block devices (blkio or io)")
    folder.mkdir()
    try:
        (folder / limit).write_text(value)
        yield (
            lambda: (folder / "cgroup.procs").write_text(str(os.getpid())) and None,
            f"{limit} {iops} on {name}",
        )
    finally:
        folder.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--path", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side in a round")
    parser.add_argument("--iops", type=int, default=IOPS, help="of the throttled disk")
    options = parser.parse_args()
    result: dict[str, Any] = {"path": str(options.path), "aims": AIMS, "places": {}, "missed": []}
    try:
        require("fio", "fio")
        where = block_device.describe(str(options.path), skip_memory=False)
        if where["class"] == "ram":
            raise CannotMeasure(f"{options.path} is in memory: --path names a directory on a disk")
        result["device"] = {
            key: where[key] for key in ("device", "filesystem", "class", "transport", "write_cache")
        }
        with tempfile.TemporaryDirectory(dir=options.path) as folder:
            directory = Path(folder)
            program = compiled(directory)
            arguments = (program, options.rounds, options.seconds)
            result["places"]["disk"] = place(directory, *arguments)
            with throttle(directory, options.iops) as (enter, how):
                result["places"]["throttled"] = {"how": how, **place(directory, *arguments, enter=enter)}
            if MEMORY.is_dir():
                with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
                    result["places"]["tmpfs"] = place(Path(memory), program, options.rounds, 1.0)
    except (CannotMeasure, OSError) as error:
        print(f"fsync_gate: {error}", file=sys.stderr)
        return 2
    for name in ("disk", "throttled"):
        for key, (low, high) in AIMS.items():
            value = result["places"][name][key]
            # At the top, too: what a machine reads first.
            result[key if name == "disk" else f"{name}_{key}"] = value
            if not low <= value <= high:
                result["missed"].append(f"{name}: {key} is {value}, aim {low} to {high}")
    show(result, options.json)
    return 1 if result["missed"] else 0


def show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, figures in result["places"].items():
        print(f"{name}{': ' + figures['how'] if 'how' in figures else ''}")
        for key, value in figures.items():
            if key not in ("rounds", "how"):
                aim = f"  (aim {AIMS[key][0]} to {AIMS[key][1]})" if key in AIMS and name != "tmpfs" else ""
                print(f"  {key:28} {value:10}{aim}")
    for line in result["missed"]:
        print(f"missed: {line}")


if __name__ == "__main__":
    sys.exit(main())
