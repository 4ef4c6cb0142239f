// Whether the proxy and the stores answer: a banner while they do not. Asked every 15 s while the page is visible, and
// every 2 s while something is amiss.

import { readiness } from "./words.js";

export const BASE = new URL(".", document.baseURI).href;
const CALM = 15_000; // ms
const AMISS = 2_000; // ms

const listeners = new Set();
let trouble = "";
let timer = 0;

/** Calls `healed` each time when everything answers again; the returned function ends that. */
export function onHealed(healed) {
  listeners.add(healed);
  return () => listeners.delete(healed);
}

/** A request failed, with a status or without an answer (0): look what is wrong. */
export function suspect(status) {
  if (status === 0) show("The proxy does not answer. It may be stopped or restarting; this page asks again by itself.");
  if (status === 0 || status === 502 || status === 504) again(AMISS / 4);
}

export function watchHealth() {
  const banner = document.getElementById("banner");
  banner.querySelector("button").addEventListener("click", () => (banner.hidden = true));
  document.addEventListener("visibilitychange", () => document.hidden || again(0));
  again(0);
}

function again(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(look, milliseconds);
}

async function look() {
  if (document.hidden) return;
  show(await findTrouble());
  again(trouble ? AMISS : CALM);
}

async function findTrouble() {
  try {
    const answer = await fetch(`${BASE}readyz`, { cache: "no-store", signal: AbortSignal.timeout(10_000) });
    if (!(answer.headers.get("Content-Type") ?? "").startsWith("application/json")) return gatewayTrouble(answer.status);
    const { checks = {} } = await answer.json();
    return Object.entries(checks).map(([name, text]) => readiness(name, text)).filter(Boolean).join(" ");
  } catch {
    return "The proxy does not answer. It may be stopped or restarting; this page asks again by itself.";
  }
}

// A server in front of the proxy may keep /readyz to itself; its own 502 to 504 mean that the proxy is gone.
const gatewayTrouble = (status) =>
  status >= 502 && status <= 504 ? "The server in front of the proxy does not reach it. The page asks again by itself." : "";

function show(text) {
  const healed = trouble && !text;
  trouble = text;
  const banner = document.getElementById("banner");
  const shown = banner.firstElementChild;
  if (shown.textContent !== text) {
    shown.textContent = text;
    banner.hidden = !text; // what was hidden stays so until there is something else to say
  }
  if (healed) for (const listener of listeners) listener();
}
