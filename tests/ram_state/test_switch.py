# SPDX-License-Identifier: Apache-2.0
"""To RAM and back, with failures planted at each step: the daemon always ends up running on the newest state."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Node, fill, prepare_files, table, without


def config_rows(node: Node, path: Path | None = None) -> dict[int, tuple[Any, ...]]:
    rows = without(table(path or node.live / "config.db"), node.config.noise.matches)
    rows.pop(0)
    return rows


def test_to_ram_and_back(
    ps: ModuleType, node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    (node.live / "backup").mkdir()
    (node.live / "backup/config-1.sql.gz").write_bytes(b"dump")
    before = config_rows(node)
    version = node.w.version
    armed: list[str] = []
    stop = ps.stop_daemon

    def stopping(*args: Any) -> None:
        armed.extend((node.root / f"run/systemd/system/{ps.ROLLBACK_UNIT}.timer").read_text().splitlines())
        stop(*args)

    monkeypatch.setattr(ps, "stop_daemon", stopping)
    capsys.readouterr()
    assert node.command("enable", "--json", "--connection", "") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["changed"] and result["downtime_seconds"] >= 0 and result["state"] == "enabled"
    assert node.ram and config_rows(node) == before and node.w.version == version
    assert ps.is_placeholder(str(node.beneath / "config.db"))
    assert (node.beneath / "config.db").read_text().count("pve-state")
    assert not list(node.beneath.glob("config.db-*"))
    assert (Path(node.paths.backup) / "config-1.sql.gz").read_bytes() == b"dump"
    for unit in (ps.ROLLBACK_UNIT, "pveguard-rollback", "pveguard-dead-man"):
        # What a former version armed is disarmed as well.
        assert ["systemctl", "stop", f"{unit}.timer"] in node.calls
    assert f"OnActiveSec={2 * int(node.config.deadline)}s" in armed and node.left_of_the_timer() == []

    capsys.readouterr()
    calls = len(node.calls)
    assert node.command("enable", "--json", "--connection", "") == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert not any("stop" in call for call in node.calls[calls:])

    node.w.write("datacenter.cfg", b"keyboard: de\n")
    (Path(node.paths.backup) / "config-2.sql.gz").write_bytes(b"new")
    before = config_rows(node)
    capsys.readouterr()
    assert node.command("disable", "--json", "--connection", "") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["source"] == "ram" and not node.ram and not node.drop_in
    assert config_rows(node) == before and node.w is not None
    assert (node.live / "backup/config-2.sql.gz").read_bytes() == b"new"
    assert not os.path.exists(node.paths.replica) and not os.path.exists(node.paths.switch)
    assert not ps.generations(node.paths)[0].problems()
    assert node.command("disable", "--json", "--connection", "") == 0


@pytest.mark.parametrize("cut", ["stop pve-cluster", "daemon-reload", "start pve-cluster", "show"])
def test_a_failed_switch_puts_stock_back(
    ps: ModuleType, node: Node, cut: str, monkeypatch: pytest.MonkeyPatch, quick_sleep: None
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    node.w.write("ha/note", b"kept")
    before = config_rows(node)
    failures = {"n": 0}
    real = node.run

    def once(argv: list[str], timeout: float = 60.0) -> Any:
        # From the moment on that there is something to put back.
        if cut in " ".join(argv) and failures["n"] == 0 and ps.read_json(node.paths.switch_file):
            failures["n"] += 1
            if cut == "show":
                node.fail.add("show")
            return ps.Result(1, "", "planted")
        return real(argv, timeout)

    monkeypatch.setattr(ps, "run", once)
    assert node.command("enable", "--json", "--connection", "") == ps.EXIT_SWITCH
    assert failures["n"] == 1
    assert node.writer is not None and not node.ram and not node.drop_in
    assert config_rows(node) == before
    assert ps.read_json(node.paths.switch_file)["done"]


@pytest.mark.parametrize(
    "step",
    ["save", "cut_generation", "write_atomic", "restore_boot", "live_summary", "is_ours", "node_status"],
)
def test_a_failure_inside_any_step_puts_stock_back(
    ps: ModuleType, node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    before = config_rows(node)
    real = getattr(ps, step)
    state = {"armed": False, "hit": 0}

    def fails_once_after_the_stop(*args: Any, **values: Any) -> Any:
        if state["armed"] and not state["hit"]:
            state["hit"] += 1
            raise ps.StoreError("planted")
        return real(*args, **values)

    stop = ps.stop_daemon

    def stopping(*args: Any) -> Any:
        stop(*args)
        state["armed"] = True

    monkeypatch.setattr(ps, "stop_daemon", stopping)
    monkeypatch.setattr(ps, step, fails_once_after_the_stop)
    code = node.command("enable", "--json", "--connection", "")
    assert node.writer is not None
    assert config_rows(node) == before
    if code == 0:
        assert node.ram and node.drop_in
    elif state["hit"] and step != "node_status":
        assert code == ps.EXIT_SWITCH and not node.ram and not node.drop_in


@pytest.mark.parametrize("after", range(1, 31))
def test_power_cut_during_the_switch_boots_with_everything(
    ps: ModuleType, node: Node, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at the n-th write to the disk after the daemon stopped; then boot as systemd would."""
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    before = config_rows(node)

    class PowerCut(BaseException):
        pass

    count = {"armed": False, "n": 0}
    stop = ps.stop_daemon
    monkeypatch.setattr(ps, "stop_daemon", lambda *a: (stop(*a), count.update(armed=True)))

    def counted(name: str) -> None:
        real = getattr(ps, name)

        def wrapper(*args: Any, **values: Any) -> Any:
            if count["armed"]:
                count["n"] += 1
                if count["n"] == after:
                    raise PowerCut
            return real(*args, **values)

        monkeypatch.setattr(ps, name, wrapper)

    with monkeypatch.context() as patch:
        for name in ("write_atomic", "plain_copy", "remove", "daemon_reload", "start_daemon"):
            counted(name)
        patch.setattr(ps, "_undo", lambda p, c, error: (_ for _ in ()).throw(error))
        try:
            node.command("enable", "--json", "--connection", "")
        except PowerCut:
            pass
    monkeypatch.undo()
    monkeypatch.setattr(ps, "run", node.run)
    monkeypatch.setattr(ps, "mounts", node.mounts)
    monkeypatch.setattr(ps, "resize_tmpfs", lambda paths, size: True)
    node.power_cut()
    assert node.run(["systemctl", "start", "pve-cluster.service"]).rc == 0
    assert config_rows(node) == before
    assert node.ram == node.drop_in


def test_rollback_after_the_switching_process_died(ps: ModuleType, ram_node: Node) -> None:
    ram_node.w.write("late", b"change")
    before = config_rows(ram_node)
    ps.write_volatile(ram_node.paths.switch_file, {"kind": "enable", "pid": 2**22 + 1, "start": 1})
    assert ram_node.command("rollback", "--json") == 0
    assert not ram_node.ram and not ram_node.drop_in and config_rows(ram_node) == before
    assert ram_node.command("rollback", "--json") == 0


def test_disable_with_a_full_disk_goes_on_in_ram(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = config_rows(ram_node)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ps, "_put_disk", full)
        assert ram_node.command("disable", "--json", "--connection", "") == ps.EXIT_SWITCH
    assert ram_node.writer is not None and ram_node.ram and config_rows(ram_node) == before
    assert ram_node.command("rollback", "--json") == 0
    assert not ram_node.ram and config_rows(ram_node) == before


def test_the_store_alone_suffices_to_go_back(ps: ModuleType, ram_node: Node) -> None:
    before = config_rows(ram_node)
    ram_node.power_cut()
    assert ram_node.command("disable", "--json", "--connection", "", "--force") == 0
    assert ram_node.writer is not None and config_rows(ram_node) == before


def test_the_exit_by_hand(ps: ModuleType, ram_node: Node) -> None:
    """install of config.db and its log, after a cut in the middle of everything, is a restore without Python."""
    store = ps.Store(ram_node.paths, ram_node.config)
    ram_node.w.write("by-hand", b"x" * 9000)
    ps.save(store, checkpoint=False)
    before = config_rows(ram_node)
    files = [p for p in Path(ram_node.paths.store).glob("config.db*") if p.is_file()]
    assert len(files) == 3
    copied = ram_node.root / "copy"
    copied.mkdir()
    for file in files:
        shutil.copy(file, copied)
    store.close()
    assert config_rows(ram_node, copied / "config.db") == before


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda n: n.w.write("ha/resources.cfg", b"vm: 100\n\tstate started\n"), "HA manages vm:100"),
        (
            lambda n: n.w.write(
                f"nodes/{os.uname().nodename.partition('.')[0]}/qemu-server/7.conf", b"lock: backup\nname: x\n"
            ),
            "is locked",
        ),
        (lambda n: n.members.update(cluster={"name": "c", "quorate": 0}), "not quorate"),
        (
            lambda n: n.members.update(
                cluster={"name": "c", "quorate": 1},
                nodelist={"pve1": {"id": 1, "online": 1}, "pve3": {"id": 3}, "pve2": {"id": 2, "online": 0}},
            ),
            "not online: pve2, pve3.",
        ),
        (lambda n: n.stop_daemon(), "does not run"),
        (lambda n: (n.root / "usr/bin/pmxcfs").unlink(), "not installed"),
        (lambda n: n.w.db.execute("UPDATE tree SET parent=999 WHERE name='storage.cfg'"), "does not pass"),
    ],
)
def test_refusals_change_nothing(
    ps: ModuleType, node: Node, plant: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    plant(node)
    before = sorted(
        str(p) for p in node.root.rglob("*") if "/run" not in str(p) and "config.db-" not in str(p)
    )
    capsys.readouterr()
    assert node.command("enable", "--json", "--connection", "") == ps.EXIT_REFUSED
    assert message in json.loads(capsys.readouterr().out)["error"]
    after = sorted(
        str(p) for p in node.root.rglob("*") if "/run" not in str(p) and "config.db-" not in str(p)
    )
    assert after == before
    assert not any("stop" in call for call in node.calls)


def test_an_offline_member_may_be_allowed_both_ways(
    ps: ModuleType, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    node.members.update(
        cluster={"name": "c", "quorate": 1},
        nodelist={"pve1": {"id": 1, "online": 1}, "pve2": {"id": 2, "online": 0}},
    )
    allow = "--allow-offline-members"
    assert node.command("enable", "--json", "--connection", "", allow) == 0
    calls = len(node.calls)
    capsys.readouterr()
    assert node.command("disable", "--json", "--connection", "") == ps.EXIT_REFUSED
    assert "ram_state_allow_offline_members" in json.loads(capsys.readouterr().out)["error"]
    assert node.ram and not any("stop" in call for call in node.calls[calls:])
    assert node.command("disable", "--json", "--connection", "", allow) == 0
    assert not node.ram


def test_refuses_a_foreign_mount_and_too_little_memory(
    ps: ModuleType, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    args = ps.parser().parse_args(["preflight", "--connection", ""])
    monkeypatch.setattr(ps, "memory", lambda: (16 * ps.MIB, 8 * ps.MIB))
    found = ps.preflight(node.paths, node.config, args)["refusals"]
    assert any("a quarter of 16 MiB" in r for r in found) and any("are needed" in r for r in found)
    monkeypatch.setattr(ps, "memory", lambda: (2**33, 2**32))
    mounts = node.mounts()
    monkeypatch.setattr(ps, "mounts", lambda: [*mounts, (node.paths.live, "ext4", "/dev/sdb1", "rw")])
    found = ps.preflight(node.paths, node.config, args)["refusals"]
    assert len(found) == 1 and "a mount of its own (ext4 from /dev/sdb1)" in found[0]


def test_a_running_task_is_seen(ps: ModuleType, node: Node) -> None:
    Path(node.paths.tasks).parent.mkdir(parents=True)
    start = ps.process_start(os.getpid())
    alive = f"UPID:pve1:{os.getpid():08X}:{start:08X}:65000000:vzdump:100:root@pam:"
    gone = f"UPID:pve1:{os.getpid():08X}:{start + 9:08X}:65000000:vzdump:100:root@pam:"
    Path(node.paths.tasks).write_text(f"{alive} 0\n{gone} 0\n{alive} 1 65000001 OK\n")
    assert ps.running_tasks(node.paths.tasks) == [alive]


@pytest.mark.parametrize("command", ["disable", "rollback"])
def test_the_way_back_without_readable_settings(ps: ModuleType, ram_node: Node, command: str) -> None:
    before = config_rows(ram_node)
    Path(ram_node.paths.config).write_text("{")
    assert ram_node.command("save", "--json") == ps.EXIT_USAGE
    ps.write_volatile(ram_node.paths.switch_file, {"kind": "disable"})
    login = ["--connection", ""] if command == "disable" else []
    assert ram_node.command(command, "--json", *login) == 0
    assert not ram_node.ram and not ram_node.drop_in and config_rows(ram_node) == before


@pytest.mark.parametrize("damaged", [False, True])
def test_locks_outlive_the_switch(
    ps: ModuleType, node: Node, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    node.w.mkdir("priv/lock/storage-a")
    before = table(node.live / "config.db")
    config = config_rows(node)
    if damaged:
        monkeypatch.setattr(ps, "_same_but_noise", lambda *a: False)
    assert node.command("enable", "--json", "--connection", "") == 0
    assert node.ram and (table(node.live / "config.db") == before) is not damaged
    assert config_rows(node) == config
    assert not list(node.live.glob(".pveguard-restore[.-]*"))
    # After power failed the copy is not a clean stop's: the replica alone counts.
    node.power_cut()
    assert node.boot_restore() == 0
    assert config_rows(node) == config


def test_a_stale_staged_copy_never_wins(ps: ModuleType, ram_node: Node) -> None:
    """A way back that failed leaves one; RAM state goes on, and the next way back must take what is newer."""
    staged = Path(ram_node.paths.switch) / "stock.db"

    def stage() -> None:
        staged.parent.mkdir(exist_ok=True)
        live = ps.open_live(ram_node.paths)
        ps.plain_copy(live, str(staged))
        live.close()

    stage()
    ram_node.w.write("later", b"change")
    assert ram_node.command("save", "--json") == 0
    before = config_rows(ram_node)
    ram_node.power_cut()
    assert ram_node.command("disable", "--json", "--connection", "", "--force") == 0
    assert config_rows(ram_node) == before and not staged.exists()


def test_a_newer_staged_copy_wins(ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    staged = Path(ram_node.paths.switch) / "stock.db"
    staged.parent.mkdir(exist_ok=True)
    ram_node.w.write("not-saved", b"change")
    live = ps.open_live(ram_node.paths)
    ps.plain_copy(live, str(staged))
    live.close()
    before = config_rows(ram_node)
    ram_node.power_cut()
    capsys.readouterr()
    assert ram_node.command("disable", "--json", "--connection", "", "--force") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["source"] == "staged"
    assert config_rows(ram_node) == before


@pytest.mark.parametrize("saved", [True, False])
def test_a_restore_drops_the_staged_copy(ps: ModuleType, ram_node: Node, saved: bool) -> None:
    staged = Path(ram_node.paths.switch) / "stock.db"
    staged.parent.mkdir(exist_ok=True)
    ram_node.w.write("staged", b"change")
    live = ps.open_live(ram_node.paths)
    ps.plain_copy(live, str(staged))
    root = ram_node.w.version
    live.close()
    if saved:
        assert ram_node.command("save", "--json") == 0
    ram_node.power_cut()
    assert ram_node.boot_restore() == 0
    assert not staged.exists()
    kept = [g.manifest["root_version"] for g in ps.generations(ram_node.paths) if g.name.endswith("-staged")]
    assert kept == ([] if saved else [root])


def test_a_failed_disable_with_the_ram_still_there_drops_the_staged_copy(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ps.SwitchError("planted")

    before = config_rows(ram_node)
    with monkeypatch.context() as patch:
        patch.setattr(ps, "wait_for", fails)
        patch.setattr(ps, "stop_daemon", lambda *a: ram_node.stop_daemon())
        patch.setattr(ram_node, "unmount", lambda: None)
        assert ram_node.command("disable", "--json", "--connection", "") == ps.EXIT_SWITCH
    assert ram_node.ram and ram_node.writer is not None and config_rows(ram_node) == before
    assert not (Path(ram_node.paths.switch) / "stock.db").exists()


def test_a_database_beneath_the_mount_that_ram_state_outlived_is_not_stock(
    ps: ModuleType, ram_node: Node
) -> None:
    """Power failed between the drop-in and the placeholder, and RAM state ran over the old database since."""
    live = ps.open_live(ram_node.paths)
    ps.plain_copy(live, str(ram_node.beneath / "config.db"))
    live.close()
    old = ram_node.w.version
    ram_node.w.write("months-later", b"change")
    assert ram_node.command("save", "--json") == 0
    before = config_rows(ram_node)
    ram_node.power_cut()
    assert ram_node.command("disable", "--json", "--connection", "", "--force") == 0
    assert config_rows(ram_node) == before
    assert old in [g.manifest["root_version"] for g in ps.generations(ram_node.paths)]


def test_what_is_saved_after_a_way_back_is_newer_than_what_was_saved_before(
    ps: ModuleType, ram_node: Node
) -> None:
    """Restores raise the lineage, the way back removes its record, and the generations of before stay."""
    for _ in range(2):
        ram_node.stop_daemon()
        assert ram_node.command("restore", "--generation", "latest", "--json") == 0
    assert ram_node.command("disable", "--json", "--connection", "") == 0
    ram_node.w.write("months-later", b"change")
    version = ram_node.w.version
    prepare_files(ram_node)
    assert ram_node.command("enable", "--json", "--connection", "") == 0
    assert ps.find_generation(ram_node.paths, "latest").manifest["root_version"] == version


def test_the_command_that_a_former_placeholder_names_is_understood(
    ps: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node made by a former version has a file on its disk that says: to go back to disk, pve-state retire."""
    texts = []
    for name in ("disable", "retire"):
        with pytest.raises(SystemExit):
            ps.main([name, "--help"])
        texts.append(capsys.readouterr().out.partition("\n\n")[2])
        assert ps.parser().parse_args([name]).function is ps.cmd_disable
    assert texts[0] == texts[1] and "--login-fallback" in texts[0]


def test_the_time_without_a_daemon_does_not_grow_with_the_number_of_files(
    ps: ModuleType, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.start_daemon()
    fill(node.w)
    for i in range(30):
        node.w.write(f"nodes/pve1/qemu-server/{200 + i}.conf", b"name: x\n")
    prepare_files(node)
    reads = []
    real = ps.read_hashes
    monkeypatch.setattr(ps, "read_hashes", lambda connection: (reads.append(1), real(connection))[1])
    assert node.command("enable", "--json", "--connection", "") == 0
    assert len(reads) < 12
