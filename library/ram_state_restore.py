#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""An earlier generation of the cluster file system's state, shown or brought back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ram_state_restore
short_description: Show or bring back an earlier generation of the state of Proxmox VE's cluster file system
description:
  - V(looked) says what a restore would change, file by file, and what speaks against it. V(restored) does it, if
    that is still what there is.
  - With O(path), files are written through /etc/pve while everything runs, for all members. Files that came since stay.
  - Without O(path), the whole state is replaced. The daemon is down for seconds, as a detached unit that puts the former
    state back on any failure. The state that is replaced is kept as a generation.
  - With O(resync), a member starts without a database and fetches the other members' state.
  - Whether the daemons of other members run is judged by the caller, who can ask them; without O(peers_down) a whole
    state is refused on a member.
  - Works on a node whose state is on disk as well, as long as it has generations.
attributes:
  check_mode:
    support: full
    description: Reports what would be done and writes nothing. Refuses as a real run would.
  diff_mode:
    support: full
    description: Shows the text of every file now and then; secrets and binary files by size and sha256.
options:
  state:
    description: Whether to look only, or to restore.
    type: str
    choices: [looked, restored]
    default: looked
  generation:
    description: Name of the generation, the beginning of one, or C(latest). Without it and O(resync) all are listed.
    type: str
    default: ""
  path:
    description: File or directory below /etc/pve to bring back; C(/) is everything that may be written there.
    type: str
    default: ""
  resync:
    description: Fetches the other members' state instead of restoring a generation.
    type: bool
    default: false
  shown:
    description: RV(restore.shown) of the V(looked) that was agreed to. Required to restore.
    type: str
  peers_down:
    description: The daemon of no other member runs; allows a whole state on a member of a cluster.
    type: bool
    default: false
  allow_offline_members:
    description: Does not refuse O(resync) because a member of the cluster is not online.
    type: bool
    default: false
  login_fallback:
    description: Adds the key in use to a file off /etc/pve, when the daemon is taken down and the login depends on it.
    type: bool
    default: true
  deadline:
    description: Seconds after which a restore that did not end is undone.
    type: int
    default: 300
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: What would come back
  ram_state_restore:
    generation: latest
    path: storage.cfg
  register: look

- name: Bring it back
  ram_state_restore:
    state: restored
    generation: "{{ look.restore.generation.name }}"
    path: storage.cfg
    shown: "{{ look.restore.shown }}"
"""

RETURN = r"""
restore:
  description: What there is and what a restore changes.
  returned: success
  type: dict
  contains:
    way: {description: 'C(whole), C(path), C(resync), or C(list) where nothing was named.', type: str}
    path: {description: The path that was asked for., type: str}
    generation: {description: Manifest of the generation with its C(name); null for a resync., type: dict}
    generations: {description: All manifests where nothing was named., type: list}
    now: {description: Source and root version of the present state; null when it cannot be read., type: dict}
    files:
      description: Files that differ, as C(pve-state show --json) has them; null when the present state cannot be read.
      type: list
    files_error: {description: Why C(files) is null., type: str}
    left: {description: Files that are not written with O(path=/) and why., type: list}
    judged: {description: What C(pve-state restore --check) says; null with O(path)., type: dict}
    refusals: {description: What speaks against it on this node., type: list}
    warnings: {description: What an operator should mind., type: list}
    shown: {description: Hash of what was shown., type: str}
former:
  description: Name of the generation that holds what was replaced.
  returned: when something was restored
  type: str
downtime_seconds:
  description: Seconds from the stop of the daemon until /etc/pve was served again.
  returned: when the daemon was taken down
  type: float
root_version:
  description: Root version afterwards.
  returned: when the daemon was taken down
  type: int
tree_sha256:
  description: Hash of all paths, types and contents afterwards, noise aside.
  returned: when the daemon was taken down
  type: str
generation_tree_sha256:
  description: The same hash of the generation.
  returned: when a whole generation was restored
  type: str
"""

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.state import ram_state_restore


def main() -> None:
    module = NodeModule(
        argument_spec={
            "state": {"type": "str", "choices": ["looked", "restored"], "default": "looked"},
            "generation": {"type": "str", "default": ""},
            "path": {"type": "str", "default": ""},
            "resync": {"type": "bool", "default": False},
            "shown": {"type": "str"},
            "peers_down": {"type": "bool", "default": False},
            "allow_offline_members": {"type": "bool", "default": False},
            "login_fallback": {"type": "bool", "default": True},
            "deadline": {"type": "int", "default": 300},
        },
        required_if=[("state", "restored", ["shown"])],
        supports_check_mode=True,
    )
    params = module.params
    if params["resync"] and (params["generation"] or params["path"]):
        module.fail_json(
            msg="resync fetches everything from the other members; it excludes generation and path"
        )
    options = ram_state_restore.Options(
        generation=params["generation"],
        path=params["path"],
        resync=params["resync"],
        peers_down=params["peers_down"],
        allow_offline_members=params["allow_offline_members"],
        login_fallback=params["login_fallback"],
        deadline_s=params["deadline"],
        diffs=module._diff,
    )
    try:
        if params["state"] == "looked":
            module.exit_json(changed=False, restore=ram_state_restore.look(options))
        result = ram_state_restore.restore(options, params["shown"], check=module.check_mode)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    found = result["found"]
    shown = ram_state_restore.diff(found) if module._diff else []
    figures = {
        key: result[key]
        for key in ("downtime_seconds", "root_version", "tree_sha256", "generation_tree_sha256")
        if result.get(key) is not None
    }
    if result["former"]:
        figures["former"] = result["former"]
    found["files"] = found["files"] and [
        {key: value for key, value in entry.items() if key != "diff"} for entry in found["files"]
    ]
    module.exit_json(changed=result["changed"], restore=found, diff=shown, **figures)


if __name__ == "__main__":
    main()
