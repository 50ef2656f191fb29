"""What the role ``ram_state`` would change on a node, from the facts of node_info."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .status_findings import STOCK


def changes(node: Mapping[str, Any], plan: Mapping[str, Any], desired: Mapping[str, Any]) -> list[str]:
    """In sentences without a subject; empty when nothing. ``desired``: role -> what is wanted of it."""
    if not desired.get("ram_state"):
        return []
    if node["ha"].get("resources"):
        return ["nothing in RAM: the run would be refused while HA is in use; set ram_state_enabled: false"]
    present = node["packages"].get("pve-cluster") or plan.get("action") in ("bootstrap", "join")
    if not present or node["ram_state"].get("state") not in STOCK:
        return []
    todo = ["move /var/lib/pve-cluster to RAM, with its replica in /var/lib/pveguard/state"]
    if node["login"]["authorized_keys_depends_on_pve"]:
        todo.append("keep the key in use in /root/.ssh/authorized_keys2, a login that does not need /etc/pve")
    return todo
