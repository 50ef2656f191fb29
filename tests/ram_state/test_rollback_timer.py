# SPDX-License-Identifier: Apache-2.0
"""The timer that is armed before a switch-over runs this very program, as it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ansible.module_utils.pveguard.base import node_program
from ansible.module_utils.pveguard.state.program import PVE_STATE

SYSTEMD_RUN = '#!/bin/sh\nprintf "%s\\n" "$@" > "$ARMED"\n'
SYSTEMCTL = "#!/bin/sh\nexit 0\n"
# What the launcher does, with the arming in the place of main().
ARM = """\
import os, sys
sys.argv = [sys.argv[1]]
sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))
from pveguard.state.paths import Paths
from pveguard.state.switch import arm_rollback_timer
arm_rollback_timer(Paths(), 30)
"""


def test_the_timer_runs_the_installed_program(tmp_path: Path) -> None:
    node_program.install(PVE_STATE, tmp_path)
    command = tmp_path / PVE_STATE.command.lstrip("/")
    tools, armed = tmp_path / "bin", tmp_path / "armed"
    tools.mkdir()
    for name, text in (("systemd-run", SYSTEMD_RUN), ("systemctl", SYSTEMCTL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "ARMED": str(armed)}
    subprocess.run([sys.executable, "-IS", "-c", ARM, str(command)], env=environment, check=True)
    options, _, called = armed.read_text().partition("\n--\n")
    assert "--on-active=30" in options.splitlines()
    argv = called.splitlines()
    assert argv[-2:] == ["rollback", "--json"]
    done = subprocess.run([*argv, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: pve-state rollback" in done.stdout, done.stderr
