#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Facts of a Proxmox VE node, in one round trip and without changing it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Facts of a Proxmox VE node, its cluster file system, Corosync, HA and RAM state
description:
  - Gathers in one round trip what the playbooks decide by. Works on a plain Debian host as well.
  - Reads only. The database of the cluster file system is read through SQLite in one short read transaction.
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  noise:
    description: C(ram_state_noise), what RV(node.pmxcfs.tree_sha256) leaves out; pveguard's default list when it is not given.
    type: list
    elements: str
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Look at the node
  node_info:
  register: pveguard_node
"""

RETURN = r"""
node:
  description: The facts.
  returned: always
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
    ram_state: {description: 'Output of pve-state status, or state absent.', type: dict}
    counters:
      description: What was written so far, as the module pmxcfs_writes returns it under the same name.
      type: dict
    login: {description: 'authorized_keys_depends_on_pve is true when root''s authorized_keys lies on /etc/pve.', type: dict}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import node_info


def main() -> None:
    module = AnsibleModule(argument_spec={"noise": {"type": "list", "elements": "str"}}, supports_check_mode=True)
    try:
        facts = node_info.collect(noise=module.params["noise"])
    except PveguardError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, node=facts)


if __name__ == "__main__":
    main()
