# SPDX-License-Identifier: Apache-2.0
"""``arm``: a change that nobody will confirm, before the node goes off. ``look``: print as JSON what became of it, and of one
whose time is up and one that is confirmed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, "/usr/local/lib/pveguard/pve-state")
from pveguard.base import rollback_timer

BOOT, TIME, KEPT = "molecule-boot", "molecule-time", "molecule-kept"
UNDONE = Path("/var/lib/molecule-undone")


def show(unit: str, what: str) -> str:
    return subprocess.run(["systemctl", "show", "-P", what, unit], capture_output=True, text=True).stdout.strip()


def arm() -> None:
    UNDONE.unlink(missing_ok=True)
    undo = f"cut -d' ' -f1 /proc/uptime >> {UNDONE}; systemctl --no-block reload ssh.service"
    rollback_timer.arm(BOOT, ["/bin/sh", "-c", undo], 86400, before=["ssh.service"])


def look() -> dict[str, object]:
    boot = {
        "state": rollback_timer.status(BOOT)["state"],
        "undone_at": [float(line) for line in UNDONE.read_text().split()] if UNDONE.exists() else [],
        "ssh_at": int(show("ssh.service", "ExecMainStartTimestampMonotonic")) / 1e6,
    }
    rollback_timer.arm(TIME, ["/usr/bin/touch", f"{UNDONE}-{TIME}"], 20, across_reboots=False)
    rollback_timer.arm(KEPT, ["/usr/bin/touch", f"{UNDONE}-{KEPT}"], 3600)
    rollback_timer.confirm(KEPT)
    end = time.monotonic() + 120
    service = f"{rollback_timer.PREFIX}{TIME}.service"
    while time.monotonic() < end:
        if rollback_timer.status(TIME)["state"] == "rolled_back" and show(service, "ActiveState") == "inactive":
            break
        time.sleep(0.5)
    states = {name: rollback_timer.status(name)["state"] for name in (TIME, KEPT)}
    left = [str(path) for top in ("/etc", "/run") for path in Path(top, "systemd/system").rglob("pveguard-rollback-*")]
    done = sorted(path.name for path in UNDONE.parent.glob(f"{UNDONE.name}-*"))
    for name in (BOOT, TIME, KEPT):
        rollback_timer.forget(name)
        Path(f"{UNDONE}-{name}").unlink(missing_ok=True)
    UNDONE.unlink(missing_ok=True)
    return {"boot": boot, "states": states, "left": left, "done": done}


if sys.argv[1] == "arm":
    arm()
else:
    print(json.dumps(look()))
