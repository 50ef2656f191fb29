#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Whether the web interface of another member takes a connection from this one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pveproxy_proof
short_description: Prove that pveproxy of another member takes a TLS connection from this one
description:
  - Makes a TLS handshake and asks one word of HTTP, over a new connection. The certificate is not judged.
  - Changes nothing, and does the same in check mode.
attributes:
  check_mode:
    support: full
    description: It changes nothing, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  name:
    description: Name of the member, for messages.
    type: str
    required: true
  address:
    description: Its address.
    type: str
    required: true
  port:
    description: Where it listens.
    type: int
    default: 8006
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: From this member to another
  pveproxy_proof:
    name: pve2
    address: 192.0.2.12
"""

RETURN = r"""
proof:
  description: C(address), C(version) and C(cipher) of the connection.
  returned: success
  type: dict
"""

from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.base.node_name import own
from ansible.module_utils.pveguard.hardening import pveproxy_proof


def main() -> None:
    module = NodeModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": pveproxy_proof.PORT},
        },
        supports_check_mode=True,
    )
    address, port = module.params["address"], module.params["port"]
    found = pveproxy_proof.until(address, port, 30.0)
    if found["error"]:
        module.fail_json(
            msg=f"pveproxy of {module.params['name']} ({address} port {port}) "
            f"does not take a connection from {own()}: {found['error']}"
        )
    module.exit_json(changed=False, proof={key: found[key] for key in ("address", "version", "cipher")})


if __name__ == "__main__":
    main()
