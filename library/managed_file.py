#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""A set of files in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_file
short_description: Write or remove a set of files on a node in one round trip, and put them back
description:
  - Each file is replaced atomically (temporary file in the same directory, fsync, rename, fsync of the directory) and
    only when its content, mode or owner differs.
  - With O(kept_for) the file as it was before the first change is kept on the node, or that there was none, and
    O(state=reverted) puts it back byte for byte, with mode and owner.
  - Refuses paths on /etc/pve, symbolic links and directories. Nothing is written when one of the paths is refused.
attributes:
  check_mode:
    support: full
    description: Reports what would be written and writes nothing.
  diff_mode:
    support: full
    description: Shows each file before and after, secrets left out.
options:
  kept_for:
    description:
      - Name of a role, or C(ROLE.MEASURE), for which the files as they were are kept in C(/var/lib/pveguard/managed). Empty
        keeps nothing. A file belongs to one name alone.
      - With O(state=reverted) a role's name stands for all its measures too.
    type: str
    default: ""
  state:
    description:
      - V(present) brings O(files) to what they are to be. V(reverted) puts back what is kept for O(kept_for), of O(files) where
        they are given, else all.
    type: str
    choices: [present, reverted]
    default: present
  drift:
    description:
      - What to do where somebody changed a file after it was written. V(refuse) changes nothing and fails; V(overwrite) keeps
        that content in the store, as C(.changed). Empty is V(overwrite), and V(refuse) with O(state=reverted).
    type: str
    choices: ["", overwrite, refuse]
    default: ""
  files:
    description: The files, in the order in which they are written.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      content:
        description: The whole text of the file.
        type: str
        default: ""
      mode:
        description: Permission bits as octal text.
        type: str
        default: "0644"
      state:
        description: Whether the file must exist.
        type: str
        choices: [present, absent]
        default: present
      secret:
        description: Keeps the content out of the diff.
        type: bool
        default: false
  daemon_reload:
    description: Runs C(systemctl daemon-reload) after a change.
    type: bool
    default: false
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Install a unit
  managed_file:
    files:
      - path: /etc/systemd/system/example.service
        content: "{{ lookup('ansible.builtin.template', 'example.service.j2') }}"
      - path: /etc/systemd/system/former.service
        state: absent
    daemon_reload: true

- name: Write a file that was there before
  managed_file:
    kept_for: write_diet.atime
    files:
      - path: /etc/fstab
        content: "{{ text }}"

- name: Put it back
  managed_file:
    kept_for: write_diet.atime
    state: reverted
"""

RETURN = r"""
changed_paths:
  description: Paths that were (or in check mode would be) written or removed.
  returned: always
  type: list
  elements: str
drifted:
  description: What somebody had changed since it was written, by path.
  returned: always
  type: dict
"""

from pathlib import Path

from ansible.module_utils.pveguard.base import managed_file
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.base.run import run

ROOT = Path("/")


def main() -> None:
    module = NodeModule(
        argument_spec={
            "kept_for": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "reverted"], "default": "present"},
            "drift": {"type": "str", "choices": ["", managed_file.OVERWRITE, managed_file.REFUSE], "default": ""},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "default": "", "no_log": False},
                    "mode": {"type": "str", "default": "0644"},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                    "secret": {"type": "bool", "default": False, "no_log": False},
                },
            },
            "daemon_reload": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        changes = _revert(module) if module.params["state"] == "reverted" else _write(module)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    if changes and module.params["daemon_reload"] and not module.check_mode:
        done = run(["systemctl", "daemon-reload"])
        if not done.ok:
            module.fail_json(msg=f"systemctl daemon-reload failed: {done.stderr.strip()}")
    module.exit_json(
        changed=bool(changes),
        changed_paths=[change.path for change in changes],
        drifted={change.path: change.drift for change in changes if change.drift},
        diff=[
            {
                "before": change.before,
                "after": change.after,
                "before_header": change.path,
                "after_header": f"{change.path} ({change.what})",
            }
            for change in changes
        ],
    )


def _write(module: NodeModule) -> list[managed_file.Change]:
    specs = [
        managed_file.FileSpec(f["path"], f["content"], f["mode"], f["state"] == "present", f["secret"])
        for f in module.params["files"]
    ]
    work = managed_file.plan if module.check_mode else managed_file.apply
    changes = work(specs, module.params["kept_for"], ROOT, module.params["drift"] or managed_file.OVERWRITE)
    for change in changes:
        if change.drift:
            module.warn(f"{change.path}: somebody changed it after pveguard wrote it ({change.drift}); what was there is kept")
    return changes


def _revert(module: NodeModule) -> list[managed_file.Change]:
    if not module.params["kept_for"]:
        raise PveguardError("say with kept_for what is to be reverted")
    paths = [f["path"] for f in module.params["files"]] or None
    drift = module.params["drift"] or managed_file.REFUSE
    names = managed_file.names(ROOT, module.params["kept_for"])
    # All are looked at before the first is changed.
    changes = [change for name in names for change in managed_file.plan_revert(name, ROOT, paths, drift)]
    if not module.check_mode:
        for name in names:
            managed_file.revert(name, ROOT, paths, drift)
    return changes


if __name__ == "__main__":
    main()
