# SPDX-License-Identifier: Apache-2.0
"""Which host of the inventory a member of a cluster is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def host_of(member: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """``known``: hosts by names and addresses (filter ``pveguard_hardening_hosts``); empty where it is none of them. The address
    comes first, as nodes of several clusters may have the same names.
    """
    return known.get(str(member.get("address"))) or known.get(str(member.get("name"))) or ""
