# SPDX-License-Identifier: Apache-2.0
"""Three nodes that are to become a cluster: pve1 is sound, pve2 has a slow disk, pve3 a bad ring link."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.labs import Lab

#: The gate's host name in the recap -> its counters.
RECAP = re.compile(r"^(pve\d)\s*:\s*(.*)$", re.MULTILINE)


#: Below the planted delay, far above what the ring of emulated nodes takes.
BOUNDS = ("-e", "link_gate_rtt_fail_ms=38")


def recap(output: str) -> dict[str, dict[str, int]]:
    found = {}
    for name, counters in RECAP.findall(output):
        found[name] = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counters)}
    return found


@pytest.fixture(scope="module")
def faults(lab: Lab) -> Iterator[None]:
    lab.throttle("pve2", 40)
    lab.delay("pve3", 40, loss=2)
    yield
    lab.throttle("pve2", None)
    lab.delay("pve3", None)


@pytest.fixture(scope="module")
def before(everywhere: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return everywhere("fingerprint.py")


@pytest.fixture(scope="module")
def refused(before: dict[str, Any], faults: None, playbook: Any) -> Any:
    return playbook("playbooks/join.yml", *BOUNDS)


@pytest.fixture(scope="module")
def joined(refused: Any, lab: Lab, playbook: Any) -> Any:
    lab.throttle("pve2", None)
    lab.delay("pve3", None)
    # With the lab's own bounds: an emulated ring under load is above the one for the fault now and then.
    return playbook("playbooks/join.yml")


def members(lab: Lab, node: str) -> list[str]:
    status, output = lab.machine(node).console.run("corosync-quorumtool -l", 60)
    return re.findall(r"^\s+\d+\s+\d+\s+(\S+)", output, re.MULTILINE) if status == 0 else []


def test_a_slow_disk_and_a_bad_link_are_refused(refused: Any) -> None:
    assert refused.returncode != 0
    found = recap(refused.stdout)
    assert {name: counters["failed"] for name, counters in found.items()} == {"pve1": 0, "pve2": 1, "pve3": 1}
    assert "Traceback" not in refused.stdout + refused.stderr


def test_each_for_its_own_reason(refused: Any, gate: Callable[[], dict[str, Any]]) -> None:
    report = gate()["nodes"]
    assert report["pve1"]["refused_for"] == []
    assert report["pve2"]["refused_for"] == ["disk"] and report["pve2"]["disk"]["reason"] == "slow"
    assert report["pve3"]["refused_for"] == ["links"]
    assert report["pve3"]["links"]["reason"] in ("rtt", "loss")
    for words in ("fsync_gate_min_fsyncs", "link_gate_"):
        assert words in refused.stdout


def test_nothing_on_them_changed(
    refused: Any, before: dict[str, Any], everywhere: Callable[..., dict[str, Any]]
) -> None:
    after = everywhere("fingerprint.py")
    for name in ("pve2", "pve3"):
        for what, was in before[name].items():
            assert after[name][what] == was, f"{name}: {what}"


def test_the_sound_node_went_on(refused: Any, lab: Lab) -> None:
    assert len(members(lab, "pve1")) == 1


def test_both_join_once_they_are_mended(joined: Any, lab: Lab, gate: Callable[[], dict[str, Any]]) -> None:
    assert joined.returncode == 0
    assert {len(members(lab, name)) for name in ("pve1", "pve2", "pve3")} == {3}
    report = gate()["nodes"]
    assert all(report[name]["refused_for"] == [] for name in report)
    # It remembers what it saw before.
    assert report["pve2"]["disk"]["drift"]["fsyncs_per_second_change_percent"] > 50


def test_joining_again_changes_nothing(joined: Any, playbook: Any) -> None:
    again = playbook("playbooks/join.yml")
    assert again.returncode == 0
    assert {counters["changed"] for counters in recap(again.stdout).values()} == {0}
