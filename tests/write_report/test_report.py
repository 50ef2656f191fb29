# SPDX-License-Identifier: Apache-2.0
"""The report: what it says of whole nodes, of nodes with something missing, and the table as text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.pveguard.report import report_metrics, report_page, report_summary, report_table

from tests.loading import load_filters

from . import sample

NOW = "2026-11-20T17:10:22Z"


def filters() -> ModuleType:
    return load_filters("report")


def node(**changes: Any) -> dict[str, Any]:
    """Facts of node_info of a member that is protected and quiet."""
    conf = {"sha256": "aa", "config_version": 5, "text": "totem {}"}
    facts: dict[str, Any] = {
        "pmxcfs": {"mode": "cluster", "quorate": True},
        "corosync": {
            "cluster_name": "pvelab",
            "host": conf,
            "cluster": conf,
            "copies_equal": True,
            "members": [{"id": n} for n in (1, 2, 3)],
            "live_member_ids": [1, 2, 3],
            "quorate": True,
        },
        "ha": {"installed": True, "disabled": True, "enabled": False, "resources": [], "services": {}},
        "ram_state": {"state": "protected"},
    }
    for path, value in changes.items():
        outer, _, inner = path.partition("__")
        facts[outer] = {**facts[outer], inner: value} if inner else value
    return facts


def figures(
    method: str = "window", transactions: float | None = 108.0, device: float | None = 4.2e6, **more: Any
) -> Any:
    return {
        "method": method,
        "seconds": 60.0,
        "transactions": transactions,
        "transactions_per_minute": transactions,
        "device_bytes": device,
        "device_bytes_per_minute": device,
        "database_in_memory": False,
        "notes": [],
        **more,
    }


def measured(machine: str = "m1", **more: Any) -> dict[str, Any]:
    counters = {
        "time": NOW,
        "machine": machine,
        "database": {"in_memory": True},
        "device": {"bytes_written": 1},
    }
    return {"counters": counters, "window": None, "since": None, **more}


GATE = {
    "verdict": "pass",
    "reason": "ok",
    "message": "fine",
    "fsyncs_per_second": 812.4,
    "p99_ms": 3.0,
    "time": NOW,
}
SLOW = {
    **GATE,
    "verdict": "fail",
    "reason": "slow",
    "message": "14 fsyncs per second, wanted 200",
    "fsyncs_per_second": 14.0,
}
AFTER = figures(transactions=6.0, device=0, database_in_memory=True)


def entry(**more: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "now": NOW,
        "in_run": True,
        "node": node(),
        "gate": GATE,
        "measured": measured(window=AFTER),
        "baseline": {"machine": "m1", "window": figures()},
    }
    return report_table.entry(**{**known, **more})


def test_table() -> None:
    report = report_table.build(
        {
            "pve1": entry(),
            "pve2": entry(
                node=node(ha__resources=["vm:100"], ha__disabled=False, corosync__copies_equal=False)
            ),
            "pve3": entry(
                in_run=False,
                gate=SLOW,
                node=node(corosync={}, ram_state={"state": "absent"}),
                measured=None,
                baseline={},
            ),
            "debian-by-itself": entry(
                node=node(corosync={}, ha={"installed": False}, ram_state={"state": "absent"}),
                gate=None,
                measured=measured(since=figures("since", 2.0, 53248)),
                baseline=None,
            ),
            "silent": entry(in_run=False, node=None, gate=None, measured=None, baseline=None),
        },
        NOW,
    )
    assert report["schema"] == "pveguard-report" and report["schema_version"] == 1
    text = report_table.render(report)
    assert text == (Path(__file__).parent / "golden_table.txt").read_text().rstrip("\n")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_nothing_known_still_gives_a_row() -> None:
    bare = report_table.entry(now=NOW, in_run=True)
    assert "unknown" in report_table.render(report_table.build({"a": bare}, NOW))
    assert not any(bare["writes"].values())
    assert json.loads(json.dumps(bare)) == bare


def test_a_report_without_nodes() -> None:
    assert report_table.render(report_table.build({}, NOW)).startswith("node")


def test_the_message_of_a_measurement_that_failed_is_in_the_notes() -> None:
    made = entry(measured={"failed": True, "msg": "disk on fire"})
    assert "no counters: disk on fire" in made["notes"]


@pytest.mark.parametrize(
    ("now", "since", "last", "transactions"),
    [
        # A window of this run is best.
        (AFTER, figures("since", 50.0, 1), figures(transactions=7.0), 6.0),
        # Then counters, when enough time has passed and they are complete.
        (None, figures("since", 5.0, 1), figures(transactions=7.0), 5.0),
        (None, figures("since", 5.0, 1, seconds=10.0), figures(transactions=7.0), 7.0),
        (None, figures("since", None, 1), figures(transactions=7.0), 7.0),
        (None, None, figures(transactions=7.0), 7.0),
        (None, None, None, None),
    ],
)
def test_which_figure_is_after(now: Any, since: Any, last: Any, transactions: float | None) -> None:
    former = {"machine": "m1", "writes": {"after": last}, "gate": None}
    after = entry(measured=measured(window=now, since=since), last=former)["writes"]["after"]
    assert (after or {}).get("transactions_per_minute") == transactions


SHORT = {
    "seconds": 20.3,
    "transactions_per_minute": None,
    "device_bytes_per_minute": None,
    "classes": [{"class": "ha", "label": "HA", "transactions": 36, "transactions_per_minute": None, "exact": True}],
}


def test_a_window_shorter_than_a_minute_is_shown_as_counted() -> None:
    made = entry(baseline={"machine": "m1", "window": figures(transactions=36, device=262144, **SHORT)})
    report = report_table.build({"pve1": made}, NOW)
    row = report_table.render(report).splitlines()[2]
    assert "36 in 20 s → 6" in row and "256 KiB in 20 s → 0 B" in row
    text = re.sub(r"<[^>]+>", " ", report_page.page(report))
    assert "36 in 20 s" in text and "before, in 20 s" in text and "went from" not in text
    metrics = report_metrics.render(report)
    assert 'pveguard_pmxcfs_transactions{node="pve1",when="before"} 36' in metrics
    assert 'pveguard_figures_seconds{node="pve1",when="before"} 20.3' in metrics
    assert 'pveguard_pmxcfs_transactions_per_second{node="pve1",when="before"}' not in metrics


def test_rates_that_an_earlier_version_scaled_up_are_not_told_again() -> None:
    scaled = figures(transactions=36, device=1000, seconds=20.0, lrm_status_nodes={"pve1": 108.0})
    scaled["transactions_per_minute"] = scaled["lrm_status_transactions_per_minute"] = 108.0
    scaled["classes"] = [{**SHORT["classes"][0], "transactions_per_minute": 108.0}]
    last = {"machine": "m1", "writes": {"after": scaled}}
    made = entry(baseline={"machine": "m1", "window": scaled}, measured=measured(), last=last)
    for when in ("before", "after", "observed"):
        found = made["writes"][when]
        assert found["transactions"] == 36 and found["transactions_per_minute"] is None
        assert found["classes"][0]["transactions_per_minute"] is None
        assert found["lrm_status_nodes"] == {"pve1": None}
    assert "108" not in report_table.render(report_table.build({"pve1": made}, NOW))


def at(hours: float, written: int, memory: bool = True, boot: str = "b1", disk: str = "8:0") -> dict[str, Any]:
    """Counters so many hours after the boot."""
    return {
        "time": NOW,
        "machine": "m1",
        "boot_id": boot,
        "uptime_seconds": hours * 3600.0,
        "database": {"in_memory": memory},
        "device": {"bytes_written": written, "device_number": disk, "device": "sda", "disk": "sda"},
    }


DRIVE = {"disk": "sda", "written_bytes": 10**12, "rated_tbw_bytes": 10**14, "rated_from": "table"}


def reported(counters: dict[str, Any], last: Any = None, window: Any = None, **more: Any) -> dict[str, Any]:
    seen = {"counters": counters, "window": window or AFTER, "since": None}
    return entry(measured=seen, last=last, wear={"disks": [DRIVE], "notes": []}, **more)


def test_years_are_told_from_the_writes_of_a_day_and_of_nothing_shorter() -> None:
    first = reported(at(10, 10**9))
    assert AFTER["device_bytes_per_minute"] is not None and first["writes"]["day"] is None
    (disk,) = first["disks"]
    assert disk["endurance"]["years_left"] is None and disk["endurance_before"]["years_left"] is None
    assert "a day or more, which are counted since 2026-11-20" in disk["endurance"]["notes"][-1]
    assert "counters of a day are needed" in report_page.page(report_table.build({"pve1": first}, NOW))
    # Reports in between begin nothing anew.
    second = reported(at(20, 2 * 10**9), first)
    assert second["rate_from"] == first["rate_from"] and second["writes"]["day"] is None
    third = reported(at(34, 25 * 10**9), second)
    assert third["writes"]["day"]["seconds"] == 86400 and third["writes"]["day"]["device_bytes"] == 24 * 10**9
    # 99 TB are left, at 24 GB a day.
    assert third["disks"][0]["endurance"]["years_left"] == pytest.approx(99e12 / 24e9 / 365.25, rel=0.01)
    # After a reboot the counters begin anew; what a day wrote is still known.
    fourth = reported(at(1, 0, boot="b2"), third)
    assert fourth["writes"]["day"] == third["writes"]["day"] and fourth["rate_from"]["boot_id"] == "b2"
    elsewhere = reported(at(90, 0, disk="8:16"), third)
    assert elsewhere["rate_from"]["device"]["device_number"] == "8:16"
    json.dumps(fourth)


def test_who_writes_is_told_of_the_longest_time() -> None:
    """Since boot at the first look, of a window, then of a day; each with the drives' own counters."""

    def looked(hours: float, units: int, total: int, **more: Any) -> dict[str, Any]:
        counters = at(hours, total, **more)
        league = sample.reading(hours * 3600.0, {"rrdcached.service": units}, 0, total)
        return {**counters, "league": {**league, "boot_id": counters["boot_id"]}}

    def now(node: dict[str, Any]) -> Any:
        return report_summary.league(node, "now")

    first = entry(measured={"counters": looked(10, 5000, 9000), "window": None, "since": None})
    assert now(first) is first["writes"]["since_boot"]["league"] and now(first)["since"] == "boot"
    assert now(first)["total_bytes"] == 9000 and report_summary.league(first, "before") is None
    window = {**AFTER, "league": sample.league(1)}
    second = reported(looked(10, 5000, 9000), window=window)
    assert now(second) == window["league"] and second["writes"]["since_boot"] is None
    third = reported(looked(40, 25_000, 49_000), second, window=window)
    assert now(third)["seconds"] == 30 * 3600 and now(third)["total_bytes"] == 40_000
    assert now(third)["rows"][0]["bytes"] == 20_000 and now(third)["rows"][0]["bytes_per_day"] == 16_000
    # After a reboot it is still known, and the counters begin anew.
    fourth = reported(looked(1, 0, 0, boot="b2"), third, window=window)
    assert now(fourth) == now(third) and fourth["rate_from"]["league"]["boot_id"] == "b2"


def test_counters_of_a_release_that_did_not_note_who_wrote_begin_anew() -> None:
    old = reported(at(10, 0))
    assert old["rate_from"]["league"] is None
    new = {**at(40, 10**6), "league": sample.reading(40 * 3600.0, {}, 0, 10**6)}
    made = reported(new, old)
    assert made["rate_from"]["uptime_seconds"] == 40 * 3600 and made["rate_from"]["league"] == new["league"]


def test_before_protection_who_wrote_since_boot_is_kept(tmp_path: Path) -> None:
    counters = {**at(30, 10**6, memory=False), "league": sample.reading(30 * 3600.0, {"rrdcached.service": 5000}, 0, 10**6)}
    window = {"counters": counters, "window": {**figures(), "league": sample.league(1)}, "since": None}
    (file,) = filters().baseline_files({"pve1": {"b": window}}, ["pve1"], str(tmp_path), "b")
    made = reported(at(31, 10**6), baseline=json.loads(file["content"]))
    before = report_summary.league(made, "before")
    assert before is not None and before["since"] == "boot" and before["seconds"] == 30 * 3600


def test_the_rate_begins_anew_when_a_measure_of_the_write_diet_is_switched_on_or_off() -> None:
    def with_measures(*names: str) -> dict[str, Any]:
        return {"write_diet": {each: {"kept": each in names} for each in ("rrdcached", "journald")}}

    first = reported(at(10, 0), node=with_measures())
    on = reported(at(40, 30 * 10**9), first, node=with_measures("rrdcached"))
    assert on["writes"]["day"] is None and on["rate_from"]["uptime_seconds"] == 40 * 3600
    later = reported(at(70, 33 * 10**9), on, node=with_measures("rrdcached"))
    assert later["writes"]["day"]["device_bytes"] == 3 * 10**9, "the same measures go on"
    unknown = reported(at(100, 36 * 10**9), later, node=None)
    assert unknown["rate_from"] == later["rate_from"], "nobody was asked"
    off = reported(at(130, 66 * 10**9), unknown, node=with_measures())
    assert off["writes"]["day"] is None and off["rate_from"]["uptime_seconds"] == 130 * 3600


def test_a_machine_that_was_set_back_to_a_snapshot_of_its_memory_is_counted_anew() -> None:
    before = reported(at(40, 10**9))
    # The same boot, less uptime, and yet the drive has more behind it.
    later = reported(at(2, 2 * 10**9), before)
    assert later["rate_from"]["uptime_seconds"] == 2 * 3600 and later["writes"]["day"] is None


def test_the_rate_of_a_day_before_protection_is_none_of_the_time_after_it() -> None:
    on_disk = reported(at(10, 0, memory=False))
    day = reported(at(40, 30 * 10**9, memory=False), on_disk)
    protected = reported(at(41, 30 * 10**9), day)
    assert protected["writes"]["day"] is None and protected["writes"]["day_before"] == day["writes"]["day"]
    assert protected["disks"][0]["endurance"]["years_left"] is None
    assert protected["disks"][0]["endurance_before"]["years_left"]
    # Moved back to the disk.
    back = reported(at(99, 30 * 10**9, memory=False), protected)
    assert back["writes"]["day"] is None and back["writes"]["day_before"] is None


@pytest.mark.parametrize(("hours", "known"), [(2, False), (30, True)])
def test_before_protection_the_time_since_boot_may_be_long_enough(hours: float, known: bool, tmp_path: Path) -> None:
    module = filters()
    window = {"counters": at(hours, 7 * 10**9, memory=False), "window": figures(), "since": None}
    (file,) = module.baseline_files({"pve1": {"b": window}}, ["pve1"], str(tmp_path), "b")
    made = reported(at(hours + 1, 7 * 10**9), baseline=json.loads(file["content"]))
    assert (made["writes"]["day_before"] is not None) == known
    assert (made["disks"][0]["endurance_before"]["years_left"] is not None) == known


def test_another_installation_of_the_same_name_inherits_nothing() -> None:
    made = entry(
        measured=measured(machine="m2"),
        gate=None,
        last={"machine": "m1", "writes": {"after": AFTER}, "gate": GATE},
    )
    assert not any(made["writes"].values())
    assert made["gate"]["verdict"] == "not measured"
    assert any("another installation" in note for note in made["notes"])


def test_the_gate_of_the_last_report_is_kept() -> None:
    made = entry(gate={"skipped": True}, last={"machine": "m1", "gate": GATE})
    assert made["gate"]["fsyncs_per_second"] == 812.4


@pytest.mark.parametrize(
    ("gate", "shown"), [(GATE, "812 ok"), (SLOW, "14 FAIL"), ({**GATE, "verdict": "warn"}, "812 warn")]
)
def test_a_warning_of_the_gate_is_no_refusal(gate: dict[str, Any], shown: str) -> None:
    made = entry(gate=gate)
    assert shown in report_table.render(report_table.build({"pve1": made}, NOW))
    assert (f"gate: {gate['message']}" in made["notes"]) == (gate is not GATE)


def test_ha_that_is_off_with_resources_is_said_loudly() -> None:
    made = entry(node=node(ha__resources=["vm:100"]))
    assert "HA is off but has resources: vm:100" in made["notes"]


def test_files(tmp_path: Path) -> None:
    module = filters()
    hostvars = {
        "pve1": {
            "pveguard_node": {"node": node()},
            "fsync_gate_result": GATE,
            "w": measured(window=AFTER),
            "b": measured(window=figures()),
        },
        "fe80::1/x": {"b": {"skipped": True}},
    }
    baseline = module.baseline_files(hostvars, ["pve1", "fe80::1/x", "gone"], str(tmp_path), "b")
    assert [file["path"] for file in baseline] == [f"{tmp_path}/baseline/pve1.json"]
    for file in baseline:
        _write(file)
    assert module.saved(str(tmp_path), "baseline", "pve1")["machine"] == "m1"

    (tmp_path / "gate.html").touch()
    report = module.report(hostvars, ["pve1", "fe80::1/x"], ["pve1", "fe80::1/x"], str(tmp_path), "w")
    assert report["nodes"]["pve1"]["writes"]["before"]["transactions_per_minute"] == 108.0
    files = module.report_files(report, str(tmp_path))
    names = [str(Path(file["path"]).relative_to(tmp_path)) for file in files]
    day = report["time"][:10]
    kinds = ("report.json", "index.html", "pveguard.prom")
    copies = {"latest.json", "index.html", "pveguard.prom"}
    assert set(names) == {*copies, *(f"{day}/{kind}" for kind in kinds), "last/pve1.json"}
    for file in files:
        _write(file)
    assert module.saved(str(tmp_path), "last", "pve1")["counters"]["machine"] == "m1"
    assert json.loads((tmp_path / "latest.json").read_text()) == report
    for folder, wanted, other in ((tmp_path, "gate.html", "../gate.html"), (tmp_path / day, "../gate.html", "gate.html")):
        page = (folder / "index.html").read_text()
        assert page.count(f'href="{wanted}"') == 1 and f'href="{other}"' not in page
    (tmp_path / "gate.html").unlink()
    for file in module.report_files(report, str(tmp_path)):
        assert 'gate.html"' not in file["content"]


def test_only_old_folders_of_reports_are_old_reports(tmp_path: Path) -> None:
    def make(name: str, *files: str) -> Path:
        for file in files:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).touch()
        return tmp_path / name

    old = [make("2026-08-21", "gate.json"), make("2026-08-22", "report.json", "index.html", "pveguard.prom", "gate.json")]
    make("2026-08-23", "report.json")  # 90 days ago
    make("2026-11-21", "report.json")
    make("2027-01-01", "report.json")
    make("2026-08-20", "report.json", "my notes.txt")
    for name in ("20260101", "2026-W01-1", "2026-13-01", "2026-01-01-mine", "last", "baseline"):
        make(name, "report.json")
    make("2026-08-19").symlink_to(old[0])
    (tmp_path / "2026-08-18").write_text("a file")
    (make("2026-08-17", "report.json") / "gate.json").mkdir()
    prune = filters().old_reports
    now = "2026-11-21T12:00:00Z"
    assert prune(str(tmp_path), now, 90) == [str(path) for path in old]
    assert prune(str(tmp_path), now, "91") == [str(old[0])], "-e gives text"
    assert prune(str(tmp_path), now, 0) == prune(str(tmp_path / "none"), now, 90) == []


def test_saved_files_that_are_no_use_are_nothing(tmp_path: Path) -> None:
    module = filters()
    (tmp_path / "last").mkdir()
    for text in ("", "[]", "{"):
        (tmp_path / "last" / "a.json").write_text(text)
        assert module.saved(str(tmp_path), "last", "a") == {}


def test_peers_and_watchdogs() -> None:
    module = filters()
    hostvars: dict[str, dict[str, Any]] = {
        name: {"pveguard_node": {"node": node(corosync__cluster_name=cluster, ha__watchdog_off=off, ha__managers_off=True)}}
        for name, cluster, off in (
            ("a", "one", True),
            ("b", "one", False),
            ("c", "two", False),
            ("d", None, True),
        )
    }
    hostvars["e"] = {}
    assert module.cluster_peers(hostvars, list("abcde"), "a") == ["a", "b"]
    assert module.cluster_peers(hostvars, list("abcde"), "d") == ["d"]
    assert module.cluster_peers(hostvars, list("abcde"), "e") == ["e"]
    assert module.ha_on(hostvars, ["a", "b", "e"]) == ["b", "e"]
    hostvars["a"]["pveguard_node"]["node"]["ha"]["leftovers"] = ["ha/manager_status"]
    assert module.ha_on(hostvars, ["a"]) == ["a"]
    hostvars["b"]["asked"] = {"ha": {"watchdog_active": True}}
    assert module.ha_watchdog_holders(hostvars, ["a", "b"], "asked") == ["b"]
    assert module.FILTERS["pveguard_bytes"](4096) == "4 KiB"


def _write(file: dict[str, str]) -> None:
    path = Path(file["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(file["content"])
