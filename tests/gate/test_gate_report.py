# SPDX-License-Identifier: Apache-2.0
"""The gates' report as data and as a table: verdicts, refusals, what is unknown, kept or has drifted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.pveguard.report import gate_page, gate_report

from . import sample

LATER = "2026-11-23T10:20:00Z"


def entry(**known: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "now": sample.NOW,
        "in_run": True,
        "disk_thresholds": sample.DISK_LIMITS,
        "link_thresholds": sample.LINK_LIMITS,
    }
    return gate_report.entry(**{**base, **known})


def three(now: str = sample.NOW, last: dict[str, Any] | None = None) -> dict[str, Any]:
    nodes = {
        name: entry(now=now, last=((last or {}).get("nodes") or {}).get(name), **known)
        for name, known in sample.three().items()
    }
    return gate_report.build(nodes, now, sample.TOKEN, last)


def saved(report: dict[str, Any]) -> dict[str, Any]:
    """As the next run reads it."""
    return gate_report.usable(json.loads(json.dumps(report)))


def test_refused_nodes_and_the_ones_that_stay() -> None:
    nodes = three()["nodes"]
    assert {name: node["verdict"] for name, node in nodes.items()} == {
        "pve1": "warn",
        "pve2": "fail",
        "pve3": "fail",
    }
    assert [nodes[name]["refused_for"] for name in nodes] == [[], ["disk"], ["links"]]


def test_both_ends_of_a_link_are_one_pair_with_the_worse_figures() -> None:
    pairs = {gate_report.pair_name(pair): pair for pair in three()["pairs"]}
    assert len(pairs) == 6
    sound, bad = pairs["pve1 - pve2, link 0"], pairs["pve1 - pve3, link 0"]
    assert (sound["verdict"], sound["rtt_p99_ms"], sound["measured_by"]) == ("pass", 0.48, ["pve1", "pve2"])
    # pve1 only warns, because pve3 is refused for it; the link is bad from either end.
    assert (bad["verdict"], bad["reason"], bad["loss_percent"]) == ("fail", "loss", 2.17)


def test_table_says_what_is_wrong_and_what_to_do() -> None:
    table = gate_report.render(three())
    assert max(len(line) for line in table.splitlines()) <= 100
    assert not any(line != line.rstrip() for line in table.splitlines())
    assert "FAIL slow" in table and "14.1 (13.6-14.6)" in table
    assert "pve1 - pve3             0     43.9" in table and "FAIL loss" in table
    # Four links are well: one row with the worst of them.
    assert "worst of the other 4          0.48      0.77      1.3" in table
    assert "pve1 - pve2" not in table
    refused = table[table.index("Refused:") :]
    assert "(fsync_gate_min_fsyncs)" in refused and "this disk is virtual" in refused
    assert "(link_gate_loss_fail_percent)" in " ".join(refused.split()) and "ethtool -S" in refused
    assert "pve1: bad links to pve3, which is refused for them" in table
    assert "Token timeout:\n  lab: a slow round of 2 nodes" in table


def test_links_that_cannot_be_measured_keep_their_names() -> None:
    silent = dict.fromkeys(
        ("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms", "jitter_ms", "loss_percent", "path_mtu", "load")
    )
    bad = {**silent, "verdict": "fail", "reason": "address_missing", "reasons": ["address_missing"]}
    entries = [sample.link("pve2", 1, (0, 0, 0), **bad), sample.link("pve3", 0, (0.1, 0.2, 0.3))]
    table = gate_report.render(gate_report.build({"pve1": entry(links=sample.links(entries))}, sample.NOW))
    row = next(line for line in table.splitlines() if line.startswith("pve1 - pve2"))
    assert row.split()[3:] == ["1", *["unknown"] * 6, "FAIL", "address", "missing"] and len(row) <= 100


def test_links_that_are_all_well_are_one_row() -> None:
    well = sample.links(
        [sample.link("b", 0, (0.2, 0.4, 0.9)), sample.link("b", 1, (0.1, 0.2, 0.7), path_mtu=9000)]
    )
    table = gate_report.render(
        gate_report.build({"a": entry(disk=sample.sound_disk(), links=well)}, sample.NOW)
    )
    rows = [line for line in table.splitlines() if line.startswith("worst of all 2")]
    assert len(rows) == 1 and rows[0].split()[4:] == [
        "0.4",
        "0.64",
        "0.9",
        "0.04",
        "0",
        "1500",
        "pass",
    ]
    assert "Refused" not in table and "Warnings" not in table


def test_what_was_not_measured_is_unknown() -> None:
    report = gate_report.build({"pve1": entry(in_run=False)}, sample.NOW)
    node = report["nodes"]["pve1"]
    assert node["verdict"] == report["verdict"] == "unknown"
    assert node["disk"]["fsyncs_per_second"] is None and node["links"]["rtt_p99_ms"] is None
    table = gate_report.render(report)
    assert table.splitlines()[2].split() == ["pve1", *["unknown"] * 7]
    assert "pve1: left the run before the report" in table


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [("no_links", "pass"), ("no_peers", "pass"), ("check_mode", "unknown"), ("not_asked", "unknown")],
)
def test_a_node_without_links_is_not_unknown_for_it(reason: str, verdict: str) -> None:
    assert entry(disk=sample.sound_disk(), links=sample.not_measured(reason))["verdict"] == verdict


def test_a_module_that_failed_is_unknown_and_says_why() -> None:
    node = entry(
        in_run=False, disk={"failed": True, "msg": "python3 was not found"}, last=three()["nodes"]["pve1"]
    )
    assert (node["disk"]["verdict"], node["disk"]["reason"]) == ("unknown", "error")
    assert "pve1: disk: python3 was not found" in gate_report.render(
        gate_report.build({"pve1": node}, sample.NOW)
    )


def test_refused_by_the_plan() -> None:
    plan = {"action": "refuse", "reason": "its database holds guests"}
    node = entry(in_run=False, plan=plan)
    assert (node["verdict"], node["refused_for"]) == ("fail", ["plan"])
    assert "Refused:\n  pve9: its database holds guests" in gate_report.render(
        gate_report.build({"pve9": node}, sample.NOW)
    )


@pytest.mark.parametrize(
    "reason",
    ["missing", "not_a_directory", "read_only", "full", "denied", "stalled", "io_error", "lying", "slow"],
)
def test_every_refusal_of_a_disk_says_what_to_do(reason: str) -> None:
    broken = sample.disk(
        {"pveperf": sample.method(14, 60, 0.2, 90)},
        verdict="fail",
        reason=reason,
        message="broken",
        transport=None,
    )
    assert gate_report.advice(entry(in_run=False, disk=broken, links=sample.not_measured("no_links")))


def test_a_disk_without_figures_has_its_row() -> None:
    """What fsync_bench returns for a path that does not exist: a verdict, and null for every figure."""
    missing = {
        "verdict": "fail",
        "reason": "missing",
        "message": "/srv/x does not exist",
        "methods": {},
        "suspect": [],
    }
    table = gate_report.render(gate_report.build({"pve1": entry(in_run=False, disk=missing)}, sample.NOW))
    assert "FAIL missing" in table and "/srv/x does not exist" in table


def test_nodes_that_this_run_did_not_measure_are_kept_with_their_age() -> None:
    first = saved(three())
    alone = {"pve1": entry(now=LATER, last=first["nodes"]["pve1"], disk=sample.sound_disk(time=LATER))}
    second = gate_report.build(alone, LATER, {}, first)
    assert list(second["nodes"]) == ["pve1", "pve2", "pve3"]
    kept = second["nodes"]["pve2"]
    assert (kept["disk"]["kept"], kept["disk"]["age_days"], kept["refused_for"]) == (True, 2.0, [])
    assert kept["disk"]["fsyncs_per_second"] == 14.1
    assert not second["nodes"]["pve1"]["disk"]["kept"] and second["nodes"]["pve1"]["links"]["kept"]
    assert second["clusters"]["lab"]["kept"] and second["clusters"]["lab"]["age_days"] == 2.0
    table = gate_report.render(second)
    assert "FAIL slow, 2 days old" in table and max(map(len, table.splitlines())) <= 100


def test_the_age_grows_and_the_entry_goes_in_the_end() -> None:
    first = saved(three())
    again = saved(gate_report.build({}, LATER, {}, first))
    assert again["nodes"]["pve2"]["disk"]["age_days"] == 2.0
    third = gate_report.build({}, "2026-12-01T10:20:00Z", {}, again)
    assert third["nodes"]["pve2"]["disk"]["age_days"] == 10.0
    assert gate_report.build({}, "2027-03-01T10:20:00Z", {}, saved(third))["nodes"] == {}


def test_drift_of_a_disk_and_of_a_link() -> None:
    first = saved(three())
    slower = sample.disk(
        {"pveperf": sample.method(800, 1.1, 0.3, 9.0)},
        time=LATER,
        kernel="6.17.4-1-pve",
        message="800 fsyncs per second",
    )
    worse = sample.links([sample.link("pve2", 0, (0.9, 2.4, 4.0))], time=LATER)
    second = gate_report.build(
        {"pve1": entry(now=LATER, last=first["nodes"]["pve1"], disk=slower, links=worse)}, LATER, {}, first
    )
    drift = second["nodes"]["pve1"]["disk"]["drift"]
    assert drift["fsyncs_per_second_before"] == 2243.3 and drift["fsyncs_per_second_change_percent"] == -64.3
    assert drift["changed"] == ["kernel"] and drift["notable"]
    pair = next(p for p in second["pairs"] if p["nodes"] == ["pve1", "pve2"] and p["link"] == 0)
    # pve2 was not asked: what it saw two days ago is not mixed into what was measured now.
    assert (pair["measured_by"], pair["rtt_p99_ms"], pair["kept"]) == (["pve1"], 2.4, False)
    assert pair["drift"]["rtt_p99_ms_change_percent"] == 400.0
    table = gate_report.render(second)
    assert "2243.3 to 800 a second" in table and "pve1 - pve2, link 0: since" in table


def test_the_drift_that_the_node_knows_goes_before() -> None:
    known = {"since": sample.BEFORE, "notable": False, "message": "x", "changed": []}
    assert entry(disk=sample.sound_disk(drift=known), last=three()["nodes"]["pve1"])["disk"]["drift"] == known


def test_stored_results_say_so() -> None:
    for age, said in ((3.2, "3.2 days old"), (0.5, "12 h old"), (0.01, "< 1 h old")):
        node = entry(disk=sample.sound_disk(cached=True, age_days=age))
        assert f"pass, {said}" in gate_report.render(gate_report.build({"pve1": node}, sample.NOW))


def test_a_power_cut_of_another_drive_says_nothing() -> None:
    proof = {"verdict": "convicted", "drive_identity": "another", "time": sample.BEFORE}
    assert entry(disk=sample.sound_disk(), power_cut=proof)["disk"]["power_cut"] is None
    same = entry(disk=sample.sound_disk(), power_cut={**proof, "drive_identity": "eui.0025385b71b0a1c2"})
    assert same["disk"]["power_cut"] == {"verdict": "convicted", "time": sample.BEFORE}


def test_long_and_hostile_names_stay_in_their_columns() -> None:
    name = "pve\x1b[31m" + "x" * 80
    disk = sample.sound_disk(block_device={"disks": [{"name": "sda", "model": "M\nODEL\x07" * 20}]})
    links = sample.links(
        [sample.link("y" * 70, 0, (9.0, 12.0, 15.0), verdict="fail", reason="rtt", reasons=["rtt"])]
    )
    table = gate_report.render(gate_report.build({name: entry(disk=disk, links=links)}, sample.NOW))
    assert all(char.isprintable() or char == "\n" for char in table)
    assert max(len(line) for line in table.splitlines()) <= 100
    assert "pass" in table.splitlines()[2]


def test_keys_are_those_that_the_documentation_names() -> None:
    report = three()
    assert sorted(report) == ["clusters", "nodes", "pairs", "schema", "schema_version", "time", "verdict"]
    assert (report["schema"], report["schema_version"]) == ("pveguard-gate", 1)
    node = report["nodes"]["pve1"]
    assert sorted(node) == ["disk", "in_run", "links", "notes", "plan", "refused_for", "time", "verdict"]
    unknown = entry()
    # Whoever reads the file finds every key, measured or not.
    assert set(node["disk"]) == set(unknown["disk"]) and set(node["links"]) == set(unknown["links"])
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
    "value", [None, [], {}, {"schema": "pveguard-gate", "schema_version": 2, "nodes": {}}, {"schema": "x"}]
)
def test_a_file_of_another_schema_is_not_read(value: Any) -> None:
    assert gate_report.usable(value) == {}


def test_a_link_that_only_the_sound_end_measured_is_bad_all_the_same() -> None:
    """pve2 is refused for it before it measured anything itself; pve1 has no more than a warning."""
    blamed = sample.link(
        "pve2", 0, (40.0, 44.0, 61.0), verdict="warn", reason="peer_refused", reasons=["rtt"]
    )
    report = gate_report.build({"pve1": entry(links=sample.links([blamed], verdict="warn"))}, sample.NOW)
    assert [(pair["verdict"], pair["reason"]) for pair in report["pairs"]] == [("fail", "rtt")]
    assert "FAIL rtt" in gate_report.render(report)


def test_a_member_that_failed_and_stays_was_not_refused() -> None:
    node = entry(in_run=True, disk=sample.throttled_disk(), plan={"action": "adopt", "reason": ""})
    assert (node["verdict"], node["refused_for"]) == ("fail", [])
    table = gate_report.render(gate_report.build({"pve2": node}, sample.NOW))
    assert "Failed:" in table and "Refused" not in table


def failed_protection(**more: Any) -> dict[str, Any]:
    """A node whose drive says that its power-loss protection has failed."""
    broken = sample.disk(
        {"pveperf": sample.method(3000, 0.3, 0.2, 3)},
        **{
            "verdict": "warn",
            "reason": "health",
            "message": "nvme0n1: the backup of its volatile memory has failed",
            "power_loss_protection": False,
            **more,
        },
    )
    broken["block_device"]["disks"][0].update(
        power_loss_failed=True,
        power_loss_rule="its power-loss protection has failed: NVMe critical warning 0x10",
        health=["the backup of its volatile memory has failed"],
    )
    return entry(disk=broken, links=sample.not_measured("no_links"))


def test_a_drive_that_complains_is_a_warning_with_what_helps() -> None:
    node = failed_protection()
    assert node["disk"]["drives"][0]["power_loss_failed"] is True
    report = gate_report.build({"pve1": node}, sample.NOW)
    table = " ".join(gate_report.render(report).split())
    assert "warn health" in table and "backup of its volatile memory has failed" in table
    assert "replace the drive" in table
    both = failed_protection(reason="suspect")
    assert [text.partition(" ")[0] for text in gate_report.advice(both)] == ["prove", "read"]
    page = gate_page.page(report)
    assert "lost with the power: nvme0n1: its power-loss protection has failed: NVMe critical warning 0x10" in page


def test_a_rate_of_another_loop_has_no_drift() -> None:
    """pveperf's loop once wrote before it synced; its rate then is not compared with the one of now."""
    last = three(now="2026-11-14T09:02:11Z")
    for node in last["nodes"].values():
        node["disk"]["fsyncs_per_second"], node["disk"]["fsyncs_per_second_interval"] = 1e6, None
    disk = {**sample.three()["pve1"]["disk"], "drift": None, "cached": False, "time": LATER}
    assert entry(disk=disk, last=last["nodes"]["pve1"])["disk"]["drift"]["notable"]
    disk["measures"] = "fsync of a truncated file, written to afterwards"
    assert entry(disk=disk, last=last["nodes"]["pve1"])["disk"]["drift"] is None
