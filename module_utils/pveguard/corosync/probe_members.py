"""Which member of a cluster is a probe: a plain Debian machine that runs corosync and the cluster file system only.

What the inventory says of a host that it describes. Of others what the cluster says, see :func:`is_listed`. A node id says
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..formats.corosync_conf import short_name

#: The group of the inventory that makes a host a probe.
GROUP = "pve_probe"
#: What makes a machine more than a probe, and what it would do on a cluster.
FOREIGN = {
    "pve-manager": "its services would work on the cluster as those of a node",
    "pve-ha-manager": "its LRM would write to the cluster and arm a watchdog",
}


def is_described(variables: Mapping[str, Any]) -> bool:
    """Whether the inventory has the host of these variables as a probe."""
    return GROUP in (variables.get("group_names") or ())


def is_listed(member: Mapping[str, Any]) -> bool:
    """Whether a member of corosync_info's ``members`` is a probe, as far as the cluster tells.

    It has no vote, and nothing of a node of Proxmox VE on /etc/pve; or it has the placeholder of a certificate there.
    """
    return bool(member.get("probe"))


def is_one(facts: Mapping[str, Any] | None) -> bool:
    """Whether the node of these facts (node_info) is a member that is a probe. With Proxmox VE's services it is none."""
    corosync, packages = (facts or {}).get("corosync") or {}, (facts or {}).get("packages") or {}
    if any(packages.get(package) for package in FOREIGN):
        return False
    name = short_name(str((facts or {}).get("hostname") or ""))
    members = corosync.get("members") or []
    own = corosync.get("node_id")
    return any(is_listed(each) for each in members if (each.get("id") == own if own is not None else each.get("name") == name))


def members_up(corosync: Mapping[str, Any]) -> tuple[int, int]:
    """How many members the cluster of these facts of corosync_info has, and how many of them are up; probes are not counted."""
    probes = ids(corosync)
    members = sum(not is_listed(each) for each in corosync.get("members") or [])
    return members, sum(number not in probes for number in corosync.get("live_member_ids") or [])


def ids(corosync: Mapping[str, Any]) -> set[int]:
    """Node ids of the probes among the members of these facts of corosync_info."""
    return {int(each["id"]) for each in corosync.get("members") or [] if is_listed(each) and each.get("id") is not None}
