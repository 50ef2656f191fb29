# SPDX-License-Identifier: Apache-2.0
"""Filter of the role corosync for changes to a cluster that exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError


def corosync_nodes(hostvars: Mapping[str, Mapping[str, Any]], members: Iterable[str]) -> list[dict[str, Any]]:
    """Members as the module corosync_conf takes them: ``{name, node_id, links}``, from inventory and facts."""
    nodes = []
    for host in members:
        variables = hostvars[host]
        try:
            name = variables["pveguard_node"]["node"]["hostname"].split(".")[0]
            node = {"name": name, "node_id": int(variables["corosync_node_id"]), "links": list(variables["corosync_links"])}
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleFilterError(
                f"{host}: its address in corosync.conf cannot be updated, because {error} is missing: it needs "
                "corosync_node_id and corosync_links, and to be asked in this run"
            ) from error
        nodes.append(node)
    return nodes


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pveguard_corosync_nodes": corosync_nodes}
