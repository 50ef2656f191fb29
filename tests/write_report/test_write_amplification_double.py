# SPDX-License-Identifier: Apache-2.0
"""The probe on a real FUSE daemon with a real device behind its database, alone and in a cluster of three."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.writes import write_amplification

harness = pytest.importorskip("lab.tests.doubles.harness")
from lab.tests.doubles.test_cluster import made  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 1 << 20
GIB = 1 << 30
#: What the module does, as a process of the node. The second argument replaces names of the core.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pveguard.writes import write_amplification
from pveguard.base.errors import PveguardError
for name, value in json.loads(sys.argv[3]).items():
    setattr(write_amplification, name, value)
try:
    print(json.dumps(write_amplification.measure(**json.loads(sys.argv[2]))))
except PveguardError as error:
    print(error)
    sys.exit(1)
"""
#: Block size: transactions, write_bytes of the daemon, factor of its bytes; 1 MiB, pmxcfs 9.1.6.
MEASURED = {512: (2049, 2673), 4 << 10: (257, 335), 128 << 10: (9, 9.6), MIB: (9, 9.6)}
TOLERANCE = 0.15


class Probe:
    """The probe on one node, whose database lies on a device of its own."""

    def __init__(self, folder: Path) -> None:
        self.node = harness.Node()
        self.device = harness.LoopDevice(folder)
        self.device.mount(self.node, "/var/lib/pve-cluster", "relatime")
        self.node.start()
        self.node.sh("echo 'dir: local' > /etc/pve/storage.cfg")

    def names(self) -> list[str]:
        return [name for name in os.listdir(self.node.pve) if "amplification" in name]

    def run(self, blocks: list[int], **more: Any) -> dict[str, Any]:
        # Minutes on a busy machine: the double copies the whole blob 2048 times.
        done = self.node.run(*command(blocks, **more), timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def begin(self, blocks: list[int], **more: Any) -> tuple[subprocess.Popen[str], int]:
        """The probe while it writes: its process, and the process that writes."""
        process = subprocess.Popen(
            self.node.enter(command(blocks, **more)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def writes() -> bool:
            assert process.poll() is None, process.communicate()[0]
            return any((self.node.pve / name).stat().st_size > 4096 for name in self.names())

        harness.wait_for("the probe to write", writes)
        return process, int(children.read_text().split()[0])

    def close(self) -> None:
        self.device.unpin()
        self.node.close()
        self.device.close()


def command(blocks: list[int], patch: dict[str, Any] | None = None, **more: Any) -> list[str]:
    arguments = {
        "cases": [{"file_bytes": MIB, "block_bytes": block} for block in blocks],
        "idle_seconds": 0.5,
        **more,
    }
    given = [str(ROOT / "module_utils"), json.dumps(arguments), json.dumps(patch or {})]
    return ["/usr/bin/python3", "-c", PROGRAM, *given]


@pytest.fixture
def probe() -> Iterator[Probe]:
    reason = harness.why_not()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        try:
            made_probe = Probe(folder)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device: {error}")
        try:
            yield made_probe
        finally:
            made_probe.close()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("block", MEASURED)
def test_one_mebibyte(probe: Probe, block: int) -> None:
    before = probe.node.tree()
    result = probe.run([block], device_write_budget_bytes=4 * GIB)
    (case,) = result["cases"]
    transactions, factor = MEASURED[block]
    assert case["skipped"] is None and case["transactions"] == case["predicted_transactions"] == transactions
    assert case["pmxcfs_write_bytes"] / MIB == pytest.approx(factor, rel=TOLERANCE)
    assert case["factor"] == pytest.approx(factor, rel=TOLERANCE)
    assert case["device_bytes"] == pytest.approx(case["predicted_device_bytes"], rel=TOLERANCE)
    # The log is most of it: the rest is what checkpoints copy.
    assert 0.6 * case["pmxcfs_write_bytes"] < case["wal_bytes"] < case["pmxcfs_write_bytes"]
    assert case["noise_bytes"] < case["device_bytes"] / 50
    assert result["spent_bytes"] >= case["device_bytes"] and result["members"] == ["pve1"]
    assert result["device"] == os.path.basename(probe.device.device)
    assert probe.node.tree() == before


def test_the_default_stays_in_its_budget_and_leaves_the_worst_out(probe: Probe) -> None:
    before = probe.device.settled()
    result = probe.run([512, 128 << 10])
    worst, cheap = result["cases"]
    assert "device_write_budget_bytes" in worst["skipped"] and worst["transactions"] is None
    assert cheap["skipped"] is None and cheap["transactions"] == 9
    written = probe.device.settled() - before
    assert written < result["device_write_budget_bytes"]
    # What it says it cost is what the device was written, but for what the end of the idle window took.
    assert result["spent_bytes"] == pytest.approx(written, rel=0.02)


def test_check_mode_writes_nothing(probe: Probe) -> None:
    version, before = probe.node.version(), probe.device.settled()
    result = probe.run([128 << 10, 512], check_mode=True)
    assert [bool(case["skipped"]) for case in result["cases"]] == [False, True]
    assert result["cases"][0]["predicted_transactions"] == 9
    assert (probe.node.version(), probe.names()) == (version, [])
    # A reader marks the shared-memory file of the log, one page.
    assert probe.device.settled() - before <= 32 << 10


def test_stopped_where_it_costs_more_than_predicted(probe: Probe) -> None:
    # A model that knows nothing of pages: it predicts 1 MiB where 350 are written.
    result = probe.run([4 << 10], patch={"OVERFLOW": 1 << 40, "PAGE": 64}, device_write_budget_bytes=32 * MIB)
    (case,) = result["cases"]
    assert case["skipped"].startswith("stopped after ") and case["factor"] is None
    assert 0 < case["transactions"] < 257
    # One transaction and the removal may still come on top.
    assert 16 * MIB < result["spent_bytes"] < 40 * MIB
    assert probe.names() == []


def test_in_memory_no_byte_reaches_the_device(probe: Probe) -> None:
    probe.node.stop()
    probe.node.sh("mount -t tmpfs -o size=128m ram /var/lib/pve-cluster")
    probe.node.start()
    result = probe.run([512])
    (case,) = result["cases"]
    assert case["transactions"] == 2049 and case["skipped"] is None, "nobody pays, so the budget allows it"
    assert (case["device_bytes"], case["factor"], result["spent_bytes"]) == (0, 0, 0)
    assert result["database_in_memory"] and any("in memory" in note for note in result["notes"])
    assert case["wal_bytes"] > 10**9, "the transactions are the same"


def test_no_room_for_the_database(probe: Probe) -> None:
    probe.node.sh("fallocate -l 210M /var/lib/pve-cluster/full")
    version = probe.node.version()
    done = probe.node.run(*command([128 << 10]))
    assert done.returncode == 1 and "free, wanted 32 MiB" in done.stdout, done.stdout + done.stderr
    assert probe.node.version() == version


def test_not_beneath_the_mount(probe: Probe) -> None:
    probe.node.stop()
    done = probe.node.run(*command([128 << 10]))
    assert done.returncode == 1 and "/etc/pve is not mounted" in done.stdout, done.stdout + done.stderr
    assert probe.node.sh("ls -A /etc/pve") == ""


def test_ended_by_sigterm_it_removes_its_file(probe: Probe) -> None:
    before = probe.node.tree()
    process, _ = probe.begin([512], device_write_budget_bytes=4 * GIB)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "ended by signal 15" in output
    assert probe.node.tree() == before


def test_killed_the_writing_process_removes_the_file(probe: Probe) -> None:
    before = probe.node.tree()
    process, _ = probe.begin([512], device_write_budget_bytes=4 * GIB)
    process.kill()
    process.communicate(timeout=60)
    harness.wait_for("the file to go", lambda: probe.names() == [])
    assert probe.node.tree() == before


def test_killed_as_a_whole_the_next_one_removes_the_file(probe: Probe) -> None:
    before = probe.node.tree()
    process, writer = probe.begin([512], device_write_budget_bytes=4 * GIB)
    os.kill(writer, signal.SIGSTOP)
    process.kill()
    os.kill(writer, signal.SIGKILL)
    process.communicate(timeout=60)
    (name,) = probe.names()
    # It is another's as long as the probe may live; the names of other nodes never are ours.
    other = probe.node.pve / f"{write_amplification.PREFIX}pve2.tmp.1"
    other.write_bytes(b"x")
    told = probe.run([128 << 10], check_mode=True)
    assert any(name in note and "would be removed" in note for note in told["notes"]) and name in probe.names()
    result = probe.run([512])
    assert result["removed_leftovers"] == [name] and probe.names() == [other.name]
    assert any(other.name in note for note in result["notes"])
    other.unlink()
    assert probe.node.tree() == before


def test_all_members_pay_and_without_quorum_nothing_is_written() -> None:
    with made() as cluster:
        cluster.reset()
        cluster.start()
        node = cluster[1]
        versions = {number: cluster[number].version() for number in (1, 2, 3)}
        done = node.run(*command([128 << 10], device_write_budget_bytes=20 * MIB), timeout=120)
        result = json.loads(done.stdout)
        assert result["members"] == ["pve1", "pve2", "pve3"]
        # In this node's RAM; whether the others' is too cannot be seen from here, so both count.
        assert result["database_in_memory"] and "each of 2 nodes" in result["cases"][0]["skipped"]
        assert {number: cluster[number].version() for number in (1, 2, 3)} == versions

        done = node.run(*command([128 << 10]), timeout=120)
        result = json.loads(done.stdout)
        (case,) = result["cases"]
        assert case["transactions"] == 9 and result["spent_bytes"] == 2 * case["predicted_cost_bytes"]
        harness.wait_for("equal members", cluster.equal)
        assert all(cluster[number].version() == versions[number] + 10 for number in (1, 2, 3)), "9 and the removal"

        for number in (2, 3):
            cluster[number].cut()
        harness.wait_for("the loss of quorum", lambda: not node.quorate())
        version = node.version()
        done = node.run(*command([128 << 10]), timeout=120)
        assert done.returncode == 1 and "no quorum" in done.stdout and "corosync-quorumtool" in done.stdout
        assert node.version() == version
