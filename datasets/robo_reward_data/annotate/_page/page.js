"use strict";
// The page: state, keyboard, saving. Text always goes in as text nodes: data can never become markup.

const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const state = {
  offered: [], // names given on the command line
  finds: false, // whether the server finds the stages of a task of which nothing is marked
  episodes: [], at: -1, frame: 0, selected: null, // selected: index of a boundary
  playing: false, drag: null,
  histories: new Map(), // episode name -> { undo: [marks], redo: [marks] }
  dirty: new Map(), // episode name -> marks that are not saved yet
  curves: new Map(), // episode name -> { progress, reason }
  errors: [],
};
window.__annotate = state;
addEventListener("error", (event) => state.errors.push(event.message));
addEventListener("unhandledrejection", (event) => state.errors.push(String(event.reason)));

const current = () => state.episodes[state.at];
const marksOf = (episode) => ({ names: episode.names, boundaries: episode.boundaries });
const color = (stage) => `var(--stage-${stage % 8})`;
const history_ = (episode) => {
  if (!state.histories.has(episode.name)) state.histories.set(episode.name, { undo: [], redo: [] });
  return state.histories.get(episode.name);
};

// --- saving: one change at a time, in order, again and again until the server has it ---

let sending = false;
let asked = 0; // changes taken so far, for whoever waits for them to be saved

function show(status, text) {
  byId("saved").className = status;
  byId("saved").textContent = text;
}

function alertUser(text) {
  byId("alert").hidden = !text;
  byId("alert").textContent = text;
}

async function send() {
  if (sending || !state.dirty.size) return;
  sending = true;
  show("", "saving …");
  const [name, marks] = state.dirty.entries().next().value;
  const episode = state.episodes.find((item) => item.name === name);
  let wait = 0;
  try {
    const answer = await fetch(address("/api/save"), {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ episode: name, revision: episode.revision, ...marks }),
    });
    const said = await answer.json();
    if (answer.ok) {
      episode.revision = said.revision;
      if (state.dirty.get(name) === marks) state.dirty.delete(name);
      alertUser("");
    } else if (answer.status === 409) {
      state.dirty.delete(name);
      history_(episode).undo.push(marksOf(episode));
      adopt(episode, said);
      alertUser(`${name} was changed in another tab or by another program: that version is shown, yours is one undo away.`);
    } else if (answer.status === 403) {
      throw new Error("the server was started anew: open the address that it printed");
    } else {
      // The server has looked at the change and does not take it: trying again would not help.
      state.dirty.delete(name);
      alertUser(`not saved: ${said.error}`);
      adopt(episode, await (await fetch(address("/api/episode", { episode: name }))).json());
    }
  } catch (error) {
    wait = 1500;
    alertUser(`Not saved yet: ${error instanceof TypeError ? "the server does not answer" : error.message}. ` +
      "The changes stay in this page and are sent again.");
  }
  sending = false;
  if (state.dirty.size) {
    show(wait ? "failed" : "", wait ? "not saved" : "saving …");
    setTimeout(send, wait);
  } else show("saved", "✓ all changes saved");
}

function adopt(episode, said) {
  Object.assign(episode, said);
  drawAll();
}

/** Every change goes through here: `next` are the marks after it. */
function change(episode, next, { remember = true } = {}) {
  if (episode.locked || sameMarks(marksOf(episode), next)) return false;
  if (remember) {
    history_(episode).undo.push(marksOf(episode));
    history_(episode).redo = [];
  }
  Object.assign(episode, next);
  state.dirty.set(episode.name, marksOf(episode));
  asked += 1;
  drawAll();
  send();
  return true;
}

function travel(from, to) {
  const episode = current();
  const past = history_(episode);
  if (!past[from].length) return;
  past[to].push(marksOf(episode));
  state.selected = null;
  change(episode, past[from].pop(), { remember: false });
  drawAll();
}
const undo = () => travel("undo", "redo");
const redo = () => travel("redo", "undo");

addEventListener("beforeunload", (event) => {
  if (state.dirty.size) event.preventDefault();
});

/** Other tabs and programs change episodes too: look whether they did, while nothing of ours is on its way. */
async function refresh() {
  if (document.hidden || sending || state.dirty.size || state.drag) return;
  try {
    const answer = await fetch(address("/api/overview"));
    if (!answer.ok || sending || state.dirty.size) return;
    for (const said of (await answer.json()).episodes) {
      const episode = state.episodes.find((item) => item.name === said.name);
      if (episode && said.revision > episode.revision && !state.dirty.has(said.name)) {
        history_(episode).undo.push(marksOf(episode));
        adopt(episode, said);
      }
    }
  } catch { /* the next change says so where the server is gone */ }
}

// --- actions ---

function choose(index) {
  if (index < 0 || index >= state.episodes.length || index === state.at) return;
  state.at = index;
  state.selected = null;
  state.playing = false;
  layViews(current());
  byId("scrub").max = current().length - 1;
  go(0);
  drawAll();
  byId("list").children[index].scrollIntoView({ block: "nearest" });
  loadCurve(current());
}

function go(frame) {
  const episode = current();
  state.frame = Math.max(0, Math.min(episode.length - 1, frame));
  drawViews(episode, state.frame);
  drawMoment();
}

function mark() {
  const episode = current();
  if (!change(episode, addMark(marksOf(episode), state.frame, episode.length))) return;
  state.selected = episode.boundaries.indexOf(state.frame);
  drawAll();
}

function removeSelected() {
  const episode = current();
  const index = state.selected ?? episode.boundaries.indexOf(state.frame);
  if (index < 0) return;
  state.selected = null;
  change(episode, removeMark(marksOf(episode), index));
}

function shift(step) {
  const episode = current();
  if (state.selected === null) return;
  const to = step === null ? state.frame : episode.boundaries[state.selected] + step;
  change(episode, moveMark(marksOf(episode), state.selected, to, episode.length));
  go(episode.boundaries[state.selected]);
}

function select(index) {
  state.selected = index;
  go(current().boundaries[index]);
  drawAll();
}

function hop(direction) {
  const bounds = current().boundaries;
  if (!bounds.length) return;
  let index = state.selected === null
    ? (direction > 0 ? bounds.findIndex((b) => b > state.frame) : bounds.findLastIndex((b) => b < state.frame))
    : state.selected + direction;
  if (index < 0) index = direction > 0 ? bounds.length - 1 : 0;
  select(Math.min(bounds.length - 1, index));
}

function copyToNext() {
  const [from, to] = [current(), nextToCopy()];
  if (!to || from.boundaries.length < 2) return;
  const scaled = scaleMarks(marksOf(from), from.length, to.length);
  if (!scaled) return alertUser(`${to.name} is too short for so many stages: nothing was copied.`);
  choose(state.episodes.indexOf(to));
  change(to, scaled);
}

/** What failed did not go through every stage, and what is locked has its own: both are passed over. */
const markable = (episode) => !episode.locked && episode.outcome !== "failure";
const nextToCopy = () => state.episodes.slice(state.at + 1).find(markable);

const isMarked = (item) => item.boundaries.length > 1;
const sameTask = (episode) => state.episodes.filter((item) => markable(item) && item.instruction === episode.instruction);

/** Unmarked demonstrations of the task of `episode`, or none where nothing could tell. */
function followers(episode) {
  const same = sameTask(episode);
  return state.finds || same.some(isMarked) ? same.filter((item) => !item.boundaries.length) : [];
}

let suggesting = false;

async function suggest() {
  const asker = current();
  if (suggesting || !followers(asker).length) return;
  suggesting = true;
  const unmarked = !sameTask(asker).some(isMarked);
  drawStages();
  try {
    // The server goes by what it has.
    while (state.dirty.size) await new Promise((resume) => setTimeout(resume, 100));
    show("", "looking at the demonstrations …");
    const answer = await fetch(address("/api/spread"), {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ episode: asker.name }),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    for (const next of said.episodes) {
      // What was marked here in the meantime is on its way, and the server's answer to it is handled there.
      if (state.dirty.has(next.name)) continue;
      const episode = state.episodes.find((item) => item.name === next.name);
      history_(episode).undo.push(marksOf(episode));
      Object.assign(episode, next);
    }
    const sure = unmarked ? "their stages end as those of other tasks do"
      : said.agreement === null ? "mark a second one by hand to learn how well that goes"
      : `told from each other, ${Math.round(100 * said.agreement)} % of the marked boundaries come out within 5 %`;
    alertUser(said.left_out.length ? `left out, too short: ${said.left_out.join(", ")}` : "");
    show("saved", `✓ ${said.episodes.length} episodes marked: look them through (${sure})`);
  } catch (error) {
    alertUser(`Nothing was suggested: ${error instanceof TypeError ? "the server does not answer" : error.message}`);
    show("saved", "");
  }
  suggesting = false;
  drawAll();
}

function toggle() {
  state.playing = !state.playing;
  if (state.playing && state.frame >= current().length - 1) go(0);
  let last = performance.now();
  let owed = 0;
  const tick = () => {
    if (!state.playing) return drawMoment();
    const now = performance.now();
    const episode = current();
    const rate = episode.seconds ? (episode.length - 1) / episode.seconds : 10;
    owed += ((now - last) / 1000) * rate * Number(byId("speed").value);
    last = now;
    const steps = Math.floor(owed);
    owed -= steps;
    if (steps) go(state.frame + steps);
    if (state.frame >= episode.length - 1) state.playing = false;
    setTimeout(tick, 15);
  };
  tick();
  drawMoment();
}

function theme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  } catch { /* a browser that keeps nothing still switches */ }
}

async function loadCurve(episode) {
  if (!state.model || state.curves.has(episode.name)) return;
  state.curves.set(episode.name, { progress: null, reason: "the model is looking …" });
  try {
    const answer = await fetch(address("/api/curve", { episode: episode.name }));
    state.curves.set(episode.name, await answer.json());
  } catch {
    state.curves.delete(episode.name);
  }
  drawTimeline();
  drawMoment();
}

// --- drawing ---

function drawAll() {
  drawList();
  if (!current()) return;
  drawTimeline();
  drawStages();
  drawMoment();
}

function option(episode, index) {
  const done = episode.boundaries.length > 1;
  const stages = done
    ? `${episode.boundaries.length - 1} stages`
    : episode.boundaries.length ? "begun" : "";
  const failed = episode.outcome === "failure" ? "failure" : "";
  const facts = [episode.kind, failed, episode.locked ? "truth known" : "", stages].filter(Boolean).join(" · ");
  const bits = done ? episode.boundaries.slice(0, -1).map((start, i) => el("i", {
    style: `width:${(100 * (episode.boundaries[i + 1] - start)) / episode.length}%;background:${color(i)};` +
      (i ? "" : `margin-left:${(100 * start) / episode.length}%`) })) : [];
  return el("div", { role: "option", id: `option-${index}`, "aria-selected": String(index === state.at),
    click: () => choose(index) },
  el("span", { class: done ? "tick done" : "tick", title: done ? "annotated" : "not annotated" }, done ? "✓" : "○"),
  el("span", { class: "who" }, episode.name),
  el("span", { class: "number muted" }, `${episode.length}`),
  el("span", { class: "what" }, facts || episode.outcome),
  el("span", { class: "strip" }, bits));
}

function drawList() {
  const done = state.episodes.filter((episode) => episode.boundaries.length > 1).length;
  const scroll = byId("list").scrollTop;
  byId("list").replaceChildren(...state.episodes.map(option));
  byId("list").scrollTop = scroll;
  byId("list").setAttribute("aria-activedescendant", `option-${state.at}`);
  byId("done").textContent = `${done} of ${state.episodes.length} episodes annotated`;
  byId("meter").setAttribute("aria-valuemax", state.episodes.length);
  byId("meter").setAttribute("aria-valuenow", done);
  byId("meter").firstElementChild.style.width = `${(100 * done) / Math.max(state.episodes.length, 1)}%`;
}

const share = (frame) => `${(100 * frame) / current().length}%`;

function drawTimeline() {
  const episode = current();
  const marks = marksOf(episode);
  const box = byId("curves");
  box.setAttribute("viewBox", `0 0 ${episode.length} 100`);
  box.setAttribute("preserveAspectRatio", "none");
  const y = (value) => 94 - 88 * value;
  const lines = [0, 0.5, 1].map((v) => svg("path", { class: "rule", d: `M0 ${y(v)}H${episode.length}` }));
  if (marks.boundaries.length > 1) {
    const points = [[0, 0], ...marks.boundaries.map((b, i) => [b, i / (marks.boundaries.length - 1)]), [episode.length, 1]];
    lines.push(svg("path", { class: "labels", d: `M${points.map(([x, v]) => `${x} ${y(v)}`).join("L")}` }));
  }
  const curve = state.curves.get(episode.name);
  if (curve?.progress) lines.push(svg("path", { class: "model", d: curvePath(curve.progress, y) }));
  lines.push(svg("path", { class: "head", id: "head" }));
  box.replaceChildren(...lines);
  byId("bands").replaceChildren(
    ...marks.names.map((name, i) => el("div", { class: "band", "data-stage": i,
      style: `left:${share(marks.boundaries[i])};width:${share(marks.boundaries[i + 1] - marks.boundaries[i])};--color:${color(i)}` }, name)),
    ...marks.boundaries.map(edge), el("div", { class: "head" }));
  byId("legend").replaceChildren(
    el("span", { class: "swatch", style: "background:var(--truth)" }), "progress from the marks (stages of equal weight)",
    ...(state.model ? ["   ", el("span", { class: "swatch", style: "background:var(--estimate);margin-left:14px" }),
      `model${curve?.reason ? `: ${curve.reason}` : ""}`] : []));
}

function curvePath(values, y) {
  let path = "";
  let open = false;
  values.forEach((value, i) => {
    if (value !== null) path += `${open ? "L" : "M"}${i + 0.5} ${y(value)}`;
    open = value !== null;
  });
  return path;
}

function edge(frame, index) {
  const episode = current();
  return el("button", {
    class: "edge", role: "slider", style: `left:${share(frame)}`, "data-index": index,
    "aria-label": `boundary ${index + 1} of ${episode.boundaries.length}`,
    "aria-valuemin": 0, "aria-valuemax": episode.length, "aria-valuenow": frame,
    "aria-current": String(index === state.selected), title: `frame ${frame}`,
    focus: () => {
      if (state.selected === index || state.drag) return;
      state.selected = index;
      for (const node of document.querySelectorAll(".edge")) {
        node.setAttribute("aria-current", String(Number(node.dataset.index) === index));
      }
      go(frame);
      drawStages();
    },
    pointerdown: (event) => startDrag(event, index),
  });
}

const frameUnder = (event) => {
  const box = byId("bands").getBoundingClientRect();
  return Math.round(((event.clientX - box.left) / box.width) * current().length);
};

/** A drag is one change, however far it goes: nothing is saved before the pointer lets go. */
function startDrag(event, index) {
  const episode = current();
  if (episode.locked) return;
  event.preventDefault();
  state.selected = index;
  state.drag = { before: marksOf(episode) };
  const move = (moved) => {
    Object.assign(episode, moveMark(marksOf(episode), index, frameUnder(moved), episode.length));
    go(episode.boundaries[index]);
    drawTimeline();
    drawMoment();
  };
  const stop = () => {
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", stop);
    removeEventListener("pointercancel", stop);
    const after = marksOf(episode);
    Object.assign(episode, state.drag.before);
    state.drag = null;
    if (!change(episode, after)) drawAll();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", stop);
  addEventListener("pointercancel", stop);
}

function drawStages() {
  const episode = current();
  const { names, boundaries } = episode;
  byId("undo").disabled = !history_(episode).undo.length;
  byId("redo").disabled = !history_(episode).redo.length;
  for (const id of ["mark", "remove", "clear"]) byId(id).disabled = episode.locked;
  byId("remove").disabled ||= state.selected === null;
  byId("clear").disabled ||= !boundaries.length;
  byId("copy").disabled = boundaries.length < 2 || !nextToCopy();
  byId("spread").disabled = suggesting || !followers(episode).length;
  document.body.classList.toggle("locked", episode.locked);
  if (!names.length) {
    const hint = episode.locked
      ? "A simulator knows the stage of every frame of this episode, but not once and in order: there is nothing to mark."
      : episode.outcome === "failure" ? "This episode failed. Boundaries say that every stage was carried out: better leave it without."
      : boundaries.length ? "One boundary so far. Mark another, and the episode is annotated." : "No boundaries yet. Go to where one stage ends and the next begins, and press M.";
    byId("stages").replaceChildren(el("p", { class: "muted" }, hint));
    return;
  }
  // A field that is being typed in is left alone: a new one would lose the place in the text.
  const typing = document.activeElement?.closest?.("#stages input");
  if (typing && byId("stages").querySelectorAll("tbody tr").length === names.length) return;
  const seconds = (frame) => ((frame * episode.seconds) / Math.max(episode.length - 1, 1)).toFixed(2);
  byId("stages").replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, ["Stage", "First frame", "Last frame", "From", "Takes"].map((text, i) =>
      el("th", { scope: "col", class: i ? "number" : null }, text)))),
    el("tbody", {}, names.map((name, i) => el("tr", { "data-stage": i },
      el("th", { scope: "row" }, el("div", { style: "display:flex;align-items:center" },
        el("span", { class: "dot", style: `background:${color(i)}` }),
        el("input", { value: name, "aria-label": `name of stage ${i + 1}`, list: "offered", readonly: episode.locked ? "" : null,
          change: (event) => rename(i, event.target) }))),
      el("td", { class: "number" }, String(boundaries[i])),
      el("td", { class: "number" }, String(boundaries[i + 1] - 1)),
      el("td", { class: "number" }, `${seconds(boundaries[i])} s`),
      el("td", { class: "number" }, `${seconds(boundaries[i + 1] - boundaries[i])} s`))))));
}

function rename(index, input) {
  const name = input.value.trim();
  const taken = isTaken(marksOf(current()), index, name);
  if (taken) alertUser(`Another stage is named “${name}” already: give each a name of its own.`);
  if (!name || taken) {
    input.value = current().names[index];
    return;
  }
  change(current(), renameStage(marksOf(current()), index, name));
}

function drawMoment() {
  const episode = current();
  if (!episode) return;
  const here = progressAt(marksOf(episode), state.frame);
  byId("name").textContent = episode.name;
  byId("instruction").textContent = episode.instruction ? `“${episode.instruction}”` : "";
  byId("scrub").value = state.frame;
  byId("scrub").setAttribute("aria-valuetext", `frame ${state.frame} of ${episode.length}`);
  byId("play").textContent = state.playing ? "❚❚" : "▶";
  byId("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
  const model = state.curves.get(episode.name)?.progress?.[state.frame];
  const facts = [
    ["Frame", `${state.frame} / ${episode.length - 1}`],
    ["Time", `${((state.frame * episode.seconds) / Math.max(episode.length - 1, 1)).toFixed(2)} s`],
    ["Stage", here ? episode.names[here.stage] : "–"],
    ["τ", here ? here.tau.toFixed(2) : "–"],
    ["Φ", here ? here.phi.toFixed(2) : "–"],
    ...(state.model ? [["Model", model === null || model === undefined ? "–" : model.toFixed(2)]] : []),
  ];
  byId("readout").replaceChildren(...facts.map(([term, text]) => el("div", {}, el("dt", {}, term), el("dd", {}, text))));
  document.getElementById("head")?.setAttribute("d", `M${state.frame} 0V100`);
  const head = byId("bands").querySelector(".head");
  if (head) head.style.left = share(state.frame);
  for (const node of document.querySelectorAll("[data-stage]")) {
    node.classList.toggle("now", here !== null && Number(node.dataset.stage) === here.stage);
  }
}

// --- keyboard ---

const KEYS = {
  m: mark, Enter: mark, x: removeSelected, Delete: removeSelected, Backspace: removeSelected,
  "[": () => hop(-1), "]": () => hop(1), ",": () => shift(-1), ".": () => shift(1),
  "<": () => shift(null), ">": () => shift(null), ";": () => shift(null), ":": () => shift(null),
  c: copyToNext, s: suggest, u: undo, U: redo, t: theme, T: theme,
  j: () => choose(state.at + 1), k: () => choose(state.at - 1), ArrowDown: () => choose(state.at + 1), ArrowUp: () => choose(state.at - 1),
  Home: () => go(0), End: () => go(current().length - 1), " ": toggle, "?": () => byId("help").showModal(),
};

addEventListener("keydown", (event) => {
  if (byId("help").open) {
    if (event.key === "?") byId("help").close();
    return;
  }
  const field = event.target.closest?.("input:not([type=range]), select");
  if (field) {
    if (event.key === "Enter" || event.key === "Escape") field.blur();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    return event.shiftKey ? redo() : undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || !current()) return;
  // A focused button keeps its own Enter and Space; a boundary is moved, not pressed.
  const button = event.target.closest?.("button:not(.edge)");
  if (button && (event.key === "Enter" || event.key === " ")) return;
  const arrow = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const action = arrow
    ? () => go(state.frame + arrow * (event.shiftKey ? 10 : 1))
    : KEYS[event.key] ?? (event.shiftKey ? null : KEYS[event.key.toLowerCase()]);
  if (!action) return;
  event.preventDefault();
  action();
});

// --- start ---

for (const [id, action] of Object.entries({ undo, redo, theme, mark, copy: copyToNext, spread: suggest, play: toggle,
  remove: removeSelected, keys: () => byId("help").showModal(),
  clear: () => { state.selected = null; change(current(), { names: [], boundaries: [] }); } })) {
  byId(id).addEventListener("click", action);
}
byId("scrub").addEventListener("input", (event) => go(Number(event.target.value)));
for (const id of ["curves", "bands"]) {
  byId(id).addEventListener("pointerdown", (event) => {
    if (event.target.closest(".edge")) return;
    const move = (moved) => go(Math.min(frameUnder(moved), current().length - 1));
    const stop = () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", stop);
    };
    state.selected = null;
    move(event);
    drawAll();
    addEventListener("pointermove", move);
    addEventListener("pointerup", stop);
  });
}

(async () => {
  try {
    document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "";
  } catch { /* no storage: the system's theme */ }
  const said = await (await fetch(address("/api/overview"))).json();
  state.offered = said.names;
  state.model = said.model;
  state.finds = said.finds;
  state.episodes = said.episodes;
  document.title = `annotate ${said.store}`;
  byId("store").textContent = said.store;
  show("saved", "every change is saved at once");
  const first = state.episodes.findIndex((episode) => markable(episode) && episode.boundaries.length < 2);
  choose(Math.max(0, first));
  setInterval(refresh, 2500);
  addEventListener("focus", refresh);
  document.body.dataset.ready = "yes";
})();
