# SPDX-License-Identifier: Apache-2.0
"""Ansible's programs on this checkout, with its deprecations taken for errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Ansible says each once a run, with the file and line it is about.
DEPRECATION = re.compile(r"\[DEPRECATION WARNING\].*(?:\n(?!\n).*){0,3}")


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_DEPRECATION_WARNINGS": "1",
        "ANSIBLE_NOCOLOR": "1",
        **more,
    }


def deprecations(done: subprocess.CompletedProcess[str]) -> list[str]:
    return DEPRECATION.findall(done.stdout + done.stderr)


def output(program: str, *arguments: str | Path, **more: str) -> str:
    """What a program printed, whatever its status; fails on a deprecation."""
    command = [Path(sys.executable).with_name(program), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    found = deprecations(done)
    assert not found, found
    return done.stdout + done.stderr


def run(program: str, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """``ansible-playbook`` and the like in the checkout; fails on another status than 0 and on a deprecation."""
    command = [Path(sys.executable).with_name(program), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = deprecations(done)
    assert not found, found
    return done
