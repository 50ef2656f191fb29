# SPDX-License-Identifier: Apache-2.0
"""The concerns of node hardening that write files: their facts in one look, and what is to be done by these facts.

A concern is a core with these names; what takes ``facts`` alone is pure, so that the controller decides by what a look brought.

``NAME``                    its name: ``node_hardening_NAME`` is its switch, ``node_hardening_NAME_OPTION`` the rest
``look(root, run)``         its facts, with ``known``, ``error`` and ``installed``; changes nothing, never raises, and does not
                            touch /etc/pve, which may hang
``differs(options, facts)`` what is to be done, a sentence each without a subject; empty when nothing is
``owned(options, facts, root)``  the files that it writes (on the node)
``refuse(options, facts, around)``  raises PveguardError before anything is changed (on the node)
``activate(work)``          makes files count that were written or put back

and, where it needs them:

``live(facts)``             what is to be remembered of the state before a change, beside files
``advice(options, facts)``  what an operator should know, a sentence each
``PROVED``                  true: what others must prove before it is kept
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..base import managed_file
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from . import auditd_change, pveproxy_change, sysctl_change, updates_change
from .change_parts import ROLE, Facts, Options

#: By name, in the order in which they are done.
CONCERNS: dict[str, ModuleType] = {
    core.NAME: core for core in (sysctl_change, auditd_change, updates_change, pveproxy_change)
}
#: What is remembered beside files, and which change was begun and not ended: a boot makes every file count.
REMEMBERED, PENDING = f"var/lib/pveguard/{ROLE}", f"run/pveguard/{ROLE}"


def concern(name: str) -> ModuleType:
    """Raises PveguardError for one that is not known."""
    if name not in CONCERNS:
        raise PveguardError(f"{name!r} is no concern that writes files, known are {', '.join(CONCERNS)}")
    return CONCERNS[name]


def collect(name: str, root: Path = Path("/"), run: Run = real_run) -> dict[str, Any]:
    """The facts of one, with ``kept`` (it is on), ``paths`` (what it has changed), ``pending`` (a change was not ended) and
    ``unproved`` (one waits for its proof); never raises.
    """
    found = dict(concern(name).look(root, run))
    try:
        found["paths"] = managed_file.paths(f"{ROLE}.{name}", root)
    except (OSError, PveguardError) as error:
        found.update(known=False, error=str(error), paths=[])
    found["kept"] = bool(found["paths"]) or (root / REMEMBERED / f"{name}.json").exists()
    found["pending"] = (root / PENDING / name).exists()
    found["unproved"] = (root / REMEMBERED / f"{name}.former").exists()
    return found


def options(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options of one, of the role's variables."""
    switch = f"{ROLE}_{name}"
    own = {
        key.removeprefix(f"{switch}_"): value for key, value in values.items() if key.startswith(f"{switch}_")
    }
    return {**own, "enabled": bool(values.get(switch))}


def todo(name: str, options: Options, facts: Facts) -> list[str]:
    """What a run would do, by its facts; empty when nothing."""
    core = concern(name)
    if not facts.get("known"):
        return [f"find out what the node has, which failed: {facts.get('error')}"]
    found: list[str] = core.differs(options, facts)
    if not found and facts.get("installed") and facts.get("pending"):
        found = [f"finish the change of {name}, which was interrupted"]
    if not found and facts.get("unproved"):
        found = [f"prove the change of {name} that nobody has confirmed"]
    return found


def all_todo(values: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """The same of all that are switched on. ``values``: of the role's variables; ``facts``: of the areas of a look."""
    found = []
    for name in CONCERNS:
        wanted = options(values, name)
        ours = (facts.get(name) or {}).get("ours") if isinstance(facts.get(name), Mapping) else None
        if wanted["enabled"] and isinstance(ours, Mapping):
            found += todo(name, wanted, ours)
    return found
