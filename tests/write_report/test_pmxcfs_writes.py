# SPDX-License-Identifier: Apache-2.0
"""Transactions and files, from a database that is really being written."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.writes import pmxcfs_writes, writer_counters

from .writing_node import WritingNode

SCHEMA = (
    "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT "
    "NULL, "
    "writer INTEGER NOT NULL, mtime INTEGER NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB)"
)


class Daemon:
    """Writes a database as the daemon does: one transaction and one version for each operation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.execute(SCHEMA)
        self.version = 10
        self.db.execute("INSERT INTO tree VALUES (0, 0, 10, 1, 0, 8, '__version__', NULL)")
        self.nodes = self.make(0, "nodes", 4)
        self.node = {name: self.make(self.nodes, name, 4) for name in ("pve1", "pve2")}
        self.status = {name: self.make(inode, "lrm_status") for name, inode in self.node.items()}

    def _write(self, sql: str, *values: object) -> None:
        self.version += 1
        self.db.execute("BEGIN")
        self.db.execute(sql.replace(":v", str(self.version)), values)
        self.db.execute("UPDATE tree SET version = ? WHERE inode = 0", (self.version,))
        self.db.execute("COMMIT")

    def make(self, parent: int, name: str, kind: int = 8, writer: int = 1) -> int:
        inode = self.version + 1
        self._write("INSERT INTO tree VALUES (?, ?, :v, ?, 0, ?, ?, 'x')", inode, parent, writer, kind, name)
        return inode

    def write(self, inode: int, writer: int = 1) -> None:
        self._write("UPDATE tree SET version = :v, writer = ? WHERE inode = ?", writer, inode)

    def heartbeat(self, name: str, writer: int = 1, upto: int = 3) -> None:
        """Create, write, rename over: three transactions."""
        inode = self.make(self.node[name], "lrm_status.tmp.123", writer=writer)
        if upto > 1:
            self.write(inode, writer)
        if upto > 2:
            self.finish(name, inode)

    def finish(self, name: str, inode: int) -> None:
        self.version += 1
        self.db.execute("BEGIN")
        self.db.execute("DELETE FROM tree WHERE inode = ?", (self.status[name],))
        self.db.execute(
            "UPDATE tree SET version = ?, name = 'lrm_status' WHERE inode = ?", (self.version, inode)
        )
        self.db.execute("UPDATE tree SET version = ? WHERE inode = 0", (self.version,))
        self.db.execute("COMMIT")
        self.status[name] = inode


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "db").mkdir()
    daemon = Daemon(tmp_path / "db" / "config.db")
    yield daemon
    daemon.db.close()


def no_sync(argv: Any, **_: Any) -> Result:
    if argv[0] == "cat":
        return Result(1, "", "cat: /etc/pve/.members: No such file or directory")
    assert argv[:2] == ["sync", "-f"]
    return Result(0, "", "")


def test_transactions_are_exact_and_heartbeats_are_attributed(daemon: Daemon) -> None:
    sampler = pmxcfs_writes.Sampler(str(daemon.path))
    sampler.sample()
    for _ in range(4):
        daemon.heartbeat("pve1", writer=1)
        daemon.heartbeat("pve2", writer=2)
        sampler.sample()
    config = daemon.make(daemon.node["pve1"], "config")
    daemon.write(config)
    sampler.sample()
    sampler.sample()
    assert sampler.transactions == 4 * 6 + 2
    assert sampler.files() == [
        {"path": "nodes/pve1/lrm_status", "writer": 1, "changes": 4, "transactions_at_least": 12},
        {"path": "nodes/pve2/lrm_status", "writer": 2, "changes": 4, "transactions_at_least": 12},
        {"path": "nodes/pve1/config", "writer": 1, "changes": 1, "transactions_at_least": 2},
    ]
    assert sampler.exact, "every transaction is explained"


CONF = """nodelist {
  node {
    name: pve1
    nodeid: 1
  }
  node {
    nodeid: 3
  }
  node {
    name: pve2
    nodeid: 2
  }
}
"""


def test_a_window_names_files_nodes_and_what_they_are_for(daemon: Daemon, tmp_path: Path) -> None:
    conf = daemon.make(0, "corosync.conf")
    daemon.db.execute("UPDATE tree SET data = ? WHERE inode = ?", (CONF.encode(), conf))

    def beat(_seconds: float) -> None:
        clock[0] += 1
        daemon.heartbeat("pve1", writer=1)
        daemon.heartbeat("pve2", writer=2)

    clock = [0.0]
    _, writes = pmxcfs_writes.observe(
        4, store=str(tmp_path), database=str(daemon.path), run=no_sync, clock=lambda: clock[0], sleep=beat
    )
    assert writes["attribution"] == "database" and writes["journal"] is None
    assert [
        (f["path"], f["node"], f["class"], f["transactions_at_least"], f["exact"]) for f in writes["files"]
    ] == [
        ("nodes/pve1/lrm_status", "pve1", "ha", 12, True),
        ("nodes/pve2/lrm_status", "pve2", "ha", 12, True),
    ]
    # Four seconds say nothing of a minute.
    assert writes["lrm_status_nodes"] == {"pve1": None, "pve2": None}
    assert writes["lrm_status_transactions_per_minute"] is None is writes["transactions_per_minute"]
    assert {each["transactions_per_minute"] for each in writes["classes"] + writes["writers"]} == {None}
    assert [(w["node_id"], w["node"], w["transactions"], w["exact"]) for w in writes["writers"]] == [
        (1, "pve1", 12, True),
        (2, "pve2", 12, True),
    ]
    assert writes["classes"][0]["label"] == "HA heartbeat (lrm_status)"


@pytest.mark.parametrize("phase", [0.5, 10.0, 31.0, 59.0])
@pytest.mark.parametrize("wanted", [5, 20, 59, 60, 61, 90, 120, 150])
def test_no_window_tells_another_rate_of_what_comes_once_a_minute(
    daemon: Daemon, tmp_path: Path, wanted: float, phase: float
) -> None:
    """Three nodes whose scheduler makes and removes two locks: 12 transactions a minute, whatever the window."""
    clock, tick = [0.0], [phase]

    def pass_time(seconds: float) -> None:
        clock[0] += seconds
        while tick[0] < clock[0]:
            tick[0] += 60
            for _ in range(6):
                lock = daemon.make(daemon.nodes, "file-jobs_cfg", 4)
                daemon._write("DELETE FROM tree WHERE inode = ?", lock)

    _, writes = pmxcfs_writes.observe(
        pmxcfs_writes.window_length(wanted),
        store=str(tmp_path),
        database=str(daemon.path),
        run=no_sync,
        clock=lambda: clock[0],
        sleep=pass_time,
    )
    minutes = -(-wanted // 60)
    if wanted < 60:
        assert writes["seconds"] == wanted and writes["transactions_per_minute"] is None
        assert writes["transactions"] == (12 if phase < wanted else 0)
    else:
        assert writes["seconds"] == 60 * minutes and writes["transactions"] == 12 * minutes
        assert writes["transactions_per_minute"] == 12
        assert sum(each["transactions_per_minute"] for each in writes["classes"]) == 12


def test_interleaved_heartbeats_are_explained_and_a_lock_is_not(daemon: Daemon) -> None:
    sampler = pmxcfs_writes.Sampler(str(daemon.path))
    sampler.sample()
    first = daemon.make(daemon.node["pve1"], "lrm_status.tmp.1", writer=1)
    second = daemon.make(daemon.node["pve2"], "lrm_status.tmp.2", writer=2)
    daemon.write(first, 1)
    daemon.write(second, 2)
    daemon.finish("pve1", first)
    daemon.finish("pve2", second)
    sampler.sample()
    assert [f["transactions_at_least"] for f in sampler.files()] == [3, 3] and sampler.exact
    lock = daemon.make(daemon.nodes, "lock", 4)
    daemon._write("DELETE FROM tree WHERE inode = ?", lock)
    sampler.sample()
    assert sampler.transactions == 8 and not sampler.exact
    assert [f["transactions_at_least"] for f in sampler.files()] == [3, 3]


def test_a_file_that_is_written_twice_between_samples_is_a_lower_bound(daemon: Daemon) -> None:
    config = daemon.make(daemon.node["pve1"], "config")
    sampler = pmxcfs_writes.Sampler(str(daemon.path))
    sampler.sample()
    daemon.write(config)
    daemon.write(config)
    sampler.sample()
    (file,) = sampler.files()
    assert file["transactions_at_least"] == 1 and not sampler.exact and sampler.transactions == 2


def test_names_of_nodes_are_never_guessed(daemon: Daemon) -> None:
    def members(text: str) -> Any:
        return lambda argv, **_: Result(0, text, "")

    names = pmxcfs_writes.node_names(str(daemon.path), run=members('{"nodename": "solo", "version": 0}'))
    assert names.of(1) == names.of(None) == "solo", "without a corosync.conf there is one node only"
    assert pmxcfs_writes.node_names(str(daemon.path), run=members("")).of(1) is None
    conf = daemon.make(0, "corosync.conf")
    daemon.db.execute("UPDATE tree SET data = ? WHERE inode = ?", (CONF.encode(), conf))
    names = pmxcfs_writes.node_names(str(daemon.path), run=members('{"nodename": "pve1"}'))
    assert [names.of(n) for n in (1, 2, 3, 4, None)] == ["pve1", "pve2", None, None, None]
    daemon.db.execute("UPDATE tree SET data = 'garbage {' WHERE inode = ?", (conf,))
    listed = '{"nodename": "pve1", "cluster": {"quorate": 1}, "nodelist": {"pve9": {"id": 9}}}'
    assert pmxcfs_writes.node_names(str(daemon.path), run=members(listed)).of(9) == "pve9"
    assert pmxcfs_writes.node_names(str(daemon.path), run=members('{"nodename": "pve1"}')).of(1) is None


def test_module_in_check_mode_switches_nothing(daemon: Daemon, tmp_path: Path, run_module: Any) -> None:
    result = run_module(
        "pmxcfs_writes",
        method="journal",
        window_seconds=0.1,
        store=str(tmp_path),
        database=str(daemon.path),
        _ansible_check_mode=True,
    )
    assert result["window"]["attribution"] == "database" and "check mode" in result["window"]["notes"][0]
    assert result["window"]["journal"] is None and not result["changed"]


def test_a_replacement_that_is_seen_halfway_counts_once(daemon: Daemon) -> None:
    sampler = pmxcfs_writes.Sampler(str(daemon.path))
    sampler.sample()
    daemon.heartbeat("pve1", upto=1)
    inode = daemon.version
    sampler.sample()
    daemon.write(inode)
    daemon.finish("pve1", inode)
    sampler.sample()
    assert sampler.transactions == 3
    assert [(f["path"], f["changes"]) for f in sampler.files()] == [("nodes/pve1/lrm_status", 1)]


def test_a_version_that_goes_back_is_unknown(daemon: Daemon) -> None:
    sampler = pmxcfs_writes.Sampler(str(daemon.path))
    sampler.sample()
    daemon.db.execute("UPDATE tree SET version = 3 WHERE inode = 0")
    sampler.sample()
    assert sampler.transactions is None


def test_a_window_on_a_live_database(daemon: Daemon, tmp_path: Path) -> None:
    """It lasts until there were thirty transactions and more."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.01):
            daemon.heartbeat("pve1")

    start = daemon.version
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        _, writes = pmxcfs_writes.observe(
            30.0,
            store=str(tmp_path),
            database=str(daemon.path),
            run=no_sync,
            clock=lambda: float(daemon.version - start),
            sleep=lambda _: time.sleep(0.02),
        )
    finally:
        stop.set()
        thread.join()
    assert 0 < writes["transactions"] <= daemon.version - start and writes["seconds"] >= 30
    (file,) = writes["files"]
    assert file["path"] == "nodes/pve1/lrm_status"
    # One heartbeat may be cut by either end of the window.
    assert (
        abs(file["transactions_at_least"] - writes["transactions"]) <= 3 + writes["unattributed_transactions"]
    )
    assert writes["lrm_status_nodes"].keys() == {"pve1"}


def test_an_idle_window_writes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    # The shared-memory file is left out: readers mark in it what they read, in pages the daemon keeps dirty
    # anyway.
    files = [daemon.path, Path(f"{daemon.path}-wal")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    names = sorted(daemon.path.parent.iterdir())
    _, writes = pmxcfs_writes.observe(
        0.2, store=str(tmp_path), database=str(daemon.path), sample_seconds=0.05, run=no_sync
    )
    assert writes["transactions"] == 0 and writes["files"] == []
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    assert sorted(daemon.path.parent.iterdir()) == names


def test_a_log_that_is_as_it_was_is_not_opened(daemon: Daemon) -> None:
    """Opening it changes its inode, for SQLite sets its owner as root; that would be written every few seconds."""
    log = Path(f"{daemon.path}-wal")
    sampler = pmxcfs_writes.Sampler(str(daemon.path))
    time.sleep(0.06)
    sampler.sample()
    opened = log.stat().st_ctime_ns
    for _ in range(3):
        time.sleep(0.02)
        sampler.sample()
    assert log.stat().st_ctime_ns == opened and sampler.transactions == 0
    daemon.write(daemon.status["pve1"])
    sampler.sample()
    assert sampler.transactions == 1


def test_changes_right_after_a_sample_are_seen_by_the_next(daemon: Daemon) -> None:
    """Whatever the clock of time stamps does: two writes within one tick, with a sample between them."""
    sampler = pmxcfs_writes.Sampler(str(daemon.path))
    sampler.sample()
    for number in range(300):
        if number % 30 == 0:
            time.sleep(0.055)
        daemon.write(daemon.status["pve1"])
        sampler.sample()
        assert sampler.transactions == number + 1
    assert sampler.exact


def test_a_database_that_nobody_has_open_is_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    daemon.db.close()
    files = sorted(path.name for path in daemon.path.parent.iterdir())
    with pytest.raises(PveguardError, match="not in use"):
        pmxcfs_writes.Sampler(str(daemon.path)).sample()
    result = pmxcfs_writes.measure(
        window_seconds=0.1, store=str(tmp_path), database=str(daemon.path), run=no_sync
    )
    assert result["window"]["transactions"] is None and "not in use" in result["window"]["notes"][-1]
    assert result["window"]["lrm_status_transactions_per_minute"] is None
    assert sorted(path.name for path in daemon.path.parent.iterdir()) == files


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.db").write_bytes(b"garbage" * 1000)
    (tmp_path / "config.db-shm").touch()
    with pytest.raises(PveguardError, match="cannot be read"):
        pmxcfs_writes.Sampler(str(tmp_path / "config.db")).sample()


def test_without_a_database_nobody_waits(tmp_path: Path) -> None:
    began = time.monotonic()
    result = pmxcfs_writes.measure(
        window_seconds=300, store=str(tmp_path), database=str(tmp_path / "none.db"), run=no_sync
    )
    assert time.monotonic() - began < 60
    assert result["window"] is None and result["counters"]["root_version"] is None


def test_when_a_window_is_observed(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where: dict[str, Any] = {"store": str(tmp_path), "database": str(daemon.path), "run": no_sync}
    monkeypatch.setattr(pmxcfs_writes.block_writes, "_machine", lambda root: "this-one")
    place = pmxcfs_writes.measure(**where)["counters"]["database"]["in_memory"]
    here, elsewhere = ("memory", "disk") if place else ("disk", "memory")
    assert pmxcfs_writes.measure(window_seconds=0.05, window_on=here, **where)["window"]
    assert pmxcfs_writes.measure(window_seconds=0.05, window_on=elsewhere, **where)["window"] is None
    assert pmxcfs_writes.measure(window_seconds=0.05, known_machine="this-one", **where)["window"] is None
    assert pmxcfs_writes.measure(window_seconds=0.05, known_machine="other", **where)["window"]


def test_what_the_caller_did_itself_is_not_counted(daemon: Daemon, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    pid.write_text(f"{os.getpid()}\n")
    where: dict[str, Any] = {"store": str(tmp_path), "database": str(daemon.path), "pid_file": str(pid)}
    last = pmxcfs_writes.measure(**where)["counters"]
    daemon.write(daemon.status["pve1"])
    begun = pmxcfs_writes.measure(**where)["counters"]
    for _ in range(5):
        daemon.write(daemon.status["pve1"])
    result = pmxcfs_writes.measure(previous=last, until=begun, **where)
    assert result["since"]["transactions"] == 1
    # The next report begins where this one ended.
    assert pmxcfs_writes.measure(previous=result["counters"], **where)["since"]["transactions"] == 0
    assert pmxcfs_writes.measure(previous=last, until={}, **where)["since"]["transactions"] == 6


def test_who_writes_to_the_drives_is_told_of_every_time(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a window, since an earlier call, and until the caller began; what an earlier release noted tells nothing."""
    node = WritingNode(tmp_path / "node")
    node.units(1000, pve_cluster=1000)
    readings = iter([node.reading(1000.0 + 60 * at, sda=4096 * at) for at in range(9)])
    monkeypatch.setattr(writer_counters, "reading", lambda *_, **__: next(readings))
    where: dict[str, Any] = {"store": str(tmp_path), "database": str(daemon.path)}
    first = pmxcfs_writes.measure(**where)["counters"]
    begun = pmxcfs_writes.measure(**where)["counters"]
    since = pmxcfs_writes.measure(previous=first, until=begun, **where)["since"]["league"]
    assert (since["total_bytes"], since["seconds"], since["since"]) == (4096, 60.0, "reading")
    former = {key: value for key, value in first.items() if key != "league"}
    assert pmxcfs_writes.measure(previous=former, **where)["since"]["league"] is None
    now, writes = pmxcfs_writes.observe(0.1, sample_seconds=0.05, run=no_sync, **where)
    assert writes["league"]["total_bytes"] == 4096 and writes["league"]["seconds"] == writes["seconds"]
    assert now["league"]["disks"] == [["sda", "1", 4096 * 5]]


def test_module_counts_since_an_earlier_call_without_waiting(
    daemon: Daemon, tmp_path: Path, run_module: Any
) -> None:
    pid = tmp_path / "pid"
    pid.write_text(f"{os.getpid()}\n")
    where = {"store": str(tmp_path), "database": str(daemon.path), "pid_file": str(pid)}
    first = run_module("pmxcfs_writes", **where)
    assert (
        first["counters"]["root_version"] == daemon.version
        and first["since"] is None
        and first["window"] is None
    )
    daemon.heartbeat("pve1")
    later = run_module("pmxcfs_writes", previous=first["counters"], **where)
    assert later["since"]["transactions"] == 3 and not later["changed"]
    restarted = {**first["counters"], "pmxcfs": {"pid": 1, "start_ticks": 1, "write_bytes": 0}}
    assert run_module("pmxcfs_writes", previous=restarted, **where)["since"]["transactions"] is None
    replaced = {**first["counters"], "root_version": 10**9}
    since = run_module("pmxcfs_writes", previous=replaced, **where)["since"]
    assert since["transactions"] is None and "went back" in since["notes"][-1]


def test_module_refuses_times_without_sense(run_module: Any) -> None:
    assert run_module("pmxcfs_writes", window_seconds=-1)["failed"]
