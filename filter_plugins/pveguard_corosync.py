# SPDX-License-Identifier: Apache-2.0
"""Filters over what the nodes say of their Corosync: where they differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import ansible.module_utils

_ROOT = Path(__file__).resolve().parent.parent
# Filters are loaded by the controller, which does not know this project's module_utils as modules do.
if str(_ROOT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(_ROOT / "module_utils"))

from ansible.module_utils.pveguard import corosync_compare


def _facts(variables: Any) -> dict[str, Any] | None:
    """Facts of a host that was asked in this run, by node_info or by corosync_info alone."""
    node = (variables.get("pveguard_node") or {}).get("node")
    return node if isinstance(node, dict) else None


def differences(hostvars: Any, hosts: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every cluster of the inventory with what its nodes have, where they differ and which copy to keep.

    ``{{ hostvars | pveguard_corosync_differences(ansible_play_hosts_all) }}``: see ``compare`` in the core
    ``corosync_compare``. Hosts that --limit leaves out are there as not asked.
    """
    manager = getattr(hostvars, "_inventory", None)
    names: Iterable[str] = list(hostvars)
    if manager is None:
        names = dict.fromkeys([*hosts, *names])
    else:
        names = [host.name for host in manager.get_hosts("all", ignore_limits=True, ignore_restrictions=True)]
    nodes, wanted = {}, {}
    for host in names:
        nodes[host] = _facts(hostvars[host])
        wanted[host] = hostvars[host].get("corosync_cluster_name") or None
    return corosync_compare.compare(nodes, wanted)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pveguard_corosync_differences": differences}
