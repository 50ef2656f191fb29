# SPDX-License-Identifier: Apache-2.0
"""What the controller makes of the answers of ``hardening_info``, and of which areas it asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base import variables
from ..base.errors import PveguardError
from . import hardening_info, looking

#: Variables of the role ``node_hardening`` that switch a concern on, by its area.
SWITCH = "node_hardening_"
#: Where a registered answer is.
REGISTERED = "pveguard_hardening"


def with_answer(node: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a node with those of the module ``hardening_info``, where it was called; what it failed with becomes the
    reason why its areas are not known. ``own``: the variables of the host.
    """
    asked = own.get(REGISTERED)
    if not isinstance(asked, Mapping) or asked.get("skipped"):
        return dict(node)
    facts = asked.get("facts")
    said = str(asked.get("msg") or "the module hardening_info did not answer").split("\n")[0][:200]
    found = dict(facts) if isinstance(facts, Mapping) else {"error": said}
    if isinstance(asked.get("areas"), list) and asked["areas"]:
        found["asked"] = [str(each) for each in asked["areas"]]
    return {**node, looking.FACTS: found}


def known_areas(node: Mapping[str, Any] | None) -> dict[str, bool] | None:
    """``{area: known}`` of what was looked at on a node, None where nothing was."""
    facts = (node or {}).get(looking.FACTS)
    if facts is None:
        return None
    found = {area: looking.facts_of({looking.FACTS: facts}, area) for area in hardening_info.AREAS}
    return {area: bool(each["known"]) for area, each in found.items() if each is not None}


def switched_on(own: Mapping[str, Any]) -> list[str]:
    """The areas whose concern the inventory has switched on for a host; none where the role is off."""
    if not _on(own.get(f"{SWITCH}enabled", True)):
        return []
    return [area for area in hardening_info.AREAS if _on(own.get(f"{SWITCH}{area}", False))]


def _on(value: Any) -> bool:
    """A switch, or a word that says how far to go; ``audit`` changes nothing."""
    try:
        return variables.as_bool(value)
    except PveguardError:
        return value not in ("audit", None, "")
