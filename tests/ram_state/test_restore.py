# SPDX-License-Identifier: Apache-2.0
"""Restore at boot: everything verified, everything else fails closed, and one command fixes it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Node, table, without


def rows_of(node: Node) -> dict[int, tuple[Any, ...]]:
    return without(table(node.live / "config.db"), node.config.noise.matches)


def damage_sql(*statements: str) -> Callable[[Path], None]:
    def plant(path: Path) -> None:
        db = sqlite3.connect(path)
        for statement in statements:
            db.execute(statement)
        db.commit()
        db.close()

    return plant


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # The root page of the table's index of cells: the second page's header.
    data[4096] ^= 0xFF
    path.write_bytes(bytes(data))


PLANTED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda p: os.truncate(p, p.stat().st_size - 4096), "malformed|does not pass"),
    "flipped byte": (flip, "malformed|does not pass"),
    "zero bytes": (lambda p: os.truncate(p, 0), "empty"),
    "garbage": (lambda p: p.write_bytes(b"x" * 20000), "not a database"),
    "missing": (lambda p: p.unlink(), "does not exist"),
    "duplicate names": (
        damage_sql(
            "INSERT INTO tree SELECT 1,parent,1,writer,mtime,type,name,data FROM tree WHERE name='storage.cfg'"
        ),
        "the same name",
    ),
    "orphan": (damage_sql("UPDATE tree SET parent=4711 WHERE name='storage.cfg'"), "4711 is missing"),
    "file as parent": (
        damage_sql(
            "UPDATE tree SET parent=(SELECT inode FROM tree WHERE name='user.cfg') WHERE name='storage.cfg'"
        ),
        "not a directory",
    ),
    "loop": (damage_sql("UPDATE tree SET parent=inode WHERE name='nodes'"), "no way from it|root"),
    "root below an inode": (
        damage_sql("UPDATE tree SET version=3, mtime=1 WHERE inode=0"),
        "above the root version",
    ),
    "directory with data": (damage_sql("UPDATE tree SET data=x'00' WHERE name='nodes'"), "a directory with"),
    "guest twice": (
        damage_sql(
            "INSERT INTO tree SELECT 1,(SELECT inode FROM tree WHERE name='lxc'),1,1,1,8,'100.conf',x'00'"
        ),
        "guest 100 twice",
    ),
    "no version row": (damage_sql("DELETE FROM tree WHERE inode=0"), "__version__"),
    "no files": (damage_sql("DELETE FROM tree WHERE inode<>0"), "no file at all"),
    "no table": (damage_sql("DROP TABLE tree"), "tree"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_damage_fails_closed_and_one_command_fixes_it(
    ps: ModuleType, ram_node: Node, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node = ram_node
    before = rows_of(node)
    node.power_cut()
    plant, message = PLANTED[case]
    plant(Path(node.paths.replica))
    damaged = Path(node.paths.replica).read_bytes() if case != "missing" else None
    capsys.readouterr()
    assert node.run(["systemctl", "start", "pve-cluster.service"]).rc != 0
    error = json.loads(capsys.readouterr().out)["error"]

    assert re.search(message, error), error
    assert "pve-state restore --generation latest" in error
    assert node.writer is None and not (node.live / "config.db").exists()
    # The damaged file is left as it is, for whoever wants to look.
    if damaged is not None:
        assert Path(node.paths.replica).read_bytes() == damaged
    capsys.readouterr()
    assert node.command("status", "--json") == ps.EXIT_ERROR
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "failed" and re.search(message, status["reason"])
    assert status["fix"] == "pve-state restore --generation latest"

    assert node.command("restore", "--generation", "latest", "--json") == 0
    assert node.writer is not None
    assert rows_of(node) == before
    assert ps.verify_database(node.paths.replica)[0] == []


def test_restore_after_a_cut_equals_the_last_save(ps: ModuleType, ram_node: Node) -> None:
    ram_node.w.write("datacenter.cfg", b"a")
    assert ram_node.command("save", "--json") == 0
    saved = rows_of(ram_node)
    ram_node.w.write("datacenter.cfg", b"lost")
    ram_node.power_cut()
    assert ram_node.boot_restore() == 0
    assert rows_of(ram_node) == saved
    assert not list(ram_node.live.glob("config.db-*")) and not list(
        ram_node.live.glob(".pveguard-restore.db*")
    )
    assert (ram_node.live / "config.db").stat().st_mode & 0o777 == 0o600
    restored = ps.read_json(ram_node.paths.restore_file)
    assert restored["clean"] is False
    assert restored["advance_to"] == saved[0][2] + ram_node.config.max_lag + 1


def test_clean_stop_and_boot_needs_no_advance(ps: ModuleType, ram_node: Node) -> None:
    ram_node.w.write("nodes/pve1/lrm_status", b"new heartbeat")
    version = ram_node.w.version
    ram_node.stop_daemon()
    assert ram_node.command("final-save", "--json") == 0
    assert list(Path(ram_node.paths.store).glob("config.db*")) == [Path(ram_node.paths.replica)]
    ram_node.power_cut()
    assert ram_node.boot_restore() == 0
    restored = ps.read_json(ram_node.paths.restore_file)
    assert restored["clean"] is True and "advance_to" not in restored and restored["root_version"] == version
    # From the restore on, a cut is an unclean one again.
    ram_node.power_cut()
    assert ram_node.boot_restore() == 0
    assert ps.read_json(ram_node.paths.restore_file)["clean"] is False


def test_a_database_removed_in_the_same_boot_is_not_resurrected(ps: ModuleType, ram_node: Node) -> None:
    ram_node.stop_daemon()
    for file in ram_node.live.glob("config.db*"):
        file.unlink()
    assert ram_node.command("restore", "--json") == 0
    assert not (ram_node.live / "config.db").exists()
    # Not by a remount either.
    assert ram_node.command("final-save", "--json") == ps.EXIT_REFUSED
    ram_node.unmount()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    assert not (ram_node.live / "config.db").exists()


def test_stale_logs_beside_the_restored_file_are_removed_first(ps: ModuleType, ram_node: Node) -> None:
    before = rows_of(ram_node)
    ram_node.power_cut()
    ram_node.mount()
    (ram_node.live / "config.db-wal").write_bytes(b"stale" * 999)
    (ram_node.live / "config.db-shm").write_bytes(b"stale" * 999)
    assert ram_node.command("restore", "--json") == 0
    assert not list(ram_node.live.glob("config.db-*"))
    assert rows_of(ram_node) == before


def test_a_missing_mount_fails_closed_and_the_placeholder_stops_the_daemon(
    ps: ModuleType, ram_node: Node
) -> None:
    ram_node.power_cut()
    assert ram_node.command("restore", "--json") == ps.EXIT_RESTORE
    assert ps.is_placeholder(ram_node.paths.live_db)
    assert not ram_node.start_daemon()
    replica = Path(ram_node.paths.replica).read_bytes()
    assert ram_node.command("save", "--json") == ps.EXIT_REFUSED
    assert ram_node.command("final-save", "--json") == ps.EXIT_REFUSED
    assert Path(ram_node.paths.replica).read_bytes() == replica


def test_a_state_from_before_the_join_is_refused_on_a_member(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    ram_node.power_cut()
    conf = Path(ram_node.paths.corosync_conf)
    conf.parent.mkdir(parents=True)
    conf.write_text("totem {\n  cluster_name: debian\n}\n")
    assert ram_node.boot_restore() == 0
    ram_node.power_cut()
    conf.write_text("totem {\n  cluster_name: x\n  config_version: 3\n}\n")
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    assert "member of a cluster" in capsys.readouterr().out
    assert ram_node.command("restore", "--generation", "latest", "--json") == ps.EXIT_DAMAGED
    # On purpose: fetch everything from the others.
    assert ram_node.command("restore", "--resync", "--json") == 0


def test_a_database_put_there_by_hand_is_accepted_when_it_verifies(ps: ModuleType, ram_node: Node) -> None:
    before = rows_of(ram_node)
    ram_node.power_cut()
    ram_node.mount()
    for file in Path(ram_node.paths.store).glob("config.db*"):
        (ram_node.live / file.name).write_bytes(file.read_bytes())
    assert ram_node.command("restore", "--json") == 0
    assert rows_of(ram_node) == before
    ram_node.power_cut()
    ram_node.mount()
    (ram_node.live / "config.db").write_bytes(b"")
    assert ram_node.command("restore", "--json") == ps.EXIT_RESTORE


def test_a_store_that_cannot_be_written_still_restores(ps: ModuleType, ram_node: Node) -> None:
    before = rows_of(ram_node)
    ram_node.power_cut()
    files = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(ram_node.paths.store).glob("config.db*")}
    assert ram_node.boot_restore() == 0
    assert rows_of(ram_node) == before
    assert {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(ram_node.paths.store).glob("config.db*")
    } == files


def test_the_replica_is_never_raised_and_a_restored_generation_keeps_its_version(
    ps: ModuleType, ram_node: Node
) -> None:
    old = ps.generations(ram_node.paths)[0]
    ram_node.w.write("new", b"new")
    assert ram_node.command("save", "--json") == 0
    assert ram_node.command("restore", "--generation", old.name, "--json") == ps.EXIT_REFUSED
    ram_node.stop_daemon()
    assert ram_node.command("restore", "--generation", old.name, "--json") == 0
    assert ram_node.w.version == old.manifest["root_version"]
    # What was there is kept.
    kept = [g for g in ps.generations(ram_node.paths) if "before" in g.manifest["reason"]]
    assert kept and all(not g.problems() for g in kept)
    assert any(b"new" in [r[7] for r in table(Path(g.db)).values()] for g in kept)


def test_generations_are_verified_ordered_and_pruned(ps: ModuleType, ram_node: Node) -> None:
    config = ps.Config({"generations_keep": 1})
    assert config.keep == 5
    store = ps.Store(ram_node.paths, config)
    for i in range(8):
        ram_node.w.write("x", b"%d" % i)
        ps.save(store)
        with ps.store_lock(ram_node.paths):
            store.open()
            ps.cut_generation(store.connection, ram_node.paths, config, store.lineage, f"turn {i}")
    found = ps.generations(ram_node.paths)
    assert len(found) == 5
    assert [g.manifest["root_version"] for g in found] == sorted(
        (g.manifest["root_version"] for g in found), reverse=True
    )
    assert all(not Path(f"{g.db}-wal").exists() for g in found)
    # The last good one stays, however old.
    for g in found[:4]:
        with open(g.db, "r+b") as handle:
            handle.truncate(4096)
    for i in range(4):
        name = f"20990101T00000{i}Z-v99999-bad"
        Path(f"{ram_node.paths.generations}/{name}.db").write_bytes(b"bad")
        Path(f"{ram_node.paths.generations}/{name}.json").write_text('{"root_version": 99999, "lineage": 1}')
    ps.prune(ram_node.paths, config)
    assert found[4].name in [g.name for g in ps.generations(ram_node.paths)]
    assert ps.find_generation(ram_node.paths, "latest").name == found[4].name
    store.close()


def test_manifest_and_file_that_disagree(ps: ModuleType, ram_node: Node) -> None:
    g = ps.generations(ram_node.paths)[0]
    manifest = json.loads(Path(g.json).read_text())
    Path(g.json).write_text(json.dumps({**manifest, "sha256": "0" * 64}))
    assert "disagree" in ps.Generation(ram_node.paths.generations, g.name).problems()[0]
    assert ram_node.command("verify", "--json") == ps.EXIT_DAMAGED
    ram_node.stop_daemon()
    assert ram_node.command("restore", "--generation", g.name, "--json") == ps.EXIT_DAMAGED


@pytest.mark.parametrize("pattern", ["lrm_status", "^.*$", "^(?:.*/)?[^/]+$", "^[$", "^priv.*$"])
def test_dangerous_noise_is_refused(ps: ModuleType, pattern: str) -> None:
    with pytest.raises(ps.UsageError):
        ps.Config({"noise": [pattern]})


def test_a_save_that_is_still_in_the_log_is_restored(ps: ModuleType, ram_node: Node) -> None:
    store = ps.Store(ram_node.paths, ram_node.config)
    ram_node.w.write("datacenter.cfg", b"only in the log")
    ps.save(store, checkpoint=False)
    saved = rows_of(ram_node)
    # Power fails with the store open: config.db alone is older than its log.
    ram_node.power_cut()
    assert ram_node.boot_restore() == 0
    assert rows_of(ram_node) == saved
    store.close()


@pytest.mark.parametrize("journal", [True, False])
def test_what_was_restored_is_said_once(
    ps: ModuleType,
    ram_node: Node,
    journal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the unit both streams are the journal."""
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    else:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    for argv in ([], ["--json"]):
        ram_node.power_cut()
        ram_node.mount()
        capsys.readouterr()
        assert ram_node.command("restore", *argv) == 0
        out, err = capsys.readouterr()
        assert (out + err).count("restored root version") == 1 and err == ""
        if argv:
            assert json.loads(out)["restored"] is True
        else:
            assert re.fullmatch(r"restored root version \d+ \(\d+ rows\) from the replica, .*\n", out)
