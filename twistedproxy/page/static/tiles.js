// Pictures on their way from the proxy, and those that are here.
//
// - At most six requests at once, in the order of the last `want`; what is no longer wanted is aborted.
// - Bitmaps take at most LIMIT bytes, apart from those that are wanted; the least recently drawn goes first, and is closed.
// - What failed is asked for again: after 1 s, 2 s, 4 s … 30 s, unless the store refuses it.

import { request } from "./dicomweb.js";
import { onHealed } from "./health.js";
import { outcomeOf } from "./traffic.js";

const AT_ONCE = 6;
const LIMIT = 160e6; // bytes, 4 a pixel
const LONGEST = 30_000; // ms
const REFUSED = new Set([400, 401, 403, 404, 406, 413]);

export class Tiles {
  #bitmaps = new Map(); // by key, the least recently drawn first
  #running = new Map(); // AbortControllers by key
  #failed = new Map(); // {tries, at, error} by key
  #wanted = new Map(); // tiles by key, in order
  #timer = 0;
  #size = 0;
  #stopHealing;

  /** `arrived(tile, answer)`: a bitmap is here, with {outcome, milliseconds, bytes}; `failed(tile, error)`. */
  constructor({ arrived, failed = () => {} }) {
    this.arrived = arrived;
    this.failed = failed;
    this.#stopHealing = onHealed(() => this.retry());
  }

  get(key) {
    const bitmap = this.#bitmaps.get(key);
    if (bitmap) {
      this.#bitmaps.delete(key);
      this.#bitmaps.set(key, bitmap);
    }
    return bitmap;
  }

  /** Tiles {key, url}, the most urgent first. */
  want(tiles) {
    this.#wanted = new Map(tiles.map((tile) => [tile.key, tile]));
    for (const [key, stop] of this.#running) {
      if (!this.#wanted.has(key)) stop.abort();
    }
    for (const key of this.#failed.keys()) {
      if (!this.#wanted.has(key)) this.#failed.delete(key);
    }
    this.#pump();
  }

  /** Whether all that is wanted is here, or will not come. */
  get complete() {
    return [...this.#wanted.keys()].every((key) => this.#bitmaps.has(key) || this.#failed.get(key)?.at === Infinity);
  }

  /** Bytes of the bitmaps that are held, and how many. */
  get held() {
    return { bytes: this.#size, bitmaps: this.#bitmaps.size };
  }

  retry() {
    this.#failed.clear();
    this.#pump();
  }

  close() {
    this.#stopHealing();
    clearTimeout(this.#timer);
    this.#wanted.clear();
    for (const stop of this.#running.values()) stop.abort();
    for (const bitmap of this.#bitmaps.values()) bitmap.close();
    this.#bitmaps.clear();
    this.#size = 0;
  }

  #pump() {
    clearTimeout(this.#timer);
    const now = performance.now();
    let next = Infinity;
    for (const tile of this.#wanted.values()) {
      if (this.#running.size >= AT_ONCE) return;
      if (this.#bitmaps.has(tile.key) || this.#running.has(tile.key)) continue;
      const due = this.#failed.get(tile.key)?.at ?? 0;
      if (due <= now) this.#load(tile);
      else next = Math.min(next, due);
    }
    if (next < Infinity) this.#timer = setTimeout(() => this.#pump(), next - now);
  }

  async #load(tile) {
    const stop = new AbortController();
    this.#running.set(tile.key, stop);
    try {
      const { bitmap, ...answer } = await fetchPicture(tile.url, stop.signal);
      if (this.#wanted.has(tile.key)) this.#keep(tile.key, bitmap);
      else bitmap.close();
      this.#failed.delete(tile.key);
      this.arrived(tile, answer);
    } catch (error) {
      if (!stop.signal.aborted) this.#fail(tile, error);
    } finally {
      this.#running.delete(tile.key);
      this.#pump();
    }
  }

  #fail(tile, error) {
    const tries = (this.#failed.get(tile.key)?.tries ?? 0) + 1;
    const wait = REFUSED.has(error.status) ? Infinity : Math.min(LONGEST, 500 * 2 ** tries);
    this.#failed.set(tile.key, { tries, at: performance.now() + wait, error });
    this.failed(tile, error);
  }

  #keep(key, bitmap) {
    this.#bitmaps.set(key, bitmap);
    this.#size += sizeOf(bitmap);
    for (const [old, other] of this.#bitmaps) {
      if (this.#size <= LIMIT) break;
      if (this.#wanted.has(old)) continue;
      this.#bitmaps.delete(old);
      this.#size -= sizeOf(other);
      other.close();
    }
  }
}

const sizeOf = (bitmap) => bitmap.width * bitmap.height * 4;

/** {bitmap, outcome, milliseconds, bytes}. Throws Failure, or AbortError. */
async function fetchPicture(url, signal) {
  const began = performance.now();
  const answer = await request(url, { accept: "image/jpeg", signal });
  const blob = await answer.blob();
  const milliseconds = performance.now() - began;
  const bitmap = await createImageBitmap(blob);
  if (signal.aborted) {
    bitmap.close();
    signal.throwIfAborted();
  }
  const outcome = outcomeOf(answer.headers.get("Cache-Status"), fromBrowser(url));
  return { bitmap, outcome, milliseconds, bytes: outcome === "browser" ? 0 : blob.size };
}

// An answer from the browser's own cache still says what the proxy did when it sent it.
function fromBrowser(url) {
  const timing = performance.getEntriesByName(url).at(-1);
  const found = timing !== undefined && timing.transferSize === 0 && timing.decodedBodySize > 0;
  if (performance.getEntriesByType("resource").length > 150) performance.clearResourceTimings();
  return found;
}
