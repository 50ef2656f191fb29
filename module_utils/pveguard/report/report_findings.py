# SPDX-License-Identifier: Apache-2.0
"""The findings of a report as its page shows them: the one place of the page that knows what a finding is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base.findings import UNKNOWN, VERDICTS, rank
from ..disk import drive_findings
from . import report_hardening, report_summary
from .page_parts import MAX_GROUPS, Badge, Item, Notice
from .report_summary import names_text

#: Reasons that are named with a step, names in a line, lines of a notice that are open.
MAX_REASONS, _MAX_NAMES, _MAX_LINES = 3, 6, 12

_BADNESS = {"fail": 0, "warn": 1, UNKNOWN: 2, "pass": 3}
_WORDS = {"pass": "safe and quiet", "warn": "worth a look", "fail": "not safe", UNKNOWN: UNKNOWN}
_DRIVES = {"pass": "well", "warn": "worth a look", "fail": "worn out"}


def overall(report: Mapping[str, Any]) -> tuple[Badge, str]:
    """The verdict of all nodes and the sentence that an operator reads first."""
    kind, sentence = report_summary.overall(report)
    return Badge(kind, _WORDS[kind]), sentence


def verdicts(report: Mapping[str, Any]) -> dict[str, Badge]:
    """The verdict of each node, the worst first."""
    judged = report_summary.verdicts(report)
    return {
        name: Badge(judged[name][0], _WORDS[judged[name][0]])
        for name in sorted(judged, key=lambda name: _BADNESS[judged[name][0]])
    }


def notices(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is wrong, the worst first, the same text once for all nodes that it is true of.

    ``{first, rest, more}``: the notice that is open, and one on demand with its title, or None.
    """
    said: dict[tuple[str, str], list[str]] = {}
    for name, (_, found) in report_summary.verdicts(report).items():
        for each in found:
            if not report_hardening.is_one(each.id):
                said.setdefault((VERDICTS[each.severity], each.text), []).append(name)
    # These have a part of the page, and one line for each kind here.
    said |= report_hardening.lines(report)
    made = []
    for kind in ("fail", "warn", UNKNOWN):
        items = [Item(text, names_text(names, _MAX_NAMES)) for (each, text), names in said.items() if each == kind]
        first, rest = items[:_MAX_LINES], items[_MAX_LINES:]
        if first:
            made.append(
                {
                    "first": Notice(kind, first),
                    "rest": Notice(kind, rest) if rest else None,
                    "more": f"{len(rest)} more",
                }
            )
    return made


def drive(disk: Mapping[str, Any]) -> Badge:
    """The verdict of a drive; unknown when it told nothing that could be judged."""
    if all(disk.get(key) is None for key in ("percentage_used", "spare_percent", "media_errors")):
        return Badge(UNKNOWN)
    kind = report_summary.verdict(drive_findings.findings([disk]))
    return Badge(kind, _DRIVES.get(kind, UNKNOWN))


def next_steps(report: Mapping[str, Any]) -> dict[str, Any]:
    """What to do next, and what assess found: ``{steps, assessments, more, nothing}``."""
    assessed = {name: node["assessment"] for name, node in report["nodes"].items() if node.get("assessment")}
    judged = [_assessment(name, assessment) for name, assessment in assessed.items()]
    many = len(judged) > MAX_GROUPS
    steps = [_step(step) for step in report_summary.steps(report) if not all(map(report_hardening.is_one, step.ids))]
    if (worst := report_hardening.verdict(report)) != "pass":
        todo = "Go through what was found on how the nodes are hardened, the worst first."
        why = "in the part on hardening, with the undo"
        steps.append({"badge": Badge(worst, "hardening"), "todo": todo, "code": "", "why": why})
    return {
        "steps": sorted(steps, key=lambda step: _BADNESS[step["badge"].kind]),
        "assessments": [] if many else judged,
        # sorted() keeps those that are alike in their order.
        "more_assessments": sorted(judged, key=lambda each: _BADNESS[each["badge"].kind]) if many else [],
        "nothing": not steps and not judged,
    }


def _step(step: report_summary.Step) -> dict[str, Any]:
    why = [f"{name}: {text}" for name, text in step.reasons[:MAX_REASONS]]
    why += [f"and {len(step.reasons) - MAX_REASONS} more"] if len(step.reasons) > MAX_REASONS else []
    return {
        "badge": Badge(step.kind, names_text(step.nodes, _MAX_NAMES)),
        "todo": step.todo,
        "code": step.code,
        "why": "; ".join(why),
    }


def _assessment(name: str, assessment: Mapping[str, Any]) -> dict[str, Any]:
    """What assess found on a node and would change there."""
    every: Sequence[Mapping[str, Any]] = assessment.get("findings") or []
    found = [each for each in every if not report_hardening.is_one(each.get("id", ""))]
    kinds = [VERDICTS.get(each["level"], UNKNOWN) for each in found]
    worst = min((each["level"] for each in every), key=rank, default=UNKNOWN)
    return {
        "name": name,
        "badge": Badge(VERDICTS[worst], worst),
        "findings": [
            {"badge": Badge(kind, each["level"]), "text": each["text"]} for kind, each in zip(kinds, found, strict=True)
        ],
        "hardening": report_hardening.summary(every),
        "changes": list(assessment.get("changes") or []),
    }
