#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Transactions of the cluster file system and what they cost the disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pmxcfs_writes
short_description: Transactions of the cluster file system, by file and node, and the bytes they cost the disk
description:
  - Counts the transactions of the cluster file system exactly, by the version of its database, and the bytes
    written to the disk behind the store and by the daemon, by the kernel's counters. One round trip.
  - In an observation window (O(window_seconds)) it also says which files were written, by which node and what for,
    by one of two methods.
  - With O(method=database) rows are sampled. A file that changed twice between two samples counts once, so figures
    per file are lower bounds, unless every transaction of the window is explained by a sampled row.
  - With O(method=journal) the daemon's debug log is on for the window and every write is counted. The former state of
    C(/etc/pve/.debug) is restored whatever happens. A transient systemd unit restores it when this process is killed.
    Where the log cannot be used the database is sampled, and RV(window.notes) says why.
  - Without a window it returns counters at once. Given the counters of an earlier call (O(previous)) it says
    what was written since then.
  - Without O(method=journal) it reads only. The database is opened for milliseconds at a time, and only while the
    daemon has it open.
attributes:
  check_mode:
    support: full
    description: >-
      In check mode nothing is switched. O(method=journal) samples the database instead and RV(window.notes) says so.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  window_seconds:
    description: >-
      How long to observe, in seconds. V(0) returns counters at once. From a minute on whole minutes, rounded up.
    type: float
    default: 0
  window_on:
    description: Observe only while the database lies on a disk, or only in memory.
    type: str
    choices: [any, disk, memory]
    default: any
  method:
    description: How the window finds out who wrote what.
    type: str
    choices: [database, journal]
    default: database
  known_machine:
    description: >-
      Do not observe on this machine (RV(counters.machine) of an earlier call), because its window is known.
    type: str
    default: ""
  previous:
    description: RV(counters) of an earlier call. Empty for none.
    type: dict
    default: {}
  until:
    description: >-
      RV(counters) of before the caller began its own work, which O(previous) is compared with. Empty for those of now.
    type: dict
    default: {}
  sample_seconds:
    description: Time between two samples of the rows, in seconds.
    type: float
    default: 1
  store:
    description: The disk behind this path, or behind its nearest parent on a disk, is the one that is counted.
    type: path
    default: /var/lib/pveguard
  database:
    description: Database of the cluster file system.
    type: path
    default: /var/lib/pve-cluster/config.db
  pid_file:
    description: File with the process id of the daemon.
    type: path
    default: /run/pve-cluster.pid
  drives:
    description:
      - Ask the drives behind the store as well, as M(disk_wear) does, and return what they said as RV(drives). One that does not
        answer costs its own figures only.
    type: dict
    suboptions:
      endurance:
        description: Rated endurance of drives, as for M(disk_wear).
        type: list
        elements: dict
        default: []
      timeout:
        description: Seconds that each drive may take.
        type: float
        default: 20
  release:
    description:
      - Give the lock of this holder back at the end, as M(run_lock) does, whether or not anything could be measured. Not in
        check mode, where no lock is taken.
    type: dict
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Observe for a minute
  pmxcfs_writes:
    window_seconds: 60
  register: writes

- name: Count every write of a minute by the debug log
  pmxcfs_writes:
    window_seconds: 60
    method: journal
  register: counted

- name: Show how many transactions there were
  ansible.builtin.debug:
    msg: "{{ writes.window.transactions_per_minute }} transactions/min"

- name: Ask what was written since then, without waiting
  pmxcfs_writes:
    previous: "{{ writes.counters }}"
  register: later
"""

RETURN = r"""
drives:
  description: What M(disk_wear) returns, RV(drives.disks) and RV(drives.notes).
  returned: with O(drives), also when the rest failed
  type: dict
released:
  description: Whether the lock was given back; a warning says why not.
  returned: with O(release), also when the rest failed
  type: bool
counters:
  description: The counters now (at the end of the window). Pass them as O(previous) to a later call.
  returned: always
  type: dict
  contains:
    time: {description: 'UTC, ISO 8601.', type: str}
    boot_id: {description: Identifier of this boot., type: str}
    machine: {description: Hash that tells one installation from another., type: str}
    uptime_seconds: {description: Seconds since boot., type: float}
    device:
      description: >-
        The disk, with device, disk, filesystem, mount_options, bytes_written and writes since boot.
      type: dict
    database: {description: 'path, in_memory, inode, bytes.', type: dict}
    pmxcfs: {description: 'pid, start_ticks and write_bytes of the daemon.', type: dict}
    services_source: {description: 'V(cgroup) or V(proc); see the module block_writes.', type: str}
    services: {description: Bytes by systemd unit., type: dict}
    services_identity: {description: What was counted for each unit., type: dict}
    league: {description: 'The counters of all who write to the drives that carry the system; see docs/report.md.', type: dict}
    root_version: {description: Version of the database; null when it cannot be read., type: int}
window:
  description: >-
    What the window saw; null when there was none. A figure that could not be had is null, notes says why.
  returned: always
  type: dict
  contains:
    seconds: {description: Length of the window., type: float}
    transactions: {description: Exact number of transactions., type: int}
    transactions_per_minute:
      description: >-
        The same per minute. Null, as every figure per minute, unless the time is whole minutes (3 s aside) or ten minutes
        and more: what comes once a minute is seen by chance in a shorter one.
      type: float
    device_bytes: {description: Bytes written to the disk., type: int}
    device_bytes_per_minute: {description: The same per minute., type: float}
    pmxcfs_write_bytes: {description: Bytes the daemon caused to be written., type: int}
    attribution: {description: The method that was used., type: str}
    services:
      description: >-
        The systemd units that wrote most, with service, bytes, bytes_per_minute and exact (false is a lower bound);
        null when not known.
      type: list
      elements: dict
    services_source: {description: 'V(cgroup) is bytes to the disk, V(proc) bytes to any device.', type: str}
    services_notes: {description: What the figures of services do not tell., type: list, elements: str}
    league:
      description: >-
        Who wrote to the drives that carry the system, with devices, rows (class, label, unit, bytes, exact, source),
        guests_bytes, rest_bytes and total_bytes, which rows, guests and rest make up; see docs/report.md. Null when not known.
      type: dict
    files:
      description: >-
        Files that were written, with path, writer (node id) and node (null when not known), class, label, changes,
        transactions_at_least and exact (false is a lower bound). A directory that is not known is C(?).
      type: list
      elements: dict
    classes:
      description: >-
        The same by what it is for, most first, with class, label, transactions, transactions_per_minute and exact.
        The classes are V(ha), V(locks), V(logs), V(guests), V(storage), V(users), V(certificates), V(sdn),
        V(firewall), V(corosync), V(jobs), V(other) and V(unattributed).
      type: list
      elements: dict
    writers:
      description: >-
        The same by writing node, most first, with node_id, node, transactions, transactions_per_minute and exact.
      type: list
      elements: dict
    unattributed_transactions: {description: Transactions that no file explains., type: int}
    lrm_status_transactions_per_minute: {description: Of HA heartbeats., type: float}
    lrm_status_nodes: {description: The same by node., type: dict}
    journal:
      description: >-
        What the debug log cost, with lines and bytes (of text) in the journal, debug_before and debug_after (whether
        it was on); null when it was not used.
      type: dict
    notes: {description: Why a figure is null., type: list, elements: str}
since:
  description: What was written since O(previous), with the same keys but without files; null without O(previous).
  returned: always
  type: dict
"""

from typing import Any

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.disk import block_writes, disk_wear
from ansible.module_utils.pveguard.pmxcfs import run_lock
from ansible.module_utils.pveguard.writes import pmxcfs_writes


def main() -> None:
    module = NodeModule(
        argument_spec={
            "window_seconds": {"type": "float", "default": 0},
            "window_on": {"type": "str", "choices": ["any", "disk", "memory"], "default": "any"},
            "method": {"type": "str", "choices": ["database", "journal"], "default": "database"},
            "known_machine": {"type": "str", "default": ""},
            "previous": {"type": "dict", "default": {}},
            "until": {"type": "dict", "default": {}},
            "sample_seconds": {"type": "float", "default": 1},
            "store": {"type": "path", "default": block_writes.STORE},
            "database": {"type": "path", "default": block_writes.DATABASE},
            "pid_file": {"type": "path", "default": block_writes.PID_FILE},
            "drives": {
                "type": "dict",
                "options": {
                    "endurance": {"type": "list", "elements": "dict", "default": []},
                    "timeout": {"type": "float", "default": disk_wear.TIMEOUT_S},
                },
            },
            "release": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    params = dict(module.params)
    drives, release = params.pop("drives"), params.pop("release")
    if params["window_seconds"] < 0 or params["sample_seconds"] <= 0:
        module.fail_json(msg="window_seconds must be 0 or more, and sample_seconds above 0")
    result: dict[str, Any] = {}
    failure = ""
    try:
        result = pmxcfs_writes.measure(**params, check_mode=module.check_mode)
    except (PveguardError, OSError) as error:
        failure = str(error)
    if drives is not None:
        result["drives"] = disk_wear.wear(table=drives["endurance"], timeout=drives["timeout"])
    if release and not module.check_mode:
        result["released"] = _released(module, release)
    if failure:
        module.fail_json(msg=failure, **result)
    module.exit_json(changed=False, **result)


def _released(module: NodeModule, holder: dict[str, Any]) -> bool:
    try:
        run_lock.release(holder["run_id"])
    except (PveguardError, OSError) as error:
        module.warn(str(error))
        return False
    return True


if __name__ == "__main__":
    main()
