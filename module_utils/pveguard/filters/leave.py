# SPDX-License-Identifier: Apache-2.0
"""Filters of playbooks/leave.yml: who leaves which cluster, and whether it may."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..base.host_variables import facts_of
from ..cluster import leave
from ..corosync import probe_members


def decision(hostvars: Any, play_hosts: Collection[str], name: str, dead: bool = False) -> dict[str, Any]:
    """Who leaves which cluster, through whom; see the core ``leave``.

    ``{{ hostvars | pveguard_leave_decision(ansible_play_hosts_all, leave_node, leave_dead) }}``
    """
    facts = {host: facts_of(hostvars[host]) for host in play_hosts}
    probes = [host for host in play_hosts if probe_members.is_described(hostvars[host])]
    return leave.decide(str(name), facts, list(play_hosts), dead, probes)


FILTERS: dict[str, Callable[..., Any]] = {"pveguard_leave_decision": decision, "pveguard_leave_proposal": leave.propose}
