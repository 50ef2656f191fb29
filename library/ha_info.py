#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What the HA stack of a node does, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ha_info
short_description: HA resources, services, heartbeats and watchdog of a Proxmox VE node
description:
  - Reads in one round trip what decides whether HA may be switched off on a node, and whether it is.
  - Warns of HA resources that nothing recovers because HA is masked on this node.
  - Reads only; also where HA or the cluster file system is not installed. A cluster file system that does not answer is
    said in C(pve_error).
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode; it does not wait then.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  release_wait_seconds:
    description:
      - Answer only when no LRM of the cluster holds a watchdog any more, after this many seconds at the latest. The managers
        keep theirs for minutes after the last HA resource was removed.
      - It answers at once where waiting cannot help, such as with HA resources.
    type: int
    default: 0
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Look at HA
  ha_info:
  register: ha

- name: Show who holds a watchdog
  ansible.builtin.debug:
    msg: "{{ ha.ha.watchdog.clients }}"

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
    resources_known: {description: False while /etc/pve is not mounted or does not answer., type: bool}
    quorate: {description: Whether /etc/pve takes writes., type: bool}
    pve_error: {description: Why /etc/pve cannot be read although it is mounted; null where it can., type: str}
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
    lrm_states: {description: 'The same as lrm for every node of the cluster, and age_seconds.', type: dict}
    crm_states:
      description: >-
        For every node of the cluster, master (manager_status names its CRM as the master) and state (what the manager
        says of the node, such as online, unknown, fence, maintenance, gone; null where it says nothing).
      type: dict
    manager_status: {description: Content of manager_status; null when there is none., type: dict}
    other_requests:
      description: Nodes in maintenance, fenced or in a state that is not known, and queued commands.
      type: list
      elements: str
    not_understood:
      description: What the managers say and is not known here. It is never taken for the best.
      type: list
      elements: str
    watchdog_active: {description: Whether a client holds the watchdog., type: bool}
    watchdog:
      description: >-
        present, identity, nowayout and magic_close (null when unknown), stoppable (closing the device is known not to
        reset the node), devices (name, identity, state, nowayout, magic_close of each) and clients (pid and name of
        each process that holds it through watchdog-mux, and whether it is a manager of HA).
      type: dict
    fencing:
      description: >-
        command (whether the installed manager can disarm), state (armed, standby, disarming or disarmed, as
        ha-manager status shows it), said (its own words) and error (why something is not known); all null unless there are
        no resources and a client holds the watchdog here or on another node, or pveguard had it disarmed.
      type: dict
    softdog: {description: 'loaded, and blacklisted by pveguard.', type: dict}
    masked: {description: Whether all installed units are masked., type: bool}
    managers_off: {description: 'Whether LRM and CRM are stopped and masked, or not installed.', type: bool}
    watchdog_off: {description: 'Whether watchdog-mux is off, or masked for the next boot.', type: bool}
    disabled: {description: managers_off and watchdog_off., type: bool}
    enabled: {description: Whether all units run and are started at boot., type: bool}
    remembered: {description: Whether pveguard switched HA off and knows what ran before., type: bool}
    node: {description: The name of the node below /etc/pve/nodes., type: str}
    unattended:
      description: >-
        HA resources that nothing on this node recovers, because a unit of HA is masked, or because pveguard has stopped or
        disarmed it and did not come to its end.
      type: list
      elements: str
    returned: {description: Units that pveguard had switched off and that are on again., type: list, elements: str}
    status_files:
      description: Paths below /etc/pve that remain of the managers of this node when they end, the last one's included.
      type: list
      elements: str
    leftovers: {description: The same once they have ended. They show managers that do not run., type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.ha import ha_findings, ha_info


def main() -> None:
    module = AnsibleModule(
        argument_spec={"release_wait_seconds": {"type": "int", "default": 0}}, supports_check_mode=True
    )
    seconds = module.params["release_wait_seconds"]
    if seconds > 0 and not module.check_mode:
        ha_info.await_release(seconds, lambda: ha_info.collect(ask_manager=False))
    facts = ha_info.collect()
    for text in facts["not_understood"]:
        module.warn(f"HA on {facts['node']}: {text}, which pveguard does not know")
    if facts["unattended"]:
        module.warn(ha_findings.unattended_warning(facts["node"], facts["unattended"]))
    module.exit_json(changed=False, ha=facts)


if __name__ == "__main__":
    main()
