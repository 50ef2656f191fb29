# SPDX-License-Identifier: Apache-2.0
"""Damage planted in the store, in the live database and in the clock: nothing wrong is accepted, nothing good is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Clock, Node, table, without

Rows = dict[int, tuple[Any, ...]]


def config_rows(node: Node, path: str | None = None) -> Rows:
    return without(table(Path(path or node.paths.live_db)), node.config.noise.matches)


def boot(node: Node) -> bool:
    """Start as systemd would; False when it fails closed."""
    return bool(node.run(["systemctl", "start", "pve-cluster.service"]).rc == 0)


def answer(capsys: pytest.CaptureFixture[str], node: Node, *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    node.command(*argv, "--json")
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def generation_files(node: Node) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(node.paths.generations).iterdir()}


# -- a byte that the disk changed


PAGE = 4096
INTERIOR, LEAF = 0x05, 0x0D


class Map:
    """Where things are in a SQLite file, from its documented format."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.count = len(data) // PAGE
        kinds = {n: data[(n - 1) * PAGE + (100 if n == 1 else 0)] for n in range(1, self.count + 1)}
        self.free = []
        trunk = struct.unpack(">I", data[32:36])[0]
        while trunk:
            following, leaves = struct.unpack(">II", self.page(trunk)[:8])
            self.free += [trunk, *struct.unpack(f">{leaves}I", self.page(trunk)[8 : 8 + 4 * leaves])]
            trunk = following
        self.interior = [n for n, kind in kinds.items() if kind == INTERIOR and n not in self.free]
        self.leaves = [n for n, kind in kinds.items() if kind == LEAF and n > 1 and n not in self.free]

    def page(self, number: int) -> bytes:
        return self.data[(number - 1) * PAGE : number * PAGE]

    def offsets(self, content: bytes) -> dict[str, list[int]]:
        """{place: offsets in the file}; ``content`` is the data of a large file."""

        def at(number: int, *bytes_: int) -> list[int]:
            return [(number - 1) * PAGE + b for b in bytes_]

        blob = self.data.index(content[-3000:-2000])
        return {
            "header": [0, 15, 16, 17, 18, 19, 20, 28, 31, 35, 47, 56, 59, 100, 104],
            "interior page": [
                o for n in self.interior for o in at(n, 0, 3, 4, 5, 6, 8, 11, 12, 13, 4000, 4095)
            ],
            "leaf page": [o for n in self.leaves[1:4] for o in at(n, 0, 1, 3, 4, 5, 6, 8, 9, 10, 11)],
            "free page": [o for n in self.free[:2] for o in at(n, 0, 3, 7, 11, 2000)],
            "blob": [blob + 1, blob + 500, self.data.index(content[:200]) + 100],
            "name": [self.data.index(b"231.conf") + 1],
            "chain of a blob": at(1 + (blob // PAGE), 0, 1, 2, 3),
        }


BIG = b"".join(b"%07d\n" % i for i in range(4000))


@pytest.fixture
def large(ram_node: Node) -> Node:
    """A node with interior pages, overflow pages and free pages, saved and cut off from power."""
    for i in range(200, 290):
        ram_node.w.write(f"nodes/pve1/qemu-server/{i}.conf", b"name: guest%d\n" % i * (i % 70 + 1))
    ram_node.w.write("priv/big", BIG)
    for i in range(200, 290, 4):
        ram_node.w.delete(f"nodes/pve1/qemu-server/{i}.conf")
    ram_node.w.write("priv/gone", BIG)
    assert ram_node.command("save", "--json") == 0
    ram_node.w.delete("priv/gone")
    assert ram_node.command("save", "--generation", "--json") == 0
    return ram_node


def flips_of(node: Node, place: str) -> list[int]:
    data = Path(node.paths.replica).read_bytes()
    found = Map(data)
    assert found.free and found.interior and len(found.leaves) > 4
    if place == "anywhere":
        return random.Random(4).sample(range(len(data)), 60)
    return found.offsets(BIG)[place]


@pytest.mark.parametrize(
    "place",
    ["header", "interior page", "leaf page", "free page", "blob", "name", "chain of a blob", "anywhere"],
)
@pytest.mark.parametrize("clean", [False, True])
def test_a_flipped_byte_is_refused_or_mended(
    ps: ModuleType, large: Node, place: str, clean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never another state than the one that was saved, wherever the byte is."""
    monkeypatch.setattr(ps, "log", lambda level, message: None)
    wanted = config_rows(large)
    large.stop_daemon()
    if clean:
        assert large.command("final-save", "--json") == 0
    replica = Path(large.paths.replica)
    state = Path(large.paths.state_file).read_bytes()
    outcomes = []
    for offset in flips_of(large, place):
        data = bytearray(replica.read_bytes())
        before = data[offset]
        data[offset] ^= (0x01, 0x80, 0x10, 0xFF)[offset % 4]
        replica.write_bytes(data)
        large.power_cut()
        large.mount()
        try:
            restored = ps.restore_boot(large.paths, large.config)
        except ps.RestoreError:
            outcomes.append("refused")
            assert not os.path.exists(large.paths.live_db)
        else:
            outcomes.append("mended" if restored.get("mended") else "whole")
            assert config_rows(large) == wanted, f"offset {offset}"
        # The store is not touched: whoever looks into it later finds what the disk holds.
        assert replica.read_bytes() == data and Path(large.paths.state_file).read_bytes() == state
        data[offset] = before
        replica.write_bytes(data)
    if place in ("blob", "name"):
        assert set(outcomes) == {"mended"}
    elif place == "anywhere":
        assert {"mended", "whole"} <= set(outcomes)
    else:
        assert "refused" in outcomes


def test_what_was_mended_is_told_and_then_saved(
    ps: ModuleType, large: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = config_rows(large)
    replica = Path(large.paths.replica)
    large.stop_daemon()
    assert large.command("save", "--json") == 0
    data = bytearray(replica.read_bytes())
    data[data.index(BIG[-3000:-2000])] ^= 1
    replica.write_bytes(data)
    large.power_cut()
    capsys.readouterr()
    assert boot(large)
    assert "priv/big is damaged" in capsys.readouterr().err
    assert ps.read_json(large.paths.restore_file)["mended"] == ["priv/big"]
    assert "priv/big" in str(answer(capsys, large, "status")["warnings"])
    assert config_rows(large) == wanted
    watcher = ps.Watcher(large.paths, large.config)
    Clock(watcher).run(2)
    watcher.finish()
    inode = large.w.find("priv/big") or 0
    assert table(Path(large.paths.replica))[inode][7] == BIG
    # What the disk held is kept as well.
    kept = [g for g in ps.generations(large.paths) if g.manifest["reason"] == "before a new lineage"]
    assert len(kept) == 1
    rotten = table(Path(kept[0].db))[inode][7]
    assert len(rotten) == len(BIG) and sum(a != b for a, b in zip(rotten, BIG, strict=True)) == 1


def test_after_a_clean_stop_a_change_that_no_generation_has_is_checked_too(
    ps: ModuleType, large: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    large.w.write("priv/newer", BIG[::-1])
    large.stop_daemon()
    assert large.command("final-save", "--json") == 0
    replica = Path(large.paths.replica)
    data = bytearray(replica.read_bytes())
    data[data.index(BIG[::-1][-3000:-2000])] ^= 1
    replica.write_bytes(data)
    large.power_cut()
    capsys.readouterr()
    assert not boot(large)
    assert "does not hold what the clean stop saved" in capsys.readouterr().out
    assert large.command("restore", "--generation", "latest", "--json") == 0
    assert large.w.find("priv/big") and not large.w.find("priv/newer")


def test_a_day_s_generation_does_not_carry_rot_on(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk loses a byte under a running watcher; what is cut next day must be the truth."""
    inode = ram_node.w.find("storage.cfg")
    good = ram_node.w.rows()[inode or 0][7]
    watcher = ps.Watcher(ram_node.paths, ram_node.config)
    clock = Clock(watcher)
    clock.run(2)
    database = sqlite3.connect(ram_node.paths.replica)
    database.execute("UPDATE tree SET data=? WHERE inode=?", (b"x" * len(good), inode))
    database.commit()
    database.close()
    tomorrow = ps.time.time() + 90000
    monkeypatch.setattr(ps, "time", Moment(tomorrow))
    ram_node.w.write("datacenter.cfg", b"1")
    clock.run(2)
    assert table(Path(ram_node.paths.replica))[inode or 0][7] == good
    newest = ps.generations(ram_node.paths)[0]
    assert table(Path(newest.db))[inode or 0][7] == good
    watcher.finish()


# -- the store


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\x00" * 300,
        b"[]",
        b'{"lineage": "two"}',
        b'{"lineage": [1], "root_version": 7}',
        b'{"root_version": "7"}',
        b'{"lineage": 1, "root_version": 7, "time": 5}',
        None,
    ],
)
def test_a_manifest_that_is_none_stops_nothing(
    ps: ModuleType, ram_node: Node, manifest: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    ram_node.w.write("datacenter.cfg", b"1")
    good = answer(capsys, ram_node, "save", "--generation")["generation"]
    ram_node.w.write("datacenter.cfg", b"2")
    bad = answer(capsys, ram_node, "save", "--generation")["generation"]
    file = Path(f"{ram_node.paths.generations}/{bad}.json")
    if manifest is None:
        file.unlink()
    else:
        file.write_bytes(manifest)
    assert "manifest" in str(answer(capsys, ram_node, "verify")["checks"][bad]) or "json" in str(
        answer(capsys, ram_node, "verify")["checks"][bad]
    )
    assert answer(capsys, ram_node, "status")["state"] == "enabled"
    assert bad in [g["name"] for g in answer(capsys, ram_node, "list")["generations"]]
    ram_node.w.write("datacenter.cfg", b"3")
    assert answer(capsys, ram_node, "save", "--generation")["generation"]
    assert ps.find_generation(ram_node.paths, "latest").name not in (good, bad)
    ram_node.power_cut()
    Path(ram_node.paths.replica).unlink()
    assert not boot(ram_node)
    assert ram_node.command("restore", "--generation", "latest", "--json") == 0
    assert b"3" in [row[7] for row in ram_node.w.rows().values()]


@pytest.mark.parametrize("content", [b"", b"\x00" * 90, b"[]", b'{"lineage": "x"}', b'{"lineage": -1}', None])
def test_a_state_file_that_is_none_stops_nothing(
    ps: ModuleType, ram_node: Node, content: bytes | None
) -> None:
    """The next lineage is above every generation, so that what is saved from here on is the newest."""
    newest = ps.generations(ram_node.paths)[0].manifest["lineage"]
    wanted = config_rows(ram_node)
    ram_node.power_cut()
    if content is None:
        Path(ram_node.paths.state_file).unlink()
    else:
        Path(ram_node.paths.state_file).write_bytes(content)
    assert boot(ram_node)
    assert config_rows(ram_node) == wanted
    assert ps.read_json(ram_node.paths.restore_file)["clean"] is False
    ram_node.w.write("datacenter.cfg", b"1")
    assert ram_node.command("save", "--generation", "--json") == 0
    found = ps.generations(ram_node.paths)
    assert found[0].manifest["lineage"] > newest
    assert b"1" in [row[7] for row in table(Path(found[0].db)).values()]


def member(node: Node) -> None:
    Path(node.paths.corosync_conf).parent.mkdir(parents=True, exist_ok=True)
    Path(node.paths.corosync_conf).write_text("totem {\n  cluster_name: x\n  config_version: 3\n}\n")


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a database of no bytes"])
def test_an_empty_store_on_a_member(
    ps: ModuleType, ram_node: Node, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon would start empty and the cluster would take that for a state."""
    member(ram_node)
    ram_node.power_cut()
    store = Path(ram_node.paths.store)
    shutil.rmtree(store)
    if left != "nothing":
        store.mkdir()
    if left == "a database of no bytes":
        Path(ram_node.paths.replica).touch()
    capsys.readouterr()
    assert not boot(ram_node)
    assert (
        "the fix is one command: pve-state restore --resync" in json.loads(capsys.readouterr().out)["error"]
    )
    assert ram_node.writer is None and not (ram_node.live / "config.db").exists()
    assert answer(capsys, ram_node, "status")["fix"] == "pve-state restore --resync"
    # On purpose, and then the daemon is the one that fetches everything.
    assert ram_node.command("restore", "--resync", "--json") == 0
    assert ram_node.start_sees[-1] == b""


def test_a_member_with_a_copy_from_after_its_join_restores_that(
    ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    member(ram_node)
    ram_node.w.write("corosync.conf", b"totem {\n config_version: 3\n}\n")
    assert ram_node.command("save", "--json") == 0
    wanted = config_rows(ram_node)
    ram_node.power_cut()
    Path(ram_node.paths.replica).unlink()
    capsys.readouterr()
    assert not boot(ram_node)
    assert answer(capsys, ram_node, "status")["fix"] == "pve-state restore --generation latest"
    assert ram_node.command("restore", "--generation", "latest", "--json") == 0
    assert config_rows(ram_node) == wanted


def test_a_store_that_vanishes_under_the_watcher_is_made_anew(clock: Clock, ram_node: Node) -> None:
    shutil.rmtree(ram_node.paths.store)
    ram_node.w.write("datacenter.cfg", b"1")
    clock.run(3)
    assert clock.watcher.status["error"] is None
    assert config_rows(ram_node, ram_node.paths.replica) == config_rows(ram_node)


def test_a_log_from_another_life_beside_the_replica(ps: ModuleType, ram_node: Node) -> None:
    """Somebody copies an old generation over config.db and leaves the log: no mixture of the two is accepted."""
    old = ps.generations(ram_node.paths)[0]
    states = [config_rows(ram_node, old.db)]
    store = ps.Store(ram_node.paths, ram_node.config)
    for i in range(3):
        for k in range(40):
            ram_node.w.write(f"nodes/pve1/lxc/{200 + k}.conf", b"%d" % i * (k + 1) * 20)
        ps.save(store, checkpoint=i == 0)
        states.append(config_rows(ram_node))
    log = Path(ram_node.paths.replica + "-wal").read_bytes()
    ram_node.power_cut()
    store.close()
    shutil.copy(old.db, ram_node.paths.replica)
    Path(ram_node.paths.replica + "-wal").write_bytes(log)
    if boot(ram_node):
        assert config_rows(ram_node) in states
    else:
        assert ram_node.command("restore", "--generation", "latest", "--json") == 0
        assert config_rows(ram_node) in states


def test_a_valid_log_of_the_former_life_beside_the_live_database(ps: ModuleType, ram_node: Node) -> None:
    """SQLite would replay it into the restored file."""
    wanted = config_rows(ram_node)
    ram_node.w.write("unsaved", b"of the former life")
    log = (ram_node.live / "config.db-wal").read_bytes()
    assert len(log) > 4096
    ram_node.power_cut()
    ram_node.mount()
    (ram_node.live / "config.db-wal").write_bytes(log)
    assert boot(ram_node)
    assert config_rows(ram_node) == wanted


# -- the live database


def sql(statement: str) -> Callable[[Node], None]:
    def plant(node: Node) -> None:
        node.w.db.execute("BEGIN IMMEDIATE")
        node.w.db.execute("UPDATE tree SET version=version+1 WHERE inode=0")
        node.w.db.execute(statement)
        node.w.db.execute("COMMIT")

    return plant


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (
            sql(
                "INSERT INTO tree SELECT t.version,s.parent,t.version,1,1,8,s.name,s.data FROM tree t, tree s"
                " WHERE t.inode=0 AND s.name='storage.cfg'"
            ),
            "the same name",
        ),
        (sql("UPDATE tree SET parent=4711, version=version WHERE name='storage.cfg'"), "4711 is missing"),
        (sql("DELETE FROM tree WHERE inode<>0"), "no file at all"),
        (
            sql(
                "INSERT INTO tree SELECT version,(SELECT inode FROM tree WHERE name='lxc'),version,1,1,8,"
                "'100.conf',x'00' FROM tree WHERE inode=0"
            ),
            "guest 100 twice",
        ),
    ],
)
def test_damage_in_the_live_database_is_not_saved(
    ps: ModuleType, clock: Clock, ram_node: Node, plant: Callable[[Node], None], message: str
) -> None:
    """Loud, the replica and the generations as they were, and saves go on once it is well again."""
    good = ram_node.w.rows()
    replica, kept = table(Path(ram_node.paths.replica)), generation_files(ram_node)
    plant(ram_node)
    clock.run(8)
    assert message in clock.watcher.status["error"] and not clock.watcher.status["ready"]
    assert table(Path(ram_node.paths.replica)) == replica
    assert generation_files(ram_node) == kept
    ram_node.w.db.execute("BEGIN IMMEDIATE")
    ram_node.w.db.execute("DELETE FROM tree")
    ram_node.w.db.executemany("INSERT INTO tree VALUES(?,?,?,?,?,?,?,?)", good.values())
    ram_node.w.db.execute("COMMIT")
    ram_node.w.write("datacenter.cfg", b"1")
    clock.run(40)
    assert clock.watcher.status["error"] is None
    assert config_rows(ram_node, ram_node.paths.replica) == config_rows(ram_node)


def test_a_replica_ahead_of_the_live_state_is_kept(ps: ModuleType, clock: Clock, ram_node: Node) -> None:
    """The whole cluster was rolled back. What was here is history now, and the rolled back state is the state."""
    old = ram_node.w.rows()
    ram_node.w.write("storage.cfg", b"the future")
    clock.run(3)
    ahead = table(Path(ram_node.paths.replica))
    ram_node.w.db.execute("BEGIN IMMEDIATE")
    ram_node.w.db.execute("DELETE FROM tree")
    ram_node.w.db.executemany("INSERT INTO tree VALUES(?,?,?,?,?,?,?,?)", old.values())
    ram_node.w.db.execute("COMMIT")
    clock.run(3)
    assert clock.watcher.store.lineage == 2
    assert config_rows(ram_node, ram_node.paths.replica) == config_rows(ram_node)
    newest, *others = ps.generations(ram_node.paths)
    assert newest.manifest["lineage"] == 2 and newest.manifest["root_version"] < ahead[0][2]
    assert ahead in [table(Path(g.db)) for g in others]
    wanted = config_rows(ram_node)
    ram_node.power_cut()
    assert boot(ram_node)
    assert config_rows(ram_node) == wanted


# -- the clock


class Moment:
    """Stands in for the module ``time`` of the program, at a time of day that a test sets."""

    def __init__(self, now: float) -> None:
        import time

        self.now = now
        self.monotonic, self.strftime, self.sleep = time.monotonic, time.strftime, time.sleep
        self.clock_gettime_ns, self._gmtime = time.clock_gettime_ns, time.gmtime

    def time(self) -> float:
        return self.now

    def gmtime(self, seconds: float | None = None) -> Any:
        return self._gmtime(self.now if seconds is None else seconds)


@pytest.mark.slow
@pytest.mark.parametrize("step", [-86400.0, -400 * 86400.0, 86400.0, 400 * 86400.0])
def test_the_clock_is_set(
    ps: ModuleType, ram_node: Node, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves go on, the newest state is the newest by version, and no save of the same day costs history."""
    moment = Moment(ps.time.time())
    monkeypatch.setattr(ps, "time", moment)
    before = {g.name for g in ps.generations(ram_node.paths)}
    watcher = ps.Watcher(ram_node.paths, ram_node.config)
    clock = Clock(watcher)
    clock.run(2)
    moment.now += step
    for i in range(20):
        ram_node.w.write("datacenter.cfg", b"%d" % i)
        moment.now += 60
        clock.run(3)
        assert config_rows(ram_node, ram_node.paths.replica) == config_rows(ram_node)
    found = ps.generations(ram_node.paths)
    assert before <= {g.name for g in found}
    assert [g.manifest["reason"] for g in found if g.name not in before] == ["daily"]
    # A day later there is one more, and it is the newest, whatever its date says.
    moment.now += 86400
    ram_node.w.write("datacenter.cfg", b"tomorrow")
    clock.run(3)
    assert [g.manifest["reason"] for g in ps.generations(ram_node.paths)[:2]] == ["daily", "daily"]
    latest = ps.find_generation(ram_node.paths, "latest")
    assert b"tomorrow" in [row[7] for row in table(Path(latest.db)).values()]
    # Pruning goes by version as well.
    for i in range(30):
        ram_node.w.write("datacenter.cfg", b"more %d" % i)
        assert ram_node.command("save", "--generation", "--json") == 0
    found = ps.generations(ram_node.paths)
    assert len(found) <= ram_node.config.keep
    assert b"more 29" in [row[7] for row in table(Path(found[0].db)).values()]
    watcher.finish()


def test_two_states_in_one_second_are_two_generations(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ps, "time", Moment(ps.time.time()))
    rows = ram_node.w.rows()
    wanted = []
    for i in range(3):
        # Each time the same root version, and another history.
        ram_node.w.db.execute("UPDATE tree SET version=1, data=? WHERE name='storage.cfg'", (b"x" * (i + 1),))
        ram_node.w.db.execute("UPDATE tree SET version=? WHERE inode=0", (rows[0][2] + 5,))
        assert ram_node.command("save", "--json") == 0
        wanted.append(b"x" * (i + 1))
    held = [table(Path(g.db)) for g in ps.generations(ram_node.paths)]
    for content in wanted:
        assert any(content in [row[7] for row in rows.values()] for rows in held)


# -- two at once


def test_who_holds_the_lock_is_named(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()}) holds the lock"
    with ps.Lock(f"{ram_node.paths.run}/watch.lock", "test", create=True):
        assert f"a watcher runs already: {holder}" in answer(capsys, ram_node, "watch")["error"]
    with ps.store_lock(ram_node.paths), pytest.raises(ps.Locked, match="store is busy") as caught:
        with ps.store_lock(ram_node.paths, wait=0):
            pass
    assert holder in str(caught.value)
