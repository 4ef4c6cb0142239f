// The slide on its canvas: the part that is looked at, its tiles, and a map of the whole.
//
// - The view is the place in its middle, in pixels of the largest level, and the zoom: CSS pixels for each of those.
// - Larger levels' tiles are drawn over smaller ones', so that there is always something to be seen.

import { h, debounced, onceAFrame, say } from "./dom.js";
import { fitted, gestures } from "./gestures.js";
import { chooseLevel, scaleBar } from "./levels.js";
import { Tiles } from "./tiles.js";
import { plural } from "./words.js";

const MOST_ZOOM = 16; // CSS pixels for a pixel of the largest level
const VIEW_LIMIT = 24e6; // pixels of tiles that one view may take: 96 MB
const WHOLE_LEVEL = 16; // tiles; smaller levels are kept, and lie beneath all others
const FIRST = 6; // tiles from the middle of the view, before the few that give an idea of all of it
const MAP = 180; // CSS pixels, the longer side

export class Slide {
  #stop = [];

  /** `pyramid`: see levels.js. `place`: {x, y, zoom} or {}; `options`: {path, plane, profile}. Callbacks: `moved(place)`, `answered(tile, answer)`. */
  constructor({ series, pyramid, place, moved, answered, failed, drawn }) {
    Object.assign(this, { series, levels: pyramid.levels, drawn, shown: [] });
    this.base = this.levels[0];
    this.options = { path: pyramid.paths[0].id, plane: 0, profile: false };
    this.view = place.zoom ? place : null; // until its size is known
    this.tiles = new Tiles({
      arrived: (tile, answer) => {
        answered(tile, answer);
        if (tile.level === this.levels.length - 1) this.#paintWhole(tile);
        this.draw();
      },
      failed,
    });
    this.draw = onceAFrame(() => this.#draw());
    this.#moved = debounced(300, () => {
      moved(this.view);
      say(this.describe());
    });
    this.#build();
  }

  #moved;

  #build() {
    this.canvas = h("canvas.picture", { "aria-hidden": "true" });
    this.over = h("canvas.overlay", { "aria-hidden": "true" });
    this.bar = h("div.bar", { "aria-hidden": "true" }, h("span"));
    this.map = h("canvas.map", { "aria-hidden": "true" });
    this.element = h(
      "div.stage",
      {
        tabindex: 0,
        role: "application",
        "aria-label": "Slide. Arrow keys move, plus and minus zoom, 0 shows all of it, O shows what is cached.",
        "aria-busy": "true",
        onkeydown: (event) => this.#key(event),
      },
      this.canvas,
      this.over,
      this.bar,
      this.map,
    );
    const ratio = Math.min(MAP / this.base.width, MAP / this.base.height);
    this.whole = h("canvas"); // what the map shows, without the rectangle: the smallest level, as far as it came
    for (const canvas of [this.map, this.whole]) {
      [canvas.width, canvas.height] = [this.base.width, this.base.height].map((side) => Math.max(8, Math.round(side * ratio)));
    }
    gestures(this.element, {
      pan: (right, down) => this.move(-right / this.view.zoom, -down / this.view.zoom),
      zoom: (factor, x, y) => this.zoom(factor, x, y),
      wheel: (steps, x, y) => this.zoom(1.35 ** -Math.max(-3, Math.min(3, steps)), x, y),
    });
    for (const name of ["pointerdown", "pointermove"]) this.map.addEventListener(name, (event) => this.#go(event));
    for (const name of ["dblclick", "wheel"]) this.map.addEventListener(name, (event) => event.stopPropagation());
    this.#stop.push(fitted(this.element, [this.canvas, this.over], (pixels) => this.#resized(pixels)));
  }

  close() {
    for (const stop of this.#stop) stop();
    this.draw.cancel();
    this.#moved.cancel();
    this.tiles.close();
  }

  set(options) {
    Object.assign(this.options, options);
    for (const tile of this.#whole(this.levels.length - 1)) this.#paintWhole(tile);
    this.draw();
  }

  // ---- the view ----

  #resized(ratio) {
    this.ratio = ratio;
    this.size = { width: this.canvas.width / ratio, height: this.canvas.height / ratio };
    if (!this.size.width || !this.size.height) return;
    if (!this.view) this.fit();
    this.#draw(); // at once: a canvas whose size was set is empty
  }

  fit() {
    this.view = { x: this.base.width / 2, y: this.base.height / 2, zoom: this.#least() };
    this.#changed();
  }

  move(right, down) {
    this.view.x = clamp(this.view.x + right, 0, this.base.width);
    this.view.y = clamp(this.view.y + down, 0, this.base.height);
    this.#changed();
  }

  /** Zooms so that what is at (x, y), by default the middle, stays there. */
  zoom(factor, x = this.size.width / 2, y = this.size.height / 2) {
    const zoom = clamp(this.view.zoom * factor, this.#least() / 2, MOST_ZOOM);
    const [right, down] = [x - this.size.width / 2, y - this.size.height / 2];
    const shift = 1 / this.view.zoom - 1 / zoom;
    this.view.zoom = zoom;
    this.move(right * shift, down * shift);
  }

  #least() {
    return Math.min(this.size.width / this.base.width, this.size.height / this.base.height) * 0.96;
  }

  #changed() {
    this.draw();
    this.#moved();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = (event.shiftKey ? 0.9 : 0.15) / this.view.zoom;
    const { width, height } = this.size;
    const actions = {
      ArrowLeft: () => this.move(-width * step, 0),
      ArrowRight: () => this.move(width * step, 0),
      ArrowUp: () => this.move(0, -height * step),
      ArrowDown: () => this.move(0, height * step),
      "+": () => this.zoom(1.5),
      "=": () => this.zoom(1.5),
      "-": () => this.zoom(1 / 1.5),
      0: () => this.fit(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  #go(event) {
    event.stopPropagation();
    if (event.type === "pointerdown") this.map.setPointerCapture(event.pointerId);
    if (!event.buttons) return;
    const box = this.map.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.base.width;
    const y = ((event.clientY - box.top) / box.height) * this.base.height;
    this.move(x - this.view.x, y - this.view.y);
  }

  describe() {
    const level = this.levels[this.target];
    const size = level.spacing && `, ${Number((level.spacing.x * 1000).toPrecision(3))} µm a pixel`;
    return `Level ${this.target + 1} of ${this.levels.length}: ${level.width} × ${level.height} pixels${size ?? ""}; ${Number((this.view.zoom * 100).toPrecision(2))} % of full size`;
  }

  // ---- drawing ----

  /** The tiles of a level that are in view: {key, url, level, column, row, instance, frame, away}, the nearest to the middle first. */
  inView(index) {
    const level = this.levels[index];
    const scale = level.width / this.base.width / this.view.zoom; // its pixels for a CSS pixel
    const down = level.height / this.base.height / this.view.zoom;
    const [x, y] = [(this.view.x * level.width) / this.base.width, (this.view.y * level.height) / this.base.height];
    const [right, bottom] = [(this.size.width / 2) * scale, (this.size.height / 2) * down];
    const columns = range(x - right, x + right, level.tileWidth, level.columns);
    const rows = range(y - bottom, y + bottom, level.tileHeight, level.rows);
    const found = [];
    for (const row of rows) {
      for (const column of columns) {
        const tile = this.#tile(index, column, row);
        if (!tile) continue;
        tile.away = Math.hypot((column + 0.5) * level.tileWidth - x, (row + 0.5) * level.tileHeight - y);
        found.push(tile);
      }
    }
    return found.sort((a, b) => a.away - b.away);
  }

  #tile(index, column, row) {
    const { path, plane, profile } = this.options;
    const place = this.levels[index].locate(column, row, path, plane);
    if (!place) return undefined;
    const frame = `${this.series}/instances/${place.instance}/frames/${place.frame}`;
    const url = profile ? `${frame}/rendered?iccprofile=srgb&embed_iccprofile=false` : place.stored ? frame : `${frame}/rendered`;
    return { key: url, url, level: index, column, row, instance: place.instance, frame: place.frame };
  }

  #draw() {
    if (!this.view || !this.canvas.width) return;
    const scale = this.view.zoom * this.ratio;
    this.target = chooseLevel(this.levels, scale, this.canvas.width * this.canvas.height, VIEW_LIMIT);
    const shown = this.inView(this.target);
    const beneath = [];
    for (let index = this.target + 1; index < this.levels.length; index++) {
      const level = this.levels[index];
      if (index === this.target + 1 || level.columns * level.rows <= WHOLE_LEVEL) beneath.push(...this.inView(index));
    }
    const smallest = this.levels.length - 1;
    const [soonest, later] = [shown.slice(0, FIRST), shown.slice(FIRST)];
    this.tiles.want([...soonest, ...this.#whole(smallest), ...later, ...beneath]);
    const context = this.canvas.getContext("2d", { alpha: false });
    context.fillStyle = getComputedStyle(this.element).backgroundColor;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    const covered = shown.every((tile) => this.tiles.get(tile.key));
    for (let index = covered ? this.target : smallest; index >= this.target; index--) {
      const enlarged = (scale * this.base.width) / this.levels[index].width;
      context.imageSmoothingEnabled = index > 0 || enlarged < 4;
      context.imageSmoothingQuality = "high";
      for (const tile of this.inView(index)) this.#paint(context, tile);
    }
    this.shown = shown;
    this.element.setAttribute("aria-busy", String(!this.tiles.complete));
    this.#drawBar();
    this.#drawMap();
    this.drawn();
  }

  #whole(index) {
    const level = this.levels[index];
    if (level.columns * level.rows > WHOLE_LEVEL) return [];
    const all = Array.from({ length: level.columns * level.rows }, (_, n) => [n % level.columns, Math.floor(n / level.columns)]);
    return all.map(([column, row]) => this.#tile(index, column, row)).filter(Boolean);
  }

  /** Where a tile is on the canvas, in whole device pixels: {x, y, width, height}; and what part of it shows the slide. */
  box({ level: index, column, row }) {
    const level = this.levels[index];
    const [x, y] = [column * level.tileWidth, row * level.tileHeight];
    const [width, height] = [Math.min(level.tileWidth, level.width - x), Math.min(level.tileHeight, level.height - y)];
    const across = (value) => Math.round(((value * this.base.width) / level.width - this.view.x) * this.view.zoom * this.ratio + this.canvas.width / 2);
    const along = (value) => Math.round(((value * this.base.height) / level.height - this.view.y) * this.view.zoom * this.ratio + this.canvas.height / 2);
    const [left, top] = [across(x), along(y)];
    return { x: left, y: top, width: across(x + width) - left, height: along(y + height) - top, of: { width, height } };
  }

  #paint(context, tile) {
    const bitmap = this.tiles.get(tile.key);
    if (!bitmap) return;
    const { x, y, width, height, of } = this.box(tile);
    context.drawImage(bitmap, 0, 0, of.width, of.height, x, y, width, height);
  }

  #drawBar() {
    this.bar.hidden = !this.base.spacing;
    if (!this.base.spacing) return;
    const { pixels, text } = scaleBar(this.base.spacing.x / this.view.zoom, Math.min(160, this.size.width / 3));
    this.bar.style.width = `${pixels}px`;
    this.bar.firstChild.textContent = text;
  }

  #paintWhole(tile) {
    const bitmap = this.tiles.get(tile.key);
    if (!bitmap) return;
    const level = this.levels[tile.level];
    const [right, down] = [this.whole.width / level.width, this.whole.height / level.height];
    const { of } = this.box(tile);
    const [x, y] = [tile.column * level.tileWidth * right, tile.row * level.tileHeight * down];
    this.whole.getContext("2d").drawImage(bitmap, 0, 0, of.width, of.height, x, y, of.width * right, of.height * down);
  }

  #drawMap() {
    const context = this.map.getContext("2d");
    const { width, height } = this.map;
    context.clearRect(0, 0, width, height);
    context.drawImage(this.whole, 0, 0);
    const scale = width / this.base.width;
    const [w, t] = [(this.size.width / this.view.zoom) * scale, (this.size.height / this.view.zoom) * scale];
    const [x, y] = [this.view.x * scale - w / 2, this.view.y * scale - t / 2];
    for (const [color, line] of [["#fff", 4], ["#c2185b", 2]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.strokeRect(clamp(x, 1, width - 4), clamp(y, 1, height - 4), Math.max(3, Math.min(w, width - 2)), Math.max(3, Math.min(t, height - 2)));
    }
  }

  /** What is in view, in words: `states`, by the names in runs.js, how many tiles have it. */
  summary(states) {
    return `${plural(this.shown.length, "frame")} in view: ${states.cached} cached, ${states.loading} being loaded, ${states.claimed} queued, ${states.absent} not cached`;
  }
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), Math.max(least, most));

function range(from, to, step, count) {
  const first = Math.max(0, Math.floor(from / step));
  const last = Math.min(count - 1, Math.ceil(to / step) - 1);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, n) => first + n);
}
