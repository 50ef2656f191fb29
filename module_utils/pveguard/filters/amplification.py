# SPDX-License-Identifier: Apache-2.0
"""Filters for measuring what a write to /etc/pve costs: where it is measured, and the result as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..base.host_variables import facts_of
from ..writes import write_amplification


def amplification_hosts(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Those of ``hosts`` that measure: the first live member of each cluster, and each node without a cluster.

    ``{{ hostvars | pveguard_amplification_hosts(ansible_play_hosts) }}``, by the facts in ``pveguard_node``.
    """
    return write_amplification.measuring_hosts(
        {host: facts_of(hostvars[host]) for host in hosts}
    )


def amplification_table(result: Mapping[str, Any]) -> list[str]:
    """What the module write_amplification returned as lines of text, or why it returned nothing."""
    if not result.get("cases"):
        return [f"not measured: {result.get('msg') or 'no answer'}"]
    return write_amplification.render(result)


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_amplification_hosts": amplification_hosts,
    "pveguard_amplification_table": amplification_table,
}
