# SPDX-License-Identifier: Apache-2.0
"""The watcher as a process, with its store on a real ext4 that is full, read-only or broken, and a real tmpfs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.mounts import own_mounts

from .conftest import PROGRAM, Node, fill, table, without
from .test_watch import real_node, wait, watch

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
]
needs_ext4 = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4")
Rows = dict[int, tuple[Any, ...]]


@pytest.fixture(autouse=True)
def _own_mounts() -> Iterator[None]:
    with own_mounts():
        yield



class Ext4:
    """A small ext4 on a loop device, mounted where the store will be."""

    def __init__(self, image: Path, where: Path) -> None:
        self.image, self.where = image, where
        with open(image, "wb") as stream:
            stream.truncate(24 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
        subprocess.run(["tune2fs", "-O", "has_journal", "-J", "size=4", str(image)], check=True, stdout=-3)
        where.mkdir(parents=True, exist_ok=True)
        self.mount()

    def mount(self) -> None:
        options = "loop,noatime,errors=remount-ro"
        subprocess.run(["mount", "-o", options, str(self.image), str(self.where)], check=True)

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.where)], check=True)

    def umount(self) -> None:
        subprocess.run(["umount", str(self.where)], check=True)

    @property
    def device(self) -> str:
        found = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(self.where)], check=True, capture_output=True, text=True
        )
        return os.path.basename(found.stdout.strip())

    def fill_up(self) -> Path:
        """A file that leaves not one block."""
        ballast = self.where / "ballast"
        with open(ballast, "wb", buffering=0) as stream, contextlib.suppress(OSError):
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        stream.write(os.urandom(size))
        return ballast


@contextlib.contextmanager
def node_on_ext4(ps: ModuleType, folder: Path) -> Iterator[tuple[Node, Ext4]]:
    with real_node(ps, folder / "node") as node:
        disk = Ext4(folder / "disk.img", node.root / "var/lib/pveguard")
        try:
            assert node.start_daemon()
            fill(node.w)
            yield node, disk
        finally:
            subprocess.run(["umount", "-l", str(disk.where)], check=True)


@contextlib.contextmanager
def watching(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    # What a killed one left tells nothing about this one.
    Path(node.paths.watch_file).unlink(missing_ok=True)
    process = watch(node)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(120)


def content(node: Node, rows: Rows) -> Rows:
    """Configuration without the root row, whose version may lag."""
    return {i: row for i, row in without(rows, node.config.noise.matches).items() if i}


def saved(node: Node) -> bool:
    """Whether the replica holds what is live."""
    try:
        return content(node, table(Path(node.paths.replica))) == content(node, node.w.rows())
    except sqlite3.OperationalError:
        return False


def error_of(ps: ModuleType, node: Node) -> str:
    return str(ps.read_json(node.paths.watch_file).get("error") or "")


def works(ps: ModuleType, node: Node) -> bool:
    return saved(node) and not error_of(ps, node) and bool(ps.read_json(node.paths.watch_file).get("ready"))


def log_of(node: Node) -> tuple[int, int]:
    try:
        found = os.stat(node.paths.replica + "-wal")
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def serves(node: Node) -> None:
    """The daemon goes on: nobody holds its database."""
    for i in range(30):
        node.w.write(f"nodes/pve1/lrm_status.tmp.{i}", b"beat")
        node.w.rename(f"nodes/pve1/lrm_status.tmp.{i}", "nodes/pve1/lrm_status")


def restored(ps: ModuleType, node: Node, folder: Path) -> Rows:
    """What a boot makes of the store as it is, by the program itself, on a tmpfs of its own."""
    with real_node(ps, folder) as other:
        store = Path(other.paths.store)
        store.mkdir(parents=True)
        subprocess.run(["mount", "--bind", node.paths.store, str(store)], check=True)
        try:
            done = program(other, "restore")
            assert done.returncode == 0, done.stdout
            return content(node, table(Path(other.paths.live_db)))
        finally:
            subprocess.run(["umount", str(store)], check=True)


def program(node: Node, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-IS", str(PROGRAM), "--root", str(node.root), *argv, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_ext4
@pytest.mark.slow
def test_a_store_on_a_full_disk(ps: ModuleType, tmp_path: Path) -> None:
    with node_on_ext4(ps, tmp_path) as (node, disk), watching(node) as process:
        wait(lambda: works(ps, node))
        before = content(node, node.w.rows())
        kept = {p.name: p.read_bytes() for p in Path(node.paths.generations).iterdir()}
        ballast = disk.fill_up()
        node.w.write("nodes/pve1/qemu-server/200.conf", os.urandom(900_000))
        wait(lambda: "full" in error_of(ps, node))
        serves(node)
        assert process.poll() is None and not works(ps, node)
        assert restored(ps, node, tmp_path / "boot") == before
        assert {p.name: p.read_bytes() for p in Path(node.paths.generations).iterdir()} == kept
        ballast.unlink()
        wait(lambda: works(ps, node))
        assert {name: (Path(node.paths.generations) / name).read_bytes() for name in kept} == kept
        assert ended(process) == 0
        assert restored(ps, node, tmp_path / "boot2") == content(node, node.w.rows())


@needs_ext4
@pytest.mark.slow
def test_a_read_only_store(ps: ModuleType, tmp_path: Path) -> None:
    with node_on_ext4(ps, tmp_path) as (node, disk):
        with watching(node) as process:
            wait(lambda: works(ps, node))
            before = content(node, node.w.rows())
            assert ended(process) == 0
        disk.remount("ro")
        node.w.write("datacenter.cfg", b"1")
        with watching(node) as process:
            wait(lambda: "read" in error_of(ps, node))
            serves(node)
            assert process.poll() is None
            assert restored(ps, node, tmp_path / "boot") == before
            disk.remount("rw")
            wait(lambda: works(ps, node))
            assert ended(process) == 0


@needs_ext4
@pytest.mark.slow
def test_a_file_system_that_turns_read_only_on_an_error(ps: ModuleType, tmp_path: Path) -> None:
    """As ext4 does when the disk fails; it comes back only with a check and a new mount."""
    with node_on_ext4(ps, tmp_path) as (node, disk):
        trigger = Path(f"/sys/fs/ext4/{disk.device}/trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel cannot make ext4 fail")
        with watching(node) as process:
            wait(lambda: works(ps, node))
            before = content(node, node.w.rows())
            trigger.write_text("planted by a test")
            node.w.write("datacenter.cfg", b"1")
            wait(lambda: error_of(ps, node) != "")
            serves(node)
            assert process.poll() is None
            assert restored(ps, node, tmp_path / "boot") == before
            assert ended(process) == 0
        disk.umount()
        assert subprocess.run(["e2fsck", "-fy", str(disk.image)], stdout=-3, stderr=-3).returncode <= 1
        disk.mount()
        with watching(node) as process:
            wait(lambda: works(ps, node))
            assert ended(process) == 0
        assert restored(ps, node, tmp_path / "boot2") == content(node, node.w.rows())


@needs_ext4
@pytest.mark.slow
def test_a_watcher_killed_in_the_middle_of_large_saves(ps: ModuleType, tmp_path: Path) -> None:
    """The next one goes on, and at every kill a boot would have had one of the states that were live."""
    chance = random.Random(3)
    with node_on_ext4(ps, tmp_path) as (node, _):
        states = [content(node, node.w.rows())]

        def change() -> None:
            # Three transactions, of which none makes sense without the others' rows.
            for name in ("a", "b", "c"):
                node.w.write(f"nodes/pve1/qemu-server/{name}.cfg", chance.randbytes(700_000))
                states.append(content(node, node.w.rows()))

        for turn in range(14):
            with watching(node) as process:
                wait(lambda: works(ps, node))
                start = len(states) - 1
                before = log_of(node)
                change()
                # The save has begun when its log moves.
                wait(lambda before=before: log_of(node) != before, pause=0.001)
                time.sleep(0.003 * turn)
                process.kill()
                process.wait()
            assert restored(ps, node, tmp_path / f"boot{turn}") in states[start:]
            assert program(node, "verify").returncode == 0
        with watching(node) as process:
            wait(lambda: works(ps, node))
            assert ended(process) == 0
        left = {p.name for p in Path(node.paths.store).iterdir()}
        assert left == {"config.db", "generations", "state.json"}


def test_a_tmpfs_that_is_too_small(ps: ModuleType, tmp_path: Path) -> None:
    """Nothing is put there, the daemon does not start, and a larger limit is all that it takes."""
    source = Node(ps, tmp_path / "source")
    assert source.start_daemon()
    fill(source.w)
    source.w.write("priv/big", os.urandom(3_000_000))
    wanted = content(source, source.w.rows())
    with real_node(ps, tmp_path / "node") as node:
        live, node.paths.live_db = node.paths.live_db, source.paths.live_db
        store = ps.Store(node.paths, node.config)
        ps.save(store)
        store.close()
        node.paths.live_db = live
        source.stop_daemon()
        files = {p: p.read_bytes() for p in Path(node.paths.store).rglob("*") if p.is_file()}
        for limit in (1, 2):
            Path(node.paths.config).write_text(json.dumps({"tmpfs_mib": limit}))
            done = program(node, "restore")
            assert done.returncode == ps.EXIT_RESTORE
            assert f"holds {limit} MiB" in json.loads(done.stdout)["error"]
            assert not any(node.live.glob("*.db*")) and not any(node.live.glob(".pveguard-restore*"))
        # Room for the file, but not for what SQLite needs beside it.
        subprocess.run(["truncate", "-s", "2M", str(node.live / "in-the-way")], check=True)
        (node.live / "in-the-way").write_bytes(bytes(2 << 20))
        Path(node.paths.config).write_text(json.dumps({"tmpfs_mib": 4}))
        done = program(node, "restore")
        assert done.returncode == ps.EXIT_RESTORE and "No space left" in json.loads(done.stdout)["error"]
        assert [p.name for p in node.live.iterdir()] == ["in-the-way"]
        assert {p: p.read_bytes() for p in files} == files
        Path(node.paths.config).write_text("{}")
        assert program(node, "restore").returncode == 0
        assert content(node, table(Path(node.paths.live_db))) == wanted
        assert ps.fill(node.paths)[0] >= 256 * ps.MIB


def test_a_tmpfs_that_fills_up(
    ps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Enlarged long before the daemon's fatal end while there is memory, and a loud warning when there is none."""
    with real_node(ps, tmp_path / "node") as node:
        assert node.start_daemon()
        fill(node.w)
        watcher = ps.Watcher(node.paths, node.config)
        ballast = node.live / "ballast"
        ballast.write_bytes(bytes(40 * ps.MIB))
        watcher.tick(100.0)
        assert ps.fill(node.paths)[0] == 128 * ps.MIB and watcher.status["warnings"] == []
        total, _ = ps.memory()
        monkeypatch.setattr(ps, "memory", lambda: (total, 1))
        ballast.write_bytes(bytes(105 * ps.MIB))
        capsys.readouterr()
        watcher.tick(120.0)
        watcher.tick(140.0)
        assert ps.fill(node.paths)[0] == 128 * ps.MIB
        (warning,) = watcher.status["warnings"]
        assert "82 % full" in warning or "83 % full" in warning
        assert capsys.readouterr().err.count("the daemon stops working for good") == 1
        ballast.unlink()
        watcher.tick(160.0)
        assert watcher.status["warnings"] == []
        watcher.finish()
