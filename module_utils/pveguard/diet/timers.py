# SPDX-License-Identifier: Apache-2.0
"""Package lists and updates: once a day, each node at a moment of its own that stays the same.

Twice a day by default, and all nodes of a cluster by the same calendar: the same lists, downloaded and written. The random delay
is drawn from the machine's identity (FixedRandomDelay), so a boot draws no new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base.run import Run
from .parts import Facts, Files, Found, Options, Work, active, file_states, loaded, number, same

NAME = "timers"
#: The calendar of each; None leaves it as it is.
TIMERS: dict[str, str | None] = {
    "apt-daily.timer": "*-*-* 06:00",
    "apt-daily-upgrade.timer": None,
    "pve-daily-update.timer": None,
    "man-db.timer": None,
}
UNITS = tuple(TIMERS)


def _drop_in(timer: str) -> str:
    return f"/etc/systemd/system/{timer}.d/pveguard.conf"


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``: whether one of TIMERS is there; ``timers``: which, and whether they are active; ``files``."""
    there = {timer: active(found.units.get(timer)) for timer in TIMERS if loaded(found.units.get(timer))}
    return {"installed": bool(there), "timers": there, "files": file_states([_drop_in(each) for each in there], found.root)}


def differs(options: Options, facts: Facts) -> list[str]:
    wanted = owned(options, facts)
    states = facts.get("files") or {}
    late = [timer for timer in facts.get("timers") or {} if not same(states, {_drop_in(timer): wanted[_drop_in(timer)]})]
    return [f"spread {', '.join(late)}"] if late else []


def owned(options: Options, facts: Facts) -> Files:
    spread = int(number(options.get("spread_seconds"), 43200))
    return {_drop_in(timer): _text(TIMERS[timer], spread) for timer in facts.get("timers") or {}}


def _text(calendar: str | None, spread: int) -> str:
    lines = ["# Managed by pveguard: each node at a moment of its own.", "[Timer]"]
    if calendar:
        lines += ["OnCalendar=", f"OnCalendar={calendar}"]
    return "\n".join([*lines, f"RandomizedDelaySec={spread}", "FixedRandomDelay=true"]) + "\n"


def activate(work: Work) -> None:
    work.systemctl("daemon-reload")
    now: Sequence[str] = [timer for timer, running in (work.facts.get("timers") or {}).items() if running]
    if now:
        work.systemctl("restart", *now)
        work.done.append(f"{', '.join(now)} restarted")
