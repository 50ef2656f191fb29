#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The key of a running cluster, one member's part in its change."""

from __future__ import annotations

DOCUMENTATION = r"""
module: corosync_authkey
short_description: Make, place, take and put back a new key of a running cluster
description:
  - The steps of a rotation on one member each, in the order of V(generated), V(placed) on every member, V(reloaded) on one
    of them, V(settled) on every member. C(playbooks/authkey.yml) does them with the guards.
  - Keys are compared by hash. The former one is kept in C(/run/pveguard/authkey.former) (0400, gone with the next boot) for
    V(former), until V(settled).
  - V(reloaded) issues C(corosync-cfgtool -R), V(seen) does not; both wait until O(expected_ids) are in the membership and
    stay in it for longer than Corosync takes to notice the loss of a member.
attributes:
  check_mode:
    support: full
    description: Writes and reloads nothing. A key is made all the same; nothing of it stays on the node.
  diff_mode:
    support: none
    description: A key is never shown.
options:
  state:
    description: The step.
    type: str
    choices: [generated, placed, reloaded, seen, former, settled]
    required: true
  key:
    description: The new key in base64, 128 to 4096 bytes. Needed for V(placed).
    type: str
  former_sha256:
    description: SHA-256 of the key that is to be replaced. Needed for V(placed), which refuses another one.
    type: str
  expected_ids:
    description: Node ids that must be in the membership.
    type: list
    elements: int
    default: []
  deadline_seconds:
    description: How long to wait for them in seconds; with 0 nothing is awaited.
    type: float
    default: 60
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Place the new key
  corosync_authkey:
    state: placed
    key: "{{ new.key }}"
    former_sha256: "{{ pveguard_node.node.corosync.authkey_sha256 }}"
  no_log: true
"""

RETURN = r"""
key:
  description: The new key in base64. A secret.
  returned: state is generated
  type: str
sha256:
  description: SHA-256 of C(/etc/corosync/authkey) afterwards, or of the key that was made.
  returned: success
  type: str
live_member_ids:
  description: Node ids in the membership.
  returned: state is reloaded or seen
  type: list
  elements: int
"""

import hashlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.atomic import read_or_none
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import corosync_authkey
from ansible.module_utils.pveguard.corosync import corosync_info


def main() -> None:
    states = ["generated", "placed", "reloaded", "seen", "former", "settled"]
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": states, "required": True},
            "key": {"type": "str", "no_log": True},
            "former_sha256": {"type": "str"},
            "expected_ids": {"type": "list", "elements": "int", "default": []},
            "deadline_seconds": {"type": "float", "default": 60},
        },
        required_if=[("state", "placed", ["key", "former_sha256"])],
        supports_check_mode=True,
    )
    params = module.params
    state, changed = params["state"], False
    result: dict[str, Any] = {}
    try:
        if state == "generated":
            result["key"] = corosync_authkey.generate()
            result["sha256"] = hashlib.sha256(corosync_authkey.decoded(result["key"])).hexdigest()
        elif state == "placed":
            changed = corosync_authkey.place(params["key"], params["former_sha256"], check=module.check_mode)
        elif module.check_mode:
            changed = state == "reloaded"
        elif state in ("reloaded", "seen"):
            info = corosync_authkey.reload(params["expected_ids"], params["deadline_seconds"], issue=state == "reloaded")
            changed, result["live_member_ids"] = state == "reloaded", info["live_member_ids"]
        elif state == "former":
            changed = corosync_authkey.put_back()
        else:
            corosync_authkey.settle()
        if "sha256" not in result:
            data = read_or_none(Path("/") / corosync_info.AUTHKEY)
            result["sha256"] = None if data is None else hashlib.sha256(data).hexdigest()
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, **result)


if __name__ == "__main__":
    main()
