"use strict";
// The camera views of one episode: exact frames, decoded when needed, all cameras drawn in step.

const KEPT_FRAMES = 64;
const AHEAD = 6;

class Views {
  /** `index` is the episode's place in the report: it names the script tag that holds its frames. */
  constructor(index, cameras) {
    this.cameras = cameras;
    this.frames = cameras.length ? JSON.parse(byId(`frames-${index}`).textContent) : {};
    this.decoded = new Map();
    this.asked = 0;
    this.drawn = 0;
    this.canvases = cameras.map((name) => el("canvas", { role: "img", "aria-label": `camera ${name}`, width: 4, height: 3 }));
    this.root = cameras.length
      ? el("div", { class: "views" }, cameras.map((name, i) =>
        el("figure", {}, this.canvases[i], el("figcaption", {}, name))))
      : el("p", { class: "muted no-media" }, "No images of this episode are in the report.");
  }

  /** The decoded frame, from the few that are kept or from its JPEG. */
  load(camera, i) {
    const key = `${i} ${camera}`;
    let image = this.decoded.get(key);
    if (image) {
      this.decoded.delete(key);
    } else {
      const picture = new Image();
      picture.src = `data:image/jpeg;base64,${this.frames[camera][i]}`;
      image = picture.decode().then(() => picture);
      // A prefetched frame that fails is reported when it is shown.
      image.catch(() => null);
    }
    this.decoded.set(key, image);
    if (this.decoded.size > KEPT_FRAMES * this.cameras.length) {
      this.decoded.delete(this.decoded.keys().next().value);
    }
    return image;
  }

  /** Draw frame i of every camera at once; a frame that was asked for later is never overdrawn. */
  async show(i, ahead = 1) {
    const turn = ++this.asked;
    const images = await Promise.allSettled(this.cameras.map((camera) => this.load(camera, i)));
    if (turn < this.drawn) return;
    this.drawn = turn;
    images.forEach(({ status, value }, v) => this.paint(this.canvases[v], status === "fulfilled" ? value : null, i));
    const count = this.frames[this.cameras[0]]?.length ?? 0;
    for (let next = i + 1; next <= Math.min(i + ahead, count - 1); next++) {
      this.cameras.forEach((camera) => this.load(camera, next));
    }
  }

  paint(canvas, image, i) {
    canvas.classList.toggle("broken", image === null);
    canvas.dataset.frame = i;
    if (image === null) return canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    if (canvas.width !== image.naturalWidth) canvas.width = image.naturalWidth;
    if (canvas.height !== image.naturalHeight) canvas.height = image.naturalHeight;
    canvas.parentNode.style.setProperty("--aspect", canvas.width / canvas.height);
    return canvas.getContext("2d").drawImage(image, 0, 0);
  }
}
