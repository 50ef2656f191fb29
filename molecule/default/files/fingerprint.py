# SPDX-License-Identifier: Apache-2.0
"""Print as JSON what a play could change on a node: files, units, packages, mounts, rows of the database.

Left out is what changes by itself: heartbeats and locks in the database, systemd's own notes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import stat
import subprocess

from pmxcfs import live_database, tree

TREES = ["/etc", "/root", "/usr/local", "/var/lib"]
SKIPPED = re.compile(
    r"^(/root/\.ansible|/var/lib/(systemd|dpkg/info|rrdcached/(db|journal)/.*|logrotate|smartmontools"
    r"|pve-cluster/(config\.db.*|\.pmxcfs\.lockfile)))(/|$)"
)
UNITS = [
    *("pve-cluster.service", "corosync.service", "pve-ha-lrm.service", "pve-ha-crm.service"),
    *("watchdog-mux.service", "pvescheduler.service", "rrdcached.service"),
    *("pveguard-state.service", "pveguard-state-watch.service", "var-lib-pve\\x2dcluster.mount"),
]


def lines(*command: str) -> list[str]:
    # A list that did not come must not look like one that is empty; a busy machine is given time.
    environment = {**os.environ, "SYSTEMD_BUS_TIMEOUT": "300"}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout.splitlines()


def describe(path: str) -> str:
    info = os.lstat(path)
    text = f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid}"
    if stat.S_ISLNK(info.st_mode):
        return f"{text} -> {os.readlink(path)}"
    if not stat.S_ISREG(info.st_mode):
        return text
    if info.st_size > 1 << 20:  # package lists and the like; hashing is slow on an emulated guest
        return f"{text} {info.st_size} bytes of {info.st_mtime_ns}"
    with open(path, "rb") as handle:
        return f"{text} {hashlib.sha256(handle.read()).hexdigest()}"


def files() -> dict[str, str]:
    found = {}
    for top in TREES:
        device = os.lstat(top).st_dev
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = [
                name
                for name in subfolders
                if not SKIPPED.match(path := f"{folder}/{name}") and os.lstat(path).st_dev == device
            ]
            for name in [*subfolders, *names]:
                path = f"{folder}/{name}"
                if SKIPPED.match(path):
                    continue
                try:
                    found[path] = describe(path)
                except FileNotFoundError:
                    continue
    return found


def rows() -> list[list[object]] | None:
    if not os.path.exists("/var/lib/pve-cluster/config.db"):
        return None

    def kept(database: sqlite3.Connection) -> list[list[object]]:
        table, noise = tree.read_rows(database), tree.Noise()
        return [
            [path, inode, table[inode][tree.TYPE], hashlib.sha256(tree.data_of(database, inode)).hexdigest()]
            for path, inode in sorted(tree.inodes_by_path(table).items())
            if not noise.leaves_out(path)
        ]

    return live_database.look("/var/lib/pve-cluster/config.db", kept)


def main() -> None:
    with open("/proc/mounts") as handle:
        mounts = sorted(line.rsplit(" ", 2)[0] for line in handle if " /run/user" not in line)
    fingerprint = {
        "files": files(),
        "packages": lines("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\\n"),
        "unit_files": lines("systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain"),
        "units": lines("systemctl", "show", "-p", "Id,LoadState,ActiveState,UnitFileState", *UNITS),
        "mounts": mounts,
        "rows": rows(),
    }
    print(json.dumps(fingerprint))


if __name__ == "__main__":
    main()
