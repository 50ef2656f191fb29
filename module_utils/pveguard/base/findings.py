# SPDX-License-Identifier: Apache-2.0
"""What is judged about a node or a cluster: one class and one scale for ``make assess``, the report, the comparison of the
nodes and ``pve-state status``.

A core declares each condition that it judges as a :class:`Check` of its own and reports it from one function::

    UNUSED = check("ha-running-unused", WARNING, "HA runs although nothing uses it", "Switch it off.", "make site")
    ...
    return [UNUSED(f"HA runs although nothing uses it ({names})")]

``scripts/finding_docs.py`` collects all checks into docs/findings.md. Imports nothing of pveguard, so that every room and the
programs on a node can use it; those start in a few milliseconds, which ``dataclasses`` and ``typing`` alone would double.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

#: The scale, worst first. ``unknown``: it could not be found out, which never counts as good.
PROBLEM, WARNING, UNKNOWN, GOOD = "problem", "warning", "unknown", "good"
SEVERITIES = (PROBLEM, WARNING, UNKNOWN, GOOD)
#: The verdict on a node, or of a gate, that a severity stands for.
VERDICTS = {PROBLEM: "fail", WARNING: "warn", UNKNOWN: "unknown", GOOD: "pass"}


class Finding:
    """One condition that was met.

    ``id``: of its check, stable, for programs. ``text``: what was seen, without a full stop. ``means``: what follows from it,
    empty where that is plain. ``fix``: what helps, a sentence; ``code``: the command or the variable for it, may be empty; both
    are empty in what is good. ``nodes``: of whom it is told, empty where that is the node that was looked at. ``brief``: the
    reason in a few words, for a headline.
    """

    __slots__ = ("id", "severity", "text", "fix", "code", "means", "nodes", "brief")

    def __init__(
        self,
        id: str,
        severity: str,
        text: str,
        fix: str = "",
        code: str = "",
        means: str = "",
        nodes: tuple[str, ...] = (),
        brief: str = "",
    ) -> None:
        self.id, self.severity, self.text, self.fix, self.code = id, severity, text, fix, code
        self.means, self.nodes, self.brief = means, nodes, brief

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Finding) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.id, self.text, self.nodes))

    def __repr__(self) -> str:
        return f"Finding({self.as_dict()})"

    @property
    def helps(self) -> str:
        """What helps, with its command or variable."""
        return f"{self.fix.rstrip('.')} ({self.code})" if self.fix and self.code else self.fix or self.code

    @property
    def sentence(self) -> str:
        """What was seen, what it means, and, at the end, what helps."""
        said = f"{self.text}: {self.means}" if self.means else self.text
        if not self.helps:
            return said
        return f"{said}{'. ' if self.helps[0].isupper() else '; '}{self.helps}"

    @property
    def headline(self) -> str:
        """The reason in a few words: what stands before the first colon."""
        return self.brief or self.text.partition(": ")[0]

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON: ``{id, severity, text, means, fix, code, nodes}``."""
        return {
            "id": self.id,
            "severity": self.severity,
            "text": self.text,
            "means": self.means,
            "fix": self.fix,
            "code": self.code,
            "nodes": list(self.nodes),
        }


class Check:
    """One condition that is judged. Calling it makes the :class:`Finding`.

    ``severities``: those that it may have, the usual one first. ``what``: the condition in one line, for docs/findings.md.
    ``fix`` and ``code``: what helps, where a finding does not say it more exactly.
    """

    __slots__ = ("id", "severities", "what", "fix", "code")

    def __init__(self, id: str, severities: tuple[str, ...], what: str, fix: str = "", code: str = "") -> None:
        self.id, self.severities, self.what, self.fix, self.code = id, severities, what, fix, code

    def __call__(
        self,
        text: str,
        *,
        severity: str = "",
        means: str = "",
        fix: str | None = None,
        code: str | None = None,
        nodes: Iterable[str] = (),
        brief: str = "",
    ) -> Finding:
        """The condition is met. ``code`` alone replaces that of the check, ``fix`` alone replaces both."""
        if code is None:
            code = self.code if fix is None else ""
        return Finding(
            self.id,
            severity or self.severities[0],
            text,
            self.fix if fix is None else fix,
            code,
            means,
            tuple(nodes),
            brief,
        )


def check(id: str, severity: str | Sequence[str], what: str, fix: str = "", code: str = "") -> Check:
    """Declare a condition. ``id``: lower case and hyphens, the subject first; it never changes its meaning.

    ``severity``: one, or all that it may have, the usual one first. Raises ``ValueError`` for what is not on the scale, and for
    a condition that is not good and says nothing of what helps.
    """
    severities = (severity,) if isinstance(severity, str) else tuple(severity)
    if not severities or not set(severities) <= set(SEVERITIES):
        raise ValueError(f"{id}: severity {severity!r} is none of {', '.join(SEVERITIES)}")
    if severities != (GOOD,) and not (fix or code):
        raise ValueError(f"{id}: what helps is not said")
    return Check(id, severities, what, fix, code)


def read(said: Mapping[str, Any]) -> Finding:
    """The finding of :meth:`Finding.as_dict`, which a node of another version may have written: what is missing is empty, and
    a severity that is not known is ``unknown``.
    """
    severity = said.get("severity")
    return Finding(
        str(said.get("id") or "unknown"),
        severity if severity in SEVERITIES else UNKNOWN,
        str(said.get("text") or ""),
        str(said.get("fix") or ""),
        str(said.get("code") or ""),
        str(said.get("means") or ""),
        tuple(str(node) for node in said.get("nodes") or ()),
    )


def rank(severity: str) -> int:
    """0 for the worst."""
    return SEVERITIES.index(severity)


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    """The findings by severity, those of one in the order in which they came."""
    return sorted(found, key=lambda each: rank(each.severity))


def worst(found: Iterable[Finding]) -> str:
    """The worst severity, ``good`` when there is none."""
    return min((each.severity for each in found), key=rank, default=GOOD)


def worth_telling(found: Iterable[Finding]) -> list[Finding]:
    """All that is not good."""
    return [each for each in found if each.severity != GOOD]


def with_others(found: Sequence[Finding], others: Iterable[Finding]) -> list[Finding]:
    """``found``, and of ``others`` those conditions that ``found`` does not tell already."""
    told = {each.id for each in found}
    return [*found, *(each for each in others if each.id not in told)]


def judges(name: str) -> list[Callable[..., list[Finding]]]:
    """The functions of that name of all cores that judge, which are those whose own name ends in ``_findings``: what a later role
    judges is found without being listed. Those of the room ``cluster`` come first.

    ``of_node(node, plan)`` is for ``make assess``, ``of_report(node)`` for the report; both get the facts of ``node_info``.
    For the controller: in a module on a node only what it imports is there.
    """
    return [getattr(core, name) for core in _cores() if hasattr(core, name)]


@functools.cache
def _cores() -> list[ModuleType]:
    # The programs on a node never come here, and start without these.
    from importlib import import_module
    from pkgutil import walk_packages

    package = import_module(__name__.rpartition(".base.")[0])
    names = [each.name for each in walk_packages(package.__path__, f"{package.__name__}.") if each.name.endswith("_findings")]
    return [import_module(each) for each in sorted(names, key=lambda each: (".cluster." not in each, each))]


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(str(name) for name in names[:limit]) + (f" and {more} more" if more > 0 else "")
