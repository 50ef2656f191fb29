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
  - In an observation window (O(window_seconds)) it also says which files were written and by which node. Rows
    are sampled, so a file that changed twice between two samples counts once. Those figures are lower bounds.
  - Without a window it returns counters at once. Given the counters of an earlier call (O(previous)) it says
    what was written since then.
  - Reads only. The database is opened for milliseconds at a time, and only while the daemon has it open.
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  window_seconds:
    description: How long to observe, in seconds. V(0) returns counters at once.
    type: float
    default: 0
  window_on:
    description: Observe only while the database lies on a disk, or only in memory.
    type: str
    choices: [any, disk, memory]
    default: any
  known_machine:
    description: >-
      Do not observe on this machine (RV(counters.machine) of an earlier call), because its window is known.
    type: str
    default: ""
  previous:
    description: RV(counters) of an earlier call. Empty for none.
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
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Observe for a minute
  pmxcfs_writes:
    window_seconds: 60
  register: writes

- name: Show how many transactions there were
  ansible.builtin.debug:
    msg: "{{ writes.window.transactions_per_minute }} transactions/min"

- name: Ask what was written since then, without waiting
  pmxcfs_writes:
    previous: "{{ writes.counters }}"
  register: later
"""

RETURN = r"""
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
    root_version: {description: Version of the database; null when it cannot be read., type: int}
window:
  description: >-
    What the window saw; null when there was none. A figure that could not be had is null, notes says why.
  returned: always
  type: dict
  contains:
    seconds: {description: Length of the window., type: float}
    transactions: {description: Exact number of transactions., type: int}
    transactions_per_minute: {description: The same per minute., type: float}
    device_bytes: {description: Bytes written to the disk., type: int}
    device_bytes_per_minute: {description: The same per minute., type: float}
    pmxcfs_write_bytes: {description: Bytes the daemon caused to be written., type: int}
    files:
      description: Files that were seen to change, with path, writer (node id), changes, transactions_at_least.
      type: list
      elements: dict
    unattributed_transactions: {description: Transactions that no sampled file explains., type: int}
    lrm_status_transactions_per_minute:
      description: Of HA heartbeats, estimated as three for each change.
      type: float
    lrm_status_nodes: {description: The same by node., type: dict}
    notes: {description: Why a figure is null., type: list, elements: str}
since:
  description: What was written since O(previous), with the same keys but without files; null without O(previous).
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard import block_writes, pmxcfs_writes
from ansible.module_utils.pveguard.errors import PveguardError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "window_seconds": {"type": "float", "default": 0},
            "window_on": {"type": "str", "choices": ["any", "disk", "memory"], "default": "any"},
            "known_machine": {"type": "str", "default": ""},
            "previous": {"type": "dict", "default": {}},
            "sample_seconds": {"type": "float", "default": 1},
            "store": {"type": "path", "default": block_writes.STORE},
            "database": {"type": "path", "default": block_writes.DATABASE},
            "pid_file": {"type": "path", "default": block_writes.PID_FILE},
        },
        supports_check_mode=True,
    )
    if module.params["window_seconds"] < 0 or module.params["sample_seconds"] <= 0:
        module.fail_json(msg="window_seconds must be 0 or more, and sample_seconds above 0")
    try:
        result = pmxcfs_writes.measure(**module.params)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
