# SPDX-License-Identifier: Apache-2.0
"""The watcher: every real change within the RPO, nothing for noise, no handle on a database that was replaced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .conftest import PROGRAM, Clock, Node, Writer, fill, left, prepare_files, table, without


def replica(node: Node) -> dict[int, tuple[Any, ...]]:
    return left(Path(node.paths.replica))


def live(node: Node) -> dict[int, tuple[Any, ...]]:
    return without(node.w.rows(), node.config.noise.matches)


def test_a_change_is_saved_and_checkpointed_and_then_nothing_is_written(clock: Clock, ram_node: Node) -> None:
    ram_node.w.write("datacenter.cfg", b"x")
    clock.run(2)
    assert replica(ram_node) == live(ram_node)
    clock.run(62)
    # Without its log the file is the whole state as well, a minute later.
    alone = ram_node.root / "alone.db"
    shutil.copyfile(ram_node.paths.replica, alone)
    assert table(alone) == live(ram_node)
    files = [Path(ram_node.paths.replica + suffix) for suffix in ("", "-wal")]
    before = [(f.stat().st_mtime_ns, f.stat().st_size) for f in files]
    saves = clock.watcher.status["saves"]
    for i in range(30):
        ram_node.w.write("nodes/pve1/lrm_status.tmp.1", b"%d" % i)
        ram_node.w.rename("nodes/pve1/lrm_status.tmp.1", "nodes/pve1/lrm_status")
        clock.run(1)
    assert clock.watcher.status["saves"] == saves
    assert [(f.stat().st_mtime_ns, f.stat().st_size) for f in files] == before


def test_a_burst_is_as_few_saves_as_the_rpo_allows(
    ps: ModuleType, clock: Clock, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save writes the growing file anew. At every moment, what a power cut would leave is not older than the RPO."""
    # A watcher whose saves take long begins more of them: by this clock they take no time, on however busy a machine.
    monkeypatch.setattr(ps, "time", SimpleNamespace(**{**vars(time), "monotonic": lambda: clock.now}))
    clock.watcher.save_seconds = clock.watcher.scan_seconds = 0.0
    saves = clock.watcher.status["saves"]
    written: list[tuple[float, int]] = []
    end = clock.now + 4
    while clock.now < end:
        length = 1 + len(written) * 512
        ram_node.w.write("big", b"x" * length)
        written.append((clock.now, length))
        clock.run(0.1)
        saved = max((len(row[7]) for row in replica(ram_node).values() if row[6] == "big"), default=0)
        lost = [at for at, length in written if length > saved]
        assert not lost or clock.now - lost[0] <= clock.watcher.config.rpo
    clock.run(2)
    assert clock.watcher.status["saves"] - saves <= 3
    assert replica(ram_node)[ram_node.w.find("big")] == live(ram_node)[ram_node.w.find("big")]


def test_a_slow_store_is_given_its_time(clock: Clock, ram_node: Node) -> None:
    """A save that took 0.6 s must begin so early that another one like it ends within the RPO."""
    clock.watcher.save_seconds = 0.6
    begun = clock.now
    saves = clock.watcher.status["saves"]
    while clock.watcher.status["saves"] == saves:
        ram_node.w.write("big", os.urandom(100))
        clock.run(0.1)
    assert clock.now - clock.watcher.poll - begun + 0.6 < clock.watcher.config.rpo


def test_a_member_that_leaves_saves_the_version(clock: Clock, ram_node: Node) -> None:
    ram_node.w.write("nodes/pve1/lrm_status", b"beat")
    clock.run(2)
    assert replica(ram_node)[0][2] < ram_node.w.version
    pve = Path(ram_node.paths.pve)
    for online in (1, 0):
        (pve / ".members").write_text(
            json.dumps({"cluster": {"quorate": 1}, "nodelist": {"a": {"online": 1}, "b": {"online": online}}})
        )
        clock.watcher.members.look()
    clock.run(1)
    assert replica(ram_node)[0][2] == ram_node.w.version


def test_a_replaced_database_is_let_go_and_begins_a_new_lineage(ps: ModuleType, clock: Clock, ram_node: Node) -> None:
    assert clock.watcher.following
    ram_node.stop_daemon()
    clock.run(0.5)
    assert not clock.watcher.following
    for file in ram_node.live.glob("config.db*"):
        file.unlink()
    clock.run(0.5)
    ram_node.start_daemon()
    ram_node.w.write("corosync.conf", b"totem {\n config_version: 1\n}\n")
    clock.run(2)
    # As in the seconds before the first sync: kept, but not over what the replica has.
    assert clock.watcher.store.lineage == 1 and "corosync.conf alone" in clock.watcher.status["error"]
    ram_node.w.write("storage.cfg", b"dir: of-the-cluster\n")
    clock.run(2)
    assert clock.watcher.store.lineage == 2 and clock.watcher.status["error"] is None
    assert replica(ram_node) == live(ram_node)
    kept = [g for g in clock.watcher.store.paths and ps.generations(clock.watcher.paths) if g.manifest["lineage"] == 1]
    assert kept and b"dir: local\n" in [r[7] for r in table(Path(kept[0].db)).values()]


def test_a_full_store_is_loud_retried_and_overwrites_nothing(
    ps: ModuleType, clock: Clock, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = replica(ram_node)

    def full(*_: Any) -> None:
        raise ps.StoreError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ps.Store, "write", full)
        ram_node.w.write("datacenter.cfg", b"y")
        clock.run(4)
        assert "full" in clock.watcher.status["error"]
        assert replica(ram_node) == before
    clock.run(10)
    assert clock.watcher.status["error"] is None
    assert replica(ram_node) == live(ram_node)


def test_an_error_goes_when_there_is_nothing_left_to_save(
    ps: ModuleType, clock: Clock, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that failed and then finds only noise has recovered as well."""

    def locked(*_: Any, **__: Any) -> Any:
        raise ps.Locked("planted")

    with monkeypatch.context() as patch:
        patch.setattr(ps, "store_lock", locked)
        ram_node.w.write("nodes/pve1/lrm_status", b"beat")
        clock.run(1)
        assert "planted" in clock.watcher.status["error"] and not clock.watcher.status["ready"]
    clock.run(3)
    assert clock.watcher.status["error"] is None and clock.watcher.status["ready"]


def test_a_generation_that_could_not_be_cut_is_cut_later(
    ps: ModuleType, clock: Clock, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the one from after the join, a member would have nothing that it may restore."""

    def full(*_: Any, **__: Any) -> Any:
        raise ps.StoreError("database or disk is full")

    before = len(ps.generations(clock.watcher.paths))
    with monkeypatch.context() as patch:
        patch.setattr(ps, "cut_generation", full)
        ram_node.w.write("corosync.conf", b"totem {\n config_version: 1\n}\n")
        clock.run(5)
        # The state itself is saved.
        assert replica(ram_node) == live(ram_node) and clock.watcher.status["error"] is None
    assert len(ps.generations(clock.watcher.paths)) == before
    clock.run(40)
    assert ps.generations(clock.watcher.paths)[0].manifest["mode"] == "member"
    assert ps.generations(clock.watcher.paths)[0].manifest["reason"] == "join"


def test_a_checkpoint_that_fails_stops_no_save_and_is_tried_again(
    ps: ModuleType, clock: Clock, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ps.StoreError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(ps.Store, "checkpoint", fails)
        ram_node.w.write("datacenter.cfg", b"1")
        clock.run(65)
        assert "planted" in clock.watcher.status["error"]
        ram_node.w.write("datacenter.cfg", b"2")
        clock.run(2)
        assert replica(ram_node) == live(ram_node)
        assert "planted" in clock.watcher.status["error"]
    clock.run(35)
    assert clock.watcher.status["error"] is None
    assert os.path.getsize(ram_node.paths.replica + "-wal") > 0
    copy = ram_node.root / "config.db"
    copy.write_bytes(Path(ram_node.paths.replica).read_bytes())
    assert b"2" in [row[7] for row in table(copy).values()]


def test_a_replica_that_goes_bad_is_set_aside_and_made_anew(clock: Clock, ram_node: Node) -> None:
    ram_node.w.write("datacenter.cfg", b"before")
    clock.run(2)
    path = Path(ram_node.paths.replica)
    Path(f"{path}-wal").unlink()
    path.write_bytes(b"garbage" * 1000)
    ram_node.w.write("datacenter.cfg", b"x")
    clock.run(10)
    assert clock.watcher.status["error"] is None
    assert replica(ram_node) == live(ram_node)
    kept = list(Path(ram_node.paths.damaged).glob("*/config.db"))
    assert [file.read_bytes()[:7] for file in kept] == [b"garbage"]


def test_nothing_of_the_live_database_is_open_between_two_looks(clock: Clock, ram_node: Node) -> None:
    """A handle on a database that is then removed, as a join does, would leave a stale log for the next one."""

    def mine() -> int:
        paths = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sum(path.startswith(ram_node.paths.live_db) for path in paths)

    before = mine()
    ram_node.w.write("datacenter.cfg", b"looked at")
    clock.run(3)
    assert clock.watcher.following and mine() == before
    assert replica(ram_node) == live(ram_node)


def test_another_daemon_is_met_as_by_a_new_watcher(clock: Clock, ram_node: Node) -> None:
    """What was saved under the former one may not be what this one began with: lineage and all are looked at anew."""
    Path(ram_node.paths.pid_file).write_text("1\n")
    clock.run(0.5)
    assert clock.watcher.over


def test_two_watchers(ps: ModuleType, ram_node: Node) -> None:
    with ps.Lock(f"{ram_node.paths.run}/watch.lock", "test", create=True):
        assert ram_node.command("watch", "--json") == ps.EXIT_LOCKED


def test_advance_after_an_unclean_restore(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B and C lost power at a saved version; what they write afterwards must outrank a member that stopped later."""
    ram_node.power_cut()
    assert ram_node.run(["systemctl", "start", "pve-cluster.service"]).rc == 0
    target = ps.read_json(ram_node.paths.restore_file)["advance_to"]
    watcher = ps.Watcher(ram_node.paths, ram_node.config)
    clock = Clock(watcher)
    clock.run(1)
    assert watcher.status["ready"] is False
    lock = f"{ram_node.paths.pve}/priv/lock/pveguard-{os.uname().nodename.partition('.')[0]}"

    real_mkdir = os.mkdir

    def mkdir(path: str, *rest: Any) -> None:
        if path == lock:
            ram_node.w.mkdir("priv/lock/pveguard")
        else:
            real_mkdir(path, *rest)

    watcher.members.state = (True, False, frozenset())
    watcher._advance()
    assert ram_node.w.version < target
    watcher.members.state = (True, True, frozenset())
    with monkeypatch.context() as patch:
        patch.setattr(ps.os, "mkdir", mkdir)
        patch.setattr(ps.os, "rmdir", lambda path: ram_node.w.delete("priv/lock/pveguard"))
        patch.setattr(ps.time, "sleep", lambda seconds: clock.run(0.5))
        watcher._advance()
    clock.run(2)
    assert ram_node.w.version >= target
    assert watcher.status["ready"] is True
    assert replica(ram_node)[0][2] >= target
    watcher.finish()


def test_a_directory_left_by_the_advance_is_no_obstacle(
    ps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "pveguard-a"
    lock.mkdir()
    ps.one_pair(str(lock))
    assert not lock.exists()
    ps.one_pair(str(lock))
    assert not lock.exists()
    real = os.mkdir

    def made_but_failed(path: str) -> None:
        real(path)
        raise PermissionError(13, "no quorum")

    monkeypatch.setattr(ps.os, "mkdir", made_but_failed)
    with pytest.raises(PermissionError):
        ps.one_pair(str(lock))
    assert not lock.exists()

    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ps.os, "rmdir", refused)
    with pytest.raises(PermissionError, match="no quorum; removed again: Permission denied"):
        ps.one_pair(str(lock))


def test_an_advance_that_others_finished_leaves_no_directory(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram_node.power_cut()
    assert ram_node.run(["systemctl", "start", "pve-cluster.service"]).rc == 0
    watcher = ps.Watcher(ram_node.paths, ram_node.config)
    lock = Path(f"{ram_node.paths.pve}/priv/lock/pveguard-{os.uname().nodename.partition('.')[0]}")
    lock.mkdir(parents=True)  # of a pair that was cut in two
    watcher.members.state = (True, True, frozenset())
    watcher.live_root = 10**9  # others raised it
    with monkeypatch.context() as patch:
        patch.setattr(ps.os, "rmdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "no quorum")))
        with pytest.raises(PermissionError):
            watcher._advance()
        assert watcher.advancing
    watcher._advance()
    assert not lock.exists() and not watcher.advancing


# -- the real thing, on a real tmpfs


@contextlib.contextmanager
def real_node(ps: ModuleType, root: Path) -> Iterator[Node]:
    node = Node(ps, root)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", ps.TMPFS_SOURCE, str(node.live)], check=True)
    try:
        prepare_files(node)
        Path(node.paths.drop_in_dir).mkdir(parents=True)
        Path(node.paths.drop_in).touch()
        yield node
    finally:
        node.stop_daemon()
        subprocess.run(["umount", "-l", str(node.live)], check=True)


def wait(condition: Callable[[], bool], seconds: float = 120.0, pause: float = 0.02) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "waited in vain"
        time.sleep(pause)


def watch(node: Node) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), "--root", str(node.root), "watch"], stderr=subprocess.DEVNULL
    )


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_the_watcher_as_a_process(ps: ModuleType, tmp_path: Path) -> None:
    with real_node(ps, tmp_path / "node") as node:
        assert node.start_daemon()
        fill(node.w)
        process = watch(node)
        try:

            def same() -> bool:
                # Beside the watcher, as an operator with sqlite3 would.
                try:
                    return table(Path(node.paths.replica)) == live(node)
                except sqlite3.OperationalError:
                    return False

            wait(same)
            for i in range(5):
                node.w.write(f"file{i}", os.urandom(100))
                wait(same)
            second = watch(node)
            assert second.wait(120) == ps.EXIT_LOCKED
            # Killed in the middle: the next one goes on.
            node.w.write("unsaved", b"1")
            process.kill()
            process.wait()
            process = watch(node)
            wait(same)
            node.w.write("last", b"1")
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
            assert same() and not os.path.exists(node.paths.replica + "-wal")
        finally:
            process.kill()
            process.wait()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_mount_facts_on_a_real_tmpfs(ps: ModuleType, tmp_path: Path) -> None:
    with real_node(ps, tmp_path / "node") as node:
        assert ps.is_ours(ps.live_mount(node.paths))
        assert ps.fill(node.paths)[0] == 64 * ps.MIB
        assert ps.resize_tmpfs(node.paths, 96 * ps.MIB)
        assert ps.fill(node.paths)[0] == 96 * ps.MIB
        options = {m[0]: m[3] for m in ps.mounts()}[node.paths.live]
        assert "size=98304k" in options


def test_the_writer_is_like_the_daemon(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "config.db")
    writer.write("a", b"1")
    assert writer.version == 2 and writer.find("a") == 2
    writer.close()
