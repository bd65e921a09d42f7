"use strict";
// Pictures of the cameras, in step: frames come in strips, one image of many frames below each other.

const strips = new Map(); // "episode camera start" -> Promise<Image>, the least recently used first
const MOST_STRIPS = 160;

/** An address of the server that this page is of: another one on its port refuses it. */
const address = (path, query = {}) =>
  `${path}?${new URLSearchParams({ page: document.documentElement.dataset.page, ...query })}`;

const stripUrl = (episode, camera, start) => address("/strip", { episode: episode.name, camera, start });

function strip(episode, camera, start) {
  const key = stripUrl(episode, camera, start);
  let found = strips.get(key);
  if (found) strips.delete(key);
  else {
    const image = new Image();
    found = new Promise((resolve) => {
      image.onload = () => resolve(image);
      image.onerror = () => {
        strips.delete(key);
        resolve(null);
      };
    });
    image.src = key;
  }
  strips.set(key, found);
  if (strips.size > MOST_STRIPS) strips.delete(strips.keys().next().value);
  return found;
}

/** Asks for what is shown next, and behind the playhead a little. */
function prefetch(episode, frame) {
  const here = Math.floor(frame / episode.strip);
  for (const next of [here + 1, here + 2, here - 1]) {
    if (next < 0 || next * episode.strip >= episode.length) continue;
    for (const camera of episode.cameras) strip(episode, camera.name, next * episode.strip);
  }
}

let drawing = 0;

/** Draws a frame of every camera at once, when all of them are there: views never show different moments. */
async function drawViews(episode, frame) {
  const turn = ++drawing;
  const start = Math.floor(frame / episode.strip) * episode.strip;
  const images = await Promise.all(episode.cameras.map((camera) => strip(episode, camera.name, start)));
  if (turn !== drawing) return false;
  episode.cameras.forEach((camera, i) => {
    const canvas = document.getElementById(`view-${i}`);
    const [height, width] = camera.size;
    const context = canvas?.getContext("2d");
    if (!context) return;
    if (images[i]) context.drawImage(images[i], 0, (frame - start) * height, width, height, 0, 0, width, height);
    canvas.dataset.frame = images[i] ? frame : "missing";
    canvas.setAttribute("aria-label", `camera ${camera.name}, frame ${frame}`);
  });
  prefetch(episode, frame);
  return true;
}

function layViews(episode) {
  byId("views").replaceChildren(...episode.cameras.map((camera, i) => {
    const [height, width] = camera.size;
    return el("figure", { style: `--ratio:${width / height}` },
      el("canvas", { id: `view-${i}`, width, height, role: "img" }),
      el("figcaption", {}, camera.name));
  }));
}
