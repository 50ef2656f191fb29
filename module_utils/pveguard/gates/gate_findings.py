# SPDX-License-Identifier: Apache-2.0
"""What the gates say of a node, as findings. What is slow or lossy is judged by ``fsync_gate`` and ``link_gate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.findings import PROBLEM, VERDICTS, WARNING, Finding, check

_HELPS = ("Read what helps with this reason in gate.html and docs/gates.md, then measure again.", "make gate")

DISK = check("gate-disk", (PROBLEM, WARNING), "The disk gate refused the node, or let it pass with a warning", *_HELPS)
LINKS = check("gate-links", (PROBLEM, WARNING), "The link gate refused the node, or let it pass with a warning", *_HELPS)

_SEVERITIES = {verdict: severity for severity, verdict in VERDICTS.items()}


def findings(disk: Mapping[str, Any] | None, links: Mapping[str, Any] | None) -> list[Finding]:
    """``disk`` and ``links``: the results of the gates, with ``verdict``, ``reason`` and ``message``; None or empty where
    they did not measure.
    """
    found = []
    for gate, name, result in ((DISK, "disk", disk), (LINKS, "links", links)):
        severity = _SEVERITIES.get(str((result or {}).get("verdict")))
        if result and severity in (PROBLEM, WARNING):
            message = " ".join(str(result.get("message") or result.get("reason") or "").split())
            text = f"gate, {name}: {message}"
            found.append(gate(text, severity=severity, brief=text))
    return found
