# SPDX-License-Identifier: Apache-2.0
"""States and properties of units as systemd prints them.

Imports little, as programs on a node start with it.
"""

from __future__ import annotations

from .run import CommandMissing
from .run import run as real_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .run import Ask


def properties(unit: str, names: Sequence[str], run: Ask = real_run) -> dict[str, str]:
    """``{name: value}`` of one unit, from one ``systemctl show``; empty where there is no systemd.

    A property that systemd does not know is absent.
    """
    try:
        out = run(["systemctl", "show", unit, "-p", ",".join(names)]).stdout
    except CommandMissing:
        return {}
    return _values(out)


def properties_of(units: Sequence[str], names: Sequence[str], run: Ask = real_run) -> dict[str, dict[str, str]]:
    """:func:`properties` of every unit asked for, from one ``systemctl show``; empty for one that it does not tell of. An alias
    has those of its unit.
    """
    try:
        out = run(["systemctl", "show", "-p", ",".join(["Id", *names]), *units]).stdout
    except CommandMissing:
        out = ""
    shown = [_values(block) for block in out.split("\n\n") if block.strip()]
    told = {values["Id"]: values for values in shown if "Id" in values}
    # An alias is shown under the name of its unit, where it was asked for.
    in_order = dict(zip(units, shown, strict=True)) if len(shown) == len(units) else {}
    return {unit: told.get(unit) or in_order.get(unit, {}) for unit in units}


def unit_states(units: Sequence[str], run: Ask = real_run) -> dict[str, dict[str, str]]:
    """``{unit: {load, active, enabled}}`` of every unit asked for, from one ``systemctl show``.

    The values are LoadState, ActiveState and UnitFileState; a unit that systemd does not know, and every unit where there
    is no systemd, is ``not-found``, ``inactive`` and ``""``.
    """
    states = {unit: {"load": "not-found", "active": "inactive", "enabled": ""} for unit in units}
    for unit, values in properties_of(units, ["LoadState", "ActiveState", "UnitFileState"], run).items():
        if values:
            states[unit] = {
                "load": values.get("LoadState", ""),
                "active": values.get("ActiveState", ""),
                "enabled": values.get("UnitFileState", ""),
            }
    return states


def _values(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
