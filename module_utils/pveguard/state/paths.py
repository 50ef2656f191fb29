# SPDX-License-Identifier: Apache-2.0
"""Where things lie on a node: the live database, the store, units, marks below /run."""

from __future__ import annotations

import os

from ..pmxcfs import places

FORMAT = 1
MIB = 1024 * 1024
PVE_CLUSTER = "pve-cluster.service"
STATE_UNIT = "pveguard-state.service"
WATCH_UNIT = "pveguard-state-watch.service"
MOUNT_UNIT = r"var-lib-pve\x2dcluster.mount"
BACKUP_UNIT = r"var-lib-pve\x2dcluster-backup.mount"
# The rollback timers of former versions, which may have been armed before an upgrade.
FORMER_ROLLBACK_UNITS = ("pveguard-rollback", "pveguard-dead-man")
TMPFS_SOURCE = "pveguard-state"
LOGIN_MARKER = "pveguard-login-fallback"
DAY = 86400


def below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class Paths:
    """Every path the program touches, below ``root`` (``/`` on a node)."""

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.abspath(root)
        at = self.at
        self.live = at(places.FOLDER)
        self.live_db = at(places.DATABASE)
        self.marker = f"{self.live}/.pveguard-restored"
        self.daemon_lock = f"{self.live}/.pmxcfs.lockfile"
        self.backup_live = f"{self.live}/backup"
        self.backup = at("/var/lib/pveguard/backup")
        self.store = at("/var/lib/pveguard/state")
        self.replica = f"{self.store}/config.db"
        self.state_file = f"{self.store}/state.json"
        self.generations = f"{self.store}/generations"
        self.damaged = f"{self.store}/damaged"
        self.rescue = f"{self.store}/rescue"
        self.switch = f"{self.store}/switch"
        self.run = at("/run/pveguard")
        self.watch_file = f"{self.run}/watch.json"
        self.metrics = f"{self.run}/metrics.prom"
        self.verified = f"{self.run}/verified.json"
        self.restore_file = f"{self.run}/restore.json"
        self.live_file = f"{self.run}/live.json"
        self.removed_file = f"{self.run}/live-removed"
        self.switch_file = f"{self.run}/switch.json"
        self.config = at("/etc/pveguard/state.json")
        self.drop_in_source = at("/etc/pveguard/pve-cluster.conf")
        self.drop_in_dir = at("/etc/systemd/system/pve-cluster.service.d")
        self.drop_in = f"{self.drop_in_dir}/pveguard.conf"
        self.pve = at(places.MOUNT)
        self.corosync_conf = at(places.HOST_CONF)
        self.pid_file = at(places.PID_FILE)
        self.tasks = at(places.TASKS)

    def at(self, path: str) -> str:
        return path if self.root == "/" else self.root + path

    def aside(self) -> Paths:
        """The same with the rescue copy in the place of the replica."""
        import copy

        other = copy.copy(self)
        other.replica = f"{self.rescue}/config.db"
        other.state_file = f"{self.rescue}/state.json"
        return other
