# SPDX-License-Identifier: Apache-2.0
"""Members as the module corosync_conf takes them, from inventory and facts."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from tests.loading import load_filters


def filters() -> dict[str, Any]:
    module = load_filters("corosync_change")
    made: dict[str, Any] = module.FILTERS
    return made


def host(**more: Any) -> dict[str, Any]:
    facts = {"node": {"hostname": "pve1.example.net"}}
    return {"pveguard_node": facts, "corosync_node_id": "1", "corosync_links": ["10.0.0.1"], **more}


def test_names_ids_and_links() -> None:
    nodes = filters()["pveguard_corosync_nodes"]({"a": host(), "b": host(corosync_node_id=2)}, ["b", "a"])
    assert [(node["name"], node["node_id"]) for node in nodes] == [("pve1", 2), ("pve1", 1)]
    assert nodes[0]["links"] == ["10.0.0.1"]


@pytest.mark.parametrize("missing", ["pveguard_node", "corosync_node_id", "corosync_links"])
def test_a_host_that_cannot_be_updated_is_named(missing: str) -> None:
    variables = host()
    del variables[missing]
    with pytest.raises(AnsibleFilterError, match=f"a: .*{missing}.* is missing"):
        filters()["pveguard_corosync_nodes"]({"a": variables}, ["a"])
