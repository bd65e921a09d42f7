"use strict";
// The chart of one episode: progress with its band and truth, stages, success; and the sparklines of the list.

const LEFT = 76;
const RIGHT = 14;
const STAGE_COLORS = 8;

/** Time at the left edge of every frame, and at the right edge of the last: frames tile the axis. */
function frameEdges(time) {
  const middles = time.slice(1).map((t, i) => (t + time[i]) / 2);
  const half = time.length > 1 ? (time[1] - time[0]) / 2 : 0.5;
  return [time[0] - half, ...middles, time.at(-1) + half];
}

/** Round steps (1, 2 or 5 times a power of ten) that give about `wanted` ticks. */
function ticks(from, to, wanted) {
  const raw = Math.max(to - from, 1e-6) / Math.max(wanted, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((m) => m * power >= raw) ?? 10);
  const first = Math.ceil(from / step);
  return Array.from({ length: Math.floor(to / step) - first + 1 }, (_, i) => (first + i) * step);
}

const stageColor = (episode, name) => {
  const index = episode.stage_names.indexOf(name);
  return `var(--stage-${(index < 0 ? STAGE_COLORS : index) % STAGE_COLORS})`;
};

/** The band as closed shapes, one for each stretch of valid frames. */
function bandPath(episode, x, y) {
  let path = "";
  let stretch = [];
  const close = () => {
    if (stretch.length) {
      const [highs, lows] = [(i) => [x(i), y(episode.high[i])], (i) => [x(i), y(episode.low[i])]];
      path += `M${[...stretch.map(highs), ...stretch.toReversed().map(lows)].map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L")}Z`;
    }
    stretch = [];
  };
  episode.low.forEach((low, i) => (low === null || episode.high[i] === null ? close() : stretch.push(i)));
  close();
  return path;
}

class EpisodeChart {
  /** Draw `episode` into an SVG of the given width in pixels. */
  constructor(episode, width) {
    this.episode = episode;
    this.width = width;
    const edges = frameEdges(episode.time);
    this.edges = edges;
    const scale = (width - LEFT - RIGHT) / (edges.at(-1) - edges[0]);
    this.at = (t) => LEFT + (t - edges[0]) * scale;
    this.x = (i) => this.at(episode.time[i]);
    this.progress = { top: 10, height: width < 520 ? 150 : 210 };
    this.root = svg("svg", { class: "chart", width, role: "img", "aria-label": this.summary() });
    this.bottom = this.progress.top + this.progress.height;
    this.root.append(svg("defs", {}, svg("pattern", { id: "hatch", width: 6, height: 6,
      patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("line", { class: "hatch-line", y2: 6 }))));
    this.drawProgress();
    this.drawStages("stage", episode.stages);
    if (episode.truth_stages) this.drawStages("true stage", episode.truth_stages);
    this.drawSuccess();
    this.drawAxis();
    this.drawPlayhead();
    const height = this.bottom + 34;
    this.root.setAttribute("height", height);
    this.root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  summary() {
    const { name, time, progress, mae } = this.episode;
    const end = progress.filter((p) => p !== null).at(-1) ?? null;
    return `Progress of ${name} over ${number(time.at(-1), 1)} seconds, ending at ${percent(end)}` +
      (mae === null ? "" : `, mean error ${number(mae)}`);
  }

  y(value) {
    const { top, height } = this.progress;
    return top + height * (1 - Math.min(Math.max(value, 0), 1));
  }

  line(values, y) {
    return linePath(values.map((value, i) => (value === null ? null : [this.x(i), y(value)])));
  }

  span([start, stop]) {
    const left = this.at(this.edges[start]);
    return { x: left, width: Math.max(this.at(this.edges[stop]) - left, 1) };
  }

  rowLabel(text, y) {
    this.root.append(svg("text", { class: "row", x: LEFT - 10, y, "text-anchor": "end" }, text));
  }

  /** Invalid frames are hatched in every row of the estimate: a gap must not look like a zero. */
  hatch(y, height) {
    for (const run of this.episode.invalid) {
      this.root.append(svg("rect", { class: "invalid", ...this.span(run), y, height }, svg("title", {}, run[2])));
    }
  }

  drawProgress() {
    const { episode } = this;
    const y = (value) => this.y(value);
    for (const run of episode.seen) {
      this.root.append(svg("rect", { class: "seen", ...this.span(run), y: y(1), height: this.progress.height }));
    }
    for (const p of [0, 0.25, 0.5, 0.75, 1]) {
      this.root.append(svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y(p), y2: y(p) }));
      this.rowLabel(p === 1 ? "progress 1" : p === 0 ? "0" : number(p, 2), y(p) + 4);
    }
    this.hatch(y(1), this.progress.height);
    this.root.append(svg("path", { class: "band", d: bandPath(episode, (i) => this.x(i), y) }));
    if (episode.truth) this.root.append(svg("path", { class: "truth", d: this.line(episode.truth, y) }));
    this.root.append(svg("path", { class: "estimate", d: this.line(episode.progress, y) }));
  }

  drawStages(label, runs) {
    const top = this.bottom + (label === "stage" ? 14 : 4);
    const height = 20;
    this.rowLabel(label, top + 14);
    if (label === "stage") this.hatch(top, height);
    for (const run of runs) {
      const span = this.span(run);
      const bar = svg("rect", { ...span, y: top, height, style: `fill:${stageColor(this.episode, run[2])}` },
        svg("title", {}, run[2]));
      this.root.append(bar);
      // A label that does not fit says less than none: the legend names every color.
      if (span.width > 6.6 * run[2].length + 10) {
        this.root.append(svg("text", { class: "stage-name", x: span.x + 6, y: top + 14 }, run[2]));
      }
    }
    this.bottom = top + height;
  }

  drawSuccess() {
    const { episode } = this;
    const [top, height] = [this.bottom + 14, 36];
    const y = (value) => top + height * (1 - value);
    this.rowLabel("success", top + 14);
    this.rowLabel("probability", top + 27);
    this.root.append(
      svg("rect", { class: "well", x: LEFT, width: this.width - LEFT - RIGHT, y: top, height }),
      svg("line", { class: "threshold", x1: LEFT, x2: this.width - RIGHT, y1: y(0.5), y2: y(0.5) }));
    this.hatch(top, height);
    const bars = episode.success.map((value, i) =>
      value === null ? "" : `M${this.at(this.edges[i]).toFixed(1)} ${y(0)}V${y(value).toFixed(1)}H${this.at(this.edges[i + 1]).toFixed(1)}V${y(0)}Z`);
    this.root.append(svg("path", { class: "success", d: bars.join("") }));
    this.bottom = top + height;
    if (episode.truth_success) {
      this.root.append(svg("rect", { class: "well", x: LEFT, width: this.width - LEFT - RIGHT, y: this.bottom + 3, height: 5 }));
      for (const run of episode.truth_success) {
        this.root.append(svg("rect", { class: "done", ...this.span(run), y: this.bottom + 3, height: 5 },
          svg("title", {}, "task is done (truth)")));
      }
      this.bottom += 8;
    }
  }

  drawAxis() {
    const y = this.bottom + 8;
    this.root.append(svg("line", { class: "axis", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }));
    const { time } = this.episode;
    const steps = ticks(0, time.at(-1), (this.width - LEFT) / 110);
    const digits = steps.length > 1 && steps[1] - steps[0] < 1 ? 1 : 0;
    steps.forEach((t) => this.root.append(
      svg("line", { class: "axis", x1: this.at(t), x2: this.at(t), y1: y, y2: y + 4 }),
      svg("text", { x: this.at(t), y: y + 17, "text-anchor": "middle" }, `${number(t, digits)} s`)));
  }

  drawPlayhead() {
    this.head = svg("line", { class: "head", y1: this.progress.top - 6, y2: this.bottom + 8 });
    this.truthDot = svg("circle", { class: "truth-dot", r: 4 });
    this.dot = svg("circle", { class: "estimate-dot", r: 4.5 });
    this.root.append(this.head, this.truthDot, this.dot);
  }

  /** Move the playhead to frame i. */
  show(i) {
    const x = this.x(i);
    this.head.setAttribute("x1", x);
    this.head.setAttribute("x2", x);
    for (const [dot, values] of [[this.dot, this.episode.progress], [this.truthDot, this.episode.truth]]) {
      const value = values?.[i] ?? null;
      dot.toggleAttribute("hidden", value === null);
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", this.y(value ?? 0));
    }
  }

  /** The frame under a pointer event. */
  frameAt(event) {
    const box = this.root.getBoundingClientRect();
    const x = ((event.clientX - box.left) * this.width) / box.width;
    let [low, high] = [0, this.episode.time.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at(this.edges[middle + 1]) < x) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** What the colors and shades of the chart mean, as far as this episode shows them. */
function legend(episode) {
  const swatch = (kind, text) => el("li", {}, el("span", { class: `swatch ${kind}` }), text);
  const stages = episode.stage_names.map((name) => el("li", {},
    el("span", { class: "swatch", style: `background:${stageColor(episode, name)}` }), name));
  return el("ul", { class: "legend" },
    swatch("line estimate", "estimate"), swatch("band", "90 % band"),
    episode.truth ? swatch("line truth", "truth") : null,
    episode.truth_success ? swatch("done", "task is done (truth)") : null,
    episode.seen.length ? swatch("seen", "seen in training") : null,
    episode.invalid.length ? swatch("invalid", "invalid") : null,
    stages.length ? el("li", { class: "break", "aria-hidden": "true" }) : null, stages);
}

/** The course of an episode in a thumbnail, at no more points than it has pixels. */
function sparkline(episode) {
  const [width, height] = [84, 24];
  const end = episode.time.at(-1) || 1;
  const step = Math.max(1, Math.floor(episode.time.length / width));
  const path = (values) => linePath(values
    .map((value, i) => (value === null ? null : [1 + ((width - 2) * episode.time[i]) / end, height - 2 - (height - 4) * value]))
    .filter((_, i) => i % step === 0));
  return svg("svg", { class: "spark", width, height, "aria-hidden": "true" },
    episode.truth ? svg("path", { class: "truth", d: path(episode.truth) }) : null,
    svg("path", { class: "estimate", d: path(episode.progress) }));
}
