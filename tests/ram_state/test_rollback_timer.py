# SPDX-License-Identifier: Apache-2.0
"""The timer that is armed before a switch-over: what it runs, what it finds, and that nothing of it stays."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import node_program
from ansible.module_utils.pveguard.state.program import PVE_STATE
from ansible.module_utils.pveguard.state.switch import ROLLBACK_UNIT

from .conftest import Node, fill, prepare_files, table, without

SYSTEMCTL = """\
#!/bin/sh
[ "$1" != show ] || printf 'ActiveState=active\\nSubState=waiting\\n'
"""
# What the launcher does, with the arming in the place of main().
ARM = """\
import os, sys
sys.argv = [sys.argv[1]]
sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))
from pveguard.state.paths import Paths
from pveguard.state.switch import arm_rollback_timer
arm_rollback_timer(Paths(os.environ["NODE"]), 30)
"""


def test_the_timer_runs_the_installed_program(tmp_path: Path) -> None:
    node_program.install(PVE_STATE, tmp_path)
    command = tmp_path / PVE_STATE.command.lstrip("/")
    tools, node = tmp_path / "bin", tmp_path / "node"
    tools.mkdir()
    node.mkdir()
    (tools / "systemctl").write_text(SYSTEMCTL)
    (tools / "systemctl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "NODE": str(node)}
    subprocess.run([sys.executable, "-IS", "-c", ARM, str(command)], env=environment, check=True)
    units = node / "run/systemd/system"
    assert "OnActiveSec=30s" in (units / f"{ROLLBACK_UNIT}.timer").read_text().splitlines()
    lines = (units / f"{ROLLBACK_UNIT}.service").read_text().splitlines()
    argv = shlex.split(next(line for line in lines if line.startswith("ExecStart=")).partition("=")[2])
    # Not the folder of the version, which may be gone by then.
    assert argv[2:] == [str(command), "rollback", "--json"]
    done = subprocess.run([*argv, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: pve-state rollback" in done.stdout, done.stderr


class Killed(BaseException):
    """The process is gone, so nobody undoes anything."""


def rows_of(node: Node) -> dict[int, tuple[Any, ...]]:
    found = without(table(node.live / "config.db"), node.config.noise.matches)
    found.pop(0)
    return found


def killed_at(ps: ModuleType, patch: pytest.MonkeyPatch, step: str) -> None:
    """The next command dies at its ``step``."""

    def dies(*_arguments: Any, **_more: Any) -> None:
        raise Killed

    def nobody(_paths: Any, _config: Any, error: BaseException) -> None:
        raise error

    patch.setattr(ps, step, dies)
    patch.setattr(ps, "_undo", nobody)
    patch.setattr(ps, "_undo_restore", nobody)


ENABLE = ("enable", "--json", "--connection", "")
DISABLE = ("disable", "--json", "--connection", "")


@pytest.fixture
def stock(node: Node) -> Node:
    """A node as it was before pveguard, ready for the switch-over."""
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    return node


@pytest.mark.parametrize("step", ["stop_daemon", "_move_to_store", "start_daemon", "live_summary"])
def test_a_killed_switch_over_is_undone_when_the_time_is_up(
    ps: ModuleType, stock: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(stock)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        # The first look is before anything is changed.
        if step == "live_summary":
            patch.setattr(ps, "begin_switch", lambda *a, real=ps.begin_switch: (real(*a), killed_at(ps, patch, step)))
        else:
            killed_at(ps, patch, step)
        stock.command(*ENABLE)
    assert stock.time_is_up() == 0
    assert stock.writer is not None and not stock.ram and not stock.drop_in and rows_of(stock) == before
    assert stock.left_of_the_timer() == ["rolled_back.json"] and not stock.timers
    assert stock.command(*ENABLE) == 0 and stock.left_of_the_timer() == []
    assert stock.command(*DISABLE) == 0 and stock.left_of_the_timer() == []


def test_a_killed_restore_is_undone_when_the_time_is_up(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = ps.open_live(ram_node.paths)
    name = ps.cut_generation(live, ram_node.paths, ram_node.config, 1, "good")["name"]
    live.close()
    ram_node.w.write("storage.cfg", b"newer")
    before = rows_of(ram_node)
    restore = ("restore", "--generation", name, "--take-down", "--json", "--connection", "")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(ps, patch, "start_daemon")
        ram_node.command(*restore)
    assert ram_node.writer is None
    assert ram_node.time_is_up() == 0
    assert ram_node.ram and rows_of(ram_node) == before
    assert ram_node.command(*restore) == 0 and ram_node.left_of_the_timer() == []


def test_an_undo_that_fails_is_tried_again(ps: ModuleType, stock: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of(stock)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(ps, patch, "start_daemon")
        stock.command(*ENABLE)
    stock.fail.add("start pve-cluster")
    assert stock.time_is_up() == ps.EXIT_SWITCH
    service = (stock.root / f"run/systemd/system/{ps.ROLLBACK_UNIT}.service").read_text()
    assert f"RestartSec={2 * int(stock.config.deadline)}\n" in service
    stock.fail.clear()
    assert stock.try_the_undo() == 0
    assert stock.writer is not None and not stock.ram and rows_of(stock) == before


def test_a_command_by_hand_takes_the_place_of_an_undo_that_waits(
    ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(ram_node)
    with monkeypatch.context() as patch:
        patch.setattr(ps, "_put_disk", lambda *_: (_ for _ in ()).throw(ps.SwitchError("planted")))
        assert ram_node.command(*DISABLE) == ps.EXIT_SWITCH
        assert ram_node.time_is_up() == ps.EXIT_SWITCH
    assert "rolling_back.json" in ram_node.left_of_the_timer()
    ram_node.calls.clear()
    assert ram_node.command(*DISABLE) == 0
    assert ["systemctl", "stop", f"{ps.ROLLBACK_UNIT}.service"] in ram_node.calls
    assert not ram_node.ram and rows_of(ram_node) == before and ram_node.left_of_the_timer() == []


def test_what_ends_before_it_is_stopped_stays(ps: ModuleType, ram_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time was up while the switch-over wrote that it is over: the undo waited for its lock only."""
    ps.write_volatile(ram_node.paths.switch_file, {"kind": "enable"})
    enter = ps.Lock.__enter__

    def entering(lock: Any) -> Any:
        ps.write_volatile(ram_node.paths.switch_file, {"kind": "enable", "done": "now"})
        return enter(lock)

    monkeypatch.setattr(ps.Lock, "__enter__", entering)
    ram_node.calls.clear()
    assert ram_node.command("rollback", "--json") == 0
    assert ram_node.ram and not any("stop" in call for call in ram_node.calls)


@pytest.mark.parametrize("refused", ["daemon-reload", "restart pveguard-rollback", "show pveguard-rollback"])
def test_without_a_timer_nothing_is_changed(
    ps: ModuleType, stock: Node, refused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stock.fail.add(refused)
    capsys.readouterr()
    assert stock.command(*ENABLE) == ps.EXIT_REFUSED
    assert "could not be armed, and nothing was changed" in capsys.readouterr().out
    assert stock.writer is not None and not os.path.exists(stock.paths.switch_file)
    assert ["systemctl", "stop", "pve-cluster.service"] not in stock.calls
    assert stock.left_of_the_timer() == []
