# SPDX-License-Identifier: Apache-2.0
"""The page of the gates: nothing gets out of its place, everybody can read it, charts show what was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from ansible.module_utils.pveguard.report import charts, gate_page, gate_report, html_page

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
    document = Document(page)
    names = {name for name, _ in document.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    attributes = {key for _, each in document.elements for key in each}
    assert not {key for key in attributes if key.startswith("on")} and not attributes & {"src", "href"}
    assert "url(" not in page and "@import" not in page
    addresses = set(re.findall(r"https?://[^\s\"<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "a namespace, never fetched"
    identities = [each["id"] for _, each in document.elements if "id" in each]
    assert len(identities) == len(set(identities))
    policy = next(
        each for each in document.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_hostile_texts_are_shown_as_they_are() -> None:
    words = "".join(Document(gate_page.page(hostile())).words)
    assert '<script>alert("1")</script>' in words and "\x1b" not in words and "\x00" not in words


def test_the_page_is_the_same_for_the_same_report() -> None:
    assert gate_page.page(three()) == gate_page.page(three())


def test_what_an_operator_reads() -> None:
    document = Document(gate_page.page(three()))
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
    document = Document(gate_page.page(three()))
    levels = [int(name[1]) for name, _ in document.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), (
        "no level is left out"
    )
    assert len(document.all("table")) == len(document.all("caption"))
    assert all(each.get("scope") in ("col", "row") for each in document.all("th"))
    identities = {each["id"] for _, each in document.elements if "id" in each}
    for chart in document.all("svg"):
        assert chart["role"] == "img" and set((chart["aria-labelledby"] or "").split()) <= identities
    assert len(document.all("svg")) == 5 and len(document.all("desc")) == 5


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [html_page.LIGHT, html_page.DARK], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: dict[str, str]) -> None:
    texts = ("text", "muted", "link", *html_page.VERDICTS)
    pairs = [(name, back) for name in texts for back in ("page", "card")]
    pairs += [(verdict, f"{verdict}-back") for verdict in html_page.VERDICTS]
    low = {pair: round(contrast(scheme[pair[0]], scheme[pair[1]]), 2) for pair in pairs}
    assert {pair: value for pair, value in low.items() if value < 4.5} == {}
    assert contrast(scheme["mark"], scheme["card"]) >= 3 and contrast(scheme["fail"], scheme["card"]) >= 3


def svg(chart: html_page.Html) -> ET.Element:
    return ET.fromstring(chart)


def part(root: ET.Element, name: str, kind: str = "") -> list[ET.Element]:
    found = root.iter("{http://www.w3.org/2000/svg}" + name)
    return [each for each in found if not kind or kind in (each.get("class") or "").split()]


def share(element: ET.Element, name: str) -> float:
    return float((element.get(name) or "").rstrip("%"))


def test_latency_chart() -> None:
    figures = {**sample.method(20, 49, 0.16, 101), "histogram": [[1.45, 1], [11.6, 30], [32.0, 999]]}
    figures.update(p50_ms=30.0, p99_ms=31.0, p99_9_ms=32.0, max_ms=32.0)
    root = svg(charts.latency("x", "Title", {"fdatasync": figures}, limits={"fdatasync": 10.0}))
    bars = part(root, "rect")
    # The axis goes from 0.1 to 100 ms: three decades.
    assert share(bars[0], "x") + share(bars[0], "width") == pytest.approx(100 / 3 * 1.161, abs=0.5)
    assert [float(bar.get("height") or 0) for bar in bars] == sorted(
        float(bar.get("height") or 0) for bar in bars
    )
    assert float(bars[0].get("height") or 0) > 4, "one among a thousand is seen"
    # Only what is certainly above the limit is marked: the bucket of 8.2 to 11.6 ms is not.
    assert [bar.get("class") for bar in bars] == ["bar", "bar", "bar over"]
    assert share(part(root, "line", "limit")[0], "x1") == pytest.approx(66.667, abs=0.01)
    assert [text.text for text in part(root, "text", "halo")] == ["p99.9 32 ms", "p99 31 ms", "p50 30 ms"]
    assert "p99 31 ms" in "".join(part(root, "desc")[0].itertext())


def test_rates_chart_marks_what_is_too_slow() -> None:
    rows = [("a", 2000.0, (1900.0, 2100.0), "pass"), ("b", 14.0, None, "fail"), ("c", None, None, "unknown")]
    root = svg(charts.rates("x", "Title", rows, threshold=200.0))
    assert [bar.get("class") for bar in part(root, "rect")] == ["bar pass", "bar fail"]
    ends = [share(line, "x1") for line in part(root, "line", "whisker")][1:]
    assert ends[0] < share(part(root, "rect")[0], "width") < ends[1]
    assert "c: unknown" in "".join(part(root, "desc")[0].itertext())


def test_a_link_without_an_answer_has_no_bar() -> None:
    silent = dict.fromkeys(("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms"))
    rows = [("a", {**silent, "loss_percent": 100.0, "load": None}, "fail")]
    root = svg(charts.round_trips("x", "Title", rows, warn=5.0, fail=10.0))
    assert part(root, "rect") == [] and len(part(root, "line", "limit")) == 2
    assert "unknown, loss 100 %" in "".join(root.itertext())


def test_a_large_cluster_is_shown_by_its_worst_links() -> None:
    peers = [sample.link(f"n{number}", 0, (0.2, 0.4, 0.9)) for number in range(40)]
    peers[33].update(verdict="warn", reason="rtt", reasons=["rtt"], rtt_p99_ms=6.0)
    page = gate_page.page(gate_report.build({"a": entry(links=sample.links(peers))}, sample.NOW))
    words = " ".join(Document(page).words)
    assert "16 more are not shown; the worst of them: pass" in words
    assert words.index("a - n33, link 0") < words.index("a - n0, link 0")


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e9])
def test_odd_values_stay_inside(value: float) -> None:
    axis = charts.Scale(-1, 2)
    assert 0 <= axis.at(value) <= 100
    svg(charts.rates("x", "Title", [("a", value, (value, value), "pass")], threshold=None))
