#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""One step of the recovery of a cluster, on one node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: corosync_recover
short_description: Carry out one step of the recovery of a cluster on one node
description:
  - What is to be done is decided by the filter C(pveguard_recover), which sees all nodes; C(playbooks/recover.yml) shows it,
    asks, and calls this module.
  - Every step looks at the node again and refuses, with nothing changed, when that is not what the step was decided by.
attributes:
  check_mode:
    support: full
    description: Refuses what a real run refuses, and changes nothing.
  diff_mode:
    support: full
    description: Shows a corosync.conf before and after, a key in it masked.
options:
  step:
    description:
      - V(save) keeps both copies of corosync.conf and the database below C(/var/lib/pveguard/recover), unless the last save holds
        just these.
      - V(publish) writes O(text) to C(/etc/pve/corosync.conf) and waits until every live member has it and runs it.
      - V(host_copy) writes it to C(/etc/corosync/corosync.conf) of this node, once C(corosync -t) accepts it.
      - V(reload) reloads Corosync on the live members, V(restart) restarts it here where that keeps the quorum.
      - V(start_corosync) starts it here, or restarts it where it has no quorum, and waits for O(live_member_ids).
      - V(quorum) expects only O(votes) until Corosync is restarted, unless one of O(others) answers (port 22, or a
        ping where that program is there).
      - V(stop_daemon) stops the cluster file system, V(start_daemon) starts it where O(max_root_version) allows that.
    type: str
    required: true
    choices: [save, publish, host_copy, reload, restart, start_corosync, quorum, stop_daemon, start_daemon]
  seen:
    description: What the step was decided by.
    type: dict
    default: {}
    suboptions:
      cluster_sha256: {description: 'SHA-256 of the copy on /etc/pve, empty for none.', type: str}
      host_sha256: {description: 'SHA-256 of the copy in /etc/corosync, empty for none.', type: str}
      running: {description: Whether Corosync ran., type: bool}
      quorate: {description: Whether it had quorum., type: bool}
  text:
    description: The corosync.conf to write, with a C(config_version) above every one that was seen.
    type: str
    default: ""
  live_member_ids:
    description: Node ids of the membership that the node has, or is to come into.
    type: list
    elements: int
    default: []
  max_root_version:
    description: Root version of the members that run. A higher one must not meet them. None runs without it.
    type: int
  votes:
    description: Votes to expect with O(step=quorum).
    type: int
    default: 0
  others:
    description: Addresses of the nodes that are said to be off.
    type: list
    elements: str
    default: []
  mode:
    description: Mode of the daemon that is to be stopped, C(cluster) or C(local).
    type: str
    default: ""
  deadline_seconds:
    description: How long to wait in seconds for what a step brings.
    type: float
    default: 60
  noise:
    description: C(ram_state_noise), what O(step=save) does not compare; pveguard's default list when it is not given.
    type: list
    elements: str
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Keep what there is
  corosync_recover:
    step: save

- name: Bring one text to the host copy
  corosync_recover:
    step: host_copy
    text: "{{ text }}"
    seen:
      host_sha256: "{{ pveguard_node.node.corosync.host.sha256 }}"
      running: false
"""

RETURN = r"""
directory:
  description: Where the state of the node is kept.
  returned: with O(step=save)
  type: str
lock_kept:
  description: Locks on C(/etc/pve) that could not be given back (module pve_lock), each with its path and the reason.
  returned: with O(step=publish) and on failure
  type: list
  elements: dict
  contains:
    path: {description: Path of the lock., type: str}
    reason: {description: Why it could not be removed., type: str}
arrived:
  description: Whether every live member runs the C(config_version) of the file; a restart is needed where not.
  returned: with O(step=reload)
  type: bool
"""

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.cluster import corosync_recover
from ansible.module_utils.pveguard.pmxcfs import pve_lock


def main() -> None:
    module = NodeModule(
        argument_spec={
            "step": {
                "type": "str",
                "required": True,
                "choices": [
                    "save",
                    "publish",
                    "host_copy",
                    "reload",
                    "restart",
                    "start_corosync",
                    "quorum",
                    "stop_daemon",
                    "start_daemon",
                ],
            },
            "seen": {
                "type": "dict",
                "default": {},
                "options": {
                    "cluster_sha256": {"type": "str"},
                    "host_sha256": {"type": "str"},
                    "running": {"type": "bool"},
                    "quorate": {"type": "bool"},
                },
            },
            "text": {"type": "str", "default": ""},
            "live_member_ids": {"type": "list", "elements": "int", "default": []},
            "max_root_version": {"type": "int"},
            "votes": {"type": "int", "default": 0},
            "others": {"type": "list", "elements": "str", "default": []},
            "mode": {"type": "str", "default": ""},
            "deadline_seconds": {"type": "float", "default": 60},
            "noise": {"type": "list", "elements": "str"},
        },
        required_if=[
            ("step", "publish", ["text"]),
            ("step", "host_copy", ["text"]),
            ("step", "quorum", ["votes", "live_member_ids"]),
            ("step", "stop_daemon", ["mode"]),
        ],
        supports_check_mode=True,
    )
    params = dict(module.params)
    params["deadline_s"] = params.pop("deadline_seconds")
    params["seen"] = {key: value for key, value in params["seen"].items() if value is not None}
    request = corosync_recover.Request(**params)
    try:
        result = corosync_recover.carry_out(request, module.check_mode)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error), lock_kept=pve_lock.report(module.warn))
    if request.step == "publish":
        result["lock_kept"] = pve_lock.report(module.warn)
    before, after = (corosync_recover.masked(result.pop(key)) for key in ("before", "after"))
    if module._diff and result["changed"] and (before or after):
        result["diff"] = {"before": before, "after": after}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
