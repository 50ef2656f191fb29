# SPDX-License-Identifier: Apache-2.0
"""The doubles on a running pmxcfs (the lab's, or the one that $PMXCFS names).

What they cost, and that they never write beneath its mount point.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.packages.build import HERE
from lab.tests.doubles import harness

LRM = HERE / "pve-ha-manager/root/usr/sbin/pve-ha-lrm"
CRM = HERE / "pve-ha-manager/root/usr/sbin/pve-ha-crm"
MANAGER = HERE / "pve-ha-manager/root/usr/sbin/ha-manager"
SCHEDULER = HERE / "pve-manager/root/usr/bin/pvescheduler"

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def node() -> Iterator[harness.Node]:
    reason = harness.why_not()
    if reason:
        pytest.skip(reason)
    node = harness.Node()
    try:
        node.start()
        node.sh("mkdir -p /etc/pve/nodes/pve1 /etc/pve/priv/lock")
        yield node
    finally:
        node.close()


@contextmanager
def running(node: harness.Node, program: object, *settings: str) -> Iterator[None]:
    """A program on the node that has begun, and is ended as systemd does."""
    process = node.spawn("env", *settings, str(program), log="/run/program.log")
    log = node.root / "run/program.log"
    harness.wait_for("its start", lambda: "starting" in log.read_text())
    yield
    process.terminate()
    assert process.wait(60) == 0, log.read_text()


def test_heartbeat_is_three_transactions(node: harness.Node) -> None:
    with node.counting() as count:
        # The only period is longer than the run: one heartbeat, and the status that is written at the end.
        with running(node, LRM, "PVE_LAB_LRM_SECONDS=600"):
            harness.wait_for("a heartbeat", (node.pve / "nodes/pve1/lrm_status").exists)
    assert count.transactions == 2 * 3
    assert node.tree()["nodes/pve1/lrm_status"] is not None
    assert sum("lrm_status" in line for line in count.lines) == 2 * 3, "the lines that are counted per minute"
    assert [name for name in node.tree() if ".tmp." in name] == []


def test_minute_of_the_scheduler_is_two_files(node: harness.Node) -> None:
    with node.counting() as count:
        before = node.version()
        with running(node, SCHEDULER, "PVE_LAB_SCHEDULER_SECONDS=600"):
            harness.wait_for("both locks", lambda: node.version() >= before + 4)
    assert count.transactions == 4
    assert sum("file-jobs_cfg" in line or "file-replication_cfg" in line for line in count.lines) == 2


def test_the_scheduler_gets_a_lock_back_whose_holder_is_gone(node: harness.Node) -> None:
    locks = [node.pve / f"priv/lock/file-{name}_cfg" for name in ("jobs", "replication")]
    for lock, age in zip(locks, (400, 10), strict=True):
        lock.mkdir()
        os.utime(lock, (time.time() - age,) * 2)
    with running(node, SCHEDULER, "PVE_LAB_SCHEDULER_SECONDS=600"):
        harness.wait_for("the stale one to go", lambda: "priv/lock/file-jobs_cfg" not in node.tree())
    assert "priv/lock/file-replication_cfg" in node.tree(), "its holder may still be there"


def test_idle_crm_costs_nothing(node: harness.Node) -> None:
    with node.counting() as count:
        with running(node, CRM, "PVE_LAB_CRM_SECONDS=0.2"):
            time.sleep(1.5)
    assert count.transactions == 0


def test_ha_manager(node: harness.Node) -> None:
    assert node.run(str(MANAGER), "add", "vm:100").returncode == 0
    assert (node.pve / "ha/resources.cfg").read_text() == "vm: 100\n"
    said = node.run(str(MANAGER), "status").stdout
    assert said == "quorum OK\nfencing standby (CRM watchdog standby)\nservice vm:100 (---, queued)\n"
    assert node.run(str(MANAGER), "remove", "vm:100").returncode == 0
    assert (node.pve / "ha/resources.cfg").read_text() == ""


def test_programs_survive_a_restart_of_the_daemon(node: harness.Node) -> None:
    programs = [
        node.spawn("env", "PVE_LAB_LRM_SECONDS=0.1", str(LRM), log="/run/lrm.log"),
        node.spawn("env", "PVE_LAB_CRM_SECONDS=0.1", str(CRM), log="/run/crm.log"),
        node.spawn("env", "PVE_LAB_SCHEDULER_SECONDS=0.1", str(SCHEDULER), log="/run/scheduler.log"),
    ]
    status = node.pve / "nodes/pve1/lrm_status"
    harness.wait_for("a heartbeat", status.exists)
    logs = [node.root / f"run/{name}.log" for name in ("lrm", "crm", "scheduler")]
    node.stop()
    for log in logs:
        harness.wait_for("it to wait", lambda log=log: "waiting for" in log.read_text())
    time.sleep(0.5)
    assert list(node.pve.iterdir()) == [], "nothing lies beneath the mount point"
    node.start()
    stopped = time.time()
    harness.wait_for("a heartbeat", lambda: status.exists() and status.stat().st_mtime >= int(stopped))
    for log in logs:
        harness.wait_for("it to go on", lambda log=log: "going on" in log.read_text())
    for program in programs:
        assert program.poll() is None
        program.terminate()
        try:
            assert program.wait(60) == 0
        except subprocess.TimeoutExpired:
            pytest.fail("does not end")
