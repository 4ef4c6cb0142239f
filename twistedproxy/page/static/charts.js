// Small charts in SVG, each with its figures as text.

import { svg, h } from "./dom.js";
import { bytes, count, duration, plural } from "./words.js";

const WIDTH = 300;
const HEIGHT = 48;
const OUTCOMES = ["hit", "joined", "browser", "store"]; // from below

export const OUTCOME_NAMES = {
  hit: "from the cache",
  joined: "shared with another request",
  browser: "from the browser's own cache",
  store: "from the store",
};

/** Stacked bars, one for each of `rows`; `keys`: the parts of a row, from below. */
export function bars(rows, keys) {
  const most = Math.max(1, ...rows.map((row) => keys.reduce((sum, key) => sum + row[key], 0)));
  const step = WIDTH / rows.length;
  const parts = rows.flatMap((row, index) => {
    let below = HEIGHT;
    return keys
      .filter((key) => row[key])
      .map((key) => {
        const height = (row[key] / most) * HEIGHT;
        below -= height;
        return svg(`rect.${key}`, { x: (index * step + 0.5).toFixed(1), y: below.toFixed(1), width: (step - 1).toFixed(1), height: height.toFixed(1) });
      });
  });
  return svg("svg.bars", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, parts);
}

/** What this reader got in the last minute; `show(traffic)` draws it anew. */
export class TrafficChart {
  constructor() {
    this.answers = h("figure", {}, h("div"), h("figcaption"));
    this.volume = h("figure", {}, h("div"), h("figcaption"));
    this.element = h("div.charts", {}, this.answers, this.volume);
    this.show(null);
  }

  show(traffic) {
    const summary = traffic?.summary();
    const empty = Array.from({ length: 60 }, () => ({ hit: 0, joined: 0, browser: 0, store: 0, bytes: 0 }));
    const rows = summary?.seconds ?? empty;
    fill(this.answers, bars(rows, OUTCOMES), summary?.answers ? inWords(summary) : "No pictures in the last minute.");
    const all = traffic ? `; ${bytes(traffic.totals.bytes)} since the page was opened` : "";
    fill(this.volume, bars(rows, ["bytes"]), `${bytes(summary?.bytes ?? 0)} in the last minute${all}.`);
  }
}

function fill(figure, chart, text) {
  figure.firstChild.replaceChildren(chart);
  figure.lastChild.textContent = text;
}

function inWords({ answers, hits, seconds, p50, p95 }) {
  const parts = OUTCOMES.slice(1)
    .map((key) => [seconds.reduce((sum, second) => sum + second[key], 0), OUTCOME_NAMES[key]])
    .filter(([number]) => number)
    .map(([number, text]) => `, ${count(number)} ${text}`);
  const share = ((100 * hits) / answers).toFixed(0);
  return `${plural(answers, "picture")} in the last minute: ${count(hits)} from the cache (${share} %)${parts.join("")}. Half came within ${duration(p50 / 1000)}, 95 % within ${duration(p95 / 1000)}.`;
}
