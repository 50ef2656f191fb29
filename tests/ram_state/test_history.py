# SPDX-License-Identifier: Apache-2.0
"""Any history, cut anywhere: the saved state follows the live one, and a restore goes back no further than the RPO.

The watcher runs in this process on a clock of its own, so that a history of minutes takes milliseconds. What it
may not see is in here: clock steps, heartbeats, bursts, a database that a join makes anew, a resync from a leader
whose rows have lower or equal versions, a cluster that was rolled back, a watcher that was killed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import clock_gettime_ns, gmtime, sleep, strftime, struct_time
from types import ModuleType
from typing import Any

import pytest
from hypothesis import Phase, event, example, given, settings
from hypothesis import strategies as st

from .conftest import Writer, fill, left, stand_ins, table, without
from .test_replica import perform

RPO = 2.0
LAG = 40
KEEP = 5
Rows = dict[int, tuple[Any, ...]]
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Clock:
    """Stands in for the module ``time`` of the program. ``cost``: seconds that each look at it takes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1.8e9
        self.cost = 0.0

    def monotonic(self) -> float:
        self.now += self.cost
        return self.now

    def time(self) -> float:
        return self.wall + self.now

    # Files are stamped by the kernel, not by this clock.
    clock_gettime_ns = staticmethod(clock_gettime_ns)

    def gmtime(self, seconds: float | None = None) -> struct_time:
        return gmtime(self.time() if seconds is None else seconds)

    def strftime(self, form: str, moment: struct_time) -> str:
        return strftime(form, moment)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        # Who waits for the kernel's clock waits in earnest, and not by thousands of turns of this one.
        sleep(min(seconds, 0.001))


class Live(Writer):
    """A writer that tells after each transaction."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path)
        self.world = world

    def _commit(self, *statements: tuple[str, tuple[Any, ...]]) -> int:
        done = super()._commit(*statements)
        self.world.note()
        return done

    def become(self, rows: Rows) -> None:
        """Replace all rows, as a resync does: one transaction, the rows with the versions that they have."""
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("DELETE FROM tree")
        self.db.executemany("INSERT INTO tree VALUES(?,?,?,?,?,?,?,?)", rows.values())
        self.db.execute("COMMIT")
        self.world.note()


class World:
    """A node with a daemon, a watcher and a clock, and everything that was ever live on it."""

    def __init__(self, ps: Any, root: Path, cost: float) -> None:
        self.ps, self.root = ps, root
        self.clock = Clock()
        self.clock.cost = cost
        ps.time = self.clock
        ps.daemon_pid = lambda paths: self.pid
        ps.daemon_running = lambda paths: self.pid is not None
        self.paths = ps.Paths(str(root))
        self.config = ps.Config({"rpo_seconds": RPO, "max_version_lag": LAG, "generations_keep": KEEP})
        for folder in (self.paths.live, self.paths.drop_in_dir, self.paths.pve, self.paths.run):
            os.makedirs(folder)
        Path(self.paths.drop_in).touch()
        self.history: list[tuple[float, frozenset[Any], int]] = []
        self.pid: int | None = None
        self.next_pid = 100
        self.writer: Live | None = None
        self.leader: Writer | None = None
        self.forgotten: list[Any] = []
        self.generations: dict[str, str] = {}
        self.former: list[tuple[int, frozenset[Any]]] = []
        self.watcher: Any = None
        self.down_since: float | None = None
        self.next_tick = self.clock.now
        self._follow_lineages()
        self.start_daemon()
        fill(self.w)
        for name in ("x", "sdn/x", "nodes/pve1/y"):
            self.w.write(name, b"0")
        self.start_watcher()

    def _follow_lineages(self) -> None:
        """Note the replica as it is whenever a new lineage begins."""
        real = self.ps.Store.new_lineage
        world = self

        def new_lineage(store: Any, reason: str) -> None:
            world.former.append((store.lineage, frozenset(left(Path(world.paths.replica)).values())))
            real(store, reason)

        self.ps.Store.new_lineage = new_lineage
        self._undo = lambda: setattr(self.ps.Store, "new_lineage", real)

    @property
    def w(self) -> Live:
        assert self.writer is not None
        return self.writer

    def close(self) -> None:
        self._undo()
        for writer in (self.writer, self.leader):
            if writer is not None:
                writer.close()
        for watcher in (*self.forgotten, self.watcher):
            if watcher is not None:
                watcher.store.close(checkpoint=False)

    # -- what is live

    def state(self, rows: Rows) -> frozenset[Any]:
        """The configuration in a table: all of it but noise and the root row."""
        return frozenset(r for i, r in without(rows, self.config.noise.matches).items() if i)

    def note(self) -> None:
        rows = self.w.rows()
        self.history.append((self.clock.now, self.state(rows), rows[0][2]))

    def lineage(self) -> int:
        """As on disk: whoever saved last may have begun one."""
        return int(self.ps.read_json(self.paths.state_file)["lineage"])

    def allowed(self) -> tuple[set[frozenset[Any]], int]:
        """States that a restore may give if power fails now, and the lowest root version that was live with them."""
        since = (self.clock.now if self.down_since is None else self.down_since) - RPO
        ends = [moment for moment, _, _ in self.history[1:]] + [self.clock.now]
        window = [h for h, end in zip(self.history, ends, strict=True) if end >= since]
        return {state for _, state, _ in window}, min(root for _, _, root in window)

    # -- time

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.next_tick <= end:
            self.clock.now = max(self.clock.now, self.next_tick)
            if self.watcher is not None:
                self.watcher.tick(self.clock.monotonic())
                self.watcher._advance()
                if self.watcher.over:
                    self.watcher.finish()
                    self.new_watcher()
            self.next_tick = self.clock.now + self.ps.Watcher.poll
        self.clock.now = max(self.clock.now, end)

    def start_daemon(self) -> None:
        self.writer = Live(Path(self.paths.live_db), self)
        self.next_pid += 1
        self.pid = self.next_pid
        self.note()

    def stop_daemon(self) -> None:
        self.w.close()
        self.writer, self.pid = None, None

    def command(self, *argv: str) -> Any:
        arguments = self.ps.parser().parse_args(argv)
        return arguments.function(self.paths, self.config, arguments)

    def final_save(self) -> None:
        """What the unit runs after the daemon."""
        self.command("save", "--if-enabled")

    def new_watcher(self) -> None:
        self.watcher = self.ps.Watcher(self.paths, self.config)
        self.watcher.members.state = (False, True, frozenset())

    def start_watcher(self) -> None:
        self.new_watcher()
        self.down_since = None
        self.next_tick = self.clock.now
        self.run(0)

    def forget(self) -> None:
        """Killed: its handles stay in this process."""
        self.forgotten.append(self.watcher)

    # -- what happens

    def step(self, kind: str, *given: Any) -> None:
        getattr(self, f"do_{kind}")(*given)

    def do_changes(self, what: Any) -> None:
        for one in what:
            perform(self.w, *one)

    def do_wait(self, seconds: float) -> None:
        self.run(seconds)

    def do_heartbeat(self, times: int, pause: float) -> None:
        for i in range(times):
            self.w.write("nodes/pve1/lrm_status.tmp.77", b"%d" % i)
            self.w.rename("nodes/pve1/lrm_status.tmp.77", "nodes/pve1/lrm_status")
            self.run(pause)

    def do_lock(self, pause: float) -> None:
        self.w.mkdir("priv/lock")
        v = self.w.version + 1
        self.w._commit(("INSERT INTO tree VALUES(?,?,?,1,?,4,'l',NULL)", (v, self.w.find("priv/lock"), v, v)))
        self.run(pause)
        self.w.delete("priv/lock/l")

    def do_burst(self, times: int, pause: float) -> None:
        for i in range(times):
            self.w.write("nodes/pve1/burst", b"x" * (i + 1))
            self.run(pause)

    def do_clock(self, seconds: float) -> None:
        self.clock.wall += seconds

    def do_restart_daemon(self, pause: float) -> None:
        self.stop_daemon()
        self.final_save()
        self.run(pause)
        self.start_daemon()

    def do_kill_watcher(self, down: float) -> None:
        self.forget()
        self.watcher, self.down_since = None, self.clock.now
        self.run(down)
        self.start_watcher()

    def do_restart_watcher(self, down: float) -> None:
        self.watcher.finish()
        self.watcher, self.down_since = None, self.clock.now
        self.run(down)
        self.start_watcher()

    def do_join(self, let_go: bool, rows: Any) -> None:
        """config.db goes and comes anew: the watcher has seen that the daemon is gone, or has not."""
        self.stop_daemon()
        self.final_save()
        if let_go:
            self.run(1)
        for suffix in ("", "-wal", "-shm"):
            Path(self.paths.live_db + suffix).unlink(missing_ok=True)
        if let_go:
            self.run(1)
        self.start_daemon()
        self.w.write("corosync.conf", b"totem {\n config_version: 1\n}\n")
        self.w.write("storage.cfg", b"dir: the cluster's\n")
        self.do_changes(rows)

    def do_split(self) -> None:
        """From here on somebody else is the leader of another part."""
        if self.leader is not None:
            self.leader.close()
        copy = self.root / "leader.db"
        for file in self.root.glob("leader.db*"):
            file.unlink()
        target = sqlite3.connect(copy)
        self.w.db.backup(target)
        target.close()
        self.leader = Writer(copy, node=2)

    def do_leader(self, what: Any) -> None:
        if self.leader is not None:
            for one in what:
                perform(self.leader, *one)

    def do_heal(self, beats: int) -> None:
        """The leader is whoever has the higher version; then its rows are everybody's."""
        if self.leader is None:
            return
        for i in range(beats):
            self.leader.write("nodes/pve2/lrm_status", b"%d" % i)
        rows = self.leader.rows()
        self.leader.close()
        self.leader = None
        if rows[0][2] < self.w.version:
            return
        event("resync")
        replica = table(Path(self.paths.replica))
        other = self.state(rows) - frozenset(replica.values())
        known = {row[:7] for row in replica.values()}
        if any(row[:7] in known for row in other):
            # Other data under the same version: no daemon writes that, and no look at versions can show it.
            return
        lineage = self.lineage()
        self.w.become(rows)
        if any(row[2] <= replica[0][2] for row in other):
            # Not a continuation of what was saved: that must not be lost.
            event("resync to older rows")
            self.do_quiet()
            assert self.lineage() == lineage + 1

    def do_resync(self, ours: Any, theirs: Any, beats: int, seconds: float) -> None:
        """A split in which both parts write, and its end."""
        self.do_split()
        self.do_changes(ours)
        self.run(seconds)
        self.do_leader(theirs)
        self.do_heal(beats)

    def do_rollback(self, since: Any, beats: int, restarted: bool) -> None:
        """The cluster goes back to what it was: everything older, the root version too."""
        old = self.w.rows()
        self.do_changes(since)
        self.do_heartbeat(beats, 0.3)
        if old[0][2] == self.w.version:
            return
        self.do_quiet()
        event("rollback")
        lineage = self.lineage()
        if restarted:
            self.stop_daemon()
            self.final_save()
            self.start_daemon()
        saved = table(Path(self.paths.replica))[0][2]
        self.w.become(old)
        self.do_quiet()
        # A lag of heartbeats is no history: the saved state itself must have been ahead.
        assert self.lineage() == lineage + (saved > old[0][2])

    def do_swap(self, name: str) -> None:
        """The daemon comes back with other data under the same version, as after an edit elsewhere."""
        row = self.w.rows().get(self.w.find(name) or 0)
        if row is None or not row[7]:
            return
        self.stop_daemon()
        self.final_save()
        database = sqlite3.connect(self.paths.live_db)
        database.execute("UPDATE tree SET data=? WHERE inode=?", (b"?" * len(row[7]), row[0]))
        database.commit()
        database.close()
        self.start_daemon()
        # Only a look at all data shows it, and the watcher takes one at once.
        self.run(0.3)

    def do_reboot(self, clean: bool) -> None:
        """All that is in RAM goes; what is on disk comes back."""
        if clean:
            self.watcher.finish()
        else:
            self.forget()
        self.watcher = None
        allowed, _ = self.allowed()
        last = self.state(self.w.rows())
        self.stop_daemon()
        if clean:
            self.final_save()
            self.command("final-save")
        for folder in (self.paths.live, self.paths.run):
            shutil.rmtree(folder)
            os.makedirs(folder)
        result = self.command("restore")
        assert result["clean"] is clean
        restored = self.state(table(Path(self.paths.live_db)))
        assert restored == last if clean else restored in allowed
        self.history.clear()
        self.start_daemon()
        self.start_watcher()

    # -- what must be so

    def do_quiet(self) -> None:
        """After a quiet period the replica is the live state, noise aside, and the watcher is content."""
        self.run(RPO + 1)
        replica, live = table(Path(self.paths.replica)), self.w.rows()
        assert self.state(replica) == self.state(live) == frozenset(r for i, r in replica.items() if i)
        assert 0 <= live[0][2] - replica[0][2] < LAG
        assert self.watcher.status["error"] is None and self.watcher.status["ready"]
        self.check_generations()

    def do_cut(self, wait: float, share: float) -> None:
        """Power fails: now, and in the middle of what the watcher writes next. What would come back?"""
        self.run(wait)
        before, cut = self.disk(), self.cut_until_now()
        self.check_restore(before, cut)
        for _ in range(12):
            self.run(0.25)
            after = self.disk()
            if after != before:
                # The former state is kept before the replica is written, everything else after it.
                lineage = self.watcher.store.lineage
                cut |= {n: kept for n, kept in self.cut_until_now().items() if kept < lineage}
                self.check_restore(cut_between(before, after, share), cut)
                break
            cut = self.cut_until_now()

    def cut_until_now(self) -> dict[str, int]:
        """Lineages of the generations by name."""
        return {g.name: g.manifest["lineage"] for g in self.ps.generations(self.paths)}

    def disk(self) -> dict[str, bytes]:
        """config.db and its log as they stand."""
        found = {}
        for suffix in ("", "-wal"):
            file = Path(self.paths.replica + suffix)
            if file.exists():
                found[suffix] = file.read_bytes()
        return found

    def check_restore(self, files: dict[str, bytes], generations: Iterable[str]) -> None:
        """Boot from a store with these files and generations. Nothing but the disk is left."""
        paths = self.ps.Paths(str(self.root / "boot"))
        shutil.rmtree(paths.root, ignore_errors=True)
        os.makedirs(paths.store)
        os.makedirs(paths.live)
        for suffix, data in files.items():
            Path(paths.replica + suffix).write_bytes(data)
        shutil.copy(self.paths.state_file, paths.state_file)
        os.mkdir(paths.generations)
        for name in generations:
            for suffix in (".db", ".json"):
                if os.path.exists(f"{self.paths.generations}/{name}{suffix}"):
                    os.link(f"{self.paths.generations}/{name}{suffix}", f"{paths.generations}/{name}{suffix}")
        result = self.ps.restore_boot(paths, self.config)
        restored = table(Path(paths.live_db))
        allowed, root = self.allowed()
        assert self.state(restored) in allowed
        assert root - restored[0][2] < LAG
        assert result["clean"] is False and result["advance_to"] > root

    def check_generations(self) -> None:
        """Every former state is there, verified, and no generation is ever written over."""
        found = self.ps.generations(self.paths)
        assert 1 <= len(found) <= KEEP
        now = {}
        for g in found:
            assert g.problems() == []
            now[g.name] = g.manifest["sha256"]
            assert self.generations.get(g.name, now[g.name]) == now[g.name]
        self.generations = now
        kept = [frozenset(table(Path(g.db)).values()) for g in found]
        lineages = [g.manifest["lineage"] for g in found]
        for lineage, former in self.former:
            assert former in kept or sum(other > lineage for other in lineages) == KEEP
        assert not list(Path(self.paths.generations).glob(".*"))


def cut_between(before: dict[str, bytes], after: dict[str, bytes], share: float) -> dict[str, bytes]:
    """The files when power failed part of the way: the log is written in order, then config.db page by page."""
    if before.get("") == after.get("") and "-wal" in after:
        log, old = after["-wal"], before.get("-wal", b"")
        at = int(share * len(log))
        return {**after, "-wal": log[:at] + old[at:]}
    if before.get("-wal") == after.get("-wal") and "" in before:
        at = int(share * len(after[""]) / 4096) * 4096
        return {**after, "": after[""][:at] + before[""][at:]}
    return after


# Few names, so that operations meet. Some are noise by themselves, some by what is above them.
FOLDERS = ["", "nodes/pve1", "priv/lock", "sdn", "sdn.tmp.12"]
NAMES = ["x", "y", "lrm_status", "x.tmp.7"]
path = st.builds(lambda f, n: f"{f}/{n}".strip("/"), st.sampled_from(FOLDERS), st.sampled_from(NAMES))
operation = st.one_of(
    st.tuples(st.just("write"), path, st.sampled_from([b"", b"1", b"2", b"long" * 2000])),
    st.tuples(st.just("rename"), path, path),
    st.tuples(st.just("rename"), st.sampled_from(FOLDERS[1:]), st.sampled_from(FOLDERS[1:] + NAMES)),
    st.tuples(st.just("delete"), path, st.just(b"")),
)
some = st.lists(operation, max_size=4)
pause = st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.3, 1.1])
changes = st.tuples(st.just("changes"), st.lists(operation, min_size=1, max_size=6))
resync = st.tuples(
    st.just("resync"), some, changes.map(lambda c: c[1]), st.integers(2, 12), st.sampled_from([0.3, 3.0])
)
step = st.one_of(
    changes,
    changes,
    resync,
    resync,
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.25, 0.6, 1.2, 1.9, 2.1, 5.0])),
    st.tuples(st.just("heartbeat"), st.integers(1, 25), pause),
    st.tuples(st.just("lock"), pause),
    st.tuples(st.just("burst"), st.integers(1, 60), pause),
    st.tuples(st.just("clock"), st.sampled_from([-86400.0, -3600.0, -5.0, 5.0, 3600.0, 86400.0, 9e6])),
    st.tuples(st.just("restart_daemon"), pause),
    st.tuples(st.just("kill_watcher"), pause),
    st.tuples(st.just("restart_watcher"), pause),
    st.tuples(st.just("join"), st.booleans(), some),
    st.tuples(st.just("split")),
    st.tuples(st.just("leader"), some),
    st.tuples(st.just("heal"), st.integers(0, 20)),
    st.tuples(st.just("rollback"), some, st.integers(0, 2), st.booleans()),
    st.tuples(st.just("swap"), path),
    st.tuples(st.just("reboot"), st.booleans()),
    st.tuples(st.just("quiet")),
    st.tuples(st.just("cut"), pause, st.floats(0, 1)),
    st.tuples(st.just("cut"), pause, st.floats(0, 1)),
)


@pytest.fixture(scope="module")
def program() -> Any:
    """A copy of the program for this file alone: its clock, its mounts and its daemon are stand-ins."""
    return stand_ins()


@contextmanager
def made(ps: ModuleType, cost: float) -> Iterator[World]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        world = World(ps, Path(folder) / "node", cost)
        try:
            yield world
        finally:
            world.close()


def live_through(ps: ModuleType, cost: float, steps: list[tuple[Any, ...]]) -> None:
    with made(ps, cost) as world:
        for kind, *given in steps:
            world.step(kind, *given)
        world.do_quiet()
        world.do_cut(0, 0.5)


# Seconds that a look at a table takes: of some rows, of some thousands, of some ten thousands.
costs = st.sampled_from([0.0, 0.004, 0.04])


# To explain a failure takes minutes here and says nothing that the shrunken history does not.
phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


# Once went wrong: two states with one name in one second.
TWO_IN_A_SECOND = [
    step
    for name in ("x", "sdn/x", "sdn/y")
    for step in (("join", False, [("write", name, b"1")]), ("wait", 0.25))
]
# Once went wrong: what the stop of the daemon saved began a lineage that the waiting watcher did not know of.
LINEAGE_OF_A_STOP = [
    ("changes", [("write", "x", b"")]),
    ("wait", 0.05),
    ("join", False, []),
    ("join", False, []),
    ("resync", [], [("write", "y", b""), ("write", "x", b"")], 2, 0.3),
    ("join", False, []),
    ("resync", [], [("write", "x", b"")], 2, 0.3),
    ("changes", [("write", "x", b""), ("write", "x", b"")]),
    ("quiet",),
    ("reboot", False),
]
CLEAN_AFTER_A_STOP = [
    ("changes", [("write", "x", b"")]),
    ("wait", 0.05),
    ("join", False, []),
    ("join", False, []),
    ("resync", [], [("write", "x", b""), ("write", "x", b"")], 2, 0.3),
    ("join", False, []),
    ("changes", [("write", "x", b"")]),
    ("changes", [("write", "x", b"")]),
    ("resync", [], [("rename", "nodes/pve1", "nodes/pve1")], 2, 0.3),
    ("reboot", True),
]
# And what must never go missing from those that chance makes.
RESYNC = [("resync", [("write", "x", b"1")], [("write", "x", b"2")], 8, 3.0), ("cut", 0.0, 0.5)]
SWAP = [("swap", "x"), ("reboot", True), ("swap", "x"), ("reboot", False)]
# Before the watcher of the new daemon has looked at the data.
SWAP_AND_STOP = [
    ("wait", 0.1),
    ("swap", "x"),
    ("changes", [("write", "y", b"")]),
    ("restart_daemon", 0.0),
    ("reboot", False),
]
# More lineages than generations are kept.
MANY = [
    step
    for i in range(KEEP)
    for step in (("swap", "x"), ("quiet",), ("changes", [("write", "x", b"%d" % i)]))
]


@pytest.mark.slow
@settings(max_examples=50, phases=phases)
@example(0.0, TWO_IN_A_SECOND)
@example(0.0, LINEAGE_OF_A_STOP)
@example(0.0, CLEAN_AFTER_A_STOP)
@example(0.0, RESYNC)
@example(0.0, SWAP)
@example(0.0, SWAP_AND_STOP)
@example(0.0, MANY)
@given(costs, st.lists(step, min_size=3, max_size=20))
def test_any_history_cut_anywhere(program: ModuleType, cost: float, steps: list[tuple[Any, ...]]) -> None:
    live_through(program, cost, steps)


@pytest.mark.slow
@settings(max_examples=400 if "PVEGUARD_CAMPAIGN" in os.environ else 100, phases=phases)
@given(costs, st.lists(step, min_size=10, max_size=60))
def test_any_long_history_cut_anywhere(
    program: ModuleType, cost: float, steps: list[tuple[Any, ...]]
) -> None:
    live_through(program, cost, steps)


@pytest.mark.parametrize("cost", [0.0, 0.02])
def test_a_change_amid_heartbeats_is_saved_within_the_rpo(program: ModuleType, cost: float) -> None:
    """Whenever it comes between two looks at a large table, and although the database never rests."""
    late = []
    for phase in range(14):
        with made(program, cost) as world:
            world.do_heartbeat(4, 0.2)
            world.run(phase * 0.09)
            world.w.write("real.cfg", b"1")
            start, inode = world.clock.now, world.w.find("real.cfg")
            while inode not in table(Path(world.paths.replica)):
                world.do_heartbeat(1, 0.05)
            late.append(world.clock.now - start)
    assert max(late) <= RPO
