"""Reading the daemon's database: paths, hashes and what a join would throw away."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.pmxcfs import members, pmxcfs, tree

SCHEMA = (
    "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT NULL, "
    "writer INTEGER NOT NULL, mtime INTEGER NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB)"
)


def database(path: Path, files: dict[str, bytes], version: int = 9) -> Path:
    connection = sqlite3.connect(path)
    connection.execute(SCHEMA)
    connection.execute("INSERT INTO tree VALUES (0, 0, ?, 1, 0, 8, '__version__', NULL)", (version,))
    inodes = {"": 0}
    for name, data in files.items():
        parts = name.split("/")
        for depth, part in enumerate(parts, 1):
            full, above = "/".join(parts[:depth]), "/".join(parts[: depth - 1])
            if full not in inodes:
                inodes[full] = len(inodes)
                leaf = depth == len(parts)
                connection.execute(
                    "INSERT INTO tree VALUES (?, ?, 1, 1, 0, ?, ?, ?)",
                    (inodes[full], inodes[above], 8 if leaf else 4, part, data if leaf else None),
                )
    connection.commit()
    connection.close()
    return path


def test_guests_storages_and_users_are_what_an_operator_made(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "var/lib/pve-cluster").mkdir(parents=True)
    database(
        root / "var/lib/pve-cluster/config.db",
        {
            "nodes/a/qemu-server/101.conf": b"x",
            "nodes/a/lxc/100.conf": b"x",
            "nodes/a/qemu-server/notes.conf": b"x",
            "storage.cfg": b"dir: local\n\tpath /var/lib/vz\n\nnfs: tank\n\tserver x\n",
            "user.cfg": b"user:root@pam:1:0:::a@b::\nuser:eve@pve:1:0:::\nacl:1:/:eve@pve:Admin:\n",
        },
    )
    facts = pmxcfs.collect(root)
    assert facts["mode"] == "down" and facts["mounted"] is False
    assert facts["guests"] == [100, 101]
    assert facts["storages"] == ["tank"] and facts["storage"]
    assert facts["extra_users"] == ["user:eve@pve", "acl:1"] and facts["users"]
    assert facts["root_version"] == 9
    # Looking left nothing behind.
    assert [p.name for p in (root / "var/lib/pve-cluster").iterdir()] == ["config.db"]


def test_a_stock_installation_holds_nothing_of_its_own(tmp_path: Path) -> None:
    assert pmxcfs.custom_storages("dir: local\n\tpath /x\n\nlvmthin: local-lvm\n\tthinpool data\n") == []
    assert pmxcfs.custom_users("user:root@pam:1:0:::mail::\n") == []


def test_the_hash_ignores_noise_and_inodes_and_sees_content(tmp_path: Path) -> None:
    def digest(name: str, files: dict[str, bytes], version: int = 1) -> str:
        return tree.sha256_of(pmxcfs.read_tree(database(tmp_path / name, files, version))[1], tree.Noise())

    base = digest("a.db", {"x": b"1", "nodes/a/y": b"2"})
    assert base == digest("b.db", {"nodes/a/y": b"2", "x": b"1", "nodes/a/lrm_status": b"beat"}, version=7)
    assert base != digest("c.db", {"x": b"1", "nodes/a/y": b"3"})
    assert base != digest("d.db", {"x": b"1", "nodes/a/z": b"2"})


@pytest.mark.parametrize("path", ["nodes/a/lrm_status", "ha/manager_status", "priv/lock/file-x", "a/b.cfg.tmp.77", "priv/lock"])
def test_noise(path: str) -> None:
    assert tree.Noise().leaves_out(path)


@pytest.mark.parametrize(
    "path", ["lrm_status", "nodes/a/lrm_status2", "nodes/a/b/lrm_status", "x.tmp.", "x.tmp.1a", "priv/lockfile", "my.tmp.5.cfg"]
)
def test_what_only_looks_like_noise_is_configuration(path: str) -> None:
    assert not tree.Noise().leaves_out(path)


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(PveguardError, match="x.db"):
        pmxcfs.read_tree(tmp_path / "x.db")
    with pytest.raises(PveguardError, match="does not exist"):
        pmxcfs.read_tree(tmp_path / "y.db")


def test_a_write_ahead_log_without_its_daemon_is_not_touched(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db", {"x": b"1"})
    log = Path(f"{path}-wal")
    log.write_bytes(b"w" * 4120)
    before = path.read_bytes(), log.read_bytes(), path.stat().st_mtime_ns, log.stat().st_mtime_ns
    # No frame of it is valid: the file is the state, as it is for SQLite.
    assert pmxcfs.read_tree(path)[1]["x"] == (8, b"1")
    assert (path.read_bytes(), log.read_bytes(), path.stat().st_mtime_ns, log.stat().st_mtime_ns) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.db", "x.db-wal"]


def test_members_that_are_not_json_or_nested_too_deep_are_one_error() -> None:
    for text in ("", "{", "[" * 99999, "nodename: pve1"):
        with pytest.raises(ValueError):
            members.parse(text)
    for said in ([], {}, None, {"nodename": "pve1", "version": 0}):
        assert members.parse(json.dumps(said)) == said, "of which shape is for who asks"


def test_the_addresses_that_members_tell_each_other(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("36 25 0:32 / /etc/pve rw,nosuid - fuse /dev/fuse rw\n")
    (tmp_path / "etc/pve").mkdir(parents=True)
    said = {
        "nodename": "pve1",
        "cluster": {"name": "production", "nodes": 2, "quorate": 1},
        "nodelist": {"pve1": {"id": 1, "online": 1, "ip": "192.0.2.1"}, "pve2": {"id": 2, "online": 0}},
    }
    (tmp_path / "etc/pve/.members").write_text(json.dumps(said))
    facts = pmxcfs.collect(tmp_path)
    # A member that is away has none.
    assert facts["member_addresses"] == {"pve1": "192.0.2.1"} and facts["quorate"] is True
    (tmp_path / "etc/pve/.members").write_text('{"nodename": "pve1", "version": 0}')
    assert pmxcfs.collect(tmp_path)["member_addresses"] == {}
