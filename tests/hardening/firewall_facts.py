# SPDX-License-Identifier: Apache-2.0
"""Facts of a node's firewall for tests: the cluster "blue" of pve1 (this node), pve2 and pve3, two links, the legacy firewall, a
controller in the management set.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.pveguard.formats import firewall_config
from ansible.module_utils.pveguard.hardening import firewall

MANAGED = "[IPSET management]\n192.0.2.0/24\n"
ON = f"[OPTIONS]\nenable: 1\n{MANAGED}"
GUEST = {
    "id": 100,
    "node": "pve2",
    "kind": "qemu-server",
    "name": "web",
    "cards": ["net0"],
    "rules": 2,
    "policy_in": "DROP",
}


def file(path: str, text: str, enabled: bool) -> dict[str, Any]:
    parsed = firewall_config.parse(text)
    policies = {
        key: parsed.options.get(key, value).upper()
        for key, value in (("policy_in", "DROP"), ("policy_out", "ACCEPT"))
    }
    return {
        "path": path,
        "present": bool(text),
        "enable": parsed.on("enable", enabled),
        **policies,
        **firewall.said(parsed),
    }


def facts(cluster: str = MANAGED, host: str = "", **more: Any) -> dict[str, Any]:
    members = [
        {
            "name": f"pve{number}",
            "own": number == 1,
            "address": f"10.0.0.1{number}",
            "links": {"0": f"10.0.0.1{number}", "1": f"10.1.0.1{number}"},
            "written": {"0": f"10.0.0.1{number}", "1": f"pve{number}-ring1"},
        }
        for number in (1, 2, 3)
    ]
    return {
        "known": True,
        "read": True,
        "error": "",
        "implementation": "legacy",
        "node": "pve1",
        "cluster_name": "blue",
        "services": {
            name: {"active": True, "enabled": True} for name in ("pve-firewall", "proxmox-firewall")
        },
        "cluster": file("/etc/pve/firewall/cluster.fw", cluster, False),
        "host": file("/etc/pve/nodes/pve1/host.fw", host, True),
        "members": members,
        "links": [0, 1],
        "addresses": ["10.0.0.11/24", "10.1.0.11/24"],
        "cards": {"10.0.0.11": "vmbr0", "10.1.0.11": "eno2"},
        "address": "10.0.0.11",
        "local_network": "10.0.0.0/24",
        "controller": "192.0.2.9",
        "ssh_port": 22,
        "qdevice": None,
        "qnetd": False,
        "drbd": [],
        "drbd_strange": [],
        "inbound": [],
        "migration": {"type": "secure", "network": ""},
        "guests": [],
        "guests_strange": [],
        "force_disable": False,
        "held_open": False,
        "timer": "none",
        "others": [],
        "other_units": [],
        **more,
    }
