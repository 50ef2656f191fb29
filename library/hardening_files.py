#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Concerns of node hardening that write files, and back again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hardening_files
short_description: Bring a concern of node hardening to what is wanted, or put everything back
description:
  - Looks at the node, refuses what would break Proxmox VE (with nothing changed), writes its files with the way back (as
    M(managed_file) does with C(kept_for)), makes them count, and looks again. Where what is there then is not what was wanted,
    files and running values are as they were before the call, and the module fails.
  - V(sysctl) are kernel settings and modules, V(auditd) audit rules of /etc/pve, V(updates) unattended upgrades, V(pveproxy)
    access rules and TLS of the web interface.
  - What a concern is about and is not there is no failure; that is told as a warning.
  - What V(pveproxy) changes waits for the proof of others (RV(unproved)), and V(confirmed) keeps it. V(undone) takes it back.
attributes:
  check_mode:
    support: full
    description: Judges as a run does, reports what would be done and changes nothing.
  diff_mode:
    support: full
    description: Shows every file before and after.
options:
  state:
    description: See above. V(reverted) puts back what was before the first change of every concern.
    type: str
    choices: [present, confirmed, undone, reverted]
    default: present
  concern:
    description: Which one; not with V(reverted).
    type: str
    choices: [sysctl, auditd, updates, pveproxy]
  options:
    description: Those of the role's variables C(node_hardening_CONCERN_OPTION), by the name of the option.
    type: dict
    default: {}
  peers_known:
    description: >-
      Hosts of the inventory by the names and addresses of members; those can be asked for a proof.
    type: dict
    default: {}
  drift:
    description: What V(reverted) does where somebody changed a file since.
    type: str
    choices: [refuse, overwrite]
    default: refuse
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
- name: Kernel settings, redirects left alone
  hardening_files:
    concern: sysctl
    options: {redirects: false}

- name: Everything as it was
  hardening_files:
    state: reverted
"""

RETURN = r"""
todo:
  description: What was (in check mode would be) done, in sentences without a subject.
  returned: success
  type: list
  elements: str
done:
  description: What was done beside files, such as restarts.
  returned: success
  type: list
  elements: str
changed_paths:
  description: Files that were (in check mode would be) written, removed or put back.
  returned: success
  type: list
  elements: str
unproved:
  description: Whether a change counts now that V(confirmed) must keep.
  returned: success
  type: bool
proof:
  description: >-
    What is to be asked for that: C(address) of this node, and of C(peers) those that are in O(peers_known), with C(name),
    C(address) and C(host).
  returned: success
  type: dict
"""

from typing import Any

from ansible.module_utils.pveguard.base import managed_file, ssh_login
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.hardening import concerns, hardening_files
from ansible.module_utils.pveguard.hardening.peers import host_of
from ansible.module_utils.pveguard.pmxcfs import run_lock


def main() -> None:
    module = NodeModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "confirmed", "undone", "reverted"],
                "default": "present",
            },
            "concern": {"type": "str", "choices": list(concerns.CONCERNS)},
            "options": {"type": "dict", "default": {}},
            "peers_known": {"type": "dict", "default": {}},
            "drift": {
                "type": "str",
                "choices": [managed_file.REFUSE, managed_file.OVERWRITE],
                "default": managed_file.REFUSE,
            },
            "lock": run_lock.OPTION,
        },
        required_if=[("state", each, ("concern",)) for each in ("present", "confirmed", "undone")],
        supports_check_mode=True,
    )
    try:
        result = _work(module)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    for said in result.advice:
        module.warn(said)
    for each in result.files:
        if each.drift:
            module.warn(
                f"{each.path}: somebody changed it after pveguard wrote it ({each.drift}); what was there is kept"
            )
    known = module.params["peers_known"]
    peers = [
        {**each, "host": host}
        for each in result.proof.get("peers", [])
        if (host := host_of(each, known))
    ]
    module.exit_json(
        changed=result.changed,
        todo=result.todo,
        done=result.done,
        changed_paths=[each.path for each in result.files],
        unproved=result.unproved,
        proof={"address": result.proof.get("address", ""), "peers": peers},
        diff=[
            {
                "before": each.before,
                "after": each.after,
                "before_header": each.path,
                "after_header": f"{each.path} ({each.what})",
            }
            for each in result.files
        ],
    )


def _work(module: NodeModule) -> hardening_files.Result:
    params: dict[str, Any] = module.params
    check, name = module.check_mode, params["concern"]
    if params["state"] == "reverted":
        planned = hardening_files.revert(True, params["drift"])
        if check or not planned.changed:
            return planned
        run_lock.require(params["lock"], check)
        return hardening_files.revert(check, params["drift"])
    if params["state"] == "present":
        run_lock.require(params["lock"], check)
    if params["state"] == "confirmed":
        return hardening_files.Result(["keep what was proved"] if not check and hardening_files.confirm(name) else [])
    if params["state"] == "undone":
        return hardening_files.Result(["put back what was not proved"] if not check and hardening_files.undo(name) else [])
    # sudo takes it out of the environment; it is that of a process above then.
    return hardening_files.apply(name, params["options"], check, ssh_login.connection().partition(" ")[0])


if __name__ == "__main__":
    main()
