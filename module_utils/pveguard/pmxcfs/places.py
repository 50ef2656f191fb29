# SPDX-License-Identifier: Apache-2.0
"""Where the daemon and Corosync have their files on a node. Imports nothing, as programs on a node start with it."""

from __future__ import annotations

FOLDER = "/var/lib/pve-cluster"
DATABASE = f"{FOLDER}/config.db"
MOUNT = "/etc/pve"
PID_FILE = "/run/pve-cluster.pid"
#: The daemon's own copy of corosync.conf, for all members, and the one of the host, which Corosync reads.
CLUSTER_CONF = f"{MOUNT}/corosync.conf"
HOST_CONF = "/etc/corosync/corosync.conf"
CLUSTER_FW = f"{MOUNT}/firewall/cluster.fw"
TASKS = "/var/log/pve/tasks/active"
