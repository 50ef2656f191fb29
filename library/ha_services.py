#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The HA services of a node, off and on again in the safe order."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ha_services
short_description: Switch the HA services of a Proxmox VE node off or on in the order that cannot reset it
description:
  - Off means stopped and masked. The LRM goes first, then the CRM, then watchdog-mux. On is the other way round.
  - What ran and was enabled before is kept in V(/etc/pveguard/ha.json), so that O(state=restored) gives back
    exactly that. A run that was interrupted is completed by the next one.
  - Refuses, before anything is changed, while HA has resources anywhere in the cluster, while the HA manager is
    busy, while a client holds the watchdog, and while /etc/pve is not mounted or does not answer.
  - watchdog-mux is not stopped where the watchdog's driver has C(nowayout) or no magic close, or does not say, because
    closing the device would reset the node. It is masked for the next boot instead.
  - Where the installed manager has C(ha-manager crm-command disarm-ha) (Proxmox VE 9.2 and later) and a watchdog is
    held in the cluster, the manager disarms first, and what it says is waited for; V(enabled) and V(restored) arm it
    again. The command is known by the program's own help. A manager that does not disarm in time is armed again, and
    nothing is stopped.
  - What stopped managers leave in C(/etc/pve) (C(lrm_status), and C(manager_status) with the last one) is removed with
    the watchdog, so that neither the web page nor C(ha-manager status) shows managers which do not run.
  - V(enabled) waits until the LRM is active, which for one without resources is a fresh status with mode C(active) and
    state C(wait_for_agent_lock).
  - On a node without HA there is nothing to do.
attributes:
  check_mode:
    support: full
    description: Predicts from the present state. The part V(watchdog) takes the managers as stopped already.
  diff_mode:
    support: full
    description: Shows the state of each unit before and after.
options:
  state:
    description:
      - V(disabled) stops and masks, V(enabled) unmasks, enables and starts.
      - V(restored) gives back what was before the first V(disabled), and does nothing where there was none.
    type: str
    choices: [disabled, enabled, restored]
    required: true
  part:
    description:
      - V(managers) is LRM and CRM, V(watchdog) is watchdog-mux.
      - In a cluster, switch the managers off on every node before the watchdog on any.
    type: str
    choices: [managers, watchdog, all]
    default: all
  blacklist_softdog:
    description:
      - With V(disabled) and the watchdog, take the kernel module softdog out and keep it out
        (V(/etc/modprobe.d/pveguard-softdog.conf)). V(enabled) and V(restored) remove that file.
    type: bool
    default: false
  release_wait_seconds:
    description:
      - With V(disabled) and the managers, wait this long for managers that still hold the watchdog although there are no
        resources any more, and cannot disarm. They let go some ten minutes after the last one was removed.
      - In check mode it is not waited, and they are taken for having let go.
    type: int
    default: 0
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
- name: Stop and mask the managers of this node
  ha_services:
    state: disabled
    part: managers

- name: Stop and mask the watchdog multiplexer when all managers of the cluster are off
  ha_services:
    state: disabled
    part: watchdog

- name: Give back what was there before
  ha_services:
    state: restored
"""

RETURN = r"""
steps:
  description: The commands that were (or in check mode would be) run, in order.
  returned: success
  type: list
  elements: str
  sample: [systemctl stop pve-ha-lrm.service, systemctl stop pve-ha-crm.service]
returned:
  description: Units that pveguard had switched off and that were on again, after an upgrade or by hand.
  returned: success
  type: list
  elements: str
waited:
  description: What was waited for, and how long.
  returned: success
  type: list
  elements: str
  sample: ["12 s until 'ha-manager status' said fencing 'disarmed' and the watchdog was free"]
watchdog_until_reboot:
  description: >-
    True when watchdog-mux is masked but goes on until the next boot, because its driver cannot be stopped.
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.ha import ha_services
from ansible.module_utils.pveguard.pmxcfs import run_lock


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["disabled", "enabled", "restored"], "required": True},
            "part": {"type": "str", "choices": ["managers", "watchdog", "all"], "default": "all"},
            "blacklist_softdog": {"type": "bool", "default": False},
            "release_wait_seconds": {"type": "int", "default": 0},
            "lock": run_lock.OPTION,
        },
        supports_check_mode=True,
    )
    try:
        run_lock.require(module.params["lock"], module.check_mode)
        result = ha_services.apply(
            module.params["state"],
            module.params["part"],
            blacklist_softdog=module.params["blacklist_softdog"],
            release_wait_s=module.params["release_wait_seconds"],
            check=module.check_mode,
        )
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    for warning in result["warnings"]:
        module.warn(warning)
    module.exit_json(
        changed=result["changed"],
        steps=result["steps"],
        watchdog_until_reboot=result["watchdog_until_reboot"],
        returned=result["returned"],
        waited=result["waited"],
        diff={
            "before": result["before"],
            "after": result["after"],
            "before_header": "HA services",
            "after_header": "HA services",
        },
    )


if __name__ == "__main__":
    main()
