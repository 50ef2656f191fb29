# SPDX-License-Identifier: Apache-2.0
"""Renders the pages from ``templates/``; on the controller only, since a node has no Jinja2.

A page is one file: style, scripts and data are within it, nothing is fetched, and its Content-Security-Policy names the
hashes of its scripts, so that nothing else can run. Every text is escaped; what the policy stops is a second line of
defence. The output depends on the arguments alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..base.units import UNKNOWN
from . import page_parts

_HERE = Path(__file__).resolve().parent
TEMPLATES = _HERE / "templates"
#: Chart.js as it was published; its licence is beside it.
LIBRARY = _HERE / "vendor" / "chart.umd.min.js"


def render(template: str, view: Mapping[str, Any], *, scripts: bool = True) -> str:
    """The page that ``template`` makes of ``view``. Without ``scripts`` no chart is drawn.

    Raises jinja2.UndefinedError when the template uses what the view does not have.
    """
    found = chart_scripts() if scripts else []
    return _environment().get_template(template).render(
        **view,
        styles=[asset("colours.css"), asset("page.css")],
        scripts=found,
        script_hashes=[source(script) for script in found],
    )


def asset(name: str) -> str:
    """A file of ``templates/`` that becomes part of a page as it is."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _library() -> str:
    # A map of the library's source would be asked for by the tools of a browser.
    return LIBRARY.read_text(encoding="utf-8").partition("\n//# sourceMappingURL=")[0]


def chart_scripts() -> list[str]:
    """What runs on a page that has charts. Raises ValueError when one would end before its end."""
    return [embeddable(_library()), embeddable(asset("charts.js"))]


def embeddable(script: str) -> str:
    """``script``, when it can stand between ``<script>`` and ``</script>``. Raises ValueError when it cannot."""
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("a script that holds '</script' or '<!--' would end before its end")
    return script


def source(script: str) -> str:
    """What a Content-Security-Policy calls exactly this script, without its quotes: ``sha256-...``."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def printable(value: str) -> str:
    """``value`` with a mark for each control character, which HTML does not know, and for each lone surrogate, which
    UTF-8 cannot hold.
    """
    return "".join(
        "\ufffd"
        if (ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000
        else c
        for c in value
    )


def _shown(value: object) -> object:
    """What an expression of a template becomes before it is escaped."""
    if hasattr(value, "__html__"):
        return value  # what a macro made
    return UNKNOWN if value is None else printable(str(value))


def _json(value: object) -> str:
    """Data of a chart; the template escapes it like every text."""

    def clean(each: Any) -> Any:
        if isinstance(each, str):
            return printable(each)
        if isinstance(each, Mapping):
            return {clean(key): clean(inner) for key, inner in each.items()}
        return [clean(inner) for inner in each] if isinstance(each, list | tuple) else each

    return json.dumps(clean(value), sort_keys=True, allow_nan=False, separators=(",", ":"))


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["json"] = _json
    made.tests["badge"] = lambda value: isinstance(value, page_parts.Badge)
    made.tests["code"] = lambda value: isinstance(value, page_parts.Code)
    return made
