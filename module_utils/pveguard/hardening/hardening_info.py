# SPDX-License-Identifier: Apache-2.0
"""The facts of all areas of the hardening verdict, in one look that changes nothing, never raises and ends.

Each area is looked at by a child process with a deadline. /etc/pve is asked before: where its daemon does not answer, no area
waits for it, and what lies there is not known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

from ..base import supervised
from ..base.run import Run
from ..base.run import run as real_run
from . import accounts, auditd, concerns, firewall, others, pveproxy, sshd, sysctl, updates
from .looking import PVE, Facts, Looking, without_pve

AREAS: dict[str, Callable[[Path, Run], Facts]] = {
    "sshd": sshd.look,
    "firewall": firewall.look,
    "sysctl": sysctl.look,
    "accounts": accounts.look,
    "pveproxy": pveproxy.look,
    "auditd": auditd.look,
    "updates": updates.look,
    "others": others.look,
}


#: Seconds until /etc/pve has answered, and until an area was looked at: more than its programs are given.
ANSWER_S, AREA_S = 10.0, 90.0
#: The daemon serves these from its database and by itself.
_ASKED = (f"{PVE}/.version", f"{PVE}/.members", f"{PVE}/user.cfg")

Ask = Callable[[Callable[[], Facts], float], Facts]


def collect(
    areas: Iterable[str] = (),
    root: Path = Path("/"),
    run: Run = real_run,
    ask: Ask = supervised.ask,
    answer_s: float = ANSWER_S,
    area_s: float = AREA_S,
) -> dict[str, Facts]:
    """``{area: facts}``; all of AREAS where none is named. ``ask``: does the work elsewhere, and raises Stalled after seconds."""
    found: dict[str, Facts] = {}
    reason = _why_silent(root, run, ask, answer_s)
    for name in list(areas) or AREAS:
        try:
            with without_pve(reason):
                found[name] = ask(functools.partial(_look, name, root, run), area_s) or _unknown("what looked at it was ended")
        except supervised.Stalled:
            found[name] = _unknown(f"no answer within {area_s:g} s")
            reason = reason or _why_silent(root, run, ask, answer_s)
        except OSError as error:
            found[name] = _unknown(error.strerror or type(error).__name__)
    return found


def _look(name: str, root: Path, run: Run) -> Facts:
    """All of an area; what may hang is asked in here. ``ours``: the facts that its concern of the role decides by."""
    found = AREAS[name](root, run)
    if name in concerns.CONCERNS:
        found["ours"] = concerns.collect(name, root, run)
    return found


def _unknown(error: str) -> Facts:
    return {"known": False, "error": error}


def _why_silent(root: Path, run: Run, ask: Ask, seconds: float) -> str:
    """Why /etc/pve must not be read; empty where it answers, with whatever."""

    def read() -> Facts:
        looking = Looking(root, run)
        for path in _ASKED:
            looking.text(path)
        return {"answered": True}

    try:
        ask(read, seconds)
    except supervised.Stalled:
        return f"no answer within {seconds:g} s"
    except OSError:
        return ""
    return ""
