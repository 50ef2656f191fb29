"""What the playbooks and the assessment know of a role: its own ``meta/pveguard.yml``, so that they name none.

The keys of a description, of which only ``order`` must be there:

``order``    a number of its own: protect.yml goes up, revert.yml comes down
``switch``   the role's variable that says what is wanted of it
``kinds``    the kinds of hosts that it is for (core ``kinds``); all without it
``changes``  the core, ``ROOM.FILE``, whose ``changes(node, plan, desired)`` says what a run would change
``settings`` true: ``changes`` is told what the inventory wants of all of the role's variables, where its switch is on
``limits``   ``{number: [lowest, highest]}`` of the role's variables; a suboption as ``name.sub``
``steps``    ``{stage: step}``, what it does in each of :data:`STAGES`. A step has a ``name`` and the file of the role's
             ``tasks`` (main.yml without it), or in the stage revert ``files: true``: nothing but the files that are kept for
             the role or its measures (core ``managed_file``)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..base.errors import PveguardError
from .kinds import KINDS

#: Each stage and on how many nodes at once it is done; what a role's step there may rely on.
STAGES = {
    "look": "on all nodes at once, in assess.yml and report.yml: reads only, and never fails for what it cannot read",
    "observe": "on all nodes at once, before anything is changed",
    "check": "on all nodes at once, before anything is changed; a refusal on one stops the run for all",
    "prepare": "on one node after the other, before any role's change",
    "prepare_together": "on all nodes at once, after all are prepared",
    "change": "on one node after the other",
    "change_together": "on all nodes at once, after all are changed",
    "revert": "on one node after the other, the last role first; for hosts of every kind",
}
REVERT, LOOK = "revert", "look"

#: Says what ``site.yml`` would change on a node: ``(facts of node_info, its plan, {role: what is wanted}) -> sentences``.
Changes = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], list[str]]


@dataclass(frozen=True)
class Role:
    """One description."""

    name: str
    order: int
    switch: str
    kinds: tuple[str, ...]
    changes: str
    settings: bool
    limits: dict[str, tuple[float, float]]
    steps: dict[str, dict[str, Any]]


def read(documents: Mapping[str, Any]) -> list[Role]:
    """The descriptions of ``{role: parsed meta/pveguard.yml}``, by their order. Raises PveguardError for a mistake."""
    roles = sorted((_role(name, document) for name, document in documents.items()), key=lambda role: role.order)
    for role, following in zip(roles, roles[1:], strict=False):
        if role.order == following.order:
            raise PveguardError(f"{_file(following.name)}: order {role.order} is that of {role.name} too; each has its own")
    return roles


def steps(roles: Iterable[Role], stage: str, kind: str) -> list[dict[str, Any]]:
    """What is done in a stage on a host of this kind, in order: ``{role, name, tasks, files}`` each."""
    if stage not in STAGES:
        raise PveguardError(f"{stage!r} is no stage, known are {', '.join(STAGES)}")
    # What was done to a host is undone, whatever it has become since.
    found = [role for role in roles if stage in role.steps and (stage == REVERT or kind in role.kinds)]
    return [{"role": role.name, **role.steps[stage]} for role in (reversed(found) if stage == REVERT else found)]


def desired(roles: Iterable[Role], kind: str, value: Callable[[str, str], Any]) -> dict[str, Any]:
    """``{role: value of its switch}`` of the roles that are for hosts of this kind; ``value`` gives it for (role, variable)."""
    return {role.name: value(role.name, role.switch) for role in roles if role.switch and kind in role.kinds}


def settings(
    roles: Iterable[Role], wanted: Mapping[str, Any], names: Mapping[str, Iterable[str]], value: Callable[[str, str], Any]
) -> dict[str, Any]:
    """``wanted`` (of :func:`desired`) with ``{variable: value}`` for the roles that ask for it and are switched on. ``names``:
    the variables of each role.
    """
    found = dict(wanted)
    for role in roles:
        if role.settings and found.get(role.name):
            found[role.name] = {name: value(role.name, name) for name in names[role.name]}
    return found


def add_limits(role: Role, options: Mapping[str, dict[str, Any]]) -> None:
    """Put the role's limits into its options (of argument_specs.yml), each as ``limits`` beside the type.

    Raises PveguardError for one that no option has.
    """
    for name, bounds in role.limits.items():
        option: dict[str, Any] = {"options": options}
        for part in name.split("."):
            option = (option.get("options") or {}).get(part) or {}
        if option.get("type") not in ("int", "float"):
            raise PveguardError(f"{_file(role.name)}: limits: {name} is no number of meta/argument_specs.yml")
        option["limits"] = bounds


def looked(roles: Iterable[Role], node: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of node_info with those that the roles' own looks have left: ``node['NAME']`` is ``facts`` of the variable
    ``__NAME_look``, which the role's step ``look`` registers or sets.
    """
    found = dict(node)
    for role in roles:
        result = variables.get(f"__{role.name}_look") if LOOK in role.steps else None
        if isinstance(result, Mapping) and "facts" in result:
            found[role.name] = result["facts"]
    return found


def _role(name: str, document: Any) -> Role:
    where = _file(name)
    found = _mapping(where, document, {"order", "switch", "kinds", "changes", "settings", "limits", "steps"})
    order = found.get("order")
    if not isinstance(order, int) or isinstance(order, bool):
        raise PveguardError(f"{where}: order {order!r} is no whole number")
    switch, changes = str(found.get("switch") or ""), str(found.get("changes") or "")
    if switch and not switch.startswith(f"{name}_"):
        raise PveguardError(f"{where}: switch {switch!r} is no variable of the role")
    if changes and not re.fullmatch(r"[a-z_]+\.[a-z_]+", changes):
        raise PveguardError(f"{where}: changes {changes!r} is not ROOM.FILE below module_utils/pveguard")
    kinds = tuple(found.get("kinds") or KINDS)
    if wrong := [each for each in kinds if each not in KINDS]:
        raise PveguardError(f"{where}: kinds has {wrong[0]!r}, known are {', '.join(KINDS)}")
    limits = _limits(where, name, found.get("limits") or {})
    told = found.get("settings") is True
    return Role(name, order, switch, kinds, changes, told, limits, _steps(where, found.get("steps") or {}))


def _limits(where: str, role: str, document: Any) -> dict[str, tuple[float, float]]:
    found = {}
    for name, bounds in document.items() if isinstance(document, Mapping) else [("limits", document)]:
        numbers = isinstance(bounds, list) and all(isinstance(each, (int, float)) for each in bounds)
        if not name.startswith(f"{role}_") or not numbers or len(bounds) != 2 or bounds[0] >= bounds[1]:
            raise PveguardError(f"{where}: limits: {name}: {bounds!r} is not [LOWEST, HIGHEST] of a variable of the role")
        found[str(name)] = (float(bounds[0]), float(bounds[1]))
    return found


def _steps(where: str, document: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for stage, step in _mapping(f"{where}: steps", document, set(STAGES)).items():
        place = f"{where}: steps.{stage}"
        given = _mapping(place, step, {"name", "tasks", "files"})
        files = given.get("files") or False
        if not given.get("name"):
            raise PveguardError(f"{place} has no name")
        if files and (stage != REVERT or given.get("tasks")):
            raise PveguardError(f"{place}: files: true is for the stage {REVERT}, without tasks")
        found[stage] = {"name": str(given["name"]), "tasks": str(given.get("tasks") or "main.yml"), "files": bool(files)}
    return found


def _mapping(where: str, document: Any, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise PveguardError(f"{where} is no mapping")
    if unknown := sorted(set(document) - known):
        raise PveguardError(f"{where}: unknown key {unknown[0]!r}, known are {', '.join(sorted(known))}")
    return document


def _file(name: str) -> str:
    return f"roles/{name}/meta/pveguard.yml"
