#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""A node's membership in a cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_member
short_description: Make a node the first or a further member of a cluster, or a node by itself again
description:
  - V(bootstrapped) founds a cluster of one node and keeps what its C(/etc/pve) holds. V(joined) makes the
    node a member of a cluster whose key and corosync.conf are given; what its C(/etc/pve) held is replaced by
    the cluster's.
  - V(left) makes a member a node by itself, in the steps that Proxmox VE documents, with an empty C(/etc/pve). The
    cluster's database, key and corosync.conf are given up, so that its state never comes back. It does not take the node
    off the other members' corosync.conf. Refused with guests of its own, a QDevice, or while a client holds the watchdog.
  - Refuses before anything is touched. For V(joined), while the node's own database holds guests, storage
    definitions beyond the installer's, or users beyond root@pam; always, with a corosync.conf or key of
    another cluster, a host name on loopback, link addresses that are not on this host, or files beneath the
    mount point.
  - The database is saved to C(/var/lib/pveguard/state/generations) first. The work runs detached from the
    connection, because a login may depend on C(/etc/pve). On any failure, or after O(deadline_seconds), the
    database, files and units are put back and the module fails.
  - Success means that the cluster says so. The node is quorate, sees every expected member, C(/etc/pve) takes
    writes and both copies of corosync.conf are the same bytes.
attributes:
  check_mode:
    support: full
    description:
      - Judges the node as it is. The key and corosync.conf of the cluster, which earlier steps bring, may be
        missing.
  diff_mode:
    support: full
    description: Shows C(/etc/corosync/corosync.conf) before and after.
options:
  state:
    description: What the node must be.
    type: str
    choices: [bootstrapped, joined, left]
    required: true
  cluster_name:
    description: Name of the cluster.
    type: str
    required: true
  node_name:
    description: Host name of this node; the node's own by default.
    type: str
  node_id:
    description: Node id, from 1. Needed unless O(state=left).
    type: int
  links:
    description: This node's addresses on the cluster's links, index = link number. Needed unless O(state=left).
    type: list
    elements: str
  token:
    description: Token of a new cluster in ms.
    type: int
    default: 3000
  authkey:
    description: The cluster's key in base64. Made anew for V(bootstrapped) when it is not given.
    type: str
  authkey_sha256:
    description: SHA-256 that a member said of its key. O(authkey) is refused when it is another one.
    type: str
  conf:
    description: The cluster's corosync.conf, which lists this node already. Needed for V(joined).
    type: str
  expected_ids:
    description: Node ids that must be in the membership at the end; this node's own is always expected.
    type: list
    elements: int
    default: []
  deadline_seconds:
    description: How long the change may take in seconds before everything is put back.
    type: float
    default: 180
  noise:
    description: C(ram_state_noise), what may change on this node meanwhile; pveguard's default list when it is not given.
    type: list
    elements: str
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Found the cluster
  cluster_member:
    state: bootstrapped
    cluster_name: production
    node_id: 1
    links: [10.0.0.1]

- name: Make the node one by itself
  cluster_member:
    state: left
    cluster_name: production
"""

RETURN = r"""
generation:
  description: Name of the database saved to the store before the change, null when nothing was changed.
  returned: always
  type: str
live_member_ids:
  description: Node ids in the membership after the change.
  returned: when changed and not in check mode
  type: list
  elements: int
config_version:
  description: config_version of the cluster's corosync.conf after the change.
  returned: when changed and not in check mode
  type: int
waited_s:
  description: How long the change took in seconds.
  returned: when changed and not in check mode
  type: float
steps:
  description: What was done, in order.
  returned: when changed and not in check mode
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.pveguard.base import node_name
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.cluster import cluster_member


def main() -> None:
    module = NodeModule(
        argument_spec={
            "state": {"type": "str", "choices": ["bootstrapped", "joined", "left"], "required": True},
            "cluster_name": {"type": "str", "required": True},
            "node_name": {"type": "str"},
            "node_id": {"type": "int"},
            "links": {"type": "list", "elements": "str"},
            "token": {"type": "int", "default": 3000, "no_log": False},
            "authkey": {"type": "str", "no_log": True},
            "authkey_sha256": {"type": "str", "no_log": False},
            "conf": {"type": "str"},
            "expected_ids": {"type": "list", "elements": "int", "default": []},
            "deadline_seconds": {"type": "float", "default": 180},
            "noise": {"type": "list", "elements": "str"},
        },
        required_if=[("state", state, ["node_id", "links"]) for state in ("bootstrapped", "joined")],
        supports_check_mode=True,
    )
    params = module.params
    request = cluster_member.Request(
        state=params["state"],
        cluster_name=params["cluster_name"],
        node_name=params["node_name"] or node_name.own(),
        node_id=params["node_id"] or 0,
        links=params["links"] or [],
        authkey=params["authkey"] or None,
        conf=params["conf"] or None,
        token_ms=params["token"],
        expected_ids=params["expected_ids"],
        deadline_s=params["deadline_seconds"],
        authkey_sha256=params["authkey_sha256"] or None,
        noise=params["noise"],
    )
    try:
        judgement = cluster_member.judge(request, check_mode=module.check_mode)
        if judgement.member:
            module.exit_json(changed=False, generation=None)
        if judgement.refusals:
            verb = {"bootstrapped": "found", "joined": "join", "left": "leave"}[request.state]
            module.fail_json(
                msg=f"{request.node_name} must not {verb} the cluster {request.cluster_name!r}; "
                "nothing was changed: " + "; ".join(judgement.refusals)
            )
        result: dict[str, Any] = {"generation": None}
        if not module.check_mode:
            result = cluster_member.apply(request, judgement)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    for warning in result.pop("warnings", []):
        module.warn(warning)
    result["changed"] = True
    result["diff"] = {
        "before_header": "/etc/corosync/corosync.conf",
        "after_header": "/etc/corosync/corosync.conf",
        "before": judgement.before,
        "after": judgement.conf or "",
    }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
