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


def change(path: str, sql: str) -> None:
    """Change a database that is closed."""
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.close()


def stored(path: str) -> list[tuple[object, ...]]:
    """The rows of the file, names as bytes."""
    with sqlite3.connect(path) as connection:
        sql = "select inode, parent, version, writer, mtime, type, cast(name as blob), data from tree order by inode"
        return connection.execute(sql).fetchall()


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
        rows = sorted(connection.execute("select * from tree").fetchall())
    assert rows == [(0, 0, 2, 2, 77, 8, "__version__", None), memdb.rows()[1]]


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
    change(path, "insert into tree values (5, 6, 5, 0, 0, 4, 'a', null), (6, 5, 6, 0, 0, 4, 'b', null)")
    with pytest.raises(DatabaseFailure, match="cannot be reached"):
        MemDB(path, Quiet())


def rows(*items: tuple[int, int, int, str]) -> str:
    """Statements for rows of inode, parent, type, and name in SQL."""
    return "".join(
        f"insert into tree values ({inode}, {parent}, {inode}, 0, 0, {kind}, {name}, null);"
        for inode, parent, kind, name in items
    )


#: A node with the guest 100; inode 11 is its folder for containers.
FOLDERS = rows(
    (2, 0, 4, "'nodes'"),
    (3, 2, 4, "'pve1'"),
    (10, 3, 4, "'qemu-server'"),
    (11, 3, 4, "'lxc'"),
    (30, 10, 8, "'100.conf'"),
)
REFUSED = {
    "type": (rows((5, 0, 9, "'a'")), "type 9"),
    "no parent": (rows((5, 77, 8, "'a'")), "no parent"),
    "parent is a file": (rows((5, 0, 8, "'a'"), (6, 5, 8, "'b'")), "no parent"),
    "own parent": (rows((5, 5, 4, "'a'")), "cannot be reached"),
    "same name": (rows((5, 0, 8, "'a'"), (6, 0, 4, "'a'")), "duplicate name"),
    "same name, not UTF-8": (
        rows((5, 0, 8, "cast(x'ff' as text)"), (6, 0, 8, "cast(x'ff' as text)")),
        "duplicate",
    ),
    "directory with data": (
        rows((5, 0, 4, "'a'")) + "update tree set data = x'00' where inode = 5",
        "with data",
    ),
    "directory with text": (
        rows((5, 0, 4, "'a'")) + "update tree set data = 't' where inode = 5",
        "with data",
    ),
    "root of another name": ("update tree set name = 'other' where inode = 0", "inode 0"),
    "guest of two kinds": (FOLDERS + rows((40, 11, 8, "'100.conf'")), "detected duplicate VMID 100"),
    "guest of two nodes": (
        FOLDERS + rows((40, 2, 4, "'b'"), (41, 40, 4, "'openvz'"), (42, 41, 8, "'100.conf'")),
        "detected duplicate VMID 100",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stops_the_load(memdb: MemDB, path: str, case: str) -> None:
    sql, text = REFUSED[case]
    memdb.close()
    change(path, sql)
    with pytest.raises(DatabaseFailure, match=text) as failure:
        MemDB(path, Quiet())
    assert failure.value.domain == ("status" if "guest" in case else "database")


LOADED = {
    "no version row": FOLDERS + "delete from tree where inode = 0",
    "version row of type 4": "update tree set type = 4 where inode = 0",
    "root version below a row's": rows((50, 0, 8, "'a'")),
    "long name": rows((5, 0, 8, f"'{'n' * 300}'")),
    "empty name": rows((5, 0, 8, "''")),
    "name not UTF-8": rows((5, 0, 8, "cast(x'66fc' as text)"), (6, 0, 8, "cast(x'66fd' as text)")),
    "text as data": rows((5, 0, 8, "'a'")) + "update tree set data = 'text' where inode = 5",
    "number as data": rows((5, 0, 8, "'a'")) + "update tree set data = 5 where inode = 5",
    "directory with empty data": rows((5, 0, 4, "'a'")) + "update tree set data = x'' where inode = 5",
    "guest of no valid node": FOLDERS
    + rows((40, 2, 4, "'pve1.old'"), (41, 40, 4, "'lxc'"), (42, 41, 8, "'100.conf'"))
    + rows((50, 2, 4, "'-b'"), (51, 50, 4, "'lxc'"), (52, 51, 8, "'100.conf'"))
    + rows((60, 2, 4, "'b-'"), (61, 60, 4, "'lxc'"), (62, 61, 8, "'100.conf'"))
    + rows((70, 2, 4, "'b' || char(10)"), (71, 70, 4, "'lxc'"), (72, 71, 8, "'100.conf'")),
    "guest elsewhere": FOLDERS
    + rows((40, 0, 4, "'backup'"), (41, 40, 4, "'pve1'"), (42, 41, 4, "'lxc'"), (43, 42, 8, "'100.conf'"))
    + rows((50, 0, 4, "'lxc2'"), (51, 50, 4, "'lxc'"), (52, 51, 8, "'100.conf'"))
    + rows((60, 11, 4, "'lxc'"), (61, 60, 8, "'100.conf'"), (62, 2, 4, "'lxc'"), (63, 62, 8, "'100.conf'")),
    "guest of no valid id": FOLDERS
    + rows((40, 11, 8, "'0100.conf'"), (41, 11, 8, "'100.conf' || char(10)"), (42, 11, 8, "'+100.conf'"))
    + rows((43, 11, 8, "'100.conf.tmp'"), (44, 11, 8, "'\u0661\u0660\u0660.conf'")),
    "directory like a guest": FOLDERS + rows((40, 11, 4, "'100.conf'")),
}


@pytest.mark.parametrize("case", LOADED)
def test_what_does_not_stop_the_load(memdb: MemDB, path: str, case: str) -> None:
    memdb.close()
    change(path, LOADED[case])
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("select count(*) from tree where inode != 0").fetchone()
    loaded = MemDB(path, Quiet())
    assert len(loaded.rows()) == count + 1
    assert list(loaded.guests) == ([100] if FOLDERS in LOADED[case] else [])


def test_the_first_write_makes_a_missing_version_row(memdb: MemDB, path: str) -> None:
    do(memdb, Op.MKDIR, "d")
    memdb.close()
    change(path, "delete from tree where inode = 0")
    loaded = MemDB(path, Quiet())
    assert loaded.root.version == 0
    assert do(loaded, Op.MKDIR, "e", mtime=7) == 0
    assert stored(path)[0] == (0, 0, 1, 3, 7, 8, b"__version__", None)


def test_names_and_data_are_written_back_byte_for_byte(memdb: MemDB, path: str) -> None:
    memdb.close()
    change(
        path,
        rows(
            (2, 0, 4, "cast(x'64ff' as text)"),
            (3, 2, 8, "cast(x'c366fc' as text)"),
            (4, 0, 8, "'t'"),
            (5, 0, 8, "'n'"),
        )
        + "update tree set data = 'gr\u00fc\u00df' where inode = 4; update tree set data = 123 where inode = 5;"
        "update tree set version = 9 where inode = 0",
    )
    loaded = MemDB(path, Quiet())
    names = {row[0]: row[6] for row in loaded.rows()}
    text, number = loaded.lookup("t"), loaded.lookup("n")
    assert text is not None and text.data == "gr\u00fc\u00df".encode()
    assert number is not None and number.data == b"123"
    for item in (f"{names[2]}/{names[3]}", names[2], "t", "n"):
        assert do(loaded, Op.UTIMENS, item) == 0
    assert [(row[0], *row[6:]) for row in stored(path)[1:]] == [
        (2, b"d\xff", None),
        (3, b"\xc3f\xfc", None),
        (4, b"t", "gr\u00fc\u00df".encode()),
        (5, b"n", b"123"),
    ]
    with sqlite3.connect(path) as connection:
        assert connection.execute("select distinct typeof(name) from tree").fetchall() == [("text",)]


def test_the_type_of_the_version_row(memdb: MemDB, path: str) -> None:
    assert stored(path)[0][5] == 8
    assert memdb.replace([(0, 0, 9, 1, 5, 4, "__version__", None)], []) == 0
    assert stored(path)[0][2:6] == (9, 1, 5, 4), "as a sync leaves it"
    do(memdb, Op.MKDIR, "d")
    assert stored(path)[0][5] == 8, "until the next write"


def test_what_has_content_is_neither_moved_nor_replaced(memdb: MemDB) -> None:
    for name in ("full", "full/x", "empty"):
        do(memdb, Op.MKDIR, name)
    before = memdb.rows()
    assert do(memdb, Op.RENAME, "full", target="new") == errno.ENOTEMPTY
    assert do(memdb, Op.RENAME, "full", target="empty") == errno.ENOTEMPTY
    assert do(memdb, Op.RENAME, "empty", target="full") == errno.ENOTEMPTY
    assert memdb.rows() == before
    assert do(memdb, Op.RENAME, "empty", target="new") == 0


def test_a_lock_is_removed_at_its_age_and_in_one_transaction(memdb: MemDB) -> None:
    for name in ("priv", "priv/lock", "priv/lock/a", "priv/lock/full", "priv/lock/full/x"):
        do(memdb, Op.MKDIR, name, mtime=1000)
    before = memdb.rows()
    assert do(memdb, Op.UNLOCK, "priv/lock/a", mtime=1120, number=120) == 0
    assert do(memdb, Op.UNLOCK, "priv/lock/full", mtime=9999, number=120) == 0
    assert memdb.rows() == before
    assert do(memdb, Op.UNLOCK, "priv/lock/a", mtime=1121, number=120) == 0
    assert memdb.lookup("priv/lock/a") is None
    assert memdb.root.version == before[0][2] + 1
    assert do(memdb, Op.UNLOCK, "priv/lock/a", mtime=1121, number=120) == errno.ENOENT


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
    assert sorted(stored(path)) == sorted((*row[:6], row[6].encode(), row[7]) for row in memdb.rows())


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
    assert do(memdb, Op.DELETE, "nodes/b/qemu-server/100.conf") == 0
    assert memdb.guests == {}


@pytest.mark.parametrize("name", ["nodes/ä/x", "nodes/\udcff/x"])
def test_update_survives_its_message(name: str) -> None:
    update = Update(Op.RENAME, name, -5, 1 << 19, "b" * 300, bytes(range(256)))
    assert Update.unpack(update.pack()) == update
