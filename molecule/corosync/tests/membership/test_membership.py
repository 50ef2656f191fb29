# SPDX-License-Identifier: Apache-2.0
"""A fourth node joins, has its state in RAM, leaves, and comes back under the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from corosync_nodes import Done, Look, Playbook, changed, plain

from lab.labs import Lab

#: Longer than CI has.
pytestmark = pytest.mark.campaign

Console = Callable[..., str]
#: The fourth through the first: the others are seen by what the cluster says.
TWO = ("--limit", "pve1,pve4")


def join(playbook: Playbook) -> Done:
    done = playbook("playbooks/cluster.yml", *TWO)
    assert done.returncode == 0, plain(done)[-4000:]
    return done


@pytest.fixture(scope="module")
def four(lab: Lab, in_order: Look, playbook: Playbook) -> None:
    in_order()
    lab.up(nodes=4)
    join(playbook)


def test_it_is_a_member(four: None, in_order: Look) -> None:
    seen = in_order("pve1", "pve2", "pve3", "pve4")
    assert len({each.key for each in seen.values()}) == 1


def test_what_forbids_a_leave_changes_nothing(
    four: None, in_order: Look, look: Look, playbook: Playbook, console: Console
) -> None:
    before = in_order("pve1", "pve2", "pve3", "pve4")
    console("pve4", "mkdir -p /etc/pve/nodes/pve4/qemu-server && echo 'memory: 512' > /etc/pve/nodes/pve4/qemu-server/400.conf")
    done = playbook("playbooks/leave.yml", leave_node="pve4", leave_confirm="pve4")
    assert done.returncode != 0 and "pve4 has the guests 400" in plain(done), plain(done)[-3000:]
    console("pve4", "rm /etc/pve/nodes/pve4/qemu-server/400.conf")
    done = playbook("playbooks/leave.yml", leave_node="pve4")
    assert done.returncode != 0 and "leave_confirm=pve4" in plain(done)
    dead = playbook("playbooks/leave.yml", leave_node="pve4", leave_confirm="pve4", leave_dead=True)
    assert dead.returncode != 0 and "so it is not dead" in plain(dead)
    after = look("pve1", "pve2", "pve3", "pve4")
    assert {name: each.cluster for name, each in after.items()} == {name: each.cluster for name, each in before.items()}


@pytest.fixture(scope="module")
def left(four: None, in_order: Look, playbook: Playbook, console: Console) -> dict[str, Any]:
    protected = playbook("playbooks/protect.yml", "--limit", "pve4", write_report_measure="never")
    assert protected.returncode == 0, plain(protected)[-4000:]
    console("pve1", "echo of the cluster > /etc/pve/molecule-shared")
    done = playbook("playbooks/leave.yml", leave_node="pve4", leave_confirm="pve4", leave_remove_directory=True)
    assert done.returncode == 0, plain(done)[-4000:]
    return {"members": in_order("pve1", "pve2", "pve3")}


def test_the_members_have_forgotten_it(left: dict[str, Any], console: Console) -> None:
    for seen in left["members"].values():
        assert "pve4" not in (seen.cluster or "")
    console("pve1", "test ! -e /etc/pve/nodes/pve4 && test -e /etc/pve/molecule-shared")


def test_it_is_a_node_by_itself(left: dict[str, Any], console: Console) -> None:
    console(
        "pve4",
        "mountpoint -q /etc/pve && touch /etc/pve/molecule-alone && test ! -e /etc/pve/corosync.conf && "
        "test ! -e /etc/pve/molecule-shared && test ! -e /etc/corosync/corosync.conf && test ! -e /etc/corosync/authkey && "
        "! systemctl is-active --quiet corosync && findmnt -n -o FSTYPE /var/lib/pve-cluster | grep -q tmpfs && "
        "ls /var/lib/pveguard/state/generations/*-before-leave.db && "
        "/usr/local/sbin/pve-state verify",
    )


def test_a_boot_brings_nothing_back(left: dict[str, Any], lab: Lab, console: Console) -> None:
    lab.power_cut(["pve4"])
    lab.start(["pve4"])
    console(
        "pve4",
        "for i in $(seq 120); do mountpoint -q /etc/pve && break; sleep 1; done; test ! -e /etc/pve/corosync.conf && "
        "test -w /etc/pve && touch /etc/pve/molecule-alone",
        300,
    )


def test_a_second_run_changes_nothing(left: dict[str, Any], playbook: Playbook) -> None:
    again = playbook("playbooks/leave.yml", leave_node="pve4")
    assert again.returncode == 0 and changed(again) == 0, plain(again)[-3000:]


def test_it_comes_back_under_the_same_name(left: dict[str, Any], in_order: Look, playbook: Playbook, console: Console) -> None:
    join(playbook)
    in_order("pve1", "pve2", "pve3", "pve4")
    console("pve4", "grep -q 'of the cluster' /etc/pve/molecule-shared && test ! -e /etc/pve/molecule-alone")
