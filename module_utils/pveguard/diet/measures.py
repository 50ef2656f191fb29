# SPDX-License-Identifier: Apache-2.0
"""The measures of the write diet: their facts in one look, and what is to be done by these facts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..base.errors import PveguardError
from ..base.mountinfo import mountinfo
from ..base.run import Run
from ..base.run import run as real_run
from . import fstrim, journald, mounts, rrdcached, smartd, surroundings, swap, timers, writeback, zfs_txg
from .parts import Found, Options, ask_units

_CORES = (rrdcached, journald, mounts, swap, smartd, writeback, timers, fstrim, zfs_txg)
#: By name, in the order in which they are done.
MEASURES: dict[str, ModuleType] = {core.NAME: core for core in _CORES}
ROLE, SURROUNDINGS = "write_diet", "surroundings"
#: Where managed_file keeps files as they were.
_KEPT = "var/lib/pveguard/managed"
#: What is remembered beside files, and which activation was begun and not ended: a boot makes every file count.
REMEMBERED, PENDING = "var/lib/pveguard/write_diet", "run/pveguard/write_diet"


def collect(run: Run = real_run, root: Path = Path("/")) -> dict[str, Any]:
    """The facts of all measures, ``{measure: facts}``, and of what findings are told of, ``surroundings``; never raises.

    Each has ``kept`` (the measure is on), ``paths`` (what it has changed) and ``pending`` (it was not ended) beside its own.
    """
    units = list(dict.fromkeys(unit for core in MEASURES.values() for unit in core.UNITS))
    found = Found(root, ask_units(units, run), mountinfo(str(root)))
    facts: dict[str, Any] = {SURROUNDINGS: surroundings.look(root, found.mounts, run)}
    for name, core in MEASURES.items():
        try:
            said = dict(core.look(found, run))
        except (OSError, ValueError, PveguardError) as error:
            said = {"installed": False, "error": str(error)}
        paths = _kept_paths(root / _KEPT / f"{ROLE}.{name}")
        kept = bool(paths) or (root / REMEMBERED / f"{name}.json").exists()
        facts[name] = {**said, "kept": kept, "paths": paths, "pending": (root / PENDING / name).exists()}
    return facts


def _kept_paths(folder: Path) -> list[str]:
    """By managed_file's notes: a folder without any holds what somebody had written himself."""
    found = []
    for note in sorted(folder.glob("*.json")):
        try:
            found.append(str(json.loads(note.read_text())["path"]))
        except (OSError, ValueError, KeyError, TypeError):
            found.append("")
    return found


def measure(name: str) -> ModuleType:
    """Raises PveguardError for one that is not known."""
    if name not in MEASURES:
        raise PveguardError(f"{name!r} is no measure of the write diet, known are {', '.join(MEASURES)}")
    return MEASURES[name]


def todo(name: str, options: Options, facts: Mapping[str, Any]) -> list[str]:
    """What a run would do for one measure, by its facts; empty when nothing. ``options`` has ``enabled`` beside its own."""
    core = measure(name)
    if not options.get("enabled"):
        return [f"take the measure {name} back"] if facts.get("kept") or facts.get("pending") else []
    if not facts.get("installed"):
        return []
    found: list[str] = core.differs(options, facts)
    if not found and facts.get("pending"):
        found = [f"finish the measure {name}, which was interrupted"]
    if not found:
        wanted = {*core.owned(options, facts), *getattr(core, "EDITED", ())}
        found = [f"put {path} back as it was" for path in facts.get("paths") or [] if path not in wanted]
    return found


def is_current(name: str, options: Options, node: Mapping[str, Any]) -> bool:
    """Whether a run would find nothing to do for a measure, by the facts of node_info; false without facts."""
    facts = (node.get(ROLE) or {}).get(name)
    return isinstance(facts, Mapping) and not todo(name, options, facts)


def all_todo(options: Mapping[str, Options], node: Mapping[str, Any]) -> Iterator[str]:
    """The same of several measures, by the facts of node_info."""
    for name, wanted in options.items():
        facts = (node.get(ROLE) or {}).get(name)
        if isinstance(facts, Mapping):
            yield from todo(name, wanted, facts)
