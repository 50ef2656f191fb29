# SPDX-License-Identifier: Apache-2.0
"""The replica: equal to the live table after any history, and never worse than before."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import ROOT, Node, Writer, fill, table, without


def save(ps: ModuleType, node_paths: Any, config: Any, store: Any, **options: Any) -> dict[str, Any]:
    return dict(ps.save(store, **options))


FOLDERS = ["", "priv", "priv/lock", "nodes/pve1", "nodes/pve1/qemu-server", "ha", "a.tmp.12", "sdn"]
NAMES = ["x", "y", "lrm_status", "manager_status", "z.tmp.7", "100.conf", "file-jobs_cfg"]
path = st.builds(lambda f, n: f"{f}/{n}".strip("/"), st.sampled_from(FOLDERS), st.sampled_from(NAMES))
operation = st.one_of(
    st.tuples(st.just("write"), path, st.binary(max_size=20)),
    st.tuples(st.just("mkdir"), path, st.just(b"")),
    st.tuples(st.just("rename"), path, path),
    st.tuples(st.just("rename"), st.sampled_from(FOLDERS[1:]), path),
    st.tuples(st.just("delete"), path, st.just(b"")),
    st.tuples(st.just("save"), st.just(""), st.just(b"")),
)


def perform(writer: Writer, kind: str, name: str, other: Any) -> None:
    """Do an operation when a file system would allow it."""
    rows = writer.rows()
    inode = writer.find(name)
    if kind == "write":
        folder = name
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            above = writer.find(folder)
            if above is not None and rows[above][5] != 4:
                return
        if inode is None or rows[inode][5] == 8:
            writer.write(name, other)
    elif kind == "mkdir":
        perform(writer, "write", f"{name}/.keep", b"") if inode is None else None
    elif kind == "delete" and inode and not any(r[1] == inode for r in rows.values()):
        writer.delete(name)
    elif kind == "rename" and inode and not f"{other}/".startswith(f"{name}/"):
        victim = writer.find(other)
        folder = other.rpartition("/")[0]
        above = writer.find(folder)
        if above is None or rows[above][5] != 4 or (victim is not None and rows[victim][5] != 8):
            return
        if victim is not None and rows[inode][5] != 8:
            return
        writer.rename(name, other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operation, max_size=40))
def test_replica_equals_live_after_any_history(ps: ModuleType, operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        paths = ps.Paths(folder)
        os.makedirs(paths.live)
        config = ps.Config({"max_version_lag": 5})
        writer = Writer(Path(paths.live_db))
        writer.write("storage.cfg", b"dir: local\n")
        store = ps.Store(paths, config)
        for operation in [*operations, ("save", "", b"")]:
            if operation[0] != "save":
                perform(writer, *operation)
                continue
            save(ps, paths, config, store)
            replica = {i: tuple(r) for i, r in table(Path(paths.replica)).items()}
            live = without(writer.rows(), config.noise.matches)
            root, live_root = replica.pop(0), live.pop(0)
            assert replica == live
            assert 0 <= live_root[2] - root[2] < config.max_lag
        save(ps, paths, config, store, exact=True)
        # No lineage is ever invented for one ordinary history that deletes no great part of it.
        store.close()
        problems, _ = ps.verify_database(paths.replica)
        assert problems == []
        assert not os.path.exists(paths.replica + "-wal")
        writer.close()


def test_noise_alone_costs_nothing_until_the_lag(ps: ModuleType, node: Node) -> None:
    node.start_daemon()
    fill(node.w)
    config = ps.Config({"max_version_lag": 20})
    store = ps.Store(node.paths, config)
    assert save(ps, node.paths, config, store)["saved"]
    before = table(Path(node.paths.replica))
    for i in range(6):
        node.w.write("nodes/pve1/lrm_status.tmp.12", b"%d" % i)
        node.w.rename("nodes/pve1/lrm_status.tmp.12", "nodes/pve1/lrm_status")
        node.w.mkdir("priv/lock/file-jobs_cfg")
        node.w.delete("priv/lock/file-jobs_cfg")
        if node.w.version - before[0][2] < 20:
            assert not save(ps, node.paths, config, store)["saved"]
    assert save(ps, node.paths, config, store)["saved"]
    after = table(Path(node.paths.replica))
    assert after.pop(0)[2] == node.w.version
    before.pop(0)
    assert after == before
    store.close()


def test_a_resync_with_lower_versions_is_seen_and_the_former_state_is_kept(
    ps: ModuleType, node: Node
) -> None:
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config)
    save(ps, node.paths, node.config, store)
    node.w.write("user.cfg", b"only in the second save\n")
    save(ps, node.paths, node.config, store)
    inode = node.w.find("storage.cfg")
    # The leader has the same inode with a lower version and other data, and a root version that is higher.
    node.w.db.execute("UPDATE tree SET version=1, data=? WHERE inode=?", (b"dir: other\n", inode))
    node.w.db.execute("UPDATE tree SET version=version+5 WHERE inode=0")
    result = save(ps, node.paths, node.config, store)
    assert result["lineage"] == 2
    kept = [g for g in ps.generations(node.paths) if g.manifest["reason"] == "before a new lineage"]
    assert len(kept) == 1 and not kept[0].problems() and kept[0].manifest["lineage"] == 1
    contents = [r[7] for r in table(Path(kept[0].db)).values()]
    assert b"dir: local\n" in contents and b"only in the second save\n" in contents
    assert table(Path(node.paths.replica))[inode][7] == b"dir: other\n"
    store.close()


def test_same_metadata_other_data_is_found_by_a_deep_save(ps: ModuleType, node: Node) -> None:
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config)
    save(ps, node.paths, node.config, store)
    inode = node.w.find("storage.cfg")
    node.w.db.execute("UPDATE tree SET data=? WHERE inode=?", (b"dir: LOCAL\n", inode))
    assert not save(ps, node.paths, node.config, store)["saved"]
    assert save(ps, node.paths, node.config, store, deep=True)["lineage"] == 2
    assert table(Path(node.paths.replica))[inode][7] == b"dir: LOCAL\n"
    store.close()


def test_an_empty_live_state_never_overwrites_the_replica(ps: ModuleType, node: Node) -> None:
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config)
    save(ps, node.paths, node.config, store)
    before = table(Path(node.paths.replica))
    node.w.db.execute("DELETE FROM tree WHERE inode<>0")
    node.w.db.execute("UPDATE tree SET version=version+1")
    result = save(ps, node.paths, node.config, store)
    assert not result["saved"] and "no file at all" in result["rescued"]["why"][0]
    assert table(Path(node.paths.replica)) == before
    store.close()


def test_bad_names_survive(ps: ModuleType, node: Node) -> None:
    node.start_daemon()
    fill(node.w)
    v = node.w.version + 1
    node.w._commit(
        ("INSERT INTO tree VALUES(?,0,?,1,1,8,CAST(? AS TEXT),?)", (v, v, b"caf\xe9", b"\x00\xff"))
    )
    store = ps.Store(node.paths, node.config)
    save(ps, node.paths, node.config, store)
    db = sqlite3.connect(node.paths.replica)
    assert db.execute("SELECT CAST(name AS BLOB), data FROM tree WHERE inode=?", (v,)).fetchone() == (
        b"caf\xe9",
        b"\x00\xff",
    )
    db.close()
    store.close()


def test_a_damaged_replica_is_set_aside_and_made_anew(ps: ModuleType, node: Node) -> None:
    node.start_daemon()
    fill(node.w)
    assert node.command("save", "--json") == 0
    replica = Path(node.paths.replica)
    replica.write_bytes(b"garbage" * 1000)
    assert node.command("save", "--json") == 0
    assert ps.verify_database(str(replica))[0] == []
    assert [p.read_bytes()[:7] for p in Path(node.paths.damaged).glob("*/config.db")] == [b"garbage"]


def test_a_damaged_live_table_is_not_saved(ps: ModuleType, node: Node) -> None:
    node.start_daemon()
    fill(node.w)
    assert node.command("save", "--json") == 0
    before = table(Path(node.paths.replica))
    v = node.w.version + 1
    node.w._commit(("INSERT INTO tree VALUES(?,0,?,1,1,8,'storage.cfg','')", (v, v)))
    assert node.command("save", "--json") == ps.EXIT_DAMAGED
    assert table(Path(node.paths.replica)) == before


def test_no_space_in_the_store(ps: ModuleType, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config)
    save(ps, node.paths, node.config, store)
    before = table(Path(node.paths.replica))
    store.connection.execute(
        f"PRAGMA max_page_count={store.connection.execute('PRAGMA page_count').fetchone()[0]}"
    )
    node.w.write("big", b"x" * 300_000)
    with pytest.raises(ps.StoreError, match="full"):
        save(ps, node.paths, node.config, store)
    assert table(Path(node.paths.replica)) == before
    assert not store.connection.in_transaction
    store.connection.execute("PRAGMA max_page_count=100000")
    assert save(ps, node.paths, node.config, store)["saved"]
    assert without(node.w.rows(), node.config.noise.matches) == table(Path(node.paths.replica))
    store.close()


def test_the_live_database_is_never_held_while_the_store_is_written(
    ps: ModuleType, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config)
    held: list[int] = []
    write = ps.Store.write

    def look(*arguments: Any) -> None:
        inode = os.stat(node.paths.live_db).st_ino
        held.append(sum(inode == os.stat(f"/proc/self/fd/{fd}").st_ino for fd in open_files()))
        write(*arguments)

    own = len([fd for fd in open_files() if os.stat(f"/proc/self/fd/{fd}").st_ino == os.stat(node.paths.live_db).st_ino])
    monkeypatch.setattr(ps.Store, "write", look)
    ps.save(store)
    assert held == [own]
    store.close()


def open_files() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def store_files(node: Node) -> dict[str, int]:
    """{name: inode} of the replica and what SQLite keeps beside it."""
    found = Path(node.paths.store).glob("config.db*")
    return {file.name: file.stat().st_ino for file in found}


def test_the_watchers_store_overwrites_its_log_in_place(ps: ModuleType, node: Node) -> None:
    """What makes a small save cheap: one log file of one length for good, and no index of it on the disk."""
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config, alone=True)
    save(ps, node.paths, node.config, store, checkpoint=False)
    files = store_files(node)
    assert set(files) == {"config.db", "config.db-wal"}
    length = os.path.getsize(node.paths.replica + "-wal")
    for turn in range(4):
        for i in range(5):
            node.w.write("datacenter.cfg", b"%d" % (turn * 5 + i) * 100)
            save(ps, node.paths, node.config, store, checkpoint=False)
        with ps.store_lock(node.paths):
            store.restart_log()
        assert store_files(node) == files
        assert os.path.getsize(node.paths.replica + "-wal") == length
    assert without(node.w.rows(), node.config.noise.matches) == table(Path(node.paths.replica))


def test_a_checkpointed_replica_is_whole_without_its_log(ps: ModuleType, node: Node, tmp_path: Path) -> None:
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config, alone=True)
    save(ps, node.paths, node.config, store, checkpoint=False)
    with ps.store_lock(node.paths):
        store.restart_log()
    (tmp_path / "alone.db").write_bytes(Path(node.paths.replica).read_bytes())
    assert table(tmp_path / "alone.db") == without(node.w.rows(), node.config.noise.matches)


def test_the_watchers_store_saves_beside_a_reader(ps: ModuleType, node: Node) -> None:
    """An operator with sqlite3: in the middle of a transaction, then after it, each sees whole states."""
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config, alone=True)
    save(ps, node.paths, node.config, store, checkpoint=False)
    reader = sqlite3.connect(node.paths.replica, isolation_level=None)
    reader.execute("BEGIN")
    before = reader.execute("SELECT * FROM tree").fetchall()
    node.w.write("datacenter.cfg", b"while somebody reads")
    assert save(ps, node.paths, node.config, store, checkpoint=False)["saved"]
    assert reader.execute("SELECT * FROM tree").fetchall() == before
    reader.execute("COMMIT")
    wanted = without(node.w.rows(), node.config.noise.matches)
    assert {r[0]: r for r in reader.execute("SELECT * FROM tree")} == wanted
    reader.close()
    node.w.write("datacenter.cfg", b"and alone again")
    assert save(ps, node.paths, node.config, store, checkpoint=False)["saved"]
    assert table(Path(node.paths.replica)) == without(node.w.rows(), node.config.noise.matches)


def test_another_save_between_two_of_the_watcher_is_seen(ps: ModuleType, node: Node) -> None:
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config, alone=True)
    save(ps, node.paths, node.config, store, checkpoint=False)
    node.w.write("datacenter.cfg", b"saved by hand")
    assert node.command("save", "--json") == 0
    with ps.store_lock(node.paths):
        assert store.rows()[node.w.find("datacenter.cfg")][ps.LENGTH] == len(b"saved by hand")
    assert not save(ps, node.paths, node.config, store, checkpoint=False)["saved"]


def test_a_lineage_and_a_clean_stop_that_another_process_noted_are_known(ps: ModuleType, node: Node) -> None:
    """The watcher waits for the next daemon while the stop of the last one saves in a process of its own."""
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config, alone=True)
    save(ps, node.paths, node.config, store, checkpoint=False)
    with ps.store_lock(node.paths), ps.Store(node.paths, node.config) as other:
        other.new_lineage("a join")
        other.update_state(clean=True)
        other.close()
    node.w.write("datacenter.cfg", b"1")
    assert save(ps, node.paths, node.config, store, checkpoint=False)["lineage"] == 2
    with ps.store_lock(node.paths):
        store.update_state(clean=False)
    assert (ps.Store(node.paths, node.config).lineage, ps.read_json(node.paths.state_file)["clean"]) == (2, False)
    assert ps.save(store, replaced="a join", exact=True)["lineage"] == 2
    node.w.write("datacenter.cfg", b"2")
    assert ps.save(store, replaced="a join")["lineage"] == 3


def test_the_replica_is_known_only_when_the_tick_of_its_time_stamp_is_over(
    ps: ModuleType, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may leave a file of the same length in the same tick of the clock that stamps files."""
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config, alone=True)
    save(ps, node.paths, node.config, store, checkpoint=False)
    stamp = Path(node.paths.replica + "-wal").stat().st_mtime_ns
    ticks = [stamp, stamp, stamp + 4_000_000]
    monkeypatch.setattr(ps.time, "clock_gettime_ns", lambda clock: ticks.pop(0) if ticks[1:] else ticks[0])
    store._rows = None
    with ps.store_lock(node.paths):
        store.rows()
    assert ticks == [stamp + 4_000_000]


def test_reading_the_replica_under_the_lock_leaves_no_trace(ps: ModuleType, node: Node) -> None:
    """`pve-state status` may be asked every minute; that must not cost the disk anything."""
    node.start_daemon()
    fill(node.w)
    store = ps.Store(node.paths, node.config, alone=True)
    save(ps, node.paths, node.config, store, checkpoint=False)
    files = [Path(node.paths.replica + suffix) for suffix in ("", "-wal")]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    with ps.store_lock(node.paths):
        rows = ps.read_only(node.paths.replica, ps.read_rows)
        assert rows.keys() == without(node.w.rows(), node.config.noise.matches).keys()
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before
    assert set(store_files(node)) == {"config.db", "config.db-wal"}


CHILD = """
import sys
sys.path.insert(0, {cores!r})
from pveguard.state import files, paths, replica, save, settings
paths, config = paths.Paths({root!r}), settings.Config()
alone = {alone}
store = replica.Store(paths, config, alone=alone)
print("ready", flush=True)
turn = 0
while True:
    save.save(store, exact=True, checkpoint=not alone)
    turn += 1
    if alone and turn % 3 == 0:
        with files.store_lock(paths):
            store.restart_log()
"""


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_a_save_killed_at_any_point_leaves_a_good_replica(ps: ModuleType, node: Node, alone: bool) -> None:
    node.start_daemon()
    fill(node.w)
    states = [without(node.w.rows(), node.config.noise.matches)]
    assert node.command("save", "--json") == 0
    for turn in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(cores=str(ROOT / "module_utils"), root=str(node.root), alone=alone)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
        end = time.monotonic() + 0.02 + 0.013 * turn
        i = 0
        while time.monotonic() < end:
            node.w.write(f"nodes/pve1/qemu-server/{200 + i % 7}.conf", os.urandom(30) * (1 + i % 200))
            states.append(without(node.w.rows(), node.config.noise.matches))
            i += 1
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        # What a boot would restore: one of the states that the live table went through, none mixed.
        node.stop_daemon()
        (node.live / "keep.db").write_bytes((node.live / "config.db").read_bytes())
        os.rename(node.live / "keep.db", node.root / "keep.db")
        node.mount()
        assert node.command("restore", "--json") == 0
        restored = table(node.live / "config.db")
        assert any(restored == state for state in states[-(i + 2) :]) or restored in states
        node.unmount()
        node.start_daemon()


@pytest.mark.parametrize("step", ["manifest", "unnamed manifest", "name", "directory"])
def test_power_that_fails_in_the_middle_of_a_generation(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Nothing that was left half way passes for a damaged generation, and it goes away by itself."""

    class PowerCut(BaseException):
        pass

    def cut(*_: Any) -> None:
        raise PowerCut

    ram_node.w.write("datacenter.cfg", b"x")
    before = {g.name for g in ps.generations(ram_node.paths)}
    with monkeypatch.context() as patch:
        if step == "manifest":
            patch.setattr(ps, "write_json", cut)
        elif step == "unnamed manifest":
            # Its temporary file stays as well: what has no power removes nothing.
            rename = os.rename
            patch.setattr(os, "rename", lambda a, b: cut() if str(b).endswith(".json") else rename(a, b))
            patch.setattr(os, "unlink", lambda path: None)
        elif step == "name":
            # Only the copy's own rename: the manifest has its name by then.
            rename = os.rename
            patch.setattr(os, "rename", lambda a, b: cut() if str(b).endswith(".db") else rename(a, b))
        else:
            fsync = ps.fsync_dir
            patch.setattr(
                ps, "fsync_dir", lambda path: cut() if path == ram_node.paths.generations else fsync(path)
            )
        with pytest.raises(PowerCut):
            ram_node.command("save", "--generation", "--json")
    if step == "unnamed manifest":
        assert any(".json." in path.name for path in Path(ram_node.paths.generations).iterdir())
    assert ram_node.command("verify", "--json") == 0
    assert before <= {g.name for g in ps.generations(ram_node.paths)}
    folder = Path(ram_node.paths.generations)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    ram_node.w.write("datacenter.cfg", b"y")
    assert ram_node.command("save", "--generation", "--json") == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{g.name}{suffix}" for g in ps.generations(ram_node.paths) for suffix in (".db", ".json")}
