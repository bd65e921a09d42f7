"use strict";
// The upper half of the page: facts, metric tables, calibration plot, notes.

const term = (name) => report.glossary[name] ?? { label: name.replaceAll("_", " "), text: "" };

const withUnit = (value, { digits = 3, unit }) =>
  value === null ? "–" : number(value, digits) + (unit === "ms" || unit === "s" ? ` ${unit}` : "");

const interval = (metric, { digits = 3 }) =>
  metric.low === null || metric.high === null
    ? "–"
    : `${number(metric.low, digits)} … ${number(metric.high, digits)}`;

/** A value and its interval on the scale of the metric, as a small picture. */
function intervalBar(metric, { range, target }) {
  if (!range || metric.value === null) return null;
  const width = 110;
  const x = (value) => 5 + ((width - 10) * (value - range[0])) / (range[1] - range[0]);
  const bar = svg("svg", { class: "interval", width, height: 18, "aria-hidden": "true" });
  bar.append(svg("line", { class: "scale", x1: x(range[0]), x2: x(range[1]), y1: 9, y2: 9 }));
  for (const mark of range[0] < 0 ? [...range, 0] : range) {
    bar.append(svg("line", { class: "scale", x1: x(mark), x2: x(mark), y1: 6, y2: 12 }));
  }
  if (target) bar.append(svg("line", { class: "target", x1: x(target), x2: x(target), y1: 3, y2: 15 }));
  if (metric.low !== null && metric.high !== null) {
    const left = Math.max(x(metric.low), 5);
    bar.append(svg("rect", { class: "span", x: left, y: 5, height: 8, width: Math.max(x(metric.high) - left, 1) }));
  }
  bar.append(svg("line", { class: "value", x1: x(metric.value), x2: x(metric.value), y1: 3, y2: 15 }));
  return bar;
}

const DIRECTIONS = { high: ["↑", "higher is better"], low: ["↓", "lower is better"] };

function direction({ better }) {
  if (!better) return null;
  const [sign, words] = DIRECTIONS[better] ?? [`→ ${better}`, `should be ${better}`];
  return el("span", { class: "direction", title: words, "aria-label": words, role: "img" }, sign);
}

function metricRow([name, metric]) {
  const entry = term(name);
  const unit = entry.unit && entry.unit !== "ms" && entry.unit !== "s" ? ` ${entry.unit}` : "";
  return el("tr", { class: metric.value === null ? "undefined" : null },
    el("th", { scope: "row" },
      el("span", { class: "label" }, entry.label + unit, " ", direction(entry) ?? ""),
      el("code", {}, name),
      el("span", { class: "explanation" },
        metric.value === null ? `Not defined on this data. ${entry.text}` : entry.text)),
    el("td", { class: "number value" }, withUnit(metric.value, entry)),
    el("td", { class: "number muted" }, interval(metric, entry)),
    el("td", { class: "bar" }, intervalBar(metric, entry)),
    el("td", { class: "number muted" }, metric.value === null ? "–" : String(metric.n)));
}

function metricTable() {
  const known = report.metrics.filter(([, metric]) => metric.value !== null);
  const unknown = report.metrics.filter(([, metric]) => metric.value === null);
  return el("table", { class: "metrics" },
    el("thead", {}, el("tr", {},
      el("th", { scope: "col" }, "Metric"),
      el("th", { scope: "col", class: "number" }, "Value"),
      el("th", { scope: "col", class: "number" }, "95 % interval"),
      el("th", { scope: "col", class: "bar" }, el("span", { class: "hidden" }, "On its scale")),
      el("th", { scope: "col", class: "number" }, "n"))),
    el("tbody", {}, [...known, ...unknown].map(metricRow)));
}

/** Metrics of several groups side by side; the first row is the whole, to compare with. */
function groupTable(title, text, groups, whole) {
  const names = [...new Set(groups.flatMap(([, metrics]) => metrics.map(([name]) => name)))];
  const rows = [[whole, report.metrics], ...groups];
  return el("section", { class: "group" },
    el("h2", {}, title),
    el("p", { class: "muted" }, text),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "hidden" }, "Group")),
          names.map((name) => el("th", { scope: "col", class: "number", title: term(name).text },
            term(name).label, " ", direction(term(name)) ?? "")))),
        el("tbody", {}, rows.map(([group, metrics], i) => groupRow(group, new Map(metrics), names, i === 0))))));
}

function groupRow(group, metrics, names, whole) {
  return el("tr", { class: whole ? "whole" : null },
    el("th", { scope: "row" }, group),
    names.map((name) => {
      const metric = metrics.get(name);
      if (!metric || metric.value === null) return el("td", { class: "number muted" }, "–");
      return el("td", { class: "number", title: `n = ${metric.n}` },
        el("span", { class: "value" }, withUnit(metric.value, term(name))),
        el("span", { class: "range" }, metric.low === null ? "" : interval(metric, term(name))));
    }));
}

function calibrationPlot({ nominal, empirical }) {
  const [size, left, bottom, top, right] = [300, 40, 34, 8, 18];
  const x = (p) => left + (size - left - right) * p;
  const y = (p) => size - bottom - (size - bottom - top) * p;
  const points = nominal.map((p, i) => (empirical[i] === null ? null : [x(p), y(empirical[i])]));
  const known = points.filter((point) => point !== null);
  const plot = svg("svg", { class: "calibration", viewBox: `0 0 ${size} ${size}`, role: "img",
    "aria-label": `Coverage of intervals: ${nominal.map((p, i) => `${percent(p)}: ${percent(empirical[i])}`).join(", ")}` });
  for (const p of [0, 0.25, 0.5, 0.75, 1]) {
    plot.append(
      svg("line", { class: "grid", x1: x(p), x2: x(p), y1: y(0), y2: y(1) }),
      svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(p), y2: y(p) }),
      svg("text", { x: x(p), y: y(0) + 14, "text-anchor": "middle" }, percent(p)),
      svg("text", { x: x(0) - 5, y: y(p) + 3.5, "text-anchor": "end" }, percent(p)));
  }
  const last = known.at(-1);
  if (known.length) {
    plot.append(svg("path", { class: "gap", d: `M${x(0)} ${y(0)}${linePath(known).replace("M", "L")}L${last[0]} ${y((last[0] - x(0)) / (x(1) - x(0)))}Z` }));
  }
  plot.append(
    svg("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
    svg("path", { class: "estimate", d: linePath(points) }),
    ...known.map(([cx, cy]) => svg("circle", { class: "point", cx, cy, r: 3 })),
    svg("text", { x: x(0.5), y: size - 4, "text-anchor": "middle" }, "nominal level of the interval"),
    svg("text", { x: x(0.03), y: y(0.94), class: "hint" }, "above: too cautious"),
    svg("text", { x: x(0.97), y: y(0.04), class: "hint", "text-anchor": "end" }, "below: too sure"));
  return el("figure", {}, el("h3", {}, "Calibration"), plot,
    el("figcaption", { class: "muted" }, "Share of frames whose true progress lies inside the interval of each level."));
}

function drawSummary() {
  byId("facts").append(...report.facts.map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  if (report.metrics.length) byId("metrics").append(metricTable());
  else byId("summary-title").textContent = "Notes";
  if (report.calibration) byId("aside").append(calibrationPlot(report.calibration));
  if (report.notes.length) {
    const place = byId(report.metrics.length ? "aside" : "metrics");
    if (report.metrics.length) place.append(el("h3", {}, "Notes"));
    place.append(el("ul", { class: "notes" }, report.notes.map((note) => el("li", {}, note))));
  }
  if (report.by_kind.length) {
    byId("groups").append(groupTable("By kind of episode", "Where the model is good, and where it is not.",
      report.by_kind, "all episodes"));
  }
  if (report.dropout.length) {
    byId("groups").append(groupTable("Cameras taken away", "The same episodes, evaluated without some of the cameras.",
      report.dropout, "all cameras"));
  }
}

drawSummary();
