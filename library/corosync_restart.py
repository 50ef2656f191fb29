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
"""

RETURN = r"""
live_member_ids:
  description: Node ids in the membership afterwards.
  returned: success
  type: list
  elements: int
config_version:
  description: config_version that Corosync runs.
  returned: success
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard import corosync_restart
from ansible.module_utils.pveguard.errors import PveguardError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "allow_quorum_loss": {"type": "bool", "default": False},
            "deadline_seconds": {"type": "float", "default": 90},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
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
