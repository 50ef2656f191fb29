#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What the HA stack of a node does, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ha_info
short_description: HA resources, services, heartbeats and watchdog of a Proxmox VE node
description:
  - Reads in one round trip what decides whether HA may be switched off on a node, and whether it is.
  - Reads only; also where HA or the cluster file system is not installed.
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options: {}
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Look at HA
  ha_info:
  register: ha

- name: Show who uses HA
  ansible.builtin.debug:
    msg: "{{ ha.ha.resources }}"
"""

RETURN = r"""
ha:
  description: The facts.
  returned: always
  type: dict
  contains:
    installed: {description: Whether the LRM or CRM is installed., type: bool}
    resources: {description: 'HA resources of the cluster, such as vm:100.', type: list, elements: str}
    resources_known: {description: False while /etc/pve is not mounted., type: bool}
    groups: {description: HA groups., type: list, elements: str}
    rules: {description: HA rules., type: list, elements: str}
    services:
      description: >-
        Per unit (pve-ha-lrm.service, pve-ha-crm.service, watchdog-mux.service), load, active and enabled as
        systemd prints them, installed, installable (has an Install section), wanted (started at boot once it
        is not masked).
      type: dict
    lrm: {description: 'State, mode and timestamp of the LRM of this node.', type: dict}
    crm: {description: Master and timestamp of the CRM., type: dict}
    lrm_states: {description: The same as lrm for every node of the cluster., type: dict}
    manager_status: {description: Content of manager_status; null when there is none., type: dict}
    other_requests:
      description: Nodes in maintenance or fenced, and queued commands.
      type: list
      elements: str
    watchdog_active: {description: Whether a client holds the watchdog., type: bool}
    watchdog: {description: 'present, identity, nowayout (null when unknown).', type: dict}
    masked: {description: Whether all installed units are masked., type: bool}
    managers_off: {description: 'Whether LRM and CRM are stopped and masked, or not installed.', type: bool}
    watchdog_off: {description: 'Whether watchdog-mux is off, or masked for the next boot.', type: bool}
    disabled: {description: managers_off and watchdog_off., type: bool}
    enabled: {description: Whether all units run and are started at boot., type: bool}
    remembered: {description: Whether pveguard switched HA off and knows what ran before., type: bool}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard import ha_info


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, ha=ha_info.collect())


if __name__ == "__main__":
    main()
