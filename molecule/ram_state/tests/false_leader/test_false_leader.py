# SPDX-License-Identifier: Apache-2.0
"""A member that stopped cleanly holds a higher version than those that lost power: it may not roll them back.

pve2 and pve3 lose power with transactions of noise that nobody had to save; pve1, which saw them, is shut down in good
order. The two come back, the cluster's configuration is changed, and only then pve1 boots.
"""

from __future__ import annotations

from typing import Any

import pytest

from lab.labs import Lab

RESTORED = "cat /run/pveguard/restore.json"
READY = (
    "grep -q '\"ready\": true' /run/pveguard/watch.json && corosync-quorumtool -s | grep -q 'Quorate: *Yes'"
)


@pytest.fixture(scope="module")
def story(lab: Lab, console: Any, wait: Any, look: Any) -> dict[str, Any]:
    look()
    console("pve1", "echo before > /etc/pve/molecule-leader")
    for node in ("pve1", "pve2", "pve3"):
        wait(node, "/usr/local/sbin/pve-state status --json | grep -q '\"would_lose\": \\[\\]'", 60)
    # Locks: the version rises by 60, below the greatest lag, and nothing is saved.
    console(
        "pve1",
        "for i in $(seq 30); do mkdir /etc/pve/priv/lock/molecule && rmdir /etc/pve/priv/lock/molecule; done",
    )
    lab.power_cut(["pve2", "pve3"])
    lab.power_off(["pve1"])
    lab.start(["pve2", "pve3"], wait=False)
    for node in ("pve2", "pve3"):
        _when_booted(console, wait, node)
    console("pve2", "echo after > /etc/pve/molecule-leader")
    restored = {node: _restored(console, node) for node in ("pve2", "pve3")}
    lab.start(["pve1"], wait=False)
    _when_booted(console, wait, "pve1")
    restored["pve1"] = _restored(console, "pve1")
    return {"restored": restored, "seen": look()}


def _when_booted(console: Any, wait: Any, node: str) -> None:
    import time

    from lab.errors import LabError

    end = time.monotonic() + 300
    while True:
        try:
            console(node, "true", 10)
            break
        except LabError:
            assert time.monotonic() < end, f"{node} does not boot"
            time.sleep(1)
    wait(node, READY, 300)


def _restored(console: Any, node: str) -> dict[str, Any]:
    import json

    found = json.loads(console(node, RESTORED))
    assert isinstance(found, dict)
    return found


def test_the_stopped_member_would_have_been_the_leader(story: dict[str, Any]) -> None:
    """Otherwise the test proves nothing."""
    restored = story["restored"]
    assert restored["pve1"]["clean"] is True
    assert restored["pve2"]["clean"] is False and restored["pve3"]["clean"] is False
    assert restored["pve1"]["root_version"] > max(restored[node]["root_version"] for node in ("pve2", "pve3"))


def test_the_others_advanced_beyond_it(story: dict[str, Any]) -> None:
    restored = story["restored"]
    for node in ("pve2", "pve3"):
        assert restored[node]["advanced"] > restored["pve1"]["root_version"], node


def test_the_change_survives_everywhere(story: dict[str, Any], console: Any) -> None:
    for node in ("pve1", "pve2", "pve3"):
        assert console(node, "cat /etc/pve/molecule-leader") == "after\n", node


def test_the_members_agree(story: dict[str, Any]) -> None:
    seen = story["seen"]
    assert len({node["rest_sha256"] for node in seen.values()}) == 1


def test_the_shutdown_was_in_order(story: dict[str, Any], console: Any) -> None:
    """Watcher, daemon, last save: each before the next began to stop."""
    text = console("pve1", "journalctl -b -1 --no-pager -o cat _PID=1 | grep -E '^Stopped ' | tail -n 200")
    lines = [line.split(" - ")[0].removeprefix("Stopped ") for line in text.splitlines()]
    units = ["pveguard-state-watch.service", "pve-cluster.service", "pveguard-state.service"]
    places = [max((i for i, line in enumerate(lines) if line.startswith(unit)), default=-1) for unit in units]
    assert -1 not in places, text
    assert places == sorted(places), text
