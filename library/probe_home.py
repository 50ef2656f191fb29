#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What a probe needs beside membership."""

from __future__ import annotations

DOCUMENTATION = r"""
module: probe_home
short_description: A probe's place on /etc/pve, and folders for the statistics that its daemon stores
description:
  - Makes C(/etc/pve/nodes/NAME/pve-ssl.pem), a self-signed certificate whose key is not kept. Members read the certificate
    of every node that is listed in corosync.conf; a probe has no service that would show one.
  - Makes the folders of C(/var/lib/rrdcached/db) in which the daemon stores the statistics of the cluster (RRD), so that it
    does not complain about each of them. Proxmox VE makes them with packages that a probe does not have.
  - With V(absent) the folders are removed with the statistics in them; other files are never removed. The directory on
    /etc/pve goes with the leave (module node_traces).
attributes:
  check_mode:
    support: full
    description: Reports what would be made or removed.
  diff_mode:
    support: none
    description: The paths are returned.
options:
  state:
    description: Whether the host is a probe.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: Name of the node. Needed for V(present).
    type: str
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Give the probe its place
  probe_home:
    name: watch1

- name: Clean up after it has left
  probe_home:
    state: absent
"""

RETURN = r"""
made:
  description: Paths that were, or would be, made.
  returned: when O(state=present)
  type: list
  elements: str
removed:
  description: Paths that were, or would be, removed.
  returned: when O(state=absent)
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.pmxcfs import probe_home


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str"},
        },
        required_if=[("state", "present", ["name"])],
        supports_check_mode=True,
    )
    try:
        if module.params["state"] == "present":
            result = probe_home.present(module.params["name"], module.check_mode)
        else:
            result = probe_home.absent(module.check_mode)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
