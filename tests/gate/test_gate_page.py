# SPDX-License-Identifier: Apache-2.0
"""The page of the gates: nothing gets out of its place, everybody can read it, charts show what was measured."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from ansible.module_utils.pveguard.report import charts, gate_page, gate_report, page_parts, pages
from jinja2 import UndefinedError

from . import sample
from .test_gate_report import entry, three

EVIL = '<script>alert("1")</script>\'"><img src=x onerror=alert(1)>&\x00\x1b\ud800'
VOID = {"meta", "img", "br", "link"}


class Document(HTMLParser):
    """Elements with their attributes; checks that every element is closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def body(page: str) -> str:
    """A page without its style and its scripts, which are code."""
    return re.sub(r"(?s)<(script|style)>.*?</\1>", "", page)


def colours(scheme: str) -> dict[str, str]:
    """The colours of ``light`` or ``dark``: name -> #rrggbb."""
    light, dark = pages.asset("colours.css").split("@media screen and (prefers-color-scheme: dark)")
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", {"light": light, "dark": dark}[scheme]))


def hostile() -> dict[str, Any]:
    """A report in which every text is hostile."""

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [spoil(each, key) for each in value]
        return EVIL if isinstance(value, str) and key not in ("verdict", "name") else value

    nodes = {}
    for name, known in sample.three().items():
        spoiled = {key: spoil(value) for key, value in known.items() if key in ("disk", "links")}
        nodes[name + EVIL] = entry(in_run=False, plan={"action": "refuse", "reason": EVIL}, **spoiled)
    tokens = {EVIL: {**sample.TOKEN["lab"], "message": EVIL, "verdict": EVIL}}
    return gate_report.build(nodes, sample.NOW, tokens)


@pytest.mark.parametrize(
    "report", [three(), hostile(), gate_report.build({}, sample.NOW)], ids=["three", "hostile", "empty"]
)
def test_the_page_is_well_formed_and_calls_nobody(report: dict[str, Any]) -> None:
    page = gate_page.page(report)
    page.encode()
    assert page.count("<script>") == 2 == page.count("</script>"), "only the library and what draws"
    assert "url(" not in pages.asset("page.css") + pages.asset("colours.css") and "sourceMappingURL" not in page
    page = re.sub(r"(?s)<script>.*?</script>", "", page)
    document = Document(body(page))
    names = {name for name, _ in document.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    attributes = {key for _, each in document.elements for key in each}
    assert not {key for key in attributes if key.startswith("on")} and not attributes & {"src", "href"}
    assert "url(" not in page and "@import" not in page
    assert not re.search(r"https?://", page)
    identities = [each["id"] for _, each in document.elements if "id" in each]
    assert len(identities) == len(set(identities))
    policy = next(
        each for each in document.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_hostile_texts_are_shown_as_they_are() -> None:
    document = Document(body(gate_page.page(hostile())))
    words = "".join(document.words)
    assert '<script>alert("1")</script>' in words and "\x1b" not in words and "\x00" not in words
    charts_of_it = [json.loads(canvas["data-chart"] or "") for canvas in document.all("canvas")]
    assert any("<script>" in name for each in charts_of_it for name in each.get("rows", []))
    assert "\\u0000" not in json.dumps(charts_of_it) and "\\ud800" not in json.dumps(charts_of_it)


def test_the_page_is_the_same_for_the_same_report() -> None:
    assert gate_page.page(three()) == gate_page.page(three())


def test_what_an_operator_reads() -> None:
    document = Document(body(gate_page.page(three())))
    words = " ".join(" ".join(document.words).split())
    assert (
        "3 nodes: 1 passed with a warning, 2 failed. Refused, and nothing was changed there: pve2, pve3."
        in words
    )
    assert "pve2 was refused" in words and "this disk is virtual" in words.lower()
    assert "INTEL SSDSC2KB480G8" in words and "survives a power cut" in words and "-55 %" in words
    assert (
        "Only a power cut proves it" in words and "wanted at most 1 % (link_gate_loss_fail_percent)" in words
    )
    assert "it is 3,000 ms: safe" in words


def test_headings_and_tables_and_charts_can_be_heard() -> None:
    document = Document(body(gate_page.page(three())))
    levels = [int(name[1]) for name, _ in document.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), (
        "no level is left out"
    )
    assert len(document.all("table")) == len(document.all("caption"))
    assert all(each.get("scope") in ("col", "row") for each in document.all("th"))
    for chart in document.all("canvas"):
        assert chart["role"] == "img"
        title, _, description = (chart["aria-label"] or "").partition(". ")
        assert title and description
    assert len(document.all("canvas")) == 5


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(name: str) -> None:
    scheme = colours(name)
    texts = ("text", "muted", "link", *page_parts.VERDICTS)
    pairs = [(name, back) for name in texts for back in ("page", "card")]
    pairs += [(verdict, f"{verdict}-back") for verdict in page_parts.VERDICTS]
    low = {pair: round(contrast(scheme[pair[0]], scheme[pair[1]]), 2) for pair in pairs}
    assert {pair: value for pair, value in low.items() if value < 4.5} == {}
    assert contrast(scheme["mark"], scheme["card"]) >= 3 and contrast(scheme["fail"], scheme["card"]) >= 3


def test_dark_has_each_colour_of_light() -> None:
    assert colours("light") and colours("light").keys() == colours("dark").keys()


def test_latency_chart() -> None:
    figures = {**sample.method(20, 49, 0.16, 101), "histogram": [[1.45, 1], [11.6, 30], [32.0, 999]]}
    figures.update(p50_ms=30.0, p99_ms=31.0, p99_9_ms=32.0, max_ms=32.0)
    chart = charts.latency("Title", {"fdatasync": figures}, limits={"fdatasync": 10.0})
    assert chart.data["axis"] == (0.1, 100.0), "three decades"
    (panel,) = chart.data["panels"]
    bars = panel["bars"]
    assert bars[0]["to"] == 1.45 and bars[0]["from"] == pytest.approx(1.45 / 2**0.5, rel=1e-5)
    assert [bar["height"] for bar in bars] == sorted(bar["height"] for bar in bars) and bars[-1]["height"] == 1
    # Of the 54 pixels of a bar.
    assert 54 * bars[0]["height"] > 4, "one among a thousand is seen"
    # Only what is certainly above the limit is marked: the bucket of 8.2 to 11.6 ms is not.
    assert [bar["over"] for bar in bars] == [False, False, True]
    assert panel["limit"] == 10.0
    assert [mark["text"] for mark in panel["marks"]] == ["p99.9 32 ms", "p99 31 ms", "p50 30 ms"]
    assert panel["turned"] and [mark["over"] for mark in panel["marks"]] == [False, True, False]
    assert "p99 31 ms" in chart.description and "has to be below 10 ms" in chart.description


def test_rates_chart_marks_what_is_too_slow() -> None:
    rows = [("a", 2000.0, (1900.0, 2100.0), "pass"), ("b", 14.0, None, "fail"), ("c", None, None, "unknown")]
    chart = charts.rates("Title", rows, threshold=200.0)
    (series,) = chart.data["series"]
    assert series["values"] == [2000.0, 14.0, None] and series["colours"][:2] == ["mark", "fail"]
    assert series["spans"] == [[1900.0, 2100.0], None, None]
    assert chart.data["limits"] == [{"value": 200.0, "text": "at least 200", "colour": "fail"}]
    assert "c: unknown" in chart.description


def test_a_link_without_an_answer_has_no_bar() -> None:
    silent = dict.fromkeys(("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms"))
    rows = [("a", {**silent, "loss_percent": 100.0, "load": None}, "fail")]
    chart = charts.round_trips("Title", rows, warn=5.0, fail=10.0)
    (series,) = chart.data["series"]
    assert series["values"] == [None] == series["spans"] and len(chart.data["limits"]) == 2
    assert chart.data["labels"] == [["unknown, loss 100 %"]] and "unknown, loss 100 %" in chart.description


def test_a_link_is_shown_from_its_median_to_its_p99_and_its_longest_time() -> None:
    load = {"rtt_p50_ms": 0.3, "rtt_p99_ms": 0.8, "rtt_max_ms": 2.0}
    figures = {"rtt_p50_ms": 0.2, "rtt_p99_ms": 0.4, "rtt_max_ms": 0.9, "loss_percent": 0.0, "load": load}
    chart = charts.round_trips("Title", [("a", figures, "pass")])
    rest, loaded = chart.data["series"]
    assert (rest["values"], rest["spans"]) == ([[0.2, 0.4]], [[0.4, 0.9]])
    assert (loaded["values"], loaded["spans"], loaded["colour"]) == ([[0.3, 0.8]], [[0.8, 2.0]], "mark-soft")
    assert chart.data["labels"][0] == ["p99 0.4 ms"] and "under load p99 0.8 ms" in chart.description


def test_a_large_cluster_is_shown_by_its_worst_links() -> None:
    peers = [sample.link(f"n{number}", 0, (0.2, 0.4, 0.9)) for number in range(40)]
    peers[33].update(verdict="warn", reason="rtt", reasons=["rtt"], rtt_p99_ms=6.0)
    page = gate_page.page(gate_report.build({"a": entry(links=sample.links(peers))}, sample.NOW))
    words = " ".join(Document(body(page)).words)
    assert "16 more are not shown; the worst of them: pass" in words
    assert words.index("a - n33, link 0") < words.index("a - n0, link 0")


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e9])
def test_odd_values_stay_inside(value: float) -> None:
    axis = charts.Scale(-1, 2)
    assert 0 <= axis.at(value) <= 100 and 0.1 <= axis.inside(value) <= 100
    drawn = charts.rates("Title", [("a", value, (value, value), "pass")], threshold=None).data
    low, high = drawn["axis"]
    assert low > 0 and all(low <= each <= high for each in (drawn["series"][0]["values"][0], *drawn["series"][0]["spans"][0]))


def test_templates_escape_all_but_the_code_of_the_page() -> None:
    templates = {path.name: path.read_text() for path in pages.TEMPLATES.glob("*.j2")}
    assert len(templates) == 4
    trusted = [(name, found) for name, text in templates.items() for found in re.findall(r"\{\{[^}]*safe[^}]*\}\}", text)]
    assert sorted(trusted) == [("page.html.j2", "{{ script | safe }}"), ("page.html.j2", "{{ style | safe }}")]
    for name, text in templates.items():
        assert "autoescape" not in text, name
        # Escaping protects a text within quotes only.
        assert not re.search(r"=\s*\{\{", text), name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (EVIL, "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&#39;&#34;&gt;&lt;img src=x onerror=alert(1)&gt;&amp;���"),
        (None, "unknown"),
        (0, "0"),
    ],
    ids=["hostile", "None", "0"],
)
def test_what_a_template_shows(value: object, shown: str) -> None:
    assert pages._environment().from_string('<p title="{{ it }}">').render(it=value) == f'<p title="{shown}">'


def test_a_template_that_lacks_a_value_makes_no_page() -> None:
    with pytest.raises(UndefinedError):
        pages.render("gate.html.j2", {key: value for key, value in gate_page.view(three()).items() if key != "lead"})


def test_rows_of_a_table_have_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="not every row has 2 cells"):
        page_parts.Table("t", ("a", "b"), [("x",)])
