"use strict";
// Charts of several curves over one axis, such as learning curves, and plain tables.

// Told apart with any color vision and, without color, by their dashes.
const CURVES = [
  ["var(--estimate)", ""], ["var(--truth)", "7 3"], ["var(--good)", "2 3"],
  ["var(--bad)", "9 3 2 3"], ["var(--muted)", "4 4"], ["var(--ink)", "1 2"],
];
const curveStyle = (i) => {
  const [stroke, dash] = CURVES[i % CURVES.length];
  return { stroke, "stroke-dasharray": dash || null };
};

function curveBand(curve, x, y) {
  if (!curve.low || !curve.high) return null;
  const known = curve.x.map((_, i) => i).filter((i) => curve.low[i] !== null && curve.high[i] !== null);
  if (known.length < 2) return null;
  const points = [...known.map((i) => [x(curve.x[i]), y(curve.high[i])]),
    ...known.toReversed().map((i) => [x(curve.x[i]), y(curve.low[i])])];
  return svg("path", { d: `${linePath(points)}Z` });
}

function curvesFigure(chart) {
  const [width, height, left, right, top, bottom] = [620, 300, 46, 14, 8, 40];
  const last = Math.max(...chart.curves.flatMap((curve) => curve.x), 1e-6);
  const x = (value) => left + ((width - left - right) * value) / last;
  const y = (value) => height - bottom - (height - bottom - top) * value;
  const plot = svg("svg", { class: "curves", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${chart.title}. ${chart.curves.map((curve) => `${curve.name}: ${percent(curve.y.at(-1) ?? null)} at the end`).join(", ")}` });
  for (const level of [0, 0.25, 0.5, 0.75, 1]) {
    plot.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(level), y2: y(level) }),
      svg("text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, percent(level)));
  }
  for (const tick of ticks(0, last, 7)) {
    plot.append(svg("text", { x: x(tick), y: height - bottom + 16, "text-anchor": "middle" }, String(Number(tick.toFixed(3)))));
  }
  plot.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, chart.x_label));
  chart.curves.forEach((curve, i) => {
    const band = curveBand(curve, x, y);
    if (band) plot.append(fill(band, { class: "band", fill: curveStyle(i).stroke }, []));
  });
  chart.curves.forEach((curve, i) => {
    const points = curve.x.map((value, j) => (curve.y[j] === null ? null : [x(value), y(curve.y[j])]));
    plot.append(svg("path", { class: "curve", d: linePath(points), ...curveStyle(i) }));
  });
  const key = (curve, i) => el("li", {},
    svg("svg", { "aria-hidden": "true" }, svg("line", { x2: 20, y1: 5, y2: 5, "stroke-width": 2, ...curveStyle(i) })),
    curve.name);
  return el("figure", {}, el("h3", {}, chart.title), el("p", { class: "muted" }, chart.y_label), plot,
    el("ul", { class: "keys" }, chart.curves.map(key)),
    chart.text ? el("figcaption", { class: "muted" }, chart.text) : null);
}

function plainTable({ title, text, columns, rows }) {
  return el("section", { class: "plain" }, el("h3", {}, title), el("p", { class: "muted" }, text),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      el("table", {},
        el("thead", {}, el("tr", {}, columns.map((name, i) =>
          el("th", { scope: "col", class: i ? "number" : null }, name)))),
        el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) =>
          i ? el("td", { class: "number" }, cell) : el("th", { scope: "row" }, cell))))))));
}

function drawCurves() {
  if (!report.charts.length && !report.tables.length) return;
  byId("curves").hidden = false;
  if (report.charts.length) byId("curves").append(el("h2", {}, "Curves"));
  byId("curves").append(el("div", { class: "charts" }, report.charts.map(curvesFigure)), ...report.tables.map(plainTable));
}

drawCurves();
byId("summary").hidden = !report.metrics.length && !report.notes.length && !report.calibration;
