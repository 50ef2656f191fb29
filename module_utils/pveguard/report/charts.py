"""Charts as inline SVG, made for :mod:`html_page`: latency distributions, rates with their intervals, links.

Horizontal positions are shares of the width and vertical ones pixels, so that a chart fits any width and its text keeps
its size. Axes are logarithmic. Every chart has a title and a description for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.units import number_text
from .html_page import Html, join, tag, text

#: Buckets of a histogram are a factor of the square root of two wide; see fsync_bench.
_BUCKET = math.sqrt(2)
_PERCENTILES = (("p50", "p50_ms"), ("p99", "p99_ms"), ("p99.9", "p99_9_ms"))
#: Characters of a label; a phone of 360 px shows that many beside a figure.
_LABEL = 30
_LINE = 15
_BARS = 54
#: From this share of the width on a label stands left of its line: it needs a quarter of a phone's screen.
_TURN = 70
#: Widths of a character and of the narrowest chart in pixels, for labels that must not leave the chart.
_CHARACTER = 6.4
_NARROWEST = 300


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from one power of ten to another."""

    low: int
    high: int

    def at(self, value: float) -> float:
        """Share of the width in percent, 0 to 100; what lies outside is put on the edge."""
        if value <= 0:
            return 0.0
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 3)

    @property
    def decades(self) -> list[float]:
        return [float(f"1e{power}") for power in range(self.low, self.high + 1)]


def scale(values: Sequence[float | None], low: float, high: float) -> Scale:
    """An axis that holds all ``values``, and ``low`` to ``high`` at least."""
    known = [value for value in (*values, low, high) if value is not None and value > 0]
    first, last = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    return Scale(first, max(last, first + 1))


def latency_scale(methods: Sequence[Mapping[str, Any]], limit: float | None = None) -> Scale:
    """The axis for the latencies of ``methods`` (figures of fsync_bench), so that several charts can share it."""
    values: list[float | None] = [limit]
    for figures in methods:
        values += [float(limit) for limit, _ in figures.get("histogram") or []]
        values += [figures.get("max_ms"), figures.get("p50_ms")]
    return scale(values, 0.1, 100)


def latency(
    identity: str,
    title: str,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    axis: Scale | None = None,
    limits: Mapping[str, float] | None = None,
    names: Mapping[str, str] | None = None,
) -> Html:
    """How long each sync took, one panel for each method, with the percentiles and the limit.

    ``identity``: unique on the page. ``methods``: name -> figures with ``histogram`` (pairs of upper limit in ms and
    count), percentiles and ``samples``. ``limits``: name -> milliseconds that its p99 has to stay below. ``names``: what
    the panels are called. The height of a bar is the logarithm of its count: one slow sync among thousands is seen.
    """
    limits, names = limits or {}, names or {}
    axis = axis or latency_scale(list(methods.values()), max(limits.values(), default=None))
    parts: list[Html] = []
    top = 0
    said = []
    lanes = len(_PERCENTILES) * _LINE
    for name, figures in methods.items():
        label = names.get(name, name)
        base = top + _LINE + 8 + lanes + _BARS
        parts += [
            _text(0, top + 11, label, "strong"),
            _text(100, top + 11, f"{number_text(figures.get('samples'))} samples", "soft", "end"),
            *_grid(axis, top + _LINE + 8, base),
        ]
        limit = limits.get(name)
        parts += _histogram(figures.get("histogram") or [], axis, base, limit)
        if limit:
            x = axis.at(limit)
            parts.append(_line(x, top + _LINE + 4, x, base, "limit"))
        parts += _percentiles(figures, axis, top + _LINE + 18, base, limit)
        said.append(
            f"{label}: "
            + ", ".join(f"{mark} {number_text(figures.get(key))} ms" for mark, key in _PERCENTILES)
            + f", longest {number_text(figures.get('max_ms'))} ms"
            + (f"; the p99 has to be below {number_text(limit)} ms" if limit else "")
        )
        top = base + 14
        if name == list(methods)[-1]:
            parts += _ticks(axis, top + 4)
            top += 10
        else:
            top += 12
    return _svg(identity, title, ". ".join(said) or "not measured", top, parts)


def rates(
    identity: str,
    title: str,
    rows: Sequence[tuple[str, float | None, Sequence[float] | None, str]],
    *,
    threshold: float | None = None,
    unit: str = "per second",
) -> Html:
    """Rates with their intervals of confidence: ``(name, rate, (low, high), verdict)``, and the threshold."""
    axis = scale(
        [threshold, *(rate for _, rate, _, _ in rows), *(v for _, _, ends, _ in rows for v in ends or ())],
        10,
        1000,
    )
    step, top = 44, 22 if threshold else 4
    bottom = top + step * len(rows)
    parts = _grid(axis, top, bottom)
    said = []
    if threshold:
        x = axis.at(threshold)
        parts.append(_line(x, 15, x, bottom, "limit"))
        parts.append(_beside(x, 11, f"at least {number_text(threshold)}", "halo limit-text"))
    for number, (name, rate, ends, verdict) in enumerate(rows):
        y = top + step * number
        shown = number_text(rate)
        parts.append(_text(0, y + 14, _short(name), "halo strong", full=name))
        parts.append(_text(100, y + 14, f"{shown}{'' if rate is None else f' {unit}'}", "halo", "end"))
        if rate is not None:
            parts.append(_rect(0, y + 21, axis.at(rate), 12, f"bar {_kind(verdict)}"))
            if ends:
                low, high = axis.at(ends[0]), axis.at(ends[1])
                parts.append(_line(low, y + 27, high, y + 27, "whisker"))
                parts += [_line(x, y + 23, x, y + 31, "whisker") for x in (low, high)]
        said.append(
            f"{name}: {shown}"
            + (f" ({number_text(ends[0])} to {number_text(ends[1])})" if ends else "")
            + f", {verdict}"
        )
    if threshold:
        said.append(f"wanted: at least {number_text(threshold)} {unit}")
    parts += _ticks(axis, bottom + 16)
    return _svg(identity, title, "; ".join(said), bottom + 22, parts)


def round_trips(
    identity: str,
    title: str,
    rows: Sequence[tuple[str, Mapping[str, Any], str]],
    *,
    warn: float | None = None,
    fail: float | None = None,
) -> Html:
    """Round-trip times of links: ``(name, figures, verdict)``. The bar runs from p50 to p99, the line to the longest.

    ``figures``: ``rtt_p50_ms``, ``rtt_p99_ms``, ``rtt_max_ms``, ``loss_percent``, and the same under ``load`` (a pale
    bar below). A link without an answer has no bar.
    """
    loads = [figures.get("load") or {} for _, figures, _ in rows]
    keys = ("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms")
    axis = scale([warn, fail, *(f.get(key) for _, r, _ in rows for f in (r,) for key in keys)], 0.1, 10)
    axis = scale(
        [10.0**axis.low, 10.0**axis.high, *(load.get(key) for load in loads for key in keys)], 0.1, 10
    )
    top, parts, said = 36, [], []
    y = top
    for (name, figures, verdict), load in zip(rows, loads, strict=True):
        p99, loss = figures.get("rtt_p99_ms"), figures.get("loss_percent")
        shown = f"p99 {number_text(p99)} ms" if p99 is not None else "unknown"
        if loss:
            shown += f", loss {number_text(loss)} %"
        parts.append(_text(0, y + 14, _short(name), "halo strong", full=name))
        parts.append(_text(100, y + 14, shown, "halo", "end"))
        said.append(f"{name}: {shown}, {verdict}")
        height = 10
        for number, (each, kind) in enumerate(((figures, _kind(verdict)), (load, "soft"))):
            if each.get("rtt_p99_ms") is None:
                continue
            row = y + 21 + 13 * number
            low, high, longest = (axis.at(each.get(key) or each["rtt_p99_ms"]) for key in keys)
            parts.append(_line(low, row + height / 2, longest, row + height / 2, "whisker"))
            parts.append(_rect(low, row, max(0.6, high - low), height, f"bar {kind}"))
            if number:
                said[-1] += f"; under load p99 {number_text(each['rtt_p99_ms'])} ms"
        y += 38 + (13 if load.get("rtt_p99_ms") is not None else 0)
    under = [*_grid(axis, top, y)]
    # Two lines of text, so that limits close to each other do not cover one another.
    for number, (limit, kind, word) in enumerate(
        ((warn, " warn", "warning above"), (fail, "", "refused above"))
    ):
        if limit:
            x = axis.at(limit)
            under.append(_line(x, 15 + 15 * number, x, y, f"limit{kind}"))
            under.append(
                _beside(x, 11 + 15 * number, f"{word} {number_text(limit)} ms", f"halo limit-text{kind}")
            )
            said.append(f"{word} {number_text(limit)} ms")
    return _svg(identity, title, "; ".join(said), y + 22, [*under, *parts, *_ticks(axis, y + 16)])


def _histogram(
    histogram: Sequence[Sequence[float]], axis: Scale, base: float, limit: float | None
) -> list[Html]:
    largest = max((count for _, count in histogram), default=0)
    bars = []
    for upper, count in histogram:
        left, right = axis.at(upper / _BUCKET), axis.at(upper)
        height = round(_BARS * math.log10(1 + count) / math.log10(1 + largest), 1)
        over = limit is not None and upper / _BUCKET >= limit
        bars.append(
            _rect(left, base - height, max(0.3, right - left - 0.25), height, "bar over" if over else "bar")
        )
    return bars


def _percentiles(
    figures: Mapping[str, Any], axis: Scale, top: float, base: float, limit: float | None
) -> list[Html]:
    """A line and a label for each percentile, each label on a lane of its own."""
    marks = [(mark, figures[key]) for mark, key in _PERCENTILES if figures.get(key) is not None]
    # At the right end labels stand left of their lines, and the other way up: so no line runs through a label.
    left = bool(marks) and axis.at(marks[0][1]) > _TURN
    lines, labels = [], []
    for number, (mark, value) in enumerate(reversed(marks) if left else marks):
        x, y = axis.at(value), top + number * _LINE
        over = bool(limit) and mark == "p99" and value >= (limit or 0)
        lines.append(_line(x, y - 9, x, base, "mark"))
        kind = "halo limit-text strong" if over else "halo"
        labels.append(_beside(x, y, f"{mark} {number_text(value)} ms", kind))
    return [*lines, *labels]


def _grid(axis: Scale, top: float, bottom: float) -> list[Html]:
    lines = [_line(axis.at(value), top, axis.at(value), bottom, "grid") for value in axis.decades]
    return [*lines, _line(0, bottom, 100, bottom, "axis")]


def _ticks(axis: Scale, y: float) -> list[Html]:
    values = axis.decades
    anchors = ["start", *["middle"] * (len(values) - 2), "end"]
    labels = [f"{value:,.0f}" if value >= 1 else f"{value:.{-round(math.log10(value))}f}" for value in values]
    return [
        _text(axis.at(value), y, label, "soft", anchor)
        for value, label, anchor in zip(values, labels, anchors, strict=True)
    ]


def _kind(verdict: str) -> str:
    return verdict if verdict in ("pass", "warn", "fail") else "soft"


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"


def _text(x: float, y: float, value: str, kind: str = "", anchor: str = "start", full: str = "") -> Html:
    inner = join([value, tag("title", full)]) if full and full != value else value
    return tag(
        "text",
        inner,
        x=f"{x:g}%",
        y=f"{y:g}",
        text_anchor=None if anchor == "start" else anchor,
        class_=kind or None,
    )


def _beside(x: float, y: float, value: str, kind: str) -> Html:
    """A text right of a line, left of it where the chart ends."""
    left = x > min(_TURN, 100 * (1 - (5 + len(value) * _CHARACTER) / _NARROWEST))
    return tag(
        "text",
        value,
        x=f"{x:g}%",
        y=f"{y:g}",
        dx="-5" if left else "5",
        text_anchor="end" if left else None,
        class_=kind or None,
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return tag("line", x1=f"{x1:g}%", y1=f"{y1:g}", x2=f"{x2:g}%", y2=f"{y2:g}", class_=kind)


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Html:
    return tag("rect", x=f"{x:g}%", y=f"{y:g}", width=f"{width:g}%", height=f"{height:g}", class_=kind)


def _svg(identity: str, title: str, description: str, height: float, parts: Sequence[Html]) -> Html:
    return tag(
        "svg",
        tag("title", title, id=f"{identity}-title"),
        tag("desc", description, id=f"{identity}-desc"),
        *parts,
        role="img",
        aria_labelledby=f"{identity}-title {identity}-desc",
        height=f"{height:g}",
        xmlns="http://www.w3.org/2000/svg",
    )


def figure(chart: Html, caption: object) -> Html:
    """A chart with what has to be known to read it."""
    return tag("figure", chart, tag("figcaption", text(caption)))
