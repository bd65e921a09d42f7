"use strict";
// The comparison: bars by metric, the table of values or paired differences, curves of all methods.

const term = (name) => report.glossary[name] ?? { label: name.replaceAll("_", " "), text: "" };
const isReference = (method) => method.name === report.reference;
// Okabe and Ito, then the same hues lighter: as many methods as are told apart at a glance, and more.
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#8856a7",
  "#66a61e", "#a6761d", "#1b9e77", "#e7298a", "#666666", "#b3b300", "#6a51a3", "#fb6a4a"];
const others = report.methods.filter((method) => !isReference(method));
const colorOf = (method) =>
  isReference(method) ? "var(--estimate)" : COLORS[1 + (others.indexOf(method) % (COLORS.length - 1))];
const shown = (value, entry) => number(value, entry.digits ?? 3);
const ARROWS = { high: "↑", low: "↓" };
const WORDS = { high: "higher is better", low: "lower is better" };

function facts() {
  byId("facts").append(...report.facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  if (report.notes.length) {
    byId("notes").append(el("h2", {}, "Notes"),
      el("ul", { class: "notes" }, report.notes.map((note) => el("li", {}, note))));
  }
}

/** Methods from best to worst in one metric; those it is not defined for are left out. */
function ranked(metric) {
  const sign = term(metric).better === "low" ? 1 : -1;
  return report.methods
    .filter((method) => (method.metrics[metric]?.value ?? null) !== null)
    .sort((a, b) => sign * (a.metrics[metric].value - b.metrics[metric].value));
}

/** One metric: a row for each method, best first, with its interval; better is to the right. */
function barChart(metric) {
  const entry = term(metric);
  const methods = ranked(metric);
  const [width, left, right, row] = [420, 138, 52, 20];
  const values = methods.flatMap(({ metrics: { [metric]: m } }) => [m.value, m.low ?? m.value, m.high ?? m.value]);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const flip = entry.better === "low";
  const scale = (width - left - right) / (high - low);
  const x = (value) => left + scale * (flip ? high - value : value - low);
  const height = row * methods.length + 4;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${entry.label}: ${methods.map((m) => `${m.name} ${shown(m.metrics[metric].value, entry)}`).join(", ")}` });
  const reference = methods.find(isReference);
  if (reference) {
    const at = x(reference.metrics[metric].value);
    root.append(svg("line", { class: "guide", x1: at, x2: at, y1: 0, y2: height }));
  }
  methods.forEach((method, i) => {
    const m = method.metrics[metric];
    const y = row * i + row / 2 + 2;
    const range = m.low === null ? "" : `, 95 % interval ${shown(m.low, entry)} … ${shown(m.high, entry)}`;
    root.append(svg("g", { class: isReference(method) ? "reference" : null },
      svg("title", {}, `${method.name}: ${shown(m.value, entry)}${range}`),
      svg("text", { class: "name", x: 0, y: y + 4 }, method.name),
      svg("line", { class: "whole", x1: left, x2: width - right, y1: y, y2: y }),
      m.low === null ? null : svg("line", { class: "span", x1: x(m.low), x2: x(m.high), y1: y, y2: y }),
      svg("circle", { class: "mark", cx: x(m.value), cy: y, r: 4.5 }),
      svg("text", { class: "value", x: width, y: y + 4 }, shown(m.value, entry))));
  });
  return el("figure", {},
    el("h3", {}, entry.label, " ", el("span", { class: "direction", title: WORDS[entry.better] ?? "" }, ARROWS[entry.better] ?? "")),
    el("p", { class: "muted" }, entry.text), root);
}

const MODES = {
  values: { label: "Values",
    text: "Value and 95 % interval. Underlined: the best. A method that says nothing about a metric has a dash." },
  differences: { label: `Minus ${report.reference}`,
    text: `Method minus ${report.reference}, over the same resampled episodes. Green: better than ${report.reference} beyond doubt. Red: worse beyond doubt. Plain: the interval holds 0.` },
};

function cell(method, metric, mode, best) {
  const entry = term(metric);
  const m = mode === "values" ? method.metrics[metric] : method.differences[metric];
  if ((m?.value ?? null) === null) return el("td", { class: "number muted" }, "–");
  const behind = mode === "differences" ? method.behind[metric] ?? null : null;
  const sign = mode === "differences" && m.value > 0 ? "+" : "";
  const kind = behind === null ? "" : behind ? "behind" : "ahead";
  return el("td", { class: `number ${kind} ${mode === "values" && best === method ? "best" : ""}`, title: `n = ${m.n}` },
    el("span", { class: "value" }, sign + shown(m.value, entry)),
    m.low === null ? null : el("span", { class: "range" }, `${shown(m.low, entry)} … ${shown(m.high, entry)}`));
}

function table(mode) {
  byId("table-text").textContent = MODES[mode].text;
  for (const button of byId("table-modes").children) {
    button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  }
  const metrics = mode === "values" ? report.metrics
    : report.metrics.filter((metric) => others.some((method) => method.differences[metric]));
  const best = Object.fromEntries(metrics.map((metric) => [metric, term(metric).better in ARROWS ? ranked(metric)[0] : null]));
  const head = metrics.map((metric) => {
    const entry = term(metric);
    return el("th", { scope: "col", class: "number", title: entry.text },
      entry.label + (entry.unit ? ` (${entry.unit})` : ""), " ",
      el("span", { class: "direction", title: WORDS[entry.better] ?? "" }, ARROWS[entry.better] ?? ""));
  });
  const rows = (mode === "values" ? report.methods : others).map((method) =>
    el("tr", { class: isReference(method) ? "reference" : null },
      el("th", { scope: "row" }, method.name,
        method.causal ? null : el("span", { class: "looks", title: "its estimates use later frames" }, " looks ahead")),
      metrics.map((metric) => cell(method, metric, mode, best[metric]))));
  byId("table-body").replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Method"), head)), el("tbody", {}, rows)));
}

// --- curves ---------------------------------------------------------------------------------------------

const drawn = new Set([report.reference, ...report.key.slice(0, 1).flatMap((metric) =>
  ranked(metric).filter((method) => !isReference(method)).slice(0, 4).map((method) => method.name))]);

function chart(episode) {
  const [width, height, left, bottom] = [420, 190, 30, 20];
  const end = episode.time.at(-1) || 1;
  const x = (t) => left + ((width - left - 6) * t) / end;
  const y = (p) => 6 + (height - bottom - 12) * (1 - p);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Progress in ${episode.name}` });
  for (const p of [0, 0.5, 1]) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - 6, y1: y(p), y2: y(p) }),
      svg("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, p));
  }
  root.append(svg("text", { x: left, y: height - 4 }, "0 s"),
    svg("text", { x: width - 6, y: height - 4, "text-anchor": "end" }, `${number(end, 1)} s`));
  const path = (values) => linePath(values.map((p, i) => (p === null ? null : [x(episode.time[i]), y(p)])));
  for (const method of [...others, ...report.methods.filter(isReference)]) {
    if (!drawn.has(method.name)) continue;
    root.append(svg("path", { class: isReference(method) ? "reference" : null, style: `stroke:${colorOf(method)}`,
      d: path(episode.progress[method.name]) }, svg("title", {}, method.name)));
  }
  root.append(svg("path", { class: "truth", d: path(episode.truth) }, svg("title", {}, "truth")));
  return el("figure", {},
    el("figcaption", { class: "muted" }, el("b", {}, episode.kind.replaceAll("_", " ") || "episode"), ` ${episode.outcome}, ${episode.name}`),
    root);
}

function curves() {
  const swatch = (color) => el("span", { class: "swatch", style: `border-color:${color}` });
  const draw = () => byId("charts").replaceChildren(...report.episodes.map(chart));
  const buttons = report.methods.map((method) => {
    const button = el("button", { type: "button", "aria-pressed": String(drawn.has(method.name)), click: () => {
      if (!drawn.delete(method.name)) drawn.add(method.name);
      button.setAttribute("aria-pressed", String(drawn.has(method.name)));
      draw();
    } }, swatch(colorOf(method)), method.name);
    return button;
  });
  byId("choose").append(el("span", { class: "truth" }, swatch("var(--ink)"), "truth"), ...buttons);
  draw();
}

function theme() {
  const button = byId("theme");
  const dark = () => (document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => button.setAttribute("aria-pressed", String(dark()));
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  label();
}

facts();
byId("bar-charts").append(...report.key.map(barChart));
byId("table-modes").append(...Object.entries(MODES).map(([mode, { label }]) =>
  el("button", { type: "button", "data-mode": mode, click: () => table(mode) }, label)));
table("values");
curves();
theme();
