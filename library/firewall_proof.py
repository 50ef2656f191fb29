#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Whether what a cluster needs gets through the firewall, from this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_proof
short_description: Prove that a Proxmox VE cluster still works through its firewall
description:
  - Over new connections from this host, as those that are open pass any firewall; logs in to other members by key alone, as
    Proxmox VE does (see M(sshd_proof)), and connects to their web interface on TCP 8006; asks Corosync whether all links to all
    members are connected, and whether there is quorum.
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
  web:
    description: Names of those whose web interface must answer; those of RV(web) of a call before the change.
    type: list
    elements: str
  logins:
    description: Whether to log in to them.
    type: bool
    default: true
  ring:
    description: Whether to ask Corosync.
    type: bool
    default: true
  new_login:
    description: Fails where the module itself does not come by a login that is younger than the change of M(firewall_change).
    type: bool
    default: false
  seconds:
    description: For one login.
    type: int
    default: 60
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: From the controller to the web interface of a member
  firewall_proof:
    targets:
      - {name: pve2, address: 192.0.2.12}
    web: [pve2]
    logins: false
    ring: false
  delegate_to: localhost
"""

RETURN = r"""
web:
  description: Names of the targets whose web interface answers.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.base.node_name import own
from ansible.module_utils.pveguard.corosync import corosync_info
from ansible.module_utils.pveguard.hardening import firewall_change, firewall_proof, sshd_proof
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
            "web": {"type": "list", "elements": "str"},
            "logins": {"type": "bool", "default": True},
            "ring": {"type": "bool", "default": True},
            "new_login": {"type": "bool", "default": False},
            "seconds": {"type": "int", "default": int(sshd_proof.SECONDS)},
        },
        supports_check_mode=True,
    )
    params = module.params
    targets = [Who(each["name"], each["address"]) for each in params["targets"]]
    if params["new_login"]:
        try:
            firewall_change.require_new_login()
        except PveguardError as error:
            module.fail_json(msg=str(error))
    failed = firewall_proof.prove(
        targets,
        params["web"] or [],
        corosync_info.collect if params["ring"] else dict,
        own=own(),
        logins=params["logins"],
        seconds=params["seconds"],
    )
    if failed:
        module.fail_json(msg=f"from {own()}: {'; '.join(failed)}")
    # Asked for where nobody has said what must answer: before a change.
    found = firewall_proof.answering(targets) if params["web"] is None else params["web"]
    module.exit_json(changed=False, web=found)


if __name__ == "__main__":
    main()
