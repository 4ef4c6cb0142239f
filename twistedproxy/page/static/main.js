// The page: one document, whose view follows the part of the address behind #.

import { showConnect } from "./connect.js";
import { json, Mount } from "./dicomweb.js";
import { h, say } from "./dom.js";
import { BASE, onHealed, watchHealth } from "./health.js";
import { showStatus } from "./status.js";
import { showStudies, showStudy } from "./studies.js";
import { openSeries } from "./viewer.js";
import { explain, Failure } from "./words.js";

const UID = "([0-9.]+)";
const main = document.querySelector("main");
let about = null;
let leave = new AbortController();
let close = () => {};
let failed = false;

const ROUTES = [
  [/^\/$/, (query, signal) => showStudies(main, about.mounts, query, signal)],
  [new RegExp(`^/m/(\\d+)/studies/${UID}$`), (_query, signal, mount, study) => showStudy(main, mountAt(mount), study, signal)],
  [
    new RegExp(`^/m/(\\d+)/studies/${UID}/series/${UID}$`),
    (query, signal, mount, study, series) => openSeries(main, mountAt(mount), study, series, numbers(query), signal),
  ],
  [/^\/status$/, (_query, signal) => showStatus(main, about, signal)],
  [/^\/connect$/, () => showConnect(main, about.mounts)],
];

const numbers = (query) => Object.fromEntries([...query].map(([key, value]) => [key, Number(value)]).filter(([, value]) => Number.isFinite(value)));

function mountAt(index) {
  const mount = about.mounts[Number(index)];
  if (!mount) throw new Failure(404, "this proxy has no such store");
  return mount;
}

async function load() {
  if (about) return;
  const found = await json(`${BASE}page/about.json`, { accept: "application/json" });
  about = { ...found, mounts: found.mounts.map((mount, index) => new Mount(mount, index)) };
  document.getElementById("version").textContent = `twistedproxy ${about.version}`;
  document.querySelector('nav a[href="#/status"]').hidden = !about.status;
  for (const name of ["#/", "#/connect"]) document.querySelector(`nav a[href="${name}"]`).hidden = !about.mounts.length;
}

async function show({ focus }) {
  leave.abort();
  close();
  close = () => {};
  failed = false;
  const { signal } = (leave = new AbortController());
  main.setAttribute("aria-busy", "true"); // what is there is still that of the view before
  try {
    await load();
    const [path, query = ""] = (location.hash.slice(1) || (about.mounts.length ? "/" : "/status")).split("?");
    for (const link of document.querySelectorAll("nav a")) {
      const here = link.hash === `#${path}` || (link.hash === "#/" && path.startsWith("/m/"));
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    await open(path, new URLSearchParams(query), signal);
  } catch (error) {
    if (signal.aborted) return;
    failed = true;
    main.replaceChildren(h("h1", { tabindex: -1 }, "This cannot be shown"), h("p.problem", { role: "alert" }, explain(error)), h("p", {}, h("button", { type: "button", onclick: () => show({ focus: true }) }, "Try again")));
  }
  if (signal.aborted) return;
  main.removeAttribute("aria-busy");
  scrollTo(0, 0);
  if (focus) (main.querySelector(".stage[tabindex], .slices:not([hidden])") ?? main.querySelector("h1"))?.focus({ preventScroll: true });
  say(document.title);
}

async function open(path, query, signal) {
  for (const [pattern, view] of ROUTES) {
    const match = pattern.exec(path);
    if (!match) continue;
    const end = await view(query, signal, ...match.slice(1));
    if (signal.aborted) end?.();
    else close = end ?? close;
    return;
  }
  throw new Failure(404, "this page has no such view");
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // what is behind # names a view
  main.focus();
});
addEventListener("hashchange", () => show({ focus: true }));
onHealed(() => failed && show({ focus: false }));
show({ focus: false });
watchHealth();
