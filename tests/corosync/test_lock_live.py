# SPDX-License-Identifier: Apache-2.0
"""Locks on /etc/pve with real corosync and the double of pmxcfs, which answers a change of corosync.conf after its reload:
the quorum of a cluster of one is lost by then, and the lock of the change cannot be removed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.pveguard.corosync import corosync_change

from lab.tests.doubles.harness import wait_for

from .nodes import Member
from .test_membership import founded, join, members

__all__ = ["members"]  # the fixture
pytestmark = [pytest.mark.slow, pytest.mark.root]

Make = Callable[[int], Member]


def lock_of(node: Member) -> Any:
    return node.pve / corosync_change.LOCK


def test_the_lock_of_a_listing_does_not_end_the_run_at_the_third_node(members: Make) -> None:
    first = founded(members(1))
    second, third = members(2), members(3)
    listed = first.change(nodes=[second.listed()])
    assert listed.get("error") is None, listed
    assert [kept["path"] for kept in listed["kept"]] == [f"/etc/pve/{corosync_change.LOCK}"] and lock_of(
        first
    ).is_dir()
    # As long as the second is not there nothing can be done about it, and it is said.
    waiting = first.give_back(2)
    assert waiting["removed"] == [] and waiting["kept"][0]["reason"], waiting
    result = second.member(
        state="joined", conf=listed["after"], authkey=first.authkey(), expected_ids=[1, 2], tree_sha256=None
    )
    assert result.get("error") is None, result
    given = first.give_back()
    assert given == {"removed": [f"/etc/pve/{corosync_change.LOCK}"], "kept": []}
    wait_for(
        "the lock to be gone on both", lambda: not lock_of(first).exists() and not lock_of(second).exists()
    )
    result = join(first, third)
    assert result.get("error") is None and result["live_member_ids"] == [1, 2, 3], result
    assert not lock_of(first).exists()


def test_a_node_that_never_comes_is_taken_off_and_the_lock_is_given_back(members: Make) -> None:
    first = founded(members(1))
    second = members(2)
    assert first.change(nodes=[second.listed()])["kept"] and lock_of(first).is_dir()
    # As unlist.yml.
    taken_off = first.python(
        "from pveguard.corosync import corosync_change as c\n"
        "o = c.apply(c.Wanted(nodes=args[0], absent=True), 60)\n"
        "result = {'changed': o.changed, 'kept': [each.shown() for each in o.lock_kept]}",
        [second.listed()],
    )
    assert taken_off == {"changed": True, "kept": []} and not lock_of(first).exists(), taken_off


def test_a_dead_holders_lock_is_broken_by_asking_the_daemon(
    members: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMXCFS_LAB_LOCK_SECONDS", "5")  # of the double; ours is what the age is compared with
    first = founded(members(1))
    lock_of(first).mkdir(parents=True)
    # One of now is awaited, and named.
    script = (
        "import pathlib\nfrom pveguard.pmxcfs import pve_lock\n"
        "with pve_lock.Lock(pathlib.Path('/etc/pve') / args[0], args[1]):\n    result = {'taken': True}"
    )
    said = first.python(script, corosync_change.LOCK, 1)["error"]
    assert "is held: it was made" in said and "by node id 1 (pve1)" in said, said
    assert lock_of(first).is_dir()
    old = time.time() - 400
    os.utime(lock_of(first), (old, old))
    assert first.python(script, corosync_change.LOCK, 1) == {"taken": True}
    assert not lock_of(first).exists()
