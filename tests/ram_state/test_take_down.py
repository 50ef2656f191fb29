# SPDX-License-Identifier: Apache-2.0
"""Restores of a node whose daemon runs: undone when they fail, and refused where an old state could win or be lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Node, fill, table, without

CONF = b"totem {\n  cluster_name: c\n  config_version: 3\n}\n"
DOWN = ("--take-down", "--json", "--connection", "")
Rows = dict[int, tuple[Any, ...]]


def rows_of(node: Node) -> Rows:
    return without(table(node.live / "config.db"), node.config.noise.matches)


def cut(node: Node, reason: str) -> str:
    """Cut a generation of the running node as an operator does; its name."""
    assert node.command("save", "--generation", "--reason", reason, "--json") == 0
    return str(node.ps.generations(node.paths)[0].name)


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def make_member(node: Node, *online: str) -> None:
    """A member of a cluster of pve1, pve2 and pve3, of which ``online`` run."""
    host = Path(node.paths.corosync_conf)
    host.parent.mkdir(parents=True)
    host.write_bytes(CONF)
    node.w.write("corosync.conf", CONF)
    names = ("pve1", "pve2", "pve3")
    node.members.update(
        cluster={"name": "c", "quorate": int(len(online) > 1)},
        nodelist={name: {"id": i + 1, "online": int(name in online)} for i, name in enumerate(names)},
    )


@pytest.fixture(params=["ram", "disk"])
def running(request: pytest.FixtureRequest, node: Node) -> Node:
    """A node whose daemon runs, from RAM and from disk."""
    if request.param == "ram":
        made: Node = request.getfixturevalue("ram_node")
        return made
    node.start_daemon()
    fill(node.w)
    Path(node.paths.config).write_text(json.dumps({"deadline_seconds": 5}))
    return node


def test_there_and_back(ps: ModuleType, running: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node = running
    old, name = rows_of(node), cut(node, "good")
    node.w.write("storage.cfg", b"broken")
    node.w.write("nodes/pve1/qemu-server/102.conf", b"name: new\n")
    node.w.delete("nodes/pve1/lxc/101.conf")
    new = rows_of(node)
    node.calls.clear()
    capsys.readouterr()

    assert node.command("restore", "--generation", name, "--check", *DOWN[1:]) == 0
    found = answer(capsys)
    assert found["refusals"] == [] and found["generation"]["name"] == name and found["message"] == "ready"
    assert rows_of(node) == new and not any("stop" in call for call in node.calls)

    assert node.command("restore", "--generation", name, *DOWN) == 0
    done = answer(capsys)
    assert node.writer is not None and rows_of(node) == old
    assert done["root_version"] == node.w.version == old[0][2], "the version is not raised"
    assert done["tree_sha256"] == done["generation_tree_sha256"]
    assert ["systemctl", "stop", f"{ps.ROLLBACK_UNIT}.timer"] in node.calls
    assert node.ram == node.drop_in == os.path.exists(node.paths.replica)
    assert ps.read_json(node.paths.switch_file)["done"]

    assert node.command("restore", "--generation", done["former"], *DOWN) == 0
    assert rows_of(node) == new


@pytest.mark.slow
def test_locks_of_then_do_not_come_back(ram_node: Node) -> None:
    """A copy cut during a run holds that run's lock: brought back, it would refuse every later run."""
    ram_node.w.mkdir("priv/lock/pveguard")
    live = ram_node.ps.open_live(ram_node.paths)
    made = ram_node.ps.cut_generation(live, ram_node.paths, ram_node.config, 1, "during a run")
    live.close()
    assert ram_node.command("restore", "--generation", made["name"], *DOWN) == 0
    assert ram_node.w.find("priv/lock") is not None
    assert ram_node.w.find("priv/lock/pveguard") is None and ram_node.w.find("nodes/pve1/lrm_status") is None


def test_the_oldest_generation_survives_what_is_cut_before_its_restore(
    ps: ModuleType, ram_node: Node
) -> None:
    while len(ps.generations(ram_node.paths)) < ram_node.config.keep:
        ram_node.w.write("x", b"%d" % ram_node.w.version)
        cut(ram_node, "one more")
    oldest = ps.generations(ram_node.paths)[-1]
    wanted = without(table(Path(oldest.db)), ram_node.config.noise.matches)
    ram_node.w.write("x", b"last")
    assert ram_node.command("restore", "--generation", oldest.name, *DOWN) == 0
    assert rows_of(ram_node) == wanted
    assert len(ps.generations(ram_node.paths)) >= ram_node.config.keep


def fails_once(ps: ModuleType, monkeypatch: pytest.MonkeyPatch, step: str) -> dict[str, int]:
    """Plant one failure in a step, once the daemon was stopped."""
    real, stop = getattr(ps, step), ps.stop_daemon
    state = {"armed": 0, "hit": 0}

    def failing(*args: Any, **values: Any) -> Any:
        if state["armed"] and not state["hit"]:
            state["hit"] = 1
            raise ps.StoreError("planted")
        return real(*args, **values)

    def stopping(*args: Any) -> None:
        stop(*args)
        state["armed"] = 1

    monkeypatch.setattr(ps, "stop_daemon", stopping)
    monkeypatch.setattr(ps, step, failing)
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    ["keep_what_is_there", "settle", "put_live", "remember_database", "start_daemon", "live_summary"],
)
def test_a_failure_puts_back_what_was_there(
    ps: ModuleType,
    running: Node,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = running
    name = cut(node, "good")
    node.w.write("storage.cfg", b"newer")
    before = rows_of(node)
    state = fails_once(ps, monkeypatch, step)
    capsys.readouterr()
    code = node.command("restore", "--generation", name, *DOWN)
    if step == "remember_database" and not node.drop_in:
        assert code == 0 and not state["hit"], "a node that works from disk remembers nothing"
        return
    assert code == ps.EXIT_SWITCH and state["hit"]
    assert "planted; the state from before the restore is back" in answer(capsys)["error"]
    assert node.writer is not None and rows_of(node) == before
    assert ps.read_json(node.paths.switch_file)["done"]


def test_a_daemon_that_does_not_start_on_it_gets_its_former_state(
    ps: ModuleType, running: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = running
    name = cut(node, "good")
    node.w.write("storage.cfg", b"newer")
    before = rows_of(node)
    start, starts = node.start_daemon, []

    def once() -> bool:
        starts.append(1)
        return start() if len(starts) > 1 else False

    monkeypatch.setattr(node, "start_daemon", once)
    assert node.command("restore", "--generation", name, *DOWN) == ps.EXIT_SWITCH
    assert node.writer is not None and rows_of(node) == before


@pytest.mark.parametrize("placed", [False, True])
def test_the_rollback_timer_puts_back_what_was_there(ps: ModuleType, running: Node, placed: bool) -> None:
    """The process died before, or after, it had replaced anything."""
    node = running
    name = cut(node, "good")
    node.w.write("storage.cfg", b"newer")
    before = rows_of(node)
    node.stop_daemon()
    switch: dict[str, Any] = {"kind": "restore", "pid": 2**22 + 1, "start": 1}
    if placed:
        kept, switch["former"] = ps.keep_what_is_there(node.paths, node.config)
        ps.place_generation(node.paths, node.config, ps.find_generation(node.paths, name), kept)
        assert rows_of(node) != before
    ps.write_volatile(node.paths.switch_file, switch)
    assert node.command("rollback", "--json") == 0
    assert node.writer is not None and rows_of(node) == before and node.ram == node.drop_in


def test_a_start_that_failed_closed(ps: ModuleType, ram_node: Node) -> None:
    """Nothing good is there to be put back, and the one state that is good is put in place."""
    name = cut(ram_node, "good")
    old = rows_of(ram_node)
    ram_node.power_cut()
    os.truncate(ram_node.paths.replica, 5000)
    assert ram_node.run(["systemctl", "start", "pve-cluster.service"]).rc
    assert ram_node.command("restore", "--generation", name, *DOWN) == 0
    assert ram_node.writer is not None and rows_of(ram_node) == old


def lock_a_guest(node: Node) -> None:
    node.w.write(f"nodes/{os.uname().nodename.partition('.')[0]}/qemu-server/7.conf", b"lock: backup\nname: x\n")


def start_a_task(node: Node) -> None:
    tasks = Path(node.paths.tasks)
    tasks.parent.mkdir(parents=True)
    start = node.ps.process_start(os.getpid())
    tasks.write_text(f"UPID:pve1:{os.getpid():08X}:{start:08X}:65000000:vzdump:100:root@pam: 0\n")


def from_before_the_join(node: Node) -> None:
    make_member(node)
    node.w.delete("corosync.conf")


REFUSED: dict[str, tuple[Callable[[Node], Any], list[str], str]] = {
    "locked guest": (lock_a_guest, ["--generation", "NAME"], "is locked"),
    "running task": (start_a_task, ["--generation", "NAME"], "task"),
    "unknown generation": (lambda n: None, ["--generation", "1999"], "no generation is named"),
    "member": (lambda n: make_member(n, "pve1", "pve2"), ["--generation", "NAME"], "--peers-down"),
    "from before a join": (
        from_before_the_join,
        ["--generation", "NAME", "--peers-down"],
        "member of a cluster",
    ),
    "resync of a stand-alone node": (lambda n: None, ["--resync"], "nobody to fetch"),
    "resync with no other member": (lambda n: make_member(n, "pve1"), ["--resync"], "nobody to fetch"),
    "resync with a member down": (lambda n: make_member(n, "pve1", "pve2"), ["--resync"], "not online: pve3"),
    "both": (lambda n: None, ["--resync", "--generation", "NAME"], "exclude each other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_change_nothing(running: Node, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = running
    plant, argv, message = REFUSED[case]
    plant(node)
    name = cut(node, "good")
    argv = [name if word == "NAME" else word for word in argv]
    node.w.write("storage.cfg", b"newer")
    before = rows_of(node)
    store = sorted(p.name for p in Path(node.paths.store).rglob("*"))
    stops = [call for call in node.calls if call[:2] == ["systemctl", "stop"]]
    for check in (["--check"], []):
        capsys.readouterr()
        assert node.command("restore", *argv, *check, *DOWN) != 0
        found = answer(capsys)
        assert message in (found.get("error") or " ".join(found["refusals"]))
    assert rows_of(node) == before and node.writer is not None
    assert sorted(p.name for p in Path(node.paths.store).rglob("*")) == store
    assert [call for call in node.calls if call[:2] == ["systemctl", "stop"]] == stops


def test_a_members_state_is_refused_on_a_node_that_is_none(
    running: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    running.w.write("corosync.conf", CONF)
    name = cut(running, "as a member")
    running.w.delete("corosync.conf")
    capsys.readouterr()
    assert running.command("restore", "--generation", name, *DOWN) != 0
    assert "cluster mode without corosync" in answer(capsys)["error"]
    # By hand, the daemon stopped, it is no other state.
    running.stop_daemon()
    before = Path(running.paths.live_db).read_bytes()
    capsys.readouterr()
    assert running.command("restore", "--generation", name, "--json") == running.ps.EXIT_REFUSED
    assert "cluster mode without corosync" in answer(capsys)["error"]
    assert Path(running.paths.live_db).read_bytes() == before
    assert running.command("list", "--json") == 0
    entry = next(g for g in answer(capsys)["generations"] if g["name"] == name)
    assert (entry["restorable"], entry["refused"]) == (False, "from a member of a cluster, and this node is none")


def test_a_member_alone_is_restored_without_quorum(running: Node) -> None:
    make_member(running, "pve1")
    old, name = rows_of(running), cut(running, "good")
    running.w.write("storage.cfg", b"newer")
    assert running.command("restore", "--generation", name, "--peers-down", *DOWN) == 0
    assert rows_of(running) == old


def test_a_resync_starts_with_nothing_and_keeps_what_was_there(
    ps: ModuleType, running: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    make_member(running, "pve1", "pve2", "pve3")
    before = rows_of(running)
    running.start_sees.clear()
    capsys.readouterr()
    assert running.command("restore", "--resync", *DOWN) == 0
    former = answer(capsys)["former"]
    assert running.start_sees == [b""]
    kept = without(table(Path(ps.find_generation(running.paths, former).db)), running.config.noise.matches)
    assert kept == before


def test_a_resync_that_finds_no_quorum_is_undone(
    ps: ModuleType, running: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_member(running, "pve1", "pve2", "pve3")
    before = rows_of(running)
    monkeypatch.setattr(ps, "wait_for", waits_in_vain_for_quorum(ps))
    assert running.command("restore", "--resync", *DOWN) == ps.EXIT_SWITCH
    assert running.writer is not None and rows_of(running) == before


def waits_in_vain_for_quorum(ps: ModuleType) -> Callable[..., None]:
    real = ps.wait_for

    def wait_for(what: str, *rest: Any) -> None:
        if what == "quorum":
            raise ps.SwitchError("waited in vain for quorum")
        real(what, *rest)

    return wait_for


def test_a_former_lineage_does_not_become_the_leader_by_hand(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cluster was rolled back; the copy of before has the higher version, and would roll it forth again."""
    make_member(ram_node, "pve1", "pve2")
    for number in range(20):
        ram_node.w.write("x", b"%d" % number)
    high = cut(ram_node, "before the rollback")
    ram_node.w.db.execute("DELETE FROM tree WHERE name='x'")
    ram_node.w.db.execute(
        "UPDATE tree SET version=(SELECT max(version) FROM tree WHERE inode<>0) WHERE inode=0"
    )
    ram_node.w.write("storage.cfg", b"after the rollback")
    low = cut(ram_node, "after the rollback")
    assert ps.find_generation(ram_node.paths, low).manifest["lineage"] == 2
    before = rows_of(ram_node)
    ram_node.stop_daemon()
    capsys.readouterr()
    assert ram_node.command("restore", "--generation", high, "--json") == ps.EXIT_REFUSED
    assert "would become the leader" in answer(capsys)["error"] and rows_of(ram_node) == before
    # The newest of the present lineage is what a failed start is fixed with, also when nothing else is readable.
    os.truncate(ram_node.paths.replica, 5000)
    assert ram_node.command("restore", "--generation", high, "--json") == ps.EXIT_REFUSED
    assert ram_node.command("restore", "--generation", low, "--no-start", "--json") == 0
    assert ram_node.command("restore", "--generation", high, "--peers-down", "--json") == 0
