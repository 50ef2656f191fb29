# SPDX-License-Identifier: Apache-2.0
"""The default of ram_state_noise: the one list that every part takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..pmxcfs import tree


def noise(more: Iterable[str]) -> list[str]:
    """The patterns of pveguard for what carries no configuration, and ``more``."""
    return list(dict.fromkeys([*tree.NOISE, *more]))


FILTERS: dict[str, Callable[..., Any]] = {"pveguard_noise": noise}
