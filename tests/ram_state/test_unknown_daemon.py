# SPDX-License-Identifier: Apache-2.0
"""A daemon that is not known: refused before anything is changed; once it runs from RAM, what it serves reaches the disk."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Clock, Node, fill, prepare_files
from .test_rescue import status

#: What a newer daemon may have done to its database when it started, and how that is told.
NEWER: dict[str, tuple[str, str]] = {
    "a column more": ("ALTER TABLE tree ADD COLUMN xattr BLOB", "other columns than the 8 known: xattr"),
    "a generated column": ("ALTER TABLE tree ADD COLUMN size AS (length(data))", "other columns than the 8 known: size"),
    "another name of a column": ("ALTER TABLE tree RENAME COLUMN data TO content", "content, data (missing)"),
    "another table": ("CREATE TABLE locks (id INTEGER)", "beside the table tree it has the table locks"),
    "an index": ("CREATE INDEX by_parent ON tree(parent, name)", "the index by_parent"),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON tree BEGIN SELECT 1; END", "the trigger t"),
    "a version": ("PRAGMA user_version=2", "its user_version is 2, not 0"),
    "no table tree": ("ALTER TABLE tree RENAME TO files", "it has no table tree"),
}


def other_page_size(node: Node) -> None:
    node.w.db.execute("PRAGMA journal_mode=DELETE").fetchone()
    node.w.db.execute("PRAGMA page_size=8192")
    node.w.db.execute("VACUUM")
    node.w.db.execute("PRAGMA journal_mode=WAL").fetchone()


OTHER: dict[str, tuple[Callable[[Node], object], str]] = {
    **{name: ((lambda node, sql=sql: node.w.db.execute(sql)), said) for name, (sql, said) in NEWER.items()},
    "another page size": (other_page_size, "its page size is 8192, not 4096"),
    "no log": (lambda node: node.w.db.execute("PRAGMA journal_mode=DELETE").fetchone(), "not in journal mode WAL"),
}


def content(node: Node) -> dict[str, bytes]:
    """Everything on the node but its volatile files and SQLite's index."""
    return {
        str(path): path.read_bytes()
        for path in node.root.rglob("*")
        if path.is_file() and "/run/" not in str(path) and not str(path).endswith("-shm")
    }


@pytest.mark.parametrize("command", ["enable", "preflight"])
@pytest.mark.parametrize("what", OTHER)
def test_ram_state_is_refused_before_anything_is_changed(
    ps: ModuleType, node: Node, what: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, said = OTHER[what]
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    plant(node)
    before = content(node)
    capsys.readouterr()
    assert node.command(command, "--json", "--connection", "") == ps.EXIT_REFUSED
    told = capsys.readouterr().out
    for part in (ps.node_name(), node.paths.live_db, said, "update pveguard", "ram_state_enabled: false"):
        assert part in told
    assert content(node) == before and not any("stop" in call for call in node.calls)


@pytest.mark.parametrize(
    "members",
    [
        {"node": "pve1", "peers": []},
        {"nodename": "pve1", "version": 3, "peers": ["pve2"]},
        {"nodename": "pve1", "cluster": {"name": "c", "state": "quorate"}, "nodelist": {}},
        {"nodename": "pve1", "cluster": {"name": "c", "quorate": 1}, "nodelist": [{"name": "pve2", "online": 0}]},
        {"nodename": "pve1", "cluster": {"name": "c", "quorate": 1}, "nodelist": {"pve2": "offline"}},
        [],
    ],
)
def test_members_that_are_not_understood_are_no_quorum(
    ps: ModuleType, node: Node, members: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    node.members = members
    Path(node.paths.pve).mkdir(parents=True, exist_ok=True)
    Path(node.paths.pve, ".members").write_text(json.dumps(members))
    before = content(node)
    capsys.readouterr()
    assert node.command("enable", "--json", "--connection", "") == ps.EXIT_REFUSED
    assert ".members does not answer, or not as it is known" in json.loads(capsys.readouterr().out)["error"]
    assert content(node) == before
    found = status(node, capsys)
    assert found["quorate"] is None is found["daemon_mode"] and found["answers"] is True
    assert any(".members" in warning and "quorum is not known" in warning for warning in found["warnings"])
    watched = ps.Members(node.paths)
    watched.look()
    assert watched.state is None and watched.answered is None


def test_the_way_back_to_disk_needs_no_members_that_are_understood(ps: ModuleType, ram_node: Node) -> None:
    ram_node.members = {"node": "pve1", "peers": []}
    assert ram_node.command("disable", "--json", "--connection", "") == 0
    assert not ram_node.ram and ram_node.writer is not None


def schema(path: str | Path) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        tables = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        (name,) = connection.execute("SELECT name FROM sqlite_master WHERE name IN ('tree', 'files')").fetchone()
        return [tables, connection.execute("PRAGMA user_version").fetchone(), connection.execute(
            f"SELECT * FROM {name} ORDER BY inode").fetchall()]
    finally:
        connection.close()


def copied(node: Node) -> Path:
    """A copy of the live database, log included, for a reader of its own."""
    folder = node.root.parent / "copied"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for suffix in ("", "-wal"):
        if Path(node.paths.live_db + suffix).exists():
            shutil.copy(node.paths.live_db + suffix, f"{folder}/config.db{suffix}")
    return folder / "config.db"


def change(node: Node, sql: str) -> None:
    """A newer daemon writes."""
    node.w.db.execute("BEGIN IMMEDIATE")
    table = node.w.db.execute("SELECT name FROM sqlite_master WHERE name IN ('tree', 'files')").fetchone()[0]
    node.w.db.execute(f"UPDATE {table} SET version=version+1 WHERE inode=0 OR name='storage.cfg'")
    node.w.db.execute(sql)
    node.w.db.execute("COMMIT")


@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_daemon_serves_is_saved_and_restored_as_a_whole(
    ps: ModuleType, clock: Clock, ram_node: Node, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sql, said = NEWER[what]
    replica = Path(ram_node.paths.replica).read_bytes()
    ram_node.w.db.execute(sql)
    change(ram_node, "SELECT 1")
    clock.run(3)
    assert said in clock.watcher.status["error"] and Path(ram_node.paths.replica).read_bytes() == replica
    found = status(ram_node, capsys)
    assert (found["state"], found["rescue"]["kind"]) == ("failed", "schema") and said in found["reason"]
    assert found["root_version"] is None, "what the table says is not taken for what it means"
    assert any("schema is not known" in warning for warning in found["warnings"])
    # Later changes as well, and none is refused.
    change(ram_node, "SELECT 2")
    clock.run(40)
    served = schema(copied(ram_node))
    ram_node.power_cut()
    ram_node.mount()
    capsys.readouterr()
    assert ram_node.command("restore", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["restored"] and told["source"] == "rescue copy"
    assert schema(ram_node.paths.live_db) == served
    assert ram_node.start_daemon(), "the daemon that wrote it reads it"
    # The way back to the disk is open too.
    capsys.readouterr()
    assert ram_node.command("disable", "--json", "--connection", "") == 0, capsys.readouterr()
    # The stand-in makes its own table where it starts.
    ram_node.w.db.execute("DROP TABLE tree") if what == "no table tree" else None
    assert not ram_node.ram and schema(copied(ram_node)) == served


def test_a_schema_that_is_known_again_goes_over_the_replica(ps: ModuleType, clock: Clock, ram_node: Node) -> None:
    ram_node.w.db.execute("CREATE TABLE locks (id INTEGER)")
    change(ram_node, "SELECT 1")
    clock.run(3)
    assert ps.pending_rescue(ram_node.paths)["kind"] == "schema"
    ram_node.w.db.execute("DROP TABLE locks")
    ram_node.w.write("storage.cfg", b"dir: later\n")
    clock.run(40)
    assert clock.watcher.status["error"] is None and ps.pending_rescue(ram_node.paths) is None
    assert sqlite3.connect(ram_node.paths.replica).execute(
        "SELECT data FROM tree WHERE name='storage.cfg'").fetchone() == (b"dir: later\n",)


def test_statistics_of_sqlite_are_no_other_schema(ps: ModuleType, clock: Clock, ram_node: Node) -> None:
    ram_node.w.db.execute("ANALYZE")
    ram_node.w.write("storage.cfg", b"dir: later\n")
    clock.run(3)
    assert clock.watcher.status["error"] is None and ps.pending_rescue(ram_node.paths) is None


@pytest.mark.parametrize("text", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_database_that_is_none_is_kept_as_it_is(ps: ModuleType, ram_node: Node, text: bytes) -> None:
    ram_node.stop_daemon()
    for suffix in ("-wal", "-shm", ""):
        Path(ram_node.paths.live_db + suffix).unlink(missing_ok=True)
    Path(ram_node.paths.live_db).write_bytes(text)
    store = ps.Store(ram_node.paths, ram_node.config)
    try:
        result = ps.save(store)
    finally:
        store.close()
    assert result["rescued"]["kind"] == "damaged" and Path(result["rescued"]["path"]).read_bytes() == text
