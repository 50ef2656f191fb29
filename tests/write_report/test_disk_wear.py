# SPDX-License-Identifier: Apache-2.0
"""What drives say of their wear, on a corpus of smartctl's JSON, and how long they last."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.disk import block_device, disk_wear, drive_endurance, drive_findings

from tests.fsync_gate.sysfs import ATA, Machine, nvme, sata, virtio
from tests.loading import load_module
from tests.write_report.test_report import node
from tests.write_report.test_roles import play

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "smart"
TABLE = yaml.safe_load((ROOT / "roles/write_report/files/endurance.yml").read_text())
FILES = sorted(path.stem for path in CORPUS.glob("*.json"))
GIB = 1 << 30
YEAR = 365.25

#: file -> written, from nand, amplification, percentage used, spare, media errors, unsafe shutdowns, rated (terabytes)
EXPECTED: dict[str, tuple[Any, ...]] = {
    "nvme-samsung-970-evo-plus": (72_000_000_000_000, None, None, 12, 100, 0, 23, 600),
    "nvme-samsung-pm983": (16_000_000_000_000, None, None, 1, 100, 0, 14, 1366),
    "nvme-micron-7450": (639_015_936_000, None, None, 0, 100, 0, 30, None),
    "nvme-worn-out": (200_000_000_000_000, None, None, 134, 4, 7, 51, 150),
    "nvme-qemu": (412 * 512_000, None, None, 0, 100, 0, 0, None),
    "sata-samsung-870-evo": (75_000_000_000_000, None, None, 12, None, 2, 61, 600),
    "sata-crucial-mx500": (20_000_000_000_000, 70_000_000_000_000, 3.5, 7, None, 0, 37, 360),
    "sata-intel-s3610": (5_000_000 << 25, 7_500_000 << 25, 1.5, 4, 99, 0, 9, 5300),
    "sata-intel-540s": (1_000_000 << 25, 62_500 * GIB, 2.0, 19, None, None, 12, None),
    "sata-dell-intel-s3520": (129_493 << 25, None, None, 0, 100, None, 167, None),
    "sata-kingston-v300": (20_480 * GIB, None, None, 27, None, None, 84, None),
    "sata-wd-blue": (25_000 * 10**9, 50_000 * 10**9, 2.0, None, None, 0, 19, 400),
    "sata-transcend": (900_000 << 25, 1_400_000 << 25, 1.56, 36, None, 0, None, None),
    "sata-unknown": (None, None, None, None, None, None, None, None),
    "sata-unknown-4k-with-statistics": (20_480_000_000_000, None, None, 18, None, 3, None, None),
    "sata-statistics-not-valid": (5_000_000_000_000, None, None, 1, None, None, None, 300),
    "sata-hdd": (30_720_000_000_000, None, None, None, None, 0, None, None),
    "sata-failing": (204_800_000_000_000, None, None, 100, None, 412, 3, 180),
    "sas-ssd": (412_345_678_000_000, None, None, 11, None, 1, None, None),
    "sata-toshiba-hk4r": (1_233_000 << 25, None, None, None, None, None, None, None),
    "sata-intel-s4510-capacitor-failed": (3_000_000 << 25, None, None, 10, 99, None, 41, None),
    "nvme-plp-failed": (147_556_750 * 512_000, None, None, 2, 100, 0, 4, None),
    "sas-ssd-cache-volatile": (412_345_678_000_000, None, None, 11, None, 0, None, None),
    "sas-hdd": (86_472_611_000_000, None, None, None, None, 0, None, None),
    "sata-asleep": (None,) * 8,
    "usb-bridge": (None,) * 8,
    "raid-controller": (None,) * 8,
    "no-permission": (None,) * 8,
    "usb-stick-without-smart": (None,) * 8,
}
COLUMNS = (
    "written_bytes",
    "nand_bytes",
    "drive_amplification",
    "percentage_used",
    "spare_percent",
    "media_errors",
    "unsafe_shutdowns",
)


def corpus(name: str) -> dict[str, Any]:
    value = json.loads((CORPUS / f"{name}.json").read_text())
    assert isinstance(value, dict)
    return value


def answering(*names: str, calls: list[Sequence[str]] | None = None, **by_disk: str) -> Callable[..., Result]:
    """A seam that answers smartctl from the corpus: ``names[0]`` for any disk, or ``disk=name``."""

    def run(argv: Sequence[str], **more: Any) -> Result:
        if calls is not None:
            calls.append(argv)
        if argv[0] != "smartctl":
            raise CommandMissing(argv[0])
        name = by_disk.get(argv[-1].removeprefix("/dev/")) or names[0]
        answer = corpus(name)
        return Result(answer["smartctl"]["exit_status"], json.dumps(answer), "")

    return run


def missing(argv: Sequence[str], **more: Any) -> Result:
    raise CommandMissing(argv[0])


def a_disk(name: str = "sda", transport: str = "sata", **more: Any) -> dict[str, Any]:
    """A disk as block_device.disk describes it; sysfs cuts the model of a SATA drive to 16 characters."""
    plain = {
        "name": name, "transport": transport, "virtual": False, "rotational": False, "model": "SHORT MODEL",
        "serial": "SERIAL-MADE-UP", "size_bytes": 10**12, "wwn": None,
    }  # fmt: skip
    return {**plain, **more}


def of(name: str) -> dict[str, Any]:
    transport = {"nvme": "nvme", "sas": "sas", "usb": "usb"}.get(name.partition("-")[0], "sata")
    disk = a_disk("nvme0n1" if transport == "nvme" else "sda", transport, virtual=name == "nvme-qemu")
    return disk_wear.read(disk, run=answering(name), table=TABLE)


# --- the corpus -------------------------------------------------------------------------------------------------


def test_every_file_is_expected_and_labelled() -> None:
    assert set(FILES) == {*EXPECTED, "nvme-cli-smart-log"}
    assert all(corpus(name)["fixture"].startswith("made by hand") for name in FILES)


@pytest.mark.parametrize("name", EXPECTED)
def test_figures(name: str) -> None:
    found, (*values, rated) = of(name), EXPECTED[name]
    assert dict(zip(COLUMNS, values, strict=True)) == {key: found[key] for key in COLUMNS}
    assert found["rated_tbw_bytes"] == (rated and rated * 10**12)
    assert (found["rated_from"] is None) == (rated is None)
    # Each figure names where it is from; nothing is named that is not there.
    for figure, origin in (("written", "written_bytes"), ("nand", "nand_bytes"), ("percentage", "percentage_used")):
        assert (found[f"{figure}_from"] is None) == (found[origin] is None)
    kind = name.partition("-")[0]
    assert found["kind"] == (kind if kind in ("nvme", "sas", "sata") else found["kind"])


@pytest.mark.parametrize("name", FILES)
def test_no_serial_number_is_returned(name: str) -> None:
    if name == "nvme-cli-smart-log":
        return
    found = of(name)
    assert "SERIAL-MADE-UP" not in json.dumps(found)
    assert len(found["serial_sha256"]) == 16


def test_a_serial_number_in_a_message_is_left_out() -> None:
    def run(argv: Sequence[str], **more: Any) -> Result:
        text = "/dev/sda [SERIAL-MADE-UP]: open failed"
        return Result(2, json.dumps({"smartctl": {"exit_status": 2, "messages": [{"string": text}]}}), "")

    assert disk_wear.read(a_disk(), run=run)["notes"] == ["smartctl: /dev/sda [...]: open failed"]


def test_two_drives_have_two_hashes() -> None:
    one, other = (disk_wear.read(a_disk(serial=serial), run=missing) for serial in ("S1", "S2"))
    assert one["serial_sha256"] != other["serial_sha256"]
    assert disk_wear.read(a_disk(serial=None), run=missing)["serial_sha256"] is None


def test_the_unit_in_a_name_counts_more_than_the_name_of_sectors() -> None:
    """129,493 sectors of 512 bytes would be 66 MB in 21,213 hours; 225 beside it says 32 MiB."""
    found = of("sata-dell-intel-s3520")
    assert found["written_from"] == "ATA attribute 225 Host_Writes_32MiB"


def test_of_two_units_the_finer_one_counts() -> None:
    answer = corpus("sata-intel-540s")
    answer["ata_smart_attributes"]["table"].append({"id": 242, "name": "Host_Writes_GiB", "raw": {"value": 31_249}})
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(0, json.dumps(answer), ""))
    assert found["written_bytes"] == 1_000_000 << 25 and found["drive_amplification"] == 2.0


def test_the_standard_counts_more_than_attributes() -> None:
    answer = corpus("sata-samsung-870-evo")
    answer["ata_device_statistics"] = {
        "pages": [{"number": 1, "table": [{"offset": 24, "value": 10**11, "flags": {"valid": True}}]}]
    }
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(0, json.dumps(answer), ""))
    assert (found["written_bytes"], found["written_from"]) == (
        512 * 10**11,
        "ATA Device Statistics, Logical Sectors Written",
    )


def test_nothing_used_by_the_standard_is_an_answer_too() -> None:
    answer = corpus("sata-samsung-870-evo")
    answer["ata_device_statistics"] = {
        "pages": [{"number": 7, "table": [{"offset": 8, "value": 0, "flags": {"valid": True}}]}]
    }
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(0, json.dumps(answer), ""))
    assert found["percentage_used"] == 0 and "Device Statistics" in found["percentage_from"]


def test_what_turns_is_the_drives_word() -> None:
    """The kernel takes what lies behind a bridge or a RAID controller for what that says."""
    for name, turns in (("sata-hdd", True), ("sas-hdd", True), ("sas-ssd", False)):
        answer = json.dumps(corpus(name))
        for kernel in (True, False, None):
            found = disk_wear.read(
                a_disk(rotational=kernel), run=lambda argv, answer=answer, **more: Result(0, answer, "")
            )
            assert found["rotational"] is turns


def test_a_name_means_a_percentage_only_with_the_maker_who_uses_it_so() -> None:
    """177 of a drive that is not Samsung's, 233 of one that is not Intel's."""
    answer = corpus("sata-samsung-870-evo") | {"model_family": "Other SSDs"}
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(0, json.dumps(answer), ""))
    assert found["percentage_used"] is None and found["written_bytes"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sata-unknown", "database does not know this drive"),
        ("sata-asleep", "asleep and left asleep"),
        ("usb-bridge", "Unknown USB bridge"),
        ("raid-controller", "-d megaraid,N"),
        ("no-permission", "Permission denied"),
        ("usb-stick-without-smart", "the drive has no SMART"),
        ("sata-failing", "the drive says that it is failing"),
        ("nvme-worn-out", "spare is at 4 %, below the drive's threshold of 10 %"),
        ("nvme-qemu", "an emulated drive"),
        ("sata-wd-blue", "7 % more where the maker means 2^30"),
        ("nvme-plp-failed", "the backup of its volatile memory has failed"),
        ("sata-intel-s4510-capacitor-failed", "175 Power_Loss_Cap_Test is at 1, its threshold at 10"),
        ("sas-ssd-cache-volatile", "NON-VOLATILE CACHE NOW VOLATILE (asc 0x0b, ascq 0x06)"),
    ],
)
def test_what_is_wrong_is_said(name: str, text: str) -> None:
    assert any(text in note for note in of(name)["notes"]), of(name)["notes"]


@pytest.mark.parametrize("name", ["nvme-samsung-970-evo-plus", "sata-crucial-mx500", "sas-ssd", "sata-intel-s3610"])
def test_a_good_drive_has_no_notes(name: str) -> None:
    assert of(name)["notes"] == []


def test_a_sleeping_drive_is_not_woken_and_the_answer_is_bounded() -> None:
    seen: dict[str, Any] = {}

    def run(argv: Sequence[str], **more: Any) -> Result:
        seen.update(argv=list(argv), **more)
        return Result(124, "", "")

    found = disk_wear.read(a_disk(), run=run, timeout=7)
    assert seen == {
        "argv": "smartctl -j -n standby -i -H -A -l error -l devstat -l ssd /dev/sda".split(),
        "timeout": 7,
    }
    assert found["notes"] == ["smartctl: no answer within 7 s"] and found["written_bytes"] is None


def test_an_old_smartctl_says_so() -> None:
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(1, "UNRECOGNIZED OPTION: j\n", ""))
    assert "without JSON (7.0 or later is needed): UNRECOGNIZED OPTION: j" in found["notes"][0]


@pytest.mark.parametrize("text", ["[]", "{}", '{"smartctl": null, "ata_smart_attributes": {"table": [null]}}'])
def test_json_of_another_shape_is_survived(text: str) -> None:
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(0, text, ""))
    assert found["written_bytes"] is None and found["notes"]


def test_nvme_without_smartctl_is_read_with_nvme() -> None:
    calls = []

    def run(argv: Sequence[str], **more: Any) -> Result:
        calls.append(list(argv))
        if argv[0] == "smartctl":
            raise CommandMissing("smartctl")
        return Result(0, (CORPUS / "nvme-cli-smart-log.json").read_text(), "")

    found = disk_wear.read(a_disk("nvme0n1", "nvme", model="Samsung SSD 980 PRO 1TB"), run=run, table=TABLE)
    assert calls[1] == ["nvme", "smart-log", "-o", "json", "/dev/nvme0n1"]
    assert (found["written_bytes"], found["percentage_used"]) == (20_000_000 * 512_000, 3)
    assert (found["spare_percent"], found["unsafe_shutdowns"], found["tool"]) == (100, 10, "nvme")
    assert found["rated_tbw_bytes"] == 600 * 10**12


def test_without_any_tool_the_drive_says_so() -> None:
    for disk in (a_disk(), a_disk("nvme0n1", "nvme")):
        found = disk_wear.read(disk, run=missing)
        assert found["notes"] == ["smartctl is not installed (apt install smartmontools)"]
        assert found["tool"] is None and found["kind"] in ("sata", "nvme")


def test_an_nvme_that_reports_no_data_units() -> None:
    answer = corpus("nvme-micron-7450")
    answer["nvme_smart_health_information_log"]["data_units_written"] = 0
    disk = a_disk("nvme0n1", "nvme")
    found = disk_wear.read(disk, run=lambda argv, **more: Result(0, json.dumps(answer), ""))
    assert found["written_bytes"] is None and "does not report" in found["notes"][0]


# --- health, and figures that contradict each other --------------------------------------------------------------


def read(answer: dict[str, Any], *, run: Any = None, **more: Any) -> dict[str, Any]:
    disk = a_disk(**more)
    text = json.dumps(answer)
    return disk_wear.read(disk, run=run or (lambda argv, **more: Result(0, text, "")), table=TABLE)


def ata(*rows: tuple[int, str, Any], **more: Any) -> dict[str, Any]:
    """A solid-state drive that the database knows, on for 20,000 hours; ``rows``: id, name, raw value."""
    table = [{"id": number, "name": name, "value": 100, "raw": {"value": raw}} for number, name, raw in rows]
    return {
        "device": {"protocol": "ATA"}, "in_smartctl_database": True, "rotation_rate": 0, "logical_block_size": 512,
        "power_on_time": {"hours": 20_000}, "ata_smart_attributes": {"table": table}, **more,
    }  # fmt: skip


def nvme_answer(**log: Any) -> dict[str, Any]:
    return {
        "device": {"protocol": "NVMe"},
        "nvme_smart_health_information_log": {"power_on_hours": 10_000, "available_spare": 100, **log},
    }


@pytest.mark.parametrize("name", ["nvme-plp-failed", "sata-intel-s4510-capacitor-failed", "sas-ssd-cache-volatile"])
def test_a_protection_that_has_failed_is_none(name: str) -> None:
    found = of(name)
    assert found["power_loss_protection"] is False and found["health_passed"] is False
    assert "has failed" in found["power_loss_rule"] and found["health"]
    assert set(found["health"]) <= set(found["notes"])


def test_a_drive_that_is_well_complains_of_nothing() -> None:
    for name in ("nvme-samsung-970-evo-plus", "sata-intel-s3610", "sas-ssd", "sata-hdd"):
        found = of(name)
        assert found["health"] == [] and found["power_loss_protection"] is not True, name
    assert read(ata((175, "Power_Loss_Cap_Test", 32768)))["power_loss_protection"] is True


@pytest.mark.parametrize(
    ("warning", "texts"),
    [
        (1, ["spare blocks are below"]),
        (2, ["temperature is beyond"]),
        (4, ["reliability is degraded"]),
        (8, ["medium is read-only"]),
        (32, ["persistent memory region"]),
        (64, ["not known here"]),
        (12, ["reliability is degraded", "medium is read-only"]),
        ("0x08", ["medium is read-only"]),
        ({"value": 8, "ro": 1}, ["medium is read-only"]),
        (0, []),
        ("bad", []),
        (None, []),
    ],
)
def test_critical_warnings_are_named(warning: Any, texts: list[str]) -> None:
    found = read(nvme_answer(critical_warning=warning, data_units_written=10**7), transport="nvme")
    assert len(found["health"]) == len(texts)
    for text, seen in zip(texts, found["health"], strict=True):
        assert text in seen and seen in found["notes"]


def test_findings_of_the_report() -> None:
    for name, kind in (("nvme-plp-failed", "problem"), ("sata-intel-s4510-capacitor-failed", "problem")):
        findings = drive_findings.findings([of(name)])
        assert any(each.severity == kind and "can be lost with the power" in each.text for each in findings)
    warm = read(nvme_answer(critical_warning=2, data_units_written=10**7), transport="nvme")
    assert [each.severity for each in drive_findings.findings([warm])] == ["warning"]


def test_a_drive_read_with_nvme_has_health_too() -> None:
    def run(argv: Sequence[str], **more: Any) -> Result:
        if argv[0] == "smartctl":
            raise CommandMissing("smartctl")
        return Result(0, '{"critical_warning": 16, "data_units_written": "20,000,000"}', "")

    found = disk_wear.read(a_disk("nvme0n1", "nvme", volatile_cache=False), run=run)
    assert found["power_loss_protection"] is False and found["health_passed"] is False
    assert "volatile memory backup failed" in found["power_loss_rule"]


LBAS = "Total_LBAs_Written"
SECTORS = 100 * 10**12 // 512
DEVSTAT = {"pages": [{"number": 1, "table": [{"offset": 24, "value": 40 * 10**9, "flags": {"valid": True}}]}]}


@pytest.mark.parametrize(
    ("answer", "disk", "text"),
    [
        # units that are not what the name says
        (ata((241, LBAS, 1_233_000)), {}, "too little for 20,000 power-on hours"),
        (ata((241, LBAS, 1_233_000), power_on_time={"hours": 150}), {}, None),  # 631 MB in 150 hours may be
        (ata((241, LBAS, 50_000), power_on_time={"hours": 150}), {}, "too little for 150 power-on hours"),
        (ata((241, LBAS, 50_000), power_on_time={"hours": 20}), {}, None),
        (ata((241, LBAS, 50_000), power_on_time={}), {"written_since_boot_bytes": 20 << 30}, "written 20 GiB to it"),
        (ata((173, "Ave_Block-Erase_Count", 900), (241, LBAS, 10**10)), {}, "erased 900 times"),
        (ata((173, "Erase_Count", 1), (241, LBAS, 10 * 10**6)), {}, "erased once"),
        (ata((202, "Percent_Lifetime_Remain", 0), (241, LBAS, 4 * 10**7)) | {"power_on_time": {"hours": 90}}, {}, None),
        # counts that wrapped or were never kept
        (ata((241, LBAS, 2**48 - 1)), {}, "all bits set, or negative"),
        (ata((241, LBAS, 2**48 - 7)), {}, "all bits set, or negative"),
        (ata((241, LBAS, 2**32 - 1)), {}, "all bits set, or negative"),
        (ata((225, "Host_Writes_32MiB", 2**47)), {}, "all bits set, or negative"),
        (ata((241, LBAS, 2**46), power_on_time={"hours": 10}), {}, "more than its interface can carry in 10"),
        (ata((241, LBAS, 2**46), power_on_time={"hours": 0}), {}, "more than its interface can carry in 0"),
        (ata((225, "Host_Writes_32MiB", 2**46)), {}, "more than its interface can carry"),
        (ata((225, "Host_Writes_32MiB", 2**46), power_on_time={}), {}, "in any drive's life"),
        (ata((225, "Host_Writes_32MiB", 0)), {}, "too little"),
        (ata((241, LBAS, -5)), {}, "does not report"),
        (ata((241, LBAS, "many")), {}, "does not report"),
        (ata((241, LBAS, None)), {}, "does not report"),
        (ata((241, LBAS, 1.5)), {}, "does not report"),
        # the size of a sector
        (ata((241, LBAS, 25 * 10**9), logical_block_size=0), {}, "sectors of 0 bytes do not exist"),
        (ata((241, LBAS, 25 * 10**9), logical_block_size=-512), {}, "sectors of -512 bytes"),
        (ata((241, LBAS, 25 * 10**9), logical_block_size="4K"), {}, "sectors of 4K bytes"),
        # more than the drive has lost of its life
        (ata((241, LBAS, SECTORS), (177, "Wear_Leveling_Count", 3), model_family="Samsung based SSDs"), {}, "only 3 times"),
        (ata((241, LBAS, SECTORS), (169, "Max_Erase_Count", 2)), {}, "only 2 times"),
        (ata((241, LBAS, 40 * 10**12), model_name="CT1000MX500SSD1"), {"size_bytes": 10**12}, None),
        # the database
        (ata((241, LBAS, SECTORS), in_smartctl_database=False), {}, "database does not know this drive"),
        (ata((241, LBAS, SECTORS), in_smartctl_database="yes"), {}, "database does not know this drive"),
        (ata((241, "Unknown_Attribute", SECTORS)), {}, "does not report"),
        (ata((241, "Host_Writes", 123456)), {}, "does not report"),
        # figures of the standards
        (ata(ata_device_statistics=DEVSTAT), {}, None),
        (ata((225, "Host_Writes_32MiB", 60_000_000), ata_device_statistics=DEVSTAT), {}, "one of them is wrong"),
        (nvme_answer(data_units_written=10**12), {"transport": "nvme"}, "512,000 times its size, more than any drive"),
        (nvme_answer(data_units_written=10**10, power_on_hours=80), {"transport": "nvme"}, "more than its interface can carry"),
        (nvme_answer(data_units_written=2**64 - 1), {"transport": "nvme"}, "more than its interface can carry"),
        (nvme_answer(data_units_written=2**64 - 1, power_on_hours=None), {"transport": "nvme"}, "any drive's life"),
        (nvme_answer(data_units_written=7 * 10**6, power_on_hours=0), {"transport": "nvme"}, None),
        (nvme_answer(data_units_written=10**7, power_on_hours=0), {"transport": "nvme"}, "in less than one power-on hour"),
        (nvme_answer(data_units_written=2 * 10**8, power_on_hours=0), {"transport": "nvme"}, "in 0 power-on hours"),
        (
            nvme_answer(data_units_written=3 * 10**9, power_on_hours=100),
            {"transport": "nvme", "link_bytes_per_second": 4 * 10**9},
            "more than its interface can carry in 100",
        ),
        (nvme_answer(data_units_written=1500), {"transport": "nvme"}, "too little for 10,000"),
        (nvme_answer(data_units_written=4 * 10**9, percentage_used=0), {"transport": "nvme"}, "only 0 % of its rated life"),
        (nvme_answer(data_units_written=3 * 10**5, percentage_used=60), {"transport": "nvme"}, "60 % of its rated life is used"),
        (nvme_answer(data_units_written=10**8, host_writes=20_000), {"transport": "nvme"}, "in each of its 20,000 write"),
        (nvme_answer(data_units_written=10**8, host_writes=10**12), {"transport": "nvme"}, "in each of its"),
        (nvme_answer(data_units_written=-3), {"transport": "nvme"}, "does not report"),
        (nvme_answer(data_units_written="12.5"), {"transport": "nvme"}, "does not report"),
        (nvme_answer(data_units_written=2e8), {"transport": "nvme"}, None),
        (nvme_answer(data_units_written="200,000,000"), {"transport": "nvme"}, None),
    ],
)
def test_a_figure_that_contradicts_others_is_unknown(answer: dict[str, Any], disk: dict[str, Any], text: str | None) -> None:
    found = read(answer, **disk)
    if text is None:
        assert found["written_bytes"] and found["notes"] == [], found["notes"]
    else:
        assert found["written_bytes"] is None and found["written_from"] is None
        assert any(text in note for note in found["notes"]), found["notes"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("412345.678", 412_345_678_000_000),
        (412345.678, 412_345_678_000_000),
        (412345, 412_345_000_000_000),
        ("0.000", None),
        ("-1.0", None),
        (float("nan"), None),
        ("inf", None),
        (1e300, None),
        (10**400, None),
        ("many", None),
        (True, None),
        ([], None),
        (None, None),
        ("9e17", None),
        ("99999999999", None),
    ],
)
def test_gigabytes_of_a_sas_drive(said: Any, expected: int | None) -> None:
    answer = corpus("sas-ssd")
    answer["scsi_error_counter_log"]["write"]["gigabytes_processed"] = said
    found = read(answer, transport="sas")
    assert found["written_bytes"] == expected
    assert expected or said is None or any("SAS error counter log" in note for note in found["notes"])


def test_sectors_are_of_the_drives_size() -> None:
    answer = ata((241, LBAS, 25 * 10**9))
    assert read(answer)["written_bytes"] == 25 * 10**9 * 512
    assert read(answer | {"logical_block_size": 4096})["written_bytes"] == 25 * 10**9 * 4096
    del answer["logical_block_size"]
    assert read(answer)["written_bytes"] == 25 * 10**9 * 512


def test_the_family_that_counts_otherwise_is_still_compared_with_the_rest() -> None:
    answer = corpus("sata-toshiba-hk4r")
    found = read(answer)
    assert found["written_bytes"] == 41_372_614_656_000 and "units of 32 MiB" in found["written_from"]
    answer["ata_smart_attributes"]["table"][2]["raw"]["value"] = 80_000_000_000
    found = read(answer)
    assert found["written_bytes"] == 80_000_000_000 * 512, "a firmware that counts sectors"
    assert "more than its interface can carry" in found["notes"][0]
    answer |= {"model_family": "Other SSDs", "model_name": "OTHER"}
    answer["ata_smart_attributes"]["table"][2]["raw"]["value"] = 1_233_000
    found = read(answer)
    assert found["written_bytes"] is None, "nobody says so of this one"
    assert "602 MiB cannot be right: too little for 30,000 power-on hours; its blocks were erased once" in found["notes"][0]


def test_where_the_standards_count_is_impossible_the_attribute_counts() -> None:
    answer = corpus("sata-samsung-870-evo")
    answer["ata_device_statistics"] = {
        "pages": [{"number": 1, "table": [{"offset": 24, "value": 10, "flags": {"valid": True}}]}]
    }
    found = read(answer)
    assert found["written_bytes"] == 75_000_000_000_000
    assert "Logical Sectors Written: 5.0 KiB cannot be right" in found["notes"][0].replace("5 KiB", "5.0 KiB")


@pytest.mark.parametrize(
    ("log", "used", "text"),
    [
        ({"percentage_used": 255, "data_units_written": 2 * 10**8}, None, "that does not count"),
        ({"percentage_used": 255, "available_spare": 3, "data_units_written": 2 * 10**8}, 255, "255 % or more"),
        ({"percentage_used": 255, "media_errors": 9, "data_units_written": 2 * 10**8}, 255, "255 % or more"),
        ({"percentage_used": 256, "available_spare": 3, "data_units_written": 2 * 10**8}, None, "256 is what"),
        ({"percentage_used": 254, "data_units_written": 2 * 10**9}, 254, None),
        ({"percentage_used": -1, "data_units_written": 2 * 10**8}, None, None),
        ({"percentage_used": "12 %", "data_units_written": 2 * 10**8}, None, None),
        ({"percentage_used": 12.0, "data_units_written": 2 * 10**8}, 12, None),
    ],
)
def test_percentages_that_are_none(log: dict[str, Any], used: int | None, text: str | None) -> None:
    found = read(nvme_answer(**log), transport="nvme")
    assert found["percentage_used"] == used and (found["percentage_from"] is None) == (used is None)
    assert found["written_bytes"]
    assert text is None or any(text in note for note in found["notes"])


def test_a_namespace_is_a_part_of_its_drive() -> None:
    answer = nvme_answer(data_units_written=10**9, percentage_used=0)
    assert read(answer, transport="nvme", size_bytes=10**11)["written_bytes"] is None
    answer["nvme_total_capacity"] = 3 * 10**12
    assert read(answer, transport="nvme", size_bytes=10**11)["written_bytes"] == 10**9 * 512_000


def test_counts_of_errors_that_are_none() -> None:
    answer = nvme_answer(data_units_written=10**8, media_errors=2**64 - 1, unsafe_shutdowns=2**127)
    found = read(answer, transport="nvme")
    assert found["media_errors"] is None and found["unsafe_shutdowns"] is None and len(found["notes"]) == 2


def test_hours_beyond_any_drives_life_are_none() -> None:
    found = read(ata((241, LBAS, SECTORS), power_on_time={"hours": 2**32 - 1}))
    assert found["power_on_hours"] is None and found["written_bytes"] == SECTORS * 512
    assert "power-on hours" in found["notes"][0]


def test_flash_that_does_not_fit_what_the_host_wrote() -> None:
    host = (225, "Host_Writes_32MiB", 3_000_000)
    for raw in (1, 10**12):
        found = read(ata(host, (243, "NAND_Writes_1GiB", raw)))
        assert found["written_bytes"] == 3_000_000 << 25
        assert found["nand_bytes"] is None and found["drive_amplification"] is None
        assert "NAND_Writes_1GiB" in found["notes"][0]
    found = read(ata((243, "NAND_Writes_1GiB", 2**46)))
    assert found["nand_bytes"] is None and any("NAND_Writes_1GiB" in note for note in found["notes"])
    pages = (247, "Host_Program_Page_Count", 1000), (248, "FTL_Program_Page_Count", 10**9)
    found = read(ata(host, *pages))
    assert found["drive_amplification"] is None and "247 and 248" in found["notes"][0]


@pytest.mark.parametrize(("tbw", "bad"), [(600, False), (600_000, True), (0.0006, True)])
def test_a_rating_in_another_unit_is_none(tbw: float, bad: bool) -> None:
    disk, answer = a_disk(), json.dumps(ata((241, LBAS, SECTORS), model_name="MINE"))
    table = [{"model": "MINE", "tbw": tbw}]
    found = disk_wear.read(disk, run=lambda argv, **more: Result(0, answer, ""), table=table)
    assert (found["rated_tbw_bytes"] is None) == bad
    assert any("which no maker promises (tbw is in terabytes)" in note for note in found["notes"]) == bad


def test_a_rating_that_the_percentage_does_not_know_of() -> None:
    answer = corpus("sata-samsung-870-evo")
    answer["ata_smart_attributes"]["table"] = [
        {"id": 177, "name": "Wear_Leveling_Count", "value": 99, "raw": {"value": 40_000}},
        {"id": 241, "name": LBAS, "value": 99, "raw": {"value": 30_000 * 10**12 // 512}},
    ]
    found = read(answer)
    assert found["written_bytes"] is None and "it is rated for 546 TiB" in found["notes"][0]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("Host_Writes_MiB", 1 << 20),
        ("Host_Writes_16MiB", 16 << 20),
        ("Lifetime_Writes_TiB", 1 << 40),
        ("Host_Writes_64KiB", 64 << 10),
    ],
)
def test_units_in_names(name: str, unit: int) -> None:
    raw = 50 * 10**12 // unit
    assert read(ata((241, name, raw)))["written_bytes"] == raw * unit


#: What a field of a drive's answer is replaced by.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 255, 256, 1.5, -0.5, 2**31, 2**32 - 1, 2**47, 2**48 - 1, 2**63, 2**64, 2**127, 2**128,
    10**30, 10**400, 1e308, float("nan"), float("inf"), float("-inf"), "", " ", "x" * 5000, "12", "-12", "1,234", "1.5", "0x10",
    "\u0663", "²", "NaN", [], [None], [[]], [{}], {}, {"value": None}, {"value": {}}, {"value": 16}, [1, 2, 3],
)  # fmt: skip


def mutated(value: Any, chance: random.Random) -> Any:
    """``value`` with one to six of its parts replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 6)):
        node = value
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(node[key], (dict, list)) and chance.random() < 0.85:
                node = node[key]
                continue
            what = chance.random()
            if what < 0.7:
                node[key] = copy.deepcopy(chance.choice(HOSTILE))
            elif what < 0.85 and isinstance(node, dict):
                del node[key]
            elif isinstance(node, dict):
                node[chance.choice(["value", "raw", "table", "name", "id", "x"])] = copy.deepcopy(node[key])
            else:
                node.append(copy.deepcopy(node[key]))
            break
    return value


@pytest.mark.parametrize("name", FILES)
def test_no_answer_of_a_drive_is_a_traceback(name: str) -> None:
    """Nor is any figure of it one that no drive can have."""
    original = corpus(name)
    transport = {"nvme": "nvme", "sas": "sas", "usb": "usb"}.get(name.partition("-")[0], "sata")
    disk = a_disk("nvme0n1" if transport == "nvme" else "sda", transport, written_since_boot_bytes=5 << 30)
    for seed in range(120):
        answer = mutated(original, random.Random(f"{name} {seed}"))
        text = json.dumps(answer)

        def run(argv: Sequence[str], text: str = text, **more: Any) -> Result:
            if name == "nvme-cli-smart-log" and argv[0] == "smartctl":
                raise CommandMissing(argv[0])
            return Result(0, text, "")

        found = disk_wear.read(disk, run=run, table=TABLE)
        json.dumps(found, allow_nan=False)
        assert found["written_bytes"] is not None or found["notes"], (seed, answer)
        for key in ("written_bytes", "nand_bytes", "media_errors", "unsafe_shutdowns", "power_on_hours"):
            assert found[key] is None or type(found[key]) is int and 0 <= found[key] < 1e21, (seed, key)
        if found["written_bytes"] is not None:
            hours = disk_wear.wear_plausibility.MAX_HOURS if found["power_on_hours"] is None else found["power_on_hours"]
            assert found["written_bytes"] <= (hours + 1) * 3600 * 16e9, seed
        assert found["percentage_used"] is None or 0 <= found["percentage_used"] <= 255, seed
        assert found["spare_percent"] is None or 0 <= found["spare_percent"] <= 100, seed
        json.dumps(drive_endurance.endurance(found, 10**9), allow_nan=False)
        drive_findings.findings([found])
        # The gate asks the same drives.
        smart = block_device._smart(disk["name"], transport, run)
        block_device.protection_of(transport, False, False, True, smart)


@pytest.mark.parametrize("name", FILES)
def test_nor_one_for_the_gate(name: str, machine: Machine) -> None:
    is_nvme = name.startswith("nvme")
    place = nvme(machine, "write through") if is_nvme else sata(machine)
    place = place if is_nvme else f"{place}/block/sda"
    original = corpus(name)
    for seed in range(25):
        text = json.dumps(mutated(original, random.Random(f"gate {name} {seed}")))
        found = block_device.disk(
            machine.root / place, machine.root, run=lambda argv, text=text, **more: Result(0, text, ""), tools=True
        )
        json.dumps(found, allow_nan=False)
        assert found["power_loss_protection"] in (True, False, None)
        assert not found["power_loss_failed"] or found["power_loss_protection"] is False
        assert all(isinstance(text, str) for text in found["health"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"device": 1e999}', "\ufeff{}", "nul"])
def test_text_that_is_no_answer(text: str) -> None:
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(0, text, ""))
    assert found["written_bytes"] is None and found["notes"]
    assert block_device._smart("sda", "sata", lambda argv, **more: Result(0, text, "")) in ({}, {"device": float("inf")})


# --- which disks ------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_disks_behind_two_paths_through_layers(machine: Machine) -> None:
    """LVM on md on two drives, the second path on an NVMe; no drive is asked twice."""
    sata(machine, "sda", 1)
    sata(machine, "sdb", 2)
    nvme(machine)
    machine.block("md0", "9:0", "virtual/block/md0", slaves=("sda", "sdb"), md__level="raid1")
    machine.block("dm-0", "253:0", "virtual/block/dm-0", slaves=("md0",), dm__uuid="LVM-x", dm__name="pve-root")
    machine.mount("dm-0")
    machine.mount("nvme0n1", "/var/lib/pve-cluster")
    (machine.root / "var/lib/pve-cluster").mkdir()
    calls: list[Sequence[str]] = []
    run = answering(
        calls=calls, sda="sata-samsung-870-evo", sdb="sata-crucial-mx500", nvme0n1="nvme-samsung-970-evo-plus"
    )
    paths = ["/var/lib/pveguard", "/var/lib", "/var/lib/pve-cluster"]
    found = disk_wear.wear(paths, root=machine.root, run=run, table=TABLE)
    assert [(disk["disk"], disk["model"], disk["paths"]) for disk in found["disks"]] == [
        ("sda", "Samsung SSD 870 EVO 1TB", paths[:2]),
        ("sdb", "CT1000MX500SSD1", paths[:2]),
        ("nvme0n1", "Samsung SSD 970 EVO Plus 1TB", paths[2:]),
    ]
    assert [argv[-1] for argv in calls] == ["/dev/sda", "/dev/sdb", "/dev/nvme0n1"]
    assert found["notes"] == []


def test_a_path_in_memory_is_what_lies_beneath(machine: Machine) -> None:
    sata(machine)
    machine.mount("sda")
    machine.mount("tmpfs", "/var/lib/pve-cluster", "tmpfs")
    (machine.root / "var/lib/pve-cluster").mkdir()
    found = disk_wear.wear(root=machine.root, run=answering("sata-samsung-870-evo"))
    assert [disk["disk"] for disk in found["disks"]] == ["sda"]


def test_a_virtual_disk_is_not_asked_and_others_are(machine: Machine) -> None:
    virtio(machine)
    sata(machine)
    machine.mount("vda")
    machine.mount("sda", "/var/lib")
    calls: list[Sequence[str]] = []
    run = answering("sata-samsung-870-evo", calls=calls)
    found = disk_wear.wear(["/", "/var/lib"], root=machine.root, run=run)
    first, second = found["disks"]
    assert (first["disk"], first["tool"], first["written_bytes"]) == ("vda", None, None)
    assert first["notes"] == ["a virtual disk (virtio) has no SMART: the drive is the host's"]
    assert second["written_bytes"] == 75_000_000_000_000 and [argv[-1] for argv in calls] == ["/dev/sda"]


def test_all_disks_are_disks_only(machine: Machine) -> None:
    sata(machine, "sda", 1)
    machine.partition("sda1", "8:1", "sda")
    sata(machine, "sdb", 2, rotational=1)
    machine.block("dm-0", "253:0", "virtual/block/dm-0", slaves=("sda",), dm__uuid="LVM-x")
    machine.block("zram0", "252:0", "virtual/block/zram0")
    machine.disk("sr0", "11:0", ATA.format(3))
    machine.mount("dm-0")
    run = answering(sda="sata-samsung-870-evo", sdb="sata-hdd")
    assert [place.name for place in block_device.whole_disks(machine.root)] == ["sda", "sdb"]
    found = disk_wear.wear(["/var/lib"], all_disks=True, root=machine.root, run=run)
    assert [(disk["disk"], disk["paths"]) for disk in found["disks"]] == [("sda", ["/var/lib"]), ("sdb", [])]
    assert [disk["disk"] for disk in disk_wear.wear(["/var/lib"], root=machine.root, run=run)["disks"]] == ["sda"]


def test_two_paths_to_one_drive_are_one_drive(machine: Machine) -> None:
    for name, port in (("sda", 1), ("sdb", 2)):
        place = sata(machine, name, port)
        machine.write(f"{place}/wwid", "naa.same")
    machine.block("dm-0", "253:0", "virtual/block/dm-0", slaves=("sda", "sdb"), dm__uuid="mpath-x")
    machine.mount("dm-0")
    found = disk_wear.wear(["/var/lib"], root=machine.root, run=answering("sas-ssd"))
    assert [disk["disk"] for disk in found["disks"]] == ["sda"]
    assert found["disks"][0]["notes"] == ["sdb is another path to this drive"]


def test_a_path_without_a_disk_is_a_note(machine: Machine) -> None:
    machine.mount("rpool/data", "/", "zfs")
    found = disk_wear.wear(["/var/lib"], root=machine.root, run=missing)
    assert found == {"disks": [], "notes": ["/var/lib: no disk is known behind zfs at /var/lib"]}


def test_finding_the_disks_wakes_none(machine: Machine) -> None:
    """describe() would ask smartctl without -n."""
    sata(machine)
    machine.mount("sda")
    calls: list[Sequence[str]] = []
    disk_wear.wear(
        ["/var/lib"], root=machine.root, run=answering("sata-asleep", calls=calls), tools=True, all_disks=True
    )
    assert all("standby" in argv for argv in calls) and len(calls) == 1


def test_the_emulated_drive_of_the_lab(machine: Machine) -> None:
    """It is virtual, and it has a SMART log."""
    nvme(machine, model="QEMU NVMe Ctrl")
    machine.mount("nvme0n1")
    found = disk_wear.wear(["/var/lib"], root=machine.root, run=answering("nvme-qemu"))["disks"][0]
    assert (found["virtual"], found["written_bytes"]) == (True, 412 * 512_000)
    assert drive_endurance.endurance(found, 10**9)["notes"] == ["a virtual disk: only the host knows what its drive has left"]


# --- what makers rate -------------------------------------------------------------------------------------------


def test_every_line_of_the_table_can_be_used_and_names_its_source() -> None:
    notes: list[str] = []
    assert drive_endurance.checked(TABLE, notes) == TABLE and notes == []
    for entry in TABLE:
        assert set(entry) == {"model", "tbw", "source"} and entry["source"].startswith("https://")
    assert len({entry["model"] for entry in TABLE}) == len(TABLE), "a model twice"


@pytest.mark.parametrize(
    ("model", "terabytes"),
    [
        ("Samsung SSD 970 EVO Plus 2TB", 1200),
        ("samsung ssd 970 evo 250gb", 150),
        ("Samsung SSD 970 PRO 1TB", None),
        ("Samsung SSD 870 EVO 1TB  ", 600),
        ("Samsung SSD 850 EVO M.2 250GB", 75),
        ("CT1000MX500SSD4", 360),
        ("CT1000MX500SSD1X", None),
        ("WDC  WDS400T1R0A-68A4W0", 2500),
        ("INTEL SSDSC2BX800G4R", 5300),
    ],
)
def test_a_model_is_known_by_its_whole_name(model: str, terabytes: int | None) -> None:
    amount, source = drive_endurance.rated(model, TABLE)
    assert amount == (terabytes and terabytes * 10**12) and (source is None) == (terabytes is None)


def test_the_operator_comes_first() -> None:
    mine = [{"model": "CT1000.*", "tbw": 0.5}, *TABLE]
    assert drive_endurance.rated("CT1000MX500SSD1", mine) == (500_000_000_000, "write_report_endurance")
    exact = [{"model": "x", "tbw": 1, "tbw_bytes": 7, "source": "sheet"}]
    assert drive_endurance.rated("X", exact) == (7, "sheet")


def test_a_wrong_entry_costs_its_own_figure_only(machine: Machine) -> None:
    sata(machine)
    machine.mount("sda")
    bad = [{"model": "a(", "tbw": 1}, {"tbw": 1}, {"model": "b"}, {"model": "c", "tbw": -1}, {"model": "d", "tbw": "x"}]
    found = disk_wear.wear(
        ["/var/lib"], root=machine.root, run=answering("sata-samsung-870-evo"), table=[*bad, *TABLE]
    )
    assert len(found["notes"]) == 5 and all("write_report_endurance" in note for note in found["notes"])
    assert found["disks"][0]["rated_tbw_bytes"] == 600 * 10**12


# --- how long it lasts ------------------------------------------------------------------------------------------


def left(
    written: float | None = None,
    used: int | None = None,
    rated: float | None = None,
    rate: float | None = 10**9,
    **more: Any,
) -> dict[str, Any]:
    disk = {"written_bytes": written, "percentage_used": used, "rated_tbw_bytes": rated, "rated_from": "sheet", **more}
    return drive_endurance.endurance(disk, rate)


def figures(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["years_left"], found["years_left_low"], found["years_left_high"]


def test_rated_endurance() -> None:
    found = left(written=100e12, rated=600e12, rate=500e12 / YEAR / 2)
    assert found["method"] == "rated TBW" and figures(found) == (2, 2, 2)


def test_percentage_used_is_an_interval() -> None:
    """10 % after 100 TB is 9 to 11 %: 1,011 to 809 TB are left."""
    found = left(written=100e12, used=10, rate=900e12 / YEAR)
    assert found["method"] == "percentage used"
    assert figures(found) == (1, pytest.approx(0.899), pytest.approx(1.12))


def test_of_two_methods_the_one_that_ends_first() -> None:
    found = left(written=100e12, used=10, rated=600e12, rate=100e12 / YEAR)
    assert [entry["method"] for entry in found["methods"]] == ["rated TBW", "percentage used"]
    assert (found["method"], found["years_left"]) == ("rated TBW", 5)
    found = left(written=100e12, used=50, rated=600e12, rate=100e12 / YEAR)
    assert (found["method"], found["years_left"]) == ("percentage used", 1)
    assert found["methods"][0]["years_left"] == 5


@pytest.mark.parametrize(("used", "least"), [(0, 99), (1, 49)])
def test_a_young_drive_has_a_bound_and_no_estimate(used: int, least: float) -> None:
    found = left(written=100e12, used=used, rate=100e12 / YEAR)
    assert found["method"] == "percentage used (at least)"
    assert figures(found) == (None, least, None)


def test_a_young_drive_with_a_rating_has_an_estimate() -> None:
    found = left(written=100e12, used=1, rated=600e12, rate=100e12 / YEAR)
    assert (found["method"], found["years_left"]) == ("rated TBW", 5)
    assert [entry["years_left"] for entry in found["methods"]] == [5, None]


def test_percentage_of_a_rating_where_the_drive_does_not_count() -> None:
    found = left(used=20, rated=500e12, rate=100e12 / YEAR)
    assert found["method"] == "rated TBW x percentage used" and figures(found) == (4, 3.95, 4.05)


def test_beyond_the_rating() -> None:
    found = left(written=700e12, used=134, rated=600e12)
    assert figures(found) == (0, 0, 0) and len(found["notes"]) == 2
    assert left(written=700e12, used=100)["years_left"] == 0


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ({"rate": None, "written": 1e12, "rated": 2e12}, "no rate was measured"),
        ({"rate": 0, "written": 1e12, "rated": 2e12}, "nothing was written while it was measured"),
        ({"virtual": True, "written": 1e12, "rated": 2e12}, "a virtual disk"),
        ({"rotational": True, "written": 1e12, "rated": 2e12}, "a rotating disk"),
        ({"used": 40}, "not known: what was written in its life, its rated endurance"),
        ({"written": 1e12}, "not known: the percentage used, its rated endurance (write_report_endurance)"),
        ({"written": 0, "used": 0}, "not known: its rated endurance"),
    ],
)
def test_nothing_is_guessed(arguments: dict[str, Any], note: str) -> None:
    found = left(**arguments)
    assert figures(found) == (None, None, None) and found["method"] is None and found["methods"] == []
    assert found["notes"][0].startswith(note)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_drive_of_the_corpus_has_an_answer_or_a_reason(name: str) -> None:
    found = drive_endurance.endurance(of(name), 10**9)
    assert found["notes"] or found["years_left"] is not None
    low, middle, high = found["years_left_low"], found["years_left"], found["years_left_high"]
    assert middle is None or low <= middle <= high


def test_a_very_long_time_is_put_right() -> None:
    found = left(written=1e12, rated=600e12, rate=10**6)
    assert found["years_left"] > 1000 and "another reason than its writes" in found["notes"][0]


# --- the module and the role ------------------------------------------------------------------------------------


def test_module(run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def wear(paths: Any, **more: Any) -> dict[str, Any]:
        seen.append((paths, more))
        return {"disks": [], "notes": []}

    module = load_module("disk_wear")
    monkeypatch.setattr(module.disk_wear, "wear", wear)
    arguments = {"endurance": [{"model": "x", "tbw": 1.5}]}
    for check in (False, True):
        result = run_module(module, _ansible_check_mode=check, **arguments)
        assert result["changed"] is False and result["disks"] == []
    assert seen[0] == seen[1]
    paths, more = seen[0]
    assert paths == ["/var/lib/pveguard", "/var/lib/pve-cluster"]
    assert more == {"all_disks": False, "table": [{"model": "x", "tbw": 1.5}], "timeout": 20.0}


def test_module_refuses_a_timeout_without_end(run_module: Any) -> None:
    result = run_module("disk_wear", timeout=0)
    assert result["failed"] and "timeout is 0" in result["msg"]


def test_module_on_this_machine(run_module: Any) -> None:
    """Whatever it has: every disk an entry, and each entry the keys that RETURN names."""
    result = run_module("disk_wear", all_disks=True)
    documented = yaml.safe_load(load_module("disk_wear").RETURN)["disks"]["contains"]
    assert result["changed"] is False
    for disk in result["disks"]:
        assert set(disk) == set(documented)
        assert disk["written_bytes"] is not None or disk["notes"]


@pytest.mark.slow
def test_the_role_asks_each_node_once_and_only_if_wanted(tmp_path: Path) -> None:
    base = {
        "pveguard_reports_dir": str(tmp_path / "reports"),
        "write_report_measure": "never",
        "pveguard_node": {"node": node()},
    }
    mine = [{"model": "My drive", "tbw": 5}, {"model": "b(", "tbw": 5}]
    hosts = {
        "with": {**base, "write_report_endurance": mine},
        "without": {**base, "write_report_disks": False},
    }
    code, output = play(tmp_path, hosts, [{"name": "write_report"}], "-v", "--check")
    assert code == 0 and "changed=0" in output, output
    task = output.partition("Read what the node writes and what its drives have left")[2].partition("TASK [")[0]
    results = {name: task.partition(f"ok: [{name}] =>")[2].partition("ok: [")[0] for name in hosts}
    # "disks:" alone is in the counters of all writers as well.
    assert results["without"] and "percentage_used:" not in results["without"], task
    assert "percentage_used:" in results["with"] and "b(" in results["with"], "a typing error costs its entry only"
