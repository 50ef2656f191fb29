# SPDX-License-Identifier: Apache-2.0
"""Tasks of Proxmox VE that run on this node. One under way could not read or write its configuration while /etc/pve is away.

Imports little, as programs on a node start with it.
"""

from __future__ import annotations

from .places import TASKS

#: Below the root of the node.
ACTIVE = TASKS.lstrip("/")


def running(file: str) -> list[str]:
    """The tasks in a list of them (:data:`ACTIVE`) that run now, each as its UPID (UPID:node:pid:pstart:start:type:id:user:,
    hex).
    """
    try:
        with open(file, encoding="utf-8", errors="replace") as handle:
            lines = handle.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if not words or len(words) > 2 or not words[0].startswith("UPID:"):
            continue  # a finished task has its end time and status behind it
        fields = words[0].split(":")
        try:
            with open(f"/proc/{int(fields[2], 16)}/stat", encoding="utf-8", errors="replace") as handle:
                # Field 22: another process may have that number by now.
                alive = int(handle.read().rpartition(")")[2].split()[19]) == int(fields[3], 16)
        except (OSError, ValueError, IndexError):
            continue
        if alive:
            found.append(words[0])
    return found


def refusal(tasks: list[str]) -> str | None:
    """Why the daemon must not be stopped now; None where nothing runs."""
    if not tasks:
        return None
    return f"{len(tasks)} Proxmox VE task(s) run on this node, the first is {tasks[0]}: wait for their end and run again"
