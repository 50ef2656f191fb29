# SPDX-License-Identifier: Apache-2.0
"""Filters of the role write_diet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ..base.errors import PveguardError
from ..diet import diet_changes, measures


def is_current(node: Any, name: str, options: Mapping[str, Any]) -> bool:
    """Whether the module write_diet would find nothing to do for a measure, by a node's facts. Without facts of the node it is
    asked, and where the cluster file system was not there yet when the node was looked at: what comes with it has come since.
    Facts that say nothing of the measure say that there is nothing for it.

    ``{{ pveguard_node.node | pveguard_write_diet_is_current('journald', options) }}``
    """
    if not isinstance(node, Mapping) or not node:
        return False
    try:
        measures.measure(name)
        if options.get("enabled") and diet_changes.is_new(node):
            return False
        return name not in (node.get(measures.ROLE) or {}) or measures.is_current(name, options, node)
    except PveguardError as error:
        raise AnsibleFilterError(str(error)) from error


def is_on(node: Any) -> bool:
    """Whether a measure is on, or was interrupted, by a node's facts; true without facts of the node."""
    if not isinstance(node, Mapping) or not node:
        return True
    return any(facts.get("kept") or facts.get("pending") for facts in (node.get(measures.ROLE) or {}).values())


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_write_diet_is_current": is_current,
    "pveguard_write_diet_is_on": is_on,
}
