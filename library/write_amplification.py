#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What a file written to /etc/pve costs the disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: write_amplification
short_description: How many bytes reach the disk for each byte written to /etc/pve
description:
  - Writes a file of its own to C(/etc/pve), in blocks of a given size, and counts the transactions, the bytes of the
    database's log, those the daemon causes to be written and those that reach the device behind the database.
  - Every write of up to 128 KiB replaces the whole file, on every member of the cluster, so the costs are known
    before. A case that does not fit into O(device_write_budget_bytes) is not written, and says so.
  - Refuses without quorum, without the mounted file system, with less than 32 MiB free beside the database, for a
    file above the 1 MiB that the file system takes, and while another probe runs on the node.
  - The file is removed in every case, also when the task is ended by a signal. What a killed probe left is removed by
    the next one on that node. The database file itself never shrinks, so it may stay up to 2 MiB larger.
attributes:
  check_mode:
    support: full
    description: It writes nothing in check mode, and returns the cases with their predicted cost. It never reports a change.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  cases:
    description: What is written, one file after the other.
    type: list
    elements: dict
    default:
      - {file_bytes: 1048576, block_bytes: 131072}
      - {file_bytes: 65536, block_bytes: 4096}
    suboptions:
      file_bytes:
        description: Size of the file, at most 1048576.
        type: int
        required: true
      block_bytes:
        description: Size of each write, at most 1048576.
        type: int
        required: true
  device_write_budget_bytes:
    description:
      - Bytes that the cases may cost in device writes, those of all members together, their removal included. So no node
        pays more than that.
      - 1 MiB in blocks of 512 bytes costs about 2.7 GiB on each member and is left out by default.
      - A case is stopped when this node's device was written more than what is left.
    type: int
    default: 67108864
  budget_name:
    description: Name of the variable that sets the budget, for the messages.
    type: str
    default: device_write_budget_bytes
  idle_seconds:
    description: How long what others write is observed before the first case, in seconds.
    type: float
    default: 5
  database:
    description: Database of the cluster file system.
    type: path
    default: /var/lib/pve-cluster/config.db
  pid_file:
    description: File with the process id of the daemon.
    type: path
    default: /run/pve-cluster.pid
  store:
    description: Where the database is in memory, what reaches the disk behind this path is told as well.
    type: path
    default: /var/lib/pveguard
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Measure within the default budget
  write_amplification:
  register: amplification

- name: Show the factors
  ansible.builtin.debug:
    msg: "{{ item.block_bytes }} bytes a write: {{ item.skipped or item.factor }}"
  loop: "{{ amplification.cases }}"

- name: Measure 1 MiB in blocks of 512 bytes too, 2.7 GiB on each of three nodes
  write_amplification:
    cases:
      - {file_bytes: 1048576, block_bytes: 512}
      - {file_bytes: 1048576, block_bytes: 4096}
      - {file_bytes: 1048576, block_bytes: 131072}
    device_write_budget_bytes: "{{ 12 * 1024 ** 3 }}"
"""

RETURN = r"""
cases:
  description: The cases in their order. A figure that could not be had is null, and notes say why.
  returned: always
  type: list
  elements: dict
  contains:
    file_bytes: {description: Size of the file., type: int}
    block_bytes: {description: Size of each write., type: int}
    transactions:
      description: By the version of the database. Those of others that fall into the case are among them.
      type: int
    wal_bytes: {description: Bytes appended to the write-ahead log., type: int}
    pmxcfs_write_bytes: {description: Bytes the daemon caused to be written., type: int}
    device_bytes:
      description: >-
        Bytes written to the device behind the database, by everyone, from a write-back of its file system before to one
        after the case. V(0) where the database is in memory.
      type: int
    noise_bytes: {description: What others write in that time, by the idle window., type: int}
    factor:
      description: (device_bytes - noise_bytes) / file_bytes; null for a case that was skipped or stopped.
      type: float
    skipped: {description: Why the case was not written or not to its end; null when it was., type: str}
    seconds: {description: 'How long it took, write-back included.', type: float}
    removal_device_bytes: {description: Bytes written to the device for the removal of the file., type: int}
    store_device_bytes:
      description: >-
        Only where the database is in memory. Bytes that everyone wrote to the disk behind O(store) meanwhile.
      type: int
    predicted_transactions: {description: Transactions by the model., type: int}
    predicted_device_bytes: {description: 'Device bytes of writing on one member, by the model.', type: int}
    predicted_cost_bytes: {description: 'The same with the removal. This counts against the budget.', type: int}
device_write_budget_bytes:
  description: The budget.
  returned: always
  type: int
spent_bytes:
  description: >-
    What the cases cost all members together. What this node's device took stands for each of the others; where its
    database is in memory the prediction does.
  returned: always
  type: int
node:
  description: Name of the node as its daemon knows it.
  returned: always
  type: str
members:
  description: Members that carry out each write, this node among them.
  returned: always
  type: list
  elements: str
path:
  description: The file.
  returned: always
  type: str
database_in_memory:
  description: Whether this node's database is in memory, so that its writes cost no device anything.
  returned: always
  type: bool
device:
  description: Block device behind the database; null for one in memory, and where none is known (ZFS).
  returned: always
  type: str
idle:
  description: >-
    The idle window: seconds, transactions, device_bytes, pmxcfs_write_bytes; null when nothing was written.
  returned: always
  type: dict
removed_leftovers:
  description: Files of killed probes that were removed.
  returned: always
  type: list
  elements: str
notes:
  description: Sentences for what the figures alone do not say.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.disk import block_writes
from ansible.module_utils.pveguard.writes import write_amplification


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cases": {
                "type": "list",
                "elements": "dict",
                "default": [dict(case) for case in write_amplification.CASES],
                "options": {
                    "file_bytes": {"type": "int", "required": True},
                    "block_bytes": {"type": "int", "required": True},
                },
            },
            "device_write_budget_bytes": {"type": "int", "default": write_amplification.BUDGET_BYTES},
            "budget_name": {"type": "str", "default": "device_write_budget_bytes"},
            "idle_seconds": {"type": "float", "default": write_amplification.IDLE_SECONDS},
            "database": {"type": "path", "default": block_writes.DATABASE},
            "pid_file": {"type": "path", "default": block_writes.PID_FILE},
            "store": {"type": "path", "default": block_writes.STORE},
        },
        supports_check_mode=True,
    )
    try:
        result = write_amplification.measure(**module.params, check_mode=module.check_mode)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
