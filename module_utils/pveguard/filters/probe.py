# SPDX-License-Identifier: Apache-2.0
"""Filters of playbooks/probe.yml and observe.yml: which host is the probe, and whether it may be one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..cluster import probe
from ..corosync import probe_members


def chosen(groups: Mapping[str, Collection[str]], play_hosts: Collection[str], name: str = "") -> dict[str, str]:
    """``{host, refusal}``: the probe that is meant, or why there is none.

    ``{{ groups | pveguard_probe_chosen(ansible_play_hosts_all, probe_host) }}``
    """
    probes = list(groups.get(probe_members.GROUP, ()))
    if not probes:
        return {"host": "", "refusal": f"the inventory has no host in the group {probe_members.GROUP} (docs/probe.md shows one)"}
    if name and name not in probes:
        return {"host": "", "refusal": f"probe_host is {name!r}; the group {probe_members.GROUP} has {', '.join(probes)}"}
    if not name and len(probes) > 1:
        return {
            "host": "",
            "refusal": f"the group {probe_members.GROUP} has {', '.join(probes)}: name one with -e probe_host=NAME",
        }
    host = name or probes[0]
    if host not in play_hosts:
        return {"host": "", "refusal": f"{host} is not in this run: run it without --limit"}
    return {"host": host, "refusal": ""}


def refusals(
    node: Mapping[str, Any], seed: Mapping[str, Any], name: str, votes: int, node_id: int | str | None = None
) -> list[str]:
    """``{{ node | pveguard_probe_refusals(seed, name, probe_votes, corosync_node_id) }}``: see the core ``probe``.

    ``node`` and ``seed`` are facts.
    """
    return probe.refusals(name, int(votes), node, seed, None if node_id is None else int(node_id))


def votes_differ(seed: Mapping[str, Any], name: str, votes: int) -> bool:
    """Whether the cluster of ``seed`` (facts) lists the probe with other votes."""
    return probe.votes_to_change(name, int(votes), seed)


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_probe_chosen": chosen,
    "pveguard_probe_refusals": refusals,
    "pveguard_probe_votes_differ": votes_differ,
}
