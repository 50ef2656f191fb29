# SPDX-License-Identifier: Apache-2.0
"""Filters of playbooks/restore.yml: which node is meant, whom to ask, what is proposed, how to go back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ..base.host_variables import rendered
from ..state import restore_plan


def target(hosts: Collection[str], wanted: str = "") -> dict[str, str]:
    """``{node, refusal}``: the one node of the play that is to be restored, or why there is none.

    ``{{ ansible_play_hosts_all | pveguard_restore_target(ram_state_restore_node) }}``
    """
    if wanted:
        if wanted in hosts:
            return {"node": wanted, "refusal": ""}
        return {
            "node": "",
            "refusal": f"ram_state_restore_node is {wanted}, which is not among {_listed(hosts)}",
        }
    if len(hosts) == 1:
        return {"node": next(iter(hosts)), "refusal": ""}
    return {
        "node": "",
        "refusal": f"one node is restored at a time, and here are {len(hosts)}: {_listed(hosts)}. Name it with --limit NODE "
        "or -e ram_state_restore_node=NODE",
    }


def peer_hosts(hostvars: Any, node: Mapping[str, Any], host: str) -> list[str]:
    """Hosts of the inventory that may be the other members of the cluster of ``host``, --limit or not."""
    wanted = ("ansible_host", "corosync_links")
    every = rendered(hostvars)
    return restore_plan.peer_hosts(node, {name: {k: own.get(k) for k in wanted} for name, own in every.items()}, host)


def proposal(
    found: Mapping[str, Any],
    node: Mapping[str, Any],
    host: str,
    answers: Sequence[Mapping[str, Any]],
    command: str,
) -> dict[str, Any]:
    """What would be done and whether it may be; see the core. ``answers``: results of node_info in a loop over hosts."""
    asked = {answer["item"]: answer.get("node") for answer in answers}
    return restore_plan.propose(host, node, found, restore_plan.peers(node, asked), command)


def sources(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of the hosts asked whose daemon runs with quorum."""
    running = [answer for answer in answers if (answer.get("node") or {}).get("pmxcfs", {}).get("quorate")]
    return [str(answer["item"]) for answer in running]


def way_back(result: Mapping[str, Any], host: str, command: str) -> list[str]:
    """The way back from a restore; ``result`` is that of the module."""
    return restore_plan.way_back(host, result["restore"], result.get("former"), command)


def _listed(hosts: Iterable[str]) -> str:
    return ", ".join(hosts)


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_restore_target": target,
    "pveguard_restore_command": restore_plan.command,
    "pveguard_restore_peer_hosts": peer_hosts,
    "pveguard_restore_proposal": proposal,
    "pveguard_restore_sources": sources,
    "pveguard_restore_way_back": way_back,
}
