# SPDX-License-Identifier: Apache-2.0
"""The subjects of ram_state.py: nodes whose database lies on the device, is copied hourly, or is kept by pve-state."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab.tests.doubles.harness import PACKAGE, LoopDevice, Node, wait_for  # noqa: E402

sys.path.insert(0, str(PACKAGE / "root/usr/lib/pve-cluster-lab"))

from pmxcfs_lab.memdb import DIRECTORY, FILE, SCHEMA  # noqa: E402

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
        """What the unit starts, with its settings."""
        lines = [line.partition("=") for line in UNIT.read_text().replace("\\\n", "").splitlines()]
        settings = ["env", "-u", "PYTHONDONTWRITEBYTECODE"]
        settings += [word for key, _, value in lines if key == "Environment" for word in value.split()]
        commands = {key: shlex.split(value) for key, _, value in lines if key.startswith("ExecStart")}
        (self.node.root / "run/pveguard").mkdir(exist_ok=True)
        return [*settings, *(word.replace("/usr/local/sbin/pve-state", str(PROGRAM)) for word in commands["ExecStart"])]

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
