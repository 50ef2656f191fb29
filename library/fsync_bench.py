#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""How fast a file system makes small writes durable."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fsync_bench
short_description: Measure fsyncs per second and their latency on a file system
description:
  - Runs the loop of Proxmox's C(pveperf). For O(duration) seconds it rotates over 300 files, opens each with
    truncate, writes 4001 bytes, calls fsync and closes it.
  - Works in a directory of its own, uses less than 2 MiB of it, and removes it also when it is ended by a
    signal. What a killed measurement left is removed by the next one.
  - A disk that hangs does not hang the task. It is given up on 30 seconds after its time.
attributes:
  check_mode:
    support: full
    description: It measures in check mode too, and leaves nothing behind. It never reports a change.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  path:
    description: Directory on the file system to be measured.
    type: path
    default: /var/lib/pve-cluster
  nearest_parent:
    description: Where O(path) does not exist, or is in memory, measure its nearest parent on a disk.
    type: bool
    default: false
  duration:
    description: How long to measure, in seconds.
    type: float
    default: 3
  min_fsyncs_per_second:
    description: A lower rate is a verdict of V(fail). V(0) measures without judging the rate.
    type: float
    default: 0
  threshold_name:
    description: Name of the variable that sets the threshold, for the message.
    type: str
    default: min_fsyncs_per_second
  enforce:
    description: Fail the task on a verdict of V(fail). Otherwise warn.
    type: bool
    default: true
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Measure
  fsync_bench:
    path: /var/lib
  register: disk

- name: Refuse a disk that is too slow
  fsync_bench:
    nearest_parent: true
    min_fsyncs_per_second: 200
"""

RETURN = r"""
verdict:
  description: V(pass) or V(fail).
  returned: always
  type: str
reason:
  description: >-
    V(ok), V(slow), V(missing), V(not_a_directory), V(read_only), V(full), V(denied), V(stalled) or
    V(io_error).
  returned: always
  type: str
message:
  description: What was seen and what was wanted, in one sentence.
  returned: always
  type: str
fsyncs_per_second:
  description: Rate of the whole loop. This and the latencies are null when nothing could be measured.
  returned: always
  type: float
p50_ms:
  description: Median latency of fsync in milliseconds.
  returned: always
  type: float
p90_ms:
  description: 90th percentile.
  returned: always
  type: float
p99_ms:
  description: 99th percentile.
  returned: always
  type: float
p99_9_ms:
  description: 99.9th percentile; the maximum when there are fewer than 1000 samples.
  returned: always
  type: float
max_ms:
  description: Longest fsync.
  returned: always
  type: float
samples:
  description: Number of fsyncs.
  returned: always
  type: int
duration_seconds:
  description: How long was measured.
  returned: always
  type: float
measured_path:
  description: Directory that was measured.
  returned: always
  type: str
device:
  description: Block device of the file system; null for one without.
  returned: always
  type: str
disk:
  description: Disk that the device is a partition of, or the device itself.
  returned: always
  type: str
filesystem:
  description: Type of the file system.
  returned: always
  type: str
mount_options:
  description: Options it is mounted with.
  returned: always
  type: str
in_memory:
  description: Whether it is in RAM, so that the result says nothing about a disk.
  returned: always
  type: bool
free_bytes:
  description: Free space in bytes.
  returned: always
  type: int
time:
  description: When it was measured (UTC, ISO 8601).
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard import fsync_bench


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var/lib/pve-cluster"},
            "nearest_parent": {"type": "bool", "default": False},
            "duration": {"type": "float", "default": 3},
            "min_fsyncs_per_second": {"type": "float", "default": 0},
            "threshold_name": {"type": "str", "default": "min_fsyncs_per_second"},
            "enforce": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0 < params["duration"] <= 600:
        module.fail_json(msg=f"duration is {params['duration']:g}, expected above 0 and at most 600 seconds")
    result = fsync_bench.bench(
        params["path"],
        params["duration"],
        min_fsyncs_per_second=params["min_fsyncs_per_second"],
        nearest_parent=params["nearest_parent"],
        threshold_name=params["threshold_name"],
    )
    if result["verdict"] == "fail":
        if params["enforce"]:
            module.fail_json(msg=result["message"], **result)
        module.warn(result["message"])
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
