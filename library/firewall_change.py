#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The firewall of a cluster, kept only when all members and the controller prove that they still get through."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_change
short_description: Change the firewall of a Proxmox VE cluster, and take it back when nobody proves that it still works
description:
  - C(/etc/pve/firewall/cluster.fw) is one file for all members, so each step is done on all of them before the next one.
  - V(armed) judges, with nothing changed, and arms a timer on the node which opens its own firewall and takes the change back. It
    needs neither C(/etc/pve) nor quorum for that, and does it at boot too. V(written) on one member writes the file, if it is
    still the one that was judged; V(present) waits on each until its firewall has loaded it.
  - V(confirmed) keeps the change. It must come over an ssh connection that is younger than the change.
  - V(undone) takes a change back that was not confirmed, at once. V(reverted) puts back what was there before the first one.
  - On a host without Proxmox's firewall it is a table of nftables of its own, C(inet pveguard).
attributes:
  check_mode:
    support: full
    description: Judges as a run does, reports what would be done and changes nothing.
  diff_mode:
    support: full
    description: Shows the file before and after.
options:
  state:
    description: See above.
    type: str
    choices: [armed, written, present, confirmed, undone, reverted]
    required: true
  mode:
    description: Rules alone, or the firewall switched on with policy DROP as well.
    type: str
    choices: [rules, enforce]
    default: rules
  management:
    description: Networks and addresses of those who manage the nodes; members and the controller are let in without.
    type: list
    elements: str
  cluster_name:
    description: The cluster's name, typed for O(mode=enforce), as that wakes the rules of guests.
    type: str
  facts:
    description: >-
      Of the node's firewall, as M(hardening_info) has them, with what other members know of DRBD and the controller (filter
      pveguard_firewall_facts). Without it the node alone is looked at.
    type: dict
  seconds:
    description: Until the change is taken back that nobody has confirmed.
    type: int
    default: 300
  digest:
    description: With V(written) and V(present), RV(digest) of V(armed), which is the same on all members.
    type: str
  made:
    description: With V(undone), whether a member may have written the file. Without, only the timer is taken away.
    type: bool
    default: true
  drift:
    description: What V(reverted) does on a host without Proxmox's firewall where somebody changed a file since.
    type: str
    choices: [refuse, overwrite]
    default: refuse
  hosts:
    description: >-
      With V(reverted), names and addresses of the other hosts of this run. A member of the cluster that is not among them is a
      reason to refuse, as the file is one for all.
    type: list
    elements: str
  lock:
    description: Take the lock of this run first, as M(run_lock) does.
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
- name: Judge it, and arm its way back on every member
  firewall_change:
    state: armed
    mode: enforce
    management: [192.0.2.0/24]
    cluster_name: mycluster
  register: armed

- name: Make it, on one member for all
  firewall_change:
    state: written
    digest: "{{ armed.digest }}"
  when: armed.todo and inventory_hostname == ansible_play_hosts[0]
"""

RETURN = r"""
untouched:
  description: With V(written), that it failed before anything was written.
  returned: where that is so
  type: bool
unproved:
  description: Whether a change is armed that V(confirmed) must keep.
  returned: success
  type: bool
todo:
  description: What was (in check mode would be) done, in sentences without a subject.
  returned: success
  type: list
  elements: str
digest:
  description: Of the file before and after.
  returned: with O(state=armed)
  type: str
node:
  description: The name of this node.
  returned: with O(state=armed)
  type: str
cluster:
  description: The name of its cluster, empty without one.
  returned: with O(state=armed)
  type: str
members:
  description: The other members, C(name) and C(address) each.
  returned: with O(state=armed)
  type: list
  elements: dict
web:
  description: Names of those whose web interface answers before the change.
  returned: with O(state=armed)
  type: list
  elements: str
timer:
  description: "What became of the change: C(none), C(armed), C(confirmed), C(rolling_back) or C(rolled_back)."
  returned: success
  type: str
held_open:
  description: Whether the node's firewall is held open, as the file was edited after a change that nobody proved.
  returned: success
  type: bool
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base import managed_file, rollback_timer
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.base.run import run
from ansible.module_utils.pveguard.corosync import corosync_info
from ansible.module_utils.pveguard.hardening import firewall, firewall_change, firewall_proof
from ansible.module_utils.pveguard.hardening.firewall_rules import Options
from ansible.module_utils.pveguard.hardening.sshd import Who
from ansible.module_utils.pveguard.pmxcfs import run_lock

STATES = ["armed", "written", "present", "confirmed", "undone", "reverted"]


def main() -> None:
    module = NodeModule(
        argument_spec={
            "state": {"type": "str", "choices": STATES, "required": True},
            "mode": {"type": "str", "choices": ["rules", "enforce"], "default": "rules"},
            "management": {"type": "list", "elements": "str"},
            "cluster_name": {"type": "str"},
            "facts": {"type": "dict"},
            "seconds": {"type": "int", "default": firewall_change.SECONDS},
            "digest": {"type": "str"},
            "made": {"type": "bool", "default": True},
            "drift": {"type": "str", "choices": [managed_file.REFUSE, managed_file.OVERWRITE], "default": managed_file.REFUSE},
            "hosts": {"type": "list", "elements": "str"},
            "lock": run_lock.OPTION,
        },
        supports_check_mode=True,
    )
    web: list[str] = []
    try:
        result = _work(module)
        if module.params["state"] == "armed" and result.unproved:
            web = firewall_proof.answering([Who(each["name"], each["address"]) for each in result.members])
        timer = str(rollback_timer.status(firewall_change.TIMER)["state"])
    except firewall_change.Untouched as error:
        module.fail_json(msg=str(error), untouched=True)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    diff = {"before": result.before, "after": result.after, "before_header": result.path, "after_header": result.path}
    # What is armed is shown where it is written; in check mode nothing is.
    shown = module.check_mode or module.params["state"] != "armed"
    module.exit_json(
        changed=result.changed,
        unproved=result.unproved,
        todo=result.todo,
        digest=result.digest,
        node=result.node,
        cluster=result.cluster,
        members=result.members,
        web=web,
        timer=timer,
        held_open=firewall_change.held_open(),
        diff=diff if shown and result.changed else {},
    )


def _work(module: NodeModule) -> firewall_change.Result:
    params: dict[str, Any] = module.params
    check = module.check_mode
    if params["state"] in ("armed", "reverted"):
        run_lock.require(params["lock"], check)
    if params["state"] == "armed":
        return _arm(params, check)
    if params["state"] == "reverted":
        return firewall_change.revert(check, drift=params["drift"], look=lambda: _facts(params), hosts=params["hosts"])
    if check:
        return firewall_change.Result()
    if params["state"] == "written":
        return firewall_change.write(params["digest"] or "")
    if params["state"] == "present":
        return firewall_change.present(params["digest"] or "")
    if params["state"] == "confirmed":
        return firewall_change.Result(firewall_change.confirm())
    return firewall_change.Result(firewall_change.undo(made=params["made"]))


def _arm(params: dict[str, Any], check: bool) -> firewall_change.Result:
    options = Options.of(
        {
            "node_hardening_firewall": params["mode"],
            "node_hardening_firewall_management": params["management"],
            "node_hardening_firewall_cluster_name": params["cluster_name"],
        }
    )
    return firewall_change.arm(
        options, _facts(params), seconds=params["seconds"], ring=firewall_proof.ring(corosync_info.collect()), check=check
    )


def _facts(params: dict[str, Any]) -> Any:
    return firewall.look(Path("/"), run) if params["facts"] is None else params["facts"]


if __name__ == "__main__":
    main()
