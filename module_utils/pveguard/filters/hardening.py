# SPDX-License-Identifier: Apache-2.0
"""Filters of the role node_hardening."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..base.host_variables import rendered
from ..hardening import asked


def hosts(hostvars: Any, host: str) -> dict[str, str]:
    """``{name or address: host of the inventory}`` of all hosts but this one, --limit or not: by what a node calls itself where
    it was looked at, by the name in the inventory, and by the address that Ansible goes to.
    """
    found: dict[str, str] = {}
    for name, own in rendered(hostvars).items():
        if name == host:
            continue
        node = (own.get("pveguard_node") or {}).get("node") or {}
        for key in (node.get("hostname"), str(name).partition(".")[0], own.get("ansible_host")):
            if key:
                found.setdefault(str(key), str(name))
    return found


def areas(hostvars: Any, host: str) -> list[str]:
    """The areas of hardening whose concern is switched on for a host."""
    return asked.switched_on(rendered(hostvars)[host])


def failures(came_in: Mapping[str, Any], went_out: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> list[str]:
    """Why a change of sshd is not proved, from the results of the proofs (the first of a loop) and of the confirmation."""
    named = [*((f"{(each.get('item') or {}).get('name')}: ", each) for each in came_in.get("results") or []), ("", went_out)]
    if kept is not None and not kept.get("skipped"):
        named.append(("the controller's new login: ", kept))
    return [f"{who}{each.get('msg') or 'no answer'}" for who, each in named if _failed(each)]


def _failed(result: Mapping[str, Any]) -> bool:
    # With failed_when: false a module that failed has left its message alone.
    if result.get("skipped"):
        return False
    return bool(result.get("unreachable") or result.get("failed") or result.get("msg") or result.get("exception"))


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_hardening_areas": areas,
    "pveguard_hardening_failures": failures,
    "pveguard_hardening_hosts": hosts,
}
