# SPDX-License-Identifier: Apache-2.0
"""Nodes start the daemon that they are told to, know their own processes, and say why one does not end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.tests.doubles import harness
from lab.tests.doubles.harness import DAEMON, IS_DOUBLE, PACKAGE, Node, wait_for, why_it_stays
from tests.corosync.nodes import SYSTEMCTL, Member

ROOT = PACKAGE.parents[2]
pytestmark = pytest.mark.root

#: What starts a daemon in the tests, by the way it does so; each prints the daemon's command.
STARTS = """
import sys
sys.path.insert(0, sys.argv[1])
from lab.tests.doubles import harness
from tests.corosync.nodes import Member
from tests.ram_state.test_double import RamNode
def show(node):
    pid = (node.root / "run/pve-cluster.pid").read_text().strip()
    print(open(f"/proc/{pid}/cmdline").read().split("\\0")[-2])
    (node.pve / "x").touch()
    assert "x" in node.tree()
    node.close()
node = harness.Node(); node.start(); show(node)
show(Member(1))
node = harness.Node(); ram = RamNode(node); assert ram.systemctl("start", "pve-cluster.service") == 0; show(node)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/var/tmp", "/root", "/run"])
def test_every_start_is_of_the_daemon_that_is_named(place: str) -> None:
    if reason := harness.why_not():
        pytest.skip(reason)
    # Under a folder that a node has for itself as well.
    folder = Path(place, f"pveguard-named-{os.getpid()}")
    try:
        shutil.copytree(PACKAGE / "root", folder, symlinks=True)
        daemon = folder / "usr/bin/pmxcfs"
        done = subprocess.run(
            [sys.executable, "-c", STARTS, str(ROOT)],
            env={**os.environ, "PMXCFS": str(daemon)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(daemon)] * 3
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_one_place_names_the_daemon() -> None:
    """Nothing else in the tests puts a path of it together."""
    named = []
    for folder in ("tests", "lab/tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if "RUN_AT}/usr/bin/pmxcfs" in text or "/run/double/usr/bin/pmxcfs" in text:
                named.append(path.relative_to(ROOT).as_posix())
    assert sorted(set(named) - {"lab/tests/doubles/test_harness.py"}) == ["lab/tests/doubles/harness.py"]
    assert DAEMON in SYSTEMCTL


def stranger() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def test_a_number_in_a_file_that_is_somebody_elses_by_now(new_node: Callable[..., Node]) -> None:
    node, other = new_node(), stranger()
    try:
        node.pid_of_daemon = other.pid
        assert not node.alive()
        node.stop()
        assert other.poll() is None, "it is not ours to kill"
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_units_whose_file_names_a_stranger_start_and_stop(new_node: Callable[..., Node]) -> None:
    """A daemon that was killed leaves its file, and the kernel gives its number to the next one who asks."""
    new_node().close()  # skips where there are none
    node, other = Member(1), stranger()
    try:
        node.pid_of_daemon = int((node.root / "run/pve-cluster.pid").read_text())
        node.stop(signal.SIGKILL)
        (node.root / "run/pve-cluster.pid").write_text(f"{other.pid}\n")
        assert not node.running("pve-cluster.service")
        node.systemctl("stop", "pve-cluster.service")
        assert other.poll() is None
        node.systemctl("start", "pve-cluster.service")
        assert node.running("pve-cluster.service")
        (node.pve / "x").touch()
    finally:
        node.close()
        other.kill()
        other.wait()


@pytest.mark.slow
@pytest.mark.skipif(not IS_DOUBLE, reason="the real daemon ends when it is told to")
def test_a_unit_that_does_not_end_is_killed_as_systemd_does(
    new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    new_node().close()
    monkeypatch.setenv("PMXCFS_LAB_STOP_SECONDS", "600")
    node = Member(1)
    try:
        pid = int((node.root / "run/pve-cluster.pid").read_text())
        (node.root / "run/stop-polls").write_text("40")
        node.systemctl("stop", "pve-cluster.service")
        assert not node.has(pid)
        node.systemctl("start", "pve-cluster.service")
        (node.pve / "x").touch()
    finally:
        node.close()


def test_what_keeps_a_process_is_said(node: Node) -> None:
    (node.pve / "x").touch()
    inside = node.spawn("sh", "-c", "cd /etc/pve; sleep 600")
    wait_for("its folder", lambda: os.readlink(f"/proc/{inside.pid}/cwd").endswith("/etc/pve"))
    with open(node.pve / "x") as stream:
        number, seen = stream.fileno(), [""]

        def waits() -> bool:
            seen.append(why_it_stays(node.pid_of_daemon))
            return f"thread {node.pid_of_daemon}: S" in seen[-1]

        # On a busy machine the daemon may still be at work on its answer.
        wait_for("the daemon to wait", waits)
        said = seen[-1]
    assert f"thread {node.pid_of_daemon}: S" in said and "SigBlk" in said
    assert f"has the mount: {node.pid} sleep" in said
    assert f"has it open as {number}: {os.getpid()} " in said
    assert f"is in /etc/pve: {inside.pid} sh -c" in said
