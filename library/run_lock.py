#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The lock that keeps two controllers from working on one cluster at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_lock
short_description: Keep two controllers from working on one cluster at once
description:
  - Takes or gives back the lock of a run on this node (C(/run/pveguard/run.lock)) and, where the cluster file system takes
    writes, the lock of the whole cluster (C(/etc/pve/priv/lock/pveguard)).
  - What fails while a membership forms anew is tried again for 15 s, and to give a lock back for 30 s. A lock of the
    cluster that cannot be given back is a failure and a warning, which say what frees it.
  - A lock held by another run is not a failure of the module; RV(acquired) is false and RV(holder) says who has it.
attributes:
  check_mode:
    support: full
    description: Looks who has the lock and takes nothing.
  diff_mode:
    support: none
    description: A lock has no text to compare.
options:
  state:
    description: Whether to take the lock or to give it back.
    type: str
    choices: [acquired, released]
    default: acquired
  holder:
    description: Who takes the lock; an object with at least C(run_id), C(who) and C(since).
    type: dict
    required: true
  takeover:
    description: Run id of a holder that is known to be gone; its lock is replaced.
    type: str
  cluster:
    description: Also takes the lock of the cluster. Without it nothing is written to /etc/pve.
    type: bool
    default: true
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Take the lock
  run_lock:
    holder: {run_id: "abc", who: "root@controller", since: "2026-11-20T12:00:00Z"}
  register: lock
  failed_when: not lock.acquired
"""

RETURN = r"""
acquired:
  description: Whether this run has the lock (or in check mode could have it).
  returned: always
  type: bool
holder:
  description: The run that has the lock.
  returned: always
  type: dict
where:
  description: Path of the lock that another run holds.
  returned: always, empty when acquired
  type: str
refusal:
  description: Who has the lock and what helps, as a sentence.
  returned: always, empty when acquired
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.pmxcfs import run_lock


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["acquired", "released"], "default": "acquired"},
            **run_lock.OPTION["options"],
        },
        supports_check_mode=True,
    )
    holder = module.params["holder"]
    if not holder.get("run_id"):
        module.fail_json(msg="holder: run_id is missing")
    # A lock is not a change of the node: it is gone when the run is.
    try:
        if module.params["state"] == "released":
            if not module.check_mode:
                try:
                    run_lock.release(holder["run_id"])
                except PveguardError as error:
                    # Also where the task does not fail for it, because a node may be gone.
                    module.warn(str(error))
                    raise
            module.exit_json(changed=False, acquired=False, holder={}, where="", refusal="")
        outcome = run_lock.acquire(
            holder, module.params["takeover"], check=module.check_mode, cluster=module.params["cluster"]
        )
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **outcome.as_dict())


if __name__ == "__main__":
    main()
