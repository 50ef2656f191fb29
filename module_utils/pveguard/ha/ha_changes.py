"""What the role ``ha`` would change on a node, from the facts of node_info."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_unit(unit: str) -> bool:
    """Whether a unit is one of HA's."""
    return unit.startswith(("pve-ha-", "watchdog-mux"))


def changes(node: Mapping[str, Any], plan: Mapping[str, Any], desired: Mapping[str, Any]) -> list[str]:
    """In sentences without a subject; empty when nothing. ``desired``: role -> what is wanted of it."""
    ha = node["ha"]
    if desired.get("ha") not in ("auto", "disabled") or not ha.get("installed") or ha.get("resources"):
        return []
    running = {unit for unit, state in node["units"].items() if is_unit(unit) and state["active"] == "active"}
    unmasked = {unit for unit, state in node["units"].items() if is_unit(unit) and state["load"] == "loaded"}
    if running or unmasked:
        return ["stop and mask " + ", ".join(sorted(running | unmasked))]
    if ha.get("leftovers"):
        return ["remove the status of HA managers that do not run: " + ", ".join(ha["leftovers"])]
    return []
