# SPDX-License-Identifier: Apache-2.0
"""A restart of Corosync: refused where it could cost something, awaited where it is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.corosync import corosync_restart

from .cluster import Cluster
from .test_change import qdevice, resources, two_node, watchdog

Make = Callable[..., Cluster]
RunModule = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda **shape: Cluster(tmp_path / "node", monkeypatch, **shape)


def restart(member: Cluster, **more: Any) -> dict[str, Any]:
    return corosync_restart.restart(
        20, run=member.run, root=member.root, sleep=member.sleep, clock=lambda: member.now, **more
    )


def test_a_restart_waits_until_the_node_is_back(cluster: Make) -> None:
    member = cluster()

    def effect(_text: str) -> None:
        member.live = {1}
        member.later.append((member.now + 5, lambda: member.live.update({2, 3})))

    member.effect = effect
    info = restart(member)
    assert info["live_member_ids"] == [1, 2, 3] and member.restarts == 1 and member.now >= 5


def test_a_node_that_does_not_come_back_is_named(cluster: Make) -> None:
    member = cluster()
    member.effect = lambda _text: member.live.discard(3)
    with pytest.raises(PveguardError, match="after 20 s node ids 3 are not in the membership .1, 2.; see 'journalctl"):
        restart(member)
    member.live.add(3)
    member.start_fails = "Job for corosync.service failed."
    with pytest.raises(PveguardError, match="did not start again: Job for corosync.service failed"):
        restart(member)


def test_quorum_that_does_not_come_back_is_named(cluster: Make) -> None:
    member = cluster()
    member.effect = lambda _text: setattr(member, "expected", 9)
    with pytest.raises(PveguardError, match="after 20 s there is no quorum"):
        restart(member)


@pytest.mark.parametrize(
    ("shape", "state", "message"),
    [
        ({}, None, None),
        ({"nodes": 1}, None, None),
        ({}, lambda member: member.live.discard(3), "without this node the cluster has 1 of 3 votes"),
        ({}, lambda member: member.live.difference_update({2, 3}), "no quorum"),
        ({"nodes": 2}, None, "1 of 2 votes.*corosync_restart_allow_quorum_loss=true"),
        ({"nodes": 2}, two_node, None),
        ({}, resources, "HA resources .vm:100"),
        ({}, watchdog, "holds the watchdog"),
        ({}, lambda member: member.host.write_text("totem {\n}\n"), "differs from /etc/pve/corosync.conf"),
        ({}, lambda member: (member.host.unlink(), member.pve.unlink()), "has no corosync.conf"),
    ],
)
def test_where_it_is_refused(cluster: Make, shape: dict[str, int], state: Any, message: str | None) -> None:
    member = cluster(**shape)
    if state:
        state(member)
    if message is None:
        restart(member)
        return
    for act in (lambda: corosync_restart.judge(run=member.run, root=member.root), lambda: restart(member)):
        with pytest.raises(PveguardError, match=message):
            act()
    assert member.restarts == 0
    if "allow_quorum_loss" in message:
        restart(member, allow_quorum_loss=True)


def test_the_vote_of_a_qdevice_counts(cluster: Make) -> None:
    member = cluster(nodes=2)
    qdevice(member)
    member.answer = lambda _argv, said: said.replace("Expected votes:   2", "Expected votes:   3").replace(
        "Total votes: 2", "Total votes: 3"
    )
    restart(member)
    # One that does not vote does not count.
    member.answer = lambda _argv, said: said.replace("Expected votes:   2", "Expected votes:   3")
    with pytest.raises(PveguardError, match="1 of 3 votes"):
        restart(member)


def test_the_module(run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"live_member_ids": [1, 2], "running_config_version": 7}
    monkeypatch.setattr(corosync_restart, "judge", lambda allow: {**info, "allow": allow})
    monkeypatch.setattr(corosync_restart, "restart", lambda *_: pytest.fail("it restarts"))
    result = run_module("corosync_restart", _ansible_check_mode=True)
    assert (result["changed"], result["config_version"], result["live_member_ids"]) == (True, 7, [1, 2])
    monkeypatch.setattr(corosync_restart, "restart", lambda deadline, allow: info if (deadline, allow) == (5.0, True) else 1)
    assert run_module("corosync_restart", deadline_seconds=5, allow_quorum_loss=True)["changed"]

    def refuse(*_: Any) -> Any:
        raise PveguardError("no quorum")

    monkeypatch.setattr(corosync_restart, "restart", refuse)
    assert run_module("corosync_restart")["msg"] == "no quorum"
