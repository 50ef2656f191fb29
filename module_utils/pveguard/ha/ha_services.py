"""Switch the HA services of a node off and on again in the only order that can never reset it.

Off: the managers first (LRM, then CRM), and only when no node's watchdog has a client any more, watchdog-mux.
On: the other way round. Killing or stopping watchdog-mux under a client resets the node within seconds. Each step is one
command, so a run that ends between two of them leaves nothing that the next one does not complete or undo.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import managed_file, node_name
from ..base.atomic import fsync_dir, write_atomic
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..pmxcfs import pve_file
from . import ha_fencing, ha_findings, ha_info
from .ha_info import CRM, LRM, MANAGERS, MUX

#: A manager acts on SIGTERM only after seconds, and systemd ends one that does not after the stop timeout of its unit (95 s
#: for the LRM). This is for systemctl itself, which must not be given up while systemd still waits.
STOP_TIMEOUT_S = 300.0
#: The LRM writes its status every 5 s.
STATUS_DEADLINE_S = 20.0
#: A CRM looks every 10 s, and one that takes over the lock of one that died waits 120 s; then the LRM takes its own.
ACTIVE_DEADLINE_S = 180.0

#: A module whose connection was lost goes on; the next one waits for its end, at most as long as one can take.
LOCK = Path("run/pveguard/ha.lock")
LOCK_DEADLINE_S = 900.0

SOFTDOG = "softdog"
#: The name that its file is managed for.
KEPT_FOR = "ha.softdog"
#: watchdog-mux loads the driver by its name, which "blacklist" alone does not prevent.
BLACKLIST = (
    "# HA is off on this node (pveguard, ha_blacklist_softdog). Removed when HA comes back.\n"
    "blacklist softdog\ninstall softdog /bin/false\n"
)

STATES = ("disabled", "enabled", "restored")
PARTS = ("managers", "watchdog", "all")


@dataclass(frozen=True)
class Step:
    """One ``systemctl`` call on ``units``; or, by its verb, one of the others."""

    verb: str
    units: tuple[str, ...] = ()

    @property
    def argv(self) -> list[str]:
        other = {"disarm": ha_fencing.DISARM, "arm": ha_fencing.ARM, "unload": ("modprobe", "-r", SOFTDOG)}
        return list(other.get(self.verb) or ("systemctl", self.verb, *self.units))

    def __str__(self) -> str:
        if self.verb in ("write", "remove"):
            return " ".join([self.verb, *(f"/{path}" for path in self.units)])
        return " ".join(self.argv)


@dataclass
class _Node:
    """Where the steps are done."""

    run: Run
    root: Path
    host: str
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    ticks: Callable[[], float]
    #: What was waited for, and what an operator should know.
    waited: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """A client holds the watchdog through watchdog-mux."""
        return (self.root / "run/watchdog-mux.active").exists()

    def look(self, ask_manager: bool = True) -> dict[str, Any]:
        return ha_info.collect(
            run=self.run, root=self.root, hostname=self.host, now=self.clock(), ask_manager=ask_manager
        )


def apply(
    state: str,
    part: str = "all",
    *,
    blacklist_softdog: bool = False,
    release_wait_s: float = 0.0,
    check: bool = False,
    run: Run = real_run,
    root: Path | str = Path("/"),
    hostname: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
    ticks: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Bring the HA services to ``state``; with ``check`` only say what would be done.

    ``state``: ``disabled`` (stopped and masked), ``enabled`` (running, started at boot, the LRM active),
    ``restored`` (as they were before the first ``disabled``; nothing when pveguard never switched them off).
    ``part``: ``managers`` (LRM and CRM), ``watchdog`` (watchdog-mux, and what the managers left in /etc/pve) or
    ``all``. ``blacklist_softdog``: with the watchdog, take softdog out of the kernel and keep it out. ``release_wait_s``:
    how long to wait, before anything is changed, for managers that hold the watchdog without resources and cannot disarm.
    ``clock`` gives Unix time, ``ticks`` a clock for deadlines, both in seconds.

    Returns ``changed``, ``steps`` (commands in order), ``before`` and ``after`` (text for a diff),
    ``watchdog_until_reboot`` (watchdog-mux still runs because its driver cannot be stopped), ``returned`` (units that
    had been switched off and were on again), ``waited`` (what was waited for) and ``warnings``.
    Raises PveguardError, before anything is changed, while HA has resources, a request is pending, the
    watchdog has a client (and the manager cannot disarm), or the cluster file system cannot be read or has no quorum;
    and when a service does not stop or start.
    """
    node = _Node(run, Path(root), hostname or node_name.own(), sleep, clock, ticks)
    if check:
        return _apply(node, state, part, blacklist_softdog, check, release_wait_s)
    if state == "disabled" and part != "watchdog" and release_wait_s > 0 and node.held:
        _await_release(node, release_wait_s)
    with _alone(node):
        return _apply(node, state, part, blacklist_softdog, check, release_wait_s)


def _await_release(node: _Node, seconds: float) -> None:
    """Until the managers of this node let go, where nothing but that is in the way and they cannot disarm."""
    begun = node.ticks()
    if not ha_info.release_awaited({node.host: node.look()}):
        return
    ha_info.await_release(seconds, lambda: node.look(ask_manager=False), node.sleep, node.ticks)
    node.waited.append(f"{node.ticks() - begun:.0f} s until the managers had let go of the watchdog")


@contextmanager
def _alone(node: _Node) -> Iterator[None]:
    """The only one that works on the node's HA. Raises PveguardError when another one does not end."""
    path = node.root / LOCK
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with path.open("w") as lock:

        def free() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not _wait(node, LOCK_DEADLINE_S, free):
            raise PveguardError(
                f"{node.host}: an earlier run still works on HA after {LOCK_DEADLINE_S:g} s (it holds /{LOCK}). Nothing was "
                f"changed by this one; look with 'fuser -v /{LOCK}' and run again"
            )
        yield


def _apply(
    node: _Node, state: str, part: str, blacklist_softdog: bool, check: bool, release_wait_s: float
) -> dict[str, Any]:
    """Look, plan, remember, do, look again.

    Long because it is one sequence: in another order a run that is cut off loses what the way back needs, or a watchdog
    that nobody feeds resets the node.
    """
    run, root, clock = node.run, node.root, node.clock
    info = node.look()
    memory = _load(root)
    if not info["installed"]:
        return _result(node, False, [], "", "", False, [])

    steps = plan(info, state, part, memory, blacklist_softdog)
    # Also where all units run: a run may have ended between the request to disarm and the first stop.
    rearm = state == "enabled" or (state == "restored" and bool(memory and memory.get("disarmed")))
    if rearm and part in ("managers", "all"):
        starts = any(step.verb == "start" for step in steps)
        if (starts or info["manager_status"] is not None) and info["fencing"] == ha_fencing.UNKNOWN:
            info["fencing"] = ha_fencing.look(run)
            steps = plan(info, state, part, memory, blacklist_softdog)
    forget = state != "disabled" and part == "all" and memory is not None
    returned = [unit for unit in info["returned"] if unit in _units(part)] if state == "disabled" else []
    warnings = node.warnings
    if state == "disabled":
        if steps:
            _refuse(info, node, part, check, release_wait_s)
        elif info["resources"]:
            warnings.append(ha_findings.unattended_warning(node.host, info["resources"]))
        if returned:
            warnings.append(
                f"{node.host}: {', '.join(returned)} had been switched off and came back: a package upgrade, or somebody by "
                "hand. It goes off again"
            )
    before = _describe(info["services"], memory, [step for step in steps if step.verb == "remove"])
    waits = state == "enabled" and part in ("managers", "all") and not check
    if not steps and not forget:
        if waits:
            _await_active(node, None)
        return _result(node, False, [], before, before, _until_reboot(info), returned)
    wrote = [step for step in steps if step.verb == "write"]
    if check:
        predicted = predict(info["services"], steps)
        kept = memory
        if state == "disabled":
            kept = _settled(remembered(info, memory, steps), predicted, part)
        after = _describe(predicted, None if forget else kept, wrote)
        until = _until_reboot({**info, "services": predicted})
        return _result(node, True, steps, before, after, until, returned)

    if state == "disabled":
        former, memory = memory, remembered(info, memory, steps)
        if memory != former:
            _save(root, memory)
        if steps and steps[0] == Step("disarm"):
            _disarm(node, former, memory)
    started = clock()
    for step in steps:
        if step.verb != "disarm":
            _do(step, node)
    late: list[Step] = []
    if rearm and part != "watchdog" and memory and memory.get("disarmed") and Step("arm") not in steps:
        late = _rearmed(node, memory)
    if waits:
        _await_active(node, started)
    elif Step("start", (LRM,)) in steps:
        try:
            _await_active(node, started)
        except PveguardError as error:
            warnings.append(str(error))  # the way back goes on: what was there before is there again
    after_info = node.look(ask_manager=False)
    missed = plan(after_info, state, part, memory, blacklist_softdog)
    # The last of several nodes at once finds that nobody else has a status any more.
    removed = [step for step in missed if step.verb == "remove"]
    for step in removed:
        _do(step, node)
    late += removed
    missed = [step for step in missed if step.verb not in ("remove", "unload")]
    if missed:
        raise PveguardError(
            f"{node.host}: systemd did not keep what was asked for: {'; '.join(map(str, missed))} would be needed again "
            f"(now {_describe(after_info['services'], None, []).strip()}); look with 'systemctl status "
            f"{' '.join(ha_info.UNITS)}'"
        )
    if state == "disabled" and memory is not None:
        settled = _settled(memory, after_info["services"], part)
        if settled != memory:
            _save(root, settled)
        memory = settled
        if part != "managers" and blacklist_softdog and after_info["softdog"]["loaded"] and not _until_reboot(after_info):
            warnings.append(f"{node.host}: softdog stays loaded until the next boot: something else uses it")
    if forget:
        _forget(root)
        memory = None
    after = _describe(after_info["services"], memory, wrote)
    return _result(node, True, [*steps, *late], before, after, _until_reboot(after_info), returned)


def plan(
    info: dict[str, Any], state: str, part: str, memory: dict[str, Any] | None, blacklist_softdog: bool = False
) -> list[Step]:
    """The steps that lead from the facts ``info`` (of ha_info) to ``state``, in order; none when there."""
    services = {unit: s for unit, s in info["services"].items() if s["installed"]}
    managers = [unit for unit in MANAGERS if unit in services] if part in ("managers", "all") else []
    mux = [MUX] if MUX in services and part in ("watchdog", "all") else []
    fencing = info["fencing"]["state"] if info["fencing"]["command"] else None
    # What is shown besides, or nothing, does not count as free.
    armed = fencing in ("armed", "disarming") or (info["watchdog_active"] and fencing != "disarmed")
    if state == "disabled":
        steps = [Step("stop", (unit,)) for unit in managers if ha_info.is_running(services[unit])]
        if steps and info["fencing"]["command"] and armed:  # all of them are stops
            steps.insert(0, Step("disarm"))
        steps += _together("mask", [unit for unit in managers if not ha_info.is_masked(services[unit])])
        if part == "managers":
            return steps
        # Closing the device of a driver with nowayout resets the node: it is left running until the next
        # boot.
        stops = bool(mux) and ha_info.is_running(services[MUX]) and info["watchdog"]["stoppable"]
        if stops:
            steps.append(Step("stop", (MUX,)))
        steps += _together("mask", [unit for unit in mux if not ha_info.is_masked(services[unit])])
        return steps + _softdog(info, blacklist_softdog, stops) + _status(info)

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
    rearm = state == "enabled" or bool(memory and memory.get("disarmed"))
    return [
        *([Step("remove", (str(ha_info.SOFTDOG_OFF),))] if info["softdog"]["blacklisted"] and mux else []),
        *_together("unmask", unmask),
        *_together("enable", enable),
        *(Step("start", (unit,)) for unit in start),
        *([Step("arm")] if rearm and fencing in ("disarmed", "disarming") and managers else []),
    ]


def _softdog(info: dict[str, Any], blacklist: bool, stops: bool) -> list[Step]:
    """Out of the kernel once nothing holds it, and kept out; or no longer."""
    file = (str(ha_info.SOFTDOG_OFF),)
    if not blacklist:
        return [Step("remove", file)] if info["softdog"]["blacklisted"] else []
    steps = [] if info["softdog"]["blacklisted"] else [Step("write", file)]
    mux = info["services"][MUX]
    if info["softdog"]["loaded"] and (stops or not ha_info.is_running(mux)):
        steps.append(Step("unload"))
    return steps


def _status(info: dict[str, Any]) -> list[Step]:
    """What shows managers on the web page that do not run any more."""
    if info["resources"] or not info["quorate"]:
        return []
    return [Step("remove", (f"etc/pve/{path}",)) for path in info["status_files"]]


def predict(services: dict[str, Any], steps: list[Step]) -> dict[str, Any]:
    """The services as they are after ``steps``."""
    states = copy.deepcopy(services)
    for step in steps:
        for unit in step.units:
            state = states.get(unit)
            if state is None:  # a file
                continue
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


def remembered(
    info: dict[str, Any], memory: dict[str, Any] | None, steps: Sequence[Step] = ()
) -> dict[str, Any]:
    """The memory with what is running now added: ``{version, units: {unit: {active, masked, wanted, off}}}``.

    A unit that runs unmasked was brought back by somebody, so its entry is renewed; anything else may be the
    half-done work of an interrupted run, so its entry stays. ``off`` says that a run left the unit switched off (see
    :func:`_settled`), ``disarmed`` beside ``units`` that pveguard asked the manager to disarm, and ``fencing`` what that
    one had shown before.
    """
    units = dict(memory["units"]) if memory else {}
    for unit, service in info["services"].items():
        if not service["installed"]:
            continue
        masked = ha_info.is_masked(service)
        active = ha_info.is_running(service)
        if unit not in units or (active and not masked):
            units[unit] = {"active": active, "masked": masked, "wanted": service["wanted"]}
    found = {"version": 1, "units": units}
    if Step("disarm") in steps:
        return {**found, "disarmed": True, "fencing": info["fencing"]["said"]}
    if memory and memory.get("disarmed"):
        return {**found, "disarmed": True, "fencing": memory.get("fencing")}
    return found


def _settled(memory: dict[str, Any], services: dict[str, Any], part: str) -> dict[str, Any]:
    """The memory with the units that are switched off marked so."""
    units = {
        unit: {**was, "off": True} if unit in _units(part) and ha_info.is_masked(services[unit]) else was
        for unit, was in memory["units"].items()
    }
    return {**memory, "units": units}


def _units(part: str) -> tuple[str, ...]:
    return {"managers": MANAGERS, "watchdog": (MUX,)}.get(part, ha_info.UNITS)


def _together(verb: str, units: list[str]) -> list[Step]:
    return [Step(verb, tuple(units))] if units else []


def _refuse(info: dict[str, Any], node: _Node, part: str, check: bool, release_wait_s: float) -> None:
    if info["resources"]:
        raise PveguardError(
            f"HA is in use: /etc/pve/ha/resources.cfg holds {ha_info.shown(info['resources'])}. Nothing was "
            "changed. Remove them "
            "('ha-manager remove SID') or set ha_state: keep"
        )
    if not info["resources_known"]:
        raise PveguardError(
            f"whether HA has resources is not known: {ha_info.unreadable_text(info)}. Nothing was changed. Look at "
            "'systemctl status pve-cluster' and run again"
        )
    if not info["quorate"]:
        raise PveguardError(
            "/etc/pve has no quorum, so it may not show the HA resources that others have added. Nothing was changed. Bring "
            "the other members back ('corosync-quorumtool -s') and run again"
        )
    if info["other_requests"]:
        raise PveguardError(
            f"the HA manager is busy: {'; '.join(info['other_requests'])}. Nothing was changed. Wait until "
            "'ha-manager "
            "status' shows all nodes online, or set ha_state: keep"
        )
    strangers = ha_info.strangers_text(info)
    if strangers:
        raise PveguardError(f"{node.host}: {strangers}. Nothing was changed; run again then")
    # Where the manager can disarm, or will let go while a run waits, it does so before anything is stopped.
    released = info["fencing"]["command"] or (check and release_wait_s > 0)
    if info["watchdog_active"] and not (released and (part != "watchdog" or check)):
        by = ha_info.clients_text(info["watchdog"]["clients"])
        holder = f"{node.host} (/run/watchdog-mux.active exists{f'; {by}' if by else ''})"
        if not any(ha_info.is_running(info["services"][unit]) for unit in MANAGERS):
            raise PveguardError(
                f"a client holds the watchdog of {holder} although LRM and CRM are stopped: stopping watchdog-mux now could "
                "reset the node. Nothing was changed. Look for the client with 'ss -xp | grep watchdog-mux' and run again"
            )
        after = "".join(f" Waited: {text}." for text in node.waited)
        raise PveguardError(f"{ha_info.held_text(holder, info['fencing'])} Nothing was changed.{after}")
    # In check mode the managers still run because nothing stops them.
    if part == "watchdog" and not check:
        running = [unit for unit in MANAGERS if ha_info.is_running(info["services"][unit])]
        if running:
            raise PveguardError(
                f"{', '.join(running)} must be stopped before watchdog-mux is. Nothing was changed. Run the "
                "play from its "
                "beginning (part: managers, then part: watchdog)"
            )


def _disarm(node: _Node, former: dict[str, Any] | None, memory: dict[str, Any]) -> None:
    """Let the manager release every watchdog. Raises PveguardError, with everything as it was, when it does not."""
    try:
        node.waited.append(ha_fencing.disarm(node.run, node.sleep, node.ticks, lambda: node.held))
    except ha_fencing.NotTakenBack:
        raise  # the memory tells a revert that there is something to arm
    except PveguardError:
        if former is None:
            _forget(node.root)
        elif former != memory:
            _save(node.root, former)
        raise


def _rearmed(node: _Node, memory: dict[str, Any]) -> list[Step]:
    """What is left to do of the way back from a disarm once the managers run: nobody may stay disarmed unseen."""
    fencing = ha_fencing.look(node.run)
    if fencing["state"] in ("disarmed", "disarming"):
        _do(Step("arm"), node)
        return [Step("arm")]
    if fencing["state"] is None and fencing["command"] is not False:
        was = f" (before it was disarmed: {memory['fencing']!r})" if memory.get("fencing") else ""
        why = f", {fencing['error']}" if fencing["error"] else ""
        node.warnings.append(
            f"{node.host}: whether HA is armed again is not known: fencing is {ha_fencing.shown(fencing)}{was}{why}. Look at "
            f"'ha-manager status'; where it says disarmed, run '{' '.join(ha_fencing.ARM)}'"
        )
    return []


def _do(step: Step, node: _Node) -> None:
    if step.verb in ("write", "remove"):
        _change_file(step, node)
        return
    if step.verb == "arm":
        ha_fencing.arm(node.run, node.sleep, node.ticks)
        return
    if step.verb == "unload":
        node.run(step.argv, timeout=60)  # whether it worked is seen afterwards
        return
    if step.verb == "stop" and step.units != (MUX,):
        # A resource that came a moment ago would have it taken again.
        _await_free(node, f"before '{step}', which was not run. Look at 'ha-manager status' and run again")
    if step.units == (MUX,) and step.verb == "stop" and node.held:
        raise PveguardError(
            "a client took the watchdog (/run/watchdog-mux.active): watchdog-mux was not stopped; run again"
        )
    done = node.run(step.argv, timeout=STOP_TIMEOUT_S)
    if not done.ok:
        said = done.stderr.strip() or f"exit code {done.rc}"
        raise PveguardError(
            f"'{step}' failed: {said}. Nothing after it was done; run again, or put everything back with "
            "ha_state: enabled"
        )
    if step.verb in ("mask", "unmask", "enable"):
        # The memory says that it was done, so it has to outlive a power cut as the memory does.
        folder = node.root / "etc/systemd/system"
        if folder.is_dir():
            fsync_dir(folder)
    unit = step.units[0]
    if step.verb == "stop":
        ended = node.clock()
        state = ha_info.service_states(node.run, node.root)[unit]
        if ha_info.is_running(state):
            raise PveguardError(
                f"{unit} is still {state['active']!r} after '{step}', expected inactive; run again"
            )
        if state["active"] == "failed":
            node.warnings.append(
                f"{node.host}: {unit} did not end in good order after '{step}' (see 'systemctl status {unit}')"
            )
        if unit == LRM:
            _await_lrm(node)
        if unit == CRM:
            _await_crm(node, ended)
            _await_free(
                node, "although LRM and CRM are stopped. watchdog-mux was left running; find the client with 'ss -xp | grep "
                "watchdog-mux'",
            )  # fmt: skip


def _change_file(step: Step, node: _Node) -> None:
    """Write or remove the file of the step; that it is gone already, by another node, is as good."""
    path = node.root / step.units[0]
    if step.verb == "write":
        managed_file.apply([managed_file.FileSpec(f"/{step.units[0]}", BLACKLIST)], KEPT_FOR, node.root)
        return
    if step.units[0].startswith("etc/pve/"):
        try:
            pve_file.patiently(lambda: path.unlink(missing_ok=True), None, node.sleep, node.clock)
        except OSError as error:
            raise PveguardError(
                f"/{step.units[0]} could not be removed: {error.strerror}. HA is off on {node.host}, but 'ha-manager status' "
                "and the web page go on showing its manager. Look at 'corosync-quorumtool -s' and run again"
            ) from error
    elif not managed_file.revert(KEPT_FOR, node.root, drift=managed_file.OVERWRITE):
        # Written before originals were kept.
        path.unlink(missing_ok=True)
        fsync_dir(path.parent)


def _wait(node: _Node, seconds: float, there: Callable[[], bool]) -> bool:
    """Look every half second until ``there`` or for ``seconds``, however long a look takes."""
    end = node.ticks() + seconds
    while not there():
        if node.ticks() >= end:
            return False
        node.sleep(0.5)
    return True


def _await_free(node: _Node, when: str) -> None:
    if _wait(node, STATUS_DEADLINE_S, lambda: not node.held):
        return
    by = ha_info.clients_text(node.look(ask_manager=False)["watchdog"]["clients"])
    raise PveguardError(
        f"a client still holds the watchdog of {node.host} (/run/watchdog-mux.active exists{f'; held by {by}' if by else ''}) "
        f"{when}"
    )


def _await_lrm(node: _Node) -> None:
    """Until the node's status no longer says that the LRM is in charge of services."""
    try:
        free = _wait(node, STATUS_DEADLINE_S, lambda: ha_info.lrm_state(node.host, node.root) != "active")
    except OSError as error:
        raise PveguardError(f"{error}, after the LRM was stopped. The CRM was left running; run again") from error
    if not free:
        raise PveguardError(
            f"/etc/pve/nodes/{node.host}/lrm_status still says 'active' {STATUS_DEADLINE_S:g} s after the LRM was stopped, "
            "expected any other state. The CRM was left running; look at 'ha-manager status'"
        )


def _await_crm(node: _Node, ended: float) -> None:
    """Until nobody writes manager_status in this node's name any more."""
    seen: dict[str, Any] = {}

    def there() -> bool:
        info = node.look(ask_manager=False)
        seen.update(info)
        manager = info["crm"]
        return not info["pve_error"] and (manager["master"] != node.host or (manager["timestamp"] or 0) <= ended)

    if not _wait(node, STATUS_DEADLINE_S, there):
        if seen["pve_error"]:
            raise PveguardError(f"{seen['pve_error']}, after the CRM was stopped. watchdog-mux was left running; run again")
        raise PveguardError(
            f"/etc/pve/ha/manager_status is still written by the CRM of {node.host}, {STATUS_DEADLINE_S:g} s after it was "
            "stopped. watchdog-mux was left running; look for another pve-ha-crm ('pgrep -a pve-ha-crm')"
        )


def _await_active(node: _Node, started: float | None) -> None:
    """Until the LRM says that it works: a status younger than ``started`` (Unix time; None: than a minute), mode
    ``active``, and state ``active`` where the manager has given this node resources.

    An LRM without resources stays in state ``wait_for_agent_lock``: that is the most that it can say.
    """
    seen: dict[str, Any] = {}

    def there() -> bool:
        info = node.look(ask_manager=False)
        seen.update(info["lrm"], resources=info["resources"], master=info["crm"]["master"])
        oldest = int(node.clock() - 60 if started is None else started)
        if info["lrm"]["mode"] != "active" or (info["lrm"]["timestamp"] or 0) < oldest:
            return False
        if not info["resources"]:
            return info["lrm"]["state"] in ("active", "wait_for_agent_lock")
        if (info["crm"]["timestamp"] or 0) < oldest:
            return False  # no CRM has looked at the resources yet
        mine = ha_info.services_of(info["manager_status"], node.host)
        return info["lrm"]["state"] in ("active", *([] if mine else ["wait_for_agent_lock"]))

    if not _wait(node, ACTIVE_DEADLINE_S, there):
        raise PveguardError(
            f"{node.host}: HA was started, but its LRM is not active after {ACTIVE_DEADLINE_S:g} s: lrm_status has state "
            f"{seen['state']!r}, mode {seen['mode']!r}, timestamp {seen['timestamp']}; the master is {seen['master']}. Look "
            "at 'ha-manager status' and 'journalctl -u pve-ha-lrm -u pve-ha-crm', and run again"
        )


def _until_reboot(info: dict[str, Any]) -> bool:
    mux = info["services"][MUX]
    return bool(mux["installed"] and ha_info.is_masked(mux) and ha_info.is_running(mux))


def _describe(services: dict[str, Any], memory: dict[str, Any] | None, files: Sequence[Step]) -> str:
    lines = [
        f"{unit}: {s['active']}, {'masked' if ha_info.is_masked(s) else s['enabled'] or 'unknown'}"
        for unit, s in services.items()
        if s["installed"]
    ]
    lines += [f"/{step.units[0]}: present" for step in files]
    if memory:
        former = ", ".join(unit for unit, was in memory["units"].items() if was["active"])
        lines.append(f"/{ha_info.MEMORY}: ran before: {former or 'none'}")
    return "".join(f"{line}\n" for line in lines)


def _result(
    node: _Node,
    changed: bool,
    steps: list[Step],
    before: str,
    after: str,
    until_reboot: bool,
    returned: list[str],
) -> dict[str, Any]:
    return {
        "changed": changed,
        "steps": [str(step) for step in steps],
        "before": before,
        "after": after,
        "watchdog_until_reboot": until_reboot,
        "returned": returned,
        "waited": node.waited,
        "warnings": node.warnings,
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
