#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The node's side of a power-cut proof."""

from __future__ import annotations

DOCUMENTATION = r"""
module: power_cut_ledger
short_description: Prepare and verify the proof that a disk keeps what it acknowledged
description:
  - With O(state=prepared) finds the directory on a disk where the ledger goes, and removes one of an earlier run. The
    ledger itself is written by M(power_cut_watch).
  - With O(state=verified), after the power was cut, compares the ledger with what was acknowledged, and removes it.
attributes:
  check_mode:
    support: full
    description: Looks and judges, and removes nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  state:
    description: Before or after the cut.
    type: str
    choices: [prepared, verified]
    required: true
  path:
    description: Directory on the disk.
    type: path
    required: true
  nearest_parent:
    description: Where O(path) does not exist, or is in memory, use its nearest parent on a disk. For V(prepared).
    type: bool
    default: false
  run:
    description: Name of the run, as M(power_cut_watch) returned it. For V(verified).
    type: str
    default: ""
  boot_id:
    description: Boot in which the ledger was written. For V(verified).
    type: str
    default: ""
  acknowledged:
    description: Number of acknowledged records. For V(verified).
    type: int
    default: 0
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Find a place for the ledger
  power_cut_ledger:
    state: prepared
    path: /var/lib/pve-cluster
    nearest_parent: true

- name: Compare after the power was cut
  power_cut_ledger:
    state: verified
    path: /var/lib
    run: 00112233445566778899aabbccddeeff
    boot_id: 6a4f5c9e-4c53-4f0e-8b4e-6a3f0e6f3c11
    acknowledged: 5120
"""

RETURN = r"""
path:
  description: Directory of the ledger.
  returned: success
  type: str
device:
  description: Block device of its file system; null for one without.
  returned: success
  type: str
drive_identity:
  description: What tells one drive from another.
  returned: success
  type: str
verdict:
  description: V(acquitted), V(convicted) or V(inconclusive).
  returned: for V(verified)
  type: str
evidence:
  description: What was found.
  returned: for V(verified)
  type: str
message:
  description: The verdict in one sentence.
  returned: for V(verified)
  type: str
lost:
  description: Acknowledged records that are not there, among the last 1024.
  returned: for V(verified)
  type: int
highest:
  description: Highest record found; null when none was looked for.
  returned: for V(verified)
  type: int
acknowledged:
  description: Number of acknowledged records.
  returned: for V(verified)
  type: int
time:
  description: When it was judged (UTC, ISO 8601).
  returned: for V(verified)
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.gates import power_cut


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["prepared", "verified"], "required": True},
            "path": {"type": "path", "required": True},
            "nearest_parent": {"type": "bool", "default": False},
            "run": {"type": "str", "default": ""},
            "boot_id": {"type": "str", "default": ""},
            "acknowledged": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    params = module.params
    keep = module.check_mode
    try:
        if params["state"] == "prepared":
            result = power_cut.prepare(
                params["path"], nearest_parent=params["nearest_parent"], remove=not keep
            )
        else:
            result = power_cut.verify(
                params["path"], params["run"], params["boot_id"], params["acknowledged"], remove=not keep
            )
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
