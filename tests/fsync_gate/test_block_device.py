# SPDX-License-Identifier: Apache-2.0
"""What lies behind a path, on layouts of real machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.disk import block_device
from ansible.module_utils.pveguard.gates import suspicion

from .sysfs import MMC, NVME, RAID, SAS, USB, Machine, nvme, sata, virtio


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def nothing(argv: Any, **more: Any) -> Result:
    raise CommandMissing(argv[0])


def describe(machine: Machine, path: str = "/var/lib", **more: Any) -> dict[str, Any]:
    return block_device.describe(path, machine.root, **more)


def kinds(found: dict[str, Any]) -> list[str]:
    return [layer["kind"] for layer in found["layers"]]


def test_sata_ssd_with_a_partition(machine: Machine) -> None:
    sata(machine)
    machine.partition("sda3", "8:3", "sda")
    machine.mount("sda3", options="rw,errors=remount-ro")
    found = describe(machine)
    disk = found["disks"][0]
    assert (found["class"], kinds(found)) == ("ssd", ["partition"])
    assert (disk["name"], disk["transport"], disk["rotational"]) == ("sda", "sata", False)
    assert (disk["model"], disk["serial"]) == ("Samsung SSD 860", "S3Z9NB0sda")
    assert disk["identity"] == found["drive_identity"] == "naa.5002538e40sda"
    assert disk["volatile_cache"] is True and disk["power_loss_protection"] is None
    assert found["device"] == "sda3" and found["mount_options"] == "rw,relatime,errors=remount-ro"
    assert found["free_bytes"] is None or found["free_bytes"] >= 0


def test_hdd_with_a_volatile_cache_has_no_protection(machine: Machine) -> None:
    sata(machine, rotational=1)
    machine.write("run/udev/data/b8:0", "E:ID_ATA_ROTATION_RATE_RPM=5400\nE:ID_ATA_WRITE_CACHE_ENABLED=1")
    machine.mount("sda")
    found = describe(machine)
    assert (found["class"], found["class_rule"]) == ("hdd", "sda: queue/rotational is 1")
    assert found["disks"][0]["rpm"] == 5400 and found["power_loss_protection"] is False


@pytest.mark.parametrize(
    ("cache", "kind", "protection"),
    [("write back", "nvme", None), ("write through", "ssd-with-power-loss-protection", True)],
)
def test_nvme(machine: Machine, cache: str, kind: str, protection: bool | None) -> None:
    nvme(machine, cache)
    machine.mount("nvme0n1")
    found = describe(machine)
    assert (found["class"], found["power_loss_protection"]) == (kind, protection)
    assert (found["transport"], found["disks"][0]["serial"]) == ("nvme", "S4EWNX0M123456")


@pytest.mark.parametrize(
    ("speed", "width", "expected"),
    [
        ("8.0 GT/s PCIe", "4", 4 * 10**9),
        ("16.0 GT/s PCIe", "4", 8 * 10**9),
        ("5.0 GT/s PCIe", "2", 10**9),
        ("2.5 GT/s", "4", 10**9),
        ("Unknown", "4", None),
        ("8.0 GT/s PCIe", "255", None),
        (None, None, None),
    ],
)
def test_what_the_link_of_an_nvme_carries(machine: Machine, speed: str | None, width: str | None, expected: int | None) -> None:
    nvme(machine)
    machine.mount("nvme0n1")
    if speed and width:
        bus = "sys/devices/pci0000:00/0000:00:1d.0"
        machine.write(f"{bus}/max_link_speed", speed)
        machine.write(f"{bus}/max_link_width", width)
        (machine.root / "sys/devices" / NVME / "device").symlink_to(machine.root / bus)
    assert describe(machine)["disks"][0]["link_bytes_per_second"] == expected


def test_what_was_written_since_boot(machine: Machine) -> None:
    place = sata(machine)
    machine.mount("sda")
    assert describe(machine)["disks"][0]["written_since_boot_bytes"] is None
    machine.write(f"{place}/block/sda/stat", "  1 2 3 4 5 6 2048 8 9 10 11 12 13 14 15 16 17")
    assert describe(machine)["disks"][0]["written_since_boot_bytes"] == 1 << 20


def test_a_hypervisor_hides_the_medium(machine: Machine) -> None:
    nvme(machine, model="QEMU NVMe Ctrl")
    virtio(machine)
    machine.mount("nvme0n1")
    machine.mount("vda", "/var/lib")
    for path in ("/", "/var/lib"):
        found = describe(machine, path)
        assert found["class"] == "unknown" and "only the host knows" in found["class_rule"]
    assert describe(machine)["disks"][0]["vendor"] is None, "0x1af4 is a number of the bus"


def test_usb_sd_and_emmc(machine: Machine) -> None:
    machine.write(f"{machine.disk('sdb', '8:16', USB, 1)}/model", "Flash Disk")
    machine.write(f"{machine.disk('mmcblk0', '179:0', MMC)}/name", "SC64G")
    machine.mount("sdb")
    machine.mount("mmcblk0", "/var/lib")
    # USB sticks often say that they rotate.
    assert (describe(machine, "/")["class"], describe(machine, "/")["transport"]) == ("usb-or-sd", "usb")
    found = describe(machine)
    assert (found["class"], found["disks"][0]["model"]) == ("usb-or-sd", "SC64G")


def test_sas_without_a_volatile_cache_and_a_raid_controller(machine: Machine) -> None:
    machine.disk("sdb", "8:16", SAS, 0, cache="write through")
    machine.write(f"{machine.disk('sdc', '8:32', RAID, 1)}/model", "PERC H730 Mini")
    machine.mount("sdb")
    machine.mount("sdc", "/var/lib")
    assert describe(machine, "/")["class"] == "ssd-with-power-loss-protection"
    assert (describe(machine)["class"], describe(machine)["transport"]) == ("hdd", "scsi")


def test_lvm_on_crypt_on_a_mirror_names_all_disks(machine: Machine) -> None:
    sata(machine, "sda", 1)
    sata(machine, "sdb", 2, rotational=1)
    for name, number in (("sda", "8:2"), ("sdb", "8:18")):
        machine.partition(f"{name}2", number, name)
    machine.block("md0", "9:0", "virtual/block/md0", slaves=("sda2", "sdb2"), md__level="raid1")
    machine.block(
        "dm-0", "252:0", "virtual/block/dm-0", slaves=("md0",), dm__uuid="CRYPT-LUKS2-1", dm__name="luks"
    )
    machine.block(
        "dm-1", "252:1", "virtual/block/dm-1", slaves=("dm-0",), dm__uuid="LVM-abc", dm__name="pve-root"
    )
    machine.mount("/dev/mapper/pve-root", number="252:1")
    found = describe(machine)
    assert kinds(found) == ["lvm", "crypt", "md-raid1", "partition", "partition"]
    assert [disk["name"] for disk in found["disks"]] == ["sda", "sdb"]
    assert found["class"] == "hdd" and "slowest" in found["class_rule"]
    assert found["rotational"] is None, "they differ"
    assert found["drive_identity"] == "naa.5002538e40sda+naa.5002538e40sdb"


def test_btrfs_names_all_its_devices(machine: Machine) -> None:
    sata(machine, "sda", 1)
    sata(machine, "sdb", 2)
    machine.partition("sda3", "8:3", "sda")
    devices = machine.root / "sys/fs/btrfs/0a1b/devices"
    devices.mkdir(parents=True)
    for name in ("sda3", "sdb"):
        (devices / name).symlink_to((machine.root / "sys/class/block" / name).resolve())
    machine.mount("/dev/sda3", filesystem="btrfs", number="0:30")
    found = describe(machine)
    assert kinds(found) == ["btrfs", "partition"]
    assert [disk["name"] for disk in found["disks"]] == ["sda", "sdb"] and found["class"] == "ssd"


ZPOOL = """  pool: rpool
 state: ONLINE
config:

\tNAME            STATE     READ WRITE CKSUM
\trpool           ONLINE       0     0     0
\t  mirror-0      ONLINE       0     0     0
\t    /dev/sda3   ONLINE       0     0     0
\t    /dev/sdb    ONLINE       0     0     0
{log}\tcache
\t  /dev/sdc      ONLINE       0     0     0

errors: No known data errors
"""
LOG = "\tlogs\n\t  /dev/nvme0n1  ONLINE       0     0     0\n"


@pytest.mark.parametrize(
    ("log", "disks", "layers"),
    [("", ["sda", "sdb"], ["zfs", "partition"]), (LOG, ["nvme0n1"], ["zfs-log"])],
    ids=["pool", "log"],
)
def test_zfs_waits_for_its_log_or_its_data(
    machine: Machine, log: str, disks: list[str], layers: list[str]
) -> None:
    sata(machine, "sda", 1, rotational=1)
    sata(machine, "sdb", 2, rotational=1)
    nvme(machine)
    machine.partition("sda3", "8:3", "sda")
    machine.mount("rpool/ROOT/pve-1", filesystem="zfs", number="0:25")
    asked = []

    def run(argv: list[str], **more: Any) -> Result:
        asked.append(argv)
        text = {"zpool": ZPOOL.format(log=log), "zfs": "disabled\n"}.get(argv[0], "")
        return Result(0, text, "")

    found = describe(machine, run=run, tools=True)
    assert [disk["name"] for disk in found["disks"]] == disks and kinds(found) == layers
    assert asked[0] == ["zpool", "status", "-P", "-L", "rpool"]
    assert found["zfs_sync"] == "disabled"
    assert "zfs_sync" in [entry["rule"] for entry in suspicion.suspects(found, {})]


def test_zfs_without_its_tools_stays_unknown(machine: Machine) -> None:
    machine.mount("rpool/ROOT/pve-1", filesystem="zfs", number="0:25")
    found = describe(machine, run=nothing, tools=True)
    assert (found["class"], found["disks"], found["drive_identity"]) == ("unknown", [], None)


def test_memory(machine: Machine) -> None:
    machine.mount("tmpfs", filesystem="tmpfs", number="0:22")
    machine.block("zram0", "253:0", "virtual/block/zram0")
    machine.mount("zram0", "/zram")
    machine.block("loop0", "7:0", "virtual/block/loop0", loop__backing_file="/var/lib/disk.img")
    machine.mount("loop0", "/loop")
    (machine.root / "zram").mkdir()
    (machine.root / "loop").mkdir()
    for path in ("/var/lib", "/zram", "/loop"):
        assert describe(machine, path, skip_memory=False)["class"] == "ram", path


def test_a_loop_device_is_what_its_file_lies_on(machine: Machine) -> None:
    sata(machine, rotational=1)
    machine.mount("sda")
    machine.block("loop0", "7:0", "virtual/block/loop0", loop__backing_file="/var/lib/disk.img")
    machine.mount("loop0", "/loop")
    (machine.root / "loop").mkdir()
    found = describe(machine, "/loop")
    assert (kinds(found), found["class"], found["disk"]) == (["loop"], "hdd", "loop0")
    assert found["disks"][0]["name"] == "sda"


def test_nothing_known(machine: Machine) -> None:
    found = describe(machine)
    assert (found["class"], found["disks"], found["transport"]) == ("unknown", [], None)
    machine.mount("server:/export", filesystem="nfs4", number="0:50")
    assert describe(machine)["class"] == "unknown"
    machine.block("foo0", "8:0", "platform/foo/foo0")
    machine.write("sys/devices/platform/foo/foo0/queue/rotational", "")
    machine.mount("foo0", "/foo")
    (machine.root / "foo").mkdir()
    found = describe(machine, "/foo")
    assert found["class"] == "unknown" and "neither" in found["class_rule"]
    assert found["drive_identity"] == "disk foo0 1000204886016"


SMART: dict[str, Any] = {
    "model_name": "INTEL SSDSC2KB480G8",
    "serial_number": "PHYF123",
    "rotation_rate": 0,
    "write_cache": {"enabled": True},
    "ata_smart_attributes": {
        "table": [{"id": 9, "name": "Power_On_Hours"}, {"id": 175, "name": "Power_Loss_Cap_Test"}]
    },
}


def test_smartctl_knows_capacitors(machine: Machine) -> None:
    sata(machine)
    machine.mount("sda")

    def run(argv: list[str], **more: Any) -> Result:
        assert argv == ["smartctl", "-j", "-i", "-A", "-g", "wcache", "/dev/sda"]
        return Result(4, json.dumps(SMART), "")

    found = describe(machine, run=run, tools=True)
    assert found["class"] == "ssd-with-power-loss-protection"
    assert found["class_rule"] == "sda: SMART attribute 175 Power_Loss_Cap_Test"
    assert describe(machine, run=nothing, tools=True)["class"] == "ssd"
    assert describe(machine, run=lambda argv, **more: Result(0, "no JSON", ""), tools=True)["class"] == "ssd"


def capacitor(**more: Any) -> dict[str, Any]:
    row = {"id": 175, "name": "Power_Loss_Cap_Test", "value": 100, "worst": 100, "thresh": 10, **more}
    return {"in_smartctl_database": True, "ata_smart_attributes": {"table": [row]}}


FAILED_NVME: dict[str, Any] = {
    "smart_status": {"passed": False, "nvme": {"value": 16, "volatile_memory_backup_failed": True}},
    "nvme_smart_health_information_log": {"critical_warning": 16, "percentage_used": 0},
}


@pytest.mark.parametrize(
    ("answer", "protected", "rule"),
    [
        (capacitor(), True, "175 Power_Loss_Cap_Test"),
        (capacitor(value=11, worst=11), True, "175"),  # too hot when it was tested
        (capacitor(value=1, worst=1, when_failed="now"), False, "is at 1, its threshold at 10"),
        (capacitor(value=10), False, "is at 10, its threshold at 10"),
        (capacitor(value=1, thresh=0), False, "is at 1"),
        (capacitor(value="001"), False, "is at 1"),
        (capacitor(value=0, worst=0, thresh=0), True, "175"),  # no normalised value at all
        (capacitor(worst=1, when_failed="past"), False, "was at 1 once"),
        (capacitor(name="PLP_Failure_Count", raw={"value": 0}), True, "PLP_Failure_Count"),
        (capacitor(name="PLP_Failure_Count", raw={"value": 2}), False, "counts 2"),
        (capacitor(name="Supercap_Health", value=1, thresh=5), False, "Supercap_Health is at 1"),
        ({**capacitor(), "in_smartctl_database": False}, None, "does not say"),
        (capacitor(name="Unsafe_Shutdown_Count", id=174, value=1, raw={"value": 99}), None, "does not say"),
        (capacitor(name="Power-Off_Retract_Count", id=192, value=1), None, "does not say"),
        (capacitor(value=None, worst=[], thresh="x", when_failed=7), True, "175"),
    ],
)
def test_capacitors_of_a_sata_drive(
    machine: Machine, answer: dict[str, Any], protected: bool | None, rule: str
) -> None:
    sata(machine)
    machine.mount("sda")
    found = describe(machine, run=lambda argv, **more: Result(0, json.dumps(answer), ""), tools=True)
    disk = found["disks"][0]
    assert disk["power_loss_protection"] is found["power_loss_protection"] is protected
    assert rule in disk["power_loss_rule"]
    assert disk["power_loss_failed"] is (protected is False)
    assert (found["class"] == "ssd-with-power-loss-protection") is (protected is True)
    if protected is False:
        assert rule in found["class_rule"] and any("power-loss protection has failed" in text for text in disk["health"])


LOG = "nvme_smart_health_information_log"


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (FAILED_NVME, True),
        ({LOG: {"critical_warning": 16}}, True),
        ({LOG: {"critical_warning": "0x11"}}, True),
        ({LOG: {"critical_warning": "16"}}, True),
        ({LOG: {"critical_warning": {"value": 0, "vmbu_failed": 1}}}, True),
        ({LOG: {}, "smart_status": {"nvme": {"value": 20}}}, True),
        ({LOG: {}, "smart_status": {"nvme": {"volatile_memory_backup_failed": True}}}, True),
        ({LOG: {"critical_warning": 15}}, False),
        ({LOG: {"critical_warning": 0}, "smart_status": {"nvme": {"volatile_memory_backup_failed": False}}}, False),
        ({LOG: {"critical_warning": 2**64 + 16}}, False),
        ({LOG: {"critical_warning": -16}}, False),
        ({LOG: [16], "smart_status": "bad"}, False),
    ],
)
def test_an_nvme_whose_protection_has_failed_has_none(machine: Machine, answer: dict[str, Any], failed: bool) -> None:
    """It says that it has no volatile cache, and means the protected one."""
    nvme(machine, "write through")
    machine.mount("nvme0n1")
    found = describe(machine, run=lambda argv, **more: Result(8, json.dumps(answer), ""), tools=True)
    disk = found["disks"][0]
    assert found["power_loss_protection"] is not failed and disk["power_loss_failed"] is failed
    assert found["class"] == ("nvme" if failed else "ssd-with-power-loss-protection")
    if failed:
        for text in (disk["power_loss_rule"], found["class_rule"]):
            assert "volatile memory backup failed" in text
        assert any("backup of its volatile memory has failed" in text for text in disk["health"])


def test_the_log_of_nvme_where_smartctl_is_missing(machine: Machine) -> None:
    nvme(machine, "write through")
    machine.mount("nvme0n1")

    def run(argv: list[str], **more: Any) -> Result:
        if argv[0] == "smartctl":
            raise CommandMissing("smartctl")
        assert argv == ["nvme", "smart-log", "-o", "json", "/dev/nvme0n1"]
        return Result(0, '{"critical_warning": 24}', "")

    disk = describe(machine, run=run, tools=True)["disks"][0]
    assert disk["power_loss_failed"] and any("read-only" in text for text in disk["health"])


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        ({"asc": 11, "ascq": 6, "ie_string": "WARNING - NON-VOLATILE CACHE NOW VOLATILE"}, True),
        ({"asc": 11, "ascq": 7}, True),
        ({"ie_string": "warning: degraded power to non-volatile cache"}, True),
        ({"asc": 93, "ascq": 16, "ie_string": "HARDWARE IMPENDING FAILURE GENERAL HARD DRIVE FAILURE"}, False),
        ({"asc": 0, "ascq": 0}, False),
        ({"asc": "x", "ascq": None, "ie_string": 5}, False),
    ],
)
def test_a_sas_drive_says_so_in_an_exception(machine: Machine, said: dict[str, Any], failed: bool) -> None:
    machine.disk("sdb", "8:16", SAS, 0, cache="write through")
    machine.mount("sdb")
    argvs = []

    def run(argv: list[str], **more: Any) -> Result:
        argvs.append(argv)
        return Result(8, json.dumps({"smart_status": {"passed": False, "scsi": said}}), "")

    found = describe(machine, run=run, tools=True)
    disk = found["disks"][0]
    assert "-H" in argvs[0], "the table of attributes of a SCSI drive has no exceptions"
    assert disk["power_loss_failed"] is failed and found["power_loss_protection"] is not failed
    assert disk["health"], "it is failing, whatever the exception"


# --- suspicion


def method(p50: float, rate: float) -> dict[str, Any]:
    return {"pveperf": {"p50_ms": p50, "operations_per_second": rate}}


def rules(machine: Machine, figures: dict[str, Any]) -> list[str]:
    return [entry["rule"] for entry in suspicion.suspects(describe(machine), figures)]


def test_more_fsyncs_than_revolutions(machine: Machine) -> None:
    sata(machine, rotational=1)
    machine.mount("sda")
    assert rules(machine, method(8.4, 118)) == []
    found = suspicion.suspects(describe(machine), method(1.2, 812))
    assert [entry["rule"] for entry in found] == ["rotation"]
    assert "812 pveperf a second on sda, which turns 120 times" in found[0]["evidence"]
    machine.write("run/udev/data/b8:0", "E:ID_ATA_ROTATION_RATE_RPM=15000")
    assert rules(machine, method(3, 300)) == []


def test_a_controller_with_a_battery_is_fast_and_honest(machine: Machine) -> None:
    machine.disk("sdc", "8:32", RAID, 1, cache="write through")
    machine.mount("sdc")
    assert rules(machine, method(0.05, 9000)) == []


def test_faster_than_flash(machine: Machine) -> None:
    sata(machine)
    machine.mount("sda")
    assert rules(machine, method(0.2, 3000)) == []
    assert rules(machine, method(0.02, 20000)) == ["latency"]


def test_either_method_that_is_impossible_is_evidence(machine: Machine) -> None:
    """Data that was waited for speaks first; pveperf's loop alone is enough, as it was."""
    sata(machine)
    machine.mount("sda")
    slow, fast = {"p50_ms": 0.4, "operations_per_second": 2000}, {"p50_ms": 0.02, "operations_per_second": 20000}
    assert rules(machine, {"pveperf": slow, "fdatasync": fast}) == ["latency"]
    assert rules(machine, {"pveperf": fast, "fdatasync": slow}) == ["latency"]
    assert rules(machine, {"pveperf": slow, "fdatasync": slow}) == []
    (found,) = suspicion.suspects(describe(machine), {"pveperf": fast, "fdatasync": fast})
    assert "median fdatasync of 0.02 ms and pveperf of 0.02 ms on sda" in found["evidence"]


def test_a_failed_protection_is_judged_as_none(machine: Machine) -> None:
    nvme(machine, "write through")
    machine.mount("nvme0n1")
    healthy = {**FAILED_NVME, "smart_status": {"passed": True}, LOG: {"critical_warning": 0}}
    for answer, expected in ((healthy, []), (FAILED_NVME, ["latency"])):
        found = describe(machine, run=lambda argv, a=answer, **more: Result(0, json.dumps(a), ""), tools=True)
        suspects = suspicion.suspects(found, method(0.01, 30000))
        assert [entry["rule"] for entry in suspects] == expected
    assert "power-loss protection has failed: NVMe critical warning 0x10" in suspects[0]["evidence"]
    assert suspicion.suspects(found, method(0.3, 3000)) == [], "it stores before it answers now"


def test_one_failed_protection_in_a_mirror_is_enough(machine: Machine) -> None:
    sata(machine, "sda", 1)
    sata(machine, "sdb", 2)
    machine.block("md0", "9:0", "virtual/block/md0", slaves=("sda", "sdb"), md__level="raid1")
    machine.mount("md0")

    def run(argv: list[str], **more: Any) -> Result:
        return Result(0, json.dumps(capacitor(value=1 if argv[-1] == "/dev/sdb" else 100)), "")

    found = describe(machine, run=run, tools=True)
    assert [disk["power_loss_protection"] for disk in found["disks"]] == [True, False]
    (suspect,) = suspicion.suspects(found, method(0.02, 20000))
    assert "on sdb, where" in suspect["evidence"]


def test_a_protected_cache_may_be_as_fast_as_it_likes(machine: Machine) -> None:
    nvme(machine, "write through")
    machine.mount("nvme0n1")
    assert rules(machine, method(0.01, 30000)) == []


def test_virtual_disks(machine: Machine) -> None:
    virtio(machine)
    machine.mount("vda")
    assert rules(machine, method(0.4, 1500)) == [], "it says that it rotates, which means nothing"
    assert rules(machine, method(0.02, 20000)) == ["virtual_cache"]


def test_a_commit_is_not_synced(machine: Machine) -> None:
    sata(machine, rotational=1)
    machine.mount("sda")
    figures = {"commit": {"p50_ms": 0.008, "operations_per_second": 30000}}
    assert rules(machine, figures) == []


def test_nothing_is_flushed(machine: Machine) -> None:
    sata(machine)
    machine.write(
        f"sys/devices/{'pci0000:00/0000:00:17.0/ata1/host1/target1:0:0/1:0:0:0'}/block/sda/queue/write_cache",
        "write through",
    )
    machine.mount("sda", options="rw,nobarrier")
    assert rules(machine, {}) == ["no_barrier", "no_flush"]
