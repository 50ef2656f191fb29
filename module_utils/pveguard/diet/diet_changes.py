# SPDX-License-Identifier: Apache-2.0
"""What the role ``write_diet`` would change on a node, from the facts of node_info."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import measures


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
    return list(measures.all_todo(options(values), node)) if isinstance(values, Mapping) else []
