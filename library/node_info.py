#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Facts of a Proxmox VE node, in one round trip and without changing it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Facts of a Proxmox VE node, its cluster file system, Corosync, HA and RAM state
description:
  - Gathers in one round trip what the playbooks decide by. Works on a plain Debian host as well.
  - Reads only, but for the lock where O(lock) asks for it. The database of the cluster file system is read through SQLite in
    one short read transaction.
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode; who has the lock is looked at, and it is not taken.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  noise:
    description: C(ram_state_noise), what RV(node.pmxcfs.tree_sha256) leaves out; pveguard's default list when it is not given.
    type: list
    elements: str
  lock:
    description:
      - Take the lock of this run first, as M(run_lock) does and with its options.
      - Where another run has it nothing is looked at, which is no failure; RV(acquired) is false then.
    type: dict
    suboptions:
      holder:
        description: Who takes the lock; an object with at least C(run_id), C(who) and C(since).
        type: dict
        required: true
      takeover:
        description: Run id of a holder that is known to be gone; its lock is replaced.
        type: str
      cluster:
        description: Also takes the lock of the cluster.
        type: bool
        default: true
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Look at the node
  node_info:
  register: pveguard_node
"""

RETURN = r"""
acquired:
  description: Whether this run has the lock (or in check mode could have it).
  returned: with O(lock)
  type: bool
holder:
  description: The run that has the lock.
  returned: with O(lock)
  type: dict
where:
  description: Path of the lock that another run holds.
  returned: with O(lock), empty when acquired
  type: str
refusal:
  description: Who has the lock and what helps, as a sentence.
  returned: with O(lock), empty when acquired
  type: str
node:
  description: The facts.
  returned: unless another run has the lock that O(lock) asks for
  type: dict
  contains:
    hostname: {description: 'Name of the node, the host name up to its first dot.', type: str}
    resolved_address:
      description: Address the name resolves to, a non-loopback one if there is any; null when it does not resolve.
      type: str
    boot_id: {description: Identifier of this boot., type: str}
    kernel: {description: Release of the kernel., type: str}
    machine_codename: {description: 'Code name of the distribution, such as trixie.', type: str}
    python: {description: Version of Python on the node., type: str}
    packages:
      description: >-
        Installed version of corosync, proxmox-backup-server, pve-cluster, pve-ha-manager, pve-manager; null when absent.
      type: dict
    units: {description: 'Load, active and enabled state of each unit, as systemctl show prints them.', type: dict}
    pmxcfs:
      description: >-
        The cluster file system: mounted, writable (by the modes of its files), mode (down, local or cluster, as the daemon
        decides it: by corosync.conf in its database and the option -l), quorate (null where there is no cluster), met_corosync
        (false while a daemon in cluster mode has not met its Corosync, so that /etc/pve is read-only; null where that is not
        the question), root_version, tree_sha256 (noise aside), guests, storage, users, has_corosync_conf (these four null where
        the database is there and not understood), database_bytes (file and log), member_addresses (by node name), left_nodes
        (directories below /etc/pve/nodes that belong to no node, each with name, guests, files, private_key, authorized_key),
        error (why something of this is not known; that is never taken for local mode).
      type: dict
    corosync: {description: 'Both copies of corosync.conf, membership, quorum, links, effective token in ms.', type: dict}
    locks_kept:
      description: Locks on /etc/pve that a change on this node had to leave (module pve_lock), each with path and reason.
      type: list
    ha: {description: 'HA resources, services, watchdog and whether a client holds it.', type: dict}
    ram_state:
      description: >-
        Output of pve-state status, with C(installed) (the program's version, empty where it is not whole, and what is at the path
        of each of its files), or state absent.
      type: dict
    write_diet:
      description: >-
        Facts of each measure of the write diet by its name: C(installed) (what it is about is there), C(kept) (it is on),
        C(pending) (it was interrupted), and what it decides by; of rrdcached also C(rrd) (files, bytes, flush_bytes: what one
        flush of them all writes).
        C(surroundings) has C(ram_logs) (file systems in RAM over logs) and C(database) (the file system below it).
      type: dict
    counters:
      description: What was written so far and by whom, as the module pmxcfs_writes returns it under the same name.
      type: dict
    login: {description: 'authorized_keys_depends_on_pve is true when root''s authorized_keys lies on /etc/pve.', type: dict}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import node_info
from ansible.module_utils.pveguard.pmxcfs import run_lock


def main() -> None:
    module = AnsibleModule(
        argument_spec={"noise": {"type": "list", "elements": "str"}, "lock": run_lock.OPTION}, supports_check_mode=True
    )
    try:
        lock = run_lock.take(module.params["lock"], module.check_mode)
        if lock is not None and not lock.acquired:
            module.exit_json(changed=False, **lock.as_dict())
        facts = node_info.collect(noise=module.params["noise"])
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    # A lock is not a change of the node: it is gone when the run is.
    module.exit_json(changed=False, node=facts, **(lock.as_dict() if lock is not None else {}))


if __name__ == "__main__":
    main()
