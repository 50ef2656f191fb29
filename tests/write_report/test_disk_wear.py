# SPDX-License-Identifier: Apache-2.0
"""What drives say of their wear, on a corpus of smartctl's JSON, and how long they last."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard import block_device, disk_wear
from ansible.module_utils.pveguard.run import CommandMissing, Result

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
        "pages": [{"number": 1, "table": [{"offset": 24, "value": 10, "flags": {"valid": True}}]}]
    }
    found = disk_wear.read(a_disk(), run=lambda argv, **more: Result(0, json.dumps(answer), ""))
    assert (found["written_bytes"], found["written_from"]) == (
        5120,
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
    assert disk_wear.endurance(found, 10**9)["notes"] == ["a virtual disk: only the host knows what its drive has left"]


# --- what makers rate -------------------------------------------------------------------------------------------


def test_every_line_of_the_table_can_be_used_and_names_its_source() -> None:
    notes: list[str] = []
    assert disk_wear._checked(TABLE, notes) == TABLE and notes == []
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
    amount, source = disk_wear.rated(model, TABLE)
    assert amount == (terabytes and terabytes * 10**12) and (source is None) == (terabytes is None)


def test_the_operator_comes_first() -> None:
    mine = [{"model": "CT1000.*", "tbw": 0.5}, *TABLE]
    assert disk_wear.rated("CT1000MX500SSD1", mine) == (500_000_000_000, "write_report_endurance")
    exact = [{"model": "x", "tbw": 1, "tbw_bytes": 7, "source": "sheet"}]
    assert disk_wear.rated("X", exact) == (7, "sheet")


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
    return disk_wear.endurance(disk, rate)


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
    found = disk_wear.endurance(of(name), 10**9)
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
    task = output.partition("Read what its drives have left")[2].partition("TASK [")[0]
    assert "[without]" not in task, task
    result = task.partition("ok: [with] =>")[2]
    assert "disks:" in result and "b(" in result, "a typing error costs its entry only"
