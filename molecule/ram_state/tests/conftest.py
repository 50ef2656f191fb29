# SPDX-License-Identifier: Apache-2.0
"""The nodes as in the scenario default, and the lab itself, whose serial consoles need neither ssh nor /etc/pve."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "molecule/shared")]

import nodes as shared  # noqa: E402
import power_cuts  # noqa: E402

from lab.labs import Lab  # noqa: E402

ephemeral, everywhere, nodes = shared.ephemeral, shared.everywhere, shared.nodes
NAMES = ("pve1", "pve2", "pve3")
Console = Callable[..., str]
LookAll = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(os.environ["PVEGUARD_LAB"])


@pytest.fixture(scope="session")
def console(lab: Lab) -> Console:
    """Run a shell script as root on a node, by its serial console: ``console("pve1", "true")`` -> its output."""

    def run(node: str, script: str, seconds: float = 180, fails: bool = False) -> str:
        status, output = lab.machine(node).console.run(script, seconds)
        assert (status != 0) if fails else (status == 0), (
            f"{node}: {script!r} ended with {status}: {output[-2000:]}"
        )
        return output

    return run


@pytest.fixture(scope="session")
def wait(console: Console) -> Callable[[str, str, float], None]:
    """Wait on a node until a shell condition holds."""

    def until(node: str, condition: str, seconds: float = 180) -> None:
        turns = int(seconds * 2)
        script = f"for i in $(seq {turns}); do if {condition}; then exit 0; fi; sleep 0.5; done; exit 1"
        console(node, script, seconds * 3)

    return until


@pytest.fixture(scope="session")
def look(lab: Lab) -> LookAll:
    """Wait until nodes are in order, assert that they are healthy, and return what is there."""

    def at(*names: str, members: int = 3, healthy: bool = True) -> dict[str, Any]:
        chosen = names or NAMES
        with ThreadPoolExecutor() as pool:
            seen = dict(
                zip(chosen, pool.map(lambda n: power_cuts.look(lab, n, members), chosen), strict=True)
            )
        if healthy:
            assert [problem for name in chosen for problem in power_cuts.health(name, seen[name])] == []
        return seen

    return at
