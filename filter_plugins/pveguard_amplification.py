# SPDX-License-Identifier: Apache-2.0
"""Filters for measuring what a write to /etc/pve costs: where it is measured, and the result as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils

_ROOT = Path(__file__).resolve().parent.parent
# Filters are loaded by the controller, which does not know this project's module_utils as modules do.
if str(_ROOT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(_ROOT / "module_utils"))

from ansible.module_utils.pveguard.writes import write_amplification


def amplification_hosts(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Those of ``hosts`` that measure: the first live member of each cluster, and each node without a cluster.

    ``{{ hostvars | pveguard_amplification_hosts(ansible_play_hosts) }}``, by the facts in ``pveguard_node``.
    """
    return write_amplification.measuring_hosts(
        {host: (hostvars[host].get("pveguard_node") or {}).get("node") for host in hosts}
    )


def amplification_table(result: Mapping[str, Any]) -> list[str]:
    """What the module write_amplification returned as lines of text, or why it returned nothing."""
    if not result.get("cases"):
        return [f"not measured: {result.get('msg') or 'no answer'}"]
    return write_amplification.render(result)


class FilterModule:
    """Filters of pveguard."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "pveguard_amplification_hosts": amplification_hosts,
            "pveguard_amplification_table": amplification_table,
        }
