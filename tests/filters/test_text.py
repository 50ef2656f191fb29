# SPDX-License-Identifier: Apache-2.0
"""Filters that read switches and numbers of hosts take them as text too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.assess import test_assess
from tests.loading import load_filters


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, True), ("yes", True), (" on ", True), ("1", True), (False, False), ("false", False), ("Off", False), ("0", False)],
)
def test_what_is_wanted_of_a_host(value: Any, wanted: bool) -> None:
    own = {"ram_state_enabled": value, "ha_state": "keep"}
    todo = load_filters("playbooks")._changes(own, test_assess.node(), {"action": "adopt"})
    assert any("/var/lib/pve-cluster to RAM" in text for text in todo) is wanted


def test_node_ids() -> None:
    node_ids = load_filters("corosync_change").node_ids
    hostvars = {"a": {"corosync_node_id": "1000"}, "b": {"corosync_node_id": " 7 "}, "c": {}, "d": {"corosync_node_id": 3}}
    assert node_ids(hostvars, ["d", "c", "b", "a"]) == [3, 7, 1000]


def test_peers_and_token_of_links() -> None:
    links = load_filters("links")
    hostvars: dict[str, Any] = {
        f"n{number}": {"corosync_cluster_name": "c", "corosync_links": [f"10.0.0.{number}"], "corosync_token": "0"}
        for number in range(5)
    }
    assert len(links.link_pairs(hostvars, "n0", " 2 ")) == 2
    # 0 asks for nothing, as a number does; five nodes add three coefficients.
    assert links.token(hostvars, list(hostvars))["c"]["effective_ms"] == 3000 + 3 * 125
    hostvars["n3"]["corosync_token"] = "7000"
    assert links.token(hostvars, list(hostvars))["c"]["effective_ms"] == 7000 + 3 * 125


def test_thresholds_of_the_gates() -> None:
    gate = load_filters("gate")
    found = gate._thresholds({"a": " 50 ", "b": "2.5", "c": "nan"}, {"x": "a", "y": "b", "z": "c"}, {})
    assert found == {"x": 50.0, "y": 2.5, "z": None}
