# SPDX-License-Identifier: Apache-2.0
"""A daemon in cluster mode whose Corosync has not run since it started: no cluster in .members, and /etc/pve read-only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.served import link

from .conftest import Node, fill, prepare_files, unconnected

NOT_MET = "its Corosync has not run since the daemon started: /etc/pve is read-only"
QUIET = ("--json", "--connection", "")


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def started(node: Node, **more: Any) -> Node:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    unconnected(node, **more)
    return node


def stops(node: Node) -> list[list[str]]:
    return [call for call in node.calls if "stop" in call]


@pytest.mark.parametrize("host", [True, False])
def test_the_mode(ps: ModuleType, node: Node, host: bool) -> None:
    started(node, host=host)
    mode = ps.daemon_mode(node.paths, ps.members_file(node.paths))
    assert (mode.name, mode.quorate, mode.met) == ("cluster", False, False)
    link(Path(node.paths.pve), writable=True)
    mode = ps.daemon_mode(node.paths, ps.members_file(node.paths))
    assert (mode.name, mode.quorate, mode.met) == ("local", not host, True)
    for quorate in (0, 1):
        mode = ps.daemon_mode(node.paths, {"cluster": {"quorate": quorate}})
        assert (mode.name, mode.quorate, mode.met) == ("cluster", bool(quorate), True)
    mode = ps.daemon_mode(node.paths, {})
    assert (mode.name, mode.quorate) == (None, False)


def test_a_corosync_that_comes_between_the_looks(ps: ModuleType, node: Node) -> None:
    started(node)
    before = ps.members_file(node.paths)
    link(Path(node.paths.pve), writable=True)
    node.members = {"cluster": {"quorate": 1}}
    mode = ps.daemon_mode(node.paths, before)
    assert (mode.name, mode.quorate) == ("cluster", True)


def test_the_mount_itself_where_there_is_no_link(ps: ModuleType, node: Node) -> None:
    assert ps.takes_writes(node.paths)
    os.chmod(node.paths.pve, 0o555)
    assert not ps.takes_writes(node.paths)
    os.rmdir(node.paths.pve)
    assert not ps.takes_writes(node.paths)


@pytest.mark.parametrize("host", [True, False])
def test_no_switch_over(ps: ModuleType, node: Node, host: bool, capsys: pytest.CaptureFixture[str]) -> None:
    started(node, host=host)
    capsys.readouterr()
    assert node.command("preflight", *QUIET) == ps.EXIT_REFUSED
    found = said(capsys)
    assert found["refusals"] == [f"{NOT_MET}; see 'systemctl status corosync'"]
    assert node.command("enable", *QUIET) == ps.EXIT_REFUSED
    assert NOT_MET in said(capsys)["error"] and not stops(node)


def test_no_switch_over_of_a_member_that_works_alone(
    ps: ModuleType, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its next start is in cluster mode, with what was written alone."""
    started(node)
    link(Path(node.paths.pve), writable=True)
    capsys.readouterr()
    assert node.command("enable", *QUIET) == ps.EXIT_REFUSED
    assert "works alone (local mode) although this node is a member" in said(capsys)["error"] and not stops(
        node
    )


def test_nothing_is_fetched_from_members_that_nobody_sees(
    ps: ModuleType, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    started(node)
    capsys.readouterr()
    assert node.command("restore", "--resync", "--check", *QUIET) == ps.EXIT_REFUSED
    found = said(capsys)
    assert found["quorate"] is False and found["online"] == []
    assert len(found["refusals"]) == 1 and found["refusals"][0].startswith(
        f"{NOT_MET}: with nobody to fetch the state from"
    )
    assert node.command("restore", "--resync", "--take-down", *QUIET) == ps.EXIT_REFUSED and not stops(node)


def test_a_restore_is_judged_as_without_quorum(
    ps: ModuleType, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    started(node)
    assert node.command("save", "--generation", "--reason", "good", "--json") == 0
    capsys.readouterr()
    assert node.command("restore", "--generation", "latest", "--check", "--peers-down", *QUIET) == 0
    assert said(capsys)["quorate"] is False
    assert node.command("restore", "--generation", "latest", "--check", *QUIET) == ps.EXIT_REFUSED
    assert "--peers-down" in said(capsys)["refusals"][0]


def test_the_way_back_to_disk_is_asked_for_and_then_waits_for_no_quorum(
    ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = ram_node
    unconnected(node)
    version = node.w.version
    node.calls.clear()
    capsys.readouterr()
    assert node.command("disable", *QUIET) == ps.EXIT_REFUSED
    error = said(capsys)["error"]
    assert "which members are online is not known here" in error and NOT_MET in error and not stops(node)

    waited: list[str] = []
    wait_for = ps.wait_for

    def noted(what: str, *rest: Any) -> Any:
        waited.append(what)
        return wait_for(what, *rest)

    monkeypatch.setattr(ps, "wait_for", noted)
    assert node.command("disable", "--allow-offline-members", *QUIET) == 0
    assert "quorum" not in waited and not node.drop_in and node.w.version == version


def test_the_screen_and_the_json(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> tuple[str, dict[str, Any]]:
        capsys.readouterr()
        node.command("status")
        text = capsys.readouterr().out
        node.command("status", "--json")
        return next(line for line in text.splitlines() if line.startswith("daemon")), said(capsys)

    # A host that lost its copy is a member all the same: the daemon is in cluster mode.
    started(node, host=False)
    line, status = shown()
    assert line.split(None, 1)[1] == f"runs, member of a cluster, NO QUORUM: {NOT_MET}"
    assert (status["quorate"], status["daemon_mode"], status["met_corosync"]) == (False, "cluster", False)
    unconnected(node)
    assert shown()[0] == line
    link(Path(node.paths.pve), writable=True)
    line, status = shown()
    assert line.split(None, 1)[1] == "runs, member of a cluster, but WORKS ALONE (local mode)"
    assert (status["quorate"], status["daemon_mode"], status["met_corosync"]) == (False, "local", None)
    Path(node.paths.corosync_conf).unlink()
    line, status = shown()
    assert line.split(None, 1)[1] == "runs, stand-alone"
    assert (status["quorate"], status["daemon_mode"], status["met_corosync"]) == (True, "local", None)


@pytest.mark.parametrize("host", [True, False])
def test_the_watcher(ps: ModuleType, ram_node: Node, host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells no quorum, and raises no version without it."""
    node = ram_node
    unconnected(node, host=host)
    restored = {"advance_to": node.w.version + 100}
    ps.write_volatile(node.paths.restore_file, restored)
    watcher = ps.Watcher(node.paths, node.config)
    watcher.members.look()
    assert watcher.members.state == (True, False, frozenset())
    assert watcher.facts(0.0)["quorate"] is False
    monkeypatch.setattr(ps, "one_pair", lambda lock: pytest.fail("a write without quorum"))
    watcher._advance()
    assert ps.read_json(node.paths.restore_file) == restored and watcher.advancing
    # Corosync comes: that is a change of the membership, which is saved.
    changes = watcher.members.changes
    Path(node.paths.pve, ".members").write_text(
        json.dumps({"cluster": {"quorate": 1}, "nodelist": {"pve1": {"online": 1}}})
    )
    link(Path(node.paths.pve), writable=True)
    watcher.members.look()
    assert (
        watcher.members.state == (True, True, frozenset({"pve1"})) and watcher.members.changes == changes + 1
    )
    watcher.finish()
