# SPDX-License-Identifier: Apache-2.0
"""Who writes to the system's drives, on the page and in the metrics."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.report import report_league, report_metrics, report_table
from ansible.module_utils.pveguard.report.page_parts import Figure
from ansible.module_utils.pveguard.writes import writers

from . import sample
from .test_report_metrics import parse
from .test_report_page import words

MIB = 1024 * 1024


def card(node: dict[str, Any]) -> dict[str, Any]:
    found = report_league.leagues(report_table.build({"pve1": node}, sample.NOW))
    (made,) = found["nodes"]
    assert found["all"] is None and found["known"] == {"pve1"}
    return dict(made)


def figures(made: dict[str, Any]) -> dict[str, Figure]:
    return {each.name: each for each in made["figures"]}


def table(before: Any, after: Any) -> dict[str, Any]:
    made = writers.table(before, after)
    assert made is not None
    return made


def entry(now: Any, before: Any = None, **more: Any) -> dict[str, Any]:
    """A node with these two tables, of windows."""
    made = sample.entry(**more)
    made["writes"] = {
        **dict.fromkeys(made["writes"]),
        "before": {**sample.window(1, 1.0, False), "league": before},
        "after": {**sample.window(1, 1.0, True), "league": now},
    }
    return made


def test_before_and_now_with_what_it_means_for_the_rating() -> None:
    made = card(sample.entry())
    assert made["title"] == "pve1: who writes to nvme0n1"
    assert made["seen"].startswith("before: counted for 3 d; now: counted for 3 d. Units: written to the drives, by control")
    shown = figures(made)
    assert shown["The node's own a minute"].note == "11.5 times less; before 7.66 MiB"
    assert shown["Guests' own a minute"] == Figure("Guests' own a minute", "12 MiB", "not judged")
    # 300 TB, at 17.8 GiB a day; the node's own are 960 MiB of it.
    assert shown["The rating lasts"] == Figure("The rating lasts", "43 years", "28 years at the rate before")
    assert shown["The rating lasts without guests"].value == "over 100 years"
    first = made["table"].first
    assert first.header[:2] == ["What is written", "By whom"]
    assert first.header[2:] == ["Before, a minute", "Now, a minute", "Now, a day", "Of the rating a year"]
    assert first.rows[0] == ("cluster file system (pmxcfs)", "pve-cluster.service", "3.6 MiB", "0 B", "0 B", "0 %")
    assert first.rows[1][2:4] == ("≈ 1.6 MiB", "≈ 328 KiB"), "what saved most stands first, though it writes least now"
    assert [row[0].partition(":")[0] for row in first.rows[-3:]] == [
        "Rest",
        "Guests' own, which are not judged",
        "All, by the counters of the drives",
    ]
    assert first.rows[-1][-1] == "2.33 %" and len(first.rows) == report_league.MAX_ROWS + 3
    assert made["table"].rest is not None and made["table"].more == "5 more that write less"


def test_statistics_are_told_with_what_a_flush_costs() -> None:
    rrd = {"files": 29, "bytes": 32 * MIB, "flush_bytes": 3 * MIB // 2}
    diet = {"write_diet": {"rrdcached": {"rrd": rrd, "running": {"write_s": 3600, "jitter_s": 600}}}}
    known = sample.entry(node={**sample.facts("pve1"), **diet})
    shown = Figure("Statistics", "29 files, 32 MiB", "a flush of all writes about 1.5 MiB, every 1 h to 1 h 10 min")
    assert figures(card(known))["Statistics"] == shown
    # A node that was not asked shows what is known.
    assert figures(card(sample.entry(node=None, last=known)))["Statistics"] == shown
    assert "Statistics" not in figures(card(sample.entry()))


def test_the_chart_leaves_guests_aside_and_has_all_else() -> None:
    chart = card(sample.entry())["chart"]
    assert chart.data["rows"] == ["before", "now"] and chart.data["unit"] == "bytes"
    after = sample.league(3 * 1440, 0.2, 0.0)
    own = after["total_bytes_per_minute"] - after["guests_bytes_per_minute"]
    assert sum(series["values"][1] for series in chart.data["series"]) == pytest.approx(own, rel=0.001)
    assert "before: cluster file system (pmxcfs) 3.6 MiB" in chart.description


def test_without_a_day_no_years_and_without_a_minute_no_rates() -> None:
    made = card(entry(sample.league(1)))
    shown = figures(made)
    assert "The rating lasts" not in shown and shown["The node's own a day"].note == "counters of a day are needed"
    assert made["table"].first.header == ["What is written", "By whom", "Now, a minute", "Now, a day"]
    assert {row[3] for row in made["table"].first.rows} == {"unknown"}
    short = card(entry(sample.league(1 / 3)))
    assert short["chart"] is None and short["table"].first.header[2] == "Now, in 20 s"
    assert short["table"].first.rows[-1][2] == "6.56 MiB"


def test_without_a_rating_no_share_of_it() -> None:
    unrated = sample.entry(wear={"disks": [sample.drive(rated_tbw_bytes=None)], "notes": []})
    made = card(unrated)
    assert "The rating lasts" not in figures(made) and len(made["table"].first.header) == 5


def test_requested_is_not_called_written() -> None:
    proc: dict[str, Any] = {"source": "proc", "why": "zfs", "groups": {}, "units": {}}
    before = {**sample.reading(0.0, {}, 0, 0), **proc}
    units = {"rrdcached.service": ["1.1", 0, 9 * MIB], "100.scope": ["2.1", 0, MIB]}
    league = table(before, {**sample.reading(60.0, {}, 0, 4 * MIB), **proc, "units": units})
    made = card(entry(league))
    assert "Units: requested, not device." in made["seen"]
    assert figures(made)["Guests' own a minute"].note == "requested, not device"
    rows = {row[0].partition(":")[0]: row[2] for row in made["table"].first.rows}
    assert rows["Rest"] == "-6 MiB" and rows["statistics (RRD files)"] == "9 MiB"
    assert any("below 0" in note for note in made["notes"])
    assert "Units: requested, not device." in words(report_table.build({"pve1": entry(league)}, sample.NOW))


def test_a_node_without_it_shows_its_services_instead() -> None:
    report = sample.three()
    report["nodes"]["pve2"]["writes"] |= {"day": None, "day_before": None}
    for when in ("before", "after", "observed"):
        report["nodes"]["pve2"]["writes"][when] = {**report["nodes"]["pve2"]["writes"][when], "league": None}
    found = report_league.leagues(report)
    assert found["known"] == {"pve1", "pve3"} and len(found["all"].first.rows) == 2
    text = words(report)
    assert "By service" in text and "pve2 systemd-journald" in text and "pve1 systemd-journald" not in text
    assert "By service" not in words(sample.three())


def test_of_many_nodes_those_that_write_most() -> None:
    report = sample.fifty()
    report["nodes"]["node07"]["writes"]["day"]["league"] = sample.league(3 * 1440, 3.0)
    found = report_league.leagues(report)
    assert found["nodes"][0]["title"].startswith("node07: ")
    assert (len(found["nodes"]), len(found["more"]), len(found["all"].first.rows)) == (3, 9, 12)
    assert len(found["all"].rest.rows) == 38 and found["all"].first.rows[0][4] == "statistics (RRD files)"


def test_metrics_add_up_to_what_the_drives_count() -> None:
    made = sample.entry()
    found = parse(report_metrics.render(report_table.build({"pve1": made}, sample.NOW)))
    name = "pveguard_system_written_bytes_per_second"
    for when, league in (("before", made["writes"]["day_before"]), ("after", made["writes"]["day"])):
        rates = {labels: value for (each, labels), value in found.items() if each == name and f'when="{when}"' in labels}
        total = league["league"]["total_bytes_per_minute"] / 60
        assert sum(rates.values()) == pytest.approx(total, rel=0.0001)
        assert rates[f'node="pve1",when="{when}",class="guests",unit=""'] == pytest.approx(12 * MIB / 60, rel=0.001)
        assert found["pveguard_system_figures_seconds", f'node="pve1",when="{when}"'] == 3 * 86400
    unknown = parse(report_metrics.render(report_table.build({"pve1": entry(sample.league(1 / 3))}, sample.NOW)))
    assert not [each for each, _ in unknown if each.startswith("pveguard_system")]
