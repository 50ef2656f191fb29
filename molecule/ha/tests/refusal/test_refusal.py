# SPDX-License-Identifier: Apache-2.0
"""With an HA resource, or a request that is queued, nothing is changed on any node, and the message says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ha_interruptions import Nodes

#: Longer than CI has, which does the same with the programs of the doubles (tests/ha/test_role.py, test_on_double.py).
pytestmark = pytest.mark.campaign
Protect = Callable[[str], tuple[int, str]]


def lrm_states(wanted: str) -> Callable[[dict[str, Any]], list[str]]:
    def problems(seen: dict[str, Any]) -> list[str]:
        return [f"{node}: {each['lrm'].get('state')}" for node, each in seen.items() if each["lrm"].get("state") != wanted]

    return problems


@pytest.fixture(scope="module", autouse=True)
def idle(nodes: Nodes) -> None:
    """The managers hold the watchdog only for resources, and not for ten minutes after the last one; they cannot disarm."""
    for node in nodes.names:
        nodes.console(node, "printf 'disarm=no\\nidle_seconds=10\\n' > /etc/pve-ha-lab.conf")
    nodes.wait("the LRMs are not idle", lrm_states("wait_for_agent_lock"))


def kept(seen: dict[str, Any]) -> dict[str, Any]:
    """What a refused run must leave as it was; the managers go on writing their status."""
    theirs = ("lrm", "status_files")
    return {node: {key: value for key, value in each.items() if key not in theirs} for node, each in seen.items()}


@pytest.fixture
def resource(nodes: Nodes) -> Iterator[dict[str, Any]]:
    nodes.console("pve1", "ha-manager add vm:100")
    try:
        yield nodes.wait("the LRMs do not take the watchdog", lrm_states("active"))
    finally:
        nodes.console("pve1", "ha-manager remove vm:100")
        nodes.wait("the LRMs do not let go", lrm_states("wait_for_agent_lock"))


def test_a_resource_is_named_and_nothing_is_changed(nodes: Nodes, protect: Protect, resource: dict[str, Any]) -> None:
    code, output = protect("disabled")
    assert code != 0 and "HA is in use: vm:100" in output and "nothing was changed on any node" in output
    assert kept(nodes.look()) == kept(resource)


def test_a_queued_request_is_named_and_nothing_is_changed(nodes: Nodes, protect: Protect) -> None:
    nodes.console("pve2", "echo 'stop vm:100 0' > /etc/pve/ha/crm_commands")
    before = nodes.look()
    try:
        code, output = protect("disabled")
    finally:
        nodes.console("pve2", "rm /etc/pve/ha/crm_commands")
    assert code != 0 and "queued command 'stop vm:100 0'" in output
    assert kept(nodes.look()) == kept(before)
