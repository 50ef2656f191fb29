#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The gate's figures beside pveperf's loop in Perl and beside fio, interleaved in one run on one path.

    python bench/fsync_gate.py [--json] [--path DIRECTORY] [--rounds N] [--seconds S] [--iops N]

ours is module_utils/pveguard/gates/fsync_bench.py, methods pveperf and fdatasync; the loop in Perl is in this file and makes
the calls of the real program, which prints into Perl's buffer, syncs, and closes; the last is etcd's check. A round of
each pair is a row of short turns of a fraction of a second, ours and theirs by turns (and the other way round every
other time), so that what else the machine does falls on both; rates and percentiles are those of all turns of the round
together, and the median of the rounds counts. pveperf's 300 files are there before it is measured. Three places:

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

from pveguard.disk import block_device  # type: ignore[import-not-found]  # noqa: E402

#: Ratios of ours by theirs.
AIMS = {"ratio_pveperf": (0.95, 1.05), "ratio_fio_p99": (0.8, 1.25), "ratio_fio_rate": (0.9, 1.1)}
MEMORY = Path("/dev/shm")
#: Turns of either side in a round. fio has to be started for each of its turns.
TURNS = {"pveperf": 24, "fdatasync": 8}
#: That pveperf rotates over.
FILES = 300
#: Write operations a second of the throttled disk: some 100 fsyncs a second, a slow SATA disk.
IOPS = 300

#: pveperf's loop in DIRECTORY: reads seconds, a line a turn; prints the number of fsyncs and the seconds of each. What is
#: printed to a file stays in Perl's buffer, so sync() is of a truncated file and close() writes.
PVEPERF = r"""
use strict;
use warnings;
use IO::Handle;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

my ($directory) = @ARGV;
my $data = ("A" x 4000) . "\n";
my $turn = 0;
STDOUT->autoflush(1);
while (my $seconds = <STDIN>) {
    my $begin = clock_gettime(CLOCK_MONOTONIC);
    my ($end, $at, $count) = ($begin + $seconds, $begin, 0);
    while ($at < $end) {
        my $name = "$directory/tf_" . ($turn++ % 300) . ".dat";
        open(my $file, ">", $name) or die "$name: $!\n";
        print {$file} $data or die "$name: $!\n";
        $file->sync or die "$name: $!\n";
        close($file) or die "$name: $!\n";
        $count++;
        $at = clock_gettime(CLOCK_MONOTONIC);
    }
    printf("%d %f\n", $count, $at - $begin);
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


def perl_loop(directory: Path) -> list[Any]:
    """The command of pveperf's loop in ``directory``."""
    return [require("perl", "perl"), "-e", PVEPERF, directory]


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


class Worker:
    """A process that runs for so many seconds whenever it is told to, and answers with a line."""

    def __init__(self, argv: list[Any], enter: Enter) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,  # noqa: PLW1509 - there are no threads
        )

    def turn(self, seconds: float) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{seconds:g}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise CannotMeasure(f"{self.process.args} ended with {self.process.wait()}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def perl_turn(side: Side, worker: Worker, seconds: float) -> None:
    count, elapsed = worker.turn(seconds).split()
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


#: The loops of the product. A file that is appended to is always new, since fio preallocates only new ones.
OURS = """
import gc, json, os, sys, time
sys.path.insert(0, sys.argv[1])
from pveguard.gates import fsync_bench
method, directory = sys.argv[2:]
kept = fsync_bench.Pveperf(directory) if method == "pveperf" else None
gc.disable()
for line in sys.stdin:
    loop = kept or fsync_bench.Fdatasync(directory)
    latencies, elapsed = loop.round(time.perf_counter_ns() + int(float(line) * 1e9), lambda: True)
    if not kept:
        loop.close()
        os.unlink(f"{directory}/append.dat")
    print(json.dumps([latencies, elapsed]), flush=True)
"""


def our_turn(side: Side, worker: Worker, seconds: float) -> None:
    latencies, elapsed = json.loads(worker.turn(seconds))
    side.add(len(latencies), elapsed / 1e9, [(latency / 1e6, 1) for latency in latencies])


def pair(method: str, directory: Path, seconds: float, enter: Enter) -> tuple[Side, Side]:
    """One round: ours and theirs."""
    mine, other = Side(), Side()
    turns = TURNS[method]
    with ExitStack() as stack:
        here, there = (Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory))) for _ in "ab")
        argv = [sys.executable, "-I", "-c", OURS, ROOT / "module_utils", method, here]
        worker = stack.enter_context(Worker(argv, enter))
        loop = stack.enter_context(Worker(perl_loop(there), enter)) if method == "pveperf" else None
        if loop:
            # The first time round every file is new, and what the file system reads and allocates for it falls on one side.
            for turn_of, process in ((our_turn, worker), (perl_turn, loop)):
                warm = Side()
                while warm.count < FILES:
                    turn_of(warm, process, 0.5)
        for turn in range(turns):
            for side in (mine, other) if turn % 2 else (other, mine):
                if side is mine:
                    our_turn(side, worker, seconds / turns)
                elif loop:
                    perl_turn(side, loop, seconds / turns)
                else:
                    with tempfile.TemporaryDirectory(dir=there) as folder:
                        fio_turn(side, Path(folder), seconds / turns, enter)
    return mine, other


def place(directory: Path, rounds: int, seconds: float, enter: Enter = None) -> dict[str, Any]:
    """Ratios and figures on one path."""
    ratios: dict[str, list[float]] = {key: [] for key in AIMS}
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        mine, other = pair("pveperf", directory, seconds, enter)
        append, fio = pair("fdatasync", directory, seconds, enter)
        ratios["ratio_pveperf"].append(mine.rate / other.rate)
        ratios["ratio_fio_rate"].append(append.rate / fio.rate)
        ratios["ratio_fio_p99"].append(append.p99_ms / fio.p99_ms)
        for key, value in (
            ("ours_pveperf_per_second", mine.rate),
            ("perl_pveperf_per_second", other.rate),
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
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side in a round, twice that when throttled")
    parser.add_argument("--iops", type=int, default=IOPS, help="of the throttled disk")
    options = parser.parse_args()
    result: dict[str, Any] = {"path": str(options.path), "aims": AIMS, "places": {}, "missed": []}
    try:
        require("fio", "fio")
        require("perl", "perl")
        where = block_device.describe(str(options.path), skip_memory=False)
        if where["class"] == "ram":
            raise CannotMeasure(f"{options.path} is in memory: --path names a directory on a disk")
        result["device"] = {
            key: where[key] for key in ("device", "filesystem", "class", "transport", "write_cache")
        }
        with tempfile.TemporaryDirectory(dir=options.path) as folder:
            directory = Path(folder)
            result["places"]["disk"] = place(directory, options.rounds, options.seconds)
            with throttle(directory, options.iops) as (enter, how):
                # Its turns are longer: with a few dozen operations in each, their beginnings would weigh too much.
                slow = place(directory, options.rounds, 2 * options.seconds, enter)
                result["places"]["throttled"] = {"how": how, **slow}
            if MEMORY.is_dir():
                with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
                    result["places"]["tmpfs"] = place(Path(memory), options.rounds, 1.0)
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
