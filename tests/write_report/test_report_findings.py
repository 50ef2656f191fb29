# SPDX-License-Identifier: Apache-2.0
"""What the report judges by its own figures: drives, gates, and nodes of which too little is known."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.base import findings as base
from ansible.module_utils.pveguard.base.findings import PROBLEM, UNKNOWN, WARNING, Finding
from ansible.module_utils.pveguard.disk import drive_findings
from ansible.module_utils.pveguard.gates import gate_findings
from ansible.module_utils.pveguard.report import report_page, report_summary, report_table

from tests.findings import finding, well_said

from . import sample


def of(**more: Any) -> list[Finding]:
    return report_summary.findings(sample.entry("pve1", **more), sample.NOW)


def drive(**changes: Any) -> list[Finding]:
    return drive_findings.findings([sample.drive(**changes)])


def test_drives() -> None:
    assert drive() == []
    assert finding(drive(health=["it is warm"]), "drive-health").severity == WARNING
    assert finding(drive(health=["it fails"], health_passed=False), "drive-health").severity == PROBLEM
    assert finding(drive(spare_percent=9), "drive-spare-low").severity == PROBLEM and drive(spare_percent=10) == []
    assert [each.severity for used in (79, 80, 100) for each in drive(percentage_used=used)] == [WARNING, PROBLEM]
    assert finding(drive(percentage_used=101), "drive-life-used").code == "smartctl -x /dev/nvme0n1"
    assert "3 media errors" in finding(drive(media_errors=3), "drive-media-errors").text
    assert finding(drive(endurance={"years_left": 0.5}), "drive-life-short").severity == WARNING
    assert len(drive_findings.findings([sample.drive(media_errors=1), sample.drive("sda", media_errors=1)])) == 2


@pytest.mark.parametrize(("verdict", "severity"), [("fail", PROBLEM), ("warn", WARNING)])
def test_gates(verdict: str, severity: str) -> None:
    result = {"verdict": verdict, "message": "14 fsyncs per second: too few"}
    disk = finding(gate_findings.findings(result, None), "gate-disk")
    assert disk.severity == severity and disk.headline == disk.text == "gate, disk: 14 fsyncs per second: too few"
    assert finding(gate_findings.findings({"verdict": "pass"}, {**result, "message": None, "reason": "rtt"}), "gate-links").code
    assert gate_findings.findings({"verdict": "not measured"}, {"verdict": "unknown"}) == []


def test_nodes_of_which_little_is_known() -> None:
    gone = finding(of(in_run=False), "report-left-run")
    assert gone.severity == UNKNOWN and "make report" in gone.helps
    assert "no counters" in finding(of(measured=None, last=None), "report-no-counters").text
    assert finding(of(node=None), "report-no-facts").severity == UNKNOWN


def test_what_a_later_role_judges_reaches_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Finding("diet-off", WARNING, "the write diet is off", "Switch it on.", "write_diet: true")
    later = type("later_findings", (), {"of_report": staticmethod(lambda node: [said])})
    monkeypatch.setattr(base, "_cores", lambda: [later])
    entry = sample.entry("pve1")
    assert entry["findings"] == [said.as_dict()]
    assert finding(report_summary.findings(entry, sample.NOW), "diet-off") == said
    whole = report_page.page(report_table.build({"pve1": entry}, sample.NOW))
    assert "the write diet is off" in whole and "write_diet: true" in whole
    # It is told of what was seen in this run.
    assert sample.entry("pve1", node=None)["findings"] == []


def test_everything_that_the_report_says_ends_with_what_helps() -> None:
    facts = sample.facts(
        "pve1", corosync__quorate=False, corosync__copies_equal=False, ram_state__lag_seconds=90, ram_state__ready=False,
        ha__returned=["pve-ha-lrm.service"], pmxcfs__error="x",
    )  # fmt: skip
    found = of(node=facts, gate={**sample.GATE, "verdict": "fail"}, wear={"disks": [sample.drive(media_errors=1)], "notes": []})
    assert len(found) == 8
    for each in found:
        well_said(each)
