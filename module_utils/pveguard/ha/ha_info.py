"""What the HA stack of a node does, read in one call: resources, services, heartbeats, watchdog. Changes
nothing."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base import node_name
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..base.systemd import unit_states
from ..formats import section_config
from . import ha_fencing, ha_files

LRM = "pve-ha-lrm.service"
CRM = "pve-ha-crm.service"
MUX = "watchdog-mux.service"

#: In the order in which they may be stopped.
MANAGERS = (LRM, CRM)
UNITS = (LRM, CRM, MUX)

#: Where a package may have put a unit file; a masked unit reports no file of its own.
_UNIT_DIRS = ("usr/lib/systemd/system", "lib/systemd/system")

#: What was enabled and running before pveguard switched it off (written by ha_services).
MEMORY = Path("etc/pveguard/ha.json")

#: Loading softdog is kept off by this file (written by ha_services).
SOFTDOG_OFF = Path("etc/modprobe.d/pveguard-softdog.conf")

#: A member whose LRM wrote its status this long ago holds no watchdog any more: the watchdog would have reset it.
#: watchdog-mux gives a client 60 s; the rest is for clocks that differ.
HOLDER_SECONDS = 600

#: linux/watchdog.h
_WDIOF_MAGICCLOSE = 0x0100
#: Identities of drivers with magic close, for kernels before 6.4 that do not show a driver's options.
_MAGIC_CLOSE = ("Software Watchdog", "i6300ESB timer", "iTCO_wdt", "SP5100 TCO timer")
#: Drivers that have no entry in /sys/class/watchdog, with magic close all the same.
_CLASSLESS = ("ipmi_watchdog",)
_MUX_SOCKET = "/run/watchdog-mux.sock"

#: States of a node in manager_status in which the CRM is not in the middle of something.
_CALM_NODE_STATES = ("online", "unknown", "gone")
#: States of an LRM: without the watchdog, and in which it (still) has one. Any other is not known.
_FREE_LRM_STATE = "wait_for_agent_lock"
_HOLDING_LRM_STATES = ("active", "lost_agent_lock")
_LRM_MODES = ("active", "restart", "shutdown", "maintenance")
#: What pveguard itself may have asked of the CRM a moment ago; the state of fencing shows what became of it.
_OWN_REQUEST = re.compile(r"disarm-ha\b")
#: What the programs of HA that may hold the watchdog are called, as processes and as units.
_MANAGER = "pve-ha-"
#: Seconds between two looks of :func:`await_release`.
_LOOK_EVERY_S = 5.0


def collect(
    run: Run = real_run,
    root: Path | str = Path("/"),
    hostname: str | None = None,
    now: float | None = None,
    ask_manager: bool = True,
) -> dict[str, Any]:
    """Facts of the HA stack; never raises, also not where it is not installed.

    Long because its docstring names every key of the result.

    ``root`` is where the file system of the node is found, ``hostname`` its name under /etc/pve/nodes
    (default: the kernel's), ``now`` the time from which ages are counted (Unix time in seconds; default: the
    clock). ``ask_manager`` False leaves ``fencing`` unknown, which saves two slow calls. Keys:

    - ``installed`` (bool): a unit file of the LRM or CRM exists.
    - ``resources`` (list of ``"vm:100"``; an entry starting with ``resources.cfg:`` stands for text that
      could not be parsed), ``resources_known`` (bool: /etc/pve is mounted and answers), ``groups``, ``rules`` (names).
      ``quorate`` (bool): /etc/pve takes writes, so what it holds is current. ``pve_error`` (str or None): why /etc/pve
      cannot be read although it is mounted; it is read by a child, for at most ha_files.ANSWER_S seconds.
    - ``services``: per unit what :func:`service_states` returns.
    - ``lrm`` / ``crm``: ``{state, mode, timestamp}`` of this node's LRM / ``{master, timestamp}``; values may
      be None.
    - ``lrm_states``: the same as ``lrm`` for every node of the cluster, and ``age_seconds`` (int or None).
    - ``crm_states``: ``{master, state}`` for every node of the cluster: whether manager_status names its CRM
      as the master, and what it says of the node (``online``, ``unknown``, ``fence``, ``maintenance``,
      ``gone``; None where it says nothing).
    - ``manager_status`` (dict or None), ``other_requests`` (list of str: nodes in maintenance, fenced or in a state
      that is not known, queued commands, a manager_status that cannot be read). ``not_understood`` (list of str): what the
      managers say that is not known here; it is never taken for the best.
    - ``watchdog_active`` (bool): a client holds the watchdog through watchdog-mux.
    - ``watchdog``: ``{present, identity, nowayout, magic_close, stoppable, devices, clients}``; ``nowayout``
      is True if any device has it, ``magic_close`` False if any has not, both None if unknown; ``stoppable``:
      closing the device is known not to reset the node. ``devices``: ``[{name, identity, state, nowayout,
      magic_close}]``; ``clients``: ``[{pid, name, manager}]`` that hold it through watchdog-mux; ``manager``: it is
      the LRM or the CRM.
    - ``fencing``: what ha_fencing.look returns, asked only where there are no resources and a client holds the watchdog
      here or elsewhere, or where pveguard had it disarmed.
    - ``softdog``: ``{loaded, blacklisted}`` (by pveguard).
    - ``masked`` (bool): all installed units are masked. ``managers_off``, ``watchdog_off``, ``disabled``
      (both), ``enabled`` (all running, enabled, none masked): what the role decides by; ``managers_off`` and
      ``watchdog_off`` are True where HA is not installed. ``remembered`` (bool): pveguard switched HA off and
      knows what was before.
    - ``node`` (str): the name under /etc/pve/nodes. ``unattended`` (list of str): resources that nothing on this
      node recovers: a unit of HA is masked, or pveguard has stopped or disarmed it and did not come to its end.
      ``returned`` (list of str): units that pveguard had switched off and that are on again.
    - ``status_files`` (list of paths below /etc/pve): what remains of this node's managers when they end, and of
      the last ones of the cluster. ``leftovers``: the same when they have ended: they show managers which do not run.
    """
    root = Path(root)
    now = time.time() if now is None else now
    host = hostname or node_name.own()
    services = service_states(run, root)
    here = [unit for unit in UNITS if services[unit]["installed"]]
    files = ha_files.read(root)
    resources, parsed = _resources(files.text("resources"))
    resources = resources if parsed else [*resources, "resources.cfg: text that is not a resource"]
    lrm_states = {
        node: {**(status := _lrm(said)), "age_seconds": _age(status, now)} for node, said in files.lrms.items()
    }
    manager = files.manager
    active = (root / "run/watchdog-mux.active").exists()
    watchdog = _watchdog(root)
    watchdog["clients"] = _clients(run, root) if active else []
    managers_off = all(is_off(services[unit]) for unit in MANAGERS)
    # A driver that cannot be stopped keeps the multiplexer running until the next boot; masked is all that
    # can be wanted.
    watchdog_off = is_off(services[MUX]) or (is_masked(services[MUX]) and not watchdog["stoppable"])
    memory = ha_files.json_object(_text(root / MEMORY))
    # A run that ended in the middle leaves units stopped and not masked, or a manager that was asked to disarm.
    off = [unit for unit in here if is_masked(services[unit]) or (memory and not is_running(services[unit]))]
    fencing = ha_fencing.UNKNOWN
    # Where there are resources nobody disarms; what remains is whether pveguard has left it so.
    matters = not off and _get(memory, "disarmed") if resources else active or _in_charge(lrm_states)
    if ask_manager and matters:
        fencing = ha_fencing.look(run)
    disarmed = bool(_get(memory, "disarmed")) and fencing["state"] in ("disarming", "disarmed")
    stopped = all(is_masked(services[unit]) and not is_running(services[unit]) for unit in MANAGERS)
    status_files = _status_files(files, host)
    return {
        "installed": any(services[unit]["installed"] for unit in MANAGERS),
        "resources": resources,
        "resources_known": files.there,
        "quorate": files.quorate,
        "pve_error": files.error,
        "groups": _sections(files.text("groups")),
        "rules": _sections(files.text("rules")),
        "services": services,
        "lrm": {key: lrm_states.get(host, {}).get(key) for key in _LRM_KEYS},
        "crm": {"master": _get(manager, "master_node"), "timestamp": _number(_get(manager, "timestamp"))},
        "lrm_states": lrm_states,
        "crm_states": _crm_states(files, manager),
        "manager_status": manager,
        "other_requests": _requests(files, manager, lrm_states),
        "not_understood": _not_understood(files, manager, lrm_states, fencing),
        "watchdog_active": active,
        "watchdog": watchdog,
        "fencing": fencing,
        "softdog": {
            "loaded": (root / "sys/module/softdog").is_dir(),
            "blacklisted": (root / SOFTDOG_OFF).exists(),
        },
        "masked": bool(here) and all(is_masked(services[unit]) for unit in here),
        "managers_off": managers_off,
        "watchdog_off": watchdog_off,
        "disabled": managers_off and watchdog_off,
        "enabled": bool(here) and all(is_on(services[unit]) for unit in here),
        "remembered": (root / MEMORY).exists(),
        "node": host,
        "unattended": resources if off or disarmed else [],
        "returned": _returned(memory, services),
        "status_files": status_files,
        "leftovers": status_files if stopped and not resources else [],
    }


def await_release(
    seconds: float,
    look: Callable[[], dict[str, Any]],
    sleep: Callable[[float], None] = time.sleep,
    ticks: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """The facts (``look``: :func:`collect` without asking the manager) once no LRM that they know of holds a watchdog, after
    ``seconds`` at the latest; at once when waiting cannot help.
    """
    end = ticks() + seconds
    while True:
        facts = look()
        if not release_awaited({facts["node"]: facts}) or ticks() >= end:
            return facts
        sleep(min(_LOOK_EVERY_S, max(0.1, end - ticks())))


def release_awaited(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who holds a watchdog, where that is all that is in the way of switching HA off in a cluster and passes by itself: the
    managers keep it for minutes after the last resource was removed, and these cannot disarm. Else empty.
    """
    asked = _asked(facts)
    if _disarms(asked) or _hard_objections(asked):
        return []
    return watchdog_holders(asked)


def objections(facts: Mapping[str, Mapping[str, Any]], held: bool = True) -> list[str]:
    """Why HA must not be switched off now in a cluster, from the facts (:func:`collect`) of its hosts that could be asked.

    What each of them would refuse for itself, said once and before any of them has been changed. ``held`` False: a watchdog
    that the managers will let go by themselves is none.
    """
    asked = _asked(facts)
    found = _hard_objections(asked)
    resources = any(ha["resources"] for ha in asked.values())
    if held and not resources and not _disarms(asked) and (holders := watchdog_holders(asked)):
        found.append(held_text(", ".join(holders), next((ha["fencing"] for ha in asked.values() if ha["fencing"]["error"]), {})))
    return found


def held_text(holders: str, fencing: Mapping[str, Any]) -> str:
    """The refusal for managers that still hold a watchdog, with what helps. ``fencing``: as in :func:`collect`."""
    why = f" Whether this one has it is not known: {fencing['error']}." if fencing.get("error") else ""
    return (
        f"there is no HA resource any more, but the LRM is still active and holds the watchdog: {holders}. The managers let go "
        "by themselves some ten minutes after the last resource was removed ('ha-manager status' then says idle): wait for "
        "that and run again (ha_release_wait_seconds is how long a run waits), or let go at once with "
        f"'ha-manager crm-command disarm-ha freeze' where the manager has that command (Proxmox VE 9.2 and later).{why}"
    )


def _asked(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {host: ha for host, ha in facts.items() if ha.get("installed")}


def _disarms(asked: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(ha["fencing"]["command"] for ha in asked.values())


def _hard_objections(asked: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those that neither waiting nor disarming removes."""
    found = [f"{host}: {unreadable_text(ha)}" for host, ha in asked.items() if not ha["resources_known"]]
    found += [
        f"{host}: /etc/pve has no quorum, so it may not show what others have added"
        for host, ha in asked.items()
        if ha["resources_known"] and not ha["quorate"]
    ]
    resources = {resource for ha in asked.values() for resource in ha["resources"]}
    if resources:
        found.append(f"HA is in use: {shown(sorted(resources))} (remove them with 'ha-manager remove SID')")
    # Everybody says the same of the cluster.
    found += dict.fromkeys(request for ha in asked.values() for request in ha["other_requests"])
    found += [f"{host}: {text}" for host, ha in asked.items() if (text := strangers_text(ha))]
    return found


def unreadable_text(ha: Mapping[str, Any]) -> str:
    """Why /etc/pve cannot be read."""
    return ha["pve_error"] or "/etc/pve is not mounted (start it with 'systemctl start pve-cluster')"


def strangers_text(ha: Mapping[str, Any]) -> str:
    """Clients of watchdog-mux that are no manager of HA, or that are gone; empty where there are none."""
    clients = ha["watchdog"]["clients"]
    strangers = [each for each in clients if not each["manager"]]
    if strangers:
        return f"the watchdog is held by {clients_text(strangers)}, which is no part of HA: end it in good order"
    if ha["watchdog_active"] and not clients and not is_running(ha["services"][LRM]):
        return (
            "the watchdog is armed, but the LRM does not run and no client is connected to watchdog-mux: one was ended without "
            "letting go, and the watchdog may reset this node. Look at 'systemctl status pve-ha-lrm watchdog-mux'"
        )
    return ""


def clients_text(clients: list[dict[str, Any]]) -> str:
    return "; ".join(f"{client['name']}, pid {client['pid']}" for client in clients)


def watchdog_holders(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who still holds a watchdog, from the facts (:func:`collect`) of every host that could be asked.

    Hosts by their inventory name; a member that was not asked by its node name when its LRM says that it is
    in charge of services, which it never is without the watchdog, or says what is not known. A status older than
    HOLDER_SECONDS is that of a node that is off.
    """
    holders = {}
    for host, ha in facts.items():
        if ha.get("watchdog_active"):
            by = clients_text((ha.get("watchdog") or {}).get("clients") or [])
            holders[ha.get("node") or host] = f"{host} ({by})" if by else host
    asked = {ha.get("node") or host for host, ha in facts.items() if "watchdog_active" in ha}
    for ha in facts.values():
        for node, status in (ha.get("lrm_states") or {}).items():
            why = _holds(status)
            # Of a node that was asked it is known whether a client holds the watchdog.
            if why and node not in holders and (status["state"] in _HOLDING_LRM_STATES or node not in asked):
                holders[node] = f"{node} ({why})"
    return list(holders.values())


def _holds(status: Mapping[str, Any]) -> str | None:
    """Why the LRM of a node has to be taken for a holder of the watchdog; None where it need not."""
    state, age = status["state"], status.get("age_seconds")
    if state == _FREE_LRM_STATE or (age is not None and age >= HOLDER_SECONDS):
        return None
    if state in _HOLDING_LRM_STATES:
        return f"its lrm_status says {state}"
    return "its lrm_status cannot be read" if state is None else f"its lrm_status says {state!r}, which is not known"


def _in_charge(lrm_states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Nodes whose LRM says that it is in charge of services, and said so lately; or says what is not known."""
    return [node for node, status in lrm_states.items() if _holds(status)]


def shown(resources: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(resources) - 8
    return ", ".join(resources[:8]) + (f" and {more} more" if more > 0 else "")


def service_states(run: Run = real_run, root: Path | str = Path("/")) -> dict[str, dict[str, Any]]:
    """The three HA units from one ``systemctl show``.

    ``{unit: {load, active, enabled, installed, installable, wanted}}``: the first three as systemd prints
    them (the mask hides whether a unit is enabled); ``installed``: its package is there; ``installable``: it
    has an [Install] section; ``wanted``: it is started at boot once it is not masked.
    """
    states: dict[str, dict[str, Any]] = {unit: dict(state) for unit, state in unit_states(UNITS, run).items()}
    for unit, state in states.items():
        # A mask outlives the package: only a unit file of the package says that it is installed.
        packaged = next((text for folder in _UNIT_DIRS if (text := _text(Path(root) / folder / unit))), "")
        state["installed"] = bool(packaged) or state["load"] not in ("not-found", "masked", "")
        state["installable"] = "[Install]" in packaged
        wants = (Path(root) / "etc/systemd/system").glob("*.wants")
        state["wanted"] = any((folder / unit).is_symlink() for folder in wants)
    return states


def is_masked(service: dict[str, Any]) -> bool:
    return service["enabled"] in ("masked", "masked-runtime") or service["load"] == "masked"


def is_running(service: dict[str, Any]) -> bool:
    return service["active"] not in ("inactive", "failed", "")


def is_off(service: dict[str, Any]) -> bool:
    """Not installed, or stopped and masked."""
    return not service["installed"] or (is_masked(service) and not is_running(service))


def is_on(service: dict[str, Any]) -> bool:
    """Running, not masked, and started at the next boot (a unit without [Install] is pulled in by others)."""
    wanted = service["wanted"] or not service["installable"]
    return service["active"] == "active" and not is_masked(service) and bool(wanted)


def _sections(text: str) -> list[str]:
    """``type:id`` of each section of a Proxmox section configuration."""
    return [f"{section.kind}:{section.name}" for section in section_config.parse(text).sections]


def _resources(text: str) -> tuple[list[str], bool]:
    """Resource ids, and whether every line was understood: unknown text must not pass as 'no resources'."""
    strange = section_config.parse(text).strange
    return _sections(text), all(line[0] in "\t " for line in strange)


def lrm_state(node: str, root: Path = Path("/")) -> Any:
    """What the lrm_status of a node gives as its state; None where it is missing or not JSON. Raises OSError when /etc/pve
    does not answer.
    """
    files = ha_files.read(root)
    if files.error:
        raise OSError(files.error)
    return _get(files.lrms.get(node), "state")


_LRM_KEYS = ("state", "mode", "timestamp")


def _lrm(status: dict[str, Any] | None) -> dict[str, Any]:
    """``{state, mode, timestamp}``, whatever else the status holds and in whatever order; None for each that is not known."""
    found = {key: _get(status, key) for key in _LRM_KEYS}
    found["timestamp"] = _number(found["timestamp"])
    return found


def _number(value: Any) -> float | None:
    """A number, also as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _age(status: Mapping[str, Any], now: float) -> int | None:
    stamp = status["timestamp"]
    return None if stamp is None else round(now - stamp)


def _crm_states(files: ha_files.Files, manager: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    said = _node_status(manager)
    master = _get(manager, "master_node")
    return {
        name: {"master": name == master, "state": said.get(name)} for name in sorted({*files.nodes, *said})
    }


def _node_status(manager: dict[str, Any] | None) -> dict[str, Any]:
    said = _get(manager, "node_status")
    return said if isinstance(said, dict) else {}


def services_of(manager: dict[str, Any] | None, node: str) -> list[str]:
    """The services that manager_status places on ``node``."""
    said = _get(manager, "service_status")
    if not isinstance(said, dict):
        return []
    return [sid for sid, service in said.items() if isinstance(service, dict) and service.get("node") == node]


def _returned(memory: dict[str, Any] | None, services: dict[str, dict[str, Any]]) -> list[str]:
    """Units that were off when pveguard last left the node and are not now: an upgrade, or somebody by hand."""
    units = _get(memory, "units")
    if not isinstance(units, dict):
        return []
    return [
        unit
        for unit in UNITS
        if isinstance(was := units.get(unit), dict)
        and was.get("off")
        and services[unit]["installed"]
        and not is_masked(services[unit])
    ]


def _status_files(files: ha_files.Files, host: str) -> list[str]:
    """The status of this node's LRM, and the manager's where no other node has a status."""
    found = [f"nodes/{host}/lrm_status"] if host in files.lrms else []
    if not set(files.lrms) - {host} and files.has("manager"):
        found.append("ha/manager_status")
    return found


def _requests(
    files: ha_files.Files, manager: dict[str, Any] | None, lrm_states: dict[str, dict[str, Any]]
) -> list[str]:
    """What the CRM was asked for, or is doing, and has not finished; and what may hide such a thing."""
    found = []
    if files.has("manager") and manager is None:
        found.append(
            "/etc/pve/ha/manager_status is no JSON object, so what the manager is doing is not known (where no CRM runs any "
            "more, remove it)"
        )
    for name, state in _node_status(manager).items():
        if state not in _CALM_NODE_STATES:
            found.append(f"node {name} is in state {state!r}")
    found += [
        f"node {name} is in maintenance"
        for name, status in lrm_states.items()
        if status["mode"] == "maintenance"
    ]
    queued = [line.strip() for line in files.text("commands").splitlines() if line.strip()]
    found += [f"queued command {line!r}" for line in queued if not _OWN_REQUEST.match(line)]
    return found


def _not_understood(
    files: ha_files.Files,
    manager: dict[str, Any] | None,
    lrm_states: dict[str, dict[str, Any]],
    fencing: Mapping[str, Any],
) -> list[str]:
    found = []
    if files.has("manager") and manager is None:
        found.append("/etc/pve/ha/manager_status is no JSON object")
    known = (*_CALM_NODE_STATES, "fence", "maintenance")
    found += [
        f"manager_status has node {name} in state {state!r}"
        for name, state in _node_status(manager).items()
        if state not in known
    ]
    for name, status in lrm_states.items():
        state, mode = status["state"], status["mode"]
        if files.lrms[name] is None:
            found.append(f"/etc/pve/nodes/{name}/lrm_status is no JSON object")
            continue
        if state != _FREE_LRM_STATE and state not in _HOLDING_LRM_STATES:
            found.append(f"the LRM of {name} says state {state!r}")
        if mode not in _LRM_MODES:
            found.append(f"the LRM of {name} says mode {mode!r}")
    if fencing["said"] and not fencing["state"]:
        found.append(f"'ha-manager status' says fencing {fencing['said']!r}")
    if fencing["error"]:
        found.append(str(fencing["error"]))
    return found


def _watchdog(root: Path) -> dict[str, Any]:
    devices = [_device(path) for path in sorted((root / "sys/class/watchdog").glob("watchdog*"))]
    if not devices and (root / "dev/watchdog").exists():
        devices = [_classless(root)]
    # No device: nothing can reset the node.
    nowayout = _worst([device["nowayout"] for device in devices], bad=True)
    magic_close = _worst([device["magic_close"] for device in devices], bad=False)
    return {
        "present": bool(devices),
        "identity": next((device["identity"] for device in devices if device["identity"]), None),
        "nowayout": nowayout,
        "magic_close": magic_close,
        "stoppable": nowayout is False and magic_close is True,
        "devices": devices,
    }


def _device(path: Path) -> dict[str, Any]:
    identity = _text(path / "identity").strip() or None
    flag = _text(path / "nowayout").strip()
    magic_close: bool | None
    try:
        magic_close = bool(int(_text(path / "options").strip(), 16) & _WDIOF_MAGICCLOSE)
    except ValueError:
        magic_close = True if identity in _MAGIC_CLOSE else None
    return {
        "name": path.name,
        "identity": identity,
        "state": _text(path / "state").strip() or None,
        "nowayout": {"0": False, "1": True}.get(flag),
        "magic_close": magic_close,
    }


def _classless(root: Path) -> dict[str, Any]:
    """/dev/watchdog of a driver outside the kernel's watchdog class."""
    for name in _CLASSLESS:
        module = root / "sys/module" / name
        if module.is_dir():
            flag = _text(module / "parameters/nowayout").strip()
            nowayout = {"N": False, "0": False, "Y": True, "1": True}.get(flag)
            return {"name": "watchdog", "identity": name, "state": None, "nowayout": nowayout, "magic_close": True}
    return {"name": "watchdog", "identity": None, "state": None, "nowayout": None, "magic_close": None}


def _worst(values: list[bool | None], bad: bool) -> bool | None:
    """``bad`` if any is, else None if any is unknown, else the good value."""
    if bad in values:
        return bad
    return None if None in values else not bad


def _clients(run: Run, root: Path) -> list[dict[str, Any]]:
    """Who is connected to watchdog-mux, from ``ss``: ``[{pid, name, manager}]``, empty when that cannot be told."""
    try:
        lines = [line.split() for line in run(["ss", "-xpnH"], timeout=20).stdout.splitlines()]
    except CommandMissing:
        return []
    # Netid State Recv-Q Send-Q Path Inode Peer-path Peer-inode Processes; a client has no path.
    served = {words[7] for words in lines if len(words) >= 8 and words[4] == _MUX_SOCKET}
    found = []
    for words in lines:
        if len(words) >= 9 and words[5] in served:
            for name, pid in re.findall(r'\("([^"]+)",pid=(\d+)', words[8]):
                # A manager may be seen by the name of its interpreter, but is in the group of its unit.
                group = _text(root / "proc" / pid / "cgroup")
                manager = name.startswith(_MANAGER) or f"/{_MANAGER}" in group
                found.append({"pid": int(pid), "name": name, "manager": manager})
    return found


def _get(status: dict[str, Any] | None, key: str) -> Any:
    return status.get(key) if status else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
