# SPDX-License-Identifier: Apache-2.0
"""The way back that the timer takes when a switch-over does not end."""

from __future__ import annotations

import os
import signal

from .enable import put_stock_back
from .files import Lock, read_json, write_volatile
from .restore_generation import put_former_back
from .switch import process_start
from .system import log, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from .paths import Paths
    from .settings import Config


def cmd_rollback(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """What the rollback timer runs: stock, from wherever a switch-over was left; after a restore the former state."""
    switch = read_json(paths.switch_file)
    if switch.get("done"):
        return {"changed": False, "message": "no switch-over is under way"}
    pid = switch.get("pid")
    if pid and pid != os.getpid() and process_start(pid) == switch.get("start"):
        log("error", f"the switch-over (process {pid}) did not end in time; it is stopped")
        os.kill(pid, signal.SIGKILL)
    with Lock(f"{paths.run}/switch.lock", "a switch-over runs", wait=30, create=True):
        # It may have come to its end before it could be stopped.
        switch = read_json(paths.switch_file)
        if switch.get("done"):
            return {"changed": False, "message": "no switch-over is under way"}
        if switch.get("kind") == "restore":
            done = put_former_back(paths, config)
        else:
            done = put_stock_back(paths, config, "rollback")
    write_volatile(paths.switch_file, {"kind": "rollback", "done": utc()})
    return {"changed": True, "message": "stock is back", **done}
