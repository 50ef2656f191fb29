# SPDX-License-Identifier: Apache-2.0
"""The nodes by their serial consoles, as they were before anything, and the role as an operator runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "molecule/shared")]

import hardening_nodes  # noqa: E402
import nodes as shared  # noqa: E402

from lab.labs import Lab  # noqa: E402

ephemeral = shared.ephemeral
#: What is switched on here, and what the lab needs of it.
#: The firewall is in `make campaign`: it takes minutes.
SWITCHES = {
    "node_hardening_sshd": True,
    "node_hardening_firewall": "enforce",
    # Where QEMU's user network has the controller come from.
    "node_hardening_firewall_management": ["10.0.2.2"],
    "node_hardening_firewall_cluster_name": "pvelab",
}
Harden = Callable[..., tuple[int, dict[str, int], str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    shared.sort_by_folder(items, ["hardened", "planted", "firewalled", "concerns", "rebooted", "reverted"])


@pytest.fixture(scope="session")
def nodes() -> hardening_nodes.Nodes:
    """Members with what an installation has and the lab has not, on two rings."""
    found = hardening_nodes.Nodes(Lab(os.environ["PVEGUARD_LAB"]))
    found.keys_of_root()
    found.second_key()
    found.add_second_ring()
    if "PVEGUARD_CAMPAIGN" in os.environ:
        found.lab.services(["firewall", "pveproxy", "updates"], True)
    return found


@pytest.fixture(scope="session")
def before(nodes: hardening_nodes.Nodes) -> hardening_nodes.Seen:
    """What every node was like before the first run."""
    return nodes.look()


@pytest.fixture(scope="session")
def harden(ephemeral: Path, nodes: hardening_nodes.Nodes) -> Harden:
    """Run the role on one member after the other, ``variables`` of it beside SWITCHES: exit code, ``{node: changed}``, and the
    output on one line.
    """

    def run(*arguments: str, tasks: str = "main.yml", **variables: object) -> tuple[int, dict[str, int], str]:
        task = {"import_role": {"name": "node_hardening", "tasks_from": tasks}}
        book = ephemeral / "harden.yml"
        # 0: all at once, as what is one for all members wants it.
        serial = 0 if tasks == "together.yml" else 1
        book.write_text(
            json.dumps([{"hosts": "all", "gather_facts": False, "serial": serial, "tasks": [task]}])
        )
        argv = [
            "ansible-playbook",
            "-i",
            str(ROOT / "inventory/lab"),
            str(book),
            "-e",
            json.dumps(SWITCHES | variables),
            *arguments,
        ]
        environment = hardening_nodes.environment(ANSIBLE_ROLES_PATH=str(ROOT / "roles"))
        done = subprocess.run(
            argv, capture_output=True, text=True, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL
        )
        print(done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        changed = {
            node: int(count) for node, count in re.findall(r"^(pve\d) .*\bchanged=(\d+)", done.stdout, re.M)
        }
        # After a failure the rest of the members have no turn.
        assert set(changed) == set(nodes.names) if done.returncode == 0 else changed, "the recap was not read"
        return done.returncode, changed, " ".join((done.stdout + done.stderr).split())

    return run
