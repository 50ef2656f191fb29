#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""A file on the cluster file system."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pve_file
short_description: Write or remove a file on the cluster file system of Proxmox VE
description:
  - Writes in place, as the file system mounted on C(/etc/pve) demands; it alone decides on mode (0640, or
    0600 below C(priv/)) and owner (root, group www-data) of a file. Parent directories are made.
  - Refuses when C(/etc/pve) is not the mounted file system, because a file left beneath the mount point keeps
    the daemon from starting, and when the node has no quorum.
attributes:
  check_mode:
    support: full
    description: Writes nothing. On a node without the file system no file exists yet.
  diff_mode:
    support: full
    description: Shows the text before and after unless O(secret) is set or the text is binary.
options:
  path:
    description: Absolute path below C(/etc/pve).
    type: path
    required: true
  content:
    description: The whole text of the file, at most 1 MiB. Needed for V(present).
    type: str
  state:
    description: Whether the file must exist.
    type: str
    choices: [present, absent]
    default: present
  secret:
    description: Keeps the content out of the diff; set C(no_log) on the task to keep it out of the log too.
    type: bool
    default: false
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Limit the bandwidth of migrations
  pve_file:
    path: /etc/pve/datacenter.cfg
    content: |
      bwlimit: migration=102400
"""

RETURN = r"""
path:
  description: The path that was asked for.
  returned: always
  type: str
bytes:
  description: Size of the file afterwards in bytes, 0 when it does not exist.
  returned: always
  type: int
"""

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.pmxcfs import pve_file


def main() -> None:
    module = NodeModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "no_log": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "secret": {"type": "bool", "default": False, "no_log": False},
        },
        required_if=[("state", "present", ["content"])],
        supports_check_mode=True,
    )
    path = module.params["path"]
    content = None
    if module.params["state"] == "present":
        content = module.params["content"].encode("utf-8", "surrogateescape")
    try:
        change = pve_file.plan(path, content) if module.check_mode else pve_file.apply(path, content)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    result = {"changed": change.changed, "path": path, "bytes": len(content or b"")}
    if not module.params["secret"]:
        result["diff"] = {
            "before_header": path,
            "after_header": path,
            "before": (change.before or b"").decode("utf-8", "replace"),
            "after": (change.after or b"").decode("utf-8", "replace"),
        }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
