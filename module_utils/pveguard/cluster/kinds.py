"""What kind of host it is: the one place that decides it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..corosync import probe_members

#: A node of Proxmox VE, or one that is to have its cluster file system at the end of this run.
NODE = "node"
#: A plain Debian machine that watches a cluster as corosync and the cluster file system only; nothing depends on it.
PROBE = "probe"
#: A backup server by itself.
BACKUP = "backup"
#: A Debian machine with none of these.
PLAIN = "plain"

KINDS = (NODE, PROBE, BACKUP, PLAIN)


def kind(node: Mapping[str, Any] | None, groups: Iterable[str] = (), action: str = "") -> str:
    """One of :data:`KINDS`. ``node``: the facts of node_info, ``groups``: the host's groups in the inventory, ``action``: what
    its plan does with it (core ``plan``), empty where there is none yet.

    A probe is one by the inventory, by its plan, or as its cluster lists it.
    """
    packages = (node or {}).get("packages") or {}
    if probe_members.GROUP in groups or action == "probe" or probe_members.is_one(node):
        return PROBE
    if packages.get("pve-cluster") or action in ("bootstrap", "join"):
        return NODE
    return BACKUP if packages.get("proxmox-backup-server") else PLAIN
