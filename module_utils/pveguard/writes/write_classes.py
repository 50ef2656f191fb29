"""What a write to the cluster file system is for, in an operator's words, from the path of the file alone.

Paths are relative to /etc/pve. A temporary file (``NAME.tmp.PID``) belongs to the file it is going to replace.
The locks of HA count as HA, not as locks: they go away with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..disk import block_writes

_TEMPORARY = re.compile(r"\.tmp\.[0-9]+\Z")

#: class -> label for a class in which more than one kind of file was written.
LABELS = {
    "ha": "HA",
    "locks": "locks",
    "logs": "logs",
    "guests": "guest configuration",
    "storage": "storage configuration",
    "users": "users, permissions and login keys",
    "certificates": "certificates and host keys",
    "sdn": "software-defined network",
    "firewall": "firewall rules",
    "corosync": "corosync.conf",
    "jobs": "backup and replication jobs",
    "other": "other files",
    "unattributed": "not attributed to a file",
}


@dataclass(frozen=True)
class Kind:
    """A kind of file: ``name`` is one of :data:`LABELS`, ``label`` says it more closely."""

    name: str
    label: str


UNATTRIBUTED = Kind("unattributed", LABELS["unattributed"])
_OTHER = Kind("other", LABELS["other"])

# The first that matches the whole path. NODE stands for a node's directory.
_RULES = (
    (r"NODE/lrm_status", "ha", "HA heartbeat (lrm_status)"),
    (r"ha/manager_status", "ha", "HA manager status (manager_status)"),
    (r"priv/lock/(ha_agent_[^/]+_lock|ha_manager_lock)", "ha", "locks of HA"),
    (r"ha(/.+)?", "ha", "HA configuration and commands"),
    (r"priv/lock/file-(jobs|replication)_cfg", "locks", "locks of the scheduler (pvescheduler)"),
    (r"priv/lock(/.+)?", "locks", "locks"),
    (r"\.clusterlog", "logs", "cluster log"),
    (r"NODE/tasks(/.+)?", "logs", "task logs"),
    (r"(.+/)?[^/]+\.log", "logs", "logs"),
    (r"NODE/qemu-server(/.+)?", "guests", "virtual machines"),
    (r"NODE/(lxc|openvz)(/.+)?", "guests", "containers"),
    (r"(virtual-guest|mapping)(/.+)?", "guests", "guest profiles and resource mappings"),
    (r"ceph\.conf|ceph(/.+)?|priv/ceph(/.+|\..+)?", "storage", "Ceph configuration and keys"),
    (r"storage\.cfg|priv/storage(/.+)?", "storage", "storage configuration"),
    (r"authkey\.pub(\.old)?|priv/authkey\.key", "users", "login ticket keys"),
    (
        r"(user|domains)\.cfg|priv/(shadow|token|tfa)\.cfg|priv/(ldap|realm)(/.+)?",
        "users",
        "users and permissions",
    ),
    (r"priv/(authorized_keys|known_hosts)|NODE/ssh_known_hosts", "certificates", "ssh keys"),
    (r"priv/acme(/.+)?", "certificates", "ACME accounts and certificates"),
    (r"pve-(root-ca|www)\..+|priv/pve-root-ca\..+", "certificates", "certificates of the cluster"),
    (r"NODE/(pve-ssl|pveproxy-ssl)\..+", "certificates", "certificates of a node"),
    (r"sdn(/.+)?", "sdn", "software-defined network"),
    (r"firewall(/.+)?|NODE/host\.fw", "firewall", "firewall rules"),
    (r"corosync\.conf(\.new|\.bak)?", "corosync", "corosync.conf"),
    (r"jobs\.cfg|replication\.cfg|vzdump\.cron", "jobs", "backup and replication jobs"),
)
_COMPILED = tuple(
    (re.compile(pattern.replace("NODE", r"nodes/[^/]+"), re.DOTALL), Kind(name, label))
    for pattern, name, label in _RULES
)

#: Names that only locks have; all locks of the cluster file system are directories in priv/lock.
LOCK_NAME = re.compile(r"file-[^/]+_(cfg|conf)|ha_agent_[^/]+_lock|ha_manager_lock")


def final_path(path: str) -> str:
    """The path without the suffix of a temporary file."""
    return _TEMPORARY.sub("", path)


def is_temporary(name: str) -> bool:
    """True for the name of a file that is going to replace another."""
    return bool(_TEMPORARY.search(name))


def classify(path: str | None) -> Kind:
    """The kind of the file ``path`` (relative to /etc/pve); None is a transaction without a known file."""
    if path is None:
        return UNATTRIBUTED
    path = final_path(path)
    return next((kind for pattern, kind in _COMPILED if pattern.fullmatch(path)), _OTHER)


def by_class(
    files: Iterable[Mapping[str, Any]], transactions: int | None, seconds: float | None
) -> list[dict[str, Any]]:
    """One entry per class, ``{class, label, transactions, transactions_per_minute, exact}``, most first.

    ``files`` have ``class``, ``label``, ``transactions_at_least`` and ``exact``; ``transactions`` is the number in
    all. What is left of it is ``unattributed``, an upper bound unless there is nothing left (no entry then).
    ``exact`` false: a lower bound.
    """
    sums: dict[str, int] = {}
    labels: dict[str, set[str]] = {}
    exact: dict[str, bool] = {}
    for file in files:
        name = str(file["class"])
        sums[name] = sums.get(name, 0) + int(file["transactions_at_least"])
        labels.setdefault(name, set()).add(str(file["label"]))
        exact[name] = exact.get(name, True) and bool(file["exact"])
    left = (transactions or 0) - sum(sums.values())
    if left > 0:
        sums["unattributed"], labels["unattributed"], exact["unattributed"] = (
            left,
            {UNATTRIBUTED.label},
            False,
        )
    found = [
        {
            "class": name,
            "label": next(iter(labels[name])) if len(labels[name]) == 1 else LABELS[name],
            "transactions": count,
            "transactions_per_minute": block_writes.per_minute(count, seconds),
            "exact": exact[name],
        }
        for name, count in sums.items()
    ]
    return sorted(found, key=lambda entry: (-int(str(entry["transactions"])), str(entry["class"])))


def by_writer(
    files: Iterable[Mapping[str, Any]], transactions: int | None, seconds: float | None
) -> list[dict[str, Any]]:
    """One entry per writing node, ``{node_id, node, transactions, transactions_per_minute, exact}``, most first.

    A node's count is exact when every transaction is attributed to a file and each of those has a known writer.
    """
    sums: dict[int | None, int] = {}
    names: dict[int | None, str | None] = {}
    every_file_exact = True
    for file in files:
        writer = file["writer"]
        sums[writer] = sums.get(writer, 0) + int(file["transactions_at_least"])
        names[writer] = file["node"]
        every_file_exact = every_file_exact and bool(file["exact"])
    exact = every_file_exact and None not in sums and transactions == sum(sums.values())
    found = [
        {
            "node_id": writer,
            "node": names[writer],
            "transactions": count,
            "transactions_per_minute": block_writes.per_minute(count, seconds),
            "exact": exact,
        }
        for writer, count in sums.items()
        if writer is not None or names[writer] is not None
    ]
    return sorted(found, key=lambda entry: (-int(str(entry["transactions"])), str(entry["node_id"])))
