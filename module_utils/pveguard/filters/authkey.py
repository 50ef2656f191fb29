# SPDX-License-Identifier: Apache-2.0
"""Filter of playbooks/authkey.yml: which cluster gets a new key, and whether it may."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..base.errors import PveguardError
from ..base.host_variables import facts_of, rendered
from ..cluster import corosync_authkey, plan


def decision(hostvars: Any, play_hosts: Collection[str], cluster: str = "") -> dict[str, Any]:
    """Whether the key of a cluster may be changed; see the core ``corosync_authkey``.

    ``{{ hostvars | pveguard_authkey_decision(ansible_play_hosts_all, authkey_cluster) }}``. The key that the inventory has
    is judged, not returned.
    """
    facts = {host: facts_of(hostvars[host]) for host in play_hosts}
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


FILTERS: dict[str, Callable[..., Any]] = {"pveguard_authkey_decision": decision}
