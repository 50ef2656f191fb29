# SPDX-License-Identifier: Apache-2.0
"""What is judged about the surroundings of the write diet: logs in RAM, and the file system that the database ends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.findings import PROBLEM, WARNING, Finding, check
from .measures import ROLE, SURROUNDINGS

#: From this fill on a file system of logs is a problem: a full one stops tasks, and HA takes a guest for failed.
FULL_PERCENT = 80
#: Device bytes of one synced transaction of 600 bytes in SQLite's WAL, 600 of them on a loop device (docs/write-diet.md).
EXT4_KIB, BTRFS_KIB, NODATACOW_KIB = 31, 130, 119

RAM_LOGS = check(
    "write-diet-logs-in-ram",
    (WARNING, PROBLEM),
    f"Logs are in RAM (log2ram or the like): a power cut loses them, and a full one ({FULL_PERCENT} % and more is a problem) "
    "stops tasks",
    "Put them back on disk, and have them written less often.",
    "write_diet_writeback: true, and systemctl disable --now log2ram",
)
SYNC_DISABLED = check(
    "write-diet-sync-disabled",
    PROBLEM,
    "ZFS has sync=disabled below the database of pmxcfs, or where it is saved to: a power cut loses configuration that was "
    "reported as written",
    "Give the dataset its default back.",
    "zfs inherit sync DATASET",
)
ON_BTRFS = check(
    "write-diet-database-on-btrfs",
    WARNING,
    f"The database of pmxcfs is on btrfs without nodatacow: {BTRFS_KIB} KiB a transaction were measured, {EXT4_KIB} on ext4",
    "Move the state to RAM, which leaves the changes of configuration; nodatacow alone saves little.",
    "ram_state_enabled: true, then make site",
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts of ``node_info``."""
    return findings((node.get(ROLE) or {}).get(SURROUNDINGS) or {})


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(surroundings: Mapping[str, Any]) -> list[Finding]:
    """``surroundings``: as the core of that name looks at them."""
    found = []
    logs = sorted(surroundings.get("ram_logs") or [], key=lambda each: -(each.get("fill_percent") or 0))
    if logs:
        shown = ", ".join(f"{each['point']} ({each['by']}, {_fill(each['fill_percent'])})" for each in logs)
        full = (logs[0].get("fill_percent") or 0) >= FULL_PERCENT
        by = logs[0]["by"]
        found.append(
            RAM_LOGS(
                f"logs are in RAM: {shown}",
                severity=PROBLEM if full else WARNING,
                means="a power cut loses them, and a full one stops tasks",
                code=None if by == "log2ram" else "write_diet_writeback: true",
            )
        )
    database = surroundings.get("database") or {}
    if database.get("zfs_sync") == "disabled":
        found.append(
            SYNC_DISABLED(
                f"ZFS has sync=disabled below {database['durable_path']}",
                means="a power cut loses configuration that was reported as written",
            )
        )
    if database.get("filesystem") == "btrfs" and not database.get("in_memory") and database.get("nodatacow") is False:
        found.append(
            ON_BTRFS(
                f"the database is on btrfs without nodatacow ({database['path']})",
                means=f"about {BTRFS_KIB} KiB a transaction reach the disk, {NODATACOW_KIB} with nodatacow, {EXT4_KIB} on ext4",
            )
        )
    return found


def _fill(percent: int | None) -> str:
    return "fill not known" if percent is None else f"{percent} % full"
