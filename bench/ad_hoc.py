# SPDX-License-Identifier: Apache-2.0
"""One module on the hosts of an inventory, as ``ansible HOSTS -m MODULE`` runs it, and what it returned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class ModuleFailed(Exception):
    """The module failed on a host, or a host was not reached; the message says on which and why.

    ``results``: {host: result} as far as there are any; a failed one has ``msg``, and nothing else that tells it.
    """

    def __init__(self, message: str, results: dict[str, dict[str, Any]]) -> None:
        super().__init__(message)
        self.results = results


def program(name: str) -> str:
    """A program of Ansible: the one beside this Python, else that of PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def run(
    hosts: str,
    inventory: str | Path,
    module: str,
    arguments: str | Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> dict[str, dict[str, Any]]:
    """``{host: result}`` of ``module``, sorted by host; all ``hosts`` (a pattern) run it at once.

    ``arguments``: a mapping, or text as ``-a`` takes it. ``environment`` adds to this process's; ``timeout`` in seconds,
    None for none. Raises ModuleFailed, and subprocess.TimeoutExpired. A result is taken from the file that Ansible writes
    for each host (``-t``), not from its output, which is for people.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                program("ansible"),
                *(hosts, "-i", str(inventory), "-t", folder, "-m", module),
                *("-a", arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        results = {path.name: json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())}
    if done.returncode or not results:
        said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}".strip()
        raise ModuleFailed(f"{module} ended with {done.returncode}:\n{said}", results)
    return results
