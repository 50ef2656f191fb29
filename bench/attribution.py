#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who writes on an idle cluster, as HA goes off node by node: the published figures beside what pmxcfs_writes says.

On a cluster of the lab that is not protected yet and whose HA runs (profile pve). Every node is observed at once, by
both methods of the module one after the other; then one node more does the step of the role ha (its module ha_services:
LRM, CRM), in the order of the role. After the last, watchdog-mux goes off everywhere. HA runs again at the end.

    python -m lab --name wear up --fresh --profile pve
    PVEGUARD_LAB=wear ansible-playbook -i inventory/lab playbooks/join.yml
    PVEGUARD_LAB=wear python bench/attribution.py [--seconds 60] [--json]

Exits 1 when a figure is not the published one (a heartbeat more or less in a window is allowed, and one run of the
scheduler for the locks), or when the writing nodes are not named; 2 when the nodes cannot be observed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import ad_hoc

#: One idle LRM: three transactions every five seconds (published: 108, 72, 36, 0 a minute as three are stopped).
LRM_PER_MINUTE = 36
#: pvescheduler: two lock directories a node and a minute, each made and removed.
LOCK_FILES_PER_MINUTE = 2
MANAGERS = "pve-ha-lrm.service pve-ha-crm.service"


def step(inventory: str, running: Sequence[str], seconds: int, method: str) -> dict[str, dict[str, Any]]:
    """One window on every node; {node: figures}."""
    results = ad_hoc.run("all", inventory, "pmxcfs_writes", f"window_seconds={seconds} method={method}")
    found = {}
    for node, result in results.items():
        window = result["window"]
        minutes = window["seconds"] / 60
        per_class = {entry["class"]: entry["transactions"] for entry in window["classes"]}
        locks = [file for file in window["files"] if file["class"] == "locks"]
        ha = [file for file in window["files"] if file["path"].endswith("/lrm_status")]
        found[node] = {
            "managers": len(running),
            "method": method,
            "seconds": window["seconds"],
            "transactions_per_minute": round(window["transactions"] / minutes, 1),
            "ha_per_minute": round(per_class.get("ha", 0) / minutes, 1),
            "lock_transactions_per_minute": round(per_class.get("locks", 0) / minutes, 1),
            "lock_files_per_minute": round(sum(f["changes"] for f in locks) / minutes, 1),
            "writers": sorted({str(file["node"]) for file in ha}),
            "exact": all(file["exact"] for file in window["files"]),
            "journal": window["journal"],
        }
    return found


def problems(found: dict[str, dict[str, Any]], running: Sequence[str], names: Sequence[str]) -> list[str]:
    """What is not as published."""
    wrong = []
    for node, figures in found.items():
        minutes = figures["seconds"] / 60
        wanted = LRM_PER_MINUTE * len(running)
        # One heartbeat of each manager more or less falls into a window.
        if abs(figures["ha_per_minute"] - wanted) * minutes > 3 * len(running):
            wrong.append(f"{node}: {figures['ha_per_minute']} transactions a minute of HA, published {wanted}")
        if figures["writers"] != sorted(running):
            wrong.append(f"{node}: lrm_status is written by {figures['writers']}, not {sorted(running)}")
        if figures["method"] == "journal":
            locks = 2 * LOCK_FILES_PER_MINUTE * len(names)
            if abs(figures["lock_transactions_per_minute"] - locks) * minutes > locks:
                wrong.append(
                    f"{node}: {figures['lock_transactions_per_minute']} transactions a minute of locks, published {locks}"
                )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--inventory", default="inventory/lab")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    names: list[str] = []
    try:
        names = list(ad_hoc.run("all", options.inventory, "ansible.builtin.command", f"systemctl is-active {MANAGERS}"))
        running = list(names)
        while True:
            for method in ("database", "journal"):
                found = step(options.inventory, running, options.seconds, method)
                wrong += problems(found, running, names)
                rows += [{"node": node, **figures} for node, figures in found.items()]
            if not running:
                break
            ad_hoc.run(running.pop(0), options.inventory, "ha_services", {"state": "disabled", "part": "managers"})
            if not running:
                ad_hoc.run("all", options.inventory, "ha_services", {"state": "disabled", "part": "watchdog"})
    except ad_hoc.ModuleFailed as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        if names:
            ad_hoc.run("all", options.inventory, "ha_services", {"state": "restored"})

    if options.json:
        print(json.dumps({"rows": rows, "problems": wrong}, indent=2))
    else:
        print("LRMs method   node    HA/min (published)  locks/min  all/min  written by")
        for row in rows:
            print(
                f"{row['managers']:4} {row['method']:8} {row['node']:8}"
                f"{row['ha_per_minute']:6} ({LRM_PER_MINUTE * row['managers']:3})"
                f"{row['lock_transactions_per_minute']:17} {row['transactions_per_minute']:8}"
                f"  {', '.join(row['writers']) or '-'}"
            )
        print("\n".join(wrong) or "as published")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
