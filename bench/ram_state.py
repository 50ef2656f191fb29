#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What RAM state costs and what it can lose, beside a stock node and beside an hourly copy, in one run.

    python bench/ram_state.py [--json] [--quick]

Needs root, FUSE and loop devices; no virtual machine, and nothing of this machine is changed. Each subject is a node in
namespaces of its own with a pmxcfs (the double, or the one named by PMXCFS) and a file system on a loop device of its
own, whose image lies in memory. At most 10 minutes.

stock             the daemon's database on the device, as Proxmox VE ships it
hourly_full_copy  the database on tmpfs, config.db* copied to the device once an hour with cp and a sync, which is how
                  the public tools do it. A window of w seconds counts w/3600 of one copy; copy_device_bytes is one whole
ours              the database on tmpfs, and pve-state watch with its default settings

Bytes are sectors written of /sys/block/loopN/stat after a syncfs of that file system. Memory is Rss of
/proc/PID/smaps_rollup, processor time utime + stime of /proc/PID/stat. Exits 1 when an aim of ours is missed, 2 when
nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ram_subjects import (  # noqa: E402
    BURST_SECONDS,
    BURST_TRIES,
    GUESTS,
    HEARTBEAT_SECONDS,
    HOUR,
    MIB,
    WINDOW,
    Hourly,
    Ours,
    Stock,
    Subject,
    seed,
)

from lab.tests.doubles.harness import IS_DOUBLE, MKFS, why_not  # noqa: E402

KEYS = (
    "idle_10min_device_bytes",
    "heartbeat_10min_device_bytes",
    "change_1k_device_bytes",
    "burst_1m_bs512_device_bytes",
    "worst_loss_seconds",
    "watcher_rss_mib",
    "watcher_cpu_percent",
    "restore_64m_seconds",
)


class Sizes:
    """How much is measured."""

    def __init__(self, quick: bool) -> None:
        self.window = 8.0 if quick else 120.0  # of the idle and of the heartbeat phase, seconds
        self.heartbeat = 1.0 if quick else HEARTBEAT_SECONDS
        self.changes = 3 if quick else 15
        self.big_mib = 8 if quick else 64
        self.rewrites = 4.0 if quick else 60.0
        self.rows = () if quick else (4000, 40000)
        self.single_losses = 3 if quick else 12
        self.busy = 4.0 if quick else 15.0
        self.burst_bytes = MIB // 4 if quick else MIB
        self.burst = 1.0 if quick else 3.9
        self.write_back = not quick  # wait for the kernel's write-back, half a minute
        self.checkpoint = not quick  # wait for a checkpoint of the log, a minute
        self.restores = 1 if quick else 3
        self.filesystems = ("ext4",) if quick else ("ext4", "btrfs", "zfs", "lvm-thin")


class Bench:
    def __init__(self, sizes: Sizes, folder: Path, progress: bool) -> None:
        self.sizes = sizes
        self.folder = folder
        self.progress = progress
        self.started = time.monotonic()
        self.filesystems, self.skipped = usable(sizes.filesystems)
        self.results: dict[str, dict[str, dict[str, Any]]] = {
            fs: {kind.name: {} for kind in (Stock, Hourly, Ours)} for fs in self.filesystems
        }

    def say(self, text: str) -> None:
        if self.progress:
            print(f"{time.monotonic() - self.started:5.0f} s  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def subjects(self, label: str, kinds: tuple[type[Subject], ...], database: Path) -> Iterator[list[Subject]]:
        with ExitStack() as stack:
            made: list[Subject] = []
            for fs in self.filesystems:
                for kind in kinds:
                    subject = kind(self.folder / f"{label}-{fs}-{kind.name}", fs, database)
                    stack.callback(subject.close)
                    made.append(subject)
            yield made

    def result(self, subject: Subject) -> dict[str, Any]:
        return self.results[subject.filesystem][subject.name]

    def run(self) -> None:
        small, big = self.folder / "small.db", self.folder / "big.db"
        seed(small)
        seed(big, big_mib=self.sizes.big_mib)
        with self.subjects("small", (Stock, Hourly, Ours), small) as subjects:
            self.idle(subjects)
            self.heartbeats(subjects)
            self.changes(subjects, "0.3_mib")
            self.losses(subjects)
            self.bursts(subjects)
        with self.subjects("big", (Stock, Hourly, Ours), big) as subjects:
            self.changes(subjects, "64_mib")
            self.restores(subjects)
        for per_kind in self.results.values():
            for name, result in per_kind.items():
                per_kind[name] = {key: result[key] for key in [*KEYS, *(k for k in result if k not in KEYS)]}

    def idle(self, subjects: list[Subject]) -> None:
        self.say(f"idle, {self.sizes.window:g} s")
        before = {subject: subject.settled() for subject in subjects}
        time.sleep(self.sizes.window)
        for subject in subjects:
            counted = (subject.device.written() - before[subject]) * WINDOW / self.sizes.window
            self.result(subject)["idle_10min_device_bytes"] = round(counted)

    def heartbeats(self, subjects: list[Subject]) -> None:
        self.say(f"heartbeats, {self.sizes.window:g} s")
        with ExitStack() as stack:
            more: list[Ours] = []
            for rows in self.sizes.rows:
                database = self.folder / f"{rows}.db"
                seed(database, guests=rows)
                one = Ours(self.folder / f"rows-{rows}", self.filesystems[0], database)
                stack.callback(one.close)
                more.append(one)
            watchers = [subject for subject in [*subjects, *more] if isinstance(subject, Ours)]
            before = {subject: subject.settled() for subject in [*subjects, *more]}
            cpu = {watcher: watcher.cpu_seconds() for watcher in watchers}
            start = time.monotonic()
            beat = start
            while beat < start + self.sizes.window:
                for subject in [*subjects, *more]:
                    subject.heartbeat()
                beat += self.sizes.heartbeat
                time.sleep(max(0.0, beat - time.monotonic()))
            seconds = time.monotonic() - start
            percent = {w: round(100 * (w.cpu_seconds() - cpu[w]) / seconds, 2) for w in watchers}
            # As many heartbeats as in ten minutes, however close together they were.
            scale = WINDOW / HEARTBEAT_SECONDS / round(self.sizes.window / self.sizes.heartbeat)
            for subject in subjects:
                counted = (subject.device.written() - before[subject]) * scale
                self.result(subject)["heartbeat_10min_device_bytes"] = round(counted)
            for watcher in watchers:
                if watcher in subjects:
                    result = self.result(watcher)
                    result["watcher_cpu_percent"] = percent[watcher]
                    result["watcher_rss_mib"] = round(watcher.rss_mib(), 1)
                    result["root_version_save_device_bytes"] = watcher.save_root_version()
                    watcher.change(0)
                    watcher.saved()
            saved = {watcher: watcher.device.written() for watcher in watchers}
            ours = self.results[self.filesystems[0]]["ours"]
            for label, figures in (
                ("watcher_cpu_percent_by_rows", percent),
                ("watcher_rss_mib_by_rows", {w: round(w.rss_mib(), 1) for w in watchers}),
            ):
                by_rows = {str(GUESTS): figures[next(w for w in watchers if w in subjects)]}
                by_rows.update({str(rows): figures[w] for rows, w in zip(self.sizes.rows, more, strict=True)})
                ours[label] = by_rows
            if more:
                self.say("loss with many rows")
                found = [(rows, w.loss(3, self.sizes.busy / 3)) for rows, w in zip(self.sizes.rows, more, strict=True)]
                ours["worst_loss_seconds_by_rows"] = {str(rows): round(loss["busy"], 2) for rows, loss in found}
            if self.sizes.checkpoint:
                self.say("the log is checkpointed")
                for watcher in watchers:
                    if watcher in subjects:
                        self.result(watcher)["checkpoint_device_bytes"] = watcher.folded() - saved[watcher]
        for subject in subjects:
            if not isinstance(subject, Ours):
                self.result(subject).update(watcher_cpu_percent=0.0, watcher_rss_mib=0.0)
            if isinstance(subject, Hourly):
                copy = subject.copy()
                result = self.result(subject)
                result["copy_device_bytes"] = copy
                for key in ("idle_10min_device_bytes", "heartbeat_10min_device_bytes"):
                    result[key] += round(copy * WINDOW / HOUR)

    def changes(self, subjects: list[Subject], size: str) -> None:
        self.say(f"changes of 1 KiB, {size}")

        def measure(subject: Subject) -> None:
            result = self.result(subject)
            for key, act in (("change_1k", subject.change), ("replace_1k", subject.replace)):
                if isinstance(subject, Hourly):
                    # A change reaches the device with the next copy, and only so.
                    act(0)
                    found = [subject.copy()]
                else:
                    found = subject.costs(act, self.sizes.changes)
                result.setdefault(f"{key}_device_bytes", {})[size] = round(statistics.median(found))
                result.setdefault(f"{key}_mean", {})[size] = round(statistics.mean(found))
                result.setdefault(f"{key}_range", {})[size] = [min(found), max(found)]

        in_parallel(measure, subjects)

    def losses(self, subjects: list[Subject]) -> None:
        self.say("loss")

        def measure(subject: Subject) -> None:
            result = self.result(subject)
            if isinstance(subject, Ours):
                found = subject.loss(self.sizes.single_losses, self.sizes.busy)
                result["worst_loss_seconds"] = round(max(found.values()), 2)
                result["worst_loss_single_seconds"] = round(found["single"], 2)
            elif isinstance(subject, Stock):
                result["worst_loss_seconds"] = round(subject.loss(self.sizes.write_back), 1)
            else:
                result["worst_loss_seconds"] = HOUR

        in_parallel(measure, subjects)

    def bursts(self, subjects: list[Subject]) -> None:
        size = self.sizes.burst_bytes
        for subject in subjects:
            self.say(f"burst, {subject.filesystem}, {subject.name}")
            result = self.result(subject)
            before = subject.settled()
            if isinstance(subject, Ours):
                # As fast as it goes, then as slow as the aim allows: the slower, the more saves.
                runs = [(subject.burst(size, 0), subject.folded() - before)]
                for _ in range(BURST_TRIES):
                    (subject.pve / "burst").unlink()
                    before = subject.folded()
                    runs.append((subject.burst(size, self.sizes.burst), subject.folded() - before))
                    if runs[-1][0] <= BURST_SECONDS:
                        break
                result["burst_unpaced_seconds"], result["burst_unpaced_device_bytes"] = round(runs[0][0], 1), runs[0][1]
                lasted, counted = max([run for run in runs if run[0] <= BURST_SECONDS] or runs[:1])
                result["burst_seconds"], result["burst_1m_bs512_device_bytes"] = round(lasted, 2), counted
                continue
            result["burst_seconds"] = round(subject.burst(size, 0), 1)
            if isinstance(subject, Hourly):
                result["burst_1m_bs512_device_bytes"] = subject.copy()
            else:
                result["burst_1m_bs512_device_bytes"] = subject.settled() - before

    def restores(self, subjects: list[Subject]) -> None:
        for subject in subjects:
            result = self.result(subject)
            if isinstance(subject, Stock):
                result["restore_64m_seconds"] = 0.0
                continue
            self.say(f"restore, {subject.filesystem}, {subject.name}")
            if isinstance(subject, Ours):
                result["watcher_rss_mib_64_mib"] = round(subject.rss_mib(), 1)
                self.say(f"rewrites of 1 MiB, {subject.filesystem}, {subject.name}")
                result["rewrites_64m"] = subject.rewrites(self.sizes.rewrites)
                result["watcher_rss_mib_64_mib_after_rewrites"] = round(subject.rss_mib(), 1)
                subject.stop_watch()
            assert isinstance(subject, Ours | Hourly)
            found = [subject.restore() for _ in range(self.sizes.restores)]
            result["restore_64m_seconds"] = round(statistics.median(found), 2)

    def report(self) -> dict[str, Any]:
        first = self.filesystems[0]
        return {
            **self.results[first],
            "filesystem": first,
            "other_filesystems": {fs: self.results[fs] for fs in self.filesystems[1:]},
            "skipped_filesystems": self.skipped,
            "aims": aims(self.results[first]["ours"]),
            "seconds": round(time.monotonic() - self.started),
        }


def in_parallel(measure: Callable[[Subject], None], subjects: list[Subject]) -> None:
    """Each subject has a device of its own, so none counts what another writes."""
    with ThreadPoolExecutor(len(subjects)) as pool:
        for future in [pool.submit(measure, subject) for subject in subjects]:
            future.result()


def usable(wanted: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """File systems that can be measured here, and why the others cannot."""
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if any(line.split()[-1] == "device-mapper" for line in Path("/proc/devices").read_text().splitlines() if line):
        known.add("lvm-thin")
    good, skipped = [], {}
    for fs in wanted:
        if fs not in known:
            skipped[fs] = "the kernel does not have it, or its module is not loaded"
        elif fs not in MKFS:
            skipped[fs] = "this program cannot make one"
        elif shutil.which(MKFS[fs][0]) is None:
            skipped[fs] = f"{MKFS[fs][0]} is not installed"
        else:
            good.append(fs)
    return good, skipped


def aims(ours: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is wanted of ours, and whether it is so."""
    change = ours["change_1k_device_bytes"]
    small, big = change.values()
    wanted: list[tuple[str, float, float]] = [
        ("idle_10min_device_bytes", ours["idle_10min_device_bytes"], 0),
        ("heartbeat_10min_device_bytes", ours["heartbeat_10min_device_bytes"], 0),
        ("change_1k_device_bytes", max(small, big), 32 * 1024),
        ("change_1k_ratio", round(max(small, big) / max(1, min(small, big)), 2), 1.5),
        ("burst_1m_bs512_device_bytes", ours["burst_1m_bs512_device_bytes"], 4 * MIB),
        ("worst_loss_seconds", ours["worst_loss_seconds"], 2.0),
        ("worst_loss_seconds_rewrites_64m", ours["rewrites_64m"]["worst_loss_seconds"], 2.0),
        ("watcher_rss_mib", ours["watcher_rss_mib"], 25.0),
        ("watcher_cpu_percent", ours["watcher_cpu_percent"], 0.5),
        ("restore_64m_seconds", ours["restore_64m_seconds"], 2.0),
    ]
    return {name: {"found": found, "at_most": most, "met": found <= most} for name, found, most in wanted}


def machine() -> dict[str, Any]:
    python = "import platform, sqlite3; print(platform.python_version(), sqlite3.sqlite_version)"
    found = subprocess.run(["/usr/bin/python3", "-c", python], capture_output=True, text=True, check=True)
    version, sqlite = found.stdout.split()
    return {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "python": version,
        "sqlite": sqlite,
        "daemon": "double" if IS_DOUBLE else os.environ["PMXCFS"],
    }


def table(report: dict[str, Any]) -> str:
    lines = []
    for fs, results in {report["filesystem"]: report, **report["other_filesystems"]}.items():
        lines += [f"{fs:34}{'stock':>15}{'hourly copy':>15}{'ours':>15}{'stock / ours':>14}"]
        for key in KEYS:
            values = [results[name][key] for name in ("stock", "hourly_full_copy", "ours")]
            if isinstance(values[0], dict):
                for size in values[0]:
                    lines.append(_line(f"{key} {size}", [value[size] for value in values]))
            else:
                lines.append(_line(key, values))
        lines.append("")
    lines.append("aims of ours")
    for name, aim in report["aims"].items():
        lines.append(f"  {name:32}{aim['found']:>15,} at most {aim['at_most']:,}{'' if aim['met'] else '  MISSED'}")
    for fs, why in report["skipped_filesystems"].items():
        lines.append(f"skipped: {fs}: {why}")
    lines.append(f"load at the start {report['load_at_start']}, at the end {report['load_at_end']}")
    return "\n".join(lines)


def _line(label: str, values: list[float]) -> str:
    ratio = f"{values[0] / values[2]:,.1f}" if values[2] else ("" if not values[0] else "all saved")
    return f"{label:34}" + "".join(f"{value:>15,}" for value in values) + f"{ratio:>14}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--quick", action="store_true", help="short windows and small sizes, to see that it works: no figures"
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the images lie (default: %(default)s)")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"ram_state: {reason}", file=sys.stderr)
        return 2
    about = {"machine": machine(), "load_at_start": os.getloadavg()}
    with tempfile.TemporaryDirectory(prefix="ram-state-", dir=options.folder) as folder:
        bench = Bench(Sizes(options.quick), Path(folder), progress=sys.stderr.isatty() or not options.json)
        bench.run()
    report = {**bench.report(), **about, "load_at_end": os.getloadavg(), "quick": options.quick}
    print(json.dumps(report, indent=2) if options.json else table(report))
    return 0 if all(aim["met"] for aim in report["aims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
