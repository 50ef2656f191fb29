# SPDX-License-Identifier: Apache-2.0
"""The program pve-state: what it consists of, and its answers without an installed one."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence

from ..base import supervised
from ..base.node_program import Program
from ..base.run import Result
from . import cli
from .installed import COMMAND, NAME

PVE_STATE = Program(
    NAME,
    "state.cli",
    (
        "base.atomic",
        "base.errors",
        "base.findings",
        "base.kernel",
        "base.mountinfo",
        "base.node_name",
        "base.rollback_timer",
        "base.run",
        "base.ssh_login",
        "base.systemd",
        "base.units",
        "formats.corosync_tools",
        "formats.corosync_version",
        "formats.section_config",
        "ha.ha_findings",
        "pmxcfs.live_database",
        "pmxcfs.members",
        "pmxcfs.mount",
        "pmxcfs.places",
        "pmxcfs.tasks",
        "pmxcfs.tree",
        "pmxcfs.pmxcfs_findings",
        *(
            f"state.{name}"
            for name in (
                *("boot", "cli", "compare", "enable", "exits", "files", "generations", "live", "login", "members", "metrics"),
                *("node", "paths", "preflight", "replica", "rescue", "restore_file", "restore_generation", "rollback"),
                *("rows", "save", "settings", "show", "status", "status_findings", "switch", "system", "watch"),
            )
        ),
    ),
    command=COMMAND,
)


def ask(argv: Sequence[str], timeout: float) -> Result:
    """``pve-state ARGV --json`` by this process's own code, so that a refusal or a check run leaves no file behind.

    It works in a child of this process, for at most ``timeout`` seconds without an answer: /etc/pve may hang.
    """

    def work() -> dict[str, object]:
        with io.StringIO() as said, contextlib.redirect_stdout(said):
            try:
                code, answer = cli.answer([*argv, "--json"])
            except SystemExit as error:
                # Of what it cannot understand the parser says why, and ends.
                code, answer = int(error.code or 0), json.loads(said.getvalue() or "{}")
        return {"rc": code, "answer": answer}

    try:
        done = supervised.ask(work, timeout)
    except supervised.Stalled:
        return Result(124, "", f"no answer within {timeout:g} s")
    return Result(int(done["rc"]), json.dumps(done["answer"]), "") if done else Result(1, "", "it was ended")
