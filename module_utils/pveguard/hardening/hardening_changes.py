# SPDX-License-Identifier: Apache-2.0
"""What the role ``node_hardening`` would change on a node, as far as the facts of its areas say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import sshd


def changes(node: Mapping[str, Any], plan: Mapping[str, Any], desired: Mapping[str, Any]) -> list[str]:
    """In sentences without a subject; empty when nothing. ``desired``: role -> what is wanted of it."""
    values = desired.get(sshd.ROLE)
    if not isinstance(values, Mapping) or not values.get("node_hardening_sshd"):
        return []
    facts = (node.get("hardening") or {}).get(sshd.AREA) or {}
    if facts.get("managed") and not facts.get("drifted"):
        return []
    return [f"harden sshd ({sshd.DROP_IN}), kept only when all members and the controller still get in"]
