"""The HA manager's own command that releases every watchdog of the cluster, where it has one (Proxmox VE 9.2 and later):
``ha-manager crm-command disarm-ha``, its reverse ``arm-ha``, and the state that ``ha-manager status`` shows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ..base.errors import PveguardError
from ..base.run import CommandMissing, Result, Run

#: ``freeze`` leaves resources as they are; there are none where pveguard disarms.
DISARM = ("ha-manager", "crm-command", "disarm-ha", "freeze")
ARM = ("ha-manager", "crm-command", "arm-ha")
#: The CRM looks every 10 s, an LRM every 5 s; a CRM that has to take over the lock of one that died waits 120 s.
DEADLINE_S = 180.0
#: One call of ``ha-manager`` costs 10 s of processor time on an emulated node.
CALL_S = 120.0

STATES = ("armed", "standby", "disarming", "disarmed")
#: In which nobody holds a watchdog for HA.
FREE = ("standby", "disarmed")

class NotTakenBack(PveguardError):
    """HA may be disarmed although nothing came of it."""


UNKNOWN: dict[str, Any] = {"command": None, "state": None, "said": None, "error": None}
_LINE = re.compile(r"fencing\b[\s:]*\(?\s*(.*)", re.IGNORECASE)


def look(run: Run) -> dict[str, Any]:
    """``{command, state, said, error}``: whether the installed manager can disarm, and what it shows of fencing.

    ``command``: None when that is not known. ``state``: ``armed``, ``standby`` (the CRM holds no watchdog because nothing
    uses HA), ``disarming`` or ``disarmed``; None where it shows nothing, or something else: ``said`` is that text.
    ``error``: why something is not known.
    """
    asked = ["ha-manager", "help", "crm-command"]
    try:
        usage = run(asked, timeout=CALL_S)
    except CommandMissing:
        return {**UNKNOWN, "command": False}
    if "disarm-ha" not in usage.stdout + usage.stderr:
        if usage.ok:
            return {**UNKNOWN, "command": False}
        return {**UNKNOWN, "error": f"'{' '.join(asked)}' failed: {_said(usage)}"}
    return {"command": True, **_status(run)}


def parse(text: str) -> tuple[str | None, str | None]:
    """``(state, said)`` from the output of ``ha-manager status``; a state that is not of STATES is None."""
    lines = [found.group(1).strip() for line in text.splitlines() if (found := _LINE.match(line.strip()))]
    states = {re.split(r"[^a-z-]", said.lower(), maxsplit=1)[0] for said in lines}
    state = states.pop() if len(states) == 1 else None
    return (state if state in STATES else None), ("; ".join(lines) or None)


def shown(fencing: dict[str, Any]) -> str:
    """The state for a message."""
    if fencing["state"]:
        return repr(fencing["state"])
    return f"{fencing['said']!r}, which is not known" if fencing["said"] else "unknown"


def disarm(
    run: Run,
    sleep: Callable[[float], None] = time.sleep,
    ticks: Callable[[], float] = time.monotonic,
    held: Callable[[], bool] = lambda: False,
) -> str:
    """Release every watchdog of the cluster and wait until the manager says so and nothing is ``held`` here. Returns what was
    waited for.

    Raises PveguardError, with the request taken back, when that is not so within DEADLINE_S.
    """
    begun = ticks()
    done = run(list(DISARM), timeout=CALL_S)
    if not done.ok:
        failed = f"'{' '.join(DISARM)}' failed: {_said(done)}"
        if done.rc == 124:  # it may have been taken all the same
            _take_back(run, failed, "Run again")
        raise PveguardError(f"{failed}. Nothing was changed; run again")
    end = ticks() + DEADLINE_S
    while True:
        seen = _status(run)
        if seen["state"] in FREE and not held():
            return f"{ticks() - begun:.0f} s until 'ha-manager status' said fencing {seen['state']!r} and the watchdog was free"
        if ticks() >= end:
            break
        sleep(2.0)
    also = f" ({seen['error']})" if seen["error"] else ""
    still = ", and a client holds the watchdog of this node" if held() else ""
    _take_back(
        run,
        f"the HA manager did not disarm within {DEADLINE_S:g} s: 'ha-manager status' says fencing {shown(seen)}{also}{still}; "
        "expected 'disarmed' and a free watchdog",
        "Look at 'ha-manager status', 'ss -xp | grep watchdog-mux' and 'journalctl -u pve-ha-crm', and run again",
    )


def _take_back(run: Run, why: str, then: str) -> NoReturn:
    """Ask for HA to be armed again, after a disarm that led to nothing, and raise PveguardError."""
    back = run(list(ARM), timeout=CALL_S)
    command = " ".join(ARM)
    if back.ok:
        raise PveguardError(f"{why}. The request was taken back with '{command}' and nothing was stopped. {then}")
    raise NotTakenBack(
        f"{why}. Nothing was stopped, but '{command}' failed too ({_said(back)}): HA may be disarmed, so run it by hand. {then}"
    )


def arm(
    run: Run, sleep: Callable[[float], None] = time.sleep, ticks: Callable[[], float] = time.monotonic
) -> None:
    """The reverse of :func:`disarm`. Raises PveguardError when the manager does not say so within DEADLINE_S."""
    done = run(list(ARM), timeout=CALL_S)
    if not done.ok:
        raise PveguardError(f"'{' '.join(ARM)}' failed: {_said(done)}. Nothing after it was done; run again")
    end = ticks() + DEADLINE_S
    while (seen := _status(run))["state"] not in ("armed", "standby"):
        if ticks() >= end:
            raise PveguardError(
                f"HA runs, but 'ha-manager status' says fencing {shown(seen)} {DEADLINE_S:g} s after '{' '.join(ARM)}', "
                "expected 'armed' or 'standby': maybe nothing recovers a resource. Look at 'journalctl -u pve-ha-crm' and "
                "run again"
            )
        sleep(2.0)


def _status(run: Run) -> dict[str, Any]:
    """``{state, said, error}``."""
    done = run(["ha-manager", "status"], timeout=CALL_S)
    state, said = parse(done.stdout)
    error = None if done.ok else f"'ha-manager status' failed: {_said(done)}"
    # What a call that failed has printed need not be all of it.
    return {"state": state if done.ok else None, "said": said, "error": error}


def _said(done: Result) -> str:
    return " ".join((done.stderr or done.stdout).split())[-300:] or f"exit code {done.rc}"
