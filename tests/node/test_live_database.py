# SPDX-License-Identifier: Apache-2.0
"""Reading a database beside its writer: consistent or taken again, and without a trace."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.node_program import Program
from ansible.module_utils.pveguard.cluster.cluster_member import PROGRAM as CLUSTER_MEMBER
from ansible.module_utils.pveguard.pmxcfs import live_database
from ansible.module_utils.pveguard.state.program import PVE_STATE

ROOT = Path(__file__).resolve().parents[2]


class Writer:
    """Another process that has a database open in WAL mode, as the daemon has."""

    PROGRAM = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL").fetchone()
db.execute("PRAGMA synchronous=NORMAL")
db.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)")
print("ready", flush=True)
for line in sys.stdin:
    if line == "end\\n":
        db.close()
        break
    exec(line)
    print("done", flush=True)
"""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer("ready")

    def _answer(self, wanted: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{wanted}\n"

    def do(self, statement: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        self._answer("done")

    def sql(self, statement: str) -> None:
        self.do(f"db.execute({statement!r}).fetchall()")

    def close(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.write("end\n")
            self.process.stdin.close()
            self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "with ? and # and %41"
    folder.mkdir()
    return folder / "config.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    made = Writer(path)
    yield made
    made.kill()


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


def traces(path: Path) -> list[tuple[Any, ...]]:
    """What any effect on the files would change; the time of access aside."""
    found = []
    for file in sorted(path.parent.iterdir()):
        seen = file.stat()
        found.append((file.name, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_mode))
    return found


def fill(writer: Writer, rows: int = 10) -> None:
    insert = "db.execute('INSERT INTO t(v) VALUES(?)', (b'x' * 100,))"
    writer.do(f"db.execute('BEGIN'); [{insert} for _ in range({rows})]; db.execute('COMMIT')")


@pytest.mark.parametrize(
    "state",
    ["log", "empty log", "checkpointed log", "log begun anew", "log gone", "never a log", "killed", "killed without its index"],
)
def test_every_state_of_the_files_is_read_and_left_as_it_is(path: Path, writer: Writer, state: str) -> None:
    fill(writer)
    if state == "empty log":
        writer.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    elif state == "checkpointed log":
        writer.sql("PRAGMA wal_checkpoint(PASSIVE)")
    elif state == "log begun anew":
        writer.sql("PRAGMA wal_checkpoint(RESTART)")
        # The index is begun anew before the log is: a transaction that is rolled back leaves it like that.
        writer.do("db.execute('BEGIN'); db.execute('INSERT INTO t(v) VALUES(1)'); db.execute('ROLLBACK')")
    elif state == "log gone":
        writer.close()
    elif state == "never a log":
        writer.sql("PRAGMA journal_mode=DELETE")
    elif state.startswith("killed"):
        writer.kill()
        if "index" in state:
            Path(f"{path}-shm").unlink()
    before = traces(path)
    assert live_database.look(str(path), count) == 10
    assert count(live_database.snapshot(str(path))) == 10
    # The way that is gone when looks are torn.
    assert live_database._copied(live_database._Files(str(path)), count) == 10
    assert traces(path) == before
    assert not list(Path("/dev/shm").glob(f"pveguard-{os.getpid()}-*"))


def test_an_empty_log_is_not_deleted_beneath_its_writer(path: Path, writer: Writer) -> None:
    """As unix-none with exclusive locking does: the writer then writes a log that nobody else can see."""
    fill(writer)
    writer.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    connection = live_database._open(str(path), f"vfs={live_database._VFS}")
    connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
    assert count(connection) == 10
    connection.close()
    assert Path(f"{path}-wal").exists()
    fill(writer)
    assert live_database.look(str(path), count) == 20


def test_the_log_beside_an_emptied_database_is_not_deleted(path: Path, writer: Writer) -> None:
    """All of the state is in it; SQLite takes it for a left-over."""
    fill(writer)
    os.truncate(path, 0)
    before = traces(path)
    with pytest.raises(live_database.Unreadable):
        live_database.look(str(path), count, seconds=0.5)
    assert traces(path) == before


def test_copies_of_those_who_were_killed_are_swept(
    path: Path, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(writer)
    monkeypatch.setattr(live_database, "_registered", False)
    monkeypatch.setattr(live_database, "MEMORY", (str(tmp_path),))
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, other = tmp_path / f"pveguard-{dead.pid}-00ff", tmp_path / f"pveguard-{os.getppid()}-00ff"
    for folder in (left, other):
        folder.mkdir()
        (folder / "config.db").write_bytes(b"keys")
    assert live_database.look(str(path), count) == 10
    assert not left.exists() and other.exists()


def test_a_log_that_is_missing_is_not_made(path: Path, writer: Writer) -> None:
    fill(writer)
    writer.close()
    connection = live_database._open(str(path), f"vfs={live_database._VFS}")
    connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
    with pytest.raises(sqlite3.OperationalError):
        count(connection)
    connection.close()
    assert [file.name for file in path.parent.iterdir()] == ["config.db"]


def test_no_lock_is_taken(path: Path, writer: Writer) -> None:
    fill(writer)
    inodes = {str(os.stat(f"{path}{suffix}").st_ino) for suffix in ("", "-wal", "-shm")}

    def locks(connection: sqlite3.Connection) -> list[str]:
        count(connection)
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return [" ".join(f) for f in lines if f[5].rpartition(":")[2] in inodes and f[4] == str(os.getpid())]

    assert live_database.look(str(path), locks) == []
    # It would be seen: an ordinary reader has one.
    other = sqlite3.connect(path)
    other.execute("BEGIN")
    assert locks(other)
    other.close()


def test_nothing_can_be_written_through_a_look(path: Path, writer: Writer) -> None:
    fill(writer)

    def write(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t(v) VALUES(1)")

    with pytest.raises(live_database.Unreadable, match="readonly"):
        live_database.look(str(path), write)
    assert live_database.look(str(path), count) == 10


def looked(path: Path, during: Callable[[int], None]) -> tuple[int, list[int]]:
    """Result of a look during which something happens, and what each call of the function saw."""
    seen: list[int] = []

    def function(connection: sqlite3.Connection) -> int:
        # The log is read by the first statement, pages of the database by the second.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        during(len(seen))
        seen.append(count(connection))
        return seen[-1]

    return live_database.look(str(path), function), seen


def test_what_is_appended_meanwhile_does_not_disturb(path: Path, writer: Writer) -> None:
    fill(writer)
    assert looked(path, lambda turn: fill(writer)) == (10, [10])


def test_a_checkpoint_of_what_came_meanwhile_is_a_torn_look(path: Path, writer: Writer) -> None:
    """The header of the log is the same before and after, and yet pages of the database are younger than the log was."""
    writer.do("db.execute('PRAGMA wal_autocheckpoint=0')")
    fill(writer)
    header = Path(f"{path}-wal").read_bytes()[:32]

    def during(turn: int) -> None:
        if turn == 0:
            fill(writer, 2000)
            writer.sql("PRAGMA wal_checkpoint(PASSIVE)")

    found, seen = looked(path, during)
    assert found == 2010 and len(seen) == 2
    assert Path(f"{path}-wal").read_bytes()[:32] == header


def test_a_log_that_is_begun_anew_meanwhile_is_a_torn_look(path: Path, writer: Writer) -> None:
    fill(writer)

    def during(turn: int) -> None:
        if turn == 0:
            writer.sql("PRAGMA wal_checkpoint(RESTART)")
            fill(writer)

    found, seen = looked(path, during)
    assert found == 20 and seen[-1] == 20


def test_a_database_that_is_replaced_meanwhile_is_a_torn_look(path: Path, writer: Writer, tmp_path: Path) -> None:
    fill(writer)
    other = tmp_path / "other.db"
    second = Writer(other)
    fill(second, 3)
    second.close()

    def during(turn: int) -> None:
        if turn == 0:
            writer.kill()
            for suffix in ("-wal", "-shm", ""):
                Path(f"{path}{suffix}").unlink()
            shutil.copy(other, path)

    found, seen = looked(path, during)
    assert found == 3 and len(seen) == 2


def test_after_three_torn_looks_a_checked_copy_is_read(path: Path, writer: Writer) -> None:
    fill(writer)

    turns = []

    def during(turn: int) -> None:
        turns.append(turn)
        writer.sql("PRAGMA wal_checkpoint(RESTART)")
        fill(writer)

    found, _ = looked(path, during)
    assert len(turns) == live_database.LOOKS_BEFORE_COPY + 1
    # The copy was of the moment before the fourth change.
    assert found == 10 + 10 * live_database.LOOKS_BEFORE_COPY


@pytest.mark.parametrize("begun_anew", [True, False])
def test_a_copy_between_whose_files_something_happens(
    path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch, begun_anew: bool
) -> None:
    """What is appended and copied into the database meanwhile is in the log; a log that was begun anew is not the same."""
    writer.sql("PRAGMA wal_autocheckpoint=0")
    fill(writer)
    writer.sql("PRAGMA wal_checkpoint(PASSIVE)")
    fill(writer)
    copy = live_database._copy
    copied: list[str] = []

    def slowly(source: str, target: str) -> None:
        copy(source, target)
        if not copied:
            # The first file of the first try is copied, the log is not.
            fill(writer, 500)
            writer.sql("PRAGMA wal_checkpoint(PASSIVE)")
            if begun_anew:
                # All of the log is in the database, so that it begins at its start again.
                fill(writer, 1)
        copied.append(source)

    monkeypatch.setattr(live_database, "_registered", False)
    monkeypatch.setattr(live_database, "_copy", slowly)

    def whole(connection: sqlite3.Connection) -> tuple[int, str]:
        return count(connection), connection.execute("PRAGMA integrity_check").fetchone()[0]

    assert live_database.look(str(path), whole) == (521 if begun_anew else 520, "ok")
    assert len(copied) == (4 if begun_anew else 2)


def test_a_failure_on_a_torn_state_is_not_told(path: Path, writer: Writer) -> None:
    fill(writer)
    turns = []

    def function(connection: sqlite3.Connection) -> int:
        turns.append(1)
        if len(turns) == 1:
            writer.sql("PRAGMA wal_checkpoint(RESTART)")
            fill(writer)
            raise ValueError("nonsense")
        return count(connection)

    assert live_database.look(str(path), function) == 20
    with pytest.raises(ValueError, match="of its own"):
        live_database.look(str(path), lambda connection: (_ for _ in ()).throw(ValueError("of its own")))


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b"x" * 8192), "not a database"),
        (lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 4096), "malformed"),
        (lambda path: Path(f"{path}-journal").write_bytes(b"x" * 512), "not finished"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_file(
    path: Path, writer: Writer, plant: Callable[[Path], None], said: str
) -> None:
    fill(writer)
    writer.close()
    plant(path)
    with pytest.raises(live_database.Unreadable, match=said) as failure:
        live_database.look(str(path), count, seconds=0.5)
    assert str(path) in str(failure.value)


def test_a_state_that_moves_too_fast_is_given_up_in_time(path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(writer)
    monkeypatch.setattr(live_database._Files, "torn", lambda files: True)
    monkeypatch.setattr(live_database._Files, "copy_torn", lambda files: True)
    with pytest.raises(live_database.Unreadable, match="faster"):
        live_database.look(str(path), count, seconds=0.2)


@pytest.mark.parametrize("without", ["vfs", "index"])
def test_without_a_vfs_of_its_own_copies_are_read(
    path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    fill(writer)
    monkeypatch.setattr(live_database, "_registered", False)
    before = traces(path)
    assert live_database.look(str(path), count) == 10
    assert traces(path) == before


def test_memory_that_is_full_is_said(path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(writer)
    monkeypatch.setattr(live_database, "_registered", False)
    monkeypatch.setattr(live_database, "MEMORY_RESERVE", 1 << 60)
    with pytest.raises(live_database.Unreadable, match="no room"):
        live_database.look(str(path), count)


def test_the_position_moves_with_each_transaction(path: Path, writer: Writer) -> None:
    fill(writer)
    before = live_database.position(str(path))
    assert live_database.position(str(path)) == before
    for step in ("UPDATE t SET v = 0", "PRAGMA wal_checkpoint(TRUNCATE)", "UPDATE t SET v = 1", "UPDATE t SET v = 2"):
        writer.sql(step)
        after = live_database.position(str(path))
        assert after != before, step
        before = after


def test_logs_are_merged_only_while_no_daemon_has_the_database(path: Path, writer: Writer) -> None:
    fill(writer)
    writer.kill()
    lock = path.parent / ".pmxcfs.lockfile"
    held = os.open(lock, os.O_RDWR | os.O_CREAT)
    ctypes.CDLL(None).flock(held, 2)
    before = traces(path)
    with pytest.raises(live_database.Running):
        live_database.merge_log(str(path), seconds=0.2)
    assert traces(path) == before
    os.close(held)
    live_database.merge_log(str(path))
    assert not Path(f"{path}-wal").exists() and live_database.look(str(path), count) == 10


@pytest.mark.slow
def test_looks_beside_a_writer_are_never_a_mixture(path: Path, writer: Writer) -> None:
    """Both rows are written in one transaction, in pages far from each other, with checkpoints all the time."""
    writer.sql("INSERT INTO t VALUES(1, 0)")
    writer.do("[db.execute('INSERT INTO t VALUES(?, ?)', (n, b'x' * 3000)) for n in range(2, 60)]")
    writer.sql("INSERT INTO t VALUES(60, 0)")
    writer.sql("PRAGMA wal_autocheckpoint=7")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            writer.do(
                "[(db.execute('BEGIN'), db.execute('UPDATE t SET v = v + 1 WHERE k IN (1, 60)'), db.execute('COMMIT'))"
                " for _ in range(200)]"
            )

    thread = threading.Thread(target=write)
    thread.start()
    looks: list[tuple[int, int]] = []

    def function(connection: sqlite3.Connection) -> tuple[int, int]:
        one = connection.execute("SELECT v FROM t WHERE k = 1").fetchone()[0]
        two = connection.execute("SELECT v FROM t WHERE k = 60").fetchone()[0]
        return one, two

    try:
        for number in range(2000):
            if number % 50:
                looks.append(live_database.look(str(path), function))
            else:
                copy = live_database.snapshot(str(path))
                looks.append(function(copy))
                assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        stop.set()
        thread.join(60)
    assert all(one == two for one, two in looks)
    # Later looks see later states, and there were many.
    assert looks == sorted(looks) and len({one for one, _ in looks}) > 10


#: Files that may open a database by themselves, and why. Everything else reads through the core.
OPENERS = {
    "module_utils/pveguard/pmxcfs/live_database.py": "the core",
    "module_utils/pveguard/gates/fsync_bench.py": "a database of its own, to measure a disk",
    "module_utils/pveguard/cluster/corosync_recover.py": "copies that it made",
    "module_utils/pveguard/state/rows.py": "replica, generations and staged copies",
    "module_utils/pveguard/cluster/join_node.py": "copies that it made",
    "bench/ram_subjects.py": "databases that it makes for a daemon; the replica",
    "bench/disk.py": "stores that were taken out of a disk",
    "bench/startup.py": "stores that it makes",
    "lab/cluster.py": "as pvecm: dumped while the daemon is stopped",
    "lab/packages/pve-cluster/root/usr/bin/pvecm": "dumped while the daemon is stopped",
    "lab/packages/pve-cluster/root/usr/lib/pve-cluster-lab/pmxcfs_lab/memdb.py": "the daemon itself",
}


def test_nothing_else_opens_a_database() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = set()
    for name in tracked:
        if name.startswith(("docs/", "tests/", "lab/tests/")) or name.endswith((".md", ".lock", ".json")):
            continue
        if (ROOT / name).is_dir():  # a link to a folder
            continue
        text = (ROOT / name).read_text(errors="replace")
        if re.search(r"sqlite3\.connect\(|^\W*sqlite3 -|sqlite3 [^ ]*config\.db", text, re.MULTILINE):
            found.add(name)
    assert found == set(OPENERS)


@pytest.mark.parametrize("program", [PVE_STATE, CLUSTER_MEMBER], ids=lambda program: program.name)
def test_programs_open_only_files_of_their_own_for_writing(program: Program) -> None:
    """The live database is named nowhere in what they open themselves."""
    modules = [ROOT / f"module_utils/pveguard/{name.replace('.', '/')}.py" for name in program.modules]
    own = "\n".join(path.read_text() for path in modules if path.name != "live_database.py")
    calls = [line.strip() for line in own.splitlines() if "connect(" in line and "def connect" not in line]
    assert calls and not [line for line in calls if "live_db" in line or "node.database" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle_of_opening_is_not_lost(
    path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """SQLite calls into Python there, and an exception out of a handler went nowhere: who was told to end went on."""
    fill(writer)

    class Told(Exception):
        pass

    def told(*_: object) -> None:
        raise Told

    quietly = live_database._read_quietly

    def struck(name: bytes) -> None:
        # To this thread, the only one in the programs; the workers of the tests have others.
        signal.pthread_kill(threading.get_ident(), number)
        quietly(name)

    monkeypatch.setattr(live_database, "_read_quietly", struck)
    former = signal.signal(number, told)
    try:
        with pytest.raises(Told):
            live_database.look(str(path), count)
    finally:
        signal.signal(number, former)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {number}


def test_a_look_leaves_no_time_of_access(tmp_path: Path) -> None:
    """The file system would write it to the disk, 16 KiB at each look after a write."""
    path = tmp_path / "config.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL").fetchone()
    writer.execute("CREATE TABLE t (a)")
    writer.execute("INSERT INTO t VALUES (1)")
    files = [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")]

    def times() -> list[int]:
        return [file.stat().st_atime_ns for file in files]

    def make_old() -> list[int]:
        for file in files:
            os.utime(file, ns=(0, file.stat().st_mtime_ns))
        return times()

    before = make_old()
    path.read_bytes()
    if times() == before:
        pytest.skip("no times of access on this file system")
    before = make_old()
    assert live_database.look(str(path), lambda connection: connection.execute("SELECT a FROM t").fetchone()) == (1,)
    assert times() == before
    writer.close()


def test_threads_register_one_way_of_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one of the same name left SQLite with a pointer to the first, which was freed: the process crashed."""
    made = []

    def register() -> None:
        made.append(1)
        started.wait(0.2)

    started = threading.Event()
    monkeypatch.setattr(live_database, "_registered", None)
    monkeypatch.setattr(live_database, "_register", register)
    threads = [threading.Thread(target=live_database._vfs) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
