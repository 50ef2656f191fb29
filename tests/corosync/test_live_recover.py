# SPDX-License-Identifier: Apache-2.0
"""Disorders planted in live nodes and repaired step by step: real corosync and the double of pmxcfs in namespaces."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.cluster import recovery_plan
from ansible.module_utils.pveguard.formats import corosync_conf

from lab.tests.doubles.harness import wait_for

from .nodes import Member
from .test_live_info import cluster, facts

__all__ = ["cluster"]
pytestmark = [pytest.mark.slow, pytest.mark.root]


def plan(nodes: list[Member], **more: Any) -> dict[str, Any]:
    (found,) = recovery_plan.plan({node.name: facts(node) for node in nodes}, **more)
    return found


def carry_out(node: Member, action: dict[str, Any], check: bool = False) -> dict[str, Any]:
    request = {key: value for key, value in action.items() if key not in ("host", "name")}
    return node.python(
        "from pveguard.cluster import corosync_recover as r\nresult = r.carry_out(r.Request(**args[0]), args[1])",
        request,
        check,
    )


def recover(nodes: list[Member]) -> list[str]:
    """Every step that is proposed, with the nodes looked at anew after each; the words."""
    by_name, words = {node.name: node for node in nodes}, []
    while steps := plan(nodes, done=words)["steps"]:
        words.append(steps[0]["word"])
        for action in steps[0]["actions"]:
            before = [node.host_conf.read_bytes() for node in nodes]
            assert carry_out(by_name[action["host"]], action, check=True).get("changed") is True
            assert before == [node.host_conf.read_bytes() for node in nodes]
            done = carry_out(by_name[action["host"]], action)
            assert done.get("changed") is True, done
    wait_for("a healthy cluster", lambda: plan(nodes)["healthy"])
    return words


def version(node: Member) -> int:
    found = corosync_conf.parse(node.host_conf.read_text()).config_version
    assert found
    return found


@pytest.mark.campaign
def test_planted_disorders_are_repaired(cluster: list[Member]) -> None:
    first, second, third = cluster
    wait_for("a healthy cluster", lambda: plan(cluster)["healthy"])
    assert recover(cluster) == []
    good = first.host_conf.read_text()
    known = version(first)

    # The same version with another text, and a save that is made once.
    second.host_conf.write_text(good + "# by hand\n")
    saved = carry_out(second, {"step": "save"})
    assert carry_out(second, {"step": "save"}) == {**saved, "changed": False}
    kept = second.root / saved["directory"].lstrip("/")
    assert (kept / "corosync.conf.host").read_text().endswith("# by hand\n")
    assert (kept / "config.db").stat().st_mode & 0o777 == 0o600
    assert '"database": "whole"' in (kept / "manifest.json").read_text()
    assert recover(cluster) == ["publish:pvelab"]
    assert {version(node) for node in cluster} == {known + 1} and "by hand" not in second.host_conf.read_text()

    # A host copy that is newer than the cluster's.
    third.host_conf.write_text(good.replace(f"config_version: {known}", "config_version: 40"))
    assert recover(cluster) == ["publish:pvelab"] and {version(node) for node in cluster} == {41}

    # A text that Corosync does not start with.
    third.systemctl("stop", "corosync.service")
    third.host_conf.write_text("totem {\n  version\n")
    wait_for("two members", lambda: plan(cluster)["steps"])
    assert recover(cluster) == ["host_copy:pve3", "start:pve3"]
    assert {node.host_conf.read_text() for node in cluster} == {first.host_conf.read_text()}

    # A daemon that is down is started; one whose state moved on meanwhile is not what was shown.
    third.systemctl("stop", "pve-cluster.service")
    (step,) = plan(cluster)["steps"]
    assert step["word"] == "daemon:pve3"
    (action,) = step["actions"]
    assert "has changed since" in carry_out(third, {**action, "seen": {**action["seen"], "host_sha256": "0"}})["error"]
    assert "rolled back" in carry_out(third, {**action, "max_root_version": 1})["error"]
    assert recover(cluster) == ["daemon:pve3"]

    # Alone: not while the others answer, and only one node.
    for node in (second, third):
        node.systemctl("stop", "corosync.service")
    wait_for("no quorum", lambda: facts(first)["corosync"]["quorate"] is False, 60)
    alone = {"pve1": facts(first), "pve2": None, "pve3": None}
    (found,) = recovery_plan.plan(alone, dict.fromkeys(alone, "pvelab"))
    assert [each["word"] for each in found["steps"]] == ["quorum:pve1"]
    (action,) = found["steps"][0]["actions"]
    assert f"{second.address}, {third.address} answers, so" in carry_out(first, action)["error"]
    for node in (second, third):
        node.sh("ip link set e0 down")
    assert carry_out(first, action) == {"before": "", "after": "", "changed": True}
    assert facts(first)["corosync"]["quorate"] is True
    first.sh("echo x > /etc/pve/alone.cfg")
    assert "there is quorum by now" in carry_out(first, {**action, "seen": {}})["error"]

    # They come back behind, and take what it wrote.
    for node in (second, third):
        node.sh("ip link set e0 up")
    assert recover(cluster) in (["start:pve2", "start:pve3"], ["start:pve3", "start:pve2"])
    wait_for("the file", (third.pve / "alone.cfg").exists)
