# SPDX-License-Identifier: Apache-2.0
"""Filters of the gates' report: the data of a run, its table, and the files on the controller."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from ..base import variables as typed
from ..base.errors import PveguardError
from ..base.host_variables import rendered
from ..report import gate_page, gate_report
from . import ROOT

Hosts = Mapping[str, Mapping[str, Any]]

#: Key of the report -> variable that sets it. The roles' defaults count where a host does not.
_DISK = {"min_fsyncs_per_second": "fsync_gate_min_fsyncs", "warn_p99_ms": "fsync_gate_warn_p99_ms"}
_LINKS = {
    name: f"link_gate_{name}"
    for name in (
        *("rtt_warn_ms", "rtt_fail_ms", "jitter_warn_ms", "jitter_fail_ms"),
        *("loss_warn_percent", "loss_fail_percent", "mtu_min"),
    )
}


def _defaults(role: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    except OSError:
        return {}
    return value if isinstance(value, dict) else {}


def _thresholds(
    variables: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key, name in names.items():
        try:
            found[key] = typed.as_float(variables.get(name, defaults.get(name)))
        except PveguardError:
            found[key] = None
    return found


def _directory(directory: str) -> Path:
    return Path(directory) if directory else ROOT / "reports"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def report(
    hostvars: Hosts,
    hosts: Iterable[str],
    in_run: Iterable[str],
    directory: str = "",
    tokens: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The report of ``hosts``; ``in_run``: those still in the play.

    ``directory``: where reports are kept, ``reports/`` of the checkout when empty. ``tokens``: what
    ``pveguard_token_advice`` returned.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    base = _directory(directory)
    last = gate_report.usable(_read(base / "gate.json"))
    disk_defaults, link_defaults = _defaults("fsync_gate"), _defaults("link_gate")
    present = set(in_run)
    nodes = {}
    every = rendered(hostvars)
    for host in hosts:
        variables = every[host]
        nodes[host] = gate_report.entry(
            now=now,
            in_run=host in present,
            disk=variables.get("fsync_gate_result"),
            links=variables.get("link_gate_result"),
            plan=variables.get("pveguard_plan"),
            power_cut=_read(base / "power_cut" / f"{quote(host, safe='')}.json"),
            disk_thresholds=_thresholds(variables, _DISK, disk_defaults),
            link_thresholds=_thresholds(variables, _LINKS, link_defaults),
            last=(last.get("nodes") or {}).get(host),
        )
    return gate_report.build(nodes, now, tokens, last)


def files(value: Mapping[str, Any], directory: str = "") -> list[dict[str, str]]:
    """``gate.json``, ``gate.html`` and ``DATE/gate.json``, the last report of each day (UTC)."""
    base = _directory(directory)
    text = json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"
    return [
        {"path": str(base / "gate.json"), "content": text},
        {"path": str(base / value["time"][:10] / "gate.json"), "content": text},
        {"path": str(base / "gate.html"), "content": gate_page.page(value)},
    ]


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_gate_report": report,
    "pveguard_gate_table": gate_report.render,
    "pveguard_gate_report_files": files,
}
