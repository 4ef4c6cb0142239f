// The whole proxy: requests, latency, stores, cache, workers and loads, from /status.json and /metrics. Asked every 2 s
// while the page is visible.

import { bars } from "./charts.js";
import { jobItems } from "./coverage.js";
import { request } from "./dicomweb.js";
import { h } from "./dom.js";
import { BASE } from "./health.js";
import { bytes, count, duration, explain, plural, readiness } from "./words.js";

const EVERY = 2000; // ms
const POINTS = 60;
const OWN = new Set(["healthz", "readyz", "metrics", "status", "page", "coverage"]); // routes of probes, and of this page
const OUTCOMES = {
  hit: "frames and pictures from the cache",
  rendered: "pictures made now from cached frames",
  collapsed: "shared with another request under way",
  partial: "lists of which some frames were cached",
  miss: "from the store",
  none: "passed through, or not cacheable",
};

/** Draws into `main` until `signal` is aborted. */
export function showStatus(main, about, signal) {
  document.title = "Status – twistedproxy";
  const body = h("div.status");
  main.replaceChildren(h("h1", { tabindex: -1 }, "Status"), body);
  if (!about.status) {
    body.append(h("p.state", {}, "This listener does not serve the proxy's status. It is at the admin listener (--admin-listen)."));
    return;
  }
  const view = new Status(body);
  const ask = async () => {
    if (!document.hidden) await view.refresh(signal);
    if (!signal.aborted) timer = setTimeout(ask, EVERY);
  };
  let timer = setTimeout(ask, 0);
  signal.addEventListener("abort", () => clearTimeout(timer));
}

class Status {
  constructor(body) {
    this.state = h("p.state", { role: "status" }, "Asking …");
    this.parts = Object.fromEntries(["Health", "Requests", "Latency", "Stores", "Cache", "Workers", "Loads"].map((name) => [name, h("div")]));
    this.rates = [];
    this.body = body;
    body.append(this.state);
  }

  async refresh(signal) {
    const get = (path) => request(BASE + path, { accept: "*/*", signal, cache: "no-store" });
    try {
      const [status, metrics, ready] = await Promise.all([
        get("status.json").then((answer) => answer.json()),
        get("metrics").then((answer) => answer.text()),
        fetch(`${BASE}readyz`, { signal }).then((answer) => answer.json(), () => ({})),
      ]);
      this.#show(status, parseMetrics(metrics), ready);
      this.state.textContent = "";
    } catch (error) {
      if (!signal.aborted) this.state.textContent = `Not up to date. ${explain(error)}`;
    }
  }

  #show(status, metrics, ready) {
    const { Health, Requests, Latency, Stores, Cache, Workers, Loads } = this.parts;
    const wrong = Object.entries(ready.checks ?? {}).map(([name, text]) => readiness(name, text)).filter(Boolean);
    Health.replaceChildren(...(wrong.length ? wrong.map((text) => h("p.problem", {}, text)) : [h("p", {}, "The cache and all stores answer.")]));
    Requests.replaceChildren(...this.#requests(metrics));
    Latency.replaceChildren(latency(metrics));
    Stores.replaceChildren(...status.mounts.map(storeItem));
    Cache.replaceChildren(...cacheItems(status.cache));
    Workers.replaceChildren(workers(status.workers));
    const { running = [], ended = [] } = status.jobs ?? {};
    if (this.body.children.length === 1) {
      this.body.append(...Object.entries(this.parts).map(([name, part]) => h("section", { "aria-label": name }, h("h2", {}, name), part)));
    }
    Loads.replaceChildren(h("ul.jobs", {}, jobItems(running.map(withRate))), ...(ended.length ? [h("p", {}, `Ended lately: ${plural(ended.length, "load")}, ${plural(ended.reduce((sum, job) => sum + job.frames, 0), "frame")}.`)] : []));
  }

  #requests(metrics) {
    const counts = Object.fromEntries(Object.keys(OUTCOMES).map((key) => [key, 0]));
    for (const { labels, value } of metrics.get("twistedproxy_request_seconds_count") ?? []) {
      if (OWN.has(labels.route)) continue;
      counts[labels.cache] = (counts[labels.cache] ?? 0) + value;
    }
    if (this.before) this.rates.push(Object.fromEntries(Object.entries(counts).map(([key, value]) => [key, Math.max(0, value - (this.before[key] ?? 0))])));
    this.before = counts;
    this.rates = this.rates.slice(-POINTS);
    const keys = Object.keys(counts).filter((key) => counts[key]);
    const padded = [...Array.from({ length: POINTS - this.rates.length }, () => ({})), ...this.rates].map((row) => Object.fromEntries(keys.map((key) => [key, row[key] ?? 0])));
    const last = this.rates.at(-1) ?? {};
    const rows = keys.map((key) => [h("span", {}, h(`i.key.${key}`), OUTCOMES[key] ?? key), count(counts[key]), ((last[key] ?? 0) / (EVERY / 1000)).toFixed(1)]);
    return [bars(padded, keys), table(["Outcome", "Requests", "A second"], rows)];
  }
}

function storeItem(mount) {
  const { prefix, kind, url, requests, ...others } = mount;
  const facts = [kind, url, requests?.slots !== undefined && `${requests.slots} requests at once`, requests?.minimum_latency_seconds && `fastest answer ${duration(requests.minimum_latency_seconds)}`, others.instances !== undefined && plural(others.instances, "instance")];
  return h("p", {}, h("strong", {}, prefix || "/"), " – ", facts.filter(Boolean).join(", "));
}

function cacheItems(cache) {
  const used = cache.used_bytes ?? 0;
  const most = cache.max_bytes ?? 0;
  const words = most ? `${bytes(used)} of ${bytes(most)} used (${((100 * used) / most).toFixed(1)} %)` : `${bytes(used)} used`;
  const items = [h("p", {}, h("strong", {}, cache.provider), ` – ${words}`)];
  if (most) items.push(h("meter", { min: 0, max: most, value: used, "aria-label": "Cache fill" }));
  const facts = [cache.items !== undefined && plural(cache.items, "entry", "entries"), cache.evicted !== undefined && `${count(cache.evicted)} evicted`, cache.connected === false && "not connected"];
  items.push(h("p", {}, facts.filter(Boolean).join(", ")));
  return items;
}

const workers = (all) =>
  table(
    ["Process", "Connections", "Grants", "Cached answers a second", "Rendering"],
    all.map((one) => [String(one.pid), count(one.connections), count(one.grants), one.cached_answers_per_second.toFixed(1), one.rendering ? `${one.rendering.busy} busy, ${one.rendering.waiting} waiting` : "–"]),
  );

const withRate = (job) => ({ ...job, bytes_per_second: job.seconds ? job.bytes / job.seconds : 0 });

function latency(metrics) {
  const routes = new Map();
  for (const { labels, value } of metrics.get("twistedproxy_request_seconds_bucket") ?? []) {
    if (OWN.has(labels.route)) continue;
    const name = `${labels.route}, ${labels.cache}`;
    if (!routes.has(name)) routes.set(name, []);
    routes.get(name).push([labels.le === "+Inf" ? Infinity : Number(labels.le), value]);
  }
  const rows = [...routes]
    .map(([name, buckets]) => [name, buckets.sort((a, b) => a[0] - b[0])])
    .filter(([, buckets]) => buckets.at(-1)[1])
    .sort((a, b) => b[1].at(-1)[1] - a[1].at(-1)[1])
    .slice(0, 12)
    .map(([name, buckets]) => [name.replaceAll("_", " "), count(buckets.at(-1)[1]), ...[0.5, 0.95, 0.99].map((share) => withinOf(buckets, share))]);
  return table(["Route, outcome", "Requests", "Half within", "95 % within", "99 % within"], rows);
}

/** The upper bound of the histogram's bucket in which a share of the values is reached; buckets [bound, number up to it]. */
export function withinOf(buckets, share) {
  const [bound] = buckets.find(([, number]) => number >= buckets.at(-1)[1] * share);
  return bound === Infinity ? `over ${duration(buckets.at(-2)[0])}` : duration(bound);
}

/** Samples {labels, value} of the Prometheus text format, by name. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, value]) => [key, value]));
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

const table = (heads, rows) =>
  h(
    "div.scroll",
    { tabindex: 0, role: "group", "aria-label": heads[0] },
    h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))),
  );
