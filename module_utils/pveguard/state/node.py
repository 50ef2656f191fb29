# SPDX-License-Identifier: Apache-2.0
"""The node: commands, journal, daemon, mounts, memory, units."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3

from ..base.systemd import properties_of
from ..pmxcfs.mount import is_fuse, mounts, on_top
from .exits import Damaged
from .files import read_text, size_of
from .paths import MIB, TMPFS_SOURCE
from .rows import read_only
from .system import log, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..base.run import Result
    from ..pmxcfs.mount import Mount
    from .paths import Paths
    from .settings import Config

TMPFS_FLOOR = 256 * MIB
WAL_BYTES = 8 * MIB
# CLOCK_REALTIME_COARSE of Linux, which Python does not name: what file systems stamp files with.
CLOCK_OF_FILES = 5


def daemon_pid(paths: Paths) -> int | None:
    """PID from the daemon's PID file when such a process exists, else None."""
    try:
        pid = int(read_text(paths.pid_file).strip() or "0")
    except ValueError:
        return None
    return pid if pid > 0 and os.path.exists(f"/proc/{pid}") else None


def daemon_running(paths: Paths) -> bool:
    """Whether a daemon holds its lock file; that is true for one started by hand as well."""
    try:
        fd = os.open(paths.daemon_lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return daemon_pid(paths) is not None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def live_mount(paths: Paths) -> Mount | None:
    """The topmost mount on /var/lib/pve-cluster, None when there is none."""
    return on_top(paths.live, mounts())


def is_ours(mount: Mount | None) -> bool:
    return mount is not None and mount[1] == "tmpfs" and mount[2] == TMPFS_SOURCE


def pve_mounted(paths: Paths) -> bool:
    return is_fuse(paths.pve, mounts())


def memory() -> tuple[int, int]:
    """(total, available) in bytes."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE))
    return int(values.get("MemTotal", 0)) * 1024, int(values.get("MemAvailable", 0)) * 1024


def tmpfs_sizes(database_bytes: int, config: Config, total: int) -> tuple[int, int]:
    """(limit, need) in bytes: need is twice the database and the log, limit is what the file system gets."""
    need = 2 * database_bytes + WAL_BYTES
    if config.tmpfs_mib:
        return config.tmpfs_mib * MIB, need
    wanted = max(TMPFS_FLOOR, need * 5 // 4)
    return max(min(wanted, total // 4), need), need


def state_bytes(path: str) -> int:
    """How large the state in a database may become as a file, for the RAM and the room that it needs: its pages, those that lie
    in its log too, and the log. A log that grew beyond what the daemon keeps, and then never shrinks, counts as that.
    """
    file, log_bytes = size_of(path), size_of(path + "-wal")

    def pages(connection: sqlite3.Connection) -> int:
        (count,), (page,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        return int(count * page)

    try:
        file = max(file, read_only(path, pages))
    except (Damaged, sqlite3.Error):
        pass
    return file + min(log_bytes, WAL_BYTES)


def resize_tmpfs(paths: Paths, size: int) -> bool:
    """Set the limit of the tmpfs; content stays."""
    mount = live_mount(paths)
    options = f"remount,nosuid,nodev,noexec,size={size}"
    # The kernel refuses a remount that does not repeat it.
    if mount and "noswap" in mount[3].split(","):
        options += ",noswap"
    done = run(["mount", "-t", "tmpfs", "-o", options, TMPFS_SOURCE, paths.live])
    if done.rc:
        log("warning", f"{paths.live}: its limit was not set to {size // MIB} MiB: {done.stderr.strip()}")
    return done.rc == 0


def fill(paths: Paths) -> tuple[int, int]:
    """(limit, used) bytes of the file system of the live database."""
    try:
        found = os.statvfs(paths.live)
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize


def systemctl(*words: str, timeout: float = 120.0) -> Result:
    return run(["systemctl", *words], timeout=timeout)


def unit_states(*units: str) -> dict[str, tuple[str, bool]]:
    """{unit: (active state, whether it starts)}; states of units that systemd does not know are empty. A unit that
    systemd starts again after a failure does not count as one that starts: it may go on like that for ever.
    """
    found = {}
    for unit, values in properties_of(units, ["ActiveState", "SubState", "NRestarts", "LoadState"], run).items():
        state = values.get("ActiveState", "") if values.get("LoadState") != "not-found" else ""
        again = values.get("SubState") == "auto-restart" or values.get("NRestarts", "0") != "0"
        found[unit] = (state, state == "activating" and not again)
    return found
