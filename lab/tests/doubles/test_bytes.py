# SPDX-License-Identifier: Apache-2.0
"""Bytes: those of the daemon exactly, those of the device within 15 % of the measured figures."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.tests.doubles.harness import LoopDevice, Node

pytestmark = [pytest.mark.root, pytest.mark.slow]
TOLERANCE = 0.15


@pytest.fixture
def disk(new_node: Callable[..., Node], tmp_path: Path) -> Iterator[tuple[Node, LoopDevice]]:
    """A node whose state directory is an ext4 file system of its own, with a running daemon."""
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    folder = folder / f"doubles-{os.getpid()}"
    folder.mkdir()
    node = new_node()
    try:
        device = LoopDevice(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        folder.rmdir()
        pytest.skip(f"no loop device: {error}")
    try:
        device.mount(node, "/var/lib/pve-cluster")
        node.start()
        yield node, device
        node.stop()
    finally:
        device.unpin()
        node.close()
        device.close()
        folder.rmdir()


#: The commit of the ext4 journal at a sync sometimes holds three blocks more, for several operations in a row. Seen beside
#: the measured figure in one run on a busy machine; the daemon's own bytes are exact in both cases.
JOURNAL_SLACK = 3 * 4096


def near(found: int, wanted: int) -> bool:
    return abs(found - wanted) <= wanted * TOLERANCE


# block size: write_bytes of the daemon, device bytes
MEBIBYTE = {
    512: (2_794_303_488, 2_803_302_400),
    4096: (349_794_304, 351_576_064),
    131072: (9_998_336, 10_072_064),
    1048576: (9_998_336, 10_072_064),
}


@pytest.mark.parametrize("block", MEBIBYTE)
def test_one_mebibyte(
    disk: tuple[Node, LoopDevice], block: int, record_property: Callable[[str, object], None]
) -> None:
    node, device = disk
    data = os.urandom(1048576)
    device_before, daemon_before = device.written(), node.io_bytes()
    with open(node.pve / "big", "wb", buffering=0) as stream:
        for start in range(0, len(data), block):
            stream.write(data[start : start + block])
    daemon = node.io_bytes() - daemon_before
    on_device = device.written() - device_before
    record_property("daemon_bytes", daemon)
    record_property("device_bytes", on_device)
    wanted_daemon, wanted_device = MEBIBYTE[block]
    assert abs(daemon - wanted_daemon) <= wanted_daemon * 0.01, daemon
    assert near(on_device, wanted_device), on_device


# operation, on names that differ by {n}: write_bytes of the daemon, device bytes with a sync
SMALL = {
    "touch new{n}": (20_480, 53_248),
    "touch x{n}": (16_384, 49_152),
    "echo t > x{n}": (20_480, 53_248),
    "echo t >> x{n}": (16_384, 50_000),
    "mv x{n} y{n}": (16_384, 50_000),
    "mv z{n} y{n}": (16_384, 50_000),
    "rm y{n}": (16_384, 50_000),
    "mkdir d{n}": (16_384, 50_000),
    "rmdir d{n}": (16_384, 50_000),
    "chmod 640 new{n}; cat new{n}; ls -la": (0, 0),
}
TRIES = 3


def test_small_operations(disk: tuple[Node, LoopDevice]) -> None:
    """On a tiny database whose WAL exists; each from clean pages.

    The least of a few tries counts: a sync by somebody else in between adds a commit of the journal.
    """
    node, device = disk
    node.sh("cd /etc/pve; touch x{0..2} z{0..2}")
    wrong = {}
    for operation, (daemon, on_device) in SMALL.items():
        found = []
        for number in range(TRIES):
            device_before, daemon_before = device.written(), node.io_bytes()
            node.sh(f"cd /etc/pve; {operation.format(n=number)}")
            daemon_found = node.io_bytes() - daemon_before
            found.append((daemon_found, device.written() - device_before))
        # One WAL frame is 4120 bytes, so a transaction dirties two pages of the WAL or, now and then, three.
        least = min(size for _, size in found)
        if min(found)[0] != daemon or not (near(least, on_device) or near(least - JOURNAL_SLACK, on_device)):
            wrong[operation] = (found, (daemon, on_device))
    assert not wrong, f"operation: (found, wanted): {wrong}"


def test_an_idle_daemon_writes_nothing(disk: tuple[Node, LoopDevice]) -> None:
    node, device = disk
    (node.pve / "x").touch()
    version = node.version()  # first: a reader marks the WAL's index
    before = device.settled(), node.io_bytes()
    node.sh("sleep 2; ls -lR /etc/pve; cat /etc/pve/x /etc/pve/.members")
    assert (device.written(), node.io_bytes()) == before
    assert node.version() == version


def test_ten_minutes_of_one_heartbeat(disk: tuple[Node, LoopDevice]) -> None:
    """120 rounds (600 s at one round every 5 s) with 200 guest configurations, without the waiting.

    Measured over ten real minutes: 3,252,224 bytes by the daemon, 4,149,248 at the device. Write-back every 30 s is
    what makes a page dirty again, so here a sync stands for each 30 s. The commits of the journal every 5 s cannot be
    had without the waiting: 20 % instead of 15 % for the device.
    """
    node, device = disk
    node.sh(
        "cd /etc/pve; mkdir -p nodes/pve1/qemu-server; cd nodes/pve1; for i in $(seq 100 299); do "
        "printf 'boot: order=scsi0\\ncores: 2\\nmemory: 2048\\n%0300d\\n' 1 > qemu-server/$i.conf; done; echo > lrm_status"
    )
    version, daemon_before = node.version(), node.io_bytes()
    status = node.pve / "nodes/pve1/lrm_status"
    temporary = node.pve / "nodes/pve1/lrm_status.tmp.77"
    device_before = device.written()
    for number in range(120):
        temporary.write_bytes(b"x" * 83)
        temporary.rename(status)
        if number % 6 == 5:
            device.written()
    on_device = device.written() - device_before
    assert node.version() - version == 360
    assert near(node.io_bytes() - daemon_before, 3_252_224), node.io_bytes() - daemon_before
    assert abs(on_device - 4_149_248) <= 4_149_248 * 0.20, on_device


def test_on_tmpfs_no_device_byte(disk: tuple[Node, LoopDevice]) -> None:
    node, device = disk
    node.stop()
    node.sh("mount -t tmpfs ram /var/lib/pve-cluster")
    node.start()
    version = node.version()
    before = device.settled()
    node.sh("cd /etc/pve; touch x; echo t > x; mv x y; rm y; mkdir d; rmdir d")
    assert node.version() - version == 2 + 2 + 1 + 1 + 1 + 1
    assert device.written() == before


def test_checkpoint_at_1000_pages_and_a_file_that_never_shrinks(disk: tuple[Node, LoopDevice]) -> None:
    node, _ = disk
    database, wal = node.database, node.state / "config.db-wal"
    assert database.stat().st_size == 4096
    descriptor = os.open(node.pve / "f", os.O_WRONLY | os.O_CREAT)
    sizes = []
    for _ in range(1200):
        os.pwrite(descriptor, b"x", 0)
        sizes.append(wal.stat().st_size)
    os.close(descriptor)
    assert max(sizes) == 4_120_032
    (node.pve / "big").write_bytes(os.urandom(1048576))
    (node.pve / "big").unlink()
    node.stop()
    assert database.stat().st_size > 1048576
    assert not wal.exists()
