# SPDX-License-Identifier: Apache-2.0
"""The timer that tells SSDs weekly which blocks are free: on. Nothing that anybody needs is written by it, and a drive that knows
its free blocks writes less within itself.
"""

from __future__ import annotations

from typing import Any

from ..base.run import Run
from .parts import Facts, Files, Found, Link, Options, Work, active, file_states, loaded, same

NAME = "fstrim"
UNIT = "fstrim.timer"
UNITS = (UNIT,)
LINK = f"/etc/systemd/system/timers.target.wants/{UNIT}"


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``; ``active``; ``enabled`` (by whomever); ``fragment``: the unit's file; ``files``. One that somebody has
    masked counts as not installed.
    """
    unit = found.units.get(UNIT)
    if not loaded(unit):
        return {"installed": False}
    assert unit is not None
    return {
        "installed": True,
        "active": active(unit),
        "enabled": unit.get("UnitFileState") in ("enabled", "static"),
        "fragment": unit.get("FragmentPath", ""),
        "files": file_states([LINK], found.root),
    }


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed") or (facts.get("enabled") and facts.get("active")):
        return []
    return ["switch fstrim.timer on"]


def owned(options: Options, facts: Facts) -> Files:
    states = facts.get("files") or {}
    if not facts.get("fragment") or (facts.get("enabled") and not same(states, {LINK: Link(facts["fragment"])})):
        # Enabled in another way.
        return {}
    return {LINK: Link(facts["fragment"])}


def live(facts: Facts) -> Any:
    return {"active": bool(facts.get("active"))}


def activate(work: Work) -> None:
    if not work.facts.get("installed"):
        return
    work.systemctl("daemon-reload")
    if work.options is not None or (work.was or {}).get("active"):
        work.systemctl("start", UNIT)
        work.done.append("fstrim.timer started")
    else:
        work.systemctl("stop", UNIT)
        work.done.append("fstrim.timer stopped")
