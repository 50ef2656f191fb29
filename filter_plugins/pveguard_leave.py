# SPDX-License-Identifier: Apache-2.0
"""Filters of playbooks/leave.yml: who leaves which cluster, and whether it may."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ansible.module_utils

_ROOT = Path(__file__).resolve().parent.parent
# Filters are loaded by the controller, which does not know this project's module_utils as modules do.
if str(_ROOT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(_ROOT / "module_utils"))

from ansible.module_utils.pveguard.cluster import leave
from ansible.module_utils.pveguard.corosync import probe_members


def decision(hostvars: Any, play_hosts: Collection[str], name: str, dead: bool = False) -> dict[str, Any]:
    """Who leaves which cluster, through whom; see the core ``leave``.

    ``{{ hostvars | pveguard_leave_decision(ansible_play_hosts_all, leave_node, leave_dead) }}``
    """
    facts = {host: (hostvars[host].get("pveguard_node") or {}).get("node") for host in play_hosts}
    probes = [host for host in play_hosts if probe_members.is_described(hostvars[host])]
    return leave.decide(str(name), facts, list(play_hosts), dead, probes)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pveguard_leave_decision": decision, "pveguard_leave_proposal": leave.propose}
