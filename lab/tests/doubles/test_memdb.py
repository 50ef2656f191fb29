# SPDX-License-Identifier: Apache-2.0
"""The tree and its transactions, in this process."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from lab.tests.doubles import conftest  # noqa: F401  (makes pmxcfs_lab importable)
from pmxcfs_lab.log import Log
from pmxcfs_lab.memdb import DatabaseFailure, MemDB, Op, Update


class Quiet(Log):
    def __init__(self) -> None:
        self.debugging = False
        self.lines: list[str] = []

    def write(self, level: str, domain: str, text: str) -> None:
        self.lines.append(f"[{domain}] {level}: {text}")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "config.db")


@pytest.fixture
def memdb(path: str) -> MemDB:
    return MemDB(path, Quiet(), reserved=["local"])


def do(memdb: MemDB, op: int, path: str, *, mtime: int = 10, writer: int = 3, **fields: object) -> int:
    return memdb.apply(Update(op, path, mtime, **fields), writer)  # type: ignore[arg-type]


def test_an_empty_database_has_version_1(memdb: MemDB) -> None:
    assert memdb.rows() == [(0, 0, 1, 0, 0, 4, "__version__", None)]


def test_every_update_raises_the_root_version_by_one(memdb: MemDB) -> None:
    steps = [
        (Op.MKDIR, "d", {}),
        (Op.CREATE, "d/f", {}),
        (Op.WRITE, "d/f", {"data": b"abc"}),
        (Op.TRUNCATE, "d/f", {"number": 1}),
        (Op.UTIMENS, "d/f", {}),
        (Op.RENAME, "d/f", {"target": "g"}),
        (Op.DELETE, "g", {}),
        (Op.DELETE, "d", {}),
    ]
    for number, (op, path, fields) in enumerate(steps, start=2):
        assert do(memdb, op, path, **fields) == 0
        assert memdb.root.version == number
    assert len(memdb.rows()) == 1


def test_a_refused_update_changes_nothing(memdb: MemDB) -> None:
    do(memdb, Op.CREATE, "f")
    before = memdb.rows()
    assert do(memdb, Op.CREATE, "f") == errno.EEXIST
    assert do(memdb, Op.MKDIR, "local") == errno.EEXIST
    assert do(memdb, Op.RENAME, "f", target="local") == errno.EACCES
    assert do(memdb, Op.CREATE, "f/g") == errno.ENOENT
    assert do(memdb, Op.WRITE, "f", number=1 << 20, data=b"x") == errno.EFBIG
    assert do(memdb, Op.DELETE, "g") == errno.ENOENT
    assert do(memdb, Op.DELETE, "") == errno.EBUSY
    assert do(memdb, Op.RENAME, "f", target="f") == 0
    assert memdb.rows() == before


def test_writer_and_mtime_are_in_the_row_and_in_the_root(memdb: MemDB, path: str) -> None:
    do(memdb, Op.CREATE, "f", mtime=77, writer=2)
    assert memdb.rows() == [(0, 0, 2, 2, 77, 4, "__version__", None), (2, 0, 2, 2, 77, 8, "f", None)]
    with sqlite3.connect(path) as connection:
        assert sorted(connection.execute("select * from tree").fetchall()) == memdb.rows()


def test_loads_what_it_wrote(memdb: MemDB, path: str) -> None:
    do(memdb, Op.MKDIR, "d")
    do(memdb, Op.CREATE, "d/f", data=b"abc")
    memdb.close()
    again = MemDB(path, Quiet())
    assert again.rows() == memdb.rows()
    entry = again.lookup("d/f")
    assert entry is not None and entry.data == b"abc"


def test_commit_failure_is_final(memdb: MemDB, monkeypatch: pytest.MonkeyPatch) -> None:
    do(memdb, Op.CREATE, "f")
    before = memdb.rows()

    def full(*arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    working = memdb._execute
    monkeypatch.setattr(memdb, "_execute", full)
    assert do(memdb, Op.WRITE, "f", data=b"x") == errno.EIO
    monkeypatch.setattr(memdb, "_execute", working)
    assert do(memdb, Op.WRITE, "f", data=b"x") == errno.EIO
    assert memdb.replace([], []) == errno.EIO
    assert memdb.rows() == before


def test_two_rows_that_are_each_others_parent_are_refused(memdb: MemDB, path: str) -> None:
    memdb.close()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "insert into tree values (5, 6, 5, 0, 0, 4, 'a', null), (6, 5, 6, 0, 0, 4, 'b', null)"
        )
    with pytest.raises(DatabaseFailure, match="cannot be reached"):
        MemDB(path, Quiet())


def test_an_unknown_type_is_refused(memdb: MemDB, path: str) -> None:
    memdb.close()
    with sqlite3.connect(path) as connection:
        connection.execute("insert into tree values (5, 0, 5, 0, 0, 9, 'a', null)")
    with pytest.raises(DatabaseFailure, match="type 9"):
        MemDB(path, Quiet())


def test_replace_is_one_transaction_and_takes_lower_versions(memdb: MemDB, path: str) -> None:
    for name in ("a", "b", "c"):
        do(memdb, Op.CREATE, name)
    handle = memdb.lookup("b").handle  # type: ignore[union-attr]
    statements: list[str] = []
    memdb._db.set_trace_callback(statements.append)
    rows = [(0, 0, 2, 1, 5, 4, "__version__", None), (3, 0, 1, 1, 5, 8, "b", b"leader's")]
    assert memdb.replace(rows, [2]) == 0
    assert sum(statement == "COMMIT" for statement in statements) == 1
    assert memdb.rows()[0] == rows[0]
    entry = memdb.lookup("b")
    assert entry is not None and (entry.data, entry.version, entry.handle) == (b"leader's", 1, handle)
    assert memdb.lookup("a") is None and memdb.lookup("c") is not None
    with sqlite3.connect(path) as connection:
        assert sorted(connection.execute("select * from tree").fetchall()) == sorted(memdb.rows())


def test_replace_refuses_a_tree_that_contradicts_itself(memdb: MemDB) -> None:
    do(memdb, Op.CREATE, "a")
    before = memdb.rows()
    assert memdb.replace([(9, 0, 9, 1, 5, 8, "a", None)], []) == errno.EIO
    assert memdb.rows() == before
    assert memdb.failed


def test_index_differs_with_every_field(memdb: MemDB) -> None:
    do(memdb, Op.CREATE, "f", data=b"x")
    row = memdb.rows()[1]
    first = memdb.index()
    assert memdb.index() == first
    changes = {1: 0, 2: 9, 3: 9, 4: 9, 6: "g", 7: b"y"}
    for field, value in changes.items():
        if row[field] == value:
            continue
        other = (*row[:field], value, *row[field + 1 :])
        assert memdb.replace([other], []) == 0  # type: ignore[list-item]
        assert memdb.index()[row[0]] != first[row[0]], field


def test_duplicate_guest_ids_are_refused_while_running(memdb: MemDB) -> None:
    for folder in (
        "nodes",
        "nodes/a",
        "nodes/a/qemu-server",
        "nodes/a/lxc",
        "nodes/b",
        "nodes/b/qemu-server",
    ):
        assert do(memdb, Op.MKDIR, folder) == 0
    assert do(memdb, Op.CREATE, "nodes/a/qemu-server/100.conf") == 0
    assert do(memdb, Op.CREATE, "nodes/b/qemu-server/100.conf") == errno.EEXIST
    assert do(memdb, Op.CREATE, "nodes/b/qemu-server/tmp") == 0
    assert (
        do(memdb, Op.RENAME, "nodes/b/qemu-server/tmp", target="nodes/b/qemu-server/100.conf") == errno.EEXIST
    )
    assert do(memdb, Op.RENAME, "nodes/a/qemu-server/100.conf", target="nodes/b/qemu-server/100.conf") == 0
    assert memdb.guests[100][:2] == ("b", "qemu")
    assert do(memdb, Op.RENAME, "nodes/b", target="nodes/c") == 0
    assert memdb.guests[100][:2] == ("c", "qemu")
    assert do(memdb, Op.DELETE, "nodes/c/qemu-server/100.conf") == 0
    assert memdb.guests == {}


def test_update_survives_its_message() -> None:
    update = Update(Op.RENAME, "nodes/ä/x", -5, 1 << 19, "b" * 300, bytes(range(256)))
    assert Update.unpack(update.pack()) == update
