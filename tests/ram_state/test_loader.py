# SPDX-License-Identifier: Apache-2.0
"""What counts as loadable is exactly what the daemon loads: compared with the double's loader, both ways."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

PACKAGE = Path(__file__).resolve().parents[2] / "lab/packages/pve-cluster/root/usr/lib/pve-cluster-lab"
sys.path.insert(0, str(PACKAGE))

from pmxcfs_lab.memdb import SCHEMA, DatabaseFailure, MemDB  # type: ignore[import-not-found]  # noqa: E402

DIRECTORY, FILE = 4, 8
Row = tuple[int, int, int, int, int, int, bytes, Any]

ROOT_ROW: Row = (0, 0, 100, 1, 1, DIRECTORY, b"__version__", None)
#: A tree in which guests count, and places where they do not.
FOLDERS: list[Row] = [
    (1, 0, 1, 1, 1, DIRECTORY, b"nodes", None),
    (2, 1, 2, 1, 1, DIRECTORY, b"pve1", None),
    (3, 2, 3, 1, 1, DIRECTORY, b"qemu-server", None),
    (4, 2, 4, 1, 1, DIRECTORY, b"lxc", None),
    (5, 2, 5, 1, 1, DIRECTORY, b"openvz", None),
    (6, 1, 6, 1, 1, DIRECTORY, b"pve2", None),
    (7, 6, 7, 1, 1, DIRECTORY, b"lxc", None),
    (8, 1, 8, 1, 1, DIRECTORY, b"pve1.old", None),
    (9, 8, 9, 1, 1, DIRECTORY, b"qemu-server", None),
    (10, 0, 10, 1, 1, DIRECTORY, b"backup", None),
    (11, 10, 11, 1, 1, DIRECTORY, b"nodes", None),
    (12, 11, 12, 1, 1, DIRECTORY, b"pve1", None),
    (13, 12, 13, 1, 1, DIRECTORY, b"qemu-server", None),
    (14, 3, 14, 1, 1, DIRECTORY, b"deeper", None),
    (15, 14, 15, 1, 1, DIRECTORY, b"lxc", None),
    (16, 1, 16, 1, 1, DIRECTORY, b"-pve3", None),
    (17, 16, 17, 1, 1, DIRECTORY, b"lxc", None),
    (18, 1, 18, 1, 1, DIRECTORY, b"x", None),
    (19, 18, 19, 1, 1, DIRECTORY, b"openvz", None),
]
NAMES = [
    *(b"100.conf", b"0100.conf", b"100.conf.bak", b"101.conf", b"1.conf", b"0.conf", b".conf", b"100", b"a.conf"),
    *(b"lxc", b"qemu-server", b"nodes", b"pve1", b"pve1.old", b"__version__", b"corosync.conf", b"\xff\xfe", b"n" * 300),
]
files = st.builds(
    lambda inode, parent, version, kind, name, data: (inode, parent, version, 1, 1, kind, name, data),
    st.integers(20, 40),
    st.one_of(st.integers(0, 19), st.integers(20, 45)),
    st.integers(0, 150),
    st.sampled_from([FILE] * 8 + [DIRECTORY] * 3 + [0, 7]),
    st.sampled_from(NAMES),
    st.sampled_from([None, None, b"", b"name: x\n", "text", 7]),
)
roots = st.sampled_from([[ROOT_ROW]] * 4 + [[], [(*ROOT_ROW[:5], FILE, *ROOT_ROW[6:])], [(*ROOT_ROW[:6], b"root", None)]])


class Silent:
    debugging = False

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def made(folder: str, rows: list[Row]) -> str:
    path = f"{folder}/config.db"
    database = sqlite3.connect(path)
    database.execute(SCHEMA)
    database.executemany("INSERT OR REPLACE INTO tree VALUES(?,?,?,?,?,?,CAST(? AS TEXT),?)", rows)
    database.commit()
    database.close()
    return path


def loads(path: str) -> str | None:
    """Why the daemon does not load it, None when it does."""
    try:
        MemDB(path, Silent()).close()
    except DatabaseFailure as failure:
        return str(failure)
    return None


def compare(ps: ModuleType, rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = made(folder, rows)
        problems = ps.unloadable(ps.read_only(path, ps.read_rows))
        said = loads(path)
        assert bool(problems) == bool(said), f"ours: {problems}; the daemon: {said}; {rows}"


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(root=roots, more=st.lists(files, max_size=6))
@example(root=[ROOT_ROW], more=[(20, 3, 20, 1, 1, FILE, b"100.conf", b"a"), (21, 13, 21, 1, 1, FILE, b"100.conf", b"a")])
@example(root=[ROOT_ROW], more=[(20, 3, 20, 1, 1, FILE, b"100.conf", b"a"), (21, 9, 21, 1, 1, FILE, b"100.conf", b"a")])
@example(root=[ROOT_ROW], more=[(20, 3, 20, 1, 1, FILE, b"100.conf", b"a"), (21, 7, 21, 1, 1, FILE, b"100.conf", b"a")])
@example(root=[ROOT_ROW], more=[(20, 21, 20, 1, 1, DIRECTORY, b"a", None), (21, 20, 21, 1, 1, DIRECTORY, b"b", None)])
def test_loadable_is_what_the_daemon_loads(ps: ModuleType, root: list[Row], more: list[Row]) -> None:
    compare(ps, [*root, *FOLDERS, *more])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=st.lists(files, max_size=4), lost=st.sets(st.integers(0, 19), max_size=3))
def test_also_where_directories_are_lost(ps: ModuleType, more: list[Row], lost: set[int]) -> None:
    compare(ps, [row for row in [ROOT_ROW, *FOLDERS, *more] if row[0] not in lost])


def test_what_the_daemon_loads_is_saved(ps: ModuleType, tmp_path: Path) -> None:
    """A database as in a public report: a copy of a node's folder made by hand below another one."""
    rows: list[Row] = [
        (0, 0, 11, 1, 1700000011, DIRECTORY, b"__version__", None),
        (2, 0, 2, 1, 1700000002, FILE, b"storage.cfg", b"dir: local\n"),
        (3, 0, 3, 1, 1700000003, DIRECTORY, b"nodes", None),
        (4, 3, 4, 1, 1700000004, DIRECTORY, b"pve1", None),
        (5, 4, 5, 1, 1700000005, DIRECTORY, b"qemu-server", None),
        (6, 5, 6, 1, 1700000006, FILE, b"100.conf", b"name: a\n"),
        (7, 0, 7, 1, 1700000007, DIRECTORY, b"backup", None),
        (8, 7, 8, 1, 1700000008, DIRECTORY, b"pve1", None),
        (9, 8, 9, 1, 1700000009, DIRECTORY, b"qemu-server", None),
        (10, 9, 11, 1, 1700000011, FILE, b"100.conf", b"name: a\n"),
    ]
    path = made(str(tmp_path), rows)
    assert loads(path) is None
    assert ps.main(["--root", str(tmp_path), "verify", "--file", path]) == 0


@pytest.mark.parametrize("damage", ["garbage", "truncated", "a page"])
def test_damaged_files(ps: ModuleType, tmp_path: Path, damage: str) -> None:
    path = Path(made(str(tmp_path), [ROOT_ROW, *FOLDERS]))
    data = path.read_bytes()
    path.write_bytes({"garbage": b"x" * 9000, "truncated": data[:5000], "a page": data[:4096] + b"\xff" * 4096}[damage])
    assert ps.verify_database(str(path), sound=False)[0]
    assert loads(str(path))
