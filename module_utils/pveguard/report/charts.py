# SPDX-License-Identifier: Apache-2.0
"""What the charts of the pages show, as plain data; ``templates/charts.js`` draws it with Chart.js.

Each chart has a text that says the same, for those who do not see it. Colours are names of the CSS variables of
``templates/colours.css``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.units import number_text

#: Colours of series in the order in which they are taken; the page has each for light and dark.
SERIES = ("series-1", "series-2", "series-3", "series-4", "series-5", "series-6")
#: For what is left when the series are taken.
REST = "series-rest"
#: Pixels of a row with one bar, of a row with two, of the axis, of a line of the legend and of what stands over the bars.
_SINGLE_ROW, _ROW, _AXIS, _LEGEND, _LINE = 34, 44, 44, 34, 15
#: Pixels of a panel of a distribution.
_PANEL = 136
#: Buckets of a histogram are a factor of the square root of two wide; see fsync_bench.
_BUCKET = math.sqrt(2)
_PERCENTILES = (("p50", "p50_ms"), ("p99", "p99_ms"), ("p99.9", "p99_9_ms"))
#: From this share of the width on a label stands left of its line: it needs a quarter of a phone's screen.
_TURN = 70


@dataclass(frozen=True)
class Chart:
    """``title`` and ``description`` are what a screen reader says, ``data`` is what charts.js draws.

    ``height``: pixels; ``narrow``: pixels on a phone, where the legend has more lines.
    """

    title: str
    description: str
    data: Mapping[str, Any]
    height: int
    narrow: int


@dataclass(frozen=True)
class Series:
    """Bars of one colour. ``values``: one for each row; None is unknown, a pair is a bar from one value to the other.

    ``labels``: the text at the end of each bar. ``colours``: one for each row in place of ``colour``. ``spans``: for each
    row the ends of a thin line over the bar.
    """

    name: str
    values: Sequence[float | Sequence[float] | None]
    labels: Sequence[str | None] = ()
    colour: str = SERIES[0]
    colours: Sequence[str] = ()
    spans: Sequence[Sequence[float] | None] = ()


@dataclass(frozen=True)
class Limit:
    """A line at ``value`` with its text."""

    value: float
    text: str
    colour: str = "fail"


def bars(
    title: str,
    description: str,
    rows: Sequence[str],
    series: Sequence[Series],
    *,
    unit: str = "",
    stacked: bool = False,
    logarithmic: bool = False,
) -> Chart:
    """Horizontal bars. ``unit``: what values are called; ``bytes`` are shown in binary units.

    Raises ValueError when a series does not have one value for each row.
    """
    data = _data(title, rows, series, unit=unit, stacked=stacked, logarithmic=logarithmic)
    legend = _LEGEND * (1 if len(series) < 4 else 2) if len(series) > 1 else 0
    row = _SINGLE_ROW if stacked or len(series) == 1 else _ROW
    height = _AXIS + legend + row * len(rows) + (14 if stacked else 0)
    # On a phone each name of the legend may need a line of its own.
    narrow = height + (22 * (len(series) - 1) if len(series) > 2 else 0)
    return Chart(title, description, data, height, narrow)


def _data(title: str, rows: Sequence[str], series: Sequence[Series], **more: Any) -> dict[str, Any]:
    for each in series:
        columns = (each.values, each.labels or rows, each.colours or rows, each.spans or rows)
        if any(len(column) != len(rows) for column in columns):
            raise ValueError(f"{title}: {each.name} does not have one value for each of {len(rows)} rows")
    return {
        "kind": "bars",
        "rows": list(rows),
        "series": [
            {
                "name": each.name,
                "values": list(each.values),
                "colour": each.colour,
                **({"colours": list(each.colours)} if each.colours else {}),
                **({"spans": list(each.spans)} if each.spans else {}),
            }
            for each in series
        ],
        "labels": [list(each.labels) for each in series] if any(each.labels for each in series) else None,
        **more,
    }


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

    def inside(self, value: float) -> float:
        """The value in six digits, or the edge it lies beyond: a logarithmic axis has no place for 0."""
        return float(f"{min(self.ends[1], max(self.ends[0], value)):.6g}")

    @property
    def ends(self) -> tuple[float, float]:
        return float(f"1e{self.low}"), float(f"1e{self.high}")


def scale(values: Sequence[float | None], low: float, high: float) -> Scale:
    """An axis that holds all ``values``, and ``low`` to ``high`` at least."""
    known = [value for value in (*values, low, high) if value is not None and value > 0]
    first, last = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    return Scale(first, max(last, first + 1))


def latency_scale(methods: Sequence[Mapping[str, Any]], limit: float | None = None) -> Scale:
    """The axis for the latencies of ``methods`` (figures of fsync_bench), so that several charts can share it."""
    values: list[float | None] = [limit]
    for figures in methods:
        values += [float(upper) for upper, _ in figures.get("histogram") or []]
        values += [figures.get("max_ms"), figures.get("p50_ms")]
    return scale(values, 0.1, 100)


def latency(
    title: str,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    axis: Scale | None = None,
    limits: Mapping[str, float] | None = None,
    names: Mapping[str, str] | None = None,
) -> Chart:
    """How long each sync took, one panel for each method, with the percentiles and the limit.

    ``methods``: name -> figures with ``histogram`` (pairs of upper limit in ms and count), percentiles and ``samples``.
    ``limits``: name -> milliseconds that its p99 has to stay below. ``names``: what the panels are called. The height of
    a bar is the logarithm of its count: one slow sync among thousands is seen.
    """
    limits, names = limits or {}, names or {}
    axis = axis or latency_scale(list(methods.values()), max(limits.values(), default=None))
    panels, said = [], []
    for name, figures in methods.items():
        label, limit = names.get(name, name), limits.get(name)
        panels.append(
            {
                "name": label,
                "note": f"{number_text(figures.get('samples'))} samples",
                "bars": _histogram(figures.get("histogram") or [], axis, limit),
                "limit": limit,
                **_percentiles(figures, axis, limit),
            }
        )
        said.append(
            f"{label}: "
            + ", ".join(f"{mark} {number_text(figures.get(key))} ms" for mark, key in _PERCENTILES)
            + f", longest {number_text(figures.get('max_ms'))} ms"
            + (f"; the p99 has to be below {number_text(limit)} ms" if limit else "")
        )
    data = {"kind": "latency", "axis": axis.ends, "panels": panels}
    height = _PANEL * len(panels) + _AXIS
    return Chart(title, ". ".join(said) or "not measured", data, height, height)


def _histogram(
    histogram: Sequence[Sequence[float]], axis: Scale, limit: float | None
) -> list[dict[str, Any]]:
    """Bars with their ends on the axis; ``height``: 0 to 1. Only what is certainly above the limit is ``over``."""
    largest = max((count for _, count in histogram), default=0)
    return [
        {
            "from": axis.inside(upper / _BUCKET),
            "to": axis.inside(upper),
            "count": count,
            "height": round(math.log10(1 + count) / math.log10(1 + largest), 4),
            "over": limit is not None and upper / _BUCKET >= limit,
        }
        for upper, count in histogram
        if count
    ]


def _percentiles(figures: Mapping[str, Any], axis: Scale, limit: float | None) -> dict[str, Any]:
    """The percentiles in the order of their lanes from the top; ``turned``: their labels stand left of their lines."""
    marks: list[dict[str, Any]] = [
        {
            "value": axis.inside(figures[key]),
            "text": f"{mark} {number_text(figures[key])} ms",
            "over": bool(limit) and mark == "p99" and figures[key] >= (limit or 0),
        }
        for mark, key in _PERCENTILES
        if figures.get(key) is not None
    ]
    # At the right end labels stand left of their lines, and the other way up: so no line runs through a label.
    turned = bool(marks) and axis.at(marks[0]["value"]) > _TURN
    return {"marks": marks[::-1] if turned else marks, "turned": turned}


def rates(
    title: str,
    rows: Sequence[tuple[str, float | None, Sequence[float] | None, str]],
    *,
    threshold: float | None = None,
    unit: str = "per second",
) -> Chart:
    """Rates with their intervals of confidence: ``(name, rate, (low, high), verdict)``, and the threshold."""
    axis = scale(
        [threshold, *(rate for _, rate, _, _ in rows), *(v for _, _, ends, _ in rows for v in ends or ())],
        10,
        1000,
    )
    said = []
    for name, rate, ends, verdict in rows:
        interval = f" ({number_text(ends[0])} to {number_text(ends[1])})" if ends else ""
        said.append(f"{name}: {number_text(rate)}{interval}, {verdict}")
    if threshold:
        said.append(f"wanted: at least {number_text(threshold)} {unit}")
    series = Series(
        "rate",
        [None if rate is None else axis.inside(rate) for _, rate, _, _ in rows],
        [f"{number_text(rate)}{'' if rate is None else f' {unit}'}" for _, rate, _, _ in rows],
        colours=[_colour(verdict) for _, _, _, verdict in rows],
        spans=[
            [axis.inside(end) for end in ends] if ends and rate is not None else None
            for _, rate, ends, _ in rows
        ],
    )
    limits = [Limit(threshold, f"at least {number_text(threshold)}")] if threshold else []
    return _named_bars(title, "; ".join(said), [row[0] for row in rows], [series], axis, limits, unit)


def round_trips(
    title: str,
    rows: Sequence[tuple[str, Mapping[str, Any], str]],
    *,
    warn: float | None = None,
    fail: float | None = None,
) -> Chart:
    """Round-trip times of links: ``(name, figures, verdict)``. The bar runs from p50 to p99, the line to the longest.

    ``figures``: ``rtt_p50_ms``, ``rtt_p99_ms``, ``rtt_max_ms``, ``loss_percent``, and the same under ``load`` (a pale
    bar below). A link without an answer has no bar.
    """
    keys = ("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms")
    loads = [figures.get("load") or {} for _, figures, _ in rows]
    every = [*(figures for _, figures, _ in rows), *loads]
    axis = scale([warn, fail, *(figures.get(key) for figures in every for key in keys)], 0.1, 10)

    def ends(figures: Mapping[str, Any], low: str, high: str) -> list[float] | None:
        p99 = figures.get("rtt_p99_ms")
        if p99 is None:
            return None
        first, last = (axis.inside(p99 if figures.get(key) is None else figures[key]) for key in (low, high))
        return [first, max(first, last)]

    labels, said = [], []
    for (name, figures, verdict), load in zip(rows, loads, strict=True):
        p99, loss = figures.get("rtt_p99_ms"), figures.get("loss_percent")
        shown = "unknown" if p99 is None else f"p99 {number_text(p99)} ms"
        labels.append(f"{shown}, loss {number_text(loss)} %" if loss else shown)
        loaded = load.get("rtt_p99_ms")
        under = "" if loaded is None else f"; under load p99 {number_text(loaded)} ms"
        said.append(f"{name}: {labels[-1]}, {verdict}{under}")
    series = [
        Series(
            "at rest",
            [ends(figures, *keys[:2]) for _, figures, _ in rows],
            labels,
            colours=[_colour(verdict) for _, _, verdict in rows],
            spans=[ends(figures, *keys[1:]) for _, figures, _ in rows],
        )
    ]
    if any(load.get("rtt_p99_ms") is not None for load in loads):
        series.append(
            Series(
                "under load",
                [ends(load, *keys[:2]) for load in loads],
                colour="mark-soft",
                spans=[ends(load, *keys[1:]) for load in loads],
            )
        )
    limits = [
        Limit(value, f"{word} {number_text(value)} ms", colour)
        for value, colour, word in ((warn, "warn", "warning above"), (fail, "fail", "refused above"))
        if value
    ]
    said += [limit.text for limit in limits]
    return _named_bars(title, "; ".join(said), [row[0] for row in rows], series, axis, limits, "ms")


def _named_bars(
    title: str,
    description: str,
    rows: Sequence[str],
    series: Sequence[Series],
    axis: Scale,
    limits: Sequence[Limit],
    unit: str,
) -> Chart:
    """Bars on a logarithmic axis, each under a line with the name of its row and, at the right end, its label."""
    shown = [{"value": each.value, "text": each.text, "colour": each.colour} for each in limits]
    data = _data(
        title, rows, series, unit=unit, stacked=False, logarithmic=True, named=True, axis=axis.ends, limits=shown
    )
    height = _AXIS + _LINE * len(limits) + (30 + 16 * len(series)) * len(rows)
    return Chart(title, description, data, height, height)


def _colour(verdict: str) -> str:
    return {"pass": "mark", "warn": "warn", "fail": "fail"}.get(verdict, "mark-soft")
