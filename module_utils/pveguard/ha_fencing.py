"""The HA manager's own command that releases every watchdog of the cluster, where it has one (Proxmox VE 9.2 and later):
``ha-manager crm-command disarm-ha``, its reverse ``arm-ha``, and the state that ``ha-manager status`` shows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from .errors import PveguardError
from .run import CommandMissing, Run

#: ``freeze`` leaves resources as they are; there are none where pveguard disarms.
DISARM = ("ha-manager", "crm-command", "disarm-ha", "freeze")
ARM = ("ha-manager", "crm-command", "arm-ha")
#: The CRM looks every 10 s, an LRM every 5 s; a CRM that has to take over the lock of one that died waits 120 s.
DEADLINE_S = 180.0

UNKNOWN: dict[str, Any] = {"command": None, "state": None}
_STATE = re.compile(r"^fencing[:\s]+\(?([a-z]+)", re.MULTILINE)


def look(run: Run) -> dict[str, Any]:
    """``{command, state}``: whether the installed manager can disarm, and what it shows of fencing.

    ``state``: ``armed``, ``standby`` (no watchdog is held because nothing uses HA), ``disarming`` or ``disarmed``;
    None where it shows nothing.
    """
    try:
        usage = run(["ha-manager", "help", "crm-command"], timeout=60)
        if "disarm-ha" not in usage.stdout + usage.stderr:
            return {"command": False, "state": None}
        found = _STATE.search(run(["ha-manager", "status"], timeout=60).stdout)
    except CommandMissing:
        return {"command": False, "state": None}
    return {"command": True, "state": found.group(1) if found else None}


def disarm(run: Run, sleep: Callable[[float], None] = time.sleep) -> None:
    """Release every watchdog of the cluster and wait until the manager says so.

    Raises PveguardError, with the request taken back, when it does not within DEADLINE_S.
    """
    _request(run, DISARM)
    state = _await(run, lambda state: state in ("disarmed", "standby"), sleep)
    if state not in ("disarmed", "standby"):
        run(list(ARM), timeout=60)
        raise PveguardError(
            f"the HA manager did not disarm within {DEADLINE_S:g} s: 'ha-manager status' says fencing {state!r}, expected "
            f"'disarmed'. The request was taken back with '{' '.join(ARM)}' and nothing was stopped. Look at 'ha-manager "
            "status' and 'journalctl -u pve-ha-crm', and run again"
        )


def arm(run: Run, sleep: Callable[[float], None] = time.sleep) -> None:
    """The reverse of :func:`disarm`. Raises PveguardError when the manager does not say so within DEADLINE_S."""
    _request(run, ARM)
    state = _await(run, lambda state: state not in ("disarmed", "disarming"), sleep)
    if state in ("disarmed", "disarming"):
        raise PveguardError(
            f"HA runs, but 'ha-manager status' still says fencing {state!r} {DEADLINE_S:g} s after '{' '.join(ARM)}': nothing "
            "recovers a resource. Look at 'journalctl -u pve-ha-crm' and run again"
        )


def _request(run: Run, argv: tuple[str, ...]) -> None:
    done = run(list(argv), timeout=60)
    if not done.ok:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.rc}"
        raise PveguardError(f"'{' '.join(argv)}' failed: {said}. Nothing after it was done; run again")


def _await(run: Run, there: Callable[[str | None], bool], sleep: Callable[[float], None]) -> str | None:
    waited = 0.0
    while True:
        state: str | None = look(run)["state"]
        if there(state) or waited >= DEADLINE_S:
            return state
        sleep(2.0)
        waited += 2.0
