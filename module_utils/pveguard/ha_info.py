"""What the HA stack of a node does, read in one call: resources, services, heartbeats, watchdog. Changes
nothing."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import ha_fencing, pve_file, section_config
from .run import CommandMissing, Run
from .run import run as real_run
from .systemd import unit_states

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

#: States of a node in manager_status in which the CRM is in the middle of something.
_BUSY_NODE_STATES = ("fence", "maintenance")


def collect(
    run: Run = real_run,
    root: Path | str = Path("/"),
    hostname: str | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """Facts of the HA stack; never raises, also not where it is not installed.

    ``root`` is where the file system of the node is found, ``hostname`` its name under /etc/pve/nodes
    (default: the kernel's), ``now`` the time from which ages are counted (Unix time in seconds; default: the
    clock). Keys:

    - ``installed`` (bool): a unit file of the LRM or CRM exists.
    - ``resources`` (list of ``"vm:100"``; an entry starting with ``resources.cfg:`` stands for text that
      could not be parsed), ``resources_known`` (bool: /etc/pve is mounted or holds an HA directory),
      ``groups``, ``rules`` (names). ``quorate`` (bool): /etc/pve takes writes, so what it holds is current.
    - ``services``: per unit what :func:`service_states` returns.
    - ``lrm`` / ``crm``: ``{state, mode, timestamp}`` of this node's LRM / ``{master, timestamp}``; values may
      be None.
    - ``lrm_states``: the same as ``lrm`` for every node of the cluster, and ``age_seconds`` (int or None).
    - ``crm_states``: ``{master, state}`` for every node of the cluster: whether manager_status names its CRM
      as the master, and what it says of the node (``online``, ``unknown``, ``fence``, ``maintenance``,
      ``gone``; None where it says nothing).
    - ``manager_status`` (dict or None), ``other_requests`` (list of str: nodes in maintenance or fenced,
      queued commands).
    - ``watchdog_active`` (bool): a client holds the watchdog through watchdog-mux.
    - ``watchdog``: ``{present, identity, nowayout, magic_close, stoppable, devices, clients}``; ``nowayout``
      is True if any device has it, ``magic_close`` False if any has not, both None if unknown; ``stoppable``:
      closing the device is known not to reset the node. ``devices``: ``[{name, identity, state, nowayout,
      magic_close}]``; ``clients``: ``[{pid, name}]`` that hold it through watchdog-mux.
    - ``fencing``: what ha_fencing.look returns, asked only while a client holds the watchdog here or elsewhere,
      or where pveguard had it disarmed.
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
    host = hostname or socket.gethostname().split(".", 1)[0]
    pve = root / "etc/pve"
    services = service_states(run, root)
    here = [unit for unit in UNITS if services[unit]["installed"]]
    resources, parsed = _resources(_text(pve / "ha/resources.cfg"))
    resources = resources if parsed else [*resources, "resources.cfg: text that is not a resource"]
    lrm_states = {
        path.parent.name: {**(status := lrm_status(path)), "age_seconds": _age(status, now)}
        for path in sorted(pve.glob("nodes/*/lrm_status"))
        if path.is_file()
    }
    manager = _json(pve / "ha/manager_status")
    active = (root / "run/watchdog-mux.active").exists()
    watchdog = _watchdog(root)
    watchdog["clients"] = _clients(run) if active else []
    managers_off = all(is_off(services[unit]) for unit in MANAGERS)
    # A driver that cannot be stopped keeps the multiplexer running until the next boot; masked is all that
    # can be wanted.
    watchdog_off = is_off(services[MUX]) or (is_masked(services[MUX]) and not watchdog["stoppable"])
    memory = _json(root / MEMORY)
    # A run that ended in the middle leaves units stopped and not masked, or a manager that was asked to disarm.
    off = [unit for unit in here if is_masked(services[unit]) or (memory and not is_running(services[unit]))]
    fencing = ha_fencing.UNKNOWN
    if active or _in_charge(lrm_states) or (resources and not off and _get(memory, "disarmed")):
        fencing = ha_fencing.look(run)
    disarmed = bool(_get(memory, "disarmed")) and fencing["state"] in ("disarming", "disarmed")
    stopped = all(is_masked(services[unit]) and not is_running(services[unit]) for unit in MANAGERS)
    status_files = _status_files(pve, host, lrm_states)
    return {
        "installed": any(services[unit]["installed"] for unit in MANAGERS),
        "resources": resources,
        "resources_known": (pve / "ha").is_dir() or (pve / "nodes").is_dir(),
        "quorate": pve_file.has_quorum(root),
        "groups": _sections(_text(pve / "ha/groups.cfg")),
        "rules": _sections(_text(pve / "ha/rules.cfg")),
        "services": services,
        "lrm": {key: lrm_states.get(host, {}).get(key) for key in _LRM_KEYS},
        "crm": {"master": _get(manager, "master_node"), "timestamp": _get(manager, "timestamp")},
        "lrm_states": lrm_states,
        "crm_states": _crm_states(pve, manager),
        "manager_status": manager,
        "other_requests": _requests(pve, manager, lrm_states),
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


def objections(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why HA must not be switched off now in a cluster, from the facts (:func:`collect`) of its hosts that could be asked.

    What each of them would refuse for itself, said once and before any of them has been changed.
    """
    asked = {host: ha for host, ha in facts.items() if ha.get("installed")}
    found = [f"{host}: /etc/pve is not mounted" for host, ha in asked.items() if not ha["resources_known"]]
    found += [
        f"{host}: /etc/pve has no quorum, so it may not show what others have added"
        for host, ha in asked.items()
        if ha["resources_known"] and not ha["quorate"]
    ]
    resources = {resource for ha in asked.values() for resource in ha["resources"]}
    if resources:
        found.append(f"HA is in use: {shown(sorted(resources))}")
    # Everybody says the same of the cluster.
    found += dict.fromkeys(request for ha in asked.values() for request in ha["other_requests"])
    holders = watchdog_holders(asked)
    if holders and not any(ha["fencing"]["command"] for ha in asked.values()):
        found.append(f"a client holds the watchdog of {', '.join(holders)}")
    return found


def watchdog_holders(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who still holds a watchdog, from the facts (:func:`collect`) of every host that could be asked.

    Hosts by their inventory name; a member that was not asked by its node name when its LRM says that it is
    in charge of services, which it never is without the watchdog. A status older than HOLDER_SECONDS is that of a
    node that is off.
    """
    holders = [host for host, ha in facts.items() if ha.get("watchdog_active")]
    for ha in facts.values():
        for node, status in (ha.get("lrm_states") or {}).items():
            shown = f"{node} (its lrm_status says active)"
            if node in _in_charge({node: status}) and node not in holders and shown not in holders:
                holders.append(shown)
    return holders


def _in_charge(lrm_states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Nodes whose LRM says that it is in charge of services, and said so lately."""
    return [
        node
        for node, status in lrm_states.items()
        if status.get("state") == "active" and (status.get("age_seconds") or 0) < HOLDER_SECONDS
    ]


def unattended_text(host: str, resources: list[str]) -> str:
    """The warning for resources that nothing looks after."""
    return (
        f"HA is off on {host} but there are HA resources: {shown(resources)}. Nothing recovers them when a node fails. Set "
        "ha_state: enabled and run site.yml, or remove them ('ha-manager remove SID')"
    )


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


def lrm_status(path: Path) -> dict[str, Any]:
    """``{state, mode, timestamp}`` of an lrm_status file; None for each where it is missing or not JSON."""
    return _lrm(_json(path))


_LRM_KEYS = ("state", "mode", "timestamp")


def _lrm(status: dict[str, Any] | None) -> dict[str, Any]:
    return {key: _get(status, key) for key in _LRM_KEYS}


def _age(status: Mapping[str, Any], now: float) -> int | None:
    stamp = status["timestamp"]
    return round(now - stamp) if isinstance(stamp, (int, float)) else None


def _crm_states(pve: Path, manager: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    said = _get(manager, "node_status")
    said = said if isinstance(said, dict) else {}
    names = {path.name for path in pve.glob("nodes/*") if path.is_dir()} | set(said)
    master = _get(manager, "master_node")
    return {name: {"master": name == master, "state": said.get(name)} for name in sorted(names)}


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


def _status_files(pve: Path, host: str, lrm_states: Mapping[str, Any]) -> list[str]:
    """The status of this node's LRM, and the manager's where no other node has a status."""
    found = [f"nodes/{host}/lrm_status"] if host in lrm_states else []
    if not set(lrm_states) - {host} and (pve / "ha/manager_status").is_file():
        found.append("ha/manager_status")
    return found


def _requests(pve: Path, manager: dict[str, Any] | None, lrm_states: dict[str, dict[str, Any]]) -> list[str]:
    """What the CRM was asked for, or is doing, and has not finished."""
    found = []
    nodes = _get(manager, "node_status")
    if isinstance(nodes, dict):
        found += [
            f"node {name} is in state {state!r}"
            for name, state in nodes.items()
            if state in _BUSY_NODE_STATES
        ]
    found += [
        f"node {name} is in maintenance"
        for name, status in lrm_states.items()
        if status["mode"] == "maintenance"
    ]
    queued = [line for line in _text(pve / "ha/crm_commands").splitlines() if line.strip()]
    found += [f"queued command {line.strip()!r}" for line in queued]
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


def _clients(run: Run) -> list[dict[str, Any]]:
    """Who is connected to watchdog-mux, from ``ss``: ``[{pid, name}]``, empty when that cannot be told."""
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
                found.append({"pid": int(pid), "name": name})
    return found


def _get(status: dict[str, Any] | None, key: str) -> Any:
    return status.get(key) if status else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
