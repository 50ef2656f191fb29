# SPDX-License-Identifier: Apache-2.0
"""What the role ``write_diet`` would change on a node, from the facts of node_info."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import measures, rrdcached


def options(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``{measure: options}`` of the role's variables: ``write_diet_MEASURE`` is its switch, ``write_diet_MEASURE_OPTION`` the
    rest.
    """
    found = {}
    for name in measures.MEASURES:
        switch = f"{measures.ROLE}_{name}"
        own = {key.removeprefix(f"{switch}_"): value for key, value in values.items() if key.startswith(f"{switch}_")}
        found[name] = {**own, "enabled": bool(values.get(switch))}
    return found


def changes(node: Mapping[str, Any], plan: Mapping[str, Any], desired: Mapping[str, Any]) -> list[str]:
    """In sentences without a subject; empty when nothing. ``desired``: role -> what is wanted of it."""
    values = desired.get(measures.ROLE)
    if not isinstance(values, Mapping):
        return []
    wanted = options(values)
    todo = list(measures.all_todo(wanted, node))
    if is_new(node) and plan.get("action") in ("bootstrap", "join") and wanted[rrdcached.NAME]["enabled"]:
        todo.insert(0, "write RRD files late, once rrdcached has come with pve-cluster")
    return todo


def is_new(node: Mapping[str, Any]) -> bool:
    """Whether a node had no cluster file system when it was looked at."""
    return "packages" in node and not node["packages"].get("pve-cluster")
