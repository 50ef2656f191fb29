#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What the cluster's configuration holds of one node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_traces
short_description: Say what the cluster's configuration holds of a node, or remove its directory
description:
  - Run it on a quorate member. Reads the database of the cluster file system in one transaction.
  - V(absent) removes C(/etc/pve/nodes/NAME). Refused while corosync.conf lists the node, and when the directory holds
    files that O(shown) does not name.
attributes:
  check_mode:
    support: full
    description: Reads as otherwise and removes nothing.
  diff_mode:
    support: full
    description: Shows the files that are removed.
options:
  name:
    description: Host name of the node.
    type: str
    required: true
  state:
    description: V(listed) reads only.
    type: str
    choices: [listed, absent]
    default: listed
  shown:
    description: RV(traces.files) as it was when the removal was decided.
    type: list
    elements: str
    default: []
  noise:
    description: C(ram_state_noise), what RV(traces.files) leaves out; pveguard's default list when it is not given.
    type: list
    elements: str
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Look what names the node
  node_traces:
    name: pve3
  register: found

- name: Remove what a node left
  node_traces:
    name: pve3
    state: absent
    shown: "{{ found.traces.files }}"
"""

RETURN = r"""
traces:
  description: What names the node.
  returned: success
  type: dict
  contains:
    guests: {description: Ids of guests in its directory., type: list, elements: int}
    replication: {description: Replication jobs from or to it., type: list, elements: str}
    ha_services: {description: HA resources that the manager has on it., type: list, elements: str}
    ha_rules: {description: Groups and rules of HA with it., type: list, elements: str}
    storages: {description: Storages that are restricted to it and others., type: list, elements: str}
    backup_jobs: {description: Backup jobs of this node alone., type: list, elements: str}
    files: {description: Files of its directory below /etc/pve., type: list, elements: str}
    directory: {description: Whether the directory exists., type: bool}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.pmxcfs import node_traces


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["listed", "absent"], "default": "listed"},
            "shown": {"type": "list", "elements": "str", "default": []},
            "noise": {"type": "list", "elements": "str"},
        },
        supports_check_mode=True,
    )
    name, noise = module.params["name"], module.params["noise"]
    changed = False
    try:
        traces = node_traces.collect(name, patterns=noise)
        if module.params["state"] == "absent":
            changed = node_traces.remove_directory(
                name, module.params["shown"], check=module.check_mode, patterns=noise
            )
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    diff = {
        "before_header": f"/etc/pve/nodes/{name}",
        "after_header": f"/etc/pve/nodes/{name}",
        "before": "".join(f"{path}\n" for path in traces["files"]) if changed else "",
        "after": "",
    }
    module.exit_json(changed=changed, traces=traces, diff=diff)


if __name__ == "__main__":
    main()
