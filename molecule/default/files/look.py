# SPDX-License-Identifier: Apache-2.0
"""Print as JSON what the tests look at on a node.

With SECONDS also what it writes in that time, while nobody asks for anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time

from pmxcfs import live_database, tree

DATABASE = "/var/lib/pve-cluster/config.db"
STORE = "/var/lib/pveguard/state"
UNITS = [
    *("corosync.service", "pve-cluster.service", "pveguard-state.service", "pveguard-state-watch.service"),
    *("pve-ha-lrm.service", "pve-ha-crm.service", "watchdog-mux.service"),
]
MARKERS = ["molecule-shared", "molecule-reboot"]


def run(*command: str) -> tuple[int, str]:
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is missing"
    return result.returncode, result.stdout


def read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except OSError:
        return None


def digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def table() -> tuple[int, str]:
    """(root version, hash of every row that is configuration)."""
    return live_database.look(
        DATABASE,
        lambda database: (tree.root_version(tree.read_rows(database)), tree.tree_sha256(database, tree.Noise())),
    )


def mount_of(path: str) -> dict[str, str] | None:
    found = None
    for line in (read("/proc/mounts") or b"").decode().splitlines():
        _, where, kind, options = line.split()[:4]
        if where == path:
            found = {"type": kind, "options": options}
    return found


def units() -> dict[str, dict[str, str]]:
    _, text = run("systemctl", "show", "-p", "Id,LoadState,ActiveState,UnitFileState", *UNITS)
    found = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        found[values.pop("Id", "?")] = values
    return found


def sectors_written() -> int:
    """Sectors of 512 bytes written to the device that holds the store (Documentation/block/stat)."""
    device = os.stat(STORE).st_dev
    numbers = (read(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") or b"").split()
    return int(numbers[6])


def settle(seconds: float = 180) -> None:
    """Until the device is written nothing for ten seconds: what was changed before, here or elsewhere, is saved."""
    end, before = time.monotonic() + seconds, -1
    while time.monotonic() < end:
        os.sync()
        now = sectors_written()
        if now == before:
            return
        before = now
        time.sleep(10)


def idle(seconds: float) -> dict[str, float]:
    settle()
    os.sync()
    version, sectors, started = table()[0], sectors_written(), time.monotonic()
    time.sleep(seconds)
    os.sync()
    elapsed, transactions = time.monotonic() - started, table()[0] - version
    return {
        "seconds": round(elapsed, 1),
        "sectors": sectors_written() - sectors,
        "transactions": transactions,
        "transactions_per_minute": round(60 * transactions / elapsed, 1),
    }


def main() -> None:
    version, rows = table()
    quorum = run("corosync-quorumtool", "-s")[1]
    look = {
        "quorate": bool(re.search(r"^Quorate:\s+Yes", quorum, re.MULTILINE)),
        "members": int((re.search(r"^Nodes:\s+(\d+)", quorum, re.MULTILINE) or [0, 0])[1]),
        "corosync_conf": {
            path: digest(read(path)) for path in ("/etc/corosync/corosync.conf", "/etc/pve/corosync.conf")
        },
        "mounts": {path: mount_of(path) for path in ("/etc/pve", "/var/lib/pve-cluster")},
        "root_version": version,
        "rows_sha256": rows,
        "units": units(),
        "verify": run("pve-state", "verify"),
        "status": run("pve-state", "status", "--json"),
        "markers": {name: (read(f"/etc/pve/{name}") or b"").decode() for name in MARKERS},
    }
    if len(sys.argv) > 1:
        look["idle"] = idle(float(sys.argv[1]))
    print(json.dumps(look))


if __name__ == "__main__":
    main()
