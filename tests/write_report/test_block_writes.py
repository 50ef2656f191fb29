# SPDX-License-Identifier: Apache-2.0
"""Counters from a recorded /proc and /sys, and from a real loop device."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.disk import block_writes

# As on a Proxmox node: root on LVM, the store on a partition, the database in RAM.
MOUNTINFO = """\
22 1 253:1 / / rw,relatime shared:1 - ext4 /dev/mapper/pve-root rw,errors=remount-ro
40 22 8:17 / /var/lib rw,noatime shared:9 - ext4 /dev/sdb1 rw
41 40 0:50 / /var/lib/pve-cluster rw,nosuid shared:10 - tmpfs tmpfs rw,size=262144k
42 22 0:60 / /mnt/with\\040blank rw - btrfs /dev/sdc rw,subvol=/
43 22 0:61 / /rpool rw - zfs rpool/data rw
"""
STAT = "     100    0   2000   10   {writes}    0  {sectors}   20   0   30   40   0 0 0 0 0 0\n"


class Recorded:
    """A root with the files that the core reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/mountinfo", MOUNTINFO)
        self.write("proc/sys/kernel/random/boot_id", "first-boot\n")
        self.write("etc/machine-id", "0123456789abcdef\n")
        disk = root / "sys/devices/pci/block/sdb/sdb1"
        disk.mkdir(parents=True)
        (disk / "partition").write_text("1\n")
        (root / "sys/devices/virtual/block/dm-1").mkdir(parents=True)
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "sys/dev/block/8:17").symlink_to("../../devices/pci/block/sdb/sdb1")
        (root / "sys/dev/block/253:1").symlink_to("../../devices/virtual/block/dm-1")
        self.write("var/lib/pve-cluster/config.db", "")
        self.write("run/pve-cluster.pid", "77\n")
        self.daemon(1000)
        self.at(100.0, sectors=1000)

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def at(self, uptime: float, sectors: int) -> dict[str, Any]:
        self.write("proc/uptime", f"{uptime} 1.0\n")
        self.write("sys/devices/pci/block/sdb/sdb1/stat", STAT.format(writes=50, sectors=sectors))
        self.write("sys/devices/virtual/block/dm-1/stat", STAT.format(writes=5, sectors=8))
        return block_writes.counters(root=self.root)

    def daemon(self, written: int, started: int = 500) -> None:
        self.process(77, written, "/system.slice/pve-cluster.service", started)

    def process(self, pid: int, written: int, cgroup: str, started: int = 500) -> None:
        fields = " ".join(str(n) for n in range(4, 22))
        self.write(f"proc/{pid}/stat", f"{pid} (pm (x) fs) S {fields} {started} 1 2 3\n")
        self.write(f"proc/{pid}/io", f"rchar: 1\nwrite_bytes: {written}\ncancelled_write_bytes: 5\n")
        self.write(f"proc/{pid}/cgroup", f"0::{cgroup}\n")

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / f"proc/{pid}")

    def cgroup(self, path: str, written: int | None, number: str = "8:16") -> None:
        """The counters of a control group to the whole disk sdb; None for one that wrote elsewhere only."""
        text = "9:9 rbytes=1 wbytes=77 rios=1 wios=1 dbytes=0 dios=0\n"
        if written is not None:
            text += f"{number} rbytes=5 wbytes={written} rios=1 wios=1 dbytes=0 dios=0\n"
        self.write(f"sys/fs/cgroup/{path}/io.stat", text)

    def io_controller(self) -> None:
        self.write("proc/self/mountinfo", MOUNTINFO + "50 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        self.write("sys/fs/cgroup/system.slice/cgroup.subtree_control", "cpu io memory\n")
        self.write("sys/class/block/sdb/dev", "8:16\n")


@pytest.fixture
def node(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


def test_device_below_a_tmpfs_is_the_one_of_its_nearest_parent_on_a_disk(node: Recorded) -> None:
    found = block_writes.device_behind("/var/lib/pve-cluster", node.root)
    assert found == {
        "path": "/var/lib/pve-cluster",
        "measured_path": "/var/lib",
        "mount_point": "/var/lib",
        "filesystem": "ext4",
        "mount_options": "rw,noatime",
        "source": "/dev/sdb1",
        "in_memory": False,
        "device": "sdb1",
        "device_number": "8:17",
        "disk": "sdb",
    }


def test_device_as_asked(node: Recorded) -> None:
    found = block_writes.device_behind("/var/lib/pve-cluster", node.root, skip_memory=False)
    assert found["in_memory"] and found["device"] is None and found["filesystem"] == "tmpfs"


@pytest.mark.parametrize(
    ("path", "device", "point"),
    [
        ("/nowhere/at/all", "dm-1", "/"),
        ("/var/lib/pveguard/state", "sdb1", "/var/lib"),
        ("/rpool", None, "/rpool"),
    ],
)
def test_device_of_paths(node: Recorded, path: str, device: str | None, point: str) -> None:
    (node.root / "rpool").mkdir()
    found = block_writes.device_behind(path, node.root)
    assert (found["device"], found["mount_point"]) == (device, point)


def test_blanks_in_mount_points(node: Recorded) -> None:
    (node.root / "mnt/with blank").mkdir(parents=True)
    found = block_writes.device_behind("/mnt/with blank", node.root)
    assert (found["filesystem"], found["source"]) == ("btrfs", "/dev/sdc")


def test_counters(node: Recorded) -> None:
    now = node.at(100.0, sectors=1000)
    assert now["device"]["bytes_written"] == 1000 * 512 and now["device"]["writes"] == 50
    assert now["pmxcfs"] == {"pid": 77, "start_ticks": 500, "write_bytes": 1000}
    assert now["database"]["in_memory"] and now["database"]["inode"]
    assert now["boot_id"] == "first-boot" and now["uptime_seconds"] == 100.0
    assert now["machine"] and "0123456789abcdef" not in str(now)


def test_difference(node: Recorded) -> None:
    before = node.at(100.0, sectors=1000)
    node.daemon(5096)
    written = block_writes.difference(before, node.at(220.0, sectors=1200))
    assert written == {
        "seconds": 120.0,
        "device_bytes": 102400,
        "device_bytes_per_minute": 51200.0,
        "pmxcfs_write_bytes": 4096,
        "pmxcfs_write_bytes_per_minute": 2048.0,
        "services": [
            {"service": "pve-cluster.service", "bytes": 4096, "bytes_per_minute": 2048.0, "exact": True}
        ],
        "services_source": "proc",
        "services_notes": [],
        "notes": [],
    }


@pytest.mark.parametrize(
    ("seconds", "minutes"),
    [
        (5, None),
        (20, None),  # a minute's tick may be in it or not
        (59.9, None),
        (59.96, 1),  # clocks tick in hundredths
        (60, 1),
        (62.9, 1),
        (64, None),
        (90, None),  # one tick or two
        (120.4, 2),
        (301, 5),
        (599, None),
        (1000, 1000 / 60),
        (86400, 1440),
    ],
)
def test_a_rate_is_made_of_whole_minutes_or_of_many(seconds: float, minutes: float | None) -> None:
    wanted = None if minutes is None else pytest.approx(12 / minutes, abs=0.01)
    assert block_writes.per_minute(12, seconds) == wanted
    assert block_writes.per_minute(None, seconds) is None is block_writes.per_minute(12, None)


def test_a_short_time_has_counts_and_no_rates(node: Recorded) -> None:
    before = node.at(100.0, sectors=1000)
    node.daemon(5096)
    written = block_writes.difference(before, node.at(120.0, sectors=1200))
    assert written["device_bytes"] == 102400 and written["pmxcfs_write_bytes"] == 4096
    assert written["services"] == [
        {"service": "pve-cluster.service", "bytes": 4096, "bytes_per_minute": None, "exact": True}
    ]
    assert written["device_bytes_per_minute"] is None is written["pmxcfs_write_bytes_per_minute"]


def test_a_reboot_makes_counters_incomparable(node: Recorded) -> None:
    before = node.at(100.0, sectors=1000)
    node.write("proc/sys/kernel/random/boot_id", "second-boot\n")
    written = block_writes.difference(before, node.at(500.0, sectors=5000))
    assert (
        written["device_bytes"] is None
        and written["pmxcfs_write_bytes"] is None
        and written["seconds"] is None
    )
    assert written["notes"] == ["the node was rebooted in between"]


def test_a_counter_that_went_back_is_unknown(node: Recorded) -> None:
    before = node.at(100.0, sectors=1000)
    written = block_writes.difference(before, node.at(130.0, sectors=999))
    assert written["device_bytes"] is None and "went back" in written["notes"][0]


def test_another_device_is_unknown(node: Recorded) -> None:
    before = node.at(100.0, sectors=1000)
    after = copy.deepcopy(before)
    after["device"].update(device="sdd1", device_number="8:49", bytes_written=10**9)
    assert "changed from sdb1 to sdd1" in block_writes.difference(before, after)["notes"][0]


def test_a_restarted_daemon_is_unknown_but_the_device_is_not(node: Recorded) -> None:
    before = node.at(100.0, sectors=1000)
    node.daemon(9000, started=900)
    written = block_writes.difference(before, node.at(130.0, sectors=1100))
    assert written["device_bytes"] == 51200 and written["pmxcfs_write_bytes"] is None
    assert "restarted" in written["notes"][0]


def services(written: dict[str, Any]) -> list[tuple[str, int, bool]]:
    return [(entry["service"], entry["bytes"], entry["exact"]) for entry in written["services"]]


def test_services_by_process_most_first(node: Recorded) -> None:
    node.process(80, 100, "/system.slice/pvedaemon.service")
    node.process(81, 100, "/system.slice/pvedaemon.service/worker")
    node.process(2, 0, "/")
    node.process(90, 10, "/user.slice/user-0.slice/session-3.scope")
    before = node.at(100.0, sectors=1000)
    assert before["services_source"] == "proc"
    assert before["services"] == {
        "pve-cluster.service": 1000,
        "pvedaemon.service": 200,
        "session-3.scope": 10,
    }
    node.daemon(1500)
    node.process(81, 1100, "/system.slice/pvedaemon.service/worker")
    node.process(2, 7, "/")
    written = block_writes.difference(before, node.at(130.0, sectors=1200))
    assert services(written) == [
        ("pvedaemon.service", 1000, True),
        ("pve-cluster.service", 500, True),
        (block_writes.NO_UNIT, 7, True),
    ]
    assert written["services_notes"] == [] == written["notes"]


def test_processes_that_vanished_make_a_lower_bound(node: Recorded) -> None:
    node.process(80, 5000, "/system.slice/pvedaemon.service")
    node.process(81, 100, "/system.slice/pvedaemon.service")
    node.process(1, 10, "/init.scope")
    before = node.at(100.0, sectors=1000)
    node.end(80)
    node.process(81, 900, "/system.slice/pvedaemon.service")
    node.process(1, 5210, "/init.scope")
    written = block_writes.difference(before, node.at(130.0, sectors=1200))
    assert services(written) == [("init.scope", 5200, False), ("pvedaemon.service", 0, False)]
    assert (
        "pvedaemon.service" in written["services_notes"][0] and "lower bound" in written["services_notes"][0]
    )
    assert "whole life" in written["services_notes"][1]


def test_services_by_control_group_are_those_of_the_disk(node: Recorded) -> None:
    node.io_controller()
    node.cgroup("system.slice", 900)
    node.cgroup("system.slice/pve-cluster.service", 400)
    node.cgroup("system.slice/pve-cluster.service/below", 400)
    node.cgroup("system.slice/system-getty.slice", 5)
    node.cgroup("system.slice/cron.service", None)
    node.cgroup("user.slice", 70)
    node.write("sys/fs/cgroup/user.slice/user-0.slice/cgroup.procs", "")
    before = node.at(100.0, sectors=1000)
    assert before["services_source"] == "cgroup"
    assert before["services"] == {"pve-cluster.service": 400, "system-getty.slice": 5, "user.slice": 70}
    node.cgroup("system.slice/pve-cluster.service", 1000)
    written = block_writes.difference(before, node.at(160.0, sectors=1200))
    assert services(written) == [("pve-cluster.service", 600, True)]
    assert written["services"][0]["bytes_per_minute"] == 600.0


def test_a_restarted_service_counts_from_nothing(node: Recorded) -> None:
    node.io_controller()
    node.cgroup("system.slice/pve-cluster.service", 400)
    node.cgroup("system.slice/cron.service", 300)
    before = node.at(100.0, sectors=1000)
    (node.root / "sys/fs/cgroup/system.slice/pve-cluster.service").rename(node.root / "removed")
    node.cgroup("system.slice/pve-cluster.service", 500)
    written = block_writes.difference(before, node.at(130.0, sectors=1200))
    assert services(written) == [("pve-cluster.service", 500, False)], "500 since then, and some before it"
    node.cgroup("system.slice/cron.service", 20)
    assert services(block_writes.difference(before, node.at(160.0, sectors=1300)))[1][:2] == (
        "cron.service",
        20,
    )


def test_services_of_another_disk_or_another_boot_are_unknown(node: Recorded) -> None:
    node.io_controller()
    node.cgroup("system.slice/pve-cluster.service", 400)
    before = node.at(100.0, sectors=1000)
    renamed = copy.deepcopy(before)
    renamed["device"].update(device="sdd1", device_number="8:49")
    assert block_writes.difference(renamed, node.at(130.0, sectors=1200))["services"] is None
    former = {key: value for key, value in before.items() if not key.startswith("services")}
    assert block_writes.difference(former, node.at(130.0, sectors=1200))["services"] is None, (
        "of an older release"
    )
    other = {**before, "services_source": "proc"}
    written = block_writes.difference(other, node.at(130.0, sectors=1200))
    assert written["services"] is None and "another way" in written["services_notes"][0]
    node.write("proc/sys/kernel/random/boot_id", "second-boot\n")
    written = block_writes.difference(before, node.at(30.0, sectors=10))
    assert written["services"] is None and "rebooted" in written["notes"][0]


def test_only_the_top_services_are_named(node: Recorded) -> None:
    for number in range(30):
        node.process(1000 + number, 1, f"/system.slice/s{number}.service")
    before = node.at(100.0, sectors=1000)
    for number in range(30):
        node.process(1000 + number, 1 + number, f"/system.slice/s{number}.service")
    found = services(block_writes.difference(before, node.at(130.0, sectors=1200)))
    assert [name for name, _, _ in found] == [f"s{number}.service" for number in range(29, 19, -1)]


def test_an_empty_root_raises_nothing(tmp_path: Path) -> None:
    now = block_writes.counters(root=tmp_path)
    assert now["device"]["bytes_written"] is None and now["pmxcfs"]["pid"] is None and now["machine"] is None
    assert block_writes.difference(now, now)["device_bytes"] is None


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own on a loop device."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and loop devices")
    image, point = tmp_path / "disk", tmp_path / "mounted"
    point.mkdir()
    with open(image, "wb") as stream:
        stream.truncate(64 << 20)
    # Without a journal and with its tables written at once, nothing but our bytes reaches the device.
    options = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", options, image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, point], check=True)
    yield point
    subprocess.run(["umount", point], check=True)


@pytest.mark.root
def test_bytes_of_a_real_device(loop_disk: Path, run_module: Any) -> None:
    # Of this file system alone: tests beside this one count what a sync writes elsewhere.
    subprocess.run(["sync", "--file-system", loop_disk], check=True)
    first = run_module("block_writes", path=str(loop_disk / "not/there/yet"))
    assert first["since"] is None and first["counters"]["device"]["device"].startswith("loop")
    descriptor = os.open(loop_disk / "data", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, os.urandom(4 << 20))
    os.fsync(descriptor)
    os.close(descriptor)
    later = run_module("block_writes", path=str(loop_disk), previous=first["counters"])
    written = later["since"]["device_bytes"]
    assert 4 << 20 <= written <= (4 << 20) + (256 << 10), "the data and a little of the file system's own"
    assert not later["changed"]
