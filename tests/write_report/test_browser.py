# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium: no error, no request, no scrolling sideways, every chart drawn and named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import sample
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


@pytest.mark.parametrize(
    "make", [sample.four, sample.fifty, sample.nothing, hostile], ids=lambda make: make.__name__
)
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)], ids=["phone", "dark desktop"])
def test_the_page_in_a_browser(
    browser: Browser, tmp_path: Path, make: object, width: int, dark: bool
) -> None:
    file = tmp_path / "index.html"
    file.write_text(page(make()))  # type: ignore[operator]
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
    from ansible.module_utils.pveguard.report.html_page import DARK, LIGHT

    assert browser.evaluate(legend) == DARK["text"]
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(legend) == LIGHT["text"]
    browser.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(legend) == DARK["text"]
    browser.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
