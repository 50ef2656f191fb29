# SPDX-License-Identifier: Apache-2.0
"""A random history through a real FUSE daemon, with the real watcher; and a real cluster whose leader has diverged."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

harness = pytest.importorskip("lab.tests.doubles.harness")
from lab.tests.doubles.test_cluster import Cluster, local_edit  # noqa: E402

from .conftest import PROGRAM, stand_ins, table, without  # noqa: E402
from .test_double import RamNode, members_in_ram, ram  # noqa: E402, F401

pytestmark = [pytest.mark.root, pytest.mark.slow]
Rows = dict[int, tuple[Any, ...]]
RPO = 2.0
# What a machine that is busy with other things may add to the RPO.
GRACE = 4.0


@pytest.fixture(scope="module")
def program() -> Any:
    return stand_ins()


class Stalls(threading.Thread):
    """By how much short waits were longer than asked: so long the machine did not run the watcher in time either."""

    STEP = 0.1

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.woken = [time.monotonic()]
        self.start()

    def run(self) -> None:
        while not self.over.wait(self.STEP):
            self.woken.append(time.monotonic())

    def since(self, moment: float) -> float:
        pairs = itertools.pairwise([*self.woken, time.monotonic()])
        return sum(max(0.0, end - begin - self.STEP) for begin, end in pairs if end >= moment)


@pytest.fixture
def stalls() -> Iterator[Stalls]:
    made = Stalls()
    yield made
    made.over.set()


class Observer:
    """Knows everything that was live, and looks what the store would restore at an instant."""

    def __init__(self, ps: Any, node: RamNode, stalls: Stalls) -> None:
        self.ps, self.ram, self.node, self.stalls = ps, node, node.node, stalls
        self.noise = ps.Config().noise
        self.history: list[tuple[float, float, frozenset[Any]]] = []
        self.note(time.monotonic())

    def state(self, rows: Rows) -> frozenset[Any]:
        return frozenset(row for i, row in without(rows, self.noise.matches).items() if i)

    def live(self) -> frozenset[Any]:
        return self.state({row[0]: row for row in self.node.rows()})

    def note(self, began: float) -> None:
        """The state after a system call that began at a time."""
        self.history.append((began, time.monotonic(), self.live()))

    def forget(self) -> None:
        self.history = []
        self.note(time.monotonic())

    def allowed(self, moment: float) -> set[frozenset[Any]]:
        """States that were live at some time of the last seconds, as far as can be told."""
        ends = [end for _, end, _ in self.history[1:]] + [moment]
        since = moment - RPO - GRACE
        since -= self.stalls.since(since)
        return {state for (_, _, state), end in zip(self.history, ends, strict=True) if end >= since}

    def stored(self, folder: Path) -> frozenset[Any]:
        """What a boot would make of the store, as it stands between two system calls of the watcher."""
        paths = self.ps.Paths(str(folder))
        os.makedirs(paths.live)
        pid = self.stop_watcher()
        try:
            shutil.copytree(self.node.root / "var/lib/pveguard/state", paths.store)
        finally:
            os.kill(pid, signal.SIGCONT)
        Path(paths.replica + "-shm").unlink(missing_ok=True)
        self.ps.restore_boot(paths, self.ps.Config())
        return self.state(table(Path(paths.live_db)))

    def stop_watcher(self) -> int:
        """Stopped when this returns. The nodes have no namespace of processes; one just started is not itself yet."""
        pid = int((self.node.root / "run/watch.pid").read_text())
        harness.wait_for("the watcher", lambda: b"\0watch\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(pid, signal.SIGSTOP)
        harness.wait_for("its stop", lambda: "\nState:\tT" in Path(f"/proc/{pid}/status").read_text())
        return pid

    def cut(self) -> None:
        moment = time.monotonic()
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            found = self.stored(Path(folder))
        assert found in self.allowed(moment)

    def quiet(self) -> None:
        """After a quiet period the replica is the live state."""

        def same() -> bool:
            with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
                try:
                    return self.stored(Path(folder)) == self.live()
                except (self.ps.RestoreError, sqlite3.Error):
                    return False

        harness.wait_for("the replica to be the live state", same)
        assert self.ram.ps("status")["would_lose"] == []


class Life:
    """System calls on /etc/pve, one at a time, each with the state after it noted."""

    def __init__(self, observer: Observer, seed: int) -> None:
        self.o, self.chance = observer, random.Random(seed)
        self.pve = observer.node.pve

    def call(self, function: Any, *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*arguments)
        except OSError:
            return None
        finally:
            self.o.note(began)

    def name(self) -> Path:
        folder = self.chance.choice(["", "nodes/pve1", "nodes/pve1/lxc", "sdn", "priv"])
        return self.pve / folder / self.chance.choice(["a", "b", "c.cfg"])

    def write(self, path: Path, chunks: list[bytes], flags: int = os.O_TRUNC) -> None:
        fd = self.call(os.open, path, os.O_WRONLY | os.O_CREAT | flags, 0o640)
        if fd is None:
            return
        for chunk in chunks:
            self.call(os.write, fd, chunk)
        os.close(fd)

    def step(self) -> None:
        kind = self.chance.choice(
            ["write", "write", "append", "replace", "rename", "delete", "folder", "lock", "beat", "burst"]
        )
        some = [self.chance.randbytes(self.chance.choice([0, 20, 3000])) for _ in range(2)]
        if kind == "write":
            self.write(self.name(), some)
        elif kind == "append":
            self.write(self.name(), some, os.O_APPEND)
        elif kind == "replace":
            target = self.name()
            temporary = target.with_name(f"{target.name}.tmp.{self.chance.randrange(999)}")
            self.write(temporary, some)
            self.call(os.rename, temporary, target)
        elif kind == "rename":
            self.call(os.rename, self.name(), self.name())
        elif kind == "delete":
            self.call(os.unlink, self.name())
        elif kind == "folder":
            path = self.pve / self.chance.choice(["sdn", "nodes/pve1/lxc", "other"])
            self.call(os.rmdir if path.exists() else os.mkdir, path)
        elif kind == "lock":
            self.call(os.mkdir, self.pve / "priv/lock")
            self.call(os.mkdir, self.pve / "priv/lock/file-jobs_cfg")
            self.call(os.rmdir, self.pve / "priv/lock/file-jobs_cfg")
        elif kind == "beat":
            path = self.pve / "nodes/pve1/lrm_status"
            for i in range(5):
                self.write(path.with_suffix(".tmp.9"), [b"%d" % i])
                self.call(os.rename, path.with_suffix(".tmp.9"), path)
        else:
            self.write(self.pve / "burst", [b"x" * 512] * 60)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_history_cut_at_random(program: Any, ram: RamNode, stalls: Stalls, seed: int) -> None:  # noqa: F811
    ram.ps("enable")
    observer = Observer(program, ram, stalls)
    life = Life(observer, seed)
    observer.quiet()
    for turn in range(60):
        for _ in range(life.chance.randint(1, 4)):
            life.step()
            time.sleep(life.chance.choice([0, 0, 0.02, 0.2]))
        if turn % 3 == 0:
            observer.cut()
        if turn % 20 == 7:
            observer.quiet()
        if turn in (15, 45):
            # Killed, as by systemd's watchdog; the next one goes on.
            pid = int((ram.node.root / "run/watch.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            life.step()
            ram.node.sh(
                "rm -f /run/pveguard/watch.json; setsid /usr/bin/python3 -IS "
                f"{PROGRAM} watch </dev/null >>/run/ps.log 2>&1 &"
                " echo $! > /run/watch.pid"
            )
            observer.quiet()
        if turn == 30:
            assert ram.systemctl("stop", "pve-cluster.service") == 0
            assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
            observer.quiet()
        if turn in (25, 50):
            life.step()
            moment = time.monotonic()
            allowed = observer.allowed(moment)
            ram.power_cut()
            assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
            assert observer.live() in allowed
            observer.forget()
    observer.quiet()
    listed = ram.ps("list", "--verify")["generations"]
    assert listed and all(not g["problems"] for g in listed)


# -- a real cluster


@pytest.fixture
def three() -> Iterator[Cluster]:
    with members_in_ram() as cluster:
        yield cluster


def test_a_leader_that_has_diverged(program: Any, three: Cluster, stalls: Stalls) -> None:
    """A member was edited alone and comes back with a higher version: the whole cluster goes back, and RAM state with it.
    Then the same the other way round: what was saved here is not what the others have.
    """
    one = RamNode(three[1])
    assert one.systemctl("start", "pve-cluster.service") == 0, one.logs()
    three[2].start()
    three[3].start()
    for node in three.nodes:
        harness.wait_for("quorum", node.writable)
    three[1].sh("mkdir -p /etc/pve/nodes/pve1; echo x > /etc/pve/storage.cfg; echo u > /etc/pve/user.cfg")
    harness.wait_for("equal members", three.equal)
    one.ps("enable", "--allow-offline-members")
    harness.wait_for("quorum", three[1].writable)
    observer = Observer(program, one, stalls)
    observer.quiet()

    # The others' leader: its rows have versions that ours had for something else.
    three[3].stop()
    three[1].sh("echo precious > /etc/pve/storage.cfg; echo new > /etc/pve/precious")
    observer.quiet()
    precious = observer.live()
    local_edit(three[3], "for i in $(seq 30); do echo $i > mine; done; echo theirs > user.cfg")
    three[3].start()
    harness.wait_for("the return", three[3].writable)
    harness.wait_for("equal members", three.equal)
    assert not (three[1].pve / "precious").exists() and (three[1].pve / "mine").exists()
    observer.quiet()
    assert former_states(observer)[-1] == precious

    # And ours: edited alone and saved so, then overwritten by the others, who went on.
    lineage = max(g["lineage"] for g in one.ps("list")["generations"])
    assert one.systemctl("stop", "pve-cluster.service") == 0
    three[2].sh("for i in $(seq 30); do echo $i > /etc/pve/mine; done")
    three[1].start("-l")
    three[1].sh("echo alone > /etc/pve/storage.cfg; echo alone > /etc/pve/alone")
    observer.quiet()
    alone = observer.live()
    three[1].stop()
    three[1].start()
    harness.wait_for("the return", three[1].writable)
    harness.wait_for("equal members", three.equal)
    assert not (three[1].pve / "alone").exists()
    observer.quiet()
    assert max(g["lineage"] for g in one.ps("list")["generations"]) > lineage
    assert former_states(observer)[-1] == alone


def former_states(observer: Observer) -> list[frozenset[Any]]:
    """What the generations hold that were cut before a new lineage, oldest first."""
    folder = observer.node.root / "var/lib/pveguard/state/generations"
    found = []
    for g in reversed(observer.ram.ps("list", "--verify")["generations"]):
        assert g["problems"] == []
        if g["reason"].startswith("before"):
            with tempfile.TemporaryDirectory(dir="/dev/shm") as copy:
                shutil.copy(folder / f"{g['name']}.db", copy)
                found.append(observer.state(table(Path(copy) / f"{g['name']}.db")))
    return found
