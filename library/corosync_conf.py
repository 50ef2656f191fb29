#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The cluster-wide corosync.conf."""

from __future__ import annotations

DOCUMENTATION = r"""
module: corosync_conf
short_description: Change the cluster's corosync.conf on one member and wait until the change has arrived
description:
  - Merges what is wanted into C(/etc/pve/corosync.conf); comments, order and everything it does not know
    stay.
  - Works the documented way. A candidate is checked for mistakes that C(corosync -t) accepts and by
    C(corosync -t) itself, C(config_version) is raised by one, the former text is kept as
    C(corosync.conf.bak), the new one is renamed into place.
  - Also without a change it waits until both copies on this node are the same bytes, the running Corosync of
    every live member has their C(config_version), and O(expected_ids) are in the membership. When only the
    running version lags, the reload is issued once more. With V(absent) and nothing to remove it returns
    at once.
  - A node that is listed already with the same id and addresses needs no quorum, nothing is written.
  - Refuses without quorum, while both copies differ, and while a QDevice is configured when a node is added.
attributes:
  check_mode:
    support: full
    description: Neither writes nor waits. On a node without a cluster every wish counts as a change.
  diff_mode:
    support: full
    description: Shows the whole file before and after; it holds no secret.
options:
  state:
    description:
      - Whether the nodes must be there. V(absent) removes nodes that are not in the live membership. When
        nothing but these nodes is missing for quorum, the running count of votes is lowered first. A node
        of that name with another id or other addresses is refused.
    type: str
    choices: [present, absent]
    default: present
  cluster_name:
    description: Refuse when the configuration is of another cluster.
    type: str
  nodes:
    description: Nodes that the nodelist must contain, or must not.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Host name of the node.
        type: str
        required: true
      node_id:
        description: Its node id, from 1.
        type: int
        required: true
      links:
        description: Its addresses, index = link number.
        type: list
        elements: str
        required: true
      votes:
        description: Its votes.
        type: int
        default: 1
  token:
    description: The token in ms. Left as it is when not given.
    type: int
  expected_ids:
    description: Node ids that must be in the live membership.
    type: list
    elements: int
    default: []
  deadline_seconds:
    description: How long to wait in seconds.
    type: float
    default: 60
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Add a node to the cluster's configuration
  corosync_conf:
    cluster_name: production
    nodes:
      - name: pve4
        node_id: 4
        links: [10.0.0.4]
  delegate_to: pve1
"""

RETURN = r"""
config_version:
  description: config_version of the file afterwards, or the one it would have; null without a cluster.
  returned: always
  type: int
text:
  description: The whole configuration afterwards.
  returned: always
  type: str
live_member_ids:
  description: Node ids in the membership.
  returned: always
  type: list
  elements: int
reloaded:
  description: Whether the reload was issued again.
  returned: always
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard import corosync_change, corosync_conf
from ansible.module_utils.pveguard.errors import PveguardError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "cluster_name": {"type": "str"},
            "nodes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "node_id": {"type": "int", "required": True},
                    "links": {"type": "list", "elements": "str", "required": True},
                    "votes": {"type": "int", "default": 1},
                },
            },
            "token": {"type": "int", "no_log": False},
            "expected_ids": {"type": "list", "elements": "int", "default": []},
            "deadline_seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = corosync_change.Wanted(
        params["cluster_name"], params["nodes"], params["token"], absent=params["state"] == "absent"
    )
    try:
        if module.check_mode:
            outcome = corosync_change.plan(wanted)
        else:
            outcome = corosync_change.apply(wanted, params["deadline_seconds"], params["expected_ids"])
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    for warning in outcome.warnings:
        module.warn(f"/etc/pve/corosync.conf: {warning}")
    module.exit_json(
        changed=outcome.changed or outcome.reloaded,
        config_version=corosync_conf.parse(outcome.after).config_version,
        text=outcome.after,
        live_member_ids=outcome.info["live_member_ids"],
        reloaded=outcome.reloaded,
        diff={
            "before_header": "/etc/pve/corosync.conf",
            "after_header": "/etc/pve/corosync.conf",
            "before": outcome.before,
            "after": outcome.after,
        },
    )


if __name__ == "__main__":
    main()
