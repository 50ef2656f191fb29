# SPDX-License-Identifier: Apache-2.0
"""Members of a cluster: their addresses, and which host of the inventory each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def addresses(said: Any) -> dict[str, str]:
    """``{name: address}`` of all members, as written; ``said``: by ``pmxcfs.members.parse``. Raises ValueError where one has
    none, or where there is no list of them, as on a node without a cluster; whether it is an address is not looked at.
    """
    try:
        return {str(name): str(node["ip"]) for name, node in said["nodelist"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("no list of members with their addresses") from error


def host_of(member: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """``known``: hosts by names and addresses (filter ``pveguard_hardening_hosts``); empty where it is none of them. The address
    comes first, as nodes of several clusters may have the same names.
    """
    return known.get(str(member.get("address"))) or known.get(str(member.get("name"))) or ""
