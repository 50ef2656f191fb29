"""States and properties of units as systemd prints them."""

from __future__ import annotations

from collections.abc import Sequence

from .run import CommandMissing, Run
from .run import run as real_run


def properties(unit: str, names: Sequence[str], run: Run = real_run) -> dict[str, str]:
    """``{name: value}`` of one unit, from one ``systemctl show``; empty where there is no systemd.

    A property that systemd does not know is absent.
    """
    try:
        out = run(["systemctl", "show", unit, "-p", ",".join(names)]).stdout
    except CommandMissing:
        return {}
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def unit_states(units: Sequence[str], run: Run = real_run) -> dict[str, dict[str, str]]:
    """``{unit: {load, active, enabled}}`` of every unit asked for, from one ``systemctl show``.

    The values are LoadState, ActiveState and UnitFileState; a unit that systemd does not know, and every unit where there
    is no systemd, is ``not-found``, ``inactive`` and ``""``.
    """
    try:
        out = run(["systemctl", "show", "-p", "Id,LoadState,ActiveState,UnitFileState", *units]).stdout
    except CommandMissing:
        out = ""
    states = {unit: {"load": "not-found", "active": "inactive", "enabled": ""} for unit in units}
    for block in out.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id") in states:
            states[values["Id"]] = {
                "load": values.get("LoadState", ""),
                "active": values.get("ActiveState", ""),
                "enabled": values.get("UnitFileState", ""),
            }
    return states
