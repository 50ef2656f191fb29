# SPDX-License-Identifier: Apache-2.0
"""Filters of the role ram_state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..state import ram_state


def is_current(node: Any, units: Mapping[str, str], drop_in: str, config: Mapping[str, Any]) -> bool:
    """Whether the module ram_state would find nothing to do on a node, by its facts; false without facts.

    ``{{ pveguard_node.node | pveguard_ram_state_is_current(units, drop_in, config) }}``
    """
    if not isinstance(node, Mapping):
        return False
    return ram_state.is_current(node, ram_state.Options(units=units, drop_in=drop_in, config=config))


FILTERS: dict[str, Callable[..., Any]] = {"pveguard_ram_state_is_current": is_current}
