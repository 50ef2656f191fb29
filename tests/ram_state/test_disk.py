# SPDX-License-Identifier: Apache-2.0
"""The store's disk: power that fails at any write, and writes that fail. What was saved comes back."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import Writer, fill, stand_ins, table, without
from .disk import ANY, SYNC, WRITE, Disk, crashes, put

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
Rows = dict[int, tuple[Any, ...]]
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
    ),
]


#: What the program said, as (level, message).
MESSAGES: list[tuple[str, str]] = []


@pytest.fixture(scope="module")
def program() -> Any:
    """A copy of the program of its own, on a node whose mounts are taken for granted."""
    pytest.importorskip("fuse", exc_type=OSError)
    found = stand_ins()
    found.log = lambda level, message: MESSAGES.append((level, message))
    found.daemon_pid = lambda paths: os.getpid()
    found.daemon_running = lambda paths: True
    return found


class Place:
    """A node below a folder; ``store`` is where its store lies."""

    def __init__(self, ps: Any, root: Path, store: Path | None = None) -> None:
        self.ps, self.root = ps, root
        self.paths = ps.Paths(str(root))
        self.config = ps.Config({"generations_keep": 5})
        for folder in (self.paths.live, self.paths.run, self.paths.drop_in_dir):
            os.makedirs(folder)
        Path(self.paths.drop_in).touch()
        os.makedirs(os.path.dirname(self.paths.store))
        if store is None:
            os.mkdir(self.paths.store)
        else:
            os.symlink(store, self.paths.store)

    def daemon(self) -> Writer:
        return Writer(Path(self.paths.live_db))

    def state(self, rows: Rows) -> Rows:
        return without(rows, self.config.noise.matches)

    def restored(self) -> Rows:
        """What a boot makes of the store."""
        self.ps.restore_boot(self.paths, self.config)
        return table(Path(self.paths.live_db))

    def saves(self, rows: Rows) -> None:
        """A store on which a save works, and which then holds these rows and nothing that looks damaged."""
        source = Path(f"{self.root}/source.db")
        writer = Writer(source)
        writer.db.execute("DELETE FROM tree")
        writer.db.executemany("INSERT INTO tree VALUES(?,?,?,?,?,?,?,?)", rows.values())
        live = self.paths.live_db
        self.paths.live_db = str(source)
        store = self.ps.Store(self.paths, self.config)
        self.ps.save(store, deep=True, exact=True)
        self.paths.live_db = live
        store.close()
        writer.close()
        assert table(Path(self.paths.replica)) == self.state(rows)
        arguments = self.ps.parser().parse_args(["verify"])
        assert self.ps.cmd_verify(self.paths, self.config, arguments)["good"]


@contextmanager
def disk_and_place(ps: Any) -> Iterator[tuple[Disk, Place]]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        disk = Disk(Path(folder))
        try:
            yield disk, Place(ps, Path(folder) / "node", disk.path)
        finally:
            disk.close()


def live_through(disk: Disk, place: Place, alone: bool) -> list[tuple[int, Rows]]:
    """Saves of every kind. Returns (number of changes on the disk when a save had returned, what was saved).

    ``alone`` as the watcher saves: the replica open for one save only, its log left there and overwritten in place.
    """
    ps, paths, config = place.ps, place.paths, place.config
    saved: list[tuple[int, Rows]] = []
    writer = place.daemon()
    fill(writer)
    store = ps.Store(paths, config, alone=alone)

    def save(**options: Any) -> None:
        ps.save(store, exact=True, **{"checkpoint": False, **options})
        saved.append((disk.count, place.state(writer.rows())))

    def checkpoint() -> None:
        with ps.store_lock(paths):
            if alone:
                store.restart_log()
            else:
                store.checkpoint()

    save()
    for size in (1024, 1030, 9000):
        writer.write("nodes/pve1/qemu-server/100.conf", b"x" * size)
        save()
    checkpoint()
    writer.write("priv/big", os.urandom(150_000))
    save()
    writer.delete("user.cfg")
    save()
    checkpoint()
    writer.write("corosync.conf", b"totem {\n config_version: 1\n}\n")
    save()
    old = writer.rows()
    writer.write("storage.cfg", b"new")
    save(checkpoint=True)
    # The cluster went back.
    writer.db.execute("DELETE FROM tree")
    writer.db.executemany("INSERT INTO tree VALUES(?,?,?,?,?,?,?,?)", old.values())
    save()
    for turn in range(4):
        writer.write("priv/authorized_keys", b"%d" % turn)
        save()
        with ps.store_lock(paths):
            ps.cut_generation(store.open(), paths, config, store.lineage, f"turn {turn}")
            if alone:
                store.release()
    store.update_state(clean=False)
    store.open()
    store.close()
    writer.write("storage.cfg", b"after a restart of the watcher")
    save()
    store.open()
    store.close()
    writer.close()
    return saved


def power_cuts(ps: Any, stride: int, by_chance: int, alone: bool) -> int:
    """Cut at every ``stride``-th change of the disk. Returns the number of states looked at."""
    looked = 0
    with disk_and_place(ps) as (disk, place):
        saved = live_through(disk, place, alone)
        changes = disk.changes()
        assert len(changes) == disk.count > 300
        for at, crash in crashes(changes):
            if at % stride:
                continue
            acknowledged = [rows for count, rows in saved if count <= at]
            under_way = [rows for count, rows in saved if count > at][:1]
            ways: list[tuple[random.Random | None, bool]] = [(None, True), (None, False)]
            ways += [(random.Random(f"{at}-{n}"), False) for n in range(by_chance)]
            for choose, all_written in ways:
                looked += 1
                with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                    boot = Place(ps, Path(folder))
                    put(crash.files(choose, all_written), Path(boot.paths.store))
                    try:
                        restored = boot.restored()
                    except ps.RestoreError:
                        # Right before the first save had returned, and never after it.
                        assert not acknowledged
                    else:
                        assert restored in acknowledged[-1:] + under_way, f"cut after change {at}"
                    if all_written or choose is None:
                        boot.saves(saved[-1][1])
    return looked


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_power_that_fails_at_any_write_of_the_store(program: Any, alone: bool) -> None:
    """At each of them in `make campaign`, at every sixth in CI."""
    stride = 1 if "PVEGUARD_CAMPAIGN" in os.environ else 6
    assert power_cuts(program, stride, 2, alone) > 1200 / stride


def rewritten(writer: Writer) -> None:
    """A change that begins a new lineage: generations are cut."""
    writer.db.execute("UPDATE tree SET version=1, data=? WHERE name='storage.cfg'", (b"x" * writer.version,))
    writer.db.execute("UPDATE tree SET version=version+1 WHERE inode=0")


def large(writer: Writer) -> None:
    writer.write("large", os.urandom(30_000))


FULL, READ_ONLY, SYNC_FAILS = (errno.ENOSPC, WRITE), (errno.EROFS, ANY), (errno.EIO, SYNC)


@pytest.mark.parametrize(
    ("what", "number", "kinds"),
    [
        pytest.param(large, *FULL, id="full"),
        pytest.param(rewritten, *READ_ONLY, id="read-only, new lineage", marks=pytest.mark.slow),
        pytest.param(rewritten, *FULL, id="full, new lineage", marks=pytest.mark.slow),
        pytest.param(large, *READ_ONLY, id="read-only", marks=pytest.mark.slow),
        pytest.param(large, *SYNC_FAILS, id="fsync fails", marks=pytest.mark.slow),
        pytest.param(rewritten, *SYNC_FAILS, id="fsync fails, new lineage", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fails_at_any_write(
    program: Any, what: Callable[[Writer], None], number: int, kinds: int
) -> None:
    """Loud, retried, nothing overwritten, the daemon not disturbed, and it recovers by itself."""
    ps = program
    with disk_and_place(ps) as (disk, place):
        writer = place.daemon()
        fill(writer)
        watcher = ps.Watcher(place.paths, place.config)
        now = 100.0

        def run(seconds: float) -> None:
            nonlocal now
            end = now + seconds
            while now < end:
                watcher.tick(now)
                now += watcher.poll

        def content(rows: Rows) -> Rows:
            """Without the root row: its version may lag."""
            return {i: row for i, row in place.state(rows).items() if i}

        def replica() -> Rows:
            return content(table(Path(place.paths.replica)))

        run(5)
        after = 0
        while True:
            before = replica()
            kept = {g.name: g.manifest["sha256"] for g in ps.generations(place.paths) if not g.problems()}
            assert before == content(writer.rows())
            MESSAGES.clear()
            what(writer)
            wanted = content(writer.rows())
            disk.fail(number, after=after, kinds=kinds)
            run(4)
            failed = watcher.status["error"]
            # The daemon goes on.
            writer.write("nodes/pve1/lrm_status", b"beat %d" % after)
            # What a boot would find now: the former state or the new one.
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                boot = Place(ps, Path(folder))
                put(files_of(disk.backing), Path(boot.paths.store))
                assert content(boot.restored()) in (before, wanted)
            if failed:
                assert not watcher.status["ready"]
                assert any(level == "error" for level, _ in MESSAGES)
            disk.heal()
            run(70)
            assert watcher.status["error"] is None and watcher.status["ready"]
            assert replica() == wanted
            found = {g.name: g for g in ps.generations(place.paths)}
            assert all(not g.problems() for g in found.values())
            # What could not be cut with its save was cut later.
            assert watcher.store.lineage in {g.manifest["lineage"] for g in found.values()}
            # No generation was written over; one may have been pruned for a newer one.
            for name, sha256 in kept.items():
                assert name not in found or found[name].manifest["sha256"] == sha256
            if not failed and after > 3 and not any(level == "error" for level, _ in MESSAGES):
                break
            after += 1
        assert after > 3
        watcher.finish()
        writer.close()


def files_of(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder but those that no boot reads."""
    return {
        f"/{path.relative_to(folder)}": None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if not path.name.endswith("-shm")
    }
