#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What drives have behind them and what they have left."""

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_wear
short_description: Data written, percentage used and endurance of drives
description:
  - Asks C(smartctl) for the wear of the disks behind paths, through LVM, dm-crypt, md, ZFS and partitions; C(nvme)
    where C(smartctl) is missing.
  - What a drive does not say is null, and a note says why. A unit that nobody documents is not guessed. A figure that
    contradicts others of the same drive (hours, size, percentage used, erasures) is null, and the note names them.
  - A drive that sleeps is not woken. A drive that does not answer costs O(timeout) seconds and its own figures only.
  - Reads only. Never returns a serial number.
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  paths:
    description: The disks behind these paths, or behind their nearest parents that are not in memory.
    type: list
    elements: path
    default: [/var/lib/pveguard, /var/lib/pve-cluster]
  all_disks:
    description: Every other disk of the machine as well.
    type: bool
    default: false
  endurance:
    description: Rated endurance of drives. The first entry that fits counts.
    type: list
    elements: dict
    default: []
    suboptions:
      model:
        description: Regular expression for the whole model name as C(smartctl) prints it. Case is ignored.
        type: str
      tbw:
        description: Terabytes (10^12 bytes) that the maker rates it for.
        type: float
      tbw_bytes:
        description: The same in bytes. It wins over O(endurance[].tbw).
        type: int
      source:
        description: Where that was read.
        type: str
  timeout:
    description: Seconds that each drive may take.
    type: float
    default: 20
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Read the wear of the disks that the cluster file system writes to
  disk_wear:
  register: wear

- name: Read every disk, with one rating that the table lacks
  disk_wear:
    all_disks: true
    endurance:
      - model: ACME Disk 9000 1TB
        tbw: 600
        source: the data sheet of 2026
"""

RETURN = r"""
disks:
  description: One entry for each drive. Each figure may be null; the notes say why.
  returned: always
  type: list
  elements: dict
  contains:
    disk: {description: The kernel's name., type: str}
    model: {description: What the drive calls itself., type: str}
    serial_sha256: {description: 16 digits of a hash of the serial number., type: str}
    kind: {description: 'nvme, sata, sas or unknown.', type: str}
    virtual: {description: A hypervisor's., type: bool}
    rotational: {description: It turns., type: bool}
    size_bytes: {description: Its size., type: int}
    written_bytes: {description: What the host wrote in the drive's life., type: int}
    written_from: {description: What that was read from., type: str}
    nand_bytes: {description: What the drive programmed into its flash., type: int}
    nand_from: {description: What that was read from., type: str}
    drive_amplification: {description: The ratio of the two., type: float}
    percentage_used: {description: 'Of its rated life, in percent; may exceed 100.', type: int}
    percentage_from: {description: What that was read from., type: str}
    spare_percent: {description: Spare blocks that are left., type: int}
    media_errors: {description: Errors that the drive could not correct., type: int}
    unsafe_shutdowns: {description: How often its power went without notice., type: int}
    power_on_hours: {description: Hours with power., type: int}
    health_passed: {description: The drive's own verdict., type: bool}
    health: {description: 'What the drive complains of, a sentence each.', type: list, elements: str}
    power_loss_protection: {description: 'Its cache survives a power cut; false where that has failed.', type: bool}
    power_loss_rule: {description: What that was told from., type: str}
    rated_tbw_bytes: {description: What its maker rates it for., type: int}
    rated_from: {description: Who says so., type: str}
    tool: {description: 'smartctl, nvme, or null where neither could read it.', type: str}
    paths: {description: Which of O(paths) lie on it., type: list, elements: str}
    notes: {description: 'What is missing and why; what the drive complains of.', type: list, elements: str}
notes:
  description: What is missing of no drive in particular, such as a path without a disk.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.disk import disk_wear


def main() -> None:
    module = NodeModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": list(disk_wear.PATHS)},
            "all_disks": {"type": "bool", "default": False},
            "endurance": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "model": {"type": "str"},
                    "tbw": {"type": "float"},
                    "tbw_bytes": {"type": "int"},
                    "source": {"type": "str"},
                },
            },
            "timeout": {"type": "float", "default": disk_wear.TIMEOUT_S},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0 < params["timeout"] <= 600:
        module.fail_json(
            msg=f"timeout is {params['timeout']:g}, expected above 0 and at most 600 seconds for each drive"
        )
    # Ansible fills in what an entry lacks; the core says what is missing.
    table = [
        {key: value for key, value in entry.items() if value is not None} for entry in params["endurance"]
    ]
    result = disk_wear.wear(
        params["paths"], all_disks=params["all_disks"], table=table, timeout=params["timeout"]
    )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
