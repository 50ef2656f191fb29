# SPDX-License-Identifier: Apache-2.0
"""The firewall of all members is switched on, and the connections that it knows are forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hardening_nodes import Nodes

#: Longer than CI has.
pytestmark = pytest.mark.campaign
Harden = Callable[..., tuple[int, dict[str, int], str]]
CLUSTER_FW = "/etc/pve/firewall/cluster.fw"


def forget_connections(nodes: Nodes) -> None:
    nodes.everywhere(lambda node: nodes.console(node, "conntrack -F"))


def links_of(nodes: Nodes) -> set[str]:
    """The links that are down on some node."""
    return {line.split("LINK: ")[1][0] for line in nodes.not_in_order(links=2, seconds=20) if "LINK: " in line}


def test_it_is_enforced_on_all_members(nodes: Nodes, harden: Harden) -> None:
    code, changed, _ = harden(tasks="together.yml")
    assert code == 0 and sum(changed.values()) > 0
    said = nodes.everywhere(lambda node: nodes.console(node, "iptables-legacy -S PVEFW-HOST-IN | tail -n 1"))
    assert set(said.values()) == {"-A PVEFW-HOST-IN -j DROP\n"}


def test_a_second_run_changes_nothing(harden: Harden) -> None:
    code, changed, _ = harden(tasks="together.yml")
    assert code == 0 and not any(changed.values())


def test_new_connections_pass_on_both_rings(nodes: Nodes) -> None:
    forget_connections(nodes)
    assert nodes.not_in_order(links=2) == [] and nodes.locked_out() == []


def test_what_the_rule_for_link_1_is_for(nodes: Nodes) -> None:
    """With policy_out DROP the link lives by a connection that is known; without the rule it is down once that is forgotten."""
    nodes.console("pve1", f"cp {CLUSTER_FW} /root/cluster.fw")
    out = "s/^policy_in: DROP/&\\npolicy_out: DROP/"
    loaded = "iptables-legacy -S PVEFW-HOST-OUT | tail -n 1 | grep -q DROP"
    wait = f"for i in $(seq 120); do {loaded} && exit 0; sleep 1; done; exit 1"
    try:
        nodes.console("pve1", f"sed -i -e '/corosync link 1/d' -e '{out}' {CLUSTER_FW}")
        nodes.everywhere(lambda node: nodes.console(node, wait, 180))
        assert links_of(nodes) == set()
        forget_connections(nodes)
        # Corosync needs a moment to miss it.
        down = "corosync-cfgtool -n | grep 'LINK: 1' | grep -qv connected"
        missed = f"for i in $(seq 120); do {down} && exit 0; sleep 1; done; exit 1"
        nodes.everywhere(lambda node: nodes.console(node, missed, 180))
        assert links_of(nodes) == {"1"}
    finally:
        nodes.console("pve1", f"cat /root/cluster.fw > {CLUSTER_FW}; rm /root/cluster.fw")
    assert nodes.not_in_order(links=2) == []
