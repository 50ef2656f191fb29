# SPDX-License-Identifier: Apache-2.0
"""Hardened, and a cluster as before."""

from __future__ import annotations

from collections.abc import Callable

from hardening_nodes import Nodes, Seen, differences

Harden = Callable[..., tuple[int, dict[str, int], str]]

DROP_IN = "/etc/ssh/sshd_config.d/00-pveguard.conf"


def test_one_member_after_the_other(nodes: Nodes, before: Seen, harden: Harden) -> None:
    code, changed, _ = harden()
    assert code == 0 and all(changed.values())
    after = nodes.look()
    for node in nodes.names:
        new = [line.partition(":")[0] for line in differences(before[node]["files"], after[node]["files"])]
        assert new == [DROP_IN], node
        assert not after[node]["units"], "a timer is left"


def test_a_second_run_changes_nothing(harden: Harden) -> None:
    code, changed, _ = harden("--diff")
    assert code == 0 and not any(changed.values())


def test_both_rings_quorum_and_every_login_work(nodes: Nodes) -> None:
    assert nodes.not_in_order(links=2) == [] and nodes.locked_out() == []
