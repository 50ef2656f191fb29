# SPDX-License-Identifier: Apache-2.0
"""What one node's own facts say of its Corosync; what several say together is in test_compare.py."""

from __future__ import annotations

import pytest
from ansible.module_utils.pveguard.base.findings import GOOD, PROBLEM, UNKNOWN, WARNING
from ansible.module_utils.pveguard.corosync import corosync_findings as judge

from tests.findings import finding


def test_quorum() -> None:
    assert judge.quorum(True, True, 3, 3) is None
    few = finding([judge.quorum(False, True, 2, 5)], "quorum-missing")
    assert few.severity == PROBLEM and few.text == "no quorum: 2 of 5 members are up and /etc/pve is read-only"
    alone = finding([judge.quorum(False, True, 1, 5)], "quorum-alone")
    assert alone.text.startswith("no quorum: 1 of 5") and "-e" not in alone.helps
    never = finding([judge.quorum(False, False, 1, 5)], "quorum-never-met")
    assert never.headline == "no quorum" and "systemctl start corosync" in never.helps
    unknown = finding([judge.quorum(None, None, 1, 5)], "quorum-unknown")
    assert unknown.severity == UNKNOWN
    # Where the members are not known.
    assert finding([judge.quorum(False, True)], "quorum-missing").text.startswith("no quorum")


def test_members() -> None:
    down = finding([judge.members("c", 1, 3)], "corosync-members-down")
    assert down.severity == WARNING and down.text == "2 of 3 members of c are not up"
    whole = finding([judge.members("c", 3, 3, True)], "corosync-member")
    assert whole.severity == GOOD and whole.text.endswith("3 of 3 members up, quorate")
    assert judge.members(None, 0, 0) is None
    assert finding([judge.probe("c")], "corosync-probe").severity == GOOD


@pytest.mark.parametrize(("members", "two_node", "qdevice", "ids"), [
    (2, True, False, ["corosync-two-node"]), (4, False, False, ["corosync-even-votes"]), (4, False, True, []),
    (3, False, False, []), (2, False, False, []),
])  # fmt: skip
def test_votes(members: int, two_node: bool, qdevice: bool, ids: list[str]) -> None:
    assert [each.id for each in judge.votes(members, two_node, qdevice)] == ids


def test_what_helps_with_votes() -> None:
    assert "QDevice" in finding(judge.votes(2, True, False), "corosync-two-node").helps
    assert "4 votes" in finding(judge.votes(4, False, False), "corosync-even-votes").text


def test_a_service_that_does_not_run() -> None:
    assert judge.service(True) is None
    own = finding([judge.service(False, False, alone=True)], "corosync-down")
    assert own.text == "corosync does not run on a cluster member, nor has it since the daemon started"
    assert "writable" in own.means
    told = judge.service(False, why="line 1", nodes=["pve2"])
    assert told is not None and told.text == "corosync does not run; line 1" and told.nodes == ("pve2",)


def test_two_copies() -> None:
    same = finding([judge.copies(5, 5)], "corosync-copies-same-version")
    assert same.headline == "the two copies of corosync.conf differ" and "config_version 6" in same.helps
    assert "config_version 9" in finding([judge.copies(5, 8)], "corosync-host-copy-newer").helps
    assert finding([judge.copies(5, 4)], "corosync-host-copy-older").severity == PROBLEM
    assert judge.copies(5, 4, quorate=False).severity == WARNING
    bare = finding([judge.copies(None, 4)], "corosync-copies-differ")
    assert "has 4" in bare.text and judge.copies(None, None).text == bare.headline
    assert {judge.copies(a, b).id for a, b in ((5, 5), (5, 8), (5, 4), (0, 4))} == {each.id for each in judge.COPIES}


def test_what_runs_and_what_is_written() -> None:
    assert judge.running(5, 5) is None
    late = finding([judge.running(4, 5)], "corosync-running-differs")
    assert late.severity == WARNING and "the reload came before" in late.means


def test_a_key_that_others_can_read() -> None:
    assert judge.authkey(False, "0400") is None
    found = finding([judge.authkey(True, "0644")], "corosync-authkey-exposed")
    assert found.severity == PROBLEM and "mode 0644" in found.text and "playbooks/authkey.yml" in found.sentence
