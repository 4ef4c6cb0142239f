// A series in the viewer that fits it, with what the proxy does for it beside the picture.

import { cachedOf, Coverage, jobItems, legend, paintOverlay, shares } from "./coverage.js";
import { TrafficChart } from "./charts.js";
import { first, INSTANCE, text } from "./dataset.js";
import { json } from "./dicomweb.js";
import { choice, h, onceAFrame, say } from "./dom.js";
import { isSlide, pyramid } from "./levels.js";
import { Slide } from "./slide.js";
import { slicesOf, Stack } from "./stack.js";
import { Traffic } from "./traffic.js";
import { explain } from "./words.js";

const OVERLAY = "twistedproxy-overlay"; // in localStorage
const CHART_MILLISECONDS = 1000;
const MOST_MINE = 5000; // frames of which it is remembered that they came from the store

/** Draws into `main`; returns what ends the viewer. `place`: the query of the route. Throws Failure. */
export async function openSeries(main, mount, study, uid, place, signal) {
  const series = mount.series(study, uid);
  const instances = await json(`${series}/metadata`, { signal });
  if (signal.aborted) return () => {};
  const view = new View(main, { mount, study, series, instances, place });
  return () => view.close();
}

class View {
  constructor(main, { mount, study, series, instances, place }) {
    Object.assign(this, { series, instances, traffic: new Traffic(), mine: new Map() });
    const about = instances[0] ?? {};
    const title = text(about, "0008103E") || `${text(about, "00080060") || "Series"} without a description`;
    document.title = `${title} – twistedproxy`;
    this.heading = h("h1", { tabindex: -1 }, title);
    this.problem = h("p.problem", { hidden: true, role: "alert" });
    this.tools = h("div.tools", {});
    this.state = h("p.state", {});
    this.side = h(
      "aside",
      { "aria-label": "About this series, and what the proxy does for it" },
      this.heading,
      h("p", {}, [text(about, "00100010"), text(about, "00100020"), text(about, "00081030")].filter(Boolean).join(" · ")),
      h("p", {}, h("a", { href: `#/m/${mount.index}/studies/${study}` }, "All series of this study")),
      this.problem,
      this.tools,
    );
    main.classList.add("viewer");
    this.draw = onceAFrame(() => this.#draw());
    try {
      this.#open(place);
    } catch (error) {
      if (!(error instanceof NothingToShow)) throw error;
      main.classList.remove("viewer");
      main.replaceChildren(this.heading, h("p.problem", {}, error.message), this.side.querySelector("a"));
      return;
    }
    this.#addProxy();
    main.replaceChildren(this.picture.element, this.side);
    this.coverage = new Coverage(series, () => this.draw());
    this.timer = setInterval(() => document.hidden || this.chart.show(this.traffic), CHART_MILLISECONDS);
  }

  close() {
    clearInterval(this.timer);
    this.draw.cancel();
    this.coverage?.close();
    this.picture?.close();
    document.querySelector("main").classList.remove("viewer");
  }

  #open(place) {
    const callbacks = {
      series: this.series,
      place,
      answered: (tile, answer) => this.#answered(tile, answer),
      failed: (_tile, error) => this.#fail(explain(error)),
      moved: (query) => this.#remember(query),
      drawn: () => this.draw(),
    };
    if (isSlide(this.instances)) {
      const levels = pyramid(this.instances);
      if (!levels.levels.length) throw new NothingToShow(levels.problem || "This series has no level of a slide.");
      if (levels.problem) this.#fail(levels.problem);
      this.picture = new Slide({ ...callbacks, pyramid: levels });
      this.tools.append(...slideTools(this.picture, levels));
      this.rows = levels.levels.map((level) => ({ text: `${level.width} × ${level.height}`, uids: level.parts.map((part) => part.instance), frames: sum(level.parts.map((part) => part.frames)) }));
      this.others = levels.others;
    } else {
      const slices = slicesOf(this.instances);
      if (!slices.length) throw new NothingToShow("This series has no pictures that can be shown here: it may hold a report, a document or a video.");
      this.picture = new Stack({ ...callbacks, slices, about: this.instances });
      this.tools.append(...this.picture.tools);
      this.rows = [{ text: "All frames", uids: this.instances.map((one) => first(one, INSTANCE)), frames: slices.length }];
      this.others = [];
    }
    this.picture.element.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() === "o" && !event.ctrlKey && !event.metaKey && !event.altKey) this.overlay.click();
    });
  }

  #addProxy() {
    this.overlay = h("input", { type: "checkbox", id: "overlay", onchange: () => this.#toggled() });
    this.overlay.checked = remembered() !== "off";
    this.shares = h("ul.shares");
    this.jobs = h("ul.jobs");
    this.chart = new TrafficChart();
    this.side.append(
      h("h2", {}, "What the proxy has"),
      h("label.switch", {}, this.overlay, "Show it on the picture (key O)"),
      legend(),
      this.state,
      this.shares,
      h("h2", {}, "What it loads"),
      this.jobs,
      h("h2", {}, "What you got"),
      this.chart.element,
    );
    if (this.others.length) {
      const pictures = this.others.map((one) => {
        const flavor = (one["00080008"]?.Value?.[2] ?? "picture").toLowerCase();
        return h("img", { src: `${this.series}/instances/${first(one, INSTANCE)}/rendered?viewport=256,256`, alt: `${flavor} of the slide`, loading: "lazy", width: 140 });
      });
      this.side.append(h("h2", {}, "Label and overview"), h("div.others", {}, pictures));
    }
  }

  #answered(tile, { outcome, milliseconds, bytes }) {
    this.traffic.add(outcome, milliseconds, bytes);
    if (outcome === "store" || outcome === "joined") this.mine.set(`${tile.instance}/${tile.frame}`, outcome);
    if (this.mine.size > MOST_MINE) this.mine.delete(this.mine.keys().next().value);
    this.problem.hidden = true;
  }

  #fail(sentence) {
    this.problem.textContent = sentence;
    this.problem.hidden = false;
  }

  #toggled() {
    remember(this.overlay.checked ? "on" : "off");
    say(this.overlay.checked ? "What is cached is shown on the picture." : "What is cached is no longer shown.");
    this.draw();
  }

  #remember(query) {
    const [route] = location.hash.split("?");
    const rounded = Object.entries(query).map(([key, value]) => [key, Number(value.toPrecision(8))]);
    history.replaceState(null, "", `${route}?${new URLSearchParams(rounded)}`);
  }

  #draw() {
    if (!this.coverage) return;
    const states = this.picture.paintCoverage
      ? this.picture.paintCoverage(this.coverage, this.mine, this.overlay.checked)
      : paintOverlay(this.picture, this.coverage, this.mine, this.overlay.checked);
    const shown = this.coverage.said || `${this.picture.summary(states)}.`;
    if (this.state.textContent !== shown) this.state.textContent = shown;
    const rows = this.rows.map((row) => ({ ...row, cached: cachedOf(this.coverage, row.uids) }));
    update(this.shares, rows, () => shares(rows));
    update(this.jobs, this.coverage.known.jobs, () => jobItems(this.coverage.known.jobs));
  }
}

class NothingToShow extends Error {}

const sum = (numbers) => numbers.reduce((all, one) => all + one, 0);

// A browser may deny storage.
function remembered() {
  try {
    return localStorage.getItem(OVERLAY);
  } catch {
    return null;
  }
}

function remember(shown) {
  try {
    localStorage.setItem(OVERLAY, shown);
  } catch {
    // until the page is left, then
  }
}

// A list is filled anew only when its values changed: screen readers and pointers are in it.
function update(list, values, items) {
  const shown = JSON.stringify(values);
  if (list.shown === shown) return;
  list.shown = shown;
  list.replaceChildren(...items());
}

function slideTools(slide, { paths, planes }) {
  const button = (label, sign, action) => h("button", { type: "button", "aria-label": label, title: label, onclick: action }, sign);
  const whole = h("button", { type: "button", onclick: () => slide.fit() }, "Whole slide");
  const profile = h("input", { type: "checkbox", onchange: () => slide.set({ profile: profile.checked }) });
  const tools = [
    h("div.buttons", {}, button("Zoom in", "+", () => slide.zoom(1.5)), button("Zoom out", "−", () => slide.zoom(1 / 1.5)), whole),
    h("label.switch", {}, profile, "Convert colors to sRGB by the slide's profile"),
  ];
  if (paths.length > 1) tools.push(choice("Optical path", paths.map(({ id, text: named }) => [id, named]), (path) => slide.set({ path })));
  if (planes > 1) tools.push(choice("Focal plane", Array.from({ length: planes }, (_, n) => [n, `${n + 1} of ${planes}`]), (plane) => slide.set({ plane: Number(plane) })));
  return tools;
}
