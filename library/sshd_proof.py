#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Whether root gets from this node to others as Proxmox VE goes there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sshd_proof
short_description: Prove that root logs in from this node to other members as Proxmox VE does
description:
  - Logs in by key alone over a new connection, with the host-key alias and the file of known hosts that Proxmox VE uses, and
    forwards a UNIX socket as a migration does, through which an answer must come back.
  - Changes nothing, and does the same in check mode.
attributes:
  check_mode:
    support: full
    description: It changes nothing, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  targets:
    description: The members to go to.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the member.
        type: str
        required: true
      address:
        description: Its address.
        type: str
        required: true
  seconds:
    description: For one proof.
    type: int
    default: 60
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: From this node to another
  sshd_proof:
    targets:
      - {name: pve2, address: 192.0.2.12}
"""

RETURN = r"""
proofs:
  description: Each with C(name), C(address), C(login) and C(forward) (whether they work), and C(error).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.base.node_name import own
from ansible.module_utils.pveguard.hardening import sshd_proof
from ansible.module_utils.pveguard.hardening.sshd import Who


def main() -> None:
    module = NodeModule(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": {"type": "str", "required": True}, "address": {"type": "str", "required": True}},
            },
            "seconds": {"type": "int", "default": int(sshd_proof.SECONDS)},
        },
        supports_check_mode=True,
    )
    targets = [Who(each["name"], each["address"]) for each in module.params["targets"]]
    proofs = sshd_proof.prove_all(targets, seconds=module.params["seconds"])
    failed = [f"from {own()} to {each['name']} ({each['address']}): {each['error']}" for each in proofs if each["error"]]
    if failed:
        module.fail_json(msg=f"root does not get there as Proxmox VE needs it: {'; '.join(failed)}", proofs=proofs)
    module.exit_json(changed=False, proofs=proofs)


if __name__ == "__main__":
    main()
