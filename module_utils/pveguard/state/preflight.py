# SPDX-License-Identifier: Apache-2.0
"""Whether a node may be switched over now: tasks, guests, HA, members, room."""

from __future__ import annotations

import os
import re
import sqlite3

from ..base.node_name import own as node_name
from ..formats import section_config
from ..pmxcfs.live_database import unknown_schema
from ..pmxcfs.members import NOT_MET
from ..pmxcfs.tasks import running as running_tasks
from ..pmxcfs.tree import (
    FILE,
    TYPE,
    as_bytes,
    content_of,
    data_of,
    guest_lock,
    guests_on,
    inodes_by_path,
    read_rows,
    root_version,
)
from .exits import EXIT_REFUSED, StateError
from .files import size_of
from .live import open_live, switched
from .login import check_login
from .members import daemon_mode, members_file, no_quorum
from .node import daemon_running, is_ours, live_mount, memory, pve_mounted, state_bytes, tmpfs_sizes
from .paths import MIB
from .rows import PAGE, check_connection, is_member, is_placeholder
from .settings import given_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from .paths import Paths
    from .settings import Config

# Free space that a switch-over leaves in the store beyond the copies that it makes.
DISK_RESERVE = 64 * MIB


def locked_guests(connection: sqlite3.Connection, node: str) -> list[tuple[str, str]]:
    """[(path, lock)] of this node's guest configurations that hold a lock."""
    rows = read_rows(connection)
    inodes = {path: inode for path, inode in inodes_by_path(rows).items() if rows[inode][TYPE] == FILE}
    locks = ((path, guest_lock(data_of(connection, inodes[path]))) for path in guests_on(inodes, node))
    return [(path, lock) for path, lock in locks if lock]


def ha_resources(connection: sqlite3.Connection) -> list[str]:
    return resource_ids(content_of(connection, "ha/resources.cfg"))


def resource_ids(data: object) -> list[str]:
    """Ids such as vm:100 of the resources in a resources.cfg (None when there is none)."""
    text = as_bytes(data).decode("utf-8", "replace")
    return [f"{section.kind}:{section.name}" for section in section_config.parse(text).sections]


def ha_masked(paths: Paths) -> list[str]:
    """Names of HA's managers that are masked on this node."""
    found = []
    for unit in ("pve-ha-crm", "pve-ha-lrm"):
        for folder in ("/etc/systemd/system", "/run/systemd/system"):
            try:
                if os.readlink(paths.at(f"{folder}/{unit}.service")) == "/dev/null":
                    found.append(unit)
                    break
            except OSError:
                continue
    return found


def resolves(name: str) -> str | None:
    import socket

    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    addresses = [str(answer[4][0]) for answer in answers]
    return next(
        (a for a in addresses if not a.startswith("127.") and a != "::1"), addresses[0] if addresses else None
    )


def preflight(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """Everything that a switch to RAM depends on, without changing anything.

    Returns {installed, enabled, refusals: [...], warnings: [...], login, tmpfs_bytes, database_bytes, ...}.
    """
    refusals: list[str] = []
    warnings: list[str] = []
    total, available = memory()
    result = {
        "installed": program_exists(paths, "pmxcfs"),
        "enabled": switched(paths),
        "refusals": refusals,
        "warnings": warnings,
        "login": None,
        "root_version": None,
        "database_bytes": 0,
        "tmpfs_bytes": 0,
        "noswap": noswap_supported(),
        "member": is_member(paths),
    }
    if not result["installed"]:
        refusals.append("pve-cluster is not installed (the program pmxcfs is missing)")
        return result
    mount = live_mount(paths)
    if mount is not None and not is_ours(mount):
        refusals.append(
            f"{paths.live} is a mount of its own ({mount[1]} from {mount[2]}); unmount it and move its "
            "content to the directory first"
        )
    if is_placeholder(paths.live_db):
        refusals.append(
            f"{paths.live_db} is the placeholder of RAM state, but it is not mounted; see 'pve-state status'"
        )
    elif not os.path.exists(paths.live_db):
        refusals.append(f"{paths.live_db} does not exist; start pve-cluster once")
    elif not daemon_running(paths):
        refusals.append(
            "pve-cluster does not run; a switch-over starts from a healthy daemon "
            "(systemctl start pve-cluster)"
        )
    else:
        _preflight_database(paths, config, args, result, total, available)
    _preflight_host(paths, args, result)
    tasks = running_tasks(paths.tasks)
    if tasks:
        refusals.append(f"{len(tasks)} Proxmox task(s) run, the first is {tasks[0]}; wait for their end")
    login = check_login(paths, args.connection, fallback=args.login_fallback)
    result["login"] = login
    if not login["independent"] and not (args.login_fallback and login["fallback_file"]):
        refusals.append(
            f"the login in use depends on /etc/pve, which goes away for seconds: {login['how']}. Put the key "
            "into /root/.ssh/authorized_keys2, or set ram_state_login_fallback: true"
        )
    return result


def _preflight_database(
    paths: Paths, config: Config, args: Namespace, result: dict[str, Any], total: int, available: int
) -> None:
    refusals = result["refusals"]
    size = state_bytes(paths.live_db)
    result["database_bytes"] = size_of(paths.live_db) + size_of(paths.live_db + "-wal")
    limit, need = tmpfs_sizes(size, config, total)
    result["tmpfs_bytes"] = limit
    if need > total // 4 and not config.tmpfs_mib:
        refusals.append(
            f"the state needs {need // MIB} MiB of RAM, which is more than a quarter of {total // MIB} MiB; "
            "ram_state_tmpfs_mib overrides"
        )
    elif limit < need:
        refusals.append(f"ram_state_tmpfs_mib is {limit // MIB}; the state needs {need // MIB} MiB")
    if available < need + 64 * MIB:
        refusals.append(
            f"{available // MIB} MiB of RAM are available; {(need + 64 * MIB) // MIB} MiB are needed"
        )
    folder = paths.store
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    disk = os.statvfs(folder)
    free, wanted = disk.f_bavail * disk.f_frsize, 4 * size + DISK_RESERVE
    if free < wanted:
        refusals.append(f"{folder} has {free // MIB} MiB free; the store needs {wanted // MIB} MiB")
    try:
        live = open_live(paths)
        try:
            strange = unknown_schema(live) or unknown_file(paths.live_db)
            if strange:
                refusals.append(
                    f"{node_name()}: {paths.live_db}: {strange}. That is not the database of the daemon that this version of "
                    "pveguard knows, and what of it would be saved is not known: update pveguard, or leave the state on disk "
                    "(ram_state_enabled: false)"
                )
                return
            problems, rows = check_connection(live, result["member"])
            if problems:
                refusals.append(f"the database does not pass verification: {problems[0]}")
                return
            result["root_version"] = root_version(rows)
            resources = ha_resources(live)
            if resources and not args.allow_ha:
                refusals.append(
                    f"HA manages {', '.join(resources[:5])}: its fencing needs the state to survive on every "
                    "node; remove the resources (ha-manager remove) or set ram_state_allow_ha: true"
                )
            for path, lock in locked_guests(live, node_name()):
                refusals.append(f"/etc/pve/{path} is locked ({lock}): wait for the end of that task")
            conf = (content_of(live, "corosync.conf") or b"").decode("utf-8", "replace")
            if re.search(r"^\s*two_node\s*:\s*1", conf, re.MULTILINE):
                result["warnings"].append(
                    "corosync.conf has two_node: 1: both halves of a split may write, and the higher version "
                    "wins later"
                )
        finally:
            live.close()
    except (sqlite3.Error, StateError) as error:
        refusals.append(str(error))


def unknown_file(path: str) -> str | None:
    """What of the file of a database that a daemon has open is not as it is known, None when all of it is."""
    with open(path, "rb") as handle:
        head = handle.read(20)
    page = int.from_bytes(head[16:18], "big")
    if page != PAGE:
        return f"its page size is {65536 if page == 1 else page}, not {PAGE}"
    if head[18:20] != b"\2\2":
        return "it is not in journal mode WAL"
    return None


def offline_members(paths: Paths, args: Namespace) -> list[str]:
    """Refusals because of members that are down: with this daemon down as well the others may lose quorum."""
    if args.allow_offline_members:
        return []
    members = members_file(paths)
    if not daemon_mode(paths, members).met:
        return [
            f"which members are online is not known here, for {NOT_MET}. The daemon of one node is taken down only while all "
            "others are up; start corosync, or set ram_state_allow_offline_members: true"
        ]
    nodes = members.get("nodelist")
    nodes = nodes if isinstance(nodes, dict) else {}
    down = sorted(name for name, node in nodes.items() if not (isinstance(node, dict) and node.get("online")))
    if not down:
        return []
    return [
        f"not online: {', '.join(down)}. The daemon of one node is taken down only while all others are up; start "
        "them, or set ram_state_allow_offline_members: true"
    ]


def _preflight_host(paths: Paths, args: Namespace, result: dict[str, Any]) -> None:
    name = node_name()
    address = resolves(name)
    if address is None or address.startswith("127.") or address == "::1":
        result["refusals"].append(
            f"the host name {name} resolves to {address or 'nothing'}: the daemon would not start again; "
            "put its address into /etc/hosts"
        )
    if not pve_mounted(paths):
        result["refusals"].append(f"{paths.pve} is not mounted by the daemon")
        return
    mode = daemon_mode(paths, members_file(paths))
    why = no_quorum(mode)
    if why:
        result["refusals"].append(why)
    if mode.met:
        result["refusals"].extend(offline_members(paths, args))


def program_exists(paths: Paths, name: str) -> bool:
    folders = ["/usr/bin", "/usr/sbin", *filter(None, os.environ.get("PATH", "").split(":"))]
    return any(os.path.exists(paths.at(f"{folder}/{name}")) for folder in folders)


def noswap_supported() -> bool:
    """tmpfs knows noswap since Linux 6.4."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return match is not None and (int(match.group(1)), int(match.group(2))) >= (6, 4)


def cmd_preflight(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    if args.config:
        config = given_config(args.config)
    result = preflight(paths, config, args)
    result["message"] = "; ".join(result["refusals"]) or "ready"
    if result["refusals"]:
        result["_exit"] = EXIT_REFUSED
    return result


def cmd_check_config(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    if args.config:
        given_config(args.config)
    return {"message": "the settings are valid"}


def cmd_check_login(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    result = check_login(paths, args.connection, fallback=args.login_fallback, write=args.login_fallback)
    result["message"] = result["how"]
    if not result["independent"]:
        result["_exit"] = EXIT_REFUSED
    return result
