"""What a node's cluster file system holds, read from its SQLite database without touching /etc/pve."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import daemon_mode
from .errors import PveguardError
from .run import Run
from .run import run as real_run

DATABASE = Path("var/lib/pve-cluster/config.db")
MOUNT = Path("etc/pve")

#: Paths whose content is a heartbeat, a lock or a file in the middle of being replaced: no operator misses them.
NOISE = (
    r"nodes/[^/]+/lrm_status",
    r"ha/manager_status",
    r"priv/lock(?:/.*)?",
    r"(?:.*/)?[^/]+\.tmp\.[0-9]+",
)
_NOISE = re.compile("(?:" + "|".join(NOISE) + r")\Z")

#: Storages that the Proxmox installer itself defines; they say nothing about what an operator did.
STOCK_STORAGES = frozenset({"local", "local-lvm", "local-zfs", "local-btrfs"})

Row = tuple[int, int, int, int, int, int, str, bytes | None]


def is_noise(path: str) -> bool:
    """True for a path below /etc/pve (no leading slash) that carries no configuration."""
    return bool(_NOISE.match(path))


def read_tree(database: Path) -> tuple[int, dict[str, tuple[int, bytes]]]:
    """``(root version, {path: (type, data)})`` of a database; type 4 is a directory, 8 a file.

    One read transaction. Nothing is written: a database whose daemon is not running is read with ``immutable=1`` when it
    has no WAL, and refused otherwise (a reader would have to create the shared-memory file).
    Raises PveguardError when the database cannot be read as one.
    """
    wal = Path(f"{database}-wal")
    shm = Path(f"{database}-shm")
    if not database.exists():
        raise PveguardError(f"{database} does not exist")
    if shm.exists():
        mode = "mode=ro"
    elif wal.exists() and wal.stat().st_size > 0:
        raise PveguardError(f"{database} has a write-ahead log but no running daemon; start pve-cluster to read it")
    else:
        mode = "immutable=1"
    try:
        connection = sqlite3.connect(f"file:{database}?{mode}", uri=True, timeout=5)
        try:
            rows: list[Row] = connection.execute(
                "SELECT inode, parent, version, writer, mtime, type, name, data FROM tree"
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise PveguardError(f"{database} cannot be read: {error}") from error
    by_inode = {row[0]: row for row in rows}
    root = by_inode.pop(0, None)
    paths: dict[int, str] = {}

    def path_of(inode: int, depth: int = 0) -> str:
        if inode == 0:
            return ""
        if inode in paths:
            return paths[inode]
        row = by_inode.get(inode)
        if row is None or depth > 64:
            raise PveguardError(f"{database} is damaged: row {inode} is missing or in a loop")
        above = path_of(row[1], depth + 1)
        paths[inode] = f"{above}/{row[6]}" if above else row[6]
        return paths[inode]

    tree = {path_of(inode): (row[5], row[7] or b"") for inode, row in by_inode.items()}
    return (root[2] if root else 0), tree


def tree_sha256(tree: Mapping[str, tuple[int, bytes]]) -> str:
    """One hash of every path, type and content, noise aside; equal on all members that are in sync."""
    digest = hashlib.sha256()
    for path in sorted(tree):
        if is_noise(path):
            continue
        kind, data = tree[path]
        digest.update(f"{path}\0{kind}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def guest_ids(paths: Iterable[str]) -> list[int]:
    """Ids of the guests with a configuration file, in order."""
    found = (re.fullmatch(r"nodes/[^/]+/(?:qemu-server|lxc)/([0-9]+)\.conf", path) for path in paths)
    return sorted(int(match.group(1)) for match in found if match)


def custom_storages(storage_cfg: str) -> list[str]:
    """Storage ids of a storage.cfg beyond those the installer defines."""
    ids = re.findall(r"^[a-z0-9]+:\s*(\S+)", storage_cfg, flags=re.MULTILINE)
    return [name for name in ids if name not in STOCK_STORAGES]


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
    try:
        lines = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        left, _, right = line.partition(" - ")
        if left.split()[4] == "/etc/pve" and right.split()[0].startswith("fuse"):
            return True
    return False


def collect(root: Path = Path("/"), run: Run = real_run) -> dict[str, Any]:
    """Facts of the daemon and its data; never raises. ``error`` says why something is unknown.

    Keys: mounted, writable (bool: it answers, and its mode lets it be written); mode (``down``, ``local`` or ``cluster``);
    quorate (bool, None when local or down); met_corosync (whether Corosync has run since a daemon in cluster mode started,
    None when local, down or unknown); root_version (int or None); tree_sha256 (str or None, noise aside); guests (list of
    int); storage, users, has_corosync_conf (bool); storages, extra_users (what they were judged by); database_bytes (int or
    None); member_addresses (``{node: address}`` as the members tell each other); error.
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
        "error": None,
    }
    _collect_database(facts, root)
    if facts["mounted"]:
        has_conf = None if facts["root_version"] is None else facts["has_corosync_conf"]
        seen = daemon_mode.look(root, has_conf, run)
        facts["mode"], facts["quorate"], facts["writable"] = seen.mode, seen.quorate, seen.writable
        facts["met_corosync"] = seen.met_corosync
        others = seen.members.get("nodelist") or {}
        facts["member_addresses"] = {name: each["ip"] for name, each in others.items() if "ip" in each}
        facts["error"] = "; ".join(filter(None, (seen.error, facts["error"]))) or None
    return facts


def _collect_database(facts: dict[str, Any], root: Path) -> None:
    database = root / DATABASE
    try:
        facts["database_bytes"] = os.stat(database).st_size
    except OSError:
        return
    try:
        version, tree = read_tree(database)
    except PveguardError as error:
        facts["error"] = str(error)
        return
    facts["root_version"] = version
    facts["tree_sha256"] = tree_sha256(tree)
    facts["guests"] = guest_ids(tree)
    facts["storages"] = custom_storages(_text(tree, "storage.cfg"))
    facts["extra_users"] = custom_users(_text(tree, "user.cfg"))
    facts["storage"] = bool(facts["storages"])
    facts["users"] = bool(facts["extra_users"])
    facts["has_corosync_conf"] = "corosync.conf" in tree


def _text(tree: Mapping[str, tuple[int, bytes]], path: str) -> str:
    return tree.get(path, (8, b""))[1].decode("utf-8", "replace")
