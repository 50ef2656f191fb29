# SPDX-License-Identifier: Apache-2.0
"""The pages in headless Chromium: no error, no request, no scrolling sideways, every chart drawn and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.report import gate_page, gate_report

from tests.gate import sample as gates
from tests.gate import test_gate_page, test_gate_report
from tests.gate.test_gate_page import colours

from . import sample, test_report_hardening
from .browser import Browser, chromium
from .test_report_page import hostile, page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason="no chromium here")]

UNNAMED = """[...document.querySelectorAll('canvas, svg')].filter(e => e.getAttribute('role') !== 'img'
  || !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby'))).length"""
EMPTY = """[...document.querySelectorAll('canvas')].filter(canvas => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return !data.some(value => value !== 0);
}).length"""
# Cells that are cut: wider than the region that would have to be scrolled.
CUT = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    assert program is not None
    opened = Browser(program)
    yield opened
    opened.close()


def many_links() -> dict[str, Any]:
    """Fifty nodes on a disk like pve1's, whose links are more than a chart shows."""
    links = gates.links([gates.link(f"node{number:02}", 0, (0.2, 0.4, 0.9)) for number in range(50)])
    known = gates.three()["pve1"]["disk"]
    nodes = {f"node{number:02}": test_gate_report.entry(disk=known, links=links) for number in range(50)}
    return gate_report.build(nodes, gates.NOW)


PAGES: dict[str, Callable[[], str]] = {
    "four": lambda: page(sample.four()),
    "fifty": lambda: page(sample.fifty()),
    "nothing": lambda: page(sample.nothing()),
    "hostile": lambda: page(hostile()),
    "hardening, fifty": lambda: page(test_report_hardening.fifty()),
    "gate": lambda: gate_page.page(test_gate_report.three()),
    "gate, fifty": lambda: gate_page.page(many_links()),
    "gate, hostile": lambda: gate_page.page(test_gate_page.hostile()),
}


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)], ids=["phone", "dark desktop"])
def test_the_page_in_a_browser(
    browser: Browser, tmp_path: Path, make: Callable[[], str], width: int, dark: bool
) -> None:
    file = tmp_path / "index.html"
    file.write_text(make())
    browser.open(file, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [file.as_uri()], "the page itself and nothing else"
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(CUT) == 0 or width > 600
    assert browser.evaluate(UNNAMED) == 0 and browser.evaluate(EMPTY) == 0


def test_a_request_and_a_script_of_others_would_be_seen_and_refused(browser: Browser, tmp_path: Path) -> None:
    """What the other test does not see must be there to be seen."""
    file = tmp_path / "index.html"
    spoiled = page(sample.three()).replace(
        "<main>", "<main><script>window.evil = 1</script><p style='width:900px'>x</p>", 1
    )
    file.write_text(spoiled)
    browser.open(file, width=390)
    assert any("Content Security Policy" in each for each in browser.complaints())
    assert browser.evaluate("typeof window.evil") == "undefined"
    assert browser.evaluate("document.documentElement.scrollWidth") > 390


def test_without_scripts_the_figures_are_there(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(page(sample.four()))
    browser.open(file, width=390, scripts=False)
    shown = browser.call("DOM.getDocument", depth=0)
    text = browser.call("DOM.getOuterHTML", nodeId=shown["root"]["nodeId"])["outerHTML"]
    assert "≥ 108" in text and 'class="js"' not in text
    browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_on_paper_charts_have_the_colours_of_paper(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(page(sample.three()))
    browser.open(file, dark=True)
    legend = "Chart.getChart(document.querySelector('canvas')).options.plugins.legend.labels.color"
    assert browser.evaluate(legend) == colours("dark")["text"]
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(legend) == colours("light")["text"]
    browser.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(legend) == colours("dark")["text"]
    browser.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")


# The colour of what is drawn at x (a value of the axis) and y pixels over the baseline of a panel, counted from below.
AT = """(function (number, x, panel, up) {
  const canvas = document.querySelectorAll('canvas')[number], chart = Chart.getChart(canvas), scales = chart.scales;
  const ratio = canvas.width / chart.width;
  const at = [scales.x.getPixelForValue(x), scales.y.getPixelForValue(panel) - up].map(v => Math.round(v * ratio));
  const [r, g, b, a] = canvas.getContext('2d').getImageData(at[0], at[1], 1, 1).data;
  return a === 0 ? '' : '#' + [r, g, b].map(v => v.toString(16).padStart(2, '0')).join('');
})(%d, %r, %d, %d)"""


def test_bars_of_a_distribution_stand_where_their_times_are(browser: Browser, tmp_path: Path) -> None:
    """Canvas 2 is pve2, whose fdatasync has a p99 over its limit; its panels are pveperf, fdatasync, commit."""
    report, file = test_gate_report.three(), tmp_path / "gate.html"
    file.write_text(gate_page.page(report))
    browser.open(file)
    methods, light = report["nodes"]["pve2"]["disk"]["methods"], colours("light")
    for panel, name, colour in ((2, "pveperf", "mark"), (1, "fdatasync", "fail"), (0, "commit", "mark")):
        uppers = [upper for upper, _ in methods[name]["histogram"]]
        marks = [methods[name][key] for key in ("p50_ms", "p99_ms", "p99_9_ms")]
        # From its left to its right end each bucket has a colour, unless the line of a percentile stands there.
        inside = [upper / 2**share for upper in uppers for share in (0.05, 0.25, 0.45)]
        inside = [x for x in inside if all(abs(x / mark - 1) > 0.04 for mark in marks)]
        assert len(inside) > len(uppers)
        assert {browser.evaluate(AT % (2, x, panel, 2)) for x in inside} == {light[colour]}, name
        empty = [min(uppers) / 2, max(uppers) * 1.3]
        empty += [low * 2**0.25 for low, high in pairwise(uppers) if high > low * 1.5]
        assert {browser.evaluate(AT % (2, x, panel, 2)) for x in empty} == {""}, name


def test_hostile_names_reach_the_charts_as_text(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "gate.html"
    file.write_text(gate_page.page(test_gate_page.hostile()))
    browser.open(file)
    rows = browser.evaluate("Chart.getChart(document.querySelector('canvas')).data.labels")
    assert rows == [
        name + test_gate_page.EVIL.translate(dict.fromkeys(map(ord, "\x00\x1b\ud800"), "\ufffd"))
        for name in ("pve1", "pve2", "pve3")
    ]


def test_what_is_printed_is_drawn_for_the_width_of_paper(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "gate.html"
    file.write_text(gate_page.page(test_gate_report.three()))
    size = "[...document.querySelectorAll('canvas')].map(canvas => canvas.width)"
    browser.open(file)
    screen = browser.evaluate(size)
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert set(browser.evaluate(size)) == {3 * 42 * 16}, "three pixels for each of 42 rem"
    browser.evaluate("window.dispatchEvent(new Event('afterprint'))")
    # Sizes of the screen are set by observers.
    browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    assert browser.evaluate(size) == screen
