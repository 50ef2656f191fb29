#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The controller's side of a power-cut proof."""

from __future__ import annotations

DOCUMENTATION = r"""
module: power_cut_watch
short_description: Have a node write an fsynced ledger, and note each acknowledged record until its power is gone
description:
  - Runs on the controller (C(delegate_to=localhost)). A module on the node could not tell what it had acknowledged once
    the node has no power, so this one logs in by itself with ssh, starts the writer with C(python3 -) and reads a line
    for each record that was synced.
  - Ends when the connection ends or the node falls silent. Nothing but the ledger (4 MiB) is written on the node.
attributes:
  check_mode:
    support: full
    description: Writes nothing and says that it would.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  connection:
    description: How to reach the node.
    type: dict
    required: true
    suboptions:
      host:
        description: Address or name.
        type: str
        required: true
      port:
        description: Port of ssh.
        type: int
      user:
        description: User to log in as.
        type: str
      key:
        description: Private key file.
        type: path
      arguments:
        description: More arguments of ssh, as in C(ansible_ssh_common_args).
        type: list
        elements: str
        default: []
      executable:
        description: The ssh program.
        type: str
        default: ssh
      become:
        description: Run the writer with C(sudo -n).
        type: bool
        default: false
      local:
        description: The node is this machine.
        type: bool
        default: false
  python:
    description: Python on the node.
    type: str
    default: /usr/bin/python3
  path:
    description: Directory on the node in which the ledger is written.
    type: path
    required: true
  acknowledgements:
    description: File on the controller that notes what was acknowledged. Replaced if it exists.
    type: path
    required: true
  name:
    description: Name of the node, for messages.
    type: str
    required: true
  seconds:
    description: How long to wait for the cut.
    type: float
    default: 600
  silence_seconds:
    description: A node that acknowledged nothing for so long has no power.
    type: float
    default: 30
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Note what the node acknowledges until its power is cut
  power_cut_watch:
    connection:
      host: 192.0.2.11
      user: root
    name: pve1
    path: /var/lib
    acknowledgements: /srv/reports/power_cut/pve1.acknowledged
  delegate_to: localhost
"""

RETURN = r"""
run:
  description: Name of the run.
  returned: success
  type: str
acknowledged:
  description: Number of acknowledged records.
  returned: success
  type: int
seconds:
  description: How long it took.
  returned: success
  type: float
ended:
  description: How it ended.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.gates import power_cut


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "connection": {
                "type": "dict",
                "required": True,
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int"},
                    "user": {"type": "str"},
                    "key": {"type": "path", "no_log": False},
                    "arguments": {"type": "list", "elements": "str", "default": []},
                    "executable": {"type": "str", "default": "ssh"},
                    "become": {"type": "bool", "default": False},
                    "local": {"type": "bool", "default": False},
                },
            },
            "python": {"type": "str", "default": "/usr/bin/python3"},
            "path": {"type": "path", "required": True},
            "acknowledgements": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "seconds": {"type": "float", "default": 600},
            "silence_seconds": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=True, run="", acknowledged=0, seconds=0.0, ended="check mode")
    try:
        result = power_cut.watch(
            params["connection"],
            params["path"],
            params["acknowledgements"],
            params["seconds"],
            name=params["name"],
            python=params["python"],
            silence_s=params["silence_seconds"],
        )
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
