# SPDX-License-Identifier: Apache-2.0
"""What live nodes say, compared and exported: real corosync and the double of pmxcfs in namespaces."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.pveguard.cluster import corosync_compare, corosync_export, inventory
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit

from lab.tests.doubles.harness import wait_for, why_not

from .nodes import Member, Switch

pytestmark = [pytest.mark.slow, pytest.mark.root]


@pytest.fixture
def cluster() -> Iterator[list[Member]]:
    """Three members, founded by the first and joined one after the other."""
    reason = why_not() or (None if shutil.which("corosync") else "needs corosync")
    if reason:
        pytest.skip(reason)
    switch = Switch()
    nodes: list[Member] = []
    try:
        for number in (1, 2, 3):
            nodes.append(Member(number))
            switch.plug(nodes[-1])
        first = nodes[0]
        conf = corosync_edit.render_new("pvelab", [first.listed()])
        result = first.member(state="bootstrapped", conf=conf, authkey=None, tree_sha256=None)
        assert result.get("error") is None, result
        for node in nodes[1:]:
            listed = first.change(cluster_name="pvelab", nodes=[node.listed()])
            assert listed.get("error") is None, listed
            expected = [*listed["live"], node.number]
            result = node.member(
                state="joined", conf=listed["after"], authkey=first.authkey(), expected_ids=expected, tree_sha256=None
            )
            assert result.get("error") is None, result
        yield nodes
    finally:
        for node in nodes:
            node.close()
        switch.close()


def facts(node: Member) -> dict[str, Any]:
    """What node_info says of the two, and the statistics of the links."""
    return node.python(
        "import socket\nfrom pveguard.corosync import corosync_info\nfrom pveguard.pmxcfs import pmxcfs\n"
        "result = {'hostname': socket.gethostname(), 'pmxcfs': pmxcfs.collect(),\n"
        "          'corosync': corosync_info.collect(statistics=True)}"
    )


def compared(nodes: list[Member]) -> dict[str, Any]:
    (found,) = corosync_compare.compare({node.name: facts(node) for node in nodes})
    return found


def kinds(nodes: list[Member]) -> dict[str, list[str]]:
    return {each["id"]: each["nodes"] for each in compared(nodes)["findings"]}


def arrived(node: Member, deadline_s: float, **wanted: Any) -> list[str]:
    script = (
        "from pveguard.corosync import corosync_info\n"
        "_, missing = corosync_info.wait(args[0], args[1])\nresult = {'m': missing}"
    )
    missing: list[str] = node.python(script, wanted, deadline_s)["m"]
    return missing


def test_live_nodes_compared_and_exported(cluster: list[Member]) -> None:
    first, second, third = cluster
    wait_for("equal nodes", lambda: not kinds(cluster))

    seen = facts(third)["corosync"]["link_statistics"]
    assert [(each["link"], each["node_id"], each["connected"]) for each in seen] == [(0, 1, True), (0, 2, True)]
    for each in seen:
        assert each["latency_samples"] and 0 < each["latency_min_us"] <= each["latency_average_us"] <= each["latency_max_us"]

    # One member describes them all, as the others are reached.
    found = corosync_export.inventory({"pve1": facts(first)}, {})
    assert found.errors == [] and inventory.inventory_errors(found.hosts()) == []
    assert found.hosts()["pve3"] == {
        "corosync_cluster_name": "pvelab",
        "ansible_host": third.address,
        "corosync_node_id": 3,
        "corosync_links": [third.address],
    }

    # A change arrives on a member that did not make it; what nobody wrote does not.
    change = first.change(cluster_name="pvelab", token_ms=4000)
    assert change["changed"] is True
    version = corosync_conf.parse(change["after"]).config_version
    assert arrived(third, 60, config_version=version, quorate=True, live_member_ids=[1, 2, 3]) == []
    assert len(arrived(third, 1, config_version=(version or 0) + 1)) == 3

    # The host's copy edited by hand, at the same version and at a higher one.
    second.host_conf.write_text(change["after"] + "# by hand\n")
    assert kinds(cluster) == {"corosync-copies-same-version": ["pve2"]}
    second.host_conf.write_text(change["after"].replace(f"config_version: {version}", "config_version: 40"))
    found_now = compared(cluster)
    assert {each["id"]: each["nodes"] for each in found_now["findings"]} == {
        "corosync-host-copy-newer": ["pve2"],
        "corosync-running-differs": ["pve2"],
    }
    survivor = found_now["survivor"]
    assert (survivor["node"], survivor["copy"], survivor["write_version"]) == ("pve1", "cluster", 41)
    second.host_conf.write_text(change["after"])

    # A node that is cut off, and one whose corosync is stopped.
    third.sh("ip link set e0 down")
    split: dict[str, list[str]] = {}

    def is_split() -> bool:
        split.clear()
        split.update(kinds(cluster))
        return split.keys() >= {"cluster-membership-split", "quorum-alone"}

    wait_for("the split", is_split)
    assert split["quorum-alone"] == ["pve3"] and "cluster-false-leader" not in split
    third.systemctl("stop", "corosync.service")
    assert kinds(cluster)["corosync-down"] == ["pve3"]
