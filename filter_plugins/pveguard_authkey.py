# SPDX-License-Identifier: Apache-2.0
"""Filter of playbooks/authkey.yml: which cluster gets a new key, and whether it may."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ansible.module_utils

_ROOT = Path(__file__).resolve().parent.parent
# Filters are loaded by the controller, which does not know this project's module_utils as modules do.
if str(_ROOT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(_ROOT / "module_utils"))

from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.host_variables import rendered
from ansible.module_utils.pveguard.cluster import corosync_authkey, plan


def decision(hostvars: Any, play_hosts: Collection[str], cluster: str = "") -> dict[str, Any]:
    """Whether the key of a cluster may be changed; see the core ``corosync_authkey``.

    ``{{ hostvars | pveguard_authkey_decision(ansible_play_hosts_all, authkey_cluster) }}``. The key that the inventory has
    is judged, not returned.
    """
    facts = {host: (hostvars[host].get("pveguard_node") or {}).get("node") for host in play_hosts}
    every = rendered(hostvars)
    keys = {
        every[host].get("corosync_authkey")
        for host, node in facts.items()
        if node and (not cluster or plan.live_cluster(node) == cluster)
    } - {None, ""}
    try:
        found = corosync_authkey.decide(facts, list(play_hosts), cluster, next(iter(keys), None))
    except PveguardError as error:
        found = {"refusals": [f"corosync_authkey: {error}"], "seed": None, "members": []}
    if len(keys) > 1:
        found["refusals"].append("the hosts of the cluster have different values of corosync_authkey: set it for the group")
    return found


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pveguard_authkey_decision": decision}
