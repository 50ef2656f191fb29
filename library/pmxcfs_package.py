#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The package and daemon of the cluster file system."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pmxcfs_package
short_description: Install and start the cluster file system of Proxmox VE
description:
  - On plain Debian it sets up a repository whose key is pinned by its fingerprint and valid for nothing else,
    lets apt take from it only what Debian does not have, and installs C(pve-cluster) without recommendations.
  - On a Proxmox VE installation repositories and packages are left alone; only the daemon is enabled and
    started.
  - Before the daemon's first start it refuses a host name that resolves to loopback and files beneath
    C(/etc/pve), and moves the example corosync.conf of Debian's package aside, which the daemon would import.
attributes:
  check_mode:
    support: full
    description: Uses neither python3-apt nor the network and writes nothing.
  diff_mode:
    support: full
    description: Shows the repository and preferences files before and after.
options:
  repository:
    description:
      - V(no-subscription) for Proxmox's public repository, V(keep) for none, or a URL.
      - By default V(keep) on a Proxmox VE installation and V(no-subscription) elsewhere.
    type: str
    default: ""
  suite:
    description: Suite of the repository; the code name of the release by default.
    type: str
    default: ""
  components:
    description: Components; C(pve-no-subscription) for V(no-subscription), C(main) otherwise.
    type: list
    elements: str
    default: []
  key:
    description: OpenPGP key of the repository, armoured or binary, as a path on the node or a URL.
    type: str
    default: ""
  fingerprint:
    description: Fingerprint of that key, 40 hexadecimal digits. Known here for Debian 12 and 13.
    type: str
    default: ""
  version:
    description: Version of C(pve-cluster) to install; by default the newest, or the one that is there.
    type: str
    default: ""
  deadline_seconds:
    description: How long to wait for the mount in seconds.
    type: float
    default: 90
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Cluster file system from Proxmox's public repository
  pmxcfs_package:
    repository: no-subscription
"""

RETURN = r"""
changes:
  description: What was done, or would be in check mode.
  returned: always
  type: list
  elements: str
version:
  description: Installed version of C(pve-cluster), null when it is not installed.
  returned: always
  type: str
repository:
  description: URL of the repository that is set up, or C(keep).
  returned: always
  type: str
"""

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.node_module import NodeModule
from ansible.module_utils.pveguard.cluster import pmxcfs_package


def main() -> None:
    module = NodeModule(
        argument_spec={
            "repository": {"type": "str", "default": ""},
            "suite": {"type": "str", "default": ""},
            "components": {"type": "list", "elements": "str", "default": []},
            "key": {"type": "str", "default": "", "no_log": False},
            "fingerprint": {"type": "str", "default": ""},
            "version": {"type": "str", "default": ""},
            "deadline_seconds": {"type": "float", "default": 90},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = pmxcfs_package.Wanted(
        repository=params["repository"],
        suite=params["suite"],
        components=tuple(params["components"]),
        key=params["key"],
        fingerprint=params["fingerprint"],
        version=params["version"],
        deadline_s=params["deadline_seconds"],
    )
    try:
        outcome = pmxcfs_package.apply(wanted, check_mode=module.check_mode)
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(
        changed=bool(outcome.changes),
        changes=outcome.changes,
        version=outcome.version,
        repository=outcome.repository,
        diff=[
            {"before_header": path, "after_header": path, "before": before, "after": after}
            for path, before, after in outcome.diffs
        ],
    )


if __name__ == "__main__":
    main()
