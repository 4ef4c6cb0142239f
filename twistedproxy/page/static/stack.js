// Slices one after the other: a stack of single frames, the frames of a loop, or pictures one by one.

import { paintState, STATES } from "./coverage.js";
import { browserShows, first, frameSize, INSTANCE, item, number, PER_FRAME, spacing, text, values } from "./dataset.js";
import { choice, debounced, h, onceAFrame, say } from "./dom.js";
import { fitted, gestures } from "./gestures.js";
import { Tiles } from "./tiles.js";

const AHEAD = 8; // slices that are asked for in the direction of scrolling
const BEHIND = 3;
const USUAL = [["Brain", 40, 80], ["Soft tissue", 50, 400], ["Lung", -600, 1500], ["Bone", 400, 1800], ["Liver", 60, 160]]; // CT, in HU

/** {instance, frame, stored, columns, rows, place}: ordered by position, else by instance number; frames by their number. */
export function slicesOf(instances) {
  const images = instances.filter(frameSize);
  const normal = normalOf(images[0]);
  const along = (one) => {
    const position = values(one, "00200032").map(Number);
    return normal && position.length === 3 ? dot(position, normal) : undefined;
  };
  const located = images.map((one) => ({ one, at: along(one), number: number(one, "00200013") ?? 0 }));
  const byPosition = located.every(({ at }) => at !== undefined) && new Set(located.map(({ at }) => at.toFixed(3))).size === located.length;
  located.sort((a, b) => (byPosition ? a.at - b.at : 0) || a.number - b.number);
  return located.flatMap(({ one, at }) => {
    const size = frameSize(one);
    const shape = spacing(one);
    const shared = { instance: first(one, INSTANCE), stored: browserShows(one), ...size, stretch: shape ? shape.y / shape.x : 1, at: byPosition ? at : undefined };
    return Array.from({ length: number(one, "00280008") ?? 1 }, (_, index) => ({ ...shared, frame: index + 1 }));
  });
}

function normalOf(dataset) {
  const o = values(dataset, "00200037").map(Number);
  return o.length === 6 ? [o[1] * o[5] - o[2] * o[4], o[2] * o[3] - o[0] * o[5], o[0] * o[4] - o[1] * o[3]] : undefined;
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

/** Windows to choose from: [text, center, width], those of the metadata first. */
export function windowsOf(instances) {
  const image = instances[Math.floor(instances.length / 2)] ?? {};
  const place = values(image, "00281050").length ? image : item(image, PER_FRAME, "00289132");
  const named = values(place, "00281055");
  const own = values(place, "00281050").map((center, index) => [named[index] || `Stored ${index + 1}`, Number(center), Number(values(place, "00281051")[index])]);
  return [...own.filter(([, center, width]) => Number.isFinite(center) && width > 0), ...(text(image, "00080060") === "CT" ? USUAL : [])];
}

/** Frames per second of a loop (PS3.3 C.7.6.5), or undefined. */
export function rateOf(image) {
  const time = number(image, "00181063") ?? number(image, "00181065", 1);
  return number(image, "00082144") ?? number(image, "00180040") ?? (time > 0 ? 1000 / time : undefined);
}

export class Stack {
  #stop;
  #playing = 0;

  constructor({ series, slices, about, place, moved, answered, failed, drawn }) {
    Object.assign(this, { series, slices, drawn, window: "", zoomed: 1, shift: { x: 0, y: 0 }, direction: 1 });
    this.index = Math.min(slices.length - 1, place.slice ? place.slice - 1 : slices.length > 1 && slices[0].frame === slices.at(-1).frame ? slices.length >> 1 : 0);
    this.tiles = new Tiles({
      arrived: (tile, answer) => {
        answered(tile, answer);
        this.draw();
      },
      failed,
    });
    this.draw = onceAFrame(() => this.#draw());
    this.#told = debounced(300, () => {
      moved({ slice: this.index + 1 });
      if (!this.#playing) say(this.#where());
    });
    this.#build();
    this.tools = this.#tools(about);
  }

  #told;

  #build() {
    this.canvas = h("canvas.picture", { "aria-hidden": "true" });
    this.marks = h("canvas.marks", { "aria-hidden": "true" });
    this.thumb = h("div.thumb");
    this.slider = h(
      "div.slices",
      { tabindex: 0, role: "slider", "aria-label": "Slice", "aria-orientation": "vertical", "aria-valuemin": 1, "aria-valuemax": this.slices.length },
      this.marks,
      this.thumb,
    );
    this.caption = h("div.bar", { "aria-hidden": "true" }, h("span"));
    this.element = h(
      "div.stage.stack",
      { role: "group", "aria-label": "Slices", "aria-busy": "true", onkeydown: (event) => this.#key(event) },
      this.canvas,
      this.caption,
      this.slider,
    );
    this.slider.hidden = this.slices.length < 2;
    gestures(this.element, {
      pan: (right, down) => {
        this.shift = { x: this.shift.x + right, y: this.shift.y + down };
        this.draw();
      },
      zoom: (factor) => this.zoom(factor),
      wheel: (steps, _x, _y, event) => (event.ctrlKey ? this.zoom(1.2 ** -steps) : this.#roll(steps)),
    });
    for (const name of ["pointerdown", "pointermove"]) this.slider.addEventListener(name, (event) => this.#drag(event));
    const stage = fitted(this.element, [this.canvas], (ratio) => {
      this.ratio = ratio;
      this.#draw();
    });
    const bar = fitted(this.slider, [this.marks], () => this.drawn());
    this.#stop = () => (stage(), bar());
  }

  close() {
    this.#stop();
    clearInterval(this.#playing);
    this.draw.cancel();
    this.#told.cancel();
    this.tiles.close();
  }

  #tools(about) {
    const tools = [];
    const windows = windowsOf(about);
    if (windows.length) {
      const options = [["", "As stored"], ...windows.map(([named, center, width]) => [`${center},${width}`, `${named} (${center}, ${width})`])];
      tools.push(choice("Window (center, width)", options, (window) => this.#setWindow(window)));
    }
    const rate = rateOf(about[0]);
    if (rate && this.slices.length > 1) {
      const play = h("button", { type: "button", "aria-pressed": "false", onclick: () => this.#play(play, rate) }, `Play (${Math.round(rate)} a second)`);
      tools.push(h("div.buttons", {}, play));
    }
    return tools;
  }

  #setWindow(window) {
    this.window = window;
    this.draw();
  }

  #play(button, rate) {
    button.setAttribute("aria-pressed", String(!this.#playing));
    if (this.#playing) {
      clearInterval(this.#playing);
      this.#playing = 0;
      return;
    }
    this.#playing = setInterval(() => {
      const next = (this.index + 1) % this.slices.length;
      if (this.tiles.get(this.#tile(this.index).key)) this.go(next);
    }, 1000 / rate);
  }

  #rolled = 0;

  #roll(steps) {
    this.#rolled += steps;
    const whole = Math.trunc(this.#rolled);
    this.#rolled -= whole;
    if (whole) this.go(this.index + whole);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.round(this.slices.length / 10));
    const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    const zooms = { "+": 1.25, "=": 1.25, "-": 0.8 };
    if (steps[event.key]) this.go(this.index + steps[event.key]);
    else if (zooms[event.key]) this.zoom(zooms[event.key]);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  #drag(event) {
    event.stopPropagation();
    if (event.type === "pointerdown") this.slider.setPointerCapture(event.pointerId);
    if (!event.buttons) return;
    const { top, height } = this.slider.getBoundingClientRect();
    this.go(Math.round(((event.clientY - top) / height) * this.slices.length - 0.5));
  }

  go(index) {
    const next = Math.min(Math.max(index, 0), this.slices.length - 1);
    if (next === this.index) return;
    this.direction = next > this.index ? 1 : -1;
    this.index = next;
    this.draw();
    this.#told();
  }

  zoom(factor) {
    this.zoomed = Math.min(16, Math.max(0.25, this.zoomed * factor));
    this.draw();
  }

  fit() {
    this.zoomed = 1;
    this.shift = { x: 0, y: 0 };
    this.draw();
  }

  #where() {
    const { at } = this.slices[this.index];
    return `${this.index + 1} of ${this.slices.length}${at === undefined ? "" : `, at ${at.toFixed(1)} mm`}`;
  }

  #tile(index) {
    const slice = this.slices[index];
    const frame = `${this.series}/instances/${slice.instance}/frames/${slice.frame}`;
    const url = this.window ? `${frame}/rendered?window=${this.window},linear` : slice.stored ? frame : `${frame}/rendered`;
    return { key: url, url, instance: slice.instance, frame: slice.frame };
  }

  #wanted() {
    const near = [0];
    for (let step = 1; step <= AHEAD; step++) near.push(step * this.direction, ...(step <= BEHIND ? [-step * this.direction] : []));
    const around = this.#playing ? near.map((step) => (this.index + step + this.slices.length) % this.slices.length) : near.map((step) => this.index + step);
    return [...new Set(around)].filter((index) => index >= 0 && index < this.slices.length).map((index) => this.#tile(index));
  }

  #draw() {
    if (!this.canvas.width) return;
    this.tiles.want(this.#wanted());
    const slice = this.slices[this.index];
    const bitmap = this.tiles.get(this.#tile(this.index).key);
    if (bitmap) this.#paint(bitmap, slice);
    this.element.setAttribute("aria-busy", String(!bitmap));
    this.caption.firstChild.textContent = this.#where();
    this.slider.setAttribute("aria-valuenow", this.index + 1);
    this.slider.setAttribute("aria-valuetext", this.#where());
    this.thumb.style.top = `${((this.index + 0.5) / this.slices.length) * 100}%`;
    this.drawn();
  }

  #paint(bitmap, { stretch }) {
    const context = this.canvas.getContext("2d", { alpha: false });
    const { width, height } = this.canvas;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    const fit = Math.min(width / bitmap.width, height / (bitmap.height * stretch)) * this.zoomed;
    const [w, t] = [Math.round(bitmap.width * fit), Math.round(bitmap.height * stretch * fit)];
    const [x, y] = [(width - w) / 2 + this.shift.x * this.ratio, (height - t) / 2 + this.shift.y * this.ratio];
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, Math.round(x), Math.round(y), w, t);
  }

  /** Draws beside the slices what is known of each; {cached, loading, claimed, absent}: how many of them. */
  paintCoverage(coverage, mine, visible) {
    const context = this.marks.getContext("2d");
    const { width, height } = this.marks;
    context.clearRect(0, 0, width, height);
    const states = { cached: 0, loading: 0, claimed: 0, absent: 0 };
    this.slices.forEach(({ instance, frame }, index) => {
      const state = coverage.stateOf(instance, frame);
      states[state]++;
      const name = mine.has(`${instance}/${frame}`) && (state === "cached" || state === "absent") ? "store" : state;
      const [from, to] = [index, index + 1].map((one) => Math.round((one / this.slices.length) * height));
      if (visible && STATES[name]) paintState(context, name, { x: 0, y: from, width, height: Math.max(1, to - from) }, this.ratio);
    });
    return states;
  }

  summary(states) {
    return `${this.slices.length} frames: ${states.cached} cached, ${states.loading} being loaded, ${states.claimed} queued, ${states.absent} not cached`;
  }
}
