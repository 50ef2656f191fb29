# SPDX-License-Identifier: Apache-2.0
"""The page of a report: what an operator reads, what stays unknown, and that nothing gets out of its place."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.disk import drive_endurance
from ansible.module_utils.pveguard.report import (
    charts,
    page_parts,
    pages,
    report_page,
    report_summary,
    report_table,
)

from tests.gate.test_gate_page import EVIL, Document, body, colours, contrast
from tests.loading import load_file

from . import sample

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = pages.LIBRARY.read_text()


def hostile() -> dict[str, Any]:
    """A report in which every text is hostile."""
    kept = {"verdict", "method", "attribution", "mode", "class", "time", "from", "to"}

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [spoil(each, key) for each in value]
        return EVIL if isinstance(value, str) and key not in kept else value

    report = sample.four()
    report["nodes"] = {name + EVIL: spoil(node) for name, node in report["nodes"].items()}
    for node in report["nodes"].values():
        node["assessment"] = {"findings": [{"level": "problem", "text": EVIL}], "changes": [EVIL]}
    return report


def page(report: dict[str, Any], **more: Any) -> str:
    return report_page.page(report, "gate.html", **more)


def words(report: dict[str, Any], **more: Any) -> str:
    document = Document(body(page(report, **more)))
    return " ".join(" ".join(document.words).split())


SAMPLES = [
    sample.three,
    sample.four,
    sample.fifty,
    sample.nothing,
    hostile,
    lambda: report_table.build({}, sample.NOW),
]


@pytest.mark.parametrize("make", SAMPLES, ids=["three", "four", "fifty", "nothing", "hostile", "empty"])
def test_the_page_is_well_formed_and_calls_nobody(make: Any) -> None:
    whole = page(make())
    whole.encode()
    assert whole.count("<script>") == 2 == whole.count("</script>"), "only the library and what draws"
    document = Document(body(whole))
    assert not {name for name, _ in document.elements} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "base",
        "form",
    }
    attributes = {key for _, each in document.elements for key in each}
    assert not {key for key in attributes if key.startswith("on")} and "src" not in attributes
    links = {each["href"] for each in document.all("a")}
    assert all(link == "gate.html" or str(link).startswith("#") for link in links)
    identities = [each["id"] for _, each in document.elements if "id" in each]
    assert len(identities) == len(set(identities))
    assert "sourceMappingURL" not in whole and not re.search(r"https?://", body(whole))


def test_only_the_scripts_of_the_page_may_run() -> None:
    whole = page(sample.three())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', whole)
    assert policy is not None and policy[1].startswith("default-src 'none'; ")
    scripts = re.findall(r"(?s)<script>(.*?)</script>", whole)
    wanted = " ".join(f"'{pages.source(script)}'" for script in scripts)
    assert policy[1].endswith(f"script-src {wanted}") and "script-src 'unsafe" not in policy[1]
    with pytest.raises(ValueError, match="would end before its end"):
        pages.embeddable("a = '</SCRIPT>'")


def test_hostile_texts_are_shown_as_they_are_and_stay_in_their_attribute() -> None:
    document = Document(body(page(hostile())))
    assert '<script>alert("1")</script>' in "".join(document.words)
    for canvas in document.all("canvas"):
        json.loads(canvas["data-chart"] or "")


def test_what_an_operator_reads_first() -> None:
    text = words(sample.four())
    assert "2 of 4 nodes are safe and quiet." in text and "Transactions went from 117 to 6 a minute" in text
    assert "last measured 3 d 3 h ago" in text, "a node that left the run, with its age"
    assert "19.5 times less" in text and "≥ 108" in text and "HA heartbeat (lrm_status)" in text
    assert "not tried: it would write 2.6 GiB, the budget is 64 MiB" in text
    parts = re.findall(r'<section id="(\w+)"', page(sample.four()))
    assert parts == ["now", "changed", "writers", "drives", "gates", "hardening", "next"]


def test_a_probe_is_not_counted_among_the_nodes_that_are_protected() -> None:
    report = sample.three()
    first = next(iter(report["nodes"]))
    report["nodes"][first]["cluster"]["probe"] = True
    report["nodes"][first]["ram_state"] = {**report["nodes"][first]["ram_state"], "state": "absent"}
    shown = words(report)
    assert "State in RAM 2 of 2" in shown and "Nodes with HA off 2 of 2" in shown
    assert "Nodes with quorum 3 of 3" in shown


def test_all_well_says_so_and_has_nothing_to_do() -> None:
    report = report_table.build({"pve1": sample.entry("pve1")}, sample.NOW)
    assert report_summary.overall(report)[0] == "pass" and report_summary.steps(report) == []
    assert "pve1 is safe and quiet." in words(report) and "Nothing. A second run" in words(report)


def test_unknown_is_never_counted_as_good() -> None:
    kind, sentence = report_summary.overall(sample.nothing())
    assert kind == "unknown" and "silent is not known" in sentence
    text = words(sample.nothing())
    assert "0 B" not in text and "safe and quiet" not in text.replace("Is it safe and quiet now?", "")


@pytest.mark.parametrize(
    ("changes", "kind", "says", "code"),
    [
        ({"corosync__quorate": False}, "fail", "no quorum", "corosync-quorumtool -s"),
        ({"corosync__live_member_ids": [1, 2]}, "warn", "1 of 3 members", "pvecm status"),
        ({"corosync__copies_equal": False}, "fail", "copies of corosync.conf differ", "diff /etc/pve"),
        ({"pmxcfs__mode": "down"}, "fail", "/etc/pve is not mounted", "journalctl -u pve-cluster"),
        ({"ram_state__state": "failed"}, "fail", "RAM state is failed", "pve-state status"),
        ({"ram_state__state": "absent"}, "warn", "database is on disk", "ram_state_enabled: true"),
        ({"ram_state__lag_seconds": 90}, "warn", "1 min 30 s old", "pve-state status"),
        ({"ram_state__generations_damaged": 1}, "warn", "1 saved generation is damaged", "pve-state verify"),
        ({"ha__disabled": False, "ha__enabled": True}, "warn", "HA runs although nothing", "ha_state: auto"),
        (
            {"ha__resources": ["vm:100"], "ha__unattended": ["vm:100"], "ha__disabled": False, "ha__watchdog_off": False},
            "fail",
            "HA is off but has resources (vm:100)",
            "ha_state: enabled",
        ),
        ({"ha__returned": ["pve-ha-lrm.service"]}, "warn", "came back (pve-ha-lrm.service)", "make site"),
        ({"ha__resources": ["vm:100"]}, "fail", "HA is off but has resources (vm:100)", "ha_state: enabled"),
    ],
)
def test_each_fault_is_named_with_what_helps(
    changes: dict[str, Any], kind: str, says: str, code: str
) -> None:
    report = report_table.build(
        {"pve1": sample.entry("pve1", node=sample.facts("pve1", **changes))}, sample.NOW
    )
    assert report_summary.overall(report)[0] == kind
    steps = [step for step in report_summary.steps(report) if any(says in text for _, text in step.reasons)]
    assert len(steps) == 1 and code in steps[0].code and steps[0].todo
    assert says in words(report) and steps[0].code in words(report)


def test_variables_and_commands_of_the_steps_exist() -> None:
    source = "\n".join(f"{each.fix} {each.code}" for _, each in load_file("scripts/finding_docs.py").checks().values())
    specs = "".join(path.read_text() for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    variables = set(re.findall(r"\b((?:ram_state|ha)_[a-z_]+): ", source))
    assert variables and all(f"{name}:" in specs for name in variables)
    assert set(re.findall(r"make (site|report|gate|join|assess)", source)) <= targets


def test_a_plain_debian_host_is_no_fault() -> None:
    facts = sample.facts("debian", packages={"pve-cluster": None}, pmxcfs={"mode": "down"}, corosync={})
    facts = {**facts, "ha": {"installed": False}, "ram_state": {"state": "absent"}}
    report = report_table.build({"debian": sample.entry("debian", node=facts)}, sample.NOW)
    assert report_summary.overall(report)[0] == "pass" and "no Proxmox" in words(report)


def test_fifty_nodes_stay_readable() -> None:
    whole = page(sample.fifty())
    document = Document(body(whole))
    for canvas in document.all("canvas"):
        assert len(json.loads(canvas["data-chart"] or "")["rows"]) <= page_parts.MAX_NODES
    # What is alike is said once.
    texts = [step for step in report_summary.steps(sample.fifty()) if "ha_state" in step.code]
    assert len(texts) == 1 and texts[0].nodes == ("node10", "node20", "node30", "node40")
    assert len(whole) < 600_000


def test_charts_have_text_alternatives_and_headings_have_no_gap() -> None:
    document = Document(body(page(sample.four())))
    canvases = document.all("canvas")
    # Four nodes have one each of who writes to their drives.
    assert len(canvases) == 5 + 4 and all(each["role"] == "img" for each in canvases)
    assert any("pve1: before 117, now 6" in (each["aria-label"] or "") for each in canvases)
    levels = [int(name[1]) for name, _ in document.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(document.all("table")) == len(document.all("caption"))


def test_without_the_library_every_figure_is_still_there() -> None:
    bare = report_page.page(sample.four(), scripts=False)
    assert "<script" not in bare and "≥ 108" in bare and "4.01 MiB" in bare and ".chart { display: none" in bare


def test_the_look_of_assess_says_that_nothing_was_changed() -> None:
    report = sample.three()
    report["nodes"]["pve1"]["assessment"] = {
        "findings": [{"level": "warning", "text": "the watchdog is armed"}],
        "changes": ["stop and mask watchdog-mux.service"],
    }
    text = words(report, look_only=True)
    assert "Nothing was changed on any node." in text and "stop and mask watchdog-mux.service" in text


def test_the_library_is_the_one_that_was_published() -> None:
    known = re.search(r"Chart\.js ([\d.]+).*?`([0-9a-f]{64})`", (ROOT / "docs/report.md").read_text(), re.S)
    assert known is not None
    assert hashlib.sha256(pages.LIBRARY.read_bytes()).hexdigest() == known[2]
    assert f"Chart.js v{known[1]}" in LIBRARY[:200] and "MIT License" in LIBRARY[:400]
    assert "Permission is hereby granted" in pages.LIBRARY.with_name("chart.LICENSE.md").read_text()


def test_series_are_told_apart_from_the_page() -> None:
    for scheme in (colours("light"), colours("dark")):
        assert all(contrast(scheme[name], scheme["card"]) >= 3 for name in (*charts.SERIES, charts.REST))


def test_bars_need_a_value_for_each_row() -> None:
    with pytest.raises(ValueError, match="one value for each of 2 rows"):
        charts.bars("t", "d", ["a", "b"], [charts.Series("s", [1.0])])


def test_drives_keep_what_they_told_and_unknown_rates_stay_unknown() -> None:
    other = sample.drive("sdz")
    made = sample.entry(
        "pve1",
        wear={"disks": [sample.drive("/dev/nvme0n1"), other], "notes": ["no smartctl"]},
    )
    rates = {"endurance": 92_000.0 * 1440, "endurance_before": 4.2e6 * 1440}
    for key, rate in rates.items():
        behind, elsewhere = (disk[key] for disk in made["disks"])
        assert behind == drive_endurance.endurance(sample.drive(), rate) and behind["years_left"]
        assert elsewhere["years_left"] is None, "only the drive behind the store has a rate"
    assert "drives: no smartctl" in made["notes"]
    later = sample.entry("pve1", wear=None, last=made)
    assert later["disks"] == made["disks"]
    assert [disk["disk"] for disk in later["disks"]] == ["/dev/nvme0n1", "sdz"] and later[
        "disks_time"
    ] == sample.NOW
    failed = sample.entry("pve1", measured={"failed": True, "msg": "no python"}, wear=None, last=made)
    assert len(failed["disks"]) == 2 and "no counters: no python" in failed["notes"]


def test_a_drive_that_lasts_at_least_some_time_is_no_guess() -> None:
    # 99 times what it got so far, at 92,000 bytes a minute.
    unused = sample.drive(percentage_used=0, written_bytes=5_900_000_000, rated_tbw_bytes=None)
    made = sample.entry("pve1", wear={"disks": [unused], "notes": []})
    report = report_table.build({"pve1": made}, sample.NOW)
    assert "at least 12 years" in words(report)


def test_amplification_is_kept_with_its_age() -> None:
    first = sample.entry("pve1", amplification=sample.AMPLIFICATION)
    later = sample.entry("pve1", now="2026-11-22T12:40:00Z", last=first, amplification={"skipped": True})
    assert later["amplification"]["cases"][1]["factor"] == 335.3 and later["amplification_time"] == sample.NOW


def test_who_wrote_is_kept_when_later_reports_only_read_counters() -> None:
    first = sample.entry("pve1")
    since = {**sample.window(6, 0, True), "method": "since", "seconds": 3600.0}
    later = sample.entry(
        "pve1", last=first, measured={"counters": first["counters"], "window": None, "since": since}
    )
    assert later["writes"]["after"]["method"] == "since"
    assert later["writes"]["observed"]["classes"][0]["class"] == "locks"
    assert "locks of the scheduler" in words(report_table.build({"pve1": later}, sample.NOW))
