# SPDX-License-Identifier: Apache-2.0
"""Filters of the role corosync for changes to a cluster that exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ..base import node_name, variables
from ..base.errors import PveguardError
from ..base.host_variables import rendered


def corosync_nodes(hostvars: Mapping[str, Mapping[str, Any]], members: Iterable[str]) -> list[dict[str, Any]]:
    """Members as the module corosync_conf takes them: ``{name, node_id, links}``, from inventory and facts."""
    nodes = []
    every = rendered(hostvars)
    for host in members:
        own = every[host]
        try:
            name = node_name.own(own["pveguard_node"]["node"]["hostname"])
            node_id = variables.as_int(own["corosync_node_id"])
            node = {"name": name, "node_id": node_id, "links": list(own["corosync_links"])}
        except (KeyError, TypeError, ValueError, PveguardError) as error:
            raise AnsibleFilterError(
                f"{host}: its address in corosync.conf cannot be updated, because {error} is missing: it needs "
                "corosync_node_id and corosync_links, and to be asked in this run"
            ) from error
        nodes.append(node)
    return nodes


def node_ids(hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> list[int]:
    """``corosync_node_id`` of those of ``hosts`` that have one, in their order."""
    every = rendered(hostvars)
    return [variables.as_int(every[host]["corosync_node_id"]) for host in hosts if "corosync_node_id" in every[host]]


FILTERS: dict[str, Callable[..., Any]] = {"pveguard_corosync_nodes": corosync_nodes, "pveguard_corosync_node_ids": node_ids}
