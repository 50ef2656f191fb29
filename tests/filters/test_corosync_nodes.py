# SPDX-License-Identifier: Apache-2.0
"""Members as the module corosync_conf takes them, from inventory and facts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

ROOT = Path(__file__).resolve().parents[2]


def filters() -> dict[str, Any]:
    path = ROOT / "filter_plugins" / "pveguard_corosync_change.py"
    spec = importlib.util.spec_from_file_location("pveguard_corosync_change", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, Any] = module.FilterModule().filters()
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
