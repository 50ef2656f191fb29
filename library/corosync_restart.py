#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""A restart of Corosync that keeps the quorum."""

from __future__ import annotations

DOCUMENTATION = r"""
module: corosync_restart
short_description: Restart Corosync on one node and wait until it is a member again
description:
  - For settings that Corosync takes only at its start. Run it on one node after the other.
  - Refuses, with nothing done, where the cluster would lose its quorum without this node, without quorum, while both
    copies of corosync.conf differ, with HA resources, and while a client holds the watchdog on this node.
  - Waits until every node that was live is, the cluster is quorate and Corosync runs the C(config_version) of its file.
attributes:
  check_mode:
    support: full
    description: Refuses what a real run refuses, and restarts nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  state:
    description:
      - V(restarted) restarts.
      - V(announced) notes before a change that O(keys) will wait for a restart, so that a run that ends in between is made
        good by the next. The note goes with the next restart or boot.
      - V(withdrawn) takes that back, because the change is out of the file again. Where Corosync was restarted since, the
        former values wait now.
      - Notes are in /run and are not reported as changes.
    type: str
    choices: [restarted, announced, withdrawn]
    default: restarted
  keys:
    description: With O(state=announced) the settings, as M(corosync_conf) returns them under C(restart_needed).
    type: list
    elements: str
    default: []
  allow_quorum_loss:
    description: Restart also where that costs the quorum for some seconds, as in a cluster of two nodes.
    type: bool
    default: false
  deadline_seconds:
    description: How long to wait in seconds.
    type: float
    default: 90
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Bring a setting into force
  corosync_restart:
  throttle: 1

- name: Remember what waits for a restart
  corosync_restart:
    state: announced
    keys: [totem.link_mode]
"""

RETURN = r"""
live_member_ids:
  description: Node ids in the membership afterwards.
  returned: O(state=restarted)
  type: list
  elements: int
config_version:
  description: config_version that Corosync runs.
  returned: O(state=restarted)
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.corosync import corosync_pending, corosync_restart


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["restarted", "announced", "withdrawn"], "default": "restarted"},
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "allow_quorum_loss": {"type": "bool", "default": False},
            "deadline_seconds": {"type": "float", "default": 90},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        if params["state"] != "restarted":
            if not module.check_mode and params["state"] == "announced":
                corosync_pending.announce(params["keys"])
            elif not module.check_mode:
                corosync_pending.withdraw()
            module.exit_json(changed=False)
        if module.check_mode:
            info = corosync_restart.judge(params["allow_quorum_loss"])
        else:
            info = corosync_restart.restart(params["deadline_seconds"], params["allow_quorum_loss"])
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=True,
        live_member_ids=info["live_member_ids"],
        config_version=info["running_config_version"],
    )


if __name__ == "__main__":
    main()
