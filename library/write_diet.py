#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The other writers of a node, tamed, and back again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: write_diet
short_description: Bring measures against the writes of a Proxmox VE node on, or take them back
description:
  - Each measure looks at what the node runs, writes its files with the way back (as M(managed_file) does with C(kept_for)),
    makes them count (restart, remount), and looks again. Where what runs then is not what was wanted, the measure is taken back
    and the module fails.
  - A measure that is on and whose C(enabled) is false is taken back, as V(reverted) does with all of them.
  - What a measure is about and is not there (a service, a journal on disk) is no failure; nothing is done then.
attributes:
  check_mode:
    support: full
    description: Reports what would be done and changes nothing.
  diff_mode:
    support: full
    description: Shows every file before and after.
options:
  state:
    description: V(present) brings O(measures) to what is wanted. V(reverted) takes every measure back that is on.
    type: str
    choices: [present, reverted]
    default: present
  measures:
    description:
      - What is wanted, by the name of the measure. C(enabled) says whether it is on; its other options are those of the
        role's variables C(write_diet_MEASURE_OPTION).
      - A measure that is not named stays as it is.
    type: dict
    default: {}
  drift:
    description:
      - What V(reverted) does where somebody changed a file after it was written. V(refuse) changes nothing and fails;
        V(overwrite) keeps that content as C(.changed).
    type: str
    choices: [refuse, overwrite]
    default: refuse
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
- name: RRD files written once an hour
  write_diet:
    measures:
      rrdcached:
        enabled: true
        write_seconds: 3600
        jitter_seconds: 600

- name: Everything as it was
  write_diet:
    state: reverted
"""

RETURN = r"""
todo:
  description: What was (in check mode would be) done, in sentences without a subject.
  returned: success
  type: list
  elements: str
done:
  description: What was done beside files, such as restarts.
  returned: success
  type: list
  elements: str
changed_paths:
  description: Files that were (in check mode would be) written, removed or put back.
  returned: success
  type: list
  elements: str
write_diet:
  description: Facts of all measures afterwards, as M(node_info) returns them.
  returned: success
  type: dict
"""

from typing import Any

from ansible.module_utils.pveguard.base import managed_file
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.diet import write_diet
from ansible.module_utils.pveguard.pmxcfs import run_lock


def main() -> None:
    module = NodeModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "reverted"], "default": "present"},
            "measures": {"type": "dict", "default": {}},
            "drift": {"type": "str", "choices": [managed_file.REFUSE, managed_file.OVERWRITE], "default": managed_file.REFUSE},
            "lock": run_lock.OPTION,
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    try:
        run_lock.require(params["lock"], module.check_mode)
        if params["state"] == "reverted":
            result = write_diet.revert(module.check_mode, params["drift"])
        else:
            result = write_diet.apply(params["measures"], module.check_mode)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    for change in result.files:
        if change.drift:
            module.warn(f"{change.path}: somebody changed it after pveguard wrote it ({change.drift}); what was there is kept")
    module.exit_json(
        changed=result.changed,
        todo=result.todo,
        done=result.done,
        changed_paths=[change.path for change in result.files],
        write_diet=result.facts,
        diff=write_diet.diff(result.files),
    )


if __name__ == "__main__":
    main()
