#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Bytes written to the disk behind a path, without waiting."""

from __future__ import annotations

DOCUMENTATION = r"""
module: block_writes
short_description: Bytes written to the disk behind a path, by service and by the cluster file system's daemon
description:
  - Returns the kernel's counters at once, and given those of an earlier call (O(previous)) what was written
    since.
  - The disk is the one behind the path or behind its nearest parent that exists and is not in memory.
  - Bytes by systemd unit are those of the units' control groups to this disk where the io controller is on, and
    otherwise those of the living processes to any device. What the kernel writes for itself belongs to no unit.
  - Reads only.
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  path:
    description: Where to look for the disk.
    type: path
    default: /var/lib/pveguard
  previous:
    description: RV(counters) of an earlier call. Empty for none.
    type: dict
    default: {}
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Read the counters
  block_writes:
    path: /var/lib
  register: before

- name: Ask what was written since then
  block_writes:
    path: /var/lib
    previous: "{{ before.counters }}"
  register: after
"""

RETURN = r"""
counters:
  description: >-
    The counters now: time, boot_id, machine, uptime_seconds, device (with bytes_written and writes since
    boot), database, pmxcfs (with write_bytes of the daemon), services_source (V(cgroup) or V(proc)), services (bytes
    by systemd unit) and services_identity.
  returned: always
  type: dict
since:
  description: What was written since O(previous); null without it. A figure that could not be had is null.
  returned: always
  type: dict
  contains:
    seconds: {description: Time between the two calls., type: float}
    device_bytes: {description: Bytes written to the disk., type: int}
    device_bytes_per_minute:
      description: The same per minute; null, as every figure per minute, unless it was whole minutes or ten and more.
      type: float
    pmxcfs_write_bytes: {description: Bytes the daemon caused to be written., type: int}
    pmxcfs_write_bytes_per_minute: {description: The same per minute., type: float}
    services:
      description: >-
        The ten systemd units that wrote most, with service, bytes, bytes_per_minute and exact (false is a lower
        bound); null when not known.
      type: list
      elements: dict
    services_source: {description: 'V(cgroup) is bytes to the disk, V(proc) bytes to any device.', type: str}
    services_notes: {description: What the figures of services do not tell., type: list, elements: str}
    notes: {description: 'Why a figure is null, such as a reboot in between.', type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.disk import block_writes


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": block_writes.STORE},
            "previous": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    now = block_writes.counters(module.params["path"])
    previous = module.params["previous"]
    since = block_writes.difference(previous, now) if previous else None
    module.exit_json(changed=False, counters=now, since=since)


if __name__ == "__main__":
    main()
