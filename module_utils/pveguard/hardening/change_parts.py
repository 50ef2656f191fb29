# SPDX-License-Identifier: Apache-2.0
"""What the concerns of node hardening that write files have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.file_state import look as state_of
from ..base.managed_file import FileSpec
from ..base.run import Run

ROLE = "node_hardening"
#: How long systemctl may take for one call: an emulated node needs minutes for what is a second elsewhere.
SYSTEMCTL_S = 600.0
#: A package, without questions.
INSTALL = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "--no-install-recommends", "install")

Facts = Mapping[str, Any]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Around:
    """Where a change is judged: the node, and the address of the controller (empty where it did not come by ssh)."""

    root: Path
    run: Run
    controller: str = ""


@dataclass
class Work:
    """One activation. ``options`` is None where files were put back; ``was`` is then what ``live`` said before. ``facts`` are
    from before. ``done``: what was done, a sentence each.
    """

    root: Path
    run: Run
    facts: Facts
    options: Options | None
    was: Any = None
    done: list[str] = field(default_factory=list)

    def command(self, *argv: str) -> str:
        """Run a command that has to succeed; returns what it printed."""
        return command(self.run, *argv)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def command(run: Run, *argv: str) -> str:
    done = run(list(argv), timeout=SYSTEMCTL_S)
    if not done.ok:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise PveguardError(f"{' '.join(argv)} failed: {said or f'exit code {done.rc}'}")
    return done.stdout


def file_states(paths: Sequence[str], root: Path) -> dict[str, str]:
    """What is at each path, in a form that :func:`same` compares."""
    return {path: _short(state_of(root / path.lstrip("/"))) for path in paths}


def _short(state: Mapping[str, Any]) -> str:
    if state["kind"] == "file":
        return f"{state['mode']} {state['sha256'][:24]}"
    return f"link {state['target']}" if state["kind"] == "link" else str(state["kind"])


def same(states: Mapping[str, str], specs: Sequence[FileSpec]) -> bool:
    """Whether every file is there as it is to be, and none that is not, by :func:`file_states`."""
    wanted = {spec.path: spec for spec in specs}
    return all(
        state == (_wanted(wanted[path]) if path in wanted else "absent") for path, state in states.items()
    )


def _wanted(spec: FileSpec) -> str:
    if spec.link:
        return f"link {spec.link}"
    return f"{spec.mode} {hashlib.sha256(spec.data).hexdigest()[:24]}"


def text(path: Path) -> str:
    """A file's text, byte for byte the same again by ``.encode("utf-8", "surrogateescape")``; empty where there is none."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def is_on(value: object) -> bool:
    """A switch among options, which may be text."""
    return str(value).lower() in ("true", "yes", "on", "1")
