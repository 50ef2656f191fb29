# SPDX-License-Identifier: Apache-2.0
"""Which login a process came by, with real processes that are named as sshd's and ansible's are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import ssh_login

PROGRAM = """
import os, sys
sys.path[:0] = sys.argv[1:]
import conftest
from ansible.module_utils.pveguard.base import errors, ssh_login
try:
    ssh_login.refuse_local()
    print(ssh_login.began(os.getpid()))
except errors.PveguardError as error:
    print(error)
"""


def told(tmp_path: Path, *above: str, **env: str) -> str:
    """What is said below these processes, the topmost first."""
    for name in above:
        (tmp_path / name).write_text('#!/bin/sh\n"$@"\nexit $?\n')
        (tmp_path / name).chmod(0o755)
    here = [str(Path(__file__).resolve().parents[2]), *(path for path in sys.path if path)]
    argv = [*(str(tmp_path / name) for name in above), sys.executable, "-c", PROGRAM, *here]
    environment = {**{key: value for key, value in os.environ.items() if key != "SSH_CONNECTION"}, **env}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("above", [["sshd"], ["ansible-playbook", "sshd"]])
def test_a_process_came_by_the_nearest_ssh(tmp_path: Path, above: list[str]) -> None:
    """The second: ansible on this machine, which came to it over ssh."""
    assert 0 < float(told(tmp_path, *above)) < 1e12


@pytest.mark.parametrize(
    ("above", "connection"), [(["sshd", "ansible-playbook"], ""), (["ansible-playbook"], "192.0.2.9 1 192.0.2.1 22")]
)
def test_ansible_on_the_node_itself_in_an_ssh_session_is_refused(tmp_path: Path, above: list[str], connection: str) -> None:
    """The second: in a session that outlives its login, as tmux has it."""
    said = told(tmp_path, *above, **({"SSH_CONNECTION": connection} if connection else {}))
    assert "ansible runs on this node itself" in said and "ansible_connection: ssh" in said


def test_a_process_that_is_gone_came_by_none() -> None:
    assert ssh_login.began(2**22 + 1) is None
