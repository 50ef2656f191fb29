# SPDX-License-Identifier: Apache-2.0
"""The lab by its serial consoles, which need neither ssh nor quorum, and playbooks as an operator runs them.

For the conftest of a scenario, which has put this folder, the project and its module_utils into the path.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nodes as shared
import pytest
from corosync_nodes import LOOK, ROOT, Done, Look, Playbook, Seen, arguments_of, environment, plain

from lab.labs import Lab

ephemeral = shared.ephemeral


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(os.environ["PVEGUARD_LAB"])


@pytest.fixture(scope="session")
def console(lab: Lab) -> Callable[..., str]:
    """Run a shell script as root on a node, by its serial console: ``console("pve1", "true")`` -> its output."""

    def run(node: str, script: str, seconds: float = 120) -> str:
        status, output = lab.machine(node).console.run(script, seconds)
        assert status == 0, f"{node}: {script!r} ended with {status}: {output[-2000:]}"
        return output

    return run


@pytest.fixture(scope="session")
def look(lab: Lab) -> Look:
    """What nodes have now: ``look("pve1", "pve2")``."""

    def one(node: str) -> Seen:
        status, output = lab.machine(node).console.run(f"/usr/bin/python3 - <<'EOF'\n{LOOK}\nEOF", 90)
        assert status == 0, f"{node}: {output[-1000:]}"
        return Seen(json.loads(output.strip().splitlines()[-1]))

    def at(*names: str) -> dict[str, Seen]:
        chosen = names or ("pve1", "pve2", "pve3")
        with ThreadPoolExecutor() as pool:
            return dict(zip(chosen, pool.map(one, chosen), strict=True))

    return at


@pytest.fixture(scope="session")
def in_order(look: Look) -> Look:
    """Wait until nodes are members in order with one text, and return what they have."""

    def at(*names: str, seconds: float = 180) -> dict[str, Seen]:
        chosen = names or ("pve1", "pve2", "pve3")
        members = sorted(int(name.removeprefix("pve")) for name in chosen)
        end = time.monotonic() + seconds
        while True:
            seen = look(*chosen)
            lacks = {name: each.lacks(members) for name, each in seen.items() if each.lacks(members)}
            if len({each.cluster for each in seen.values()}) > 1:
                lacks["all"] = "the nodes have different texts"
            if not lacks:
                return seen
            assert time.monotonic() < end, lacks
            time.sleep(1)

    return at


@pytest.fixture(scope="session")
def playbook(ephemeral: Path) -> Playbook:
    """Run a playbook on the lab: ``playbook("playbooks/corosync.yml", "--limit", "pve1", corosync_token=5000)``."""

    def run(name: str, *arguments: str, inventory: Path | None = None, **variables: Any) -> Done:
        argv = arguments_of(name, *arguments, inventory=inventory, reports=ephemeral / "reports", **variables)
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL)
        print(done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def background(ephemeral: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The same without waiting for its end, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(name: str, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
        argv = arguments_of(name, *arguments, reports=ephemeral / "reports", **variables)
        started.append(
            subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment(),
                stdin=subprocess.DEVNULL, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture(scope="session")
def recover(playbook: Playbook) -> Callable[[], Done]:
    """Let recover.yml propose, and confirm exactly that."""

    def run() -> Done:
        proposed = playbook("playbooks/recover.yml")
        assert proposed.returncode != 0, "it found nothing to recover"
        words = re.findall(r"recover_confirm=([^\s'\"]+)", plain(proposed))
        assert words, plain(proposed)[-2000:]
        return playbook("playbooks/recover.yml", recover_confirm=words[-1])

    return run
