#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The drop-in of sshd, kept only when a login over a new connection says so."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sshd_change
short_description: Harden sshd of a Proxmox VE node, and take it back when nobody proves that the node is still reached
description:
  - V(present) judges, with nothing changed, what sshd would do for root from every member and from the controller, arms a timer
    on the node that takes the change back (also at boot), writes C(/etc/ssh/sshd_config.d/00-pveguard.conf) with the way back,
    and has sshd read it. C(/etc/ssh/sshd_config) itself is never written.
  - V(confirmed) keeps the change. It must come over an ssh connection that is younger than the change.
  - V(undone) takes a change back that was not confirmed, at once. V(reverted) puts back what was there before the first one.
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
    choices: [present, confirmed, undone, reverted]
    default: present
  keys_only:
    description: Root logs in by key alone, and nobody by password.
    type: bool
    default: true
  algorithms:
    description: Takes weak algorithms off sshd's lists. RSA keys with SHA-2, which Proxmox VE needs, stay.
    type: bool
    default: true
  seconds:
    description: Until the change is taken back that nobody has confirmed.
    type: int
    default: 180
  peers_known:
    description: >-
      Hosts of the inventory by the names and addresses of members. Where it is given a member that is not among them is
      refused, as nobody could prove that it still gets in.
    type: dict
  drift:
    description: What V(reverted) does where somebody changed the file since.
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
- name: Harden sshd
  sshd_change:
  register: change

- name: Keep it, over a new connection
  sshd_change:
    state: confirmed
  when: change.unproved
  vars:
    ansible_ssh_extra_args: -o ControlPath=none
"""

RETURN = r"""
unproved:
  description: Whether a change counts now that V(confirmed) must keep.
  returned: success
  type: bool
todo:
  description: What was (in check mode would be) done, in sentences without a subject.
  returned: success
  type: list
  elements: str
hosts:
  description: The host of the inventory of each member, by the member's name.
  returned: with O(state=present)
  type: dict
sshd:
  description: Facts of sshd afterwards, with C(node), C(address) and C(peers) as the cluster file system names them.
  returned: with O(state=present)
  type: dict
timer:
  description: "What became of the change: C(none), C(armed), C(confirmed), C(rolling_back) or C(rolled_back)."
  returned: success
  type: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base import managed_file, rollback_timer, ssh_login
from ansible.module_utils.pveguard.base.atomic import read_or_none
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.base.run import run
from ansible.module_utils.pveguard.hardening import sshd, sshd_change
from ansible.module_utils.pveguard.pmxcfs import run_lock
from ansible.module_utils.pveguard.state import login
from ansible.module_utils.pveguard.state.paths import Paths


def main() -> None:
    module = NodeModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "confirmed", "undone", "reverted"], "default": "present"},
            "keys_only": {"type": "bool", "default": True, "no_log": False},
            "algorithms": {"type": "bool", "default": True},
            "seconds": {"type": "int", "default": sshd_change.SECONDS},
            "peers_known": {"type": "dict"},
            "drift": {"type": "str", "choices": [managed_file.REFUSE, managed_file.OVERWRITE], "default": managed_file.REFUSE},
            "lock": run_lock.OPTION,
        },
        supports_check_mode=True,
    )
    try:
        result = _work(module)
        timer = str(rollback_timer.status(sshd.TIMER)["state"])
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=result.changed,
        unproved=result.unproved,
        todo=result.todo,
        sshd=result.facts,
        hosts=result.hosts,
        timer=timer,
        diff=[
            {"before": each.before, "after": each.after, "before_header": each.path, "after_header": f"{each.path} ({each.what})"}
            for each in result.files
        ],
    )


def _work(module: NodeModule) -> sshd_change.Result:
    params: dict[str, Any] = module.params
    check = module.check_mode
    nothing = params["state"] == "reverted" and not sshd_change.revert(params["drift"], True).changed
    if params["state"] in ("present", "reverted") and not nothing:
        run_lock.require(params["lock"], check)
    if params["state"] == "reverted":
        return sshd_change.revert(params["drift"], check)
    if params["state"] == "confirmed":
        return sshd_change.Result(not check and sshd_change.confirm())
    if params["state"] == "undone":
        return sshd_change.Result(not check and sshd_change.undo())
    return sshd_change.present(
        params["keys_only"],
        params["algorithms"],
        _login() if params["keys_only"] else {},
        seconds=params["seconds"],
        # sudo takes it out of the environment; it is that of a process above then.
        controller=ssh_login.connection().partition(" ")[0],
        known=params["peers_known"],
        check=check,
    )


def _login() -> dict[str, Any]:
    """What is known of the login in use: whether its key lies outside of /etc/pve, and where."""
    paths = Paths()
    found = login.check_login(paths)
    if not found["independent"] or found["file"] or not found["connection"]:
        return found
    # Without /etc/pve any login will do for the check of ram_state; here it must be one by a key that is seen.
    address, port = found["connection"].split()[:2]
    accepted = login.accepted_login(address, port)
    if accepted is None or accepted[0] != "publickey":
        return {**found, "how": f"login by {accepted[0]}" if accepted else "the journal does not say how this login was accepted"}
    _, user, fingerprint, _ = accepted
    patterns = sshd.value(sshd.settings(sshd.Who("controller", address), run), "AuthorizedKeysFile")
    for file in login.authorized_keys_files(paths, user, patterns):
        lines = (read_or_none(file) or b"").decode("utf-8", "replace").splitlines()
        if not sshd.on_pve(Path("/"), Path(file)) and fingerprint in [login.key_fingerprint(line) for line in lines]:
            return {**found, "file": file, "how": f"the key in use stands in {file}"}
    return {**found, "how": f"the key in use ({fingerprint}) stands in none of {patterns}"}


if __name__ == "__main__":
    main()
