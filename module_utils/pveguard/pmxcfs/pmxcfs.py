"""What a node's cluster file system holds, read from its SQLite database without touching /etc/pve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..base import node_name
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..formats import section_config
from . import daemon_mode, left_nodes, live_database, mount, places
from . import tree as tree_core

#: Below the root of the node.
DATABASE = Path(places.DATABASE.lstrip("/"))
MOUNT = Path(places.MOUNT.lstrip("/"))

#: Storages that the Proxmox installer itself defines; they say nothing about what an operator did.
STOCK_STORAGES = frozenset({"local", "local-lvm", "local-zfs", "local-btrfs"})


def noise(patterns: Iterable[str] | None = None) -> tree_core.Noise:
    """What is noise by a list of patterns, the default one where None is given. Raises PveguardError for a bad pattern."""
    try:
        return tree_core.Noise() if patterns is None else tree_core.Noise(patterns)
    except ValueError as error:
        raise PveguardError(f"ram_state_noise: {error}") from error


def read_tree(database: Path) -> tuple[int, tree_core.Entries]:
    """As :func:`tree.read_tree`; raises PveguardError when the database cannot be read as one."""
    try:
        return tree_core.read_tree(str(database))
    except live_database.Unreadable as error:
        raise PveguardError(str(error)) from error


def custom_storages(storage_cfg: str) -> list[str]:
    """Storage ids of a storage.cfg beyond those the installer defines."""
    names = [section.name for section in section_config.parse(storage_cfg).sections]
    return [name for name in names if name not in STOCK_STORAGES]


def custom_users(user_cfg: str) -> list[str]:
    """Users, groups, pools, roles, tokens and ACLs of a user.cfg beyond the user root@pam, as their first two fields."""
    found = []
    for line in user_cfg.splitlines():
        kind, _, rest = line.strip().partition(":")
        name = rest.split(":", 1)[0]
        if kind in ("user", "group", "pool", "role", "acl", "token") and (kind, name) != ("user", "root@pam"):
            found.append(f"{kind}:{name}")
    return found


def mounted(root: Path = Path("/")) -> bool:
    """True when a FUSE file system is mounted on /etc/pve."""
    return mount.is_fuse(places.MOUNT, mount.mounts(str(root)))


def collect(
    root: Path = Path("/"), run: Run = real_run, patterns: Iterable[str] | None = None
) -> dict[str, Any]:
    """Facts of the daemon and its data. ``error`` says why something is unknown.

    ``patterns``: what is noise, as ``ram_state_noise``; the default list where None is given. Raises PveguardError for a bad one
    only.

    Keys: mounted, writable (bool: it answers, and its mode lets it be written); mode (``down``, ``local`` or ``cluster``);
    quorate (bool, None when local, down or unknown);
    met_corosync (whether Corosync has run since a daemon in cluster mode started,
    None when local, down or unknown); root_version (int or None); tree_sha256 (str or None, noise aside); guests (list of
    int); storage, users, has_corosync_conf (bool); storages, extra_users (what they were judged by), these six None where the
    database is there and not understood; database_bytes (int or None: of the file and its log, where content may lie for
    long); member_addresses (``{node: address}`` as the members tell each other); left_nodes (directories of nodes that are
    gone, see :mod:`left_nodes`); error.
    """
    facts: dict[str, Any] = {
        "mounted": mounted(root),
        "writable": False,
        "mode": "down",
        "quorate": None,
        "met_corosync": None,
        "root_version": None,
        "tree_sha256": None,
        "guests": [],
        "storage": False,
        "users": False,
        "has_corosync_conf": False,
        "storages": [],
        "extra_users": [],
        "database_bytes": None,
        "member_addresses": {},
        "left_nodes": [],
        "error": None,
    }
    _collect_database(facts, root, noise(patterns))
    if facts["mounted"]:
        has_conf = None if facts["root_version"] is None else facts["has_corosync_conf"]
        seen = daemon_mode.look(root, has_conf, run)
        facts["mode"], facts["quorate"], facts["writable"] = seen.mode, seen.quorate, seen.writable
        facts["met_corosync"] = seen.met_corosync
        others = seen.members.get("nodelist") or {}
        facts["member_addresses"] = {name: each["ip"] for name, each in others.items() if "ip" in each}
        facts["error"] = "; ".join(filter(None, (seen.error, facts["error"]))) or None
    return facts


def _collect_database(facts: dict[str, Any], root: Path, noise: tree_core.Noise) -> None:
    database = root / DATABASE
    try:
        facts["database_bytes"] = live_database.whole_size(str(database))
    except OSError:
        return
    try:
        version, tree = read_tree(database)
    except PveguardError as error:
        # Not known is not the same as nothing.
        facts.update(dict.fromkeys(("guests", "storages", "extra_users", "storage", "users", "has_corosync_conf")))
        facts["error"] = str(error)
        return
    facts["root_version"] = version
    facts["tree_sha256"] = tree_core.sha256_of(tree, noise)
    facts["guests"] = tree_core.guests_in(tree)
    facts["storages"] = custom_storages(_text(tree, "storage.cfg"))
    facts["extra_users"] = custom_users(_text(tree, "user.cfg"))
    facts["storage"] = bool(facts["storages"])
    facts["users"] = bool(facts["extra_users"])
    facts["has_corosync_conf"] = "corosync.conf" in tree
    facts["left_nodes"] = left_nodes.of_tree(tree, node_name.own())


def _text(tree: Mapping[str, tuple[int, bytes]], path: str) -> str:
    return tree.get(path, (8, b""))[1].decode("utf-8", "replace")
