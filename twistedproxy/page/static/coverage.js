// What the proxy has of a series, live, and how that is drawn: tints, patterns and letters over tiles, jobs in words.

import { request } from "./dicomweb.js";
import { h } from "./dom.js";
import { lineSplitter, merged, stateOf, total } from "./runs.js";
import { bytes, count, explain, kindOf, plural, reasonOf } from "./words.js";

const LONGEST = 30_000; // ms between attempts
const SILENCE = 30_000; // ms; a stream has a sign of life every 10 s
const GONE = new Set([404, 405, 406]); // this proxy has no such resource, or no such series

/** Follows the coverage of a series while the page is visible; `changed()` after each line. */
export class Coverage {
  #stop = null;
  #timer = 0;
  #silence = 0;
  #tries = 0;
  #look = () => (document.hidden ? this.#end() : this.#begin());

  constructor(series, changed) {
    Object.assign(this, { series, changed, known: { instances: {}, jobs: [] }, said: "Waiting for the proxy." });
    document.addEventListener("visibilitychange", this.#look);
    this.#begin();
  }

  close() {
    document.removeEventListener("visibilitychange", this.#look);
    this.#end();
  }

  stateOf(instance, frame) {
    return stateOf(this.known.instances, instance, frame);
  }

  #end() {
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    this.#stop?.abort();
    this.#stop = null;
  }

  async #begin() {
    this.#end();
    const stop = (this.#stop = new AbortController());
    try {
      await this.#read(stop.signal);
    } catch (error) {
      if (stop.signal.aborted) return;
      this.said = GONE.has(error.status) ? "This proxy does not tell what it has cached." : `Not up to date. ${explain(error)}`;
      this.changed();
      if (GONE.has(error.status)) return;
    }
    if (stop.signal.aborted) return;
    this.#timer = setTimeout(() => this.#begin(), Math.min(LONGEST, 500 * 2 ** this.#tries++));
  }

  async #read(signal) {
    const answer = await request(`${this.series}/coverage`, { accept: "application/x-ndjson", cache: "no-store", signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const lines = lineSplitter();
    this.known = { instances: {}, jobs: [] };
    for (;;) {
      clearTimeout(this.#silence);
      this.#silence = setTimeout(() => this.#begin(), SILENCE);
      const { done, value } = await reader.read();
      if (done) return;
      for (const line of lines(value)) {
        this.known = merged(this.known, JSON.parse(line));
        this.#tries = 0;
        this.said = "";
      }
      this.changed();
    }
  }
}

/** States, as they are drawn and named. `store`: this reader waited for the store; of the others the proxy tells. */
export const STATES = {
  cached: { letter: "C", color: [0, 137, 123], pattern: "plain", text: "cached" },
  store: { letter: "S", color: [142, 36, 170], pattern: "crossed", text: "from the store, when you asked" },
  loading: { letter: "L", color: [21, 101, 192], pattern: "stripes", text: "being loaded" },
  claimed: { letter: "Q", color: [230, 120, 0], pattern: "dots", text: "queued to be loaded" },
};

const rgb = ({ color }, opacity = 1) => `rgb(${color.join(" ")} / ${opacity})`;
const patterns = new Map();

function patternOf(context, name) {
  const state = STATES[name];
  if (!patterns.has(name)) patterns.set(name, drawPattern(state));
  return context.createPattern(patterns.get(name), "repeat");
}

function drawPattern(state) {
  const canvas = h("canvas", { width: 16, height: 16 });
  const context = canvas.getContext("2d");
  context.strokeStyle = context.fillStyle = rgb(state, 0.4);
  context.lineWidth = 1.5;
  const line = (...points) => {
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x, y);
    context.stroke();
  };
  const diagonals = (at) => [-16, 0, 16].forEach((shift) => line([at(shift), 0], [at(shift + 16), 16]));
  if (state.pattern === "dots") context.fillRect(6, 6, 4, 4);
  if (state.pattern === "stripes" || state.pattern === "crossed") diagonals((x) => x);
  if (state.pattern === "crossed") diagonals((x) => 16 - x);
  return canvas;
}

/** Draws a state over a place on a canvas: a tint, its pattern, a frame, and a letter where there is room. */
export function paintState(context, name, { x, y, width, height }, ratio = 1) {
  const state = STATES[name];
  context.fillStyle = rgb(state, 0.1);
  context.fillRect(x, y, width, height);
  if (state.pattern !== "plain") {
    context.fillStyle = patternOf(context, name);
    context.fillRect(x, y, width, height);
  }
  context.strokeStyle = rgb(state, 0.8);
  context.lineWidth = ratio;
  context.strokeRect(x + ratio, y + ratio, width - 2 * ratio, height - 2 * ratio);
  const side = 15 * ratio;
  if (width < side * 2 || height < side * 2) return;
  context.fillStyle = rgb(state, 0.9);
  context.fillRect(x + ratio, y + ratio, side, side);
  context.fillStyle = "#fff";
  context.font = `bold ${11 * ratio}px sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(state.letter, x + ratio + side / 2, y + ratio + side / 2 + ratio);
}

/** Draws over the slide what is known of its tiles; {cached, loading, claimed, absent}: how many of them. */
export function paintOverlay(slide, coverage, mine, visible) {
  const context = slide.over.getContext("2d");
  context.clearRect(0, 0, slide.over.width, slide.over.height);
  const states = { cached: 0, loading: 0, claimed: 0, absent: 0 };
  for (const tile of slide.shown) {
    const state = coverage.stateOf(tile.instance, tile.frame);
    states[state]++;
    const waited = mine.get(`${tile.instance}/${tile.frame}`);
    const name = waited && (state === "cached" || state === "absent") ? "store" : state;
    if (visible && STATES[name]) paintState(context, name, slide.box(tile), slide.ratio);
  }
  return states;
}

/** The legend: a sample of each state with its letter and meaning. */
export function legend() {
  return h(
    "ul.legend",
    {},
    Object.entries(STATES).map(([name, { text }]) => {
      const canvas = h("canvas", { width: 36, height: 36, "aria-hidden": "true" });
      paintState(canvas.getContext("2d"), name, { x: 0, y: 0, width: 36, height: 36 }, 1.15);
      return h("li", {}, canvas, text);
    }),
  );
}

/** Rows {text, frames, cached} as a list with bars. */
export function shares(rows) {
  return rows.map(({ text, frames, cached }) =>
    h(
      "li",
      {},
      h("span", {}, text),
      h("meter", { min: 0, max: frames, value: cached, "aria-label": `${text}: cached frames` }),
      h("span.figure", {}, `${count(cached)} of ${count(frames)}`),
    ),
  );
}

/** How many frames of some instances are cached. */
export const cachedOf = (coverage, instances) => instances.reduce((sum, uid) => sum + total(coverage.known.instances[uid]?.cached), 0);

const MOST_JOBS = 3;
const ENDED = { done: "done", failed: "failed", stopped: "stopped" };

/** Jobs in words, as items of a list: those that run, then those that ended lately. */
export function jobItems(jobs) {
  const running = jobs.filter((job) => !ENDED[job.state]);
  const shown = [...running, ...jobs.filter((job) => ENDED[job.state])].slice(0, Math.max(running.length, MOST_JOBS));
  return [running.length ? null : h("li.idle", {}, "Nothing is being loaded now."), ...shown.map(jobItem)].filter(Boolean);
}

function jobItem(job) {
  const progress = job.total ? `${count(job.frames)} of ${plural(job.total, "frame")}` : plural(job.frames, "frame");
  const rate = job.bytes_per_second ? `, ${bytes(job.bytes_per_second)} a second` : "";
  const facts = `${progress}, ${bytes(job.bytes ?? 0)}${rate}`;
  if (ENDED[job.state]) return h("li.ended", {}, h("strong", {}, kindOf(job)), ` – ${reasonOf(job)}: ${ENDED[job.state]}, ${facts}`);
  const bar = h("progress", { max: job.total || 1, value: job.total ? job.frames : undefined, "aria-label": `${kindOf(job)}: progress` });
  return h("li", {}, h("strong", {}, kindOf(job)), ` – ${reasonOf(job)}`, bar, h("span.figure", {}, facts));
}
