// Draws what the attribute data-chart of each canvas holds (see charts.py) with Chart.js. Colours are names of the page's
// CSS variables and looked up when a chart is drawn, so that it follows the scheme of the screen and the one of paper.
(function () {
  "use strict";
  if (typeof Chart === "undefined") { return; }

  // Pixels: a panel of a distribution is a gap, its name, lanes for the percentiles, then the bars.
  var LINE = 15, PANEL_GAP = 12, PANEL_NAME = 20, BAR_SHARE = 0.42, PHONE = 480, PAPER_SHARPNESS = 3;
  var UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  var root = document.documentElement, printing = false, charts = [];
  root.classList.add("js");

  // -- words and colours

  function colour(name) {
    var from = printing ? document.querySelector(".paper") : root;
    return getComputedStyle(from).getPropertyValue("--" + name).trim();
  }
  function short(value, length) {
    value = String(value);
    return value.length > length ? value.slice(0, length - 1) + "\u2026" : value;
  }
  function number(value) {
    var digits = value >= 100 ? 0 : value >= 10 ? 1 : value >= 0.1 || value === 0 ? 2 : 3 - Math.floor(Math.log10(value));
    return value.toLocaleString("en-US", {maximumFractionDigits: Math.min(digits, 9)});
  }
  function shown(value, unit) {
    if (value === null || value === undefined) { return "unknown"; }
    if (unit !== "bytes") { return number(value) + (unit ? " " + unit : ""); }
    var at = 0;
    while (Math.abs(value) >= 999.5 && at < UNITS.length - 1) { value /= 1024; at += 1; }
    return number(value) + " " + UNITS[at];
  }
  function font(context, strong) { context.font = (strong ? "600 " : "") + "12px " + Chart.defaults.font.family; }

  // A text with the colour of the card around it, so that it can be read on a line.
  function write(context, value, x, y, options) {
    font(context, options.strong);
    context.textAlign = options.align || "left";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.lineWidth = 4;
    context.strokeStyle = colour("card");
    context.strokeText(value, x, y);
    context.fillStyle = colour(options.colour || "text");
    context.fillText(value, x, y);
  }
  // Beside the line at x: to its left when that is wanted or there is no room to its right.
  function beside(chart, value, x, y, options) {
    font(chart.ctx, options.strong);
    var wide = chart.ctx.measureText(value).width + 6;
    var left = (options.left && x - wide >= 0) || x + wide > chart.width;
    write(chart.ctx, value, left ? x - 5 : x + 5, y, Object.assign({align: left ? "right" : "left"}, options));
  }
  // As much of the text as fits.
  function fitted(context, value, room) {
    var length = value.length;
    font(context, true);
    while (length > 1 && context.measureText(short(value, length)).width > room) { length -= 1; }
    return short(value, length);
  }
  function line(context, x1, y1, x2, y2, name, options) {
    context.save();
    context.beginPath();
    context.strokeStyle = colour(name);
    context.lineWidth = (options && options.width) || 1;
    if (options && options.dashed) { context.setLineDash([5, 3]); }
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    context.restore();
  }

  // -- what stands on the bars; each is a plug-in of Chart.js

  // The figure at the end of each bar, so that nobody has to point at it.
  var figures = {
    id: "figures",
    afterDatasetsDraw: function (chart) {
      var spec = chart.config.options.pveguard;
      if (!spec.labels || spec.named) { return; }
      chart.data.datasets.forEach(function (set, at) {
        chart.getDatasetMeta(at).data.forEach(function (bar, row) {
          var label = spec.labels[at][row], context = chart.ctx;
          if (label === null || label === undefined) { return; }
          font(context, true);
          var x = bar.x, room = chart.width - x, wide = context.measureText(label).width + 12, name = "text";
          if (isNaN(x) || set.data[row] === null) { x = chart.chartArea.left; room = chart.width; }
          var left = wide > room;
          // Within a bar that is long enough, else before it.
          if (left && x - bar.base >= wide) { name = "card"; } else if (left) { x = bar.base; }
          context.textAlign = left ? "right" : "left";
          context.textBaseline = "middle";
          context.fillStyle = colour(name);
          context.fillText(label, left ? x - 6 : x + 6, bar.y);
        });
      });
    }
  };
  // The name of a row over its bars, and its figure at the right end.
  var names = {
    id: "names",
    afterDatasetsDraw: function (chart) {
      var spec = chart.config.options.pveguard, area = chart.chartArea;
      if (!spec.named) { return; }
      chart.getDatasetMeta(0).data.forEach(function (lane, row) {
        var label = spec.labels[0][row] || "", y = lane.y + 1;
        font(chart.ctx, false);
        var room = area.right - area.left - chart.ctx.measureText(label).width - 12;
        write(chart.ctx, fitted(chart.ctx, spec.rows[row], room), area.left, y, {strong: true});
        write(chart.ctx, label, area.right, y, {align: "right"});
      });
    }
  };
  // From one end to the other of what a bar only sums up: an interval of confidence, or the longest time.
  var spans = {
    id: "spans",
    afterDatasetsDraw: function (chart) {
      chart.data.datasets.forEach(function (set, at) {
        (set.spans || []).forEach(function (ends, row) {
          if (!ends) { return; }
          var y = chart.getDatasetMeta(at).data[row].y;
          var x = ends.map(function (end) { return chart.scales.x.getPixelForValue(end); });
          line(chart.ctx, x[0], y, x[1], y, "text", {width: 1.5});
          x.forEach(function (each) { line(chart.ctx, each, y - 3.5, each, y + 3.5, "text", {width: 1.5}); });
        });
      });
    }
  };
  // Each limit has a line of text of its own over the bars, so that those close to each other can be read.
  var limits = {
    id: "limits",
    beforeDatasetsDraw: function (chart) {
      var list = chart.config.options.pveguard.limits || [], area = chart.chartArea;
      list.forEach(function (limit, at) {
        var x = chart.scales.x.getPixelForValue(limit.value), y = area.top - LINE * (list.length - at) + LINE / 2 - 2;
        line(chart.ctx, x, y + 6, x, area.bottom, limit.colour, {width: 1.5, dashed: true});
        beside(chart, limit.text, x, y, {colour: limit.colour});
      });
    }
  };
  // Names, percentiles and limits of the panels of a distribution.
  var panels = {
    id: "panels",
    beforeDatasetsDraw: function (chart) { eachPanel(chart, drawLimit); },
    afterDatasetsDraw: function (chart) { eachPanel(chart, drawPanel); }
  };
  function eachPanel(chart, draw) {
    var list = chart.config.options.pveguard.panels;
    list.forEach(function (panel, at) {
      draw(chart, panel, chart.scales.y.getPixelForValue(list.length - at), chart.scales.y.getPixelForValue(list.length - 1 - at));
    });
  }
  function drawLimit(chart, panel, top, base) {
    if (!panel.limit) { return; }
    var x = chart.scales.x.getPixelForValue(panel.limit);
    line(chart.ctx, x, top + PANEL_GAP + PANEL_NAME, x, base, "fail", {width: 1.5, dashed: true});
  }
  function drawPanel(chart, panel, top, base) {
    var area = chart.chartArea, lane = top + PANEL_GAP + PANEL_NAME + LINE / 2;
    line(chart.ctx, area.left, base, area.right, base, "line");
    write(chart.ctx, panel.name, area.left, top + PANEL_GAP + 6, {strong: true});
    write(chart.ctx, panel.note, area.right, top + PANEL_GAP + 6, {align: "right", colour: "muted"});
    panel.marks.forEach(function (mark, at) {
      var x = chart.scales.x.getPixelForValue(mark.value);
      line(chart.ctx, x, lane + LINE * at - 6, x, base, mark.over ? "fail" : "text");
    });
    panel.marks.forEach(function (mark, at) {
      var x = chart.scales.x.getPixelForValue(mark.value);
      beside(chart, mark.text, x, lane + LINE * at, {left: panel.turned, strong: mark.over, colour: mark.over ? "fail" : "text"});
    });
  }

  // -- axes

  // Steps of an axis of bytes: a power of two, six at most.
  function step(spec) {
    var most = 0;
    spec.series.forEach(function (each) {
      each.values.forEach(function (value) { most = Math.max(most, Array.isArray(value) ? value[1] : value || 0); });
    });
    return spec.unit === "bytes" && most >= 8 ? Math.pow(2, Math.ceil(Math.log2(most / 6))) : undefined;
  }
  function valueAxis(spec, narrow) {
    var axis = {
      type: spec.logarithmic ? "logarithmic" : "linear", beginAtZero: true, stacked: !!spec.stacked,
      grid: {color: colour("grid"), drawTicks: false}, border: {display: false},
      min: spec.logarithmic ? 1 : undefined,
      ticks: {
        color: colour("muted"), padding: 6, maxTicksLimit: narrow ? 5 : 7, maxRotation: 0, stepSize: step(spec),
        callback: function (value) {
          if (spec.logarithmic && Math.abs(Math.log10(value) % 1) > 1e-9) { return null; }
          return shown(value, spec.unit);
        }
      }
    };
    return spec.axis ? decades(axis, spec.axis) : axis;
  }
  // An axis from one power of ten to another, with a mark at each.
  function decades(axis, ends) {
    axis.type = "logarithmic";
    axis.min = ends[0];
    axis.max = ends[1];
    axis.afterBuildTicks = function (scale) {
      scale.ticks = [];
      for (var power = Math.round(Math.log10(ends[0])); power <= Math.round(Math.log10(ends[1])); power += 1) {
        scale.ticks.push({value: Number("1e" + power)});
      }
    };
    axis.ticks.autoSkipPadding = 8;
    axis.ticks.callback = function (value) { return number(value); };
    return axis;
  }
  function rowAxis(spec, narrow) {
    return {
      stacked: !!spec.stacked, grid: {display: false}, border: {color: colour("line"), display: !spec.named},
      ticks: {
        display: !spec.named, color: colour("text"), padding: 6, autoSkip: false,
        callback: function (value) { return short(this.getLabelForValue(value), narrow ? 14 : 28); }
      }
    };
  }
  function tooltip(label) {
    return {
      backgroundColor: colour("text"), titleColor: colour("card"), bodyColor: colour("card"), displayColors: false,
      callbacks: label
    };
  }

  // -- kinds of charts; each returns what Chart.js takes

  function bars(spec, narrow) {
    var sets = spec.series.map(function (each) {
      var fill = each.colours ? each.colours.map(colour) : colour(each.colour);
      return {
        label: each.name, data: each.values, spans: each.spans, backgroundColor: fill, borderRadius: spec.stacked ? 0 : 3,
        borderSkipped: spec.stacked ? "middle" : "start", maxBarThickness: spec.named ? 12 : 22,
        minBarLength: spec.stacked ? 0 : 2, categoryPercentage: spec.named ? 0.94 : 0.78, barPercentage: 0.9,
        borderColor: colour("card"), borderWidth: spec.stacked ? {right: 1} : 0
      };
    });
    // The lane of the names is a series without bars.
    if (spec.named) { sets.unshift({label: "", data: spec.rows.map(function () { return null; }), maxBarThickness: 12}); }
    return {
      type: "bar",
      plugins: [limits, figures, spans, names],
      data: {labels: spec.rows, datasets: sets},
      options: {
        indexAxis: "y",
        layout: {padding: {right: spec.named ? 8 : spec.labels ? (narrow ? 58 : 76) : 4, top: LINE * (spec.limits || []).length}},
        scales: {x: valueAxis(spec, narrow), y: rowAxis(spec, narrow)},
        plugins: {
          legend: {
            display: spec.series.length > 1 && !spec.named, position: "top", align: "start",
            labels: {color: colour("text"), boxWidth: 12, boxHeight: 12, padding: 12}
          },
          tooltip: tooltip({
            label: function (item) {
              var ends = Array.isArray(item.raw) ? item.raw : [item.raw];
              return item.dataset.label + ": " + ends.map(function (end) { return shown(end, spec.unit); }).join(" to ");
            }
          })
        }
      }
    };
  }

  // Pixels of a bucket, which is a factor of the square root of two wide, and a gap.
  function bucket(context) {
    var axis = context.chart.scales.x;
    return axis.width * Math.log10(Math.SQRT2) / Math.log10(axis.max / axis.min) - 1;
  }
  // A histogram over another on one axis of milliseconds; the panel at position p stands on the height count - 1 - p.
  function latency(spec) {
    var count = spec.panels.length;
    var sets = spec.panels.map(function (panel, at) {
      return {
        label: panel.name, grouped: false, barThickness: bucket, borderSkipped: false,
        backgroundColor: panel.bars.map(function (bar) { return colour(bar.over ? "fail" : "mark"); }),
        data: panel.bars.map(function (bar) {
          var base = count - 1 - at;
          return {x: Math.sqrt(bar.from * bar.to), y: [base, base + BAR_SHARE * bar.height], bar: bar};
        })
      };
    });
    return {
      type: "bar",
      plugins: [panels],
      data: {datasets: sets},
      options: {
        layout: {padding: {right: 8}},
        scales: {
          x: decades({offset: false, grid: {color: colour("grid"), drawTicks: false, offset: false},
            border: {display: false}, ticks: {color: colour("muted"), padding: 6, maxRotation: 0}}, spec.axis),
          y: {min: 0, max: count, display: false}
        },
        plugins: {
          legend: {display: false},
          tooltip: tooltip({
            title: function (items) {
              var bar = items[0].raw.bar;
              return number(bar.from) + " to " + number(bar.to) + " ms";
            },
            label: function (item) { return item.dataset.label + ": " + number(item.raw.bar.count); }
          })
        }
      }
    };
  }

  function build(canvas) {
    var spec = JSON.parse(canvas.getAttribute("data-chart")), box = canvas.parentNode;
    var made = (spec.kind === "latency" ? latency : bars)(spec, box.clientWidth < PHONE);
    ["width", "height", "style"].forEach(function (name) { canvas.removeAttribute(name); });
    if (printing) {
      canvas.width = box.clientWidth;
      canvas.height = box.clientHeight;
      made.options.devicePixelRatio = PAPER_SHARPNESS;
    }
    Object.assign(made.options, {responsive: !printing, maintainAspectRatio: false, animation: false, pveguard: spec});
    return new Chart(canvas, made);
  }
  // Without animation: a page that is printed or photographed is complete.
  function draw() {
    charts.forEach(function (chart) { chart.destroy(); });
    root.classList.toggle("printing", printing);
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.font.size = 12;
    charts = Array.prototype.map.call(document.querySelectorAll("canvas[data-chart]"), build);
  }
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("beforeprint", function () { printing = true; draw(); });
  window.addEventListener("afterprint", function () { printing = false; draw(); });
})();
