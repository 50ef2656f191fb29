# SPDX-License-Identifier: Apache-2.0
"""The metrics of a report: the text format of Prometheus, base units, nothing unknown as zero, and the dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.report import report_metrics, report_table

from tests.gate.test_gate_page import EVIL

from . import sample

ROOT = Path(__file__).resolve().parents[2]
LABELS = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
SAMPLE = re.compile(rf"([a-zA-Z_:][\w:]*)\{{({LABELS}(?:,{LABELS})*)\}} (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def parse(text: str) -> dict[tuple[str, str], float]:
    """Samples by name and labels, by the rules of the text format (and of promtool: order, one TYPE, no duplicates)."""
    assert text == "" or text.endswith("\n")
    found: dict[tuple[str, str], float] = {}
    described: list[str] = []
    typed = ""
    for line in text.splitlines():
        if help_line := re.fullmatch(r"# HELP ([a-z_0-9]+) \S.*\.", line):
            assert help_line[1] not in described, "all samples of a name stand together"
            described.append(help_line[1])
        elif type_line := re.fullmatch(r"# TYPE ([a-z_0-9]+) gauge", line):
            typed = type_line[1]
            assert typed == described[-1] and not typed.endswith("_total")
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None and match[1] == typed, line
            assert (match[1], match[2]) not in found, f"twice: {line}"
            found[match[1], match[2]] = float(match[3])
    return found


@pytest.mark.parametrize("make", [sample.three, sample.four, sample.fifty, sample.nothing])
def test_valid(make: Any) -> None:
    found = parse(report_metrics.render(make()))
    assert found and all('node="' in labels for _, labels in found)
    assert {name.removeprefix("pveguard_") for name, _ in found} <= set(report_metrics.METRICS)


def test_units_are_base_units() -> None:
    found = parse(report_metrics.render(sample.three()))
    assert found["pveguard_pmxcfs_transactions_per_second", 'node="pve1",when="before"'] == pytest.approx(
        117 / 60
    )
    assert found["pveguard_gate_fsync_p99_seconds", 'node="pve1"'] == pytest.approx(0.00304)
    assert found["pveguard_disk_used_ratio", 'node="pve2",disk="sda",model="CT240BX500SSD1"'] == 0.91
    assert found["pveguard_report_timestamp_seconds", 'node="pve1"'] == 1795264800
    assert found[
        "pveguard_class_transactions_per_second", 'node="pve1",when="before",class="ha"'
    ] == pytest.approx(1.8)
    for name in report_metrics.METRICS:
        assert not re.search(r"_(ms|minutes?|hours|years|kib|percent)(_|$)", name)


def test_a_life_of_more_than_a_hundred_years_is_no_figure() -> None:
    """The page says "over 100 years"; a drive at 2 % that got 1 PB lasts for a thousand by the arithmetic."""
    drive = sample.drive(percentage_used=2, written_bytes=10**15, rated_tbw_bytes=None)
    made = sample.entry("pve1", wear={"disks": [drive], "notes": []})
    assert made["disks"][0]["endurance"]["years_left_low"] > 500
    found = parse(report_metrics.render(report_table.build({"pve1": made}, sample.NOW)))
    lives = [value for (name, _), value in found.items() if name == "pveguard_disk_life_left_seconds"]
    assert lives == [pytest.approx(100 * 365.2425 * 86400)] * 3


def test_what_is_unknown_has_no_sample() -> None:
    found = parse(report_metrics.render(sample.nothing()))
    assert {name for name, _ in found} == {
        "pveguard_report_timestamp_seconds",
        "pveguard_report_in_run",
        "pveguard_report_healthy",
    }
    silent = [name for name, labels in parse(report_metrics.render(sample.three())) if 'disk="sdb"' in labels]
    assert silent == []


def test_labels_are_escaped() -> None:
    evil = EVIL.replace("\ud800", "") + "\\\n"
    report = report_table.build(
        {evil: sample.entry("pve1", wear={"disks": [sample.drive(model=evil)], "notes": []})}, sample.NOW
    )
    assert parse(report_metrics.render(report))


def test_one_node_alone_for_its_exporter() -> None:
    found = parse(report_metrics.render(sample.three(), "pve2"))
    assert found and all('node="pve2"' in labels for _, labels in found)


def test_the_dashboard_uses_metrics_that_exist() -> None:
    text = (ROOT / "roles/write_report/files/grafana-dashboard.json").read_text()
    board = json.loads(text)
    known = {f"pveguard_{name}" for name in report_metrics.METRICS}
    state = set(re.findall(r"`(pveguard_state_\w+)`", (ROOT / "docs/ram-state.md").read_text()))
    used = set(
        re.findall(
            r"pveguard_\w+", " ".join(t["expr"] for panel in board["panels"] for t in panel["targets"])
        )
    )
    assert used and used <= known | state
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells and at["x"] + at["w"] <= 24
        cells |= mine
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
