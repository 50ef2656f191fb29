"""What the HA stack of a node does, read in one call: resources, services, heartbeats, watchdog. Changes
nothing."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .run import Run
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

_SECTION = re.compile(r"^([a-zA-Z][\w-]*):\s*(\S+)\s*$")
#: States of a node in manager_status in which the CRM is in the middle of something.
_BUSY_NODE_STATES = ("fence", "maintenance")


def collect(run: Run = real_run, root: Path | str = Path("/"), hostname: str | None = None) -> dict[str, Any]:
    """Facts of the HA stack; never raises, also not where it is not installed.

    ``root`` is where the file system of the node is found, ``hostname`` its name under /etc/pve/nodes
    (default: the kernel's). Keys:

    - ``installed`` (bool): a unit file of the LRM or CRM exists.
    - ``resources`` (list of ``"vm:100"``; an entry starting with ``resources.cfg:`` stands for text that
      could not be parsed), ``resources_known`` (bool: /etc/pve is mounted or holds an HA directory),
      ``groups``, ``rules`` (names).
    - ``services``: per unit what :func:`service_states` returns.
    - ``lrm`` / ``crm``: ``{state, mode, timestamp}`` of this node's LRM / ``{master, timestamp}``; values may
      be None.
    - ``lrm_states``: the same as ``lrm`` for every node of the cluster.
    - ``manager_status`` (dict or None), ``other_requests`` (list of str: nodes in maintenance or fenced,
      queued commands).
    - ``watchdog_active`` (bool): a client holds the watchdog through watchdog-mux.
    - ``watchdog``: ``{present, identity, nowayout}``; ``nowayout`` is True if any device has it, None if
      unknown.
    - ``masked`` (bool): all installed units are masked. ``managers_off``, ``watchdog_off``, ``disabled``
      (both), ``enabled`` (all running, enabled, none masked): what the role decides by; ``managers_off`` and
      ``watchdog_off`` are True where HA is not installed. ``remembered`` (bool): pveguard switched HA off and
      knows what was before.
    """
    root = Path(root)
    host = hostname or socket.gethostname().split(".", 1)[0]
    pve = root / "etc/pve"
    services = service_states(run, root)
    here = [unit for unit in UNITS if services[unit]["installed"]]
    resources, parsed = _resources(_text(pve / "ha/resources.cfg"))
    lrm_states = {
        path.parent.name: lrm_status(path)
        for path in sorted(pve.glob("nodes/*/lrm_status"))
        if path.is_file()
    }
    manager = _json(pve / "ha/manager_status")
    watchdog = _watchdog(root)
    managers_off = all(is_off(services[unit]) for unit in MANAGERS)
    # A driver with nowayout keeps the multiplexer running until the next boot; masked is all that can be
    # wanted.
    watchdog_off = is_off(services[MUX]) or (is_masked(services[MUX]) and watchdog["nowayout"] is not False)
    return {
        "installed": any(services[unit]["installed"] for unit in MANAGERS),
        "resources": resources if parsed else [*resources, "resources.cfg: text that is not a resource"],
        "resources_known": (pve / "ha").is_dir() or (pve / "nodes").is_dir(),
        "groups": _sections(_text(pve / "ha/groups.cfg")),
        "rules": _sections(_text(pve / "ha/rules.cfg")),
        "services": services,
        "lrm": lrm_states.get(host, _lrm(None)),
        "crm": {"master": _get(manager, "master_node"), "timestamp": _get(manager, "timestamp")},
        "lrm_states": lrm_states,
        "manager_status": manager,
        "other_requests": _requests(pve, manager, lrm_states),
        "watchdog_active": (root / "run/watchdog-mux.active").exists(),
        "watchdog": watchdog,
        "masked": bool(here) and all(is_masked(services[unit]) for unit in here),
        "managers_off": managers_off,
        "watchdog_off": watchdog_off,
        "disabled": managers_off and watchdog_off,
        "enabled": bool(here) and all(is_on(services[unit]) for unit in here),
        "remembered": (root / MEMORY).exists(),
    }


def watchdog_holders(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who still holds a watchdog, from the facts (:func:`collect`) of every host that could be asked.

    Hosts by their inventory name; a member that was not asked by its node name when its LRM says that it is
    in charge of services, which it never is without the watchdog.
    """
    holders = [host for host, ha in facts.items() if ha.get("watchdog_active")]
    for ha in facts.values():
        for node, status in (ha.get("lrm_states") or {}).items():
            shown = f"{node} (its lrm_status says active)"
            if status.get("state") == "active" and node not in holders and shown not in holders:
                holders.append(shown)
    return holders


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
    return [f"{m.group(1)}:{m.group(2)}" for line in text.splitlines() if (m := _SECTION.match(line))]


def _resources(text: str) -> tuple[list[str], bool]:
    """Resource ids, and whether every line was understood: unknown text must not pass as 'no resources'."""
    understood = all(
        not line.strip() or line.startswith(("#", "\t", " ")) or _SECTION.match(line)
        for line in text.splitlines()
    )
    return _sections(text), understood


def lrm_status(path: Path) -> dict[str, Any]:
    """``{state, mode, timestamp}`` of an lrm_status file; None for each where it is missing or not JSON."""
    return _lrm(_json(path))


def _lrm(status: dict[str, Any] | None) -> dict[str, Any]:
    return {key: _get(status, key) for key in ("state", "mode", "timestamp")}


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
    devices = sorted((root / "sys/class/watchdog").glob("watchdog*"))
    flags = [_text(device / "nowayout").strip() for device in devices]
    nowayout: bool | None = None
    if any(flag == "1" for flag in flags):
        nowayout = True
    elif all(flag == "0" for flag in flags):  # also when there is no device: nothing can reset the node
        nowayout = False
    identities = [_text(device / "identity").strip() for device in devices]
    return {"present": bool(devices), "identity": next(filter(None, identities), None), "nowayout": nowayout}


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
