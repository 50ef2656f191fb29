# SPDX-License-Identifier: Apache-2.0
"""The table of who writes to the drives that carry the system, from trees of /proc and /sys, and from a real loop device."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ansible.module_utils.pveguard.writes import writer_classes, writer_files, writers

from tests.fsync_gate.sysfs import sata

from .writing_node import SECTOR, WritingNode, rrdcached, second_disk

KIB = 1024
MIB = 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> WritingNode:
    return WritingNode(tmp_path)


def table(before: Any, after: Any) -> dict[str, Any]:
    """The table of two readings as they come back from a file, and what always holds."""
    made = writers.table(json.loads(json.dumps(before)), json.loads(json.dumps(after)))
    assert made is not None
    if made["total_bytes"] is not None:
        assert made["total_bytes"] == sum(each["bytes"] for each in made["devices"])
        assert sum(each["bytes"] for each in made["rows"]) + made["guests_bytes"] + made["rest_bytes"] == made["total_bytes"]
    assert [row["bytes"] for row in made["rows"]] == sorted((row["bytes"] for row in made["rows"]), reverse=True)
    assert all(row["bytes"] > 0 for row in made["rows"])
    return made


def rows(made: dict[str, Any]) -> list[tuple[str, str, int, bool]]:
    return [(row["class"], row["unit"].removesuffix(".service"), row["bytes"], row["exact"]) for row in made["rows"]]


# -- control groups


def test_units_by_control_group_guests_apart_and_the_rest(node: WritingNode) -> None:
    node.units(1000, pve_cluster=500, systemd_journald=300)
    node.group("qemu.slice", 7000)
    node.group("qemu.slice/100.scope", 7000)
    node.group("lxc", 50)
    node.group("lxc/101", 50)
    node.group("user.slice", 10)
    before = node.reading(1000.0, sda=100 * KIB)
    node.units(1000 + 6 * KIB, pve_cluster=500 + 4 * KIB, systemd_journald=300 + 2 * KIB)
    node.group("qemu.slice", 7000 + 20 * KIB)
    node.group("qemu.slice/100.scope", 7000 + 20 * KIB)
    node.group("lxc", 50 + KIB)
    node.group("lxc/101", 50 + KIB)
    node.group("user.slice", 10 + 512)
    made = table(before, node.reading(1120.0, sda=140 * KIB))
    assert rows(made) == [
        ("pmxcfs", "pve-cluster", 4 * KIB, True),
        ("journal", "systemd-journald", 2 * KIB, True),
        ("logins", "user.slice", 512, True),
    ]
    assert made["total_bytes"] == 40 * KIB and made["devices"] == [
        {"disk": "sda", "bytes": 40 * KIB, "bytes_per_minute": 20 * KIB, "bytes_per_day": None}
    ]
    assert made["guests_bytes"] == 21 * KIB and made["guests_source"] == "cgroup"
    assert made["rest_bytes"] == 40 * KIB - 21 * KIB - 6 * KIB - 512
    assert (made["source"], made["seconds"], made["since"], made["notes"]) == ("cgroup", 120.0, "reading", [])
    assert made["rows"][0]["bytes_per_minute"] == 2 * KIB and made["rows"][0]["bytes_per_day"] is None


def test_units_inside_a_container_are_not_those_of_the_node(node: WritingNode) -> None:
    node.units(300, systemd_journald=300)
    for path in ("lxc", "lxc/101", "lxc/101/ns", "lxc/101/ns/system.slice", "lxc/101/ns/system.slice/systemd-journald.service"):
        node.group(path, 10_000)
    before = node.reading(1000.0, sda=0)
    for path in ("lxc", "lxc/101", "lxc/101/ns", "lxc/101/ns/system.slice", "lxc/101/ns/system.slice/systemd-journald.service"):
        node.group(path, 90_000)
    made = table(before, node.reading(1060.0, sda=200 * KIB))
    assert made["guests_bytes"] == 80_000 and rows(made) == []


def test_what_ended_is_a_row_of_its_own(node: WritingNode) -> None:
    """A timer's service came and went, another was there and is gone, a third was started again: the slice knows it all."""
    node.units(20_000, logrotate=5000, systemd_journald=9000)
    before = node.reading(1000.0, sda=0)
    (node.root / "sys/fs/cgroup/system.slice/logrotate.service").rename(node.root / "logrotate")
    node.group("system.slice/systemd-journald.service", 600, again=True)
    node.units(20_000 + 8000, pvestatd=1000)
    made = table(before, node.reading(1060.0, sda=16 * KIB))
    assert rows(made) == [
        ("ended", "", 8000 - 1000 - 600, True),
        ("service", "pvestatd", 1000, True),
        ("journal", "systemd-journald", 600, False),
    ]
    assert [row["label"] for row in made["rows"]][1] == "pvestatd"


def test_sessions_that_ended_are_logins_still(node: WritingNode) -> None:
    node.units(0, pve_cluster=0)
    node.group("user.slice", 5000)
    node.group("user.slice/session-3.scope", 5000)
    before = node.reading(1000.0, sda=0)
    (node.root / "sys/fs/cgroup/user.slice/session-3.scope").rename(node.root / "logged-out")
    node.group("user.slice", 9000)
    node.group("user.slice/session-4.scope", 1000)
    assert rows(table(before, node.reading(1060.0, sda=8 * KIB))) == [("logins", "user.slice", 4000, True)]


def test_a_guest_that_was_stopped_is_still_a_guest(node: WritingNode) -> None:
    node.units(0)
    node.group("qemu.slice", 1000)
    node.group("qemu.slice/100.scope", 1000)
    before = node.reading(1000.0, sda=0)
    (node.root / "sys/fs/cgroup/qemu.slice/100.scope").rename(node.root / "stopped")
    node.group("qemu.slice", 6000)
    assert table(before, node.reading(1060.0, sda=8 * KIB))["guests_bytes"] == 5000


def test_since_boot_without_an_earlier_reading(node: WritingNode) -> None:
    node.units(9000, systemd_journald=4000)
    node.group("qemu.slice", 1000)
    made = table(None, node.reading(90_000.0, sda=16 * KIB))
    assert made["since"] == "boot" and made["from"] is None and made["seconds"] == 90_000.0
    assert rows(made) == [("ended", "", 5000, True), ("journal", "systemd-journald", 4000, False)]
    assert made["guests_bytes"] == 1000 and "started last" in made["notes"][0]
    assert made["total_bytes_per_day"] == pytest.approx(16 * KIB * 86400 / 90_000, abs=0.01)
    assert made["rows"][0]["bytes_per_day"] == pytest.approx(4800)


def test_a_day_is_not_made_of_less(node: WritingNode) -> None:
    node.units(0)
    before = node.reading(1000.0, sda=0)
    assert table(before, node.reading(87_399.0, sda=8 * KIB))["total_bytes_per_day"] is None
    assert table(before, node.reading(87_400.0, sda=8 * KIB))["total_bytes_per_day"] == 8 * KIB
    short = table(before, node.reading(1030.0, sda=8 * KIB))
    assert short["total_bytes"] == 8 * KIB and short["total_bytes_per_minute"] is None


# -- drives


def test_all_drives_of_the_system_and_no_others(node: WritingNode) -> None:
    second_disk(node)
    node.group("system.slice/systemd-journald.service", 10, d259_0=100)
    node.group("system.slice", 10, d259_0=100)
    before = node.reading(1000.0, sda=0, nvme0n1=0)
    node.group("system.slice/systemd-journald.service", 20, d259_0=1000)
    node.group("system.slice", 20, d259_0=1000)
    made = table(before, node.reading(1060.0, sda=512, nvme0n1=2 * KIB))
    assert [(each["disk"], each["bytes"]) for each in made["devices"]] == [("nvme0n1", 2 * KIB), ("sda", 512)]
    assert rows(made) == [("journal", "systemd-journald", 910, True)]


@pytest.mark.parametrize("how", ["replaced", "went back", "new", "gone", "missing"])
def test_a_drive_that_cannot_be_compared_is_left_out_with_all_that_was_written_to_it(node: WritingNode, how: str) -> None:
    second_disk(node)
    node.group("system.slice/systemd-journald.service", 10, d259_0=100)
    node.group("system.slice", 10, d259_0=100)
    before = node.reading(1000.0, sda=4 * KIB, nvme0n1=8 * KIB)
    node.group("system.slice/systemd-journald.service", 20, d259_0=1000)
    node.group("system.slice", 20, d259_0=1000)
    after = node.reading(1060.0, sda=5 * KIB, nvme0n1=12 * KIB)
    name, identity, _ = after["disks"][0]
    assert name == "nvme0n1" and identity == "2"
    if how == "replaced":
        after["disks"][0][1] = "9"
    elif how == "went back":
        after["disks"][0][2] = 512
    elif how == "missing":
        after["disks"][0][2] = None
    elif how == "new":
        # Columns are those of the disks of the same reading.
        before = only(before, 1)
    else:
        after = only(after, 1)
    made = table(before, after)
    assert [(each["disk"], each["bytes"]) for each in made["devices"]] == [("sda", KIB)]
    assert rows(made) == [("journal", "systemd-journald", 10, True)]
    assert [note for note in made["notes"] if "nvme0n1" in note and "left out" in note]


def only(reading: dict[str, Any], column: int) -> dict[str, Any]:
    """The reading of a node on which one disk carries the system."""
    made = copy.deepcopy(reading)
    made["disks"] = [made["disks"][column]]
    for kind, more in (("groups", 0), ("units", 1)):
        made[kind] = {
            name: [*row[:2], row[2 + column], *row[len(row) - more :]] for name, row in made[kind].items()
        }
    return made


def test_no_drive_that_can_be_compared(node: WritingNode) -> None:
    node.units(10, pve_cluster=10)
    before = node.reading(1000.0, sda=4 * KIB)
    made = table(before, node.reading(1060.0, sda=0))
    assert made["rows"] == [] == made["devices"]
    assert made["total_bytes"] is None is made["rest_bytes"] is made["guests_bytes"] and "went back" in made["notes"][0]


def test_a_reboot_in_between(node: WritingNode) -> None:
    node.units(10, pve_cluster=10)
    before = node.reading(1000.0, sda=4 * KIB)
    node.boot("second-boot", 2000.0)
    made = table(before, node.reading(2000.0, sda=400 * KIB))
    assert made["notes"] == ["the node was rebooted in between"]
    assert made["rows"] == [] and made["total_bytes"] is None is made["seconds"]


def test_nothing_is_known(tmp_path: Path) -> None:
    assert writers.table(None, None) is None is writers.table({"boot_id": "a"}, {})
    empty = writers.reading(tmp_path, run=lambda *_, **__: pytest.fail("nothing to ask"))
    made = table(None, empty)
    assert made["total_bytes"] is None and made["notes"] == ["no block device is known that carries the system"]
    assert writers.lines(made) == []


def test_an_encrypted_disk_is_looked_at_from_above(tmp_path: Path) -> None:
    """dm-crypt writes by threads of its own: at the disk all of it is the kernel's."""
    node = WritingNode(tmp_path)
    node.block("dm-5", "253:5", "virtual/block/dm-5", slaves=("sda3",), dm__uuid="CRYPT-LUKS2-1", dm__name="secret")
    node.block("dm-6", "253:6", "virtual/block/dm-6", slaves=("dm-5",), dm__uuid="LVM-1", dm__name="inner-root")
    node.mounts.write_text("")
    node.mount("/dev/mapper/inner-root", "/", number="253:6")
    node.cgroups()
    node.group("system.slice/pve-cluster.service", 0, d253_5=4096, d253_6=4096)
    node.group("system.slice", 0, d253_5=4096, d253_6=4096)
    made = table(None, node.reading(90_000.0, sda=8 * KIB))
    assert rows(made) == [("pmxcfs", "pve-cluster", 4096, False)]
    assert made["rest_bytes"] == 4096 and made["total_bytes"] == 8 * KIB
    assert "sda: who writes is counted above crypt dm-5, which hides it" in made["notes"]


def test_both_halves_of_a_mirror_count(tmp_path: Path) -> None:
    """As the drives do: each of them wears."""
    node = WritingNode(tmp_path)
    sata(node, "sdb", 2)
    node.write("sys/class/block/sdb/diskseq", "2")
    node.block("md0", "9:0", "virtual/block/md0", slaves=("sda3", "sdb"), md__level="raid1")
    node.mounts.write_text("")
    node.mount("md0", "/")
    node.cgroups()
    node.group("system.slice/pve-cluster.service", 4096, d8_16=4096, d9_0=4096)
    node.group("system.slice", 4096, d8_16=4096, d9_0=4096)
    made = table(None, node.reading(90_000.0, sda=8 * KIB, sdb=8 * KIB))
    assert rows(made) == [("pmxcfs", "pve-cluster", 8192, False)] and made["total_bytes"] == 16 * KIB


@pytest.mark.parametrize("seed", range(60))
def test_it_adds_up_whatever_the_counters_say(seed: int) -> None:
    """Counters that went back, groups that were made again, drives that came and went: ``table`` above compares the sums."""
    random = Random(seed)
    source = random.choice(["cgroup", "proc"])

    def bytes_of(disks: int) -> list[int]:
        return [random.randrange(0, 10**6) for _ in range(disks)]

    def reading(uptime: float) -> dict[str, Any]:
        names = random.sample(["sda", "sdb", "sdc"], 2)
        disks = [[name, random.choice("12"), random.choice([None, *bytes_of(9)])] for name in names]
        units = [f"{name}.service" for name in ("rrdcached", "pveproxy", "pvedaemon", "pve-cluster", "x", "y")] + ["100.scope"]
        group, columns = (["system.slice"], 2) if source == "cgroup" else ([], 1)
        return {
            "time": f"2026-11-30T0{random.randrange(9)}:00:00Z",
            "boot_id": "b",
            "uptime_seconds": uptime,
            "disks": disks,
            "hidden": {},
            "source": source,
            "why": "off",
            "groups": {
                name: [random.choice("12"), random.randrange(99), *bytes_of(2)]
                for name in random.sample(["system.slice", "user.slice", "qemu.slice", "lxc"], 3)
            },
            "units": {
                name: [random.choice(["1.1", "1.1 2.2", "3.3"]), random.randrange(99), *bytes_of(columns), *group]
                for name in random.sample(units, 5)
            },
            "swap": random.choice([None, {"bytes": random.randrange(999), "by_unit": True}, {"bytes": None, "by_unit": False}]),
            "files": {
                "access_log": {str(inode): random.randrange(9999) for inode in range(random.randrange(3))},
                "task_logs": random.choice([None, random.randrange(9999)]),
                "apt": [[1_796_000_000 + random.randrange(99_999), random.randrange(9999)]],
                "rrd_journal": random.choice([None, random.randrange(10**6)]),
            },
        }

    before, after = reading(100.0), reading(100.0 + random.choice([5, 60, 100_000]))
    table(before, after)
    table(None, after)


# -- processes


def by_process(node: WritingNode) -> None:
    node.no_cgroup_v2()
    node.process(1, 10, "/init.scope", started=1)
    node.process(2, 5, "/", started=1)
    node.process(77, 1000, "/system.slice/pve-cluster.service")
    node.process(80, 5000, "/system.slice/pvedaemon.service")
    node.process(81, 100, "/system.slice/pvedaemon.service")
    node.process(90, 0, "/user.slice/user-0.slice/session-3.scope")
    node.process(500, 100, "/qemu.slice/100.scope")
    node.process(600, 100, "/lxc/101/ns/system.slice/systemd-journald.service")


def test_by_process_where_cgroup_v2_is_not(node: WritingNode) -> None:
    """What it says of the device is requested only, and what ended processes wrote is in the rest."""
    by_process(node)
    before = node.reading(1000.0, sda=0)
    node.end(80)
    node.process(1, 10 + 5000 + 700, "/init.scope", started=1)
    node.process(2, 4000, "/", started=1)
    node.process(77, 1000 + 4096, "/system.slice/pve-cluster.service")
    node.process(81, 900, "/system.slice/pvedaemon.service")
    node.process(90, 300, "/user.slice/user-0.slice/session-3.scope")
    node.process(91, 200, "/user.slice/user-0.slice/session-4.scope")
    node.process(500, 100 + 8192, "/qemu.slice/100.scope")
    node.process(600, 200, "/lxc/101/ns/system.slice/systemd-journald.service")
    made = table(before, node.reading(1060.0, sda=64 * KIB))
    assert rows(made) == [("pmxcfs", "pve-cluster", 4096, True), ("logins", "user.slice", 500, True)], (
        "of pvedaemon 4100 bytes less are known than before"
    )
    assert made["guests_bytes"] == 8192 + 100 and made["guests_source"] == "proc"
    assert {row["source"] for row in made["rows"]} == {"proc"} and made["source_label"] == "requested, not device"
    assert "cgroup v2 does not have the io controller here" in made["notes"][0] and "is in the rest" in made["notes"][0]


def test_cgroup_v1_beside_v2(node: WritingNode) -> None:
    """As with systemd.unified_cgroup_hierarchy=0: v2 is mounted for systemd, and has no controllers."""
    node.no_cgroup_v2()
    node.cgroups(controller=False)
    (node.root / "sys/fs/cgroup/system.slice/cgroup.subtree_control").unlink()
    node.process(77, 1000, "12:blkio:/system.slice/pve-cluster.service\n1:name=systemd:/system.slice/pve-cluster.service\n0::/")
    reading = node.reading(1000.0, sda=0)
    assert (reading["source"], reading["why"]) == ("proc", "v1")
    assert list(reading["units"]) == ["pve-cluster.service"]


def test_more_requested_than_written(node: WritingNode) -> None:
    """It was written over before it reached the drive, or was written elsewhere: the rest says so."""
    by_process(node)
    before = node.reading(1000.0, sda=0)
    node.process(77, 1000 + 64 * KIB, "/system.slice/pve-cluster.service")
    made = table(before, node.reading(1060.0, sda=16 * KIB))
    assert made["rest_bytes"] == -48 * KIB and "below 0" in made["notes"][-1]


def test_guests_by_control_group_where_units_have_none(node: WritingNode) -> None:
    """LXC turns the controllers on at the top, systemd only where something asks for it."""
    node.no_io_of_units()
    node.process(77, 1000, "/system.slice/pve-cluster.service")
    node.process(500, 10, "/qemu.slice/100.scope")
    node.group("system.slice", 9000)
    node.group("qemu.slice", 4096)
    before = node.reading(1000.0, sda=0)
    assert (before["source"], before["why"], list(before["groups"])) == ("proc", "off", ["qemu.slice"])
    node.process(77, 3000, "/system.slice/pve-cluster.service")
    node.process(500, 99_999, "/qemu.slice/100.scope")
    node.group("qemu.slice", 4096 * 3)
    made = table(before, node.reading(1060.0, sda=64 * KIB))
    assert (made["guests_bytes"], made["guests_source"]) == (8192, "cgroup")
    assert rows(made) == [("pmxcfs", "pve-cluster", 2000, True)]
    assert "systemctl set-property systemd-journald.service IOAccounting=yes" in made["notes"][0]


def test_on_zfs_control_groups_do_not_know(tmp_path: Path) -> None:
    node = WritingNode(tmp_path, disk=False)
    for number, name in enumerate(("sda", "sdb"), 1):
        sata(node, name, number)
        node.write(f"sys/class/block/{name}/diskseq", str(number))
        node.partition(f"{name}3", f"8:{16 * number - 13}", name)
    node.status = "config:\n\tNAME STATE\n\trpool ONLINE\n\t mirror-0 ONLINE\n\t  /dev/sda3 ONLINE\n\t  /dev/sdb3 ONLINE\n"
    node.mount("rpool/ROOT/pve-1", "/", "zfs")
    node.units(9_999_999, pve_cluster=9_999_999)
    node.group("qemu.slice", 4096)
    node.process(77, 1000, "/system.slice/pve-cluster.service")
    node.process(500, 10, "/qemu.slice/100.scope")
    before = node.reading(1000.0, sda=0, sdb=0)
    assert (before["source"], before["why"], before["groups"]) == ("proc", "zfs", {})
    node.process(77, 5000, "/system.slice/pve-cluster.service")
    node.process(500, 2010, "/qemu.slice/100.scope")
    made = table(before, node.reading(1060.0, sda=32 * KIB, sdb=32 * KIB))
    assert [each["disk"] for each in made["devices"]] == ["sda", "sdb"]
    assert rows(made) == [("pmxcfs", "pve-cluster", 4000, True)] and made["guests_bytes"] == 2000
    assert "ZFS, which writes by threads of its own" in made["notes"][0]
    assert made["rest_bytes"] == 64 * KIB - 6000


def test_counted_in_another_way_than_before(node: WritingNode) -> None:
    node.units(10, pve_cluster=10)
    before = node.reading(1000.0, sda=0)
    by_process(node)
    made = table(before, node.reading(1060.0, sda=8 * KIB))
    assert made["rows"] == [] and made["rest_bytes"] == 8 * KIB == made["total_bytes"]
    assert "in another way" in made["notes"][0]


# -- what one unit writes


def test_rrdcached_tells_its_journal_from_the_files(node: WritingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp") / f"pveguard-rrd-{node.root.stat().st_ino}"  # a socket's path is at most 107 bytes
    monkeypatch.setattr(writer_files, "RRDCACHED", f"/{short.relative_to(short.anchor)}")
    node.units(0, rrdcached=10_000)
    (node.root / "tmp").symlink_to("/tmp")
    with rrdcached(short, [5000, 5000 + 3000, 200]):
        before = node.reading(1000.0, sda=0)
        node.units(0, rrdcached=10_000 + 9000)
        after = node.reading(1060.0, sda=16 * KIB)
        again = node.reading(1120.0, sda=32 * KIB)
    made = table(before, after)
    assert rows(made) == [("rrd", "rrdcached", 6000, False), ("rrd_journal", "rrdcached", 3000, False)]
    assert [row["source"] for row in made["rows"]] == ["cgroup", "rrdcached"]
    node.units(0, rrdcached=10_000 + 9000 + 150)
    again["units"]["rrdcached.service"][2] += 150
    assert rows(table(after, again)) == [("rrd_journal", "rrdcached", 150, False)], "never more than the unit wrote"
    silent = {**before, "files": {**before["files"], "rrd_journal": None}}
    assert rows(table(silent, after)) == [("rrd", "rrdcached", 9000, True)], "since when it counts is not known"


@pytest.mark.parametrize(("kind", "told"), [("tmpfs", None), ("ext4", 5000)])
def test_a_journal_of_rrdcached_in_ram_costs_no_drive_anything(
    node: WritingNode, monkeypatch: pytest.MonkeyPatch, kind: str, told: int | None
) -> None:
    """By the mount below the file that the daemon has open; not the one beneath it."""
    short = Path("/tmp") / f"pveguard-rrd-{node.root.stat().st_ino}"
    monkeypatch.setattr(writer_files, "RRDCACHED", f"/{short.relative_to(short.anchor)}")
    (node.root / "tmp").symlink_to("/tmp")
    node.write("sys/fs/cgroup/system.slice/rrdcached.service/cgroup.procs", "77\n")
    descriptors = node.root / "proc/77/fd"
    descriptors.mkdir(parents=True)
    (descriptors / "1").symlink_to("/dev/null")
    (descriptors / "7").symlink_to("/srv/rrd journal/rrd.journal.1796057081.235731")
    lines = [("/", "ext4"), ("/srv/rrd\\040journal", "ext4" if kind == "tmpfs" else "tmpfs"), ("/srv/rrd\\040journal", kind)]
    node.write("proc/self/mountinfo", "".join(f"30 1 0:{i} / {at} rw - {fs} x rw\n" for i, (at, fs) in enumerate(lines)))
    with rrdcached(short, [5000]):
        assert writer_files.reading(node.root)["rrd_journal"] == told


def test_an_rrdcached_that_does_not_answer_is_one_row(node: WritingNode) -> None:
    node.write("run/rrdcached.sock", "no socket")
    node.units(0, rrdcached=10_000)
    before = node.reading(1000.0, sda=0)
    assert before["files"]["rrd_journal"] is None
    node.units(0, rrdcached=19_000)
    assert rows(table(before, node.reading(1060.0, sda=16 * KIB))) == [("rrd", "rrdcached", 9000, True)]


def test_what_an_access_log_cannot_have_cost_is_another_row(node: WritingNode) -> None:
    """An upload of an image runs in pveproxy too. A page is written once each five seconds at most."""
    node.file("var/log/pveproxy/access.log", 50_000)
    node.units(0, pveproxy=1000)
    before = node.reading(1000.0, sda=0)
    node.file("var/log/pveproxy/access.log", 53_000)
    node.units(0, pveproxy=1000 + 20 * KIB)
    made = table(before, node.reading(1060.0, sda=32 * KIB))
    assert rows(made) == [("access_log", "pveproxy", 20 * KIB, True)], "well within 3000 bytes and 13 pages"
    node.units(0, pveproxy=1000 + 700 * MIB)
    made = table(before, node.reading(1060.0, sda=701 * MIB))
    most = 3000 + 13 * writer_files.PAGE
    assert rows(made) == [("service", "pveproxy", 700 * MIB - most, False), ("access_log", "pveproxy", most, False)]


def test_an_access_log_that_was_rotated(node: WritingNode) -> None:
    log = node.root / "var/log/pveproxy/access.log"
    node.file("var/log/pveproxy/access.log", 50_000)
    node.units(0, pveproxy=1000)
    before = node.reading(1000.0, sda=0)
    node.file("var/log/pveproxy/access.log", 51_000)
    log.rename(log.with_name("access.log.1"))
    node.file("var/log/pveproxy/access.log", 2000)
    node.file("var/log/pveproxy/access.log.2.gz", 10**9)
    node.units(0, pveproxy=1000 + 900 * KIB)
    made = table(before, node.reading(1060.0, sda=MIB))
    assert rows(made)[1] == ("access_log", "pveproxy", 3000 + 13 * writer_files.PAGE, False)
    log.with_name("access.log.1").unlink()
    made = table(before, node.reading(1060.0, sda=MIB))
    assert rows(made) == [("access_log", "pveproxy", 900 * KIB, False)], "how far that one had grown is not known"


def test_task_logs_by_their_growth_and_the_backup_beside_them(node: WritingNode) -> None:
    node.file("var/log/pve/tasks/index", 9000)
    node.file("var/log/pve/tasks/A/UPID:pve1:1", 3000)
    node.units(0, pvedaemon=100, pvescheduler=100)
    before = node.reading(1000.0, sda=0)
    node.file("var/log/pve/tasks/index", 9200)
    node.file("var/log/pve/tasks/B/UPID:pve1:2", 1800)
    node.units(0, pvedaemon=100 + 700, pvescheduler=100 + 3 * MIB)
    made = table(before, node.reading(1060.0, sda=4 * MIB))
    assert rows(made) == [
        ("jobs", "pvescheduler", 3 * MIB - 2000, False),
        ("task_logs", "pvescheduler", 2000, False),
        ("jobs", "pvedaemon", 700, True),
    ]


def test_packages_are_told_from_other_services_that_ended(node: WritingNode) -> None:
    """apt writes its lists anew; those of before are not counted. What it unpacked elsewhere stays with what ended."""
    node.file("var/lib/apt/lists/old_InRelease", 70_000, moment=1_000_000)
    node.units(0, pve_cluster=0)
    before = {**node.reading(1000.0, sda=0), "time": "2026-11-30T06:00:00Z"}
    start = 1_796_018_400
    node.file("var/lib/apt/lists/deb_Packages", 50_000, moment=start + 60)
    node.file("var/cache/apt/pkgcache.bin", 30_000, moment=start + 70)
    node.file("var/lib/dpkg/status", 5000, moment=start + 9000)
    node.units(100_000)
    made = table(before, node.reading(87_500.0, sda=256 * KIB))
    assert rows(made) == [("apt", "", 85_000, False), ("ended", "", 15_000, False)]
    node.units(40_000)
    assert rows(table(before, node.reading(87_500.0, sda=256 * KIB))) == [("apt", "", 40_000, False)]


def test_runs_of_apt_are_remembered_by_their_first_file(tmp_path: Path) -> None:
    node = WritingNode(tmp_path)
    for run in range(20):
        for file in range(3):
            node.file(f"var/lib/apt/lists/{run}-{file}", 10, moment=1_000_000 + run * 86_400 + file * 200)
    runs = writer_files.reading(tmp_path)["apt"]
    assert len(runs) == 8 and runs[-1] == [1_000_000 + 19 * 86_400, 30]


def test_more_task_logs_than_are_counted(node: WritingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        node.file(f"var/log/pve/tasks/A/{number}", 100)
    assert writer_files.reading(node.root)["task_logs"] == 400
    monkeypatch.setattr(writer_files, "_MOST_FILES", 3)
    assert writer_files.reading(node.root)["task_logs"] is None


# -- swap


def test_swap_on_lvm_is_taken_from_whose_memory_it_was(node: WritingNode) -> None:
    node.swap("/dev/dm-0")
    node.drive("dm-0", 4 * KIB)
    node.group("system.slice/pve-cluster.service", 10 * KIB, d253_0=4 * KIB)
    node.group("system.slice", 10 * KIB, d253_0=4 * KIB)
    node.group("qemu.slice", 0)
    before = node.reading(1000.0, sda=16 * KIB)
    node.drive("dm-0", 20 * KIB)
    node.group("system.slice/pve-cluster.service", 20 * KIB, d253_0=12 * KIB)
    node.group("system.slice", 20 * KIB, d253_0=12 * KIB)
    node.group("qemu.slice", 9 * KIB, d253_0=8 * KIB)
    made = table(before, node.reading(1060.0, sda=48 * KIB))
    assert rows(made) == [("swap", "", 16 * KIB, True), ("pmxcfs", "pve-cluster", 2 * KIB, True)]
    assert made["guests_bytes"] == KIB and made["rest_bytes"] == (32 - 16 - 2 - 1) * KIB


def test_swap_on_a_partition_is_in_the_rows_of_whose_memory_it_was(node: WritingNode) -> None:
    node.partition("sda2", "8:2", "sda")
    node.swap("/dev/sda2")
    node.units(0)
    before = node.reading(1000.0, sda=0, sda2=0)
    node.units(20 * KIB, pve_cluster=20 * KIB)
    made = table(before, node.reading(1060.0, sda=48 * KIB, sda2=12 * KIB))
    assert rows(made) == [("pmxcfs", "pve-cluster", 20 * KIB, True)]
    assert "12 KiB of it went to swap" in made["notes"][0]


@pytest.mark.parametrize("kind", ["partition", "file"])
def test_swap_beside_processes_is_a_row(node: WritingNode, kind: str) -> None:
    """No process requests it, so it is not in their counts."""
    by_process(node)
    node.partition("sda2", "8:2", "sda")
    node.swap("/dev/sda2" if kind == "partition" else "/swapfile", kind)
    node.write("proc/vmstat", "pswpin 1\npswpout 10")
    before = node.reading(1000.0, sda=0, sda2=0)
    node.write("proc/vmstat", f"pswpin 1\npswpout {10 + 12 * KIB // writer_files.PAGE}")
    made = table(before, node.reading(1060.0, sda=48 * KIB, sda2=12 * KIB))
    assert rows(made) == [("swap", "", 12 * KIB, True)] and made["rows"][0]["source"] == "kernel"


def test_swap_that_was_turned_on_in_between_counts_from_an_unknown_value(node: WritingNode) -> None:
    node.units(0)
    before = node.reading(1000.0, sda=0, dm_0=900 * KIB)
    node.swap("/dev/dm-0")
    assert rows(table(before, node.reading(1060.0, sda=48 * KIB, dm_0=912 * KIB))) == []


def test_swap_in_memory_is_no_drive(node: WritingNode) -> None:
    node.block("zram0", "252:0", "virtual/block/zram0")
    node.swap("/dev/zram0")
    reading = node.reading(1000.0, sda=0)
    assert reading["swap"] is None and [disk[0] for disk in reading["disks"]] == ["sda"]


# -- what is made of it


def test_classes_of_units() -> None:
    known = {
        "pve-cluster.service": "pmxcfs",
        "rrdcached.service": "rrd",
        "systemd-journald.service": "journal",
        "pveproxy.service": "access_log",
        "pvefw-logger.service": "firewall_log",
        "smartmontools.service": "smartd",
        "pve-daily-update.service": "apt",
        "pvescheduler.service": "jobs",
        "pveguard-state-watch.service": "pveguard",
        "session-12.scope": "logins",
        "pvestatd.service": "service",
        "my-rrdcached.service": "service",
    }
    assert {unit: writer_classes.of_unit(unit) for unit in known} == known
    assert set(known.values()) < set(writer_classes.LABELS)


def test_years_of_the_rating(node: WritingNode) -> None:
    second_disk(node)
    node.units(0)
    made = table(None, node.reading(86_400.0, sda=100 * SECTOR, nvme0n1=300 * SECTOR))
    rated = {"sda": 400 * SECTOR * 365, "nvme0n1": None}
    assert writers.years(made, 400 * SECTOR, rated) is None, "of one drive it is not known"
    assert writers.years(made, 400 * SECTOR, {**rated, "nvme0n1": rated["sda"]}) == pytest.approx(2, rel=0.01)
    assert writers.years(made, None, rated) is None is writers.years(None, 5, rated) is writers.years(made, 0, rated)


def test_text(node: WritingNode) -> None:
    node.units(3000, pve_cluster=0)
    node.group("qemu.slice", 0)
    before = node.reading(1000.0, sda=0)
    node.units(3000 + 9 * KIB, pve_cluster=4 * KIB, **{f"s{number}": 100 + number for number in range(8)})
    node.group("qemu.slice", 2 * KIB)
    text = writers.lines(table(before, node.reading(1060.0, sda=16 * KIB)))
    assert text[0] == "sda: 16 KiB/min over 1 min, by unit written to the drives, by control group"
    assert text[1:3] == [
        "4.19 KiB/min  services that ended (timers, jobs)",
        "4 KiB/min  cluster file system (pmxcfs) (pve-cluster.service)",
    ]
    assert text[3] == "107 B/min  s7" and text[7] == "406 B/min  4 more"
    assert text[8:] == [
        "5 KiB/min  file-system metadata, the kernel, and what nobody is known for",
        "2 KiB/min  guests, which are not judged",
    ]
