# SPDX-License-Identifier: Apache-2.0
"""Taking the daemon down and starting it again, and the way back when that fails."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time

from ..base import rollback_timer
from ..base.atomic import fsync_dir
from ..base.errors import PveguardError
from ..pmxcfs.live_database import unknown_schema
from ..pmxcfs.tree import read_rows, root_version, tree_sha256
from .exits import Damaged, Refused, SwitchError
from .files import copy_file, read_json, remove, remove_database, store_lock, write_volatile
from .generations import generations
from .live import open_live
from .members import members_said, said_quorate
from .node import daemon_running, pve_mounted, systemctl, unit_states
from .paths import FORMER_ROLLBACK_UNITS, PVE_CLUSTER, STATE_UNIT, WATCH_UNIT
from .status import tell
from .system import log, run, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..base.run import Result
    from .paths import Paths
    from .settings import Config

#: The name of the rollback timer.
SWITCH_OVER = "ram-state"
ROLLBACK_UNIT = f"{rollback_timer.PREFIX}{SWITCH_OVER}"


def wait_for(what: str, condition: Callable[[], object], deadline: float, poll: float = 0.2) -> None:
    """Poll a condition until it is true; SwitchError names what was waited for."""
    while True:
        if condition():
            return
        if time.monotonic() >= deadline:
            raise SwitchError(f"waited in vain for {what}")
        time.sleep(poll)


def arm_rollback_timer(paths: Paths, seconds: float) -> None:
    """A timer of its own that puts stock back when this process does not live to disarm it. A reboot needs none: the unit
    that restores at boot begins from wherever the switch-over was left.
    """
    disarm_rollback_timer(paths)
    # As this process was called: by the link, which also leads to a program when this version is gone.
    argv = [sys.executable, "-IS", os.path.abspath(sys.argv[0]), "rollback", "--json"]
    try:
        rollback_timer.arm(
            SWITCH_OVER, argv, seconds, across_reboots=False, retry_s=seconds, run=_run, root=paths.root
        )
    except PveguardError as error:
        raise Refused(str(error)) from error


def disarm_rollback_timer(paths: Paths) -> None:
    """For who has the lock of switch-overs, so that no undo is at work, and has noted that this one is over, or begins one."""
    rollback_timer.withdraw(SWITCH_OVER, run=_run, root=paths.root)
    for unit in FORMER_ROLLBACK_UNITS:
        systemctl("stop", f"{unit}.timer")
    systemctl("reset-failed", *(f"{unit}.{kind}" for unit in FORMER_ROLLBACK_UNITS for kind in ("service", "timer")))


def _run(
    argv: Sequence[str],
    *,
    input: str | None = None,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Result:
    return run(argv, timeout)


def begin_switch(paths: Paths, kind: str, config: Config) -> None:
    write_volatile(
        paths.switch_file,
        {
            "kind": kind,
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "time": utc(),
            "dependents": dependents(),
        },
    )
    # A lost connection must not end it half way.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def process_start(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            return int(handle.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def dependents() -> list[str]:
    """Active units that systemd stops together with the daemon; a start of the daemon does not bring them back."""
    out = systemctl("show", "-p", "RequiredBy,BoundBy", PVE_CLUSTER).stdout
    lines = [line for line in out.splitlines() if line.startswith(("RequiredBy=", "BoundBy="))]
    wanted = {name for line in lines for name in line.partition("=")[2].split()}
    names = sorted(name for name in wanted if name.endswith(".service") and not name.startswith("pveguard-"))
    return [name for name, state in unit_states(*names).items() if state[0] == "active"] if names else []


def start_dependents(paths: Paths) -> None:
    """Start what ran before the switch-over and was stopped with the daemon."""
    names = read_json(paths.switch_file).get("dependents") or []
    if names:
        done = systemctl("start", *names)
        if done.rc:
            log("error", f"{', '.join(names)}: {done.stderr.strip()}")


def stop_daemon(paths: Paths, deadline: float) -> None:
    # It would only let go of the database, and the RAM file system may be going to be unmounted.
    systemctl("stop", WATCH_UNIT, timeout=max(5.0, deadline - time.monotonic()))
    done = systemctl("stop", PVE_CLUSTER, timeout=max(5.0, deadline - time.monotonic()))
    if done.rc:
        raise SwitchError(f"pve-cluster did not stop: {done.stderr.strip()}")
    wait_for("the daemon to end", lambda: not daemon_running(paths) and not pve_mounted(paths), deadline)


def start_daemon(paths: Paths, deadline: float, cluster: bool, watcher: bool) -> float:
    """Start the daemon and wait until it serves /etc/pve as before. Returns when healthy, raises SwitchError
    else.
    """
    systemctl("reset-failed", PVE_CLUSTER, STATE_UNIT)
    done = systemctl("start", PVE_CLUSTER, timeout=max(5.0, deadline - time.monotonic()))
    if done.rc:
        why = read_json(paths.restore_file).get("error")
        raise SwitchError(f"pve-cluster does not start: {why or done.stderr.strip()}")
    wait_for("/etc/pve to be mounted", lambda: pve_mounted(paths) and members_said(paths) is not None, deadline)
    served = time.monotonic()
    if cluster:
        wait_for("quorum", lambda: said_quorate(paths), deadline, 0.5)
    if watcher:
        # Its start was queued with the daemon's; systemctl waits for the end of it without asking again and again.
        systemctl("start", WATCH_UNIT, timeout=max(1.0, deadline - time.monotonic()))
        wait_for(f"{WATCH_UNIT}", lambda: unit_states(WATCH_UNIT)[WATCH_UNIT][0] == "active", deadline, 0.5)
    return served


def daemon_reload() -> None:
    done = systemctl("daemon-reload")
    if done.rc:
        raise SwitchError(f"systemctl daemon-reload failed: {done.stderr.strip()}")


def live_summary(paths: Paths, config: Config) -> tuple[int | None, str | None]:
    """(root version, tree hash) of the database in the live place, both None for one of an unknown schema."""
    live = open_live(paths)
    try:
        if unknown_schema(live):
            return None, None
        return root_version(read_rows(live)), tree_sha256(live, config.noise)
    except sqlite3.Error as error:
        raise Damaged(f"{paths.live_db}: {error}") from error
    finally:
        live.close()


def copy_backups(source: str, target: str) -> None:
    """Copy the files of one backup folder into another; what is there with the same size and time stays."""
    if not os.path.isdir(source):
        return
    os.makedirs(target, mode=0o700, exist_ok=True)
    for entry in os.scandir(source):
        if not entry.is_file(follow_symlinks=False):
            continue
        there = f"{target}/{entry.name}"
        info = entry.stat()
        if (
            os.path.exists(there)
            and os.stat(there).st_size == info.st_size
            and os.stat(there).st_mtime == info.st_mtime
        ):
            continue
        copy_file(entry.path, there)
        os.utime(there, (info.st_atime, info.st_mtime))
    fsync_dir(target)


def after_disable(paths: Paths, config: Config) -> None:
    """The replica is no longer kept up to date: it is a generation already, and a stale one must not look
    current.
    """
    newest = generations(paths)
    if newest and not newest[0].problems():
        with store_lock(paths):
            remove_database(paths.replica)
            remove(paths.state_file)
            fsync_dir(paths.store)
    for file in (paths.watch_file, paths.restore_file, paths.live_file, paths.removed_file):
        remove(file)
    tell(paths, config)
