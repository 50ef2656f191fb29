# SPDX-License-Identifier: Apache-2.0
"""``python read_playbooks.py PLAYBOOK...``: what each play does with the lock of the run, as JSON.

Ansible's own loader reads them, so that what import_playbook does to a play's variables is part of it. A program, because
that loader wants its configuration before it is imported.

Prints ``{playbook: [{"play": its name, "releases": whether it gives the lock back, "alone": what pveguard_gate_alone is}]}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.playbook import Playbook
from ansible.playbook.block import Block
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.vars.manager import VariableManager


def tasks(entry: Any) -> list[Any]:
    """Every task of what a play holds."""
    if isinstance(entry, list):
        return [task for each in entry for task in tasks(each)]
    if isinstance(entry, Block):
        return tasks([*entry.block, *entry.rescue, *entry.always])
    return [entry]


def read(path: Path) -> list[dict[str, Any]]:
    loader = DataLoader()
    loader.set_basedir(str(path.parent))
    found = []
    for play in Playbook.load(str(path), variable_manager=VariableManager(loader=loader), loader=loader).get_plays():
        templar = Templar(loader=loader, variables=play.get_vars())
        released = [
            task
            for task in tasks(play.get_tasks())
            if task.action == "run_lock" and task.args.get("state") == "released" and not task.loop
        ]
        # The gate's own, where it stops a run: under a condition that only a run can answer.
        released = [task for task in released if not any("ansible_play_hosts" in str(when) for when in task.when)]
        alone = play.vars.get("pveguard_gate_alone")
        found.append(
            {
                "play": play.get_name(),
                "releases": any(all(templar.evaluate_conditional(when) for when in task.when) for task in released),
                "alone": templar.template(alone) if alone else None,
            }
        )
    return found


if __name__ == "__main__":
    init_plugin_loader()
    print(json.dumps({argument: read(Path(argument)) for argument in sys.argv[1:]}))
