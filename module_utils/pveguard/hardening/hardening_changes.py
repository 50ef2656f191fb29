# SPDX-License-Identifier: Apache-2.0
"""What the role ``node_hardening`` would change on a node, as far as the facts of its areas say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..pmxcfs.places import CLUSTER_FW
from . import concerns, firewall, firewall_rules, sshd
from .firewall_rules import ENFORCE, RULES, Options


def changes(node: Mapping[str, Any], plan: Mapping[str, Any], desired: Mapping[str, Any]) -> list[str]:
    """In sentences without a subject; empty when nothing. ``desired``: role -> what is wanted of it."""
    values = desired.get(sshd.ROLE)
    facts = node.get("hardening") or {}
    if not isinstance(values, Mapping):
        return []
    others = [f"{each} (node hardening)" for each in concerns.all_todo(values, facts)]
    return [*_sshd(values, facts), *_firewall(values, facts), *others]


def _sshd(values: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    own = facts.get(sshd.AREA) or {}
    if not values.get("node_hardening_sshd") or (own.get("managed") and not own.get("drifted")):
        return []
    return [f"harden sshd ({sshd.DROP_IN}), kept only when all members and the controller still get in"]


def _firewall(values: Mapping[str, Any], hardening: Mapping[str, Any]) -> list[str]:
    mode = values.get("node_hardening_firewall")
    if mode not in (RULES, ENFORCE):
        return []
    facts = hardening.get(firewall.AREA) or {}
    if facts.get("implementation") == firewall.NONE:
        return [f"set the table {firewall_rules.TABLE}, where it is not as wanted"]
    kept = "kept only when ring, quorum, ssh and the web interface of all members answer"
    file = facts.get("cluster") or {}
    found = []
    rules = {rule.text() for rule in firewall_rules.wanted(facts, Options.of(values))} if facts else set()
    if not facts or not rules <= set(file.get("rules") or []):
        found.append(f"set the firewall's rules ({CLUSTER_FW})" + (f", {kept}" if file.get("enable") else ""))
    if mode == ENFORCE and not (file.get("enable") and str(file.get("policy_in")).upper() == "DROP"):
        found.append(f"switch the firewall on, with policy DROP, for all nodes of the cluster; {kept}")
    return found
