# SPDX-License-Identifier: Apache-2.0
"""The nodes of the scenario, over one paramiko connection each, and what they look like.

A login costs seconds on an emulated machine, so a test asks all it wants to know in one command per node.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import pytest
import testinfra
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

#: Scripts that look at a node.
FILES = Path(__file__).resolve().parents[1] / "default/files"
#: How they read the database, on a node that has no pveguard yet as well.
CORES = Path(__file__).resolve().parents[2] / "module_utils/pveguard/pmxcfs"
READER = (FILES / "with_reader.py", CORES / "live_database.py", CORES / "tree.py")
Everywhere = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def ephemeral() -> Path:
    """Where molecule keeps the files of this scenario between its steps."""
    return Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])


def sort_by_folder(items: list[pytest.Item], folders: list[str]) -> None:
    """Run the tests of one folder after the other in this order: molecule names their files sorted."""
    items.sort(key=lambda item: folders.index(item.path.parent.name))


def bench_summary(program: str, *arguments: str | Path) -> dict[str, Any]:
    """What ``bench/PROGRAM --json`` found on the lab of the scenario; its violations are for the caller to judge."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "bench" / program, "--name", os.environ["PVEGUARD_LAB"], "--json", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert done.returncode in (0, 1), f"{program}: the test could not be done"
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=2))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def nodes(request: pytest.FixtureRequest) -> Iterator[dict[str, Host]]:
    """{name: testinfra host} of every host of the inventory."""
    runner = AnsibleRunner(request.config.getoption("ansible_inventory"))
    names = runner.get_hosts("all")
    with ThreadPoolExecutor() as pool:
        hosts = dict(
            zip(names, pool.map(lambda name: _connect(runner.get_variables(name)), names), strict=True)
        )
    yield hosts
    for host in hosts.values():
        host.backend.client.close()


def _connect(variables: dict[str, Any]) -> Host:
    address, port = variables["ansible_host"], int(variables["ansible_port"])
    key = variables["ansible_ssh_private_key_file"]
    options = dict(
        word.split("=", 1) for word in shlex.split(variables["ansible_ssh_common_args"]) if "=" in word
    )

    client = paramiko.SSHClient()
    client.load_host_keys(options["UserKnownHostsFile"].strip('"'))
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    client.connect(
        address, port=port, username="root", key_filename=key, timeout=90, banner_timeout=90, auth_timeout=90,
        allow_agent=False, look_for_keys=False,
    )  # fmt: skip
    host = testinfra.get_host(f"paramiko://root@{address}:{port}")
    host.backend.client = client  # with the host key checked, which testinfra's own client would not do
    return host


@pytest.fixture(scope="session")
def everywhere(nodes: dict[str, Host]) -> Everywhere:
    """Run a script of FILES on all nodes at once: ``everywhere("look.py", "120")`` -> {name: its JSON}."""

    def run_on(host: Host, script: str, arguments: tuple[str, ...]) -> Any:
        program = base64.b64encode((FILES / script).read_bytes()).decode()
        words = " ".join(arguments)
        reader = " ".join(shlex.quote(path.read_text()) for path in READER)
        result = host.run(f"echo {program} | base64 -d | /usr/bin/python3 -c {reader} {words}")
        assert result.rc == 0, result.stderr
        return json.loads(result.stdout)

    def run(script: str, *arguments: str) -> dict[str, Any]:
        with ThreadPoolExecutor() as pool:
            futures = {name: pool.submit(run_on, host, script, arguments) for name, host in nodes.items()}
        return {name: future.result() for name, future in futures.items()}

    return run
