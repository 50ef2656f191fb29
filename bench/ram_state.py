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
import shlex
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab.tests.doubles.harness import IS_DOUBLE, MKFS, PACKAGE, LoopDevice, Node, wait_for, why_not  # noqa: E402

sys.path.insert(0, str(PACKAGE / "root/usr/lib/pve-cluster-lab"))

from pmxcfs_lab.memdb import DIRECTORY, FILE, SCHEMA  # type: ignore[import-not-found]  # noqa: E402

PROGRAM = ROOT / "scripts/pve-state"
UNIT = ROOT / "roles/ram_state/files/units/pveguard-state-watch.service"
MIB = 1 << 20
#: One heartbeat of the HA stack: seconds between two, bytes of lrm_status. Each is create, write and rename.
HEARTBEAT_SECONDS, HEARTBEAT_BYTES = 5.0, 83
WINDOW = 600.0
#: The aim is about bursts of up to this many seconds; on a busy machine one may take longer, and does not count.
BURST_SECONDS, BURST_TRIES = 4.0, 3
HOUR = 3600.0
#: Rows of a small cluster: 200 guests; their configurations make 0.3 MiB of database.
GUESTS, GUEST_BYTES = 200, 1000
LEDGER = "nodes/pve1/ledger"

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
        self.fold_in = not quick  # wait for the log to be folded in, a minute
        self.restores = 1 if quick else 3
        self.filesystems = ("ext4",) if quick else ("ext4", "btrfs", "zfs", "lvm-thin")


# -- databases


def seed(path: Path, guests: int = GUESTS, big_mib: int = 0) -> None:
    """A daemon's database: ``guests`` configurations of 1000 bytes, and ``big_mib`` files of 1 MiB."""
    version = 1
    rows: list[tuple[Any, ...]] = []

    def add(parent: int, name: str, data: bytes | None) -> int:
        nonlocal version
        version += 1
        kind = DIRECTORY if data is None else FILE
        rows.append((version, parent, version, 1, 1700000000, kind, name, data))
        return version

    add(0, "storage.cfg", b"dir: local\n\tpath /var/lib/vz\n")
    add(add(0, "priv", None), "lock", None)
    node = add(add(0, "nodes", None), "pve1", None)
    add(node, "lrm_status", b"{}")
    add(node, "ledger", b"0")
    folder = add(node, "qemu-server", None)
    for number in range(guests):
        add(folder, f"{100 + number}.conf", (b"cores: 2\nmemory: 2048\nscsi0: local:disk\n" * 30)[:GUEST_BYTES])
    folder = add(0, "big", None)
    for number in range(big_mib):
        add(folder, f"{number}", os.urandom(MIB))
    database = sqlite3.connect(path)
    database.execute(SCHEMA)
    database.executemany("INSERT INTO tree VALUES (?,?,?,?,?,?,?,?)", rows)
    database.execute("INSERT INTO tree VALUES (0,0,?,1,1700000000,?,'__version__',NULL)", (version, DIRECTORY))
    database.commit()
    database.close()


# -- subjects


class Subject:
    """One node with one device. Subclasses say where the database lies and what brings it to the device."""

    name = ""
    on_device = ""  # where the device is mounted
    in_ram = True

    def __init__(self, folder: Path, filesystem: str, database: Path) -> None:
        folder.mkdir(parents=True)
        self.filesystem = filesystem
        size = database.stat().st_size // MIB
        self.device = LoopDevice(folder, 256 + 6 * size, filesystem)
        self.node = Node()
        self.node.sh(f"mkdir -p {self.on_device}")
        # The defaults of the file system: this is what a node pays.
        self.device.mount(self.node, self.on_device, "relatime")
        if self.in_ram:
            self.node.sh(f"mount -t tmpfs -o size={256 + 3 * size}m,mode=755 pveguard-state /var/lib/pve-cluster")
        shutil.copyfile(database, self.node.database)
        self.node.start()
        self.pve = self.node.pve
        self.begin()

    def begin(self) -> None:
        """Start what the subject needs beside the daemon."""

    def saved(self) -> None:
        """Wait until what was written so far is on the device, as far as the subject does that by itself."""

    def settled(self) -> int:
        """Device bytes when nothing more is to come."""
        self.saved()
        return self.device.settled()

    def close(self) -> None:
        self.device.unpin()
        self.node.close()
        self.device.close()

    # what a user or a daemon does

    def heartbeat(self) -> None:
        status = self.pve / "nodes/pve1/lrm_status"
        temporary = self.pve / "nodes/pve1/lrm_status.tmp.77"
        temporary.write_bytes(b"x" * HEARTBEAT_BYTES)
        temporary.rename(status)

    def change(self, number: int) -> None:
        """1 KiB into an existing file, in place: one transaction."""
        path = self.pve / f"nodes/pve1/qemu-server/{100 + number * 7 % GUESTS}.conf"
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, os.urandom(512).hex().encode(), 0)
        finally:
            os.close(descriptor)

    def replace(self, number: int) -> None:
        """A file of 1 KiB replaced as Proxmox VE does it: create, write and rename, three transactions."""
        path = self.pve / f"nodes/pve1/qemu-server/{100 + number * 7 % GUESTS}.conf"
        temporary = Path(f"{path}.tmp.{number}")
        temporary.write_bytes(os.urandom(512).hex().encode())
        temporary.rename(path)

    def burst(self, size: int, seconds: float) -> float:
        """A new file in blocks of 512 bytes, spread over ``seconds`` or as fast as it goes. Its duration."""
        data = os.urandom(size)
        start = time.monotonic()
        with open(self.pve / "burst", "wb", buffering=0) as stream:
            for offset in range(0, size, 512):
                ahead = start + seconds * offset / size - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
                stream.write(data[offset : offset + 512])
        return time.monotonic() - start

    # what is measured, where it is not the same for all

    def of_window(self, counted: float) -> float:
        return counted

    def costs(self, act: Callable[[int], None], count: int) -> list[int]:
        """Device bytes of each of ``count`` acts, warm: the first one is not counted."""
        found = []
        before = self.settled()
        for number in range(count + 1):
            act(number)
            self.saved()
            now = self.device.written()
            found.append(now - before)
            before = now
        return found[1:]


class Stock(Subject):
    name = "stock"
    on_device = "/var/lib/pve-cluster"
    in_ram = False

    def loss(self, measured: bool) -> float:
        """Seconds until a change's bytes are on the device by themselves: nothing but the kernel's write-back does it.

        A lower bound: the file system's own commit, without which the bytes cannot be found again, may come later. If it
        is not to be ``measured``, what the kernel is set to.
        """
        if not measured:
            return sum(int(Path(f"/proc/sys/vm/dirty_{name}_centisecs").read_text()) for name in ("expire", "writeback")) / 100
        marker = os.urandom(32).hex().encode()
        (self.pve / LEDGER).write_bytes(marker)
        start = time.monotonic()
        with open(self.device.image, "rb") as image:
            while not holds(image.fileno(), marker):
                if time.monotonic() - start > 120:
                    raise AssertionError("a change did not reach the device within 120 s")
                time.sleep(0.5)
        return time.monotonic() - start


class Hourly(Subject):
    name = "hourly_full_copy"
    on_device = "/var/lib/copy"

    def copy(self) -> int:
        """Device bytes of one copy."""
        before = self.device.settled()
        self.node.sh(f"cp -p /var/lib/pve-cluster/config.db* {self.on_device}/")
        return self.device.written() - before

    def begin(self) -> None:
        self.copy()

    def restore(self) -> float:
        """Seconds to copy the database back: nothing is verified."""
        self.node.stop()
        drop_cache(self.node.root / "var/lib/copy")
        start = time.monotonic()
        self.node.sh(f"cp -p {self.on_device}/config.db* /var/lib/pve-cluster/")
        return time.monotonic() - start


class Ours(Subject):
    name = "ours"
    on_device = "/var/lib/pveguard"

    def watch_command(self) -> list[str]:
        """What the unit starts, with its settings, after what it starts before."""
        lines = [line.partition("=") for line in UNIT.read_text().replace("\\\n", "").splitlines()]
        settings = ["env", "-u", "PYTHONDONTWRITEBYTECODE"]
        settings += [word for key, _, value in lines if key == "Environment" for word in value.split()]
        commands = {key: shlex.split(value) for key, _, value in lines if key.startswith("ExecStart")}
        (self.node.root / "run/pveguard").mkdir(exist_ok=True)
        before = [word.replace("/usr/local/sbin/pve-state", str(PROGRAM)) for word in commands["ExecStartPre"]]
        done = self.node.run(*settings, *before)
        assert done.returncode == 0, done.stderr
        return [*settings, *commands["ExecStart"]]

    def begin(self) -> None:
        self.watch()
        self.saved()

    def watch(self) -> None:
        self.watcher = self.node.spawn(*self.watch_command(), log="/run/watch.log")
        wait_for("the first save", lambda: self.watched().get("saved_root_version"), 120)
        self.pid = int(self.watched()["pid"])

    def watched(self) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], json.loads((self.node.root / "run/pveguard/watch.json").read_text()))
        except (OSError, ValueError):
            return {}

    def saved(self) -> None:
        version = self.node.version()

        def done() -> bool:
            if self.watcher.poll() is not None or self.watched().get("error"):
                log = (self.node.root / "run/watch.log").read_text()
                raise AssertionError(f"pve-state watch: {self.watched().get('error')} {log}")
            return int(self.watched().get("saved_root_version") or 0) >= version

        wait_for("a save", done, 30)

    def folded(self) -> int:
        """Device bytes once config.db alone, without its log, is what the daemon has."""
        self.saved()
        version = f"{self.node.version()}\n"

        def done() -> bool:
            time.sleep(0.2)
            return self.node.run("/usr/bin/python3", "-c", WITHOUT_LOG).stdout == version

        wait_for("config.db to be whole without its log", done, 90)
        return self.device.settled()

    def save_root_version(self) -> int:
        """Device bytes of a save of the root version alone, which a node does after 1000 transactions of noise."""
        self.heartbeat()
        before = self.device.settled()
        os.kill(self.pid, signal.SIGUSR1)
        self.saved()
        return self.device.settled() - before

    def stop_watch(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        self.watcher.wait(60)

    def rss_mib(self) -> float:
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no Rss in smaps_rollup")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def loss(self, singles: int, busy: float) -> dict[str, float]:
        """The greatest age of a change that a power cut at that moment would have lost.

        A row counts as safe when another process reads it in the replica: SQLite shows a commit after its fsync.
        """
        ledger = Ledger(self)
        try:
            for number in range(singles):
                ledger.write()
                wait_for("the ledger", ledger.all_safe, 30)
                # Another moment of the watcher's beat each time.
                time.sleep(0.1 + 0.173 * number % 1.0)
            single = ledger.worst
            end = time.monotonic() + busy
            while time.monotonic() < end:
                ledger.write()
                time.sleep(0.02)
            wait_for("the ledger", ledger.all_safe, 30)
        finally:
            ledger.close()
        return {"single": single, "busy": ledger.worst}

    def rewrites(self, seconds: float) -> dict[str, float]:
        """The greatest loss while a file of 1 MiB is rewritten as fast as the daemon takes it, and how often it was."""
        ended = threading.Event()
        content = [bytes([65 + number]) * MIB for number in range(4)]
        count = 0

        def rewrite() -> None:
            nonlocal count
            while not ended.is_set():
                (self.pve / "rewritten").write_bytes(content[count % 4])
                count += 1

        ledger, thread = Ledger(self), threading.Thread(target=rewrite)
        thread.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                ledger.write()
                time.sleep(0.05)
        finally:
            ended.set()
            thread.join(60)
            wait_for("the ledger", ledger.all_safe, 30)
            ledger.close()
        return {"worst_loss_seconds": round(ledger.worst, 2), "rewrites_per_second": round(count / seconds, 1)}

    def restore(self) -> float:
        """Seconds of `pve-state restore` into a fresh tmpfs, verification included."""
        self.node.stop()
        self.node.sh(
            "umount /var/lib/pve-cluster; rm -f /run/pveguard/*.json;"
            "mount -t tmpfs -o size=640m,mode=755 pveguard-state /var/lib/pve-cluster"
        )
        drop_cache(self.node.root / "var/lib/pveguard/state")
        start = time.monotonic()
        result = self.node.run(str(PROGRAM), "restore", timeout=120)
        seconds = time.monotonic() - start
        assert result.returncode == 0, result.stderr
        self.node.start()
        return seconds


WITHOUT_LOG = """
import sqlite3
db = sqlite3.connect("file:/var/lib/pveguard/state/config.db?immutable=1", uri=True)
print(db.execute("SELECT version FROM tree WHERE inode = 0").fetchone()[0])
"""

READER = """
import os, sqlite3, sys, time
db = sqlite3.connect("file:/var/lib/pveguard/state/config.db?mode=ro", uri=True, timeout=10, isolation_level=None)
last = None
while os.getppid() == int(sys.argv[1]):
    found = db.execute("SELECT data FROM tree WHERE name = 'ledger'").fetchone()[0]
    if found != last:
        last = found
        print(time.monotonic(), int(found), flush=True)
    time.sleep(0.005)
"""


class Ledger:
    """Numbers written to one file of /etc/pve, and when each was safe."""

    def __init__(self, subject: Ours) -> None:
        self.path = subject.pve / LEDGER
        self.number = int(self.path.read_bytes())
        self.written: dict[int, float] = {}
        self.safe = self.number
        self.worst = 0.0
        command = subject.node.enter(["/usr/bin/python3", "-c", READER, str(os.getpid())])
        # nsenter executes the program, so that its parent is this process.
        self._reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def write(self) -> None:
        self.number += 1
        # In place: a reader never sees the file truncated.
        with open(self.path, "r+b", buffering=0) as stream:
            stream.write(b"%012d" % self.number)
        self.written[self.number] = time.monotonic()

    def _follow(self) -> None:
        assert self._reader.stdout is not None
        for line in self._reader.stdout:
            at, number = float(line.split()[0]), int(line.split()[1])
            for other in range(self.safe + 1, number + 1):
                self.worst = max(self.worst, at - self.written.get(other, at))
            self.safe = max(self.safe, number)

    def all_safe(self) -> bool:
        return self.safe >= self.number

    def close(self) -> None:
        self._reader.kill()
        self._reader.wait()
        self._thread.join(5)


def holds(descriptor: int, marker: bytes) -> bool:
    """Whether the marker is in a sparse image. Only its data is read: reading a hole would fill it."""
    end = os.fstat(descriptor).st_size
    at = 0
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return False
        hole = os.lseek(descriptor, at, os.SEEK_HOLE)
        while at < hole:
            if marker in os.pread(descriptor, min(8 * MIB, hole - at) + len(marker), at):
                return True
            at += 8 * MIB
        at = hole
    return False


def drop_cache(folder: Path) -> None:
    """Forget what the page cache holds of the files of a folder, after a sync."""
    for path in folder.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


# -- the run


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
            if self.sizes.fold_in:
                self.say("the log is folded in")
                for watcher in watchers:
                    if watcher in subjects:
                        self.result(watcher)["fold_in_device_bytes"] = watcher.folded() - saved[watcher]
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
