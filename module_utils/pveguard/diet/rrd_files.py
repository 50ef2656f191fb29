# SPDX-License-Identifier: Apache-2.0
"""What is told of the statistics of a node: how many RRD files, and what a flush of them costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.units import bytes_text, duration_text


def summary(node: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """From the facts of node_info: ``files``, ``bytes``, ``flush_bytes`` (of one flush of them all), ``write_seconds`` and
    ``jitter_seconds`` of the daemon that runs. None where no rrdcached runs, or it has no files.
    """
    facts = ((node or {}).get("write_diet") or {}).get("rrdcached") or {}
    running, rrd = facts.get("running"), facts.get("rrd")
    if not running or not rrd or not rrd["files"]:
        return None
    return {**rrd, "write_seconds": running["write_s"], "jitter_seconds": running["jitter_s"]}


def files_text(rrd: Mapping[str, Any]) -> str:
    """``29 files, 32.4 MiB``."""
    return f"{rrd['files']} file{'' if rrd['files'] == 1 else 's'}, {bytes_text(rrd['bytes'])}"


def flush_text(rrd: Mapping[str, Any]) -> str:
    """``a flush of all writes about 1.5 MiB, every 60 to 70 min``."""
    low = rrd["write_seconds"]
    high = low + rrd["jitter_seconds"]
    often = duration_text(low) if low == high else f"{duration_text(low)} to {duration_text(high)}"
    return f"a flush of all writes about {bytes_text(rrd['flush_bytes'])}, every {often}"
