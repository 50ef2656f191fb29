# SPDX-License-Identifier: Apache-2.0
"""The operations of docs/corosync.md that are no playbook of their own: links, addresses, a node that is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.formats import corosync_conf

from .cluster import Cluster


def hosts(*networks: int) -> list[dict[str, Any]]:
    """What the role makes of corosync_links of three hosts."""
    return [{"name": f"pve{n}", "node_id": n, "links": [f"10.{net}.0.{n}" for net in networks]} for n in (1, 2, 3)]


def addresses(cluster: Cluster) -> dict[str, dict[int, str]]:
    return {node.name: node.addresses for node in corosync_conf.parse(cluster.text).nodes()}


def test_a_link_comes_and_goes_with_the_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, monkeypatch)
    outcome = cluster.change(nodes=hosts(70, 71), update_nodes=True)
    assert outcome.steps == 1
    assert addresses(cluster)["pve3"] == {0: "10.70.0.3", 1: "10.71.0.3"}
    # Again nothing, and back.
    assert not cluster.change(nodes=hosts(70, 71), update_nodes=True).changed
    cluster.change(nodes=hosts(70), update_nodes=True)
    assert addresses(cluster)["pve3"] == {0: "10.70.0.3"}


def test_the_addresses_of_a_cluster_with_one_link_move_over_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, monkeypatch)
    before = cluster.text
    with pytest.raises(PveguardError, match="add a link with the new addresses first"):
        cluster.change(nodes=hosts(80), update_nodes=True)
    assert cluster.text == before
    cluster.change(nodes=hosts(70, 80), update_nodes=True)
    # Now the first one can take the new network too, or another one.
    cluster.change(nodes=hosts(81, 80), update_nodes=True)
    assert addresses(cluster)["pve1"] == {0: "10.81.0.1", 1: "10.80.0.1"}
    assert cluster.running == cluster.text


def test_a_dead_node_is_replaced_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, monkeypatch)
    cluster.live = {1, 2}
    cluster.change(nodes=[{"name": "pve3", "node_id": 3, "links": []}], absent=True)
    assert set(addresses(cluster)) == {"pve1", "pve2"} and cluster.quorate
    # Another machine with the name, at another address and with the same or another id.
    new = {"name": "pve3", "node_id": 4, "links": ["10.70.0.33"]}
    cluster.change(nodes=[new])
    assert addresses(cluster)["pve3"] == {0: "10.70.0.33"}
    assert corosync_conf.parse(cluster.text).node("pve3").node_id == 4  # type: ignore[union-attr]


def test_a_machine_installed_anew_may_take_its_place_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same name, id and addresses: the join finds it listed and writes nothing."""
    cluster = Cluster(tmp_path, monkeypatch)
    cluster.live = {1, 2}
    before = cluster.text
    outcome = cluster.change(nodes=[hosts(70)[2]])
    assert not outcome.changed and cluster.text == before
