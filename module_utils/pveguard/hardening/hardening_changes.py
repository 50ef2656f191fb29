# SPDX-License-Identifier: Apache-2.0
"""What the role ``node_hardening`` would change on a node, as far as the facts of its areas say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import concerns, sshd


def changes(node: Mapping[str, Any], plan: Mapping[str, Any], desired: Mapping[str, Any]) -> list[str]:
    """In sentences without a subject; empty when nothing. ``desired``: role -> what is wanted of it."""
    values = desired.get(sshd.ROLE)
    facts = node.get("hardening") or {}
    if not isinstance(values, Mapping):
        return []
    return _sshd(values, facts) + [f"{each} (node hardening)" for each in concerns.all_todo(values, facts)]


def _sshd(values: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    own = facts.get(sshd.AREA) or {}
    if not values.get("node_hardening_sshd") or (own.get("managed") and not own.get("drifted")):
        return []
    return [f"harden sshd ({sshd.DROP_IN}), kept only when all members and the controller still get in"]
