# SPDX-License-Identifier: Apache-2.0
"""A fourth node dies, is removed, and comes back with its old state: it stays out until that is gone.

After tests/membership, with four members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from corosync_nodes import Look, Playbook, plain

from lab.labs import Lab

#: Longer than CI has.
pytestmark = pytest.mark.campaign

Console = Callable[..., str]


@pytest.fixture(scope="module")
def removed(lab: Lab, in_order: Look, playbook: Playbook, console: Console) -> dict[str, Any]:
    in_order("pve1", "pve2", "pve3", "pve4")
    lab.power_cut(["pve4"])
    silent = playbook("playbooks/leave.yml", leave_node="pve4", leave_confirm="pve4")
    done = playbook("playbooks/leave.yml", leave_node="pve4", leave_confirm="pve4", leave_dead=True)
    console("pve1", "echo meanwhile > /etc/pve/molecule-meanwhile")
    return {"silent": silent, "done": done}


def test_it_is_removed_only_by_who_says_that_it_is_dead(removed: dict[str, Any], in_order: Look) -> None:
    assert removed["silent"].returncode != 0 and "leave_dead=true" in plain(removed["silent"])
    assert removed["done"].returncode == 0, plain(removed["done"])[-4000:]
    assert all("pve4" not in (seen.cluster or "") for seen in in_order("pve1", "pve2", "pve3").values())


def test_its_old_state_stays_out(removed: dict[str, Any], lab: Lab, in_order: Look, playbook: Playbook) -> None:
    lab.start(["pve4"])
    in_order("pve1", "pve2", "pve3")
    done = playbook("playbooks/cluster.yml", "--limit", "pve1,pve4")
    assert done.returncode != 0 and "holds the state of a former member" in plain(done), plain(done)[-4000:]
    assert all("pve4" not in (seen.cluster or "") for seen in in_order("pve1", "pve2", "pve3").values())


def test_without_it_the_node_joins_as_a_new_one(
    removed: dict[str, Any], in_order: Look, playbook: Playbook, console: Console
) -> None:
    left = playbook("playbooks/leave.yml", leave_node="pve4", leave_confirm="pve4")
    assert left.returncode == 0, plain(left)[-4000:]
    joined = playbook("playbooks/cluster.yml", "--limit", "pve1,pve4")
    assert joined.returncode == 0, plain(joined)[-4000:]
    in_order("pve1", "pve2", "pve3", "pve4")
    console("pve4", "grep -q meanwhile /etc/pve/molecule-meanwhile")
