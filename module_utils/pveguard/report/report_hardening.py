# SPDX-License-Identifier: Apache-2.0
"""How the nodes are hardened, as the page of a report shows it: what was found alike for several nodes in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base.findings import PROBLEM, UNKNOWN, VERDICTS, WARNING, rank
from . import report_summary
from .page_parts import Badge, Code, Figure, Item, LongTable, Notice, long_table
from .report_summary import names_text

#: Of the ids of its findings.
PREFIX = "hardening-"
#: Names in a row.
_MAX_NAMES = 6
#: The scale is made of words that a reader understands.
_TOLD = (PROBLEM, WARNING, UNKNOWN)


def is_one(id: str) -> bool:
    """Whether a finding is told in this part of the page."""
    return id.startswith(PREFIX)


def hardening(report: Mapping[str, Any]) -> dict[str, Any]:
    """``{tiles, notices, found}``."""
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    areas = {name: node.get("hardening") for name, node in nodes.items()}
    asked = {name: its for name, its in areas.items() if its is not None}
    told = [(name, each) for name in asked for each in nodes[name].get("findings") or [] if is_one(each["id"])]
    return {
        "tiles": _tiles(nodes, asked, [each for _, each in told]) if asked else [],
        "notices": _notices(areas, asked, {name for name, _ in told}),
        "found": _table(told),
    }


def _tiles(
    nodes: Mapping[str, Any], asked: Mapping[str, Mapping[str, bool]], found: Sequence[Mapping[str, Any]]
) -> list[Figure]:
    every = list(dict.fromkeys(area for its in asked.values() for area in its))
    counts = {severity: sum(each["severity"] == severity for each in found) for severity in _TOLD}
    return [
        Figure("Nodes looked at", f"{len(asked)} of {len(nodes)}", ", ".join(every)),
        Figure("Problems", str(counts[PROBLEM]), "what breaks Proxmox VE, or leaves a door open"),
        Figure("Warnings", str(counts[WARNING])),
        Figure("Not known", str(counts[UNKNOWN]), "never counted as good"),
    ]


def _notices(areas: Mapping[str, Any], asked: Mapping[str, Mapping[str, bool]], told: set[str]) -> list[Notice]:
    made = []
    if missing := [name for name in areas if name not in asked]:
        text = "was not looked at in this run. make assess does it, and make site where a concern of node_hardening is on"
        made.append(Notice("unknown", [Item(text, names_text(missing, _MAX_NAMES))]))
    if clear := [name for name, its in asked.items() if name not in told and all(its.values())]:
        made.append(Notice("pass", [Item("nothing to tell of what was looked at", names_text(clear, _MAX_NAMES))]))
    return made


def lines(report: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """``{(verdict, text): names}``: how much is told in this part of the page, for those who read its top alone."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, (_, its) in report_summary.verdicts(report).items():
        for each in its:
            if is_one(each.id):
                found.setdefault(each.severity, {}).setdefault(each.id, set()).add(name)
    said = {}
    for severity in _TOLD:
        ids = found.get(severity) or {}
        names = set().union(*ids.values()) if ids else set()
        if ids:
            kinds = f"{len(ids)} kind{'' if len(ids) == 1 else 's'} of {severity}"
            text = f"{'something is not known' if severity == UNKNOWN else kinds} in how the node is hardened, told below"
            said[(VERDICTS[severity], text)] = [name for name in report["nodes"] if name in names]
    return said


def _table(told: Sequence[tuple[str, Mapping[str, Any]]]) -> LongTable | None:
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    ids: dict[tuple[str, str, str, str], str] = {}
    for name, each in told:
        said = f"{each['text']}: {each['means']}" if each.get("means") else each["text"]
        key = (each["severity"], said, each["fix"], each["code"])
        grouped.setdefault(key, []).append(name)
        ids[key] = each["id"]
    # The worst first, what is true of most nodes before the rest, an area together.
    order = sorted(grouped, key=lambda key: (rank(key[0]), -len(grouped[key]), ids[key]))
    rows = [
        (Badge(VERDICTS[key[0]], key[0]), names_text(grouped[key], _MAX_NAMES), key[1], key[2], Code(key[3]) if key[3] else "")
        for key in order
    ]
    header = ("Verdict", "Nodes", "What was found", "What helps", "Command or setting")
    return long_table("What was found, the worst first", header, rows, "All that was found")


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """``hardening: 2 problems, 1 unknown`` of findings of an assessment, empty without any."""
    levels = [each["level"] for each in found if is_one(each.get("id", ""))]
    counts = [(levels.count(level), level) for level in _TOLD if level in levels]
    parts = [f"{count} {level}{'' if count == 1 or level == UNKNOWN else 's'}" for count, level in counts]
    return f"hardening: {', '.join(parts)}" if parts else ""


def verdict(report: Mapping[str, Any]) -> str:
    """The worst of what is told here, of all nodes."""
    found = [each for _, its in report_summary.verdicts(report).values() for each in its if is_one(each.id)]
    return report_summary.verdict(found)
