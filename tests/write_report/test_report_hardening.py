# SPDX-License-Identifier: Apache-2.0
"""How the nodes are hardened in a report: on its page, in its data and its metrics; what was not looked at is never good."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.hardening import asked, hardening_info
from ansible.module_utils.pveguard.report import (
    report_findings,
    report_hardening,
    report_metrics,
    report_page,
    report_summary,
    report_table,
)

from tests.hardening.node import cis, clean, dev_sec

from . import sample

Facts = dict[str, Any]
GOOD: Facts = {"asked": ["auditd"], "auditd": {"known": True, "error": "", "installed": False}}


def report(facts: dict[str, Any]) -> dict[str, Any]:
    """Of nodes whose hardening is this; ``None``: nobody asked."""
    nodes = {}
    for name, its in facts.items():
        own = {"hardening": its} if its is not None else {}
        nodes[name] = sample.entry("pve1", node={**sample.facts("pve1"), **own})
    return report_table.build(nodes, sample.NOW)


def looked_at(folder: Path) -> list[Facts]:
    """A clean node, one with the settings of dev-sec, one with those of a CIS role and user.cfg broken."""
    nodes = [apply(clean(folder / name)) for name, apply in (("a", lambda node: node), ("b", dev_sec), ("c", cis))]
    nodes[2].write("/etc/pve/user.cfg", "nonsense\n")
    return [json.loads(json.dumps(node.look())) for node in nodes]


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> list[Facts]:
    return looked_at(tmp_path_factory.mktemp("nodes"))


def fifty() -> dict[str, Any]:
    """A report of as many nodes, for those who look at its page."""
    with tempfile.TemporaryDirectory() as folder:
        its = looked_at(Path(folder))
    return report({f"n{number:02}": its[number % 3] for number in range(50)})


def rows(view: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(severity, nodes, text) of the table, also of its folded part."""
    table = view["found"]
    every = [*table.first.rows, *(table.rest.rows if table.rest else [])]
    return [(row[0].label, row[1], row[2]) for row in every]


def test_the_worst_is_first_and_what_is_alike_is_one_row(looks: list[Facts]) -> None:
    three = rows(report_hardening.hardening(report({"a": looks[1], "b": looks[2], "c": looks[1]})))
    severities = [row[0] for row in three]
    assert severities == sorted(severities, key=["problem", "warning", "unknown"].index) and severities[0] == "problem"
    assert any(names == "a and c" and text.startswith("umask 027") for _, names, text in three)
    fifty = report_hardening.hardening(report({f"n{number:02}": looks[number % 3] for number in range(50)}))
    again = rows(fifty)
    assert len(again) < 60 and len(fifty["found"].first.rows) == 12
    assert any("and 12 more" in names or "and 11 more" in names for _, names, _ in again)
    assert fifty["tiles"][0].value == "50 of 50"


def test_what_was_not_looked_at_is_unknown_and_not_counted(looks: list[Facts]) -> None:
    view = report_hardening.hardening(report({"a": None, "b": None}))
    assert view["tiles"] == [] and view["found"] is None
    (notice,) = view["notices"]
    assert notice.kind == "unknown" and notice.items[0].strong == "a and b" and "make assess" in notice.items[0].text
    # It does not say that all is well, and says nothing bad of the rest of the report.
    assert report_summary.overall(report({"a": None}))[0] == "pass"
    mixed = report_hardening.hardening(report({"a": GOOD, "b": None}))
    assert [(each.kind, each.items[0].strong) for each in mixed["notices"]] == [("unknown", "b"), ("pass", "a")]


@pytest.mark.parametrize("facts", [{"error": "planted"}, {}, "nonsense", {"auditd": {"known": False, "error": "planted"}}])
def test_a_node_that_did_not_answer_is_never_good(facts: Any) -> None:
    said = report({"a": facts})
    assert report_summary.overall(said)[0] == "unknown"
    assert not set(said["nodes"]["a"]["hardening"].values()) & {True}
    view = report_hardening.hardening(said)
    assert {row[0] for row in rows(view)} == {"unknown"} and not [each for each in view["notices"] if each.kind == "pass"]
    assert "nothing to tell" not in report_page.page(said)


def test_it_decides_about_the_verdict_of_a_node_and_is_named_at_the_top(looks: list[Facts]) -> None:
    said = report({"a": GOOD, "b": looks[1]})
    assert {name: badge.kind for name, badge in report_findings.verdicts(said).items()} == {"b": "fail", "a": "pass"}
    top = [(each["first"].kind, item.strong, item.text) for each in report_findings.notices(said) for item in each["first"].items]
    assert ("fail", "b") in {each[:2] for each in top} and all("told below" in each[2] for each in top)
    steps = report_findings.next_steps(said)
    assert [step["badge"].kind for step in steps["steps"]] == ["fail"] and not steps["nothing"]
    assert report_findings.next_steps(report({"a": GOOD}))["nothing"]


def test_an_assessment_points_to_it(looks: list[Facts]) -> None:
    found = [
        {"id": "hardening-others-umask", "level": "problem", "text": "umask 027"},
        {"id": "ha-running-unused", "level": "warning", "text": "HA runs"},
    ]
    nodes = {
        name: sample.entry("pve1", assessment={"findings": found[at:], "changes": []})
        for at, name in enumerate(["bad", "fair", "good", "well"])
    }
    next_steps = report_findings.next_steps(report_table.build(nodes, sample.NOW))
    by_name = {each["name"]: each for each in next_steps["more_assessments"]}
    assert by_name["bad"]["hardening"] == "hardening: 1 problem" and by_name["fair"]["hardening"] == ""
    assert [each["text"] for each in by_name["bad"]["findings"]] == ["HA runs"]
    assert by_name["bad"]["badge"].kind == "fail", "by all that was found"
    assert [each["name"] for each in next_steps["more_assessments"]][0] == "bad"


def test_data_and_metrics(looks: list[Facts]) -> None:
    said = report({"a": GOOD, "b": looks[2], "c": None})
    assert {name: each["hardening"] for name, each in said["nodes"].items() if name != "b"} == {"a": {"auditd": True}, "c": None}
    its = said["nodes"]["b"]["hardening"]
    assert its.keys() == hardening_info.AREAS.keys() and all(its.values())
    assert "hardening-accounts-malformed" in {each["id"] for each in said["nodes"]["b"]["findings"]}
    text = report_metrics.render(said)
    assert 'pveguard_hardening_findings{node="a",severity="problem"} 0' in text
    assert 'pveguard_hardening_findings{node="b",severity="unknown"} 1' in text
    assert 'pveguard_hardening_findings{node="c"' not in text, "that is not nothing"


def test_areas_of_an_answer() -> None:
    assert asked.known_areas({}) is None and asked.known_areas(None) is None
    # As the module answers; what it was asked for and did not say is not known.
    answer = {"facts": {"auditd": {"known": True}}, "areas": ["auditd", "sysctl"]}
    node = asked.with_answer({}, {"pveguard_hardening": answer})
    assert asked.known_areas(node) == {"sysctl": False, "auditd": True}
    failed = asked.with_answer({}, {"pveguard_hardening": {"msg": "planted"}})
    assert asked.known_areas(failed) == dict.fromkeys(hardening_info.AREAS, False)
    assert asked.with_answer({}, {"pveguard_hardening": {"skipped": True}}) == asked.with_answer({}, {}) == {}
