"use strict";
// The lower half of the page: the list of episodes, the player, the keyboard.

const state = {
  order: "worst", kind: "", outcome: "", // what the list shows
  shown: [], // indices of the listed episodes, in order
  episode: -1, frame: 0, // what the player shows
  hover: null, // frame under the pointer: shown, but left again with the pointer
  playing: false, speed: 1,
  errors: [],
};
let player = null;

addEventListener("error", (event) => state.errors.push(event.message));
addEventListener("unhandledrejection", (event) => state.errors.push(String(event.reason)));

// --- the list ---

const ORDERS = {
  worst: ["worst first", (a, b) => (b.mae ?? -1) - (a.mae ?? -1)],
  best: ["best first", (a, b) => (a.mae ?? Infinity) - (b.mae ?? Infinity) || 0],
  name: ["by name", (a, b) => a.name.localeCompare(b.name, "en", { numeric: true })],
};
const OUTCOMES = { success: "✓", failure: "✕" };

function select(label, key, options) {
  const control = el("select", {
    change: (event) => {
      state[key] = event.target.value;
      refreshList();
    },
  }, options.map(([value, text]) => el("option", { value }, text)));
  control.value = state[key];
  return el("label", {}, el("span", {}, label), control);
}

/** Choices only where there is something to choose. */
function drawFilters() {
  const distinct = (key) => [...new Set(report.episodes.map((episode) => episode[key]))].sort();
  if (report.episodes.every((episode) => episode.mae === null)) state.order = "name";
  byId("episodes").classList.toggle("single", report.episodes.length === 1);
  if (report.episodes.length > 1) {
    byId("filters").append(select("Order", "order", Object.entries(ORDERS).map(([value, [text]]) => [value, text])));
  }
  for (const [label, key] of [["Kind", "kind"], ["Outcome", "outcome"]]) {
    const values = distinct(key);
    if (values.length > 1) {
      byId("filters").append(select(label, key, [["", "all"], ...values.map((value) => [value, value || "unknown"])]));
    }
  }
}

function option(index) {
  const episode = report.episodes[index];
  return el("div", { role: "option", id: `option-${index}`, "aria-selected": "false", "data-index": index,
    click: () => choose(index) },
  el("span", { class: `outcome ${episode.outcome}`, title: episode.outcome }, OUTCOMES[episode.outcome] ?? "?"),
  el("span", { class: "who" }, el("span", { class: "name" }, episode.name),
    el("span", { class: "kind" }, episode.kind || "\u00a0")),
  sparkline(episode),
  el("span", { class: "mae number", title: "mean absolute error of progress" }, number(episode.mae)));
}

function refreshList() {
  const matches = (episode) => ["kind", "outcome"].every((key) => !state[key] || episode[key] === state[key]);
  const compare = ORDERS[state.order][1];
  state.shown = report.episodes.map((_, i) => i).filter((i) => matches(report.episodes[i]))
    .sort((a, b) => compare(report.episodes[a], report.episodes[b]) || a - b);
  byId("list").replaceChildren(...state.shown.map(option));
  const [total, count] = [report.episodes.length, state.shown.length];
  byId("count").textContent = count === total ? `${total} episode${total === 1 ? "" : "s"}` : `${count} of ${total} episodes`;
  if (state.shown.includes(state.episode)) markChosen();
  else if (count) choose(state.shown[0]);
}

function markChosen() {
  for (const node of byId("list").children) {
    node.setAttribute("aria-selected", String(Number(node.dataset.index) === state.episode));
  }
  const chosen = byId(`option-${state.episode}`);
  byId("list").setAttribute("aria-activedescendant", chosen.id);
  // Scroll the list only, never the page.
  const [list, box] = [byId("list").getBoundingClientRect(), chosen.getBoundingClientRect()];
  if (box.top < list.top) byId("list").scrollTop -= list.top - box.top;
  if (box.bottom > list.bottom) byId("list").scrollTop += box.bottom - list.bottom;
}

// --- the player ---

const current = () => report.episodes[state.episode];
const shownFrame = () => state.hover ?? state.frame;

function choose(index, frame = 0) {
  pause();
  Object.assign(state, { episode: index, frame, hover: null });
  const episode = current();
  player = { views: new Views(index, episode.cameras), fields: {} };
  byId("player").replaceChildren(heading(episode), player.views.root, readout(), controls(episode),
    legend(episode), el("div", { class: "chart-box", id: "chart-box" }));
  drawChart();
  if (state.shown.includes(index)) markChosen();
  show();
}

function heading(episode) {
  return el("header", {},
    el("h3", {}, episode.name),
    episode.instruction ? el("p", { class: "instruction" }, `“${episode.instruction}”`) : null,
    el("p", { class: "tags" },
      el("span", { class: `tag ${episode.outcome}` }, episode.outcome || "outcome unknown"),
      episode.kind ? el("span", { class: "tag" }, episode.kind) : null,
      episode.mae === null ? null : el("span", { class: "tag" }, `mean error ${number(episode.mae)}`),
      el("span", { class: "tag" }, `${episode.time.length} frames, ${number(episode.time.at(-1), 1)} s`)));
}

function readout() {
  const field = (key, label) => {
    player.fields[key] = el("dd", { class: "number" });
    return el("div", { class: key }, el("dt", {}, label), player.fields[key]);
  };
  return el("dl", { class: "readout" }, field("frame", "frame"), field("time", "time"), field("progress", "progress"),
    field("band", "90 % band"), current().truth ? field("truth", "truth") : null, field("stage", "stage"),
    field("success", "success"));
}

function controls(episode) {
  const last = episode.time.length - 1;
  const button = (label, text, action) => el("button", { type: "button", "aria-label": label, title: label, click: action }, text);
  player.play = button("Play (space)", "▶", toggle);
  player.scrub = el("input", { type: "range", min: 0, max: last, value: 0, "aria-label": "Frame",
    input: (event) => seek(Number(event.target.value)) });
  const speed = el("select", { "aria-label": "Speed", change: (event) => changeSpeed(Number(event.target.value)) },
    [0.25, 0.5, 1, 2, 4, 8].map((value) => el("option", { value }, `${value}×`)));
  speed.value = String(state.speed);
  return el("div", { class: "controls" }, button("Previous frame (←)", "‹", () => step(-1)), player.play,
    button("Next frame (→)", "›", () => step(1)), player.scrub, speed);
}

function drawChart() {
  const box = byId("chart-box");
  const width = Math.max(box.clientWidth, 280);
  if (player.chart?.width === width) return;
  player.chart = new EpisodeChart(current(), width);
  const { root } = player.chart;
  root.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) seek(player.chart.frameAt(event));
    else if (!state.playing) preview(player.chart.frameAt(event));
  });
  root.addEventListener("pointerdown", (event) => {
    root.setPointerCapture(event.pointerId);
    seek(player.chart.frameAt(event));
  });
  root.addEventListener("pointerleave", () => preview(null));
  box.replaceChildren(root);
  player.chart.show(shownFrame());
}

function show() {
  const [episode, i] = [current(), shownFrame()];
  const { fields } = player;
  fields.frame.textContent = `${i} / ${episode.time.length - 1}`;
  fields.time.textContent = `${number(episode.time[i], 2)} s`;
  fields.progress.textContent = number(episode.progress[i]);
  fields.band.textContent = episode.low[i] === null ? "–" : `${number(episode.low[i], 2)} … ${number(episode.high[i], 2)}`;
  if (episode.truth) fields.truth.textContent = number(episode.truth[i]);
  fields.success.textContent = percent(episode.success[i]);
  const [stage, truth, invalid] = [episode.stages, episode.truth_stages, episode.invalid].map((runs) => runAt(runs, i)?.[2] ?? null);
  fields.stage.textContent = invalid === null ? (stage ?? "–") : `invalid: ${invalid}`;
  fields.stage.parentNode.classList.toggle("wrong", invalid !== null || (truth !== null && truth !== stage));
  if (invalid === null && truth !== null && truth !== stage) fields.stage.append(el("small", {}, ` true: ${truth}`));
  player.scrub.value = i;
  player.scrub.setAttribute("aria-valuetext", `frame ${i}, progress ${number(episode.progress[i], 2)}`);
  player.chart.show(i);
  player.views.show(i, state.playing ? AHEAD : 1);
  if (state.hover === null) rememberMoment();
}

// --- the address: report.html#episode_000032@44 opens that moment of that episode ---

let remembering = null;

/** Not for every frame that is played: browsers limit how often an address may change. */
function rememberMoment() {
  clearTimeout(remembering);
  remembering = setTimeout(
    () => history.replaceState(null, "", `#${encodeURIComponent(current().name)}@${state.frame}`), 300);
}

function openMoment() {
  const [, name, frame] = location.hash.match(/^#(.*?)(?:@(\d+))?$/) ?? [];
  const index = report.episodes.findIndex((episode) => encodeURIComponent(episode.name) === name || episode.name === name);
  if (index < 0) return;
  choose(index, Math.min(Number(frame ?? 0), report.episodes[index].time.length - 1));
  byId("episodes").scrollIntoView();
}

function preview(frame) {
  if (state.hover === frame) return;
  state.hover = frame;
  show();
}

function seek(frame) {
  state.hover = null;
  state.frame = Math.min(Math.max(frame, 0), current().time.length - 1);
  if (state.playing) startClock();
  show();
}

function changeSpeed(speed) {
  state.speed = speed;
  if (state.playing) startClock();
}

function step(count) {
  pause();
  seek(state.frame + count);
}

let clock = null;

/** Playback counts from here: frames are shown at their own times, and late ones are skipped. */
function startClock() {
  clearTimeout(clock?.timer);
  clock = { wall: performance.now(), time: current().time[state.frame], speed: state.speed };
  clock.timer = setTimeout(tick);
}

function tick() {
  const { time } = current();
  const reached = clock.time + (clock.speed * (performance.now() - clock.wall)) / 1000;
  let frame = state.frame;
  while (frame + 1 < time.length && time[frame + 1] <= reached) frame++;
  if (frame !== state.frame) {
    state.frame = frame;
    show();
  }
  if (frame === time.length - 1) pause();
  else clock.timer = setTimeout(tick, Math.max((1000 * (time[frame + 1] - reached)) / clock.speed, 8));
}

function toggle() {
  if (state.playing) {
    pause();
    return;
  }
  state.playing = true;
  state.hover = null;
  if (state.frame === current().time.length - 1) state.frame = 0;
  markPlaying();
  startClock();
  show();
}

function pause() {
  state.playing = false;
  clearTimeout(clock?.timer);
  if (player) markPlaying();
}

function markPlaying() {
  player.play.textContent = state.playing ? "❚❚" : "▶";
  player.play.setAttribute("aria-label", state.playing ? "Pause (space)" : "Play (space)");
}

function neighbor(offset) {
  const place = state.shown.indexOf(state.episode) + offset;
  if (place >= 0 && place < state.shown.length) choose(state.shown[place]);
}

// --- the keyboard ---

const KEYS = {
  " ": toggle,
  ArrowLeft: (event) => step(event.shiftKey ? -10 : -1),
  ArrowRight: (event) => step(event.shiftKey ? 10 : 1),
  Home: () => step(-Infinity),
  End: () => step(Infinity),
  ArrowUp: () => neighbor(-1),
  ArrowDown: () => neighbor(1),
  k: () => neighbor(-1),
  j: () => neighbor(1),
};

/** Keys drive the player only where it can be seen: elsewhere they scroll the page as ever. */
function playerInSight() {
  const box = byId("player").getBoundingClientRect();
  return box.top < innerHeight * 0.8 && box.bottom > 0;
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") {
    toggleHelp();
    return;
  }
  const target = event.target instanceof Element ? event.target : document.body;
  // Keys that the focused control needs itself stay with it.
  const taken = target.closest("select, .scroll") || (event.key === " " && target.closest("button, a"));
  const action = KEYS[event.key];
  if (!action || taken || !player || byId("help").open) return;
  if (!byId("episodes").contains(target) && !playerInSight()) return;
  event.preventDefault();
  action(event);
});

function toggleHelp() {
  if (byId("help").open) byId("help").close();
  else byId("help").showModal();
}

// --- start ---

function drawTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
  byId("theme").setAttribute("aria-pressed", String(dark));
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
drawTheme(systemDark.matches);
systemDark.addEventListener("change", (event) => drawTheme(event.matches));
byId("theme").addEventListener("click", () => drawTheme(document.documentElement.dataset.theme !== "dark"));
byId("help-open").addEventListener("click", toggleHelp);

drawFilters();
if (report.episodes.length) {
  refreshList();
  openMoment();
  addEventListener("hashchange", openMoment);
  new ResizeObserver(drawChart).observe(byId("player"));
} else {
  byId("episodes").hidden = true;
}

window.__report = state; // for checks from outside
