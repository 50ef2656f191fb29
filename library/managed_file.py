#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""A set of files in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_file
short_description: Write or remove a set of files on a node in one round trip
description:
  - Each file is replaced atomically (temporary file in the same directory, fsync, rename, fsync of the directory) and
    only when its content or mode differs.
  - Refuses paths on /etc/pve, symbolic links and directories. Nothing is written when one of the paths is refused.
attributes:
  check_mode:
    support: full
    description: Reports what would be written and writes nothing.
  diff_mode:
    support: full
    description: Shows each file before and after, secrets left out.
options:
  files:
    description: The files, in the order in which they are written.
    type: list
    elements: dict
    required: true
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
"""

RETURN = r"""
changed_paths:
  description: Paths that were (or in check mode would be) written or removed.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.pveguard.base import managed_file
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.base.run import run


def main() -> None:
    module = NodeModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
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
    specs = [
        managed_file.FileSpec(f["path"], f["content"], f["mode"], f["state"] == "present", f["secret"])
        for f in module.params["files"]
    ]
    try:
        changes = managed_file.plan(specs) if module.check_mode else managed_file.apply(specs)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    if changes and module.params["daemon_reload"] and not module.check_mode:
        done = run(["systemctl", "daemon-reload"])
        if not done.ok:
            module.fail_json(msg=f"systemctl daemon-reload failed: {done.stderr.strip()}")
    module.exit_json(
        changed=bool(changes),
        changed_paths=[change.path for change in changes],
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


if __name__ == "__main__":
    main()
