#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The state of Proxmox's cluster file system in RAM, or back on disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ram_state
short_description: Keep the database of Proxmox VE's cluster file system in RAM, or put it back on disk
description:
  - V(enabled) installs the program pve-state and its units, proves that the login in use works while /etc/pve is
    gone, and moves the database to RAM as a detached unit that puts stock back on any failure. The daemon is down
    for seconds.
  - Where the node runs from RAM already, only files that differ are written and only the watcher is restarted. The
    daemon is never touched then.
  - Refuses, with nothing changed, HA resources, a running Proxmox task, a locked guest configuration of this node, a
    cluster without quorum or with a member that is not online, a foreign mount on /var/lib/pve-cluster, too little RAM
    or disk, a database that does not pass verification, a host name that resolves to a loopback address, and a login
    that depends on /etc/pve.
  - V(disabled) copies the newest state back to disk, verified, starts the daemon on it and removes pveguard's files.
    The store's generations stay. Refuses a member that is not online as well.
  - Run it on one node at a time.
attributes:
  check_mode:
    support: full
    description: Reports what would be done and writes nothing. Refuses as a real run would.
  diff_mode:
    support: full
    description: Shows every file before and after.
options:
  state:
    description: Where the state shall be. V(info) only reports.
    type: str
    choices: [enabled, disabled, info]
    default: enabled
  units:
    description:
      - Text of each unit by its name.
      - C(@NOSWAP@) stands for the mount option that keeps a tmpfs out of swap, where the kernel has it.
    type: dict
    default: {}
  drop_in:
    description: Text of the drop-in of pve-cluster.service.
    type: str
    default: ""
  config:
    description: Settings of pve-state.
    type: dict
    default: {}
  allow_ha:
    description: Does not refuse because of HA resources.
    type: bool
    default: false
  allow_offline_members:
    description: Does not refuse because a member of the cluster is not online, in either direction.
    type: bool
    default: false
  login_fallback:
    description:
      - Adds the key in use to a file that sshd reads and that does not lie on /etc/pve, when the login depends on
        it.
      - The line ends in C(pveguard-login-fallback) and is removed by V(disabled).
    type: bool
    default: true
  deadline:
    description: Seconds after which a switch-over that did not end is undone.
    type: int
    default: 300
  lock:
    description: >-
      Take the lock of this run first, as M(run_lock) does. Where another run has it the module fails, with nothing changed.
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
- name: State in RAM
  ram_state:
    units:
      pveguard-state.service: "{{ lookup('ansible.builtin.file', 'units/pveguard-state.service') }}"
    drop_in: "{{ lookup('ansible.builtin.file', 'units/pve-cluster.conf') }}"
    config:
      rpo_seconds: 2

- name: What is live, what is saved
  ram_state:
    state: info
  register: state
"""

RETURN = r"""
ram_state:
  description:
    - Output of C(pve-state status), as it was before this call.
    - C(state) is C(absent) when it is not installed.
  returned: success
  type: dict
switched:
  description: Whether the daemon was (in check mode would be) restarted onto RAM or disk.
  returned: success
  type: bool
restarted:
  description: Units that were (in check mode would be) restarted because a file changed.
  returned: success
  type: list
  elements: str
changed_paths:
  description: Files that were (in check mode would be) written or removed.
  returned: success
  type: list
  elements: str
downtime_seconds:
  description: Seconds from the stop of the daemon until /etc/pve was served again.
  returned: when a switch-over was made
  type: float
tmpfs_bytes:
  description: Limit of the RAM file system.
  returned: when the state was moved to RAM, and in check mode as predicted
  type: int
root_version:
  description: Root version of the live database after the switch-over.
  returned: when a switch-over was made
  type: int
tree_sha256:
  description: Hash of all paths, types and contents, noise aside, after the switch-over.
  returned: when a switch-over was made
  type: str
pmxcfs:
  description: The cluster file system as it is after the switch-over, as M(node_info) returns it.
  returned: when a switch-over was made
  type: dict
login:
  description: How the login in use was proved.
  returned: when the state is or would be moved to RAM
  type: dict
"""

from typing import Any

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.pmxcfs import pmxcfs, run_lock
from ansible.module_utils.pveguard.state import ram_state


def main() -> None:
    module = NodeModule(
        argument_spec={
            "state": {"type": "str", "choices": ["enabled", "disabled", "info"], "default": "enabled"},
            "units": {"type": "dict", "default": {}},
            "drop_in": {"type": "str", "default": ""},
            "config": {"type": "dict", "default": {}},
            "allow_ha": {"type": "bool", "default": False},
            "allow_offline_members": {"type": "bool", "default": False},
            "login_fallback": {"type": "bool", "default": True},
            "deadline": {"type": "int", "default": 300},
            "lock": run_lock.OPTION,
        },
        supports_check_mode=True,
    )
    params = module.params
    options = ram_state.Options(
        units=params["units"],
        drop_in=params["drop_in"],
        config=params["config"],
        allow_ha=params["allow_ha"],
        allow_offline_members=params["allow_offline_members"],
        login_fallback=params["login_fallback"],
        deadline_s=params["deadline"],
    )
    result: dict[str, Any]
    try:
        run_lock.require(params["lock"], module.check_mode)
        if params["state"] == "info":
            result = {"changed": False, "files": [], "switched": False, "status": ram_state.status()}
        elif params["state"] == "enabled":
            result = ram_state.enable(options, check=module.check_mode)
        else:
            result = ram_state.disable(options, check=module.check_mode)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    preflight: dict[str, Any] = result.get("preflight") or {}
    status: dict[str, Any] = result.get("status") or {"state": "absent"}
    for warning in preflight.get("warnings", []) + status.get("warnings", []):
        module.warn(warning)
    figures: dict[str, Any] = {
        key: result[key]
        for key in ("downtime_seconds", "tmpfs_bytes", "root_version", "tree_sha256", "login", "source")
        if key in result
    }
    if preflight:
        figures.setdefault("tmpfs_bytes", preflight.get("tmpfs_bytes"))
        figures.setdefault("login", preflight.get("login"))
    if result["switched"] and not module.check_mode:
        figures["pmxcfs"] = pmxcfs.collect(patterns=params["config"].get("noise"))
    module.exit_json(
        changed=result["changed"],
        ram_state=status,
        switched=result["switched"],
        restarted=result.get("restarted", []),
        changed_paths=[change.path for change in result["files"]],
        diff=ram_state.diff(result["files"]),
        **figures,
    )


if __name__ == "__main__":
    main()
