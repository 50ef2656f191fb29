# SPDX-License-Identifier: Apache-2.0
"""The filters over Corosync as a playbook calls them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from .cluster_facts import NAME, conf, healthy, node

ROOT = Path(__file__).resolve().parents[2]


def filters() -> dict[str, Any]:
    path = ROOT / "filter_plugins" / "pveguard_corosync.py"
    spec = importlib.util.spec_from_file_location("filters_corosync", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.FilterModule().filters()
    return found


def hostvars(nodes: dict[str, Any], **variables: Any) -> dict[str, dict[str, Any]]:
    return {host: {"pveguard_node": {"node": facts}, **variables} if facts else dict(variables) for host, facts in nodes.items()}


def test_differences_of_hosts_that_were_asked_and_that_were_not() -> None:
    nodes = healthy() | {"pve2": node(2, conf(), conf(note="other")), "pve3": None, "solo": None}
    variables = hostvars(nodes, corosync_cluster_name=NAME)
    variables["solo"] = {}
    (found,) = filters()["pveguard_corosync_differences"](variables, ["pve1"])
    assert found["cluster"] == NAME
    assert {each["kind"]: each["nodes"] for each in found["findings"]} == {"same_version": ["pve2"], "not_asked": ["pve3"]}
    assert found["survivor"]["path"] == "/etc/pve/corosync.conf" and found["lines"][0] == f"cluster {NAME}:"
