"""Charts drawn by Chart.js on a page of :mod:`html_page`, which stays complete without them.

A chart is a canvas with a text that says the same, and a table beside it; the script only draws what the attribute
``data-chart`` of the canvas holds. Colours are names of the page's CSS variables and are looked up when a chart is
drawn, so that it follows the scheme of the screen and the one of paper. Nothing here is fetched: the library is given
as text and becomes part of the page, and the page's policy lets exactly these scripts run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .html_page import LIGHT, Html, details, tag, text

#: Colours of series in the order in which they are taken; the page has each for light and dark.
SERIES = ("series-1", "series-2", "series-3", "series-4", "series-5", "series-6")
#: For what is left when the series are taken.
REST = "series-rest"
#: Pixels of a row of bars, and of axis and legend together.
_ROW, _SINGLE_ROW, _FRAME, _LEGEND = 44, 34, 44, 34

CSS = (
    """
.chart{display:none;position:relative;margin:1rem 0 .25rem;min-width:0}
.js .chart{display:block}
.chart canvas{display:block;max-width:100%}
"""
    + ".paper{display:none;"
    + ";".join(f"--{name}:{value}" for name, value in LIGHT.items())
    + "}\n"
)

# Drawn without animation. Before printing every chart is drawn anew in the colours of paper.
SCRIPT = """
(function () {
  "use strict";
  if (typeof Chart === "undefined") { return; }
  var root = document.documentElement, printing = false, charts = [];
  root.classList.add("js");
  function colour(name) {
    var from = printing ? document.querySelector(".paper") : root;
    return getComputedStyle(from).getPropertyValue("--" + name).trim();
  }
  function short(value, length) {
    value = String(value);
    return value.length > length ? value.slice(0, length - 1) + "\\u2026" : value;
  }
  var units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  function number(value) {
    return value.toLocaleString("en-US", {maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2});
  }
  function shown(value, unit) {
    if (value === null || value === undefined) { return "unknown"; }
    if (unit !== "bytes") { return number(value) + (unit ? " " + unit : ""); }
    var at = 0;
    while (Math.abs(value) >= 999.5 && at < units.length - 1) { value /= 1024; at += 1; }
    return number(value) + " " + units[at];
  }
  // Steps of an axis of bytes: a power of two, six at most.
  function step(spec) {
    var most = 0;
    spec.series.forEach(function (each) {
      each.values.forEach(function (value) { most = Math.max(most, Array.isArray(value) ? value[1] : value || 0); });
    });
    return spec.unit === "bytes" && most >= 8 ? Math.pow(2, Math.ceil(Math.log2(most / 6))) : undefined;
  }
  // The figure at the end of each bar, so that nobody has to point at it.
  var figures = {
    id: "figures",
    afterDatasetsDraw: function (chart) {
      var spec = chart.config.options.pveguard, context = chart.ctx;
      if (!spec.labels) { return; }
      context.save();
      context.font = "600 12px " + Chart.defaults.font.family;
      context.textBaseline = "middle";
      chart.data.datasets.forEach(function (set, at) {
        chart.getDatasetMeta(at).data.forEach(function (bar, row) {
          var label = spec.labels[at][row];
          if (label === null || label === undefined) { return; }
          var x = bar.x, room = chart.width - x, wide = context.measureText(label).width;
          if (isNaN(x) || set.data[row] === null) { x = chart.chartArea.left; room = chart.width; }
          var inside = wide + 12 > room;
          context.textAlign = inside ? "right" : "left";
          context.fillStyle = inside ? colour("card") : colour("text");
          context.fillText(label, inside ? x - 6 : x + 6, bar.y);
        });
      });
      context.restore();
    }
  };
  function build(canvas) {
    var spec = JSON.parse(canvas.getAttribute("data-chart"));
    var narrow = canvas.parentNode.clientWidth < 480;
    var sets = spec.series.map(function (each) {
      return {
        label: each.name, data: each.values, backgroundColor: colour(each.colour), borderRadius: spec.stacked ? 0 : 3,
        borderSkipped: spec.stacked ? "middle" : "start", maxBarThickness: 22, minBarLength: spec.stacked ? 0 : 2,
        categoryPercentage: 0.78, barPercentage: 0.9,
        borderColor: colour("card"), borderWidth: spec.stacked ? {right: 1} : 0
      };
    });
    var grid = {color: colour("grid"), drawTicks: false}, ticks = {color: colour("muted"), padding: 6};
    return new Chart(canvas, {
      type: "bar",
      plugins: [figures],
      data: {labels: spec.rows, datasets: sets},
      options: {
        indexAxis: "y", responsive: true, maintainAspectRatio: false, animation: false,
        pveguard: spec,
        layout: {padding: {right: spec.labels ? (narrow ? 58 : 76) : 4}},
        scales: {
          x: {
            type: spec.logarithmic ? "logarithmic" : "linear", beginAtZero: true, stacked: !!spec.stacked, grid: grid,
            border: {display: false},
            min: spec.logarithmic ? 1 : undefined,
            ticks: Object.assign({}, ticks, {
              maxTicksLimit: narrow ? 5 : 7, maxRotation: 0, stepSize: step(spec),
              callback: function (value) {
                if (spec.logarithmic && Math.abs(Math.log10(value) % 1) > 1e-9) { return null; }
                return shown(value, spec.unit);
              }
            })
          },
          y: {
            stacked: !!spec.stacked, grid: {display: false}, border: {color: colour("line")},
            ticks: Object.assign({}, ticks, {
              color: colour("text"), autoSkip: false,
              callback: function (value) { return short(this.getLabelForValue(value), narrow ? 14 : 28); }
            })
          }
        },
        plugins: {
          legend: {
            display: spec.series.length > 1, position: "top", align: "start",
            labels: {color: colour("text"), boxWidth: 12, boxHeight: 12, padding: 12}
          },
          tooltip: {
            backgroundColor: colour("text"), titleColor: colour("card"), bodyColor: colour("card"), displayColors: false,
            callbacks: {
              label: function (item) {
                var raw = item.raw;
                var ends = (Array.isArray(raw) ? raw : [raw]).map(function (end) { return shown(end, spec.unit); });
                return item.dataset.label + ": " + ends.join(" to ");
              }
            }
          }
        }
      }
    });
  }
  function draw() {
    charts.forEach(function (chart) { chart.destroy(); });
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.font.size = 12;
    charts = Array.prototype.map.call(document.querySelectorAll("canvas[data-chart]"), build);
  }
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("beforeprint", function () { printing = true; draw(); });
  window.addEventListener("afterprint", function () { printing = false; draw(); });
})();
"""


@dataclass(frozen=True)
class Series:
    """Bars of one colour. ``values``: one for each row; None is unknown, a pair is a bar from one value to the other.
    ``labels``: the text at the end of each bar.
    """

    name: str
    values: Sequence[float | Sequence[float] | None]
    labels: Sequence[str | None] = ()
    colour: str = SERIES[0]


def bars(
    title: str,
    description: str,
    rows: Sequence[str],
    series: Sequence[Series],
    *,
    unit: str = "",
    stacked: bool = False,
    logarithmic: bool = False,
) -> Html:
    """Horizontal bars. ``title`` and ``description`` are what a screen reader says instead of the chart.

    ``unit``: what values are called; ``bytes`` are shown in binary units. Raises ValueError when a series does not
    have one value for each row.
    """
    for each in series:
        if len(each.values) != len(rows) or (each.labels and len(each.labels) != len(rows)):
            raise ValueError(f"{title}: {each.name} does not have one value for each of {len(rows)} rows")
    spec: dict[str, Any] = {
        "rows": list(rows),
        "series": [
            {"name": each.name, "values": list(each.values), "colour": each.colour} for each in series
        ],
        "labels": [list(each.labels) for each in series] if any(each.labels for each in series) else None,
        "unit": unit,
        "stacked": stacked,
        "logarithmic": logarithmic,
    }
    lanes = 1 if stacked else len(series)
    row = _SINGLE_ROW if lanes == 1 else _ROW
    legend = _LEGEND * (1 if len(series) < 4 else 2) if len(series) > 1 else 0
    height = _FRAME + legend + row * len(rows) + (14 if stacked else 0)
    # On a phone each name of the legend may need a line of its own.
    narrow = height + (22 * (len(series) - 1) if len(series) > 2 else 0)
    canvas = tag(
        "canvas",
        role="img",
        aria_label=f"{title}. {description}",
        data_chart=json.dumps(spec, sort_keys=True),
    )
    # An inline style of its own would need a wider policy than heights in a style sheet do.
    return tag("div", canvas, class_=f"chart h{_step(height)} m{_step(narrow)}")


def _step(height: int) -> int:
    return -(-height // 20)


def heights(page: str) -> str:
    """The rules of the heights that charts of ``page`` use."""
    found = set(re.findall(r'class="chart h(\d+) m(\d+)"', page))
    wide = "".join(f".chart.h{n}{{height:{int(n) * 20}px}}\n" for n in sorted({each[0] for each in found}))
    narrow = "".join(f".chart.m{n}{{height:{int(n) * 20}px}}" for n in sorted({each[1] for each in found}))
    return f"{wide}@media screen and (max-width:40rem){{{narrow}}}\n"


def figure(chart: Html, caption: object, *table: Html, title: str = "The same as a table") -> Html:
    """A chart, what has to be known to read it, and the same figures as a table on demand."""
    return tag(
        "figure", chart, tag("figcaption", text(caption)), *([details(title, *table)] if table else [])
    )
