#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""How fast a file system makes small writes durable."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fsync_bench
short_description: Measure fsyncs per second and their latency on a file system
description:
  - Measures for O(duration) seconds in all, by one or more methods, in short interleaved rounds.
  - V(pveperf) is the loop of Proxmox's C(pveperf). It rotates over 300 files, opens each with truncate, calls fsync,
    writes 4001 bytes and closes it, in this order. The rate is that of syncing a truncated file, and compares with
    published figures of C(pveperf); none of the data is waited for.
  - V(fdatasync) writes blocks of 2300 bytes, each followed by fdatasync, as etcd's check with fio does.
  - V(commit) makes SQLite transactions as the daemon of the cluster file system does, checkpoints included.
  - Says which disks are behind the path, and which signs there are that they acknowledge what they have not stored.
  - Works in a directory of its own, needs less than 10 MiB, and removes it also when it is ended by a
    signal. What a killed measurement left is removed by the next one.
  - A disk that hangs does not hang the task. It is given up on 30 seconds after its time.
attributes:
  check_mode:
    support: full
    description: >-
      It measures in check mode too, and leaves nothing behind, no stored result either. It never reports a change.
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
    description: How long to measure, in seconds, all methods together.
    type: float
    default: 3
  methods:
    description: How to measure. The figures at the top of the result are those of V(pveperf) where it is among them.
    type: list
    elements: str
    choices: [pveperf, fdatasync, commit]
    default: [pveperf]
  min_fsyncs_per_second:
    description: A lower rate of V(pveperf) is a verdict of V(fail). V(0) measures without judging the rate.
    type: float
    default: 0
  warn_p99_ms:
    description: >-
      A 99th percentile of V(fdatasync) or V(commit) of so many milliseconds or more is a verdict of V(warn). V(0) does
      not judge it.
    type: float
    default: 0
  threshold_name:
    description: Name of the variable that sets the threshold, for the message.
    type: str
    default: min_fsyncs_per_second
  p99_threshold_name:
    description: The same for O(warn_p99_ms).
    type: str
    default: warn_p99_ms
  enforce:
    description: Fail the task on a verdict of V(fail). Otherwise warn.
    type: bool
    default: true
  cache_file:
    description: >-
      Where the last result lies on the node. It is used instead of measuring while it is younger than O(cache_days) and
      of the same drive, kernel, file system and methods.
    type: path
  cache_days:
    description: How long a stored result holds. V(0) measures each time.
    type: float
    default: 0
  store:
    description: Store the result in O(cache_file). Never done in check mode, and not reported as a change.
    type: bool
    default: false
  stored_only:
    description: >-
      Measure nothing. Where no stored result holds, only RV(cached) and RV(cache) are returned.
    type: bool
    default: false
  power_cut:
    description: >-
      Verdict of M(power_cut_ledger). Where it is of this drive, a conviction is a verdict of V(fail), and after an
      acquittal no suspicion is a V(warn), unless the power-loss protection of the drive has failed.
    type: dict
    default: {}
  previous:
    description: An earlier result, for the drift where O(cache_file) has none.
    type: dict
    default: {}
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

- name: Measure a member once a week
  fsync_bench:
    nearest_parent: true
    methods: [pveperf, fdatasync]
    duration: 6
    warn_p99_ms: 10
    enforce: false
    cache_file: /var/lib/pveguard/fsync_gate.json
    cache_days: 7
    store: true
"""

RETURN = r"""
verdict:
  description: V(pass), V(warn) or V(fail).
  returned: unless O(stored_only) finds no result
  type: str
reason:
  description: >-
    V(ok); with V(warn) V(latency), V(suspect) or V(health); with V(fail) V(slow), V(lying), V(missing),
    V(not_a_directory), V(read_only), V(full), V(denied), V(stalled) or V(io_error).
  returned: unless O(stored_only) finds no result
  type: str
message:
  description: What was seen and what was wanted, in one sentence.
  returned: unless O(stored_only) finds no result
  type: str
method:
  description: Method whose figures stand at the top. This and the figures are null when nothing could be measured.
  returned: unless O(stored_only) finds no result
  type: str
measures:
  description: What the figures at the top are of, in words. Results that differ in it cannot be compared.
  returned: unless O(stored_only) finds no result
  type: str
fsyncs_per_second:
  description: Rate of the whole loop of that method.
  returned: unless O(stored_only) finds no result
  type: float
fsyncs_per_second_interval:
  description: Interval of confidence of the rate (95 %, from the rounds), lowest and highest.
  returned: unless O(stored_only) finds no result
  type: list
p50_ms:
  description: Median latency of the sync alone in milliseconds.
  returned: unless O(stored_only) finds no result
  type: float
p90_ms:
  description: 90th percentile.
  returned: unless O(stored_only) finds no result
  type: float
p99_ms:
  description: 99th percentile.
  returned: unless O(stored_only) finds no result
  type: float
p99_9_ms:
  description: 99.9th percentile; the maximum when there are fewer than 1000 samples.
  returned: unless O(stored_only) finds no result
  type: float
max_ms:
  description: Longest.
  returned: unless O(stored_only) finds no result
  type: float
samples:
  description: How many.
  returned: unless O(stored_only) finds no result
  type: int
duration_seconds:
  description: How long was measured.
  returned: unless O(stored_only) finds no result
  type: float
methods:
  description: Figures by name of the method.
  returned: unless O(stored_only) finds no result
  type: dict
  contains:
    operations_per_second: {description: 'Rate of the whole loop: fsyncs, fdatasyncs or commits.', type: float}
    operations_per_second_interval: {description: Its interval of confidence., type: list}
    rounds_per_second: {description: Rate of each round., type: list}
    p50_ms:
      description: Median latency of the sync alone in milliseconds.
      type: float
    p90_ms:
      description: 90th percentile.
      type: float
    p99_ms:
      description: 99th percentile.
      type: float
    p99_9_ms:
      description: 99.9th percentile; the maximum when there are fewer than 1000 samples.
      type: float
    max_ms:
      description: Longest.
      type: float
    samples:
      description: How many.
      type: int
    duration_seconds:
      description: How long was measured.
      type: float
    p99_ms_interval: {description: 'Interval of confidence of the 99th percentile; null with few samples.', type: list}
    histogram: {description: 'Pairs of upper limit in milliseconds and count; limits are a factor of 1.41 apart.', type: list}
    checkpoints: {description: How often the log was started anew; V(commit) only., type: int}
suspect:
  description: >-
    Signs that the disk acknowledges what it has not stored: pairs of rule (V(rotation), V(latency), V(virtual_cache),
    V(no_flush), V(no_barrier), V(zfs_sync)) and evidence. Only a power cut proves it.
  returned: unless O(stored_only) finds no result
  type: list
class:
  description: >-
    Kind of medium: V(usb-or-sd), V(hdd), V(ssd), V(nvme), V(ssd-with-power-loss-protection), V(ram) or V(unknown).
  returned: unless O(stored_only) finds no result
  type: str
class_rule:
  description: What that was told from.
  returned: unless O(stored_only) finds no result
  type: str
rotational:
  description: Whether the kernel takes the disk for a rotating one. This and the next are null where disks differ.
  returned: unless O(stored_only) finds no result
  type: bool
transport:
  description: How the disk is attached, such as V(sata), V(nvme), V(usb) or V(virtio).
  returned: unless O(stored_only) finds no result
  type: str
write_cache:
  description: V(write back) where the kernel has to flush the disk, V(write through) where not.
  returned: unless O(stored_only) finds no result
  type: str
power_loss_protection:
  description: Whether the disk's cache survives a power cut; false where its protection has failed, null when not known.
  returned: unless O(stored_only) finds no result
  type: bool
drive_identity:
  description: What tells one drive from another.
  returned: unless O(stored_only) finds no result
  type: str
block_device:
  description: >-
    Everything known of the block device: layers, disks (name, size_bytes, rotational, rpm, transport, virtual, vendor,
    model, serial, wwn, write_cache, drive_write_cache, volatile_cache, power_loss_protection, power_loss_rule,
    power_loss_failed, health), mount.
  returned: unless O(stored_only) finds no result
  type: dict
path:
  description: Directory asked for.
  returned: unless O(stored_only) finds no result
  type: str
measured_path:
  description: Directory that was measured.
  returned: unless O(stored_only) finds no result
  type: str
device:
  description: Block device of the file system; null for one without.
  returned: unless O(stored_only) finds no result
  type: str
disk:
  description: Disk that the device is a partition of, or the device itself.
  returned: unless O(stored_only) finds no result
  type: str
filesystem:
  description: Type of the file system.
  returned: unless O(stored_only) finds no result
  type: str
mount_options:
  description: Options it is mounted with.
  returned: unless O(stored_only) finds no result
  type: str
in_memory:
  description: Whether it is in RAM, so that the result says nothing about a disk.
  returned: unless O(stored_only) finds no result
  type: bool
free_bytes:
  description: Free space in bytes.
  returned: unless O(stored_only) finds no result
  type: int
kernel:
  description: Release of the kernel.
  returned: unless O(stored_only) finds no result
  type: str
time:
  description: When it was measured (UTC, ISO 8601).
  returned: unless O(stored_only) finds no result
  type: str
cached:
  description: Whether this is a stored result.
  returned: always
  type: bool
cache:
  description: V(used), or why no stored result was.
  returned: always
  type: str
age_days:
  description: Age of a stored result.
  returned: unless O(stored_only) finds no result
  type: float
drift:
  description: >-
    Against the result before: since, fsyncs_per_second_before, fsyncs_per_second_change_percent, p99_ms_before,
    p99_ms_change_percent, changed, notable, message; null without one.
  returned: unless O(stored_only) finds no result
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.gates import fsync_gate
from ansible.module_utils.pveguard.gates.fsync_bench import METHODS


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var/lib/pve-cluster"},
            "nearest_parent": {"type": "bool", "default": False},
            "duration": {"type": "float", "default": 3},
            "methods": {
                "type": "list",
                "elements": "str",
                "choices": ["pveperf", "fdatasync", "commit"],
                "default": ["pveperf"],
            },
            "min_fsyncs_per_second": {"type": "float", "default": 0},
            "warn_p99_ms": {"type": "float", "default": 0},
            "threshold_name": {"type": "str", "default": "min_fsyncs_per_second"},
            "p99_threshold_name": {"type": "str", "default": "warn_p99_ms"},
            "enforce": {"type": "bool", "default": True},
            "cache_file": {"type": "path"},
            "cache_days": {"type": "float", "default": 0},
            "store": {"type": "bool", "default": False},
            "stored_only": {"type": "bool", "default": False},
            "power_cut": {"type": "dict", "default": {}},
            "previous": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0 < params["duration"] <= 600:
        module.fail_json(msg=f"duration is {params['duration']:g}, expected above 0 and at most 600 seconds")
    if not params["methods"]:
        module.fail_json(msg=f"methods is empty, expected one or more of {', '.join(METHODS)}")
    enforce = params.pop("enforce")
    params["store"] = params["store"] and not module.check_mode
    params["cache_file"] = params["cache_file"] or ""
    result = fsync_gate.gate(**params)
    if "verdict" not in result:
        module.exit_json(changed=False, **result)
    if result["verdict"] == "fail" and enforce:
        module.fail_json(msg=result["message"], **result)
    # What was said when it was measured is not said again on every run.
    if result["verdict"] != "pass" and not result["cached"]:
        module.warn(result["message"])
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
