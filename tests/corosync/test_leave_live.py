# SPDX-License-Identifier: Apache-2.0
"""A member leaves, is removed, comes back: real corosync and the double of pmxcfs in namespaces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.formats import corosync_conf
from ansible.module_utils.pveguard.pmxcfs import pmxcfs

from lab.tests.doubles.harness import wait_for

from .nodes import Member
from .test_membership import founded, join, members, put_guest, wait_equal

__all__ = ["members"]  # the fixture
pytestmark = [pytest.mark.slow, pytest.mark.root]

Make = Callable[[int], Member]
JUDGE = """
import pathlib
from pveguard.cluster import cluster_member as c
j = c.judge(c.Request('left', 'pvelab', args[0], 0, []))
result = {'member': j.member, 'refusals': j.refusals}
"""


def clustered(members: Make, numbers: int) -> list[Member]:
    nodes = [founded(members(1))]
    for number in range(2, numbers + 1):
        nodes.append(members(number))
        result = join(nodes[0], nodes[-1])
        assert result.get("error") is None, result
    return nodes


def leave(node: Member, **more: Any) -> dict[str, Any]:
    return node.member(state="left", tree_sha256=None, run_updatecerts=False, **more)


def take_off(seed: Member, name: str) -> dict[str, Any]:
    return seed.change(cluster_name="pvelab", nodes=[{"name": name}], absent=True)


def test_a_member_leaves_and_comes_back_as_a_new_one(members: Make, tmp_path: Path) -> None:
    first, second, third = clustered(members, 3)
    (first.pve / "shared.cfg").write_text("of the cluster\n")
    third.systemctl("start", "pveguard-state-watch.service")
    before = third.tree()
    assert third.python(JUDGE, "pve3")["member"] is False
    result = leave(third)
    assert result.get("error") is None, result
    # Alone, writable, and nothing of the cluster is left but in the store.
    assert third.tree() == {} and third.writable()
    assert not list((third.root / "etc/corosync").glob("[ac]*"))
    assert not third.running("corosync.service") and third.running("pveguard-state-watch.service")
    saved = third.root / f"var/lib/pveguard/state/generations/{result['generation']}.db"
    shutil.copy(saved, tmp_path)  # SQLite does not open what it sees only through /proc
    kept = {path: data for path, (kind, data) in pmxcfs.read_tree(tmp_path / saved.name)[1].items() if kind == 8}
    assert kept["shared.cfg"] == b"of the cluster\n" and set(kept) <= set(before)
    assert json.loads(saved.with_suffix(".json").read_text())["mode"] == "member"
    assert third.python(JUDGE, "pve3") == {"member": True, "refusals": []}
    # The others kept their quorum, and take it off the list.
    assert first.info()["quorate"] and first.info()["live_member_ids"] == [1, 2]
    removed = take_off(first, "pve3")
    assert removed.get("error") is None and removed["live"] == [1, 2], removed
    for node in (first, second):
        info = node.info()
        assert [m["name"] for m in info["members"]] == ["pve1", "pve2"] and info["expected_votes"] == 2, info
        assert info["copies_equal"] and info["quorate"]
        assert (node.pve / "shared.cfg").read_text() == "of the cluster\n"
    # What it writes alone is given up when it joins under the same name.
    (third.pve / "alone.cfg").write_text("given up\n")
    result = join(first, third)
    assert result.get("error") is None and result["live_member_ids"] == [1, 2, 3], result
    wait_equal(first, second, third)
    assert "alone.cfg" not in first.tree() and "shared.cfg" in third.tree()


def test_the_last_but_one_leaves(members: Make) -> None:
    """Quorum is lost between the two steps, and comes back with the second."""
    first, second = clustered(members, 2)
    assert leave(second).get("error") is None
    assert first.info()["quorate"] is False
    removed = take_off(first, "pve2")
    assert removed.get("error") is None, removed
    assert first.info()["quorate"] and first.writable()


def test_a_leave_that_fails_leaves_a_member(members: Make) -> None:
    first, second, third = clustered(members, 3)
    before = third.tree()
    (third.root / "run/fail-stop-corosync.service").touch()
    result = leave(third)
    assert result["restored"] is True and "systemctl stop corosync.service failed" in result["error"], result
    (third.root / "run/fail-stop-corosync.service").unlink()
    assert third.info()["live_member_ids"] == [1, 2, 3] and third.writable()
    assert third.tree() == before
    # Guests are seen before anything is stopped.
    put_guest(third, 100)
    log = (third.root / "run/systemctl.log").read_text()
    result = leave(third)
    assert "this node has guests: /etc/pve/nodes/pve3/qemu-server/100.conf" in result["error"]
    assert "stop pve-cluster.service" not in (third.root / "run/systemctl.log").read_text().removeprefix(log)
    (refusal,) = third.python(JUDGE, "pve3")["refusals"]
    assert "guests 100" in refusal
    assert first.info()["live_member_ids"] == [1, 2, 3]


def test_one_that_was_removed_while_it_was_away_stays_out(members: Make) -> None:
    """It comes back with its old state: the others do not hear it, and its own leave makes it one that can join."""
    first, second, third = clustered(members, 3)
    (first.pve / "meanwhile.cfg").write_text("before\n")
    third.systemctl("stop", "corosync.service")
    third.systemctl("stop", "pve-cluster.service")
    removed = take_off(first, "pve3")
    assert removed.get("error") is None, removed
    (first.pve / "meanwhile.cfg").write_text("after\n")
    third.systemctl("start", "corosync.service")
    third.systemctl("start", "pve-cluster.service")
    wait_for("corosync", lambda: third.info()["quorate"] is not None)
    info = third.info()
    assert info["quorate"] is False and not third.writable()
    for node in (first, second):
        assert node.info()["live_member_ids"] == [1, 2]
        assert (node.pve / "meanwhile.cfg").read_text() == "after\n"
    version = corosync_conf.parse(removed["after"]).config_version or 0
    assert info["cluster"]["config_version"] < version
    result = leave(third)
    assert result.get("error") is None, result
    assert third.writable()
    result = join(first, third)
    assert result.get("error") is None, result
    assert (third.pve / "meanwhile.cfg").read_text() == "after\n"
    wait_equal(first, third)
