# SPDX-License-Identifier: Apache-2.0
"""A new key for a running cluster, with real corosync in namespaces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from .nodes import Member
from .test_leave_live import clustered
from .test_membership import members

__all__ = ["members"]  # the fixture
pytestmark = [pytest.mark.slow, pytest.mark.root]

SCRIPT = """
from pveguard.cluster import corosync_authkey as k
info = {}
key = args[1] or (k.generate() if args[0] == 'generate' else '')
if args[0] == 'place': k.place(key, args[2])
if args[0] == 'former': k.put_back()
if args[0] in ('reload', 'see'): info = k.reload(args[2], args[3], args[0] == 'reload')
result = {'key': key, 'live': info.get('live_member_ids')}
"""


def do(node: Member, step: str, key: str = "", *more: Any) -> dict[str, Any]:
    result = node.python(SCRIPT, step, key, *more)
    assert result.get("error") is None, result
    return result


def memberships(node: Member) -> int:
    """How many memberships it has seen, by the sequence number of the ring."""
    out = node.tool("corosync-quorumtool", "-s").stdout
    return int(next(line.split(".")[-1] for line in out.splitlines() if line.startswith("Ring ID:")), 16)


@pytest.mark.campaign
def test_a_rotation_costs_no_membership(members: Callable[[int], Member]) -> None:
    nodes = clustered(members, 2)
    first, second = nodes
    old = (first.root / "etc/corosync/authkey").read_bytes()
    before = [memberships(node) for node in nodes]
    key = do(first, "generate")["key"]
    for node in nodes:
        do(node, "place", key, hashlib.sha256(old).hexdigest())
    assert do(first, "reload", "", [1, 2], 20)["live"] == [1, 2]
    assert do(second, "see", "", [1, 2], 20)["live"] == [1, 2]
    assert [memberships(node) for node in nodes] == before
    # It is in force: who starts with the new one comes in, who starts with the former one does not.
    second.systemctl("restart", "corosync.service")
    do(second, "see", "", [1, 2], 20)
    do(second, "former")
    assert (second.root / "etc/corosync/authkey").read_bytes() == old
    second.systemctl("restart", "corosync.service")
    failed = second.python(SCRIPT, "see", "", [1, 2], 10)
    assert "do not take the same key" in failed["error"], failed
    assert first.info()["live_member_ids"] == [1]
