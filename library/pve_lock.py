#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Locks on the cluster file system that a change had to leave."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pve_lock
short_description: Give back locks on /etc/pve that a change on this node had to leave
description:
  - A change of C(/etc/pve/corosync.conf) holds the lock C(/etc/pve/priv/lock/file-corosync_conf). Where the change itself
    costs the quorum for a while, as when a second node is listed, the lock cannot be removed at once. The module
    corosync_conf notes it on the node (C(/run/pveguard/kept-locks/)) and says so (C(lock_kept)).
  - This module removes what is noted as soon as C(/etc/pve) takes writes again. A lock that somebody else has taken since
    is never removed.
  - Fails when the lock is there still after O(deadline_seconds), with what frees it.
attributes:
  check_mode:
    support: full
    description: Says what is noted and removes nothing.
  diff_mode:
    support: none
    description: A lock has no text to compare.
options:
  deadline_seconds:
    description: How long to wait in seconds for C(/etc/pve) to take writes.
    type: float
    default: 60
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Give back what the listing of a node had to leave
  pve_lock:
    deadline_seconds: 90
  delegate_to: pve1
"""

RETURN = r"""
given_back:
  description: Paths of the locks that were removed.
  returned: always
  type: list
  elements: str
lock_kept:
  description: Locks that are there still, each with its path and the reason.
  returned: always
  type: list
  elements: dict
  contains:
    path: {description: Path of the lock., type: str}
    reason: {description: Why it could not be removed., type: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.pmxcfs import pve_lock


def main() -> None:
    module = AnsibleModule(
        argument_spec={"deadline_seconds": {"type": "float", "default": 60}},
        supports_check_mode=True,
    )
    # A lock is not a change of the node: it would be gone by now had it been possible.
    try:
        if module.check_mode:
            kept = [each.shown() for each in pve_lock.noted()]
            module.exit_json(changed=False, given_back=[], lock_kept=kept)
        done = pve_lock.give_back(module.params["deadline_seconds"])
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error), given_back=[], lock_kept=[])
    result = {"given_back": done.removed, "lock_kept": [each.shown() for each in done.left]}
    if done.left:
        module.fail_json(msg="; ".join(each.warning() for each in done.left), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
