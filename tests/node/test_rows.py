# SPDX-License-Identifier: Apache-2.0
"""Rows that nobody expects: every program that reads the daemon's database reads them alike, and none dies of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.disk import block_writes
from ansible.module_utils.pveguard.pmxcfs import pmxcfs, tree
from ansible.module_utils.pveguard.writes import pmxcfs_writes

from tests.node_program import cluster_member, pve_state

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = (
    "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT NULL, "
    "writer INTEGER NOT NULL, mtime INTEGER NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB)"
)


MEMBER = cluster_member()
STATE = pve_state()


class Database:
    def __init__(self, path: Path, root: bool = True, root_type: int = 8) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL").fetchone()
        self.db.execute(SCHEMA)
        self.inode = 1
        if root:
            self.db.execute("INSERT INTO tree VALUES (0, 0, 900, 1, 0, ?, '__version__', NULL)", (root_type,))
        self.add("storage.cfg", b"dir: local\n")

    def add(self, name: str | bytes, data: object = None, parent: int = 0, value: str = "?", kind: int = 8) -> int:
        self.inode += 1
        name = name.encode() if isinstance(name, str) else name
        given = (self.inode, parent, self.inode, kind, name, *([data] if "?" in value else []))
        self.db.execute(f"INSERT INTO tree VALUES (?, ?, ?, 1, 0, ?, CAST(? AS TEXT), {value})", given)
        return self.inode

    def folder(self, name: str, parent: int = 0) -> int:
        return self.add(name, None, parent, kind=4)


def deep(database: Database) -> None:
    at = 0
    for number in range(200):
        at = database.folder(f"d{number}", at)
    database.add("leaf", b"x", at)


def in_noise(database: Database) -> None:
    replaced = database.folder("x.tmp.12")
    database.add("inside", b"1", replaced)
    lock = database.folder("lock", database.folder("priv"))
    database.add("a\nb", b"2", lock)
    database.add("c.tmp.7", b"3", database.folder("new\nline"))


ROWS: dict[str, Callable[[Database], object]] = {
    "text": lambda d: d.add("x", "ä\N{SNOWMAN}"),
    "text that is not UTF-8": lambda d: d.add("x", b"\xff\xfe", value="CAST(? AS TEXT)"),
    "text with a zero byte": lambda d: d.add("x", "a\0b"),
    "integer": lambda d: d.add("x", 2**63 - 1),
    "negative": lambda d: d.add("x", -5),
    "real": lambda d: d.add("x", 0.1 + 0.2),
    "large real": lambda d: d.add("x", 1e300),
    "null": lambda d: d.add("x", None),
    "empty": lambda d: d.add("x", b""),
    "zeros": lambda d: d.add("x", value="zeroblob(9)"),
    "name that is not UTF-8": lambda d: d.add(b"caf\xe9.cfg", b"1"),
    "name with a newline": lambda d: d.add("a\nb", b"1"),
    "name of 300 characters": lambda d: d.add("n" * 300, b"1"),
    "unlinked while open": lambda d: d.add(".fuse_hidden0000000500000001", b"1", d.folder("nodes")),
    "name that is a number": lambda d: d.add("5", b"1"),
    "name as a blob": lambda d: d.db.execute("INSERT INTO tree VALUES (700, 0, 7, 1, 0, 8, x'6162', x'01')"),
    "200 folders deep": deep,
    "below noise": in_noise,
    "the same name twice": lambda d: (d.add("twice", b"1"), d.add("twice", b"2")),
    "largest numbers": lambda d: d.db.execute("INSERT INTO tree VALUES (?, 0, ?, ?, ?, 8, 'big', x'01')", [2**63 - 1] * 4),
    "no data of a folder": lambda d: d.folder("nodes"),
}


def hashes(path: Path) -> list[str]:
    connection = STATE.in_memory(str(path))
    try:
        own = STATE.tree_sha256(connection, STATE.Config().noise)
    finally:
        connection.close()
    theirs = MEMBER.sha256_of(MEMBER.read_tree(path)[1], MEMBER.Noise())
    return [tree.sha256_of(pmxcfs.read_tree(path)[1], tree.Noise()), theirs, own]


@pytest.mark.parametrize("what", ROWS)
def test_all_programs_see_the_same_tree(tmp_path: Path, what: str) -> None:
    database = Database(tmp_path / "config.db")
    base = hashes(database.path)
    ROWS[what](database)
    found = hashes(database.path)
    assert len(set(found)) == len(set(base)) == 1
    assert found != base
    assert pmxcfs.read_tree(database.path)[0] == MEMBER.read_tree(database.path)[0] == 900
    # The report looks at names and numbers while the daemon has the database open.
    version, rows = pmxcfs_writes.snapshot(str(database.path))
    assert version == 900 and len(rows) == database.db.execute("SELECT count(*) FROM tree").fetchone()[0] - 1
    sampler = pmxcfs_writes.Sampler(str(database.path))
    sampler.sample()
    database.db.execute("UPDATE tree SET version = version + 1000 WHERE inode < 9000000000 AND version < 9000000000")
    sampler.sample()
    assert sampler.transactions == 1000 and sampler.files()


def test_what_lies_in_a_folder_of_noise_is_noise_everywhere(tmp_path: Path) -> None:
    database = Database(tmp_path / "config.db")
    replaced = database.folder("x.tmp.12")
    before = hashes(database.path)
    database.add("inside", b"1", replaced)
    database.add("deeper", b"1", database.folder("f", replaced))
    assert hashes(database.path) == before and len(set(before)) == 1
    for path in ("x.tmp.12/inside", "priv/lock/a/b", "nodes/a/lrm_status/x", "priv/lock/a\nb", "new\nline/c.tmp.7"):
        assert all(noise.matches(path) for noise in (tree.Noise(), MEMBER.Noise(), STATE.Config().noise)), path
    for path in ("storage.cfg", "x.tmp.12a/inside", "a.tmp.1.cfg", "priv/lockfile"):
        assert not any(noise.leaves_out(path) for noise in (tree.Noise(), MEMBER.Noise(), STATE.Config().noise)), path


@pytest.mark.parametrize(("root", "kind", "version"), [(True, 8, 900), (True, 4, 900), (False, 0, 0)])
def test_the_row_of_the_version_may_be_of_either_type_or_missing(
    tmp_path: Path, root: bool, kind: int, version: int
) -> None:
    database = Database(tmp_path / "config.db", root, kind)
    assert len(set(hashes(database.path))) == 1
    assert pmxcfs.read_tree(database.path)[0] == MEMBER.read_tree(database.path)[0] == version
    assert pmxcfs_writes.snapshot(str(database.path))[0] == version == pmxcfs_writes.root_version(str(database.path))
    rows = STATE.read_only(str(database.path), STATE.read_rows)
    assert STATE.root_version(rows) == version and STATE.unloadable(rows) == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE tree SET parent = 999 WHERE inode = 2",
        "UPDATE tree SET parent = 2 WHERE inode = 2",
        "UPDATE tree SET parent = 'abc' WHERE inode = 2",
        "UPDATE tree SET version = 'abc' WHERE inode = 0",
        "UPDATE tree SET version = 1.5 WHERE inode = 2",
        "UPDATE tree SET type = x'00' WHERE inode = 2",
    ],
)
def test_a_tree_that_is_none_is_told_by_all(tmp_path: Path, damage: str) -> None:
    database = Database(tmp_path / "config.db")
    database.db.execute(damage)
    with pytest.raises(PveguardError, match=r"config\.db.* damaged: row"):
        pmxcfs.read_tree(database.path)
    with pytest.raises(MEMBER.Failure, match=r"config\.db.* damaged: row"):
        MEMBER.read_tree(database.path)
    problems, _ = STATE.verify_database(str(database.path))
    assert problems and "config.db" not in problems[0]


def test_what_is_saved_of_strange_rows_is_what_the_daemon_serves(tmp_path: Path) -> None:
    root = tmp_path / "node"
    live = root / "var/lib/pve-cluster"
    live.mkdir(parents=True)
    database = Database(live / "config.db")
    for what, make in ROWS.items():
        # Those that the daemon would not load go beside the replica.
        if what != "the same name twice":
            make(database)
            database.db.execute("UPDATE tree SET name = 'n' || inode WHERE name = CAST(x'78' AS TEXT)")
            database.db.execute("UPDATE tree SET name = 'd' || inode WHERE parent = 0 AND name IN ('nodes', 'priv')")
    database.db.execute("UPDATE tree SET version = 9223372036854775807 WHERE inode = 0")
    database.db.execute("DELETE FROM tree WHERE inode > 9000000000")
    paths = STATE.Paths(str(root))
    store = STATE.Store(paths, STATE.Config())
    try:
        first = STATE.save(store, deep=True, exact=True)
        assert first["saved"] and first["rescued"] is None
        again = STATE.save(store, deep=True)
        assert not again["saved"] and again["rows_changed"] == 0
    finally:
        store.close()
    assert hashes(Path(paths.replica)) == hashes(database.path)


def test_guests_are_counted_as_the_daemon_counts_them() -> None:
    paths = [
        "nodes/a/qemu-server/100.conf",
        "nodes/b-2/lxc/101.conf",
        "nodes/a/openvz/102.conf",
        "nodes/a/qemu-server/0103.conf",
        "nodes/a/qemu-server/x.conf",
        "nodes/a/qemu-server/104.conf.bak",
        "nodes/a/qemu-server/105.conf\n",
        "nodes/-a/lxc/106.conf",
        "nodes/b.c/lxc/107.conf",
        "nodes/a/other/108.conf",
        "backup/nodes/a/lxc/109.conf",
        "backup/a/qemu-server/110.conf",
    ]
    assert tree.guests_in(dict.fromkeys(paths, (8, b""))) == [100, 101, 102]
    assert [STATE.guest_of(path) for path in paths if STATE.guest_of(path)] == [100, 101, 102]


@pytest.mark.parametrize(
    ("digits", "version"),
    [
        *(("7", 7), ("007", 7), ("0", 0), (str(2**63), 2**63), (str(2**64 - 1), 2**64 - 1)),
        *((str(2**64), 2**64 - 1), ("9" * 5000, 2**64 - 1)),
    ],
)
def test_a_version_of_corosync_conf_of_any_length(tmp_path: Path, digits: str, version: int) -> None:
    text = f"totem {{\n  cluster_name: c\n  config_version: {digits}\n}}\n"
    assert STATE.config_version(text) == version
    root = tmp_path / "node"
    (root / "var/lib/pve-cluster").mkdir(parents=True)
    Database(root / "var/lib/pve-cluster/config.db").add("corosync.conf", text.encode())
    paths = STATE.Paths(str(root))
    store = STATE.Store(paths, STATE.Config())
    try:
        assert STATE.save(store)["saved"]
    finally:
        store.close()
    (mine,) = STATE.generations(paths)
    assert mine.manifest["config_version"] == (version or None) and mine.problems() == []
    name = MEMBER.save_generation(MEMBER.Node(root), "pve1", "bootstrap")
    other = STATE.find_generation(paths, name)
    assert other.manifest["config_version"] == version and other.problems() == []


def test_sizes_count_what_lies_in_the_log(tmp_path: Path) -> None:
    """After a join all of the content may lie there: the file is then one page."""
    root = tmp_path / "node"
    (root / "var/lib/pve-cluster").mkdir(parents=True)
    database = Database(root / "var/lib/pve-cluster/config.db")
    database.db.execute("PRAGMA wal_autocheckpoint=0")
    for number in range(8):
        database.add(f"f{number}", bytes(1024 * 1024))
    file, log = database.path.stat().st_size, Path(f"{database.path}-wal").stat().st_size
    assert file < 16384 and log > 8 << 20
    assert pmxcfs.collect(root)["database_bytes"] == file + log
    assert block_writes.counters(database=str(database.path))["database"]["bytes"] == file + log
    # What RAM it needs is in its pages and a log of the usual length.
    assert STATE.state_bytes(str(database.path)) >= 16 << 20
    small = STATE.tmpfs_sizes(file, STATE.Config(), 1 << 34)[1]
    assert STATE.tmpfs_sizes(STATE.state_bytes(str(database.path)), STATE.Config(), 1 << 34)[1] > small + (30 << 20)
    # A log that was held up once keeps its length.
    for _ in range(20):
        database.db.execute("UPDATE tree SET data = randomblob(1048575) WHERE name = 'f1'")
    assert Path(f"{database.path}-wal").stat().st_size > 24 << 20
    assert STATE.state_bytes(str(database.path)) < 20 << 20
