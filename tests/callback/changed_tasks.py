# SPDX-License-Identifier: Apache-2.0
"""Note which tasks changed which host, to compare what check mode said with what the next run did.

Writes ``PLAYBOOK-check-N.json`` or ``PLAYBOOK-run-N.json`` ({host: [task, ...]}, N counts from 1) into the
folder that the environment variable PVEGUARD_CHANGED_TASKS names; does nothing without it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: changed_tasks
type: notification
short_description: Note which tasks changed which host
description:
  - Writes one JSON file per run of a playbook into the folder that E(PVEGUARD_CHANGED_TASKS) names.
requirements:
  - enable in configuration
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "changed_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._playbook = ""
        self._check = False
        self._changed: dict[str, set[str]] = defaultdict(set)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._playbook = Path(playbook._file_name).stem

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._check = bool(play.check_mode)

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.is_changed():
            self._changed[result._host.get_name()].add(result._task.get_name())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        folder = os.environ.get("PVEGUARD_CHANGED_TASKS")
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        prefix = f"{self._playbook}-{'check' if self._check else 'run'}"
        number = 1 + len(list(Path(folder).glob(f"{prefix}-*.json")))
        document = {host: sorted(tasks) for host, tasks in sorted(self._changed.items())}
        (Path(folder) / f"{prefix}-{number}.json").write_text(json.dumps(document, indent=2) + "\n")
