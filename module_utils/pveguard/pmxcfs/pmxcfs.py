"""What a node's cluster file system holds, read from its SQLite database without touching /etc/pve."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..base import node_name
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..formats import section_config
from . import daemon_mode, left_nodes, live_database

DATABASE = Path("var/lib/pve-cluster/config.db")
MOUNT = Path("etc/pve")

#: Paths whose content is a heartbeat, a lock or a file in the middle of being replaced: no operator misses them.
NOISE = (
    r"nodes/[^/]+/lrm_status",
    r"ha/manager_status",
    r"priv/lock",
    r"(?:.*/)?[^/]+\.tmp\.[0-9]+",
)
_NOISE = re.compile("(?:" + "|".join(NOISE) + r")(?:/.*)?\Z", re.DOTALL)

#: The daemon takes a folder of nodes/ for a node's, and a file in it for a guest's, only with such names.
_GUEST = re.compile(r"nodes/[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?/(?:qemu-server|lxc|openvz)/([1-9][0-9]*)\.conf")

#: Storages that the Proxmox installer itself defines; they say nothing about what an operator did.
STOCK_STORAGES = frozenset({"local", "local-lvm", "local-zfs", "local-btrfs"})


def is_noise(path: str) -> bool:
    """True for a path below /etc/pve (no leading slash) that carries no configuration, or lies in a folder that does not."""
    return bool(_NOISE.match(path))


def read_tree(database: Path) -> tuple[int, dict[str, tuple[int, bytes]]]:
    """``(root version, {path: (type, data)})`` of a database; type 4 is a directory, 8 a file.

    Of one consistent state, whether or not the daemon runs, and without an effect on it. Bytes of a name that are not UTF-8
    come as surrogates. Raises PveguardError when the database cannot be read as one.
    """

    try:
        return live_database.look(str(database), live_database.tree_in)
    except live_database.Unreadable as error:
        # What is wrong with the tree does not name the file.
        text = str(error)
        raise PveguardError(text if text.startswith(str(database)) else f"{database}: {text}") from error


def tree_sha256(tree: Mapping[str, tuple[int, bytes]]) -> str:
    """One hash of every path, type and content, noise aside; equal on all members that are in sync."""
    digest = hashlib.sha256()
    for path in sorted(tree):
        if is_noise(path):
            continue
        kind, data = tree[path]
        digest.update(f"{path}\0{kind}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.hexdigest()


def guest_ids(paths: Iterable[str]) -> list[int]:
    """Ids of the guests with a configuration file, in order, as the daemon counts them."""
    found = (_GUEST.fullmatch(path) for path in paths)
    return sorted(int(match.group(1)) for match in found if match)


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
    facts["tree_sha256"] = tree_sha256(tree)
    facts["guests"] = guest_ids(tree)
    facts["storages"] = custom_storages(_text(tree, "storage.cfg"))
    facts["extra_users"] = custom_users(_text(tree, "user.cfg"))
    facts["storage"] = bool(facts["storages"])
    facts["users"] = bool(facts["extra_users"])
    facts["has_corosync_conf"] = "corosync.conf" in tree
    facts["left_nodes"] = left_nodes.of_tree(tree, node_name.own())


def _text(tree: Mapping[str, tuple[int, bytes]], path: str) -> str:
    return tree.get(path, (8, b""))[1].decode("utf-8", "replace")
