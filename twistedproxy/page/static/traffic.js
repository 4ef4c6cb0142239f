// What this reader asked for and got: each picture's outcome, wait and bytes. The browser's part of the statistics.

const SECONDS = 60; // kept

/** hit: from the proxy's cache. joined: waited for a load that was under way. store: fetched for this request. */
export function outcomeOf(cacheStatus, fromBrowser) {
  if (fromBrowser) return "browser";
  if (/; *hit\b/.test(cacheStatus ?? "")) return "hit";
  return /; *collapsed\b/.test(cacheStatus ?? "") ? "joined" : "store";
}

/** The answers of the last minute, second by second, and of all time. */
export class Traffic {
  constructor() {
    this.totals = { hit: 0, joined: 0, store: 0, browser: 0, bytes: 0 };
    this.recent = []; // {second, outcome, milliseconds, bytes}, the oldest first
  }

  add(outcome, milliseconds, size, now = performance.now()) {
    this.totals[outcome]++;
    this.totals.bytes += size;
    this.recent.push({ second: Math.floor(now / 1000), outcome, milliseconds, bytes: size });
    this.#forget(now);
  }

  /** Of the last minute: {seconds: [{hit, joined, store, browser, bytes}], answers, bytes, p50, p95}; waits in ms. */
  summary(now = performance.now()) {
    this.#forget(now);
    const last = Math.floor(now / 1000);
    const seconds = Array.from({ length: SECONDS }, () => ({ hit: 0, joined: 0, store: 0, browser: 0, bytes: 0 }));
    for (const { second, outcome, bytes } of this.recent) {
      const place = seconds[SECONDS - 1 - (last - second)];
      place[outcome]++;
      place.bytes += bytes;
    }
    const waits = this.recent.map(({ milliseconds }) => milliseconds).sort((a, b) => a - b);
    const at = (share) => waits[Math.min(waits.length - 1, Math.floor(waits.length * share))];
    const sum = (key) => seconds.reduce((all, second) => all + second[key], 0);
    return { seconds, answers: waits.length, bytes: sum("bytes"), hits: sum("hit"), p50: at(0.5), p95: at(0.95) };
  }

  #forget(now) {
    const oldest = Math.floor(now / 1000) - SECONDS + 1;
    let gone = 0;
    while (gone < this.recent.length && this.recent[gone].second < oldest) gone++;
    if (gone) this.recent.splice(0, gone);
  }
}
