# SPDX-License-Identifier: Apache-2.0
"""A small writer with the daemon's schema and pragmas, and a node made of directories."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.node_program import PVE_STATE_PATH
from tests.node_program import pve_state as load_program
from tests.served import link

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = PVE_STATE_PATH


def stand_ins() -> Any:
    """A copy of the program of its own, silent, on a node whose commands work and whose mounts are taken for granted."""
    found: Any = load_program()
    found.log = lambda level, message: None
    found.run = lambda argv, timeout=60.0: found.Result(0)
    found.live_mount = lambda paths: (paths.live, "tmpfs", found.TMPFS_SOURCE, "rw")
    found.fill = lambda paths: (1 << 30, 1 << 20)
    return found


@pytest.fixture(scope="session")
def ps() -> ModuleType:
    return load_program()


class Writer:
    """What the daemon does to its database: one transaction per change, the root version one higher each time."""

    def __init__(self, path: Path, node: int = 1) -> None:
        self.path = path
        self.node = node
        new = not path.exists()
        self.db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL").fetchone()
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS tree (inode INTEGER PRIMARY KEY NOT NULL,"
            " parent INTEGER NOT NULL CHECK(typeof(parent)=='integer'),"
            " version INTEGER NOT NULL CHECK(typeof(version)=='integer'),"
            " writer INTEGER NOT NULL CHECK(typeof(writer)=='integer'),"
            " mtime INTEGER NOT NULL CHECK(typeof(mtime)=='integer'),"
            " type INTEGER NOT NULL CHECK(typeof(type)=='integer'), name TEXT NOT NULL, data BLOB)"
        )
        if new or not self.db.execute("SELECT 1 FROM tree").fetchone():
            self.db.execute("INSERT INTO tree VALUES(0,0,1,0,1000,4,'__version__',NULL)")

    @property
    def version(self) -> int:
        return int(self.db.execute("SELECT version FROM tree WHERE inode=0").fetchone()[0])

    def _commit(self, *statements: tuple[str, tuple[Any, ...]]) -> int:
        version = self.version + 1
        self.db.execute("BEGIN IMMEDIATE")
        for sql, values in statements:
            self.db.execute(sql, values)
        self.db.execute("UPDATE tree SET version=?, mtime=? WHERE inode=0", (version, 1000 + version))
        self.db.execute("COMMIT")
        return version

    def find(self, path: str) -> int | None:
        inode = 0
        for name in filter(None, path.split("/")):
            row = self.db.execute(
                "SELECT inode FROM tree WHERE parent=? AND name=? AND inode<>0", (inode, name)
            ).fetchone()
            if row is None:
                return None
            inode = row[0]
        return inode

    def _place(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        parent = self.find(folder)
        if parent is None:
            self.mkdir(folder)
            parent = self.find(folder)
            assert parent is not None
        return parent, name

    def mkdir(self, path: str) -> None:
        if self.find(path) is not None:
            return
        parent, name = self._place(path)
        v = self.version + 1
        self._commit(("INSERT INTO tree VALUES(?,?,?,?,?,4,?,NULL)", (v, parent, v, self.node, v, name)))

    def write(self, path: str, data: bytes) -> None:
        parent, name = self._place(path)
        inode = self.find(path)
        v = self.version + 1
        if inode is None:
            self._commit(
                ("INSERT INTO tree VALUES(?,?,?,?,?,8,?,?)", (v, parent, v, self.node, v, name, data))
            )
        else:
            self._commit(
                (
                    "UPDATE tree SET data=?, version=?, writer=?, mtime=? WHERE inode=?",
                    (data, v, self.node, 1000 + v, inode),
                )
            )

    def rename(self, old: str, new: str) -> None:
        inode, victim = self.find(old), self.find(new)
        assert inode is not None
        parent, name = self._place(new)
        v = self.version + 1
        statements: list[tuple[str, tuple[Any, ...]]] = []
        if victim is not None:
            statements.append(("DELETE FROM tree WHERE inode=?", (victim,)))
        statements.append(
            (
                "UPDATE tree SET parent=?, name=?, version=?, writer=? WHERE inode=?",
                (parent, name, v, self.node, inode),
            )
        )
        self._commit(*statements)

    def delete(self, path: str) -> None:
        inode = self.find(path)
        assert inode is not None
        self._commit(("DELETE FROM tree WHERE inode=?", (inode,)))

    def rows(self) -> dict[int, tuple[Any, ...]]:
        return {r[0]: r for r in self.db.execute("SELECT * FROM tree")}

    def close(self) -> None:
        self.db.close()


def table(path: Path) -> dict[int, tuple[Any, ...]]:
    """All rows with data of a database file, read the plain way."""
    db = sqlite3.connect(path)
    try:
        return {r[0]: r for r in db.execute("SELECT * FROM tree")}
    finally:
        db.close()


def left(path: Path) -> dict[int, tuple[Any, ...]]:
    """All rows that a power cut now would leave of a database with its log. From a copy: whoever opens the replica itself
    folds its log in, and the watcher has it locked during a save.
    """
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            if os.path.exists(f"{path}{suffix}"):
                shutil.copyfile(f"{path}{suffix}", f"{folder}/config.db{suffix}")
        return table(Path(folder) / "config.db")


def without(rows: dict[int, tuple[Any, ...]], noisy: Any) -> dict[int, tuple[Any, ...]]:
    """Rows that are configuration, by an independent, slow reading of the rules. ``noisy(path)`` decides."""

    def path(inode: int) -> str:
        names = []
        while inode:
            names.append(rows[inode][6])
            inode = rows[inode][1]
        return "/".join(reversed(names))

    return {i: row for i, row in rows.items() if i == 0 or not noisy(path(i))}


class Node:
    """Directories instead of mounts, a writer instead of the daemon, and a fake of the commands pve-state runs."""

    def __init__(self, ps: ModuleType, root: Path) -> None:
        self.ps = ps
        self.root = root
        self.paths = ps.Paths(str(root))
        self.config = ps.Config({"deadline_seconds": 5})
        self.live = Path(self.paths.live)
        for folder in (self.live, root / "etc/pve", root / "run", root / "usr/bin", root / "etc/pveguard"):
            folder.mkdir(parents=True)
        (root / "usr/bin/pmxcfs").touch()
        self.ram = False
        self.fail: set[str] = set()
        self.calls: list[list[str]] = []
        self.writer: Writer | None = None
        self.lock_fd = -1
        self.members: dict[str, Any] = {"nodename": "pve1", "version": 0}
        self.beneath = Path(f"{self.paths.live}.beneath")
        self.start_sees: list[bytes] = []
        #: Timers that run.
        self.timers: set[str] = set()
        #: {unit: properties that systemd shows instead of those of a unit that simply runs}
        self.shown: dict[str, dict[str, str]] = {}

    # -- the daemon

    def start_daemon(self) -> bool:
        path = self.live / "config.db"
        head = path.read_bytes()[:16] if path.exists() else b""
        self.start_sees.append(head)
        if head and not head.startswith(b"SQLite"):
            return False
        self.lock_fd = os.open(self.paths.daemon_lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock_fd, fcntl.LOCK_EX)
        self.writer = Writer(path)
        Path(self.paths.pid_file).write_text(f"{os.getpid()}\n")
        return True

    def stop_daemon(self, clean: bool = True) -> None:
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        os.close(self.lock_fd)
        Path(self.paths.pid_file).unlink()

    @property
    def w(self) -> Writer:
        assert self.writer is not None
        return self.writer

    # -- the RAM file system

    def mount(self) -> None:
        if not self.ram:
            self.live.rename(self.beneath)
            self.live.mkdir()
            self.ram = True

    def unmount(self) -> None:
        if self.ram:
            shutil.rmtree(self.live)
            self.beneath.rename(self.live)
            self.ram = False

    def mounts(self) -> list[tuple[str, str, str, str]]:
        found = []
        if self.ram:
            found.append((self.paths.live, "tmpfs", self.ps.TMPFS_SOURCE, "rw,size=1024"))
        if self.writer is not None:
            found.append((self.paths.pve, "fuse", "/dev/fuse", "rw"))
        return found

    def power_cut(self) -> None:
        """RAM and /run are gone, the disk stays."""
        self.stop_daemon()
        self.unmount()
        shutil.rmtree(self.root / "run")
        (self.root / "run").mkdir()

    def command(self, *argv: str) -> int:
        """A pve-state command in this process; its exit code."""
        return int(self.ps.main(["--root", str(self.root), *argv]))

    def boot_restore(self) -> int:
        self.mount()
        return self.command("restore", "--json")

    # -- the rollback timer

    def left_of_the_timer(self) -> list[str]:
        """Its units and its state, as far as they are there."""
        names = (f"run/systemd/system/{self.ps.ROLLBACK_UNIT}.*", "run/pveguard/rollback/*/*")
        return sorted(path.name for name in names for path in self.root.glob(name))

    def time_is_up(self) -> int:
        """What systemd does when the timer elapses: the exit code of the command, -1 when it was not to be run."""
        unit = f"{self.ps.ROLLBACK_UNIT}.timer"
        assert unit in self.timers
        self.timers.discard(unit)
        return self.try_the_undo()

    def try_the_undo(self) -> int:
        """The service once: its condition, its command, and what it does after that."""
        service = self.root / f"run/systemd/system/{self.ps.ROLLBACK_UNIT}.service"
        lines = [line.partition("=")[::2] for line in service.read_text().splitlines() if line.startswith("Exec")]
        for key, command in lines:
            if key == "ExecStart":
                # python3 -IS PROGRAM, and what it is to do.
                if code := self.command(*shlex.split(command)[3:]):
                    return code
                continue
            here = command.replace("/run/", f"{self.root}/run/")
            if subprocess.run(shlex.split(here)).returncode:
                return -1
        return 0

    # -- commands

    @property
    def drop_in(self) -> bool:
        return os.path.exists(self.paths.drop_in)

    def run(self, argv: list[str], timeout: float = 60.0) -> Any:
        self.calls.append(list(argv))
        done = self.ps.Result
        text = " ".join(argv)
        for bad in self.fail:
            if bad in text:
                return done(1, "", f"planted failure of {bad}")
        if argv[:3] == ["systemctl", "start", "pve-cluster.service"]:
            if self.drop_in:
                self.mount()
                if self.command("restore", "--json"):
                    return done(1, "", "dependency failed")
            return done(0) if self.start_daemon() else done(1, "", "daemon: exit 255")
        if argv[:3] == ["systemctl", "stop", "pve-cluster.service"]:
            self.stop_daemon()
            return done(0)
        if argv[:2] == ["systemctl", "stop"] and argv[2] == self.ps.STATE_UNIT and self.ram:
            self.command("final-save", "--json")
            return done(0)
        if argv[:2] == ["systemctl", "stop"] and argv[2] == self.ps.MOUNT_UNIT:
            self.unmount()
            return done(0)
        if argv[:2] == ["systemctl", "start"] and argv[2] == self.ps.MOUNT_UNIT:
            self.mount()
            return done(0)
        if argv[:2] == ["systemctl", "restart"] and argv[2].endswith(".timer"):
            assert (self.root / "run/systemd/system" / argv[2]).is_file()
            self.timers.add(argv[2])
        if argv[:2] == ["systemctl", "stop"]:
            self.timers.difference_update(argv[2:])
        if argv[:2] == ["systemctl", "show"] and argv[2].endswith(".timer"):
            states = ("active", "waiting") if argv[2] in self.timers else ("inactive", "dead")
            return done(0, "ActiveState={}\nSubState={}\n".format(*states))
        if argv[:2] == ["systemctl", "show"]:
            active = "active" if self.writer is not None else "inactive"
            blocks = []
            for unit in argv[4:]:
                shown = {"Id": unit, "ActiveState": active, "NRestarts": "0", "LoadState": "loaded"}
                shown.update(self.shown.get(unit, {}))
                blocks.append("\n".join(f"{key}={value}" for key, value in shown.items()))
            return done(0, "\n\n".join(blocks))
        if argv[0] == "cat":
            return done(0, json.dumps(self.members)) if self.writer is not None else done(1)
        return done(0)


def unconnected(node: Node, *, host: bool = True) -> None:
    """A member whose Corosync has not run since its daemon started; ``host``: whether it has its host's copy."""
    conf = b"totem {\n  cluster_name: c\n  config_version: 3\n}\n"
    if host:
        path = Path(node.paths.corosync_conf)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(conf)
    node.w.write("corosync.conf", conf)
    node.members = {"nodename": "pve1", "version": 0}
    link(Path(node.paths.pve), writable=False)
    Path(node.paths.pve, ".members").write_text(json.dumps(node.members))


@pytest.fixture
def node(ps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(ps, tmp_path / "node")
    monkeypatch.setattr(ps, "run", made.run)
    monkeypatch.setattr(ps, "mounts", made.mounts)
    monkeypatch.setattr(ps, "resolves", lambda name: "10.0.0.1")
    monkeypatch.setattr(ps, "resize_tmpfs", lambda paths, size: True)
    yield made
    made.stop_daemon()


def fill(writer: Writer) -> None:
    """A few files as a node has them."""
    writer.mkdir("priv/lock")
    writer.write("storage.cfg", b"dir: local\n")
    writer.write("user.cfg", b"user:root@pam:1:0:::\n")
    writer.write("nodes/pve1/qemu-server/100.conf", b"name: a\n" * 50)
    writer.write("nodes/pve1/lxc/101.conf", b"hostname: b\n")
    writer.write("priv/authorized_keys", b"ssh-ed25519 AAAA x\n")
    writer.write("nodes/pve1/lrm_status", b"{}")


@pytest.fixture
def ram_node(node: Node) -> Node:
    """A node that runs from RAM, with a daemon and a first save."""
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    assert node.command("enable", "--json", "--connection", "") == 0
    return node


def prepare_files(node: Node) -> None:
    """The files that the role installs before the switch."""
    units = node.root / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    for unit in (node.ps.MOUNT_UNIT, node.ps.BACKUP_UNIT, node.ps.STATE_UNIT, node.ps.WATCH_UNIT):
        (units / unit).write_text("[Unit]\n")
    Path(node.paths.drop_in_source).write_text("[Unit]\n")
    Path(node.paths.config).write_text(json.dumps({"deadline_seconds": 5}))


class Clock:
    """Ticks a watcher, on a clock of its own."""

    def __init__(self, watcher: Any) -> None:
        self.now = 100.0
        self.watcher = watcher

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.watcher.tick(self.now)
            self.now += self.watcher.poll


@pytest.fixture
def clock(ps: ModuleType, ram_node: Node) -> Iterator[Clock]:
    watcher = ps.Watcher(ram_node.paths, ram_node.config)
    made = Clock(watcher)
    made.run(2)
    yield made
    watcher.finish()
