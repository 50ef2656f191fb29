"""Everything the playbooks decide by about one node, gathered in one call and without changing anything."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..base import node_name
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..base.systemd import unit_states
from ..corosync import corosync_info
from ..diet import measures
from ..ha import ha_info
from ..pmxcfs import pmxcfs, pve_lock
from ..state import installed
from ..writes import writer_counters

PACKAGES = ("corosync", "proxmox-backup-server", "pve-cluster", "pve-ha-manager", "pve-manager")
UNITS = (
    "corosync.service",
    "pve-cluster.service",
    "pve-ha-crm.service",
    "pve-ha-lrm.service",
    "pvescheduler.service",
    "pveguard-state.service",
    "pveguard-state-watch.service",
    "watchdog-mux.service",
)


def collect(run: Run = real_run, root: Path = Path("/"), noise: Iterable[str] | None = None) -> dict[str, Any]:
    """The facts of a node; never raises for software that is missing or stopped.

    ``noise``: patterns for what nodes are not compared by, as ``ram_state_noise``; the default list where None is given. Raises
    PveguardError for a bad one.

    Keys: hostname, resolved_address (str or None), boot_id, kernel, machine_codename, python, packages, units, pmxcfs,
    corosync, locks_kept, ha, ram_state, write_diet, login, counters (see the RETURN section of the module ``node_info``).
    """
    # The daemon resolves and uses the name up to its first dot.
    hostname = node_name.own()
    tree = pmxcfs.collect(root, patterns=noise)
    return {
        "hostname": hostname,
        "resolved_address": _resolve(hostname),
        "boot_id": _line(root / "proc/sys/kernel/random/boot_id"),
        "kernel": platform.release(),
        "machine_codename": _codename(root),
        "python": platform.python_version(),
        "packages": packages(run),
        "units": unit_states(UNITS, run),
        "pmxcfs": tree,
        "corosync": corosync_info.collect(run=run, root=root),
        "locks_kept": _locks_kept(root),
        **{key: gather(run=run, root=root) for key, gather in parts().items()},
        "login": {"authorized_keys_depends_on_pve": _depends_on_pve(root)},
        "counters": {**writer_counters.counters(root=root, run=run), "root_version": tree["root_version"]},
    }


def parts() -> dict[str, Callable[..., Any]]:
    """What gathers the facts of roles, by their key: a role that decides by facts of its own adds a line."""
    return {"ha": ha_info.collect, "ram_state": ram_state, "write_diet": measures.collect}


def packages(run: Run = real_run) -> dict[str, str | None]:
    """Installed version of each of PACKAGES, None when it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    try:
        out = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\\n", *PACKAGES]).stdout
    except CommandMissing:
        return found
    for line in out.splitlines():
        name, status, version = line.split(" ", 2)
        if status == "installed" and name in found:
            found[name] = version
    return found


def ram_state(run: Run = real_run, root: Path = Path("/")) -> dict[str, Any]:
    """What ``pve-state status --json`` says, with what is ``installed``, or ``{"state": "absent"}``."""
    if not (root / installed.COMMAND.lstrip("/")).exists():
        return {"state": "absent"}
    result = run([installed.COMMAND, "status", "--json"], timeout=60)
    try:
        status = json.loads(result.stdout)
    except ValueError:
        return {"state": "broken", "error": (result.stderr or result.stdout).strip()[-400:]}
    if not isinstance(status, dict):
        return {"state": "broken", "error": "no JSON object"}
    return {**status, "installed": installed.facts(root)}


def _locks_kept(root: Path) -> list[dict[str, str]]:
    try:
        return [kept.shown() for kept in pve_lock.noted(root)]
    except PveguardError as error:
        return [{"path": f"/{pve_lock.NOTES}", "reason": str(error)}]


def _resolve(hostname: str) -> str | None:
    try:
        answers = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    addresses = [str(answer[4][0]) for answer in answers]
    usable = [address for address in addresses if not address.startswith("127.") and address != "::1"]
    return next(iter(usable or addresses), None)


def _codename(root: Path) -> str:
    for line in (_read(root / "etc/os-release")).splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    return ""


def _depends_on_pve(root: Path) -> bool:
    keys = root / "root/.ssh/authorized_keys"
    return os.path.realpath(keys).startswith(f"{os.path.realpath(root).rstrip('/')}/etc/pve/")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _read(path).strip()
