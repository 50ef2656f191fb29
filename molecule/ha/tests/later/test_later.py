# SPDX-License-Identifier: Apache-2.0
"""HA is off (tests/interruptions left it so): units that come back, a driver that cannot be stopped, a new resource."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from ha_interruptions import FIRES_SECONDS, UNITS, Nodes, unlike

#: Longer than CI has.
pytestmark = pytest.mark.campaign
Protect = Callable[[str], tuple[int, str]]
LRM, _, MUX = UNITS


@pytest.fixture(scope="module")
def back(nodes: Nodes, protect: Protect) -> dict[str, Any]:
    """On pve2 an LRM that an upgrade brought back, on pve3 a multiplexer on a driver with nowayout; then a run."""
    assert unlike("disabled", nodes.look()) == []
    nodes.console("pve2", f"systemctl unmask {LRM} && systemctl start {LRM}")
    nodes.console("pve3", "modprobe -r i6300esb softdog; modprobe i6300esb nowayout=1")
    nodes.console("pve3", f"systemctl unmask {MUX} && systemctl start {MUX}")
    before = nodes.look()
    code, output = protect("auto")
    return {"before": before, "code": code, "output": output, "after": nodes.look()}


def test_units_that_came_back_are_named_and_go_off_again(back: dict[str, Any]) -> None:
    assert back["code"] == 0
    assert f"pve2: {LRM} had been switched off and came back" in back["output"]
    assert f"pve3: {MUX} had been switched off and came back" in back["output"]
    assert unlike("disabled", {node: back["after"][node] for node in ("pve1", "pve2")}) == []


def test_a_watchdog_that_cannot_be_stopped_goes_on_until_the_next_boot(nodes: Nodes, back: dict[str, Any]) -> None:
    assert "watchdog-mux is masked but keeps running until pve3 is rebooted" in back["output"]
    assert back["after"]["pve3"]["units"][MUX] == {"load": "masked", "active": "active"}
    time.sleep(FIRES_SECONDS)
    assert nodes.look()["pve3"]["boot_id"] == back["before"]["pve3"]["boot_id"], "it was reset"


def test_a_resource_that_is_added_now_is_said_loudly(nodes: Nodes, protect: Protect, back: dict[str, Any]) -> None:
    nodes.console("pve1", "ha-manager add vm:100")
    try:
        code, output = protect("auto")
    finally:
        nodes.console("pve1", "ha-manager remove vm:100")
    assert code == 0
    for node in nodes.names:
        assert f"HA is off on {node} but there are HA resources: vm:100" in output, node
    assert {node: each["units"] for node, each in nodes.look().items()} == {
        node: each["units"] for node, each in back["after"].items()
    }
