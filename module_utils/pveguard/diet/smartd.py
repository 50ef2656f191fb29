# SPDX-License-Identifier: Apache-2.0
"""smartd without files of its own: no state and no log of attributes of each drive, every half hour.

It goes on to watch, to warn and to test. What it keeps in those files it then knows only since its start.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..base.run import Run
from .parts import (
    Facts,
    Files,
    Found,
    Options,
    Work,
    active,
    assignments,
    command_line,
    editable,
    loaded,
    processes,
    text,
    with_block,
)

NAME = "smartd"
UNIT = "smartmontools.service"
UNITS = (UNIT,)
DEFAULTS = "/etc/default/smartmontools"
EDITED = (DEFAULTS,)
WANTED = ("-s", "-", "-A", "-")


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``: whether there is a unit that takes ``smartd_opts`` from /etc/default/smartmontools; ``active``; ``running``:
    the options of the daemon that runs, None without one; ``options``: of the next start; ``original``: those without pveguard.
    """
    unit = found.units.get(UNIT)
    if not loaded(unit):
        return {"installed": False}
    assert unit is not None
    paths = [unit.get("FragmentPath", ""), *unit.get("DropInPaths", "").split()]
    own = "\n".join(text(found.root / path.lstrip("/")) for path in paths if path)
    shell = text(found.root / DEFAULTS.lstrip("/"))
    running = None
    for pid in processes(unit, found.root):
        argv = command_line(pid, found.root)
        if argv and os.path.basename(argv[0]) == "smartd":
            running = " ".join(argv[1:])
            break
    return {
        "installed": bool(re.search(r"^ExecStart=.*\$\{?smartd_opts\b", own, re.MULTILINE)),
        "active": active(unit),
        "running": running,
        "options": assignments(shell).get("smartd_opts", ""),
        "original": assignments(with_block(shell, [])).get("smartd_opts", ""),
    }


def _writes(options: str) -> bool:
    """Whether a smartd with these options keeps files: the last -s and -A count."""
    last = {}
    words = [re.sub(r"^--savestates=", "-s", re.sub(r"^--attributelog=", "-A", word)) for word in options.split()]
    for index, word in enumerate(words):
        if word[:2] in ("-s", "-A") and not word.startswith("--"):
            last[word[:2]] = word[2:] or (words[index + 1] if words[index + 1 :] else "")
    return last.get("-s") != "-" or last.get("-A") != "-"


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return []
    running = facts.get("running")
    late = _writes(facts.get("options", "")) or (running is not None and _writes(running))
    return ["have smartd keep no state and no attribute log on disk"] if late else []


def owned(options: Options, facts: Facts) -> Files:
    return {}


def edited(options: Options, facts: Facts, root: Path) -> Files:
    wanted = " ".join([*facts.get("original", "").split(), *WANTED])
    return {DEFAULTS: with_block(editable(root / DEFAULTS.lstrip("/")), [f'smartd_opts="{wanted}"'])}


def activate(work: Work) -> None:
    if work.facts.get("active"):
        work.systemctl("restart", UNIT)
        work.done.append("smartd restarted")
