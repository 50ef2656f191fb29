# SPDX-License-Identifier: Apache-2.0
"""playbooks/leave.yml and authkey.yml as they are, on real corosync and the double of pmxcfs in namespaces."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .nodes import Member
from .test_leave_live import clustered
from .test_membership import join, members

__all__ = ["members"]  # the fixture
pytestmark = [pytest.mark.slow, pytest.mark.root]

ROOT = Path(__file__).resolve().parents[2]
# The packages of this machine are not seen in a node.
DPKG_QUERY = '#!/bin/sh\necho "corosync installed 3.1.7-1"\n'
# A unit of its own is a process that is waited for; "systemctl show" then says that it is not running any more.
SYSTEMD_RUN = '#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done; shift\n"$@" > /run/unit.log 2>&1\nexit 0\n'


@pytest.fixture
def place() -> Iterator[Path]:
    # Below /dev/shm or /run the nodes would not see it: these are their own.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


def play(
    place: Path,
    nodes: list[Member],
    playbook: str,
    *arguments: str,
    inventory: dict[str, Any] | None = None,
    **variables: Any,
) -> tuple[int, str]:
    """Exit code and output on one line. Each module runs in the namespaces of its node.

    ``inventory``: more of ``all``, such as ``{"children": {...}}``.
    """
    hosts = {}
    for node in nodes:
        python = place / f"python-{node.name}"
        path = "PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        python.write_text(f'#!/bin/sh\nexec {" ".join(node.enter(["env", path, "/usr/bin/python3", "-B"]))} "$@"\n')
        python.chmod(0o755)
        hosts[node.name] = {
            "ansible_connection": "local", "ansible_python_interpreter": str(python),
            "ansible_remote_tmp": str(place / "tmp"),
        }  # fmt: skip
    (place / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, **(inventory or {})}}))
    (place / "hosts.yml").write_text((place / "hosts.json").read_text())
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", place / "hosts.yml", ROOT / "playbooks" / playbook]
        + [*arguments, "-e", json.dumps(variables)],
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def changed(output: str) -> int:
    return sum(int(number) for number in re.findall(r"changed=(\d+)", output))


@pytest.mark.campaign
def test_a_member_leaves_by_the_playbook_and_joins_again(members: Callable[[int], Member], place: Path) -> None:
    nodes = clustered(members, 3)
    first, second, third = nodes
    for node in nodes:
        node.sh("mount -t tmpfs none /usr/local")  # what is installed there is the node's alone
        for name, text in (("systemd-run", SYSTEMD_RUN), ("dpkg-query", DPKG_QUERY)):
            (node.root / "run/bin" / name).write_text(text)
            (node.root / "run/bin" / name).chmod(0o755)
    (first.pve / "nodes/pve3").mkdir(parents=True, exist_ok=True)
    (first.pve / "nodes/pve3/config").write_text("of pve3\n")
    key = (first.root / "etc/corosync/authkey").read_bytes()

    code, output = play(place, nodes, "leave.yml", leave_node="pve3")
    assert code == 2 and "leave_confirm=pve3" in output, output
    assert third.info()["live_member_ids"] == [1, 2, 3]
    code, output = play(place, nodes, "leave.yml", leave_node="pve3", leave_confirm="pve3", leave_remove_directory=True)
    assert code == 0, output
    assert "nodes/pve3/config" in output
    for node in (first, second):
        info = node.info()
        assert [member["name"] for member in info["members"]] == ["pve1", "pve2"] and info["quorate"], info
        assert not (node.pve / "nodes/pve3").exists()
        assert not (node.pve / "priv/lock/pveguard").exists()
    assert third.writable() and "corosync.conf" not in third.tree()
    assert not (third.root / "etc/corosync/authkey").exists()

    code, output = play(place, nodes, "leave.yml", leave_node="pve3")
    assert code == 0 and changed(output) == 0, output

    result = join(first, third)
    assert result.get("error") is None, result
    code, output = play(place, nodes, "authkey.yml", authkey_confirm="pvelab")
    assert code == 0, output
    keys = {(node.root / "etc/corosync/authkey").read_bytes() for node in nodes}
    assert len(keys) == 1 and key not in keys
    assert all(node.info()["live_member_ids"] == [1, 2, 3] for node in nodes)
    assert not (first.root / "run/pveguard/authkey.former").exists()
