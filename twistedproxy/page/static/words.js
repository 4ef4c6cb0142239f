// Figures, failures and reasons in plain words.

export const bytes = (count) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit++;
  }
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
};

export const count = (number) => Math.round(number).toLocaleString("en");

export const duration = (seconds) =>
  seconds < 0.00095 ? `${Math.round(seconds * 1e6)} µs` : seconds < 1 ? `${Number((seconds * 1e3).toPrecision(2))} ms` : `${Number(seconds.toPrecision(2))} s`;

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A request that was answered with an error, or not at all (status 0). `detail`: what the answer says. */
export class Failure extends Error {
  constructor(status, detail = "") {
    super(detail || (status ? `status ${status}` : "no answer"));
    this.status = status;
  }
}

const MEANINGS = {
  0: "The proxy does not answer. It may be stopped or restarting; this page asks again by itself.",
  400: "The proxy did not understand the request.",
  401: "The store asks for a login, and this browser has none that it accepts. Reload the page to log in.",
  403: "The store does not let you read this. Its administrator can give you access.",
  404: "The store has nothing at this address. It may have been deleted.",
  406: "The store cannot give this in a form that a browser shows.",
  413: "This is larger than the proxy's limits allow.",
  429: "The store gets more requests than it takes. Try again in a moment.",
  502: "The store behind the proxy cannot be reached, or its answer cannot be used.",
  503: "The proxy is busy. Try again in a moment.",
  504: "The store behind the proxy does not answer in time.",
};

/** An error as sentences for a person. */
export function explain(error) {
  if (!(error instanceof Failure)) return `The page failed: ${error.message}`;
  const meaning = MEANINGS[error.status] ?? `The proxy answered with status ${error.status}.`;
  return error.message.startsWith("status ") || !error.status ? meaning : `${meaning} (${error.message})`;
}

/** What /readyz says of one part, as sentences, or "" if all is well. `name`: "cache", "origin /dicomweb". */
export function readiness(name, text) {
  if (text === "ok") return "";
  if (name === "cache") {
    return `The cache cannot be used (${text}). Pictures come from the store, which is slower. Check the cache server, or the folder and free space of --cache.`;
  }
  const store = name.replace(/^origin /, "");
  if (/404/.test(text)) return `The store of ${store} may be the wrong address (${text}). Check the URL that --origin names.`;
  return `The store of ${store} cannot be reached (${text}). What is cached can still be seen. Check that the store is running and that --origin names it.`;
}

const REASONS = {
  "asked-by-hand": "somebody asked for it",
  "block": "around what a reader looks at",
  "cpu-above-limit": "around what a reader looks at: the machine is too busy for all of it",
  "display-not-smaller": "around what a reader looks at",
  "display-too-few-frames": "around what a reader looks at",
  "frames-refused": "the store gives no single frames",
  "large-for-the-cache": "around what a reader looks at: all of it would not fit into the cache",
  "look-ahead": "next to what a reader looks at",
  "looked-ahead": "next to what a reader looks at",
  "memory-above-limit": "around what a reader looks at: memory is too short for all of it",
  "needed-by-a-picture": "a picture needs all of it",
  "not-loadable": "around what a reader looks at: the store does not give all of it at once",
  "packed-frames": "frames of one bit come only together",
  "slow-to-load": "around what a reader looks at: all of it would take too long",
  "small-instance": "small enough to load all of it",
  "small-level": "a small level of a slide that was opened",
  "stack": "next to the slice that a reader looks at",
  "too-many-frames": "around what a reader looks at: all of it is too much",
  "whole-instance": "readers look at this slide",
  "whole-instance-off": "around what a reader looks at",
};

const KINDS = {
  ahead: "Ahead of the reader",
  block: "A block of frames",
  display: "A screen of frames",
  series: "A series",
  stack: "Slices of a stack",
  study: "A study",
  whole: "A whole instance",
};

export const reasonOf = (job) => REASONS[job.reason] ?? String(job.reason ?? "").replaceAll("-", " ");
export const kindOf = (job) => KINDS[job.kind] ?? job.kind;
