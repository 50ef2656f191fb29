"""Switch the HA services of a node off and on again in the only order that can never reset it.

Off: the managers first (LRM, then CRM), and only when no node's watchdog has a client any more, watchdog-mux.
On: the other way round. Killing or stopping watchdog-mux under a client resets the node within seconds.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ha_info
from .atomic import fsync_dir, write_atomic
from .errors import PveguardError
from .ha_info import CRM, LRM, MANAGERS, MUX
from .run import Run
from .run import run as real_run

#: systemd waits for a manager to give its lock back; its own stop timeout is 95 s.
STOP_TIMEOUT_S = 120.0
#: The LRM writes its status every 5 s.
STATUS_DEADLINE_S = 20.0

STATES = ("disabled", "enabled", "restored")
PARTS = ("managers", "watchdog", "all")


@dataclass(frozen=True)
class Step:
    """One ``systemctl`` call."""

    verb: str
    units: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        return ["systemctl", self.verb, *self.units]

    def __str__(self) -> str:
        return " ".join(self.argv)


def apply(
    state: str,
    part: str = "all",
    *,
    check: bool = False,
    run: Run = real_run,
    root: Path | str = Path("/"),
    hostname: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Bring the HA services to ``state``; with ``check`` only say what would be done.

    ``state``: ``disabled`` (stopped and masked), ``enabled`` (running and started at boot), ``restored`` (as
    they were before the first ``disabled``; nothing when pveguard never switched them off). ``part``:
    ``managers`` (LRM and CRM), ``watchdog`` (watchdog-mux) or ``all``.

    Returns ``changed``, ``steps`` (commands in order), ``before`` and ``after`` (text for a diff),
    ``watchdog_until_reboot`` (watchdog-mux still runs because its driver cannot be stopped) and ``warnings``.
    Raises PveguardError, before anything is changed, while HA has resources, a request is pending, the
    watchdog has a client, or the cluster file system cannot be read; and when a service does not stop or
    start.
    """
    root = Path(root)
    host = hostname or socket.gethostname().split(".", 1)[0]
    info = ha_info.collect(run=run, root=root, hostname=host)
    memory = _load(root)
    if not info["installed"]:
        return _result(False, [], "", "", False, [])

    steps = plan(info, state, part, memory)
    forget = state != "disabled" and part == "all" and memory is not None
    warnings = []
    if state == "disabled":
        if steps:
            _refuse(info, part, check)
        elif info["resources"]:
            warnings.append(f"HA is off on {host} but there are HA resources: {_shown(info['resources'])}")
    before = _describe(info["services"], memory)
    if not steps and not forget:
        return _result(False, [], before, before, _until_reboot(info), warnings)
    if check:
        predicted = predict(info["services"], steps)
        kept = None if forget else remembered(info, memory) if state == "disabled" else memory
        after = _describe(predicted, kept)
        until = _until_reboot({**info, "services": predicted})
        return _result(True, steps, before, after, until, warnings)

    if state == "disabled":
        wanted = remembered(info, memory)
        if wanted != memory:
            _save(root, wanted)
        memory = wanted
    for step in steps:
        _do(step, run, root, host, sleep)
    after_info = ha_info.collect(run=run, root=root, hostname=host)
    missed = plan(after_info, state, part, memory)
    if missed:
        raise PveguardError(
            f"{host}: systemd did not keep what was asked for: {'; '.join(map(str, missed))} would be needed "
            "again "
            f"(now {_describe(after_info['services'], None).strip()}); look with 'systemctl status "
            f"{' '.join(ha_info.UNITS)}'"
        )
    if forget:
        _forget(root)
        memory = None
    return _result(
        True, steps, before, _describe(after_info["services"], memory), _until_reboot(after_info), warnings
    )


def plan(info: dict[str, Any], state: str, part: str, memory: dict[str, Any] | None) -> list[Step]:
    """The commands that lead from the facts ``info`` (of ha_info) to ``state``, in order; none when there."""
    services = {unit: s for unit, s in info["services"].items() if s["installed"]}
    managers = [unit for unit in MANAGERS if unit in services] if part in ("managers", "all") else []
    mux = [MUX] if MUX in services and part in ("watchdog", "all") else []
    if state == "disabled":
        steps = [Step("stop", (unit,)) for unit in managers if ha_info.is_running(services[unit])]
        steps += _together("mask", [unit for unit in managers if not ha_info.is_masked(services[unit])])
        # Closing the device of a driver with nowayout resets the node: it is left running until the next
        # boot.
        if mux and ha_info.is_running(services[MUX]) and info["watchdog"]["nowayout"] is False:
            steps.append(Step("stop", (MUX,)))
        return steps + _together("mask", [unit for unit in mux if not ha_info.is_masked(services[unit])])

    # Up in the opposite order: who feeds the watchdog comes before who needs it.
    wanted = [*mux, *reversed(managers)]
    former = {unit: {"masked": False, "wanted": True, "active": True} for unit in wanted}
    if state == "restored":
        former = {unit: memory["units"][unit] for unit in wanted if unit in memory["units"]} if memory else {}
    unmask = [u for u, was in former.items() if not was["masked"] and ha_info.is_masked(services[u])]
    enable = [
        u
        for u, was in former.items()
        if was["wanted"] and services[u]["installable"] and not services[u]["wanted"]
    ]
    start = [u for u, was in former.items() if was["active"] and services[u]["active"] != "active"]
    return [
        *_together("unmask", unmask),
        *_together("enable", enable),
        *(Step("start", (unit,)) for unit in start),
    ]


def predict(services: dict[str, Any], steps: list[Step]) -> dict[str, Any]:
    """The services as they are after ``steps``."""
    states = copy.deepcopy(services)
    for step in steps:
        for unit in step.units:
            state = states[unit]
            if step.verb == "stop":
                state["active"] = "inactive"
            elif step.verb == "start":
                state["active"] = "active"
            elif step.verb == "mask":
                state.update(enabled="masked", load="masked")
            elif step.verb == "enable":
                state.update(enabled="enabled", wanted=True)
            elif step.verb == "unmask":
                enabled = "enabled" if state["wanted"] else "disabled" if state["installable"] else "static"
                state.update(enabled=enabled, load="loaded")
    return states


def remembered(info: dict[str, Any], memory: dict[str, Any] | None) -> dict[str, Any]:
    """The memory with what is running now added: ``{version, units: {unit: {active, masked, wanted}}}``.

    A unit that runs unmasked was brought back by somebody, so its entry is renewed; anything else may be the
    half-done work of an interrupted run, so its entry stays.
    """
    units = dict(memory["units"]) if memory else {}
    for unit, service in info["services"].items():
        if not service["installed"]:
            continue
        masked = ha_info.is_masked(service)
        active = ha_info.is_running(service)
        if unit not in units or (active and not masked):
            units[unit] = {"active": active, "masked": masked, "wanted": service["wanted"]}
    return {"version": 1, "units": units}


def _together(verb: str, units: list[str]) -> list[Step]:
    return [Step(verb, tuple(units))] if units else []


def _refuse(info: dict[str, Any], part: str, check: bool) -> None:
    if info["resources"]:
        raise PveguardError(
            f"HA is in use: /etc/pve/ha/resources.cfg holds {_shown(info['resources'])}. Nothing was "
            "changed. Remove them "
            "('ha-manager remove SID') or set ha_state: keep"
        )
    if not info["resources_known"]:
        raise PveguardError(
            "/etc/pve is not mounted, so whether HA has resources is not known. Nothing was changed. Start "
            "the cluster "
            "file system ('systemctl start pve-cluster') and run again"
        )
    if info["other_requests"]:
        raise PveguardError(
            f"the HA manager is busy: {'; '.join(info['other_requests'])}. Nothing was changed. Wait until "
            "'ha-manager "
            "status' shows all nodes online, or set ha_state: keep"
        )
    if info["watchdog_active"]:
        raise PveguardError(
            "a client holds the watchdog (/run/watchdog-mux.active exists): stopping it now could reset the "
            "node. Nothing "
            "was changed. The managers let go some ten minutes after the last HA resource is removed; run "
            "again then"
        )
    # In check mode the managers still run because nothing stops them.
    if part == "watchdog" and not check:
        running = [unit for unit in MANAGERS if ha_info.is_running(info["services"][unit])]
        if running:
            raise PveguardError(
                f"{', '.join(running)} must be stopped before watchdog-mux is. Nothing was changed. Run the "
                "play from its "
                "beginning (part: managers, then part: watchdog)"
            )


def _do(step: Step, run: Run, root: Path, host: str, sleep: Callable[[float], None]) -> None:
    if step.units == (MUX,) and step.verb == "stop" and (root / "run/watchdog-mux.active").exists():
        raise PveguardError(
            "a client took the watchdog (/run/watchdog-mux.active): watchdog-mux was not stopped; run again"
        )
    done = run(step.argv, timeout=STOP_TIMEOUT_S)
    if not done.ok:
        said = done.stderr.strip() or f"exit code {done.rc}"
        raise PveguardError(
            f"'{step}' failed: {said}. Nothing after it was done; run again, or put everything back with "
            "ha_state: enabled"
        )
    unit = step.units[0]
    if step.verb == "stop":
        state = ha_info.service_states(run, root)[unit]
        if ha_info.is_running(state):
            raise PveguardError(
                f"{unit} is still {state['active']!r} after '{step}', expected inactive; run again"
            )
        if unit == LRM:
            _await_lrm(root, host, sleep)
        if unit == CRM and (root / "run/watchdog-mux.active").exists():
            raise PveguardError(
                "a client still holds the watchdog (/run/watchdog-mux.active) although LRM and CRM are "
                "stopped. "
                "watchdog-mux was left running; find the client with 'ss -xp | grep watchdog-mux'"
            )


def _await_lrm(root: Path, host: str, sleep: Callable[[float], None]) -> None:
    """Until the node's status no longer says that the LRM is in charge of services."""
    status = root / "etc/pve/nodes" / host / "lrm_status"
    waited = 0.0
    while True:
        state = ha_info.lrm_status(status)["state"]
        if state != "active":
            return
        if waited >= STATUS_DEADLINE_S:
            raise PveguardError(
                f"{status} still says {state!r} {waited:g} s after the LRM was stopped, expected any other "
                "state. "
                "The CRM was left running; look at 'ha-manager status'"
            )
        sleep(0.5)
        waited += 0.5


def _until_reboot(info: dict[str, Any]) -> bool:
    mux = info["services"][MUX]
    return bool(mux["installed"] and ha_info.is_masked(mux) and ha_info.is_running(mux))


def _shown(resources: list[str]) -> str:
    more = len(resources) - 8
    return ", ".join(resources[:8]) + (f" and {more} more" if more > 0 else "")


def _describe(services: dict[str, Any], memory: dict[str, Any] | None) -> str:
    lines = [
        f"{unit}: {s['active']}, {'masked' if ha_info.is_masked(s) else s['enabled'] or 'unknown'}"
        for unit, s in services.items()
        if s["installed"]
    ]
    if memory:
        former = ", ".join(unit for unit, was in memory["units"].items() if was["active"])
        lines.append(f"/{ha_info.MEMORY}: ran before: {former or 'none'}")
    return "".join(f"{line}\n" for line in lines)


def _result(
    changed: bool, steps: list[Step], before: str, after: str, until_reboot: bool, warnings: list[str]
) -> dict[str, Any]:
    return {
        "changed": changed,
        "steps": [str(step) for step in steps],
        "before": before,
        "after": after,
        "watchdog_until_reboot": until_reboot,
        "warnings": warnings,
    }


def _load(root: Path) -> dict[str, Any] | None:
    path = root / ha_info.MEMORY
    try:
        memory = json.loads(path.read_text())
        if memory["version"] != 1:
            raise ValueError(f"version {memory['version']!r}, expected 1")
        for was in memory["units"].values():
            was["active"], was["masked"], was["wanted"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise PveguardError(
            f"/{ha_info.MEMORY} cannot be used ({error!r}); it says which HA services ran before they were "
            "switched off. "
            "Correct it, or remove it and set ha_state: enabled to bring all of them back"
        ) from error
    return dict(memory)


def _save(root: Path, memory: dict[str, Any]) -> None:
    path = root / ha_info.MEMORY
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(memory, indent=2, sort_keys=True) + "\n").encode())


def _forget(root: Path) -> None:
    path = root / ha_info.MEMORY
    path.unlink(missing_ok=True)
    try:
        os.rmdir(path.parent)
        fsync_dir(path.parent.parent)
    except OSError:
        fsync_dir(path.parent)  # other files are left in it
