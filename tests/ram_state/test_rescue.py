# SPDX-License-Identifier: Apache-2.0
"""What the daemon serves reaches the disk: into the replica where the daemon would load it, beside it otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Clock, Node, fill, left, prepare_files, table, without

Rows = dict[int, tuple[Any, ...]]


def config_rows(node: Node, rows: Rows | None = None) -> Rows:
    return without(node.w.rows() if rows is None else rows, node.config.noise.matches)


def saved(node: Node) -> Rows:
    return left(Path(node.paths.replica))


def files(rows: Rows) -> Rows:
    """Without the root version, which need not be saved for itself."""
    return {inode: row for inode, row in rows.items() if inode}


def rescued(node: Node) -> Rows:
    return left(Path(node.paths.aside().replica))


def status(node: Node, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    node.command("status", "--json")
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def plant_guest_twice(node: Node) -> None:
    """As a resync from a leader brings it in; through /etc/pve the daemon refuses it."""
    version = node.w.version + 1
    folder = node.w.find("nodes/pve1/lxc")
    node.w._commit(("INSERT INTO tree VALUES(?,?,?,1,1,8,'100.conf',x'00')", (version, folder, version)))


def empty(node: Node) -> None:
    node.w.db.execute("BEGIN IMMEDIATE")
    node.w.db.execute("DELETE FROM tree WHERE inode<>0")
    node.w.db.execute("UPDATE tree SET version=version+1")
    node.w.db.execute("COMMIT")


def make_member(node: Node) -> None:
    """The host has a cluster's corosync.conf."""
    conf = Path(node.paths.corosync_conf)
    conf.parent.mkdir(parents=True)
    conf.write_text("totem {\n config_version: 3\n}\n")


def corosync_conf_alone(node: Node) -> None:
    empty(node)
    node.w.write("corosync.conf", b"totem {\n config_version: 3\n}\n")


@pytest.mark.parametrize(
    "path",
    [
        "backup/pve1/qemu-server/100.conf",
        "nodes/pve1.old/qemu-server/100.conf",
        "nodes/pve1/qemu-server/100.conf.d/lxc/100.conf",
        "nodes/pve1/old/qemu-server/100.conf",
        "nodes/-pve1/qemu-server/100.conf",
        "lxc2/lxc/100.conf",
        "qemu-server/100.conf",
        "nodes/pve1/qemu-server/0100.conf",
        "nodes/pve1/lxc/100.conf.bak",
        "nodes/pve2/images/lxc/100.conf",
    ],
)
def test_a_copy_of_a_guest_is_saved_like_any_other_file(
    ps: ModuleType, clock: Clock, ram_node: Node, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ram_node.w.write(path, b"name: a copy\n")
    clock.run(3)
    assert clock.watcher.status["error"] is None and clock.watcher.status["warnings"] == []
    assert saved(ram_node) == config_rows(ram_node)
    ram_node.w.write("datacenter.cfg", b"a change of the days after")
    clock.run(3)
    before = config_rows(ram_node)
    assert ps.verify_database(ram_node.paths.replica)[0] == []
    ram_node.power_cut()
    assert ram_node.boot_restore() == 0
    assert config_rows(ram_node, table(ram_node.live / "config.db")) == before


STATES: dict[str, tuple[Callable[[Node], None], str, str]] = {
    "guest twice": (plant_guest_twice, "unloadable", "the guest 100 twice: /etc/pve/nodes/pve1"),
    "emptied": (empty, "emptied", "no file at all"),
    "corosync.conf alone": (corosync_conf_alone, "emptied", "corosync.conf alone"),
}


@pytest.mark.parametrize("state", STATES)
def test_what_must_not_go_over_the_replica_is_kept_beside_it_and_followed(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, kind, why = STATES[state]
    good = saved(ram_node)
    plant(ram_node)
    clock.run(ram_node.config.rpo)
    assert why in clock.watcher.status["error"]
    assert saved(ram_node) == good and rescued(ram_node) == config_rows(ram_node)
    found = status(ram_node, capsys)
    assert (found["state"], found["rescue"]["kind"]) == ("failed", kind) and why in found["reason"]
    # It is not in the replica, and yet not lost.
    assert found["rescue"]["differs"] and found["would_lose"] == []
    assert "pveguard_state_rescue_pending 1" in ps.metrics_text(clock.watcher.facts(clock.now))
    if kind == "unloadable":
        # It follows every change, within the RPO, and costs what the change costs.
        ram_node.w.write("datacenter.cfg", b"while it is so")
        clock.run(ram_node.config.rpo)
        assert saved(ram_node) == good and rescued(ram_node) == config_rows(ram_node)
    # Heartbeats do not write there.
    before = Path(ram_node.paths.aside().replica + "-wal").read_bytes()
    ram_node.w.write("half.tmp.12", b"{1}")
    clock.run(5)
    assert Path(ram_node.paths.aside().replica + "-wal").read_bytes() == before


@pytest.mark.parametrize("state", STATES)
def test_once_it_is_mended_it_is_saved_as_usual(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    STATES[state][0](ram_node)
    clock.run(3)
    kept = config_rows(ram_node)
    if state == "guest twice":
        ram_node.w.delete("nodes/pve1/lxc/100.conf")
    else:
        ram_node.w.write("storage.cfg", b"dir: anew\n")
    clock.run(3)
    assert clock.watcher.status["error"] is None and files(saved(ram_node)) == files(config_rows(ram_node))
    assert status(ram_node, capsys)["rescue"] is None
    assert "pveguard_state_rescue_pending 0" in ps.metrics_text(clock.watcher.facts(clock.now))
    (former,) = Path(ram_node.paths.rescue).glob("*.db")
    assert table(former.rename(former.with_name("looked-at"))) == kept


@pytest.mark.parametrize("stop", ["orderly", "power cut"])
@pytest.mark.parametrize("state", STATES)
def test_the_next_start_asks(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, stop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(ram_node)
    STATES[state][0](ram_node)
    clock.run(3)
    served = config_rows(ram_node)
    if stop == "orderly":
        ram_node.stop_daemon()
        capsys.readouterr()
        assert ram_node.command("final-save", "--json") == ps.EXIT_DAMAGED
        assert "rescue" in json.loads(capsys.readouterr().out)["message"]
    clock.watcher.following = False
    ram_node.power_cut()
    for turn in ("first", "again"):
        capsys.readouterr()
        assert ram_node.run(["systemctl", "start", "pve-cluster.service"]).rc != 0, turn
        error = json.loads(capsys.readouterr().out)["error"]
        assert ram_node.writer is None and not (ram_node.live / "config.db").exists()
        for said in ("--rescued", "--replica", "differ in", ram_node.paths.rescue):
            assert said in error
    found = status(ram_node, capsys)
    assert found["state"] == "failed" and "pve-state restore --replica" in found["fix"]
    assert ("storage.cfg" in found["rescue"]["differs"]) == (state != "guest twice")
    assert ("nodes/pve1/lxc/100.conf" in found["rescue"]["differs"]) == (state == "guest twice")
    # Nothing was changed by all that.
    assert (saved(ram_node), rescued(ram_node)) == (good, served)


@pytest.mark.parametrize("state", STATES)
def test_the_older_state_can_be_taken_and_single_files_after_it(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(ram_node)
    STATES[state][0](ram_node)
    clock.run(3)
    served = config_rows(ram_node)
    ram_node.power_cut()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    assert ram_node.command("restore", "--replica", "--json") == 0
    assert config_rows(ram_node) == good
    assert status(ram_node, capsys)["rescue"] is None
    # What was not taken is not lost.
    target = ram_node.root / "out"
    capsys.readouterr()
    assert ram_node.command("restore-file", "rescued", "/", "--output", str(target), "--json") == 0
    wanted = [row for i, row in served.items() if i and row[5] == 8]
    assert json.loads(capsys.readouterr().out)["files"] == len(wanted)


@pytest.mark.parametrize("choice", ["--replica", "--rescued"])
@pytest.mark.parametrize("state", STATES)
def test_a_daemon_that_ends_in_the_same_boot(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, choice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot start again from what it left, or must not: nothing is mounted anew, and the unit has restored already."""
    good = saved(ram_node)
    STATES[state][0](ram_node)
    clock.run(3)
    served = config_rows(ram_node)
    ram_node.stop_daemon()
    if "corosync" in state and choice == "--rescued":
        make_member(ram_node)
    found = status(ram_node, capsys)
    assert found["state"] == "failed" and "pve-state restore --replica" in found["fix"]
    assert ram_node.command("restore", choice, "--unsound", "--peers-down", "--json") == 0, capsys.readouterr().out
    assert config_rows(ram_node) == (good if choice == "--replica" else served)
    assert status(ram_node, capsys)["rescue"] is None
    # What was not taken is kept.
    kept = [*Path(ram_node.paths.rescue).glob("*.db"), *Path(ram_node.paths.generations).glob("*.db")]
    assert (served if choice == "--replica" else good) in [config_rows(ram_node, left(path)) for path in kept]


@pytest.mark.parametrize("state", ["emptied", "corosync.conf alone"])
def test_the_state_that_was_served_last_can_be_taken(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(ram_node)
    STATES[state][0](ram_node)
    clock.run(3)
    served = config_rows(ram_node)
    if "corosync" in state:
        make_member(ram_node)
    ram_node.power_cut()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    capsys.readouterr()
    code = ram_node.command("restore", "--rescued", "--peers-down", "--json")
    assert code == 0, capsys.readouterr()
    assert config_rows(ram_node) == served == saved(ram_node)
    assert status(ram_node, capsys)["rescue"] is None
    # The former state is a generation.
    assert any(config_rows(ram_node, table(Path(g.db))) == good for g in ps.generations(ram_node.paths))


def test_a_state_that_the_daemon_would_not_load_is_taken_only_when_told_so(
    ps: ModuleType, clock: Clock, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_guest_twice(ram_node)
    clock.run(3)
    served = config_rows(ram_node)
    ram_node.power_cut()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    before = saved(ram_node), rescued(ram_node)
    capsys.readouterr()
    assert ram_node.command("restore", "--rescued", "--json") == ps.EXIT_DAMAGED
    assert "--unsound" in json.loads(capsys.readouterr().out)["error"]
    assert (saved(ram_node), rescued(ram_node)) == before and ram_node.writer is None
    assert ram_node.command("restore", "--rescued", "--unsound", "--json") == 0
    assert config_rows(ram_node) == served


def test_a_save_by_hand_says_where_it_went(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_guest_twice(ram_node)
    capsys.readouterr()
    assert ram_node.command("save", "--json") == ps.EXIT_DAMAGED
    told = json.loads(capsys.readouterr().out)
    assert told["rescued"]["path"] == ram_node.paths.aside().replica and "nodes/pve1/lxc/100.conf" in told["error"]
    assert rescued(ram_node) == config_rows(ram_node)


def test_a_database_that_cannot_be_read_is_kept_as_it_is(
    ps: ModuleType, clock: Clock, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(ram_node)
    ram_node.w.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    path = ram_node.live / "config.db"
    with open(path, "r+b") as handle:
        handle.seek(4096)
        handle.write(b"\xff" * 200)
    damaged = path.read_bytes()
    clock.watcher.position = None
    clock.watcher.save_now = True
    clock.run(2)
    assert saved(ram_node) == good and "rescue" in clock.watcher.status["error"]
    (kept,) = Path(ram_node.paths.rescue).glob("*-raw/config.db")
    assert kept.read_bytes() == damaged
    # The same files are not copied again and again.
    clock.run(90)
    assert len(list(Path(ram_node.paths.rescue).glob("*-raw"))) == 1
    ram_node.power_cut()
    capsys.readouterr()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    assert "cannot be read" in json.loads(capsys.readouterr().out)["error"]
    assert ram_node.command("restore", "--rescued", "--unsound", "--json") == ps.EXIT_DAMAGED
    assert ram_node.command("restore", "--replica", "--json") == 0
    assert config_rows(ram_node) == good


STRANGE = {
    "a root version below a version": ("UPDATE tree SET version=3 WHERE inode=0", "above the root version"),
    "no row __version__": ("DELETE FROM tree WHERE inode=0", "__version__"),
}


@pytest.mark.parametrize("state", STRANGE)
def test_what_is_strange_is_saved_with_a_warning_and_restored_only_when_told_so(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    statement, said = STRANGE[state]
    ram_node.w.db.execute(statement)
    clock.run(15)
    assert clock.watcher.status["error"] is None
    assert any(said in warning for warning in clock.watcher.status["warnings"])
    assert saved(ram_node) == config_rows(ram_node)
    served = config_rows(ram_node)
    ram_node.power_cut()
    capsys.readouterr()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    error = json.loads(capsys.readouterr().out)["error"]
    assert said in error and "--unsound" in error
    assert not (ram_node.live / "config.db").exists()
    assert ram_node.command("restore", "--unsound", "--json") == 0
    assert config_rows(ram_node, table(ram_node.live / "config.db")) == served


def test_the_first_state_that_a_new_node_has_may_be_empty(ps: ModuleType, node: Node) -> None:
    """There is nothing that it could go over."""
    node.start_daemon()
    store = ps.Store(node.paths, node.config)
    assert ps.save(store)["saved"]
    store.close()


def test_files_that_are_removed_one_by_one_are_removed_in_the_replica(clock: Clock, ram_node: Node) -> None:
    for path in ("user.cfg", "nodes/pve1/qemu-server/100.conf", "nodes/pve1/lxc/101.conf", "priv/authorized_keys"):
        ram_node.w.delete(path)
        clock.run(1)
    assert clock.watcher.status["error"] is None and saved(ram_node) == config_rows(ram_node)
    # The last one is one too many: that is what an emptied database looks like as well.
    ram_node.w.delete("storage.cfg")
    clock.run(3)
    assert "no file at all" in clock.watcher.status["error"]
    assert rescued(ram_node) == config_rows(ram_node)


def test_power_failing_before_the_note_of_a_rescue_copy_is_taken_away_does_not_stop_a_start(
    ps: ModuleType, clock: Clock, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_guest_twice(ram_node)
    clock.run(3)
    with monkeypatch.context() as patch:
        patch.setattr(ps, "set_rescue_aside", lambda paths: None)
        ram_node.w.delete("nodes/pve1/lxc/100.conf")
        ram_node.w.write("datacenter.cfg", b"mended")
        clock.run(3)
        assert files(saved(ram_node)) == files(config_rows(ram_node))
        assert Path(ram_node.paths.aside().state_file).exists()
        ram_node.power_cut()
        assert ram_node.boot_restore() == 0


def test_rescue_copies_of_former_times_are_few(ps: ModuleType, clock: Clock, ram_node: Node) -> None:
    for turn in range(ps.KEEP_RESCUED + 3):
        plant_guest_twice(ram_node)
        ram_node.w.write("datacenter.cfg", b"%d" % turn)
        clock.run(3)
        ram_node.w.delete("nodes/pve1/lxc/100.conf")
        clock.run(3)
    former = sorted(Path(ram_node.paths.rescue).glob("*.db"), key=lambda p: p.stat().st_mtime_ns)
    former = [p for p in former if p.name != "config.db"]
    assert len(former) == ps.KEEP_RESCUED
    assert b"%d" % (ps.KEEP_RESCUED + 2) in [row[7] for row in table(former[-1]).values()]


@pytest.mark.parametrize("state", STATES)
def test_the_way_back_to_disk_does_not_leave_it_behind(
    ps: ModuleType, clock: Clock, ram_node: Node, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    STATES[state][0](ram_node)
    clock.run(3)
    served = config_rows(ram_node)
    capsys.readouterr()
    assert ram_node.command("disable", "--json", "--connection", "") == ps.EXIT_REFUSED
    assert "left behind" in json.loads(capsys.readouterr().out)["error"]
    assert ram_node.writer is not None and ram_node.ram
    # Even where it is forced.
    ram_node.command("disable", "--json", "--connection", "", "--force")
    kept = [left(Path(p)) for p in Path(ram_node.paths.rescue).rglob("*.db")]
    assert served in [config_rows(ram_node, rows) for rows in kept]


def test_a_switch_to_ram_judges_by_the_same_rules(
    ps: ModuleType, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    node.w.write("backup/pve1/qemu-server/100.conf", b"a copy")
    capsys.readouterr()
    assert node.command("preflight", "--json", "--connection", "") == 0, capsys.readouterr().out
    plant_guest_twice(node)
    capsys.readouterr()
    assert node.command("preflight", "--json", "--connection", "") == ps.EXIT_REFUSED
    told = json.loads(capsys.readouterr().out)
    assert "nodes/pve1/lxc/100.conf" in told["message"]


def kept_aside(node: Node) -> list[Rows]:
    """Every rescue copy, the pending one and those of former times."""
    return [left(path) for path in Path(node.paths.rescue).rglob("*.db")]


def test_a_pending_copy_is_not_overwritten_by_another_kind_of_state(clock: Clock, ram_node: Node) -> None:
    """Days of work that the daemon would not load, and then a start on an empty database."""
    plant_guest_twice(ram_node)
    ram_node.w.write("days-of-work.cfg", b"x")
    clock.run(3)
    worked = config_rows(ram_node)
    corosync_conf_alone(ram_node)
    clock.run(3)
    assert rescued(ram_node) == config_rows(ram_node) and worked in kept_aside(ram_node)
    ram_node.w.write("storage.cfg", b"dir: anew\n")
    clock.run(3)
    assert clock.watcher.status["error"] is None and saved(ram_node) == config_rows(ram_node)
    assert worked in kept_aside(ram_node)


def test_a_resync_keeps_what_is_pending(ps: ModuleType, clock: Clock, ram_node: Node) -> None:
    plant_guest_twice(ram_node)
    clock.run(3)
    served = config_rows(ram_node)
    make_member(ram_node)
    ram_node.power_cut()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    assert ram_node.command("restore", "--resync", "--no-start", "--json") == 0
    assert served in kept_aside(ram_node)


def test_a_rescue_copy_of_a_low_version_among_many_generations(ps: ModuleType, clock: Clock, ram_node: Node) -> None:
    """A database that began anew has one; what was cut of it must not be pruned as the oldest."""
    for turn in range(ps.KEEP_AT_LEAST + 1):
        ram_node.w.write("x", b"%d" % turn)
        assert ram_node.command("save", "--generation", "--json") == 0
    Path(ram_node.paths.config).write_text(json.dumps({"deadline_seconds": 5, "generations_keep": 5}))
    ram_node.w.db.execute("DELETE FROM tree WHERE inode<>0")
    ram_node.w.db.execute("UPDATE tree SET version=1 WHERE inode=0")
    clock.run(3)
    ram_node.power_cut()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    assert ram_node.command("restore", "--rescued", "--json") == 0
    assert set(config_rows(ram_node)) == {0}


def test_a_damaged_rescue_copy_does_not_stop_saves(clock: Clock, ram_node: Node) -> None:
    plant_guest_twice(ram_node)
    clock.run(3)
    path = Path(ram_node.paths.aside().replica)
    Path(f"{path}-wal").unlink(missing_ok=True)
    path.write_bytes(b"garbage" * 1000)
    ram_node.w.delete("nodes/pve1/lxc/100.conf")
    ram_node.w.write("datacenter.cfg", b"mended")
    clock.run(3)
    assert clock.watcher.status["error"] is None and saved(ram_node) == config_rows(ram_node)
    assert any(file.read_bytes() == b"garbage" * 1000 for file in Path(ram_node.paths.rescue).rglob("config.db"))


@pytest.mark.parametrize("harm", ["a damaged replica", "no state.json"])
def test_what_is_pending_is_not_hidden(
    ps: ModuleType, clock: Clock, ram_node: Node, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if harm == "no state.json":
        Path(ram_node.paths.state_file).unlink()
    plant_guest_twice(ram_node)
    clock.run(3)
    if harm == "a damaged replica":
        Path(ram_node.paths.replica + "-wal").unlink(missing_ok=True)
        Path(ram_node.paths.replica).write_bytes(b"garbage" * 1000)
    ram_node.power_cut()
    capsys.readouterr()
    assert ram_node.boot_restore() == ps.EXIT_RESTORE
    assert "--rescued" in json.loads(capsys.readouterr().out)["error"]
    assert status(ram_node, capsys)["rescue"] is not None


def test_a_state_that_goes_bad_after_the_checks_of_the_way_back(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing knew of it yet; the daemon is not started from the older state, by no timer either."""
    empty(ram_node)
    served = config_rows(ram_node)
    capsys.readouterr()
    assert ram_node.command("disable", "--json", "--connection", "") == ps.EXIT_SWITCH
    assert "rescue" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert ram_node.ram and config_rows(ram_node) == served and rescued(ram_node) == served
    assert ram_node.command("rollback", "--json") == 0
    assert ram_node.ram, "there is nothing to roll back"


def test_a_look_that_fails_is_not_taken_for_damage(
    ps: ModuleType, clock: Clock, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ps.Store, "_damage", lambda store: None)

        def busy(path: str, function: Any, seconds: float = 0) -> Any:
            raise ps.Busy(f"{path} changed faster than it could be read")

        patch.setattr(ps, "look", busy)
        ram_node.w.write("datacenter.cfg", b"1")
        clock.run(4)
        assert "faster" in clock.watcher.status["error"]
    assert not Path(ram_node.paths.rescue).exists()
    clock.run(35)
    assert clock.watcher.status["error"] is None and saved(ram_node) == config_rows(ram_node)
