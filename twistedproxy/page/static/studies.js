// The lists: studies of all mounts with a search, and the series of one study.

import { date, first, number, text } from "./dataset.js";
import { json, pictureOf } from "./dicomweb.js";
import { h, say } from "./dom.js";
import { onHealed } from "./health.js";
import { explain, plural } from "./words.js";

const PAGE = 25;
const FIELDS = ["00081030", "00080061", "00201206", "00201208"].map((tag) => ["includefield", tag]);
const SEARCHED = [
  ["PatientName", "Patient name", "search", true],
  ["PatientID", "Patient ID", "search", false],
  ["AccessionNumber", "Accession number", "search", false],
  ["ModalitiesInStudy", "Modality", "search", false],
  ["from", "Study date from", "date", false],
  ["to", "Study date to", "date", false],
];

/** The studies of all mounts, or what a search finds. `query`: the route's. */
export function showStudies(main, mounts, query, signal) {
  document.title = "Studies – twistedproxy";
  const sections = mounts.map((mount) => new Results(mount, parametersOf(query), signal));
  main.replaceChildren(
    h("h1", { tabindex: -1 }, "Studies"),
    searchForm(query),
    ...sections.map((section) => section.element),
  );
  for (const section of sections) section.more();
}

function searchForm(query) {
  const fields = SEARCHED.map(([name, label, type]) => h("label", {}, label, h("input", { name, type, value: query.get(name) ?? "", autocomplete: "off" })));
  return h(
    "form.search",
    {
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        const filled = [...new FormData(event.target)].filter(([, value]) => value.trim());
        location.hash = filled.length ? `#/?${new URLSearchParams(filled)}` : "#/";
      },
    },
    fields,
    h("button", { type: "submit" }, "Search"),
    h("a", { href: "#/" }, "Show all"),
  );
}

/** Search parameters of QIDO-RS (PS3.18 10.6). */
export function parametersOf(query) {
  const parameters = [];
  for (const [name, , type, fuzzy] of SEARCHED) {
    const value = (query.get(name) ?? "").trim();
    if (!value || type === "date") continue;
    const upper = name === "ModalitiesInStudy" ? value.toUpperCase() : value;
    parameters.push([name, fuzzy && !/[*?]/.test(value) ? `*${value}*` : upper]);
  }
  const [from, to] = ["from", "to"].map((name) => (query.get(name) ?? "").replaceAll("-", ""));
  if (from || to) parameters.push(["StudyDate", from === to ? from : `${from}-${to}`]);
  return parameters;
}

/** What one mount finds, page by page. */
class Results {
  constructor(mount, parameters, signal) {
    Object.assign(this, { mount, parameters, signal, found: 0 });
    this.list = h("ul.cards");
    this.state = h("p.state", { role: "status" }, "Searching …");
    this.button = h("button", { type: "button", hidden: true, onclick: () => this.more() }, "Show more");
    this.element = h("section", { "aria-label": mount.prefix || "/" }, h("h2", {}, mount.prefix || "/", " ", h("small", {}, KINDS[mount.kind] ?? mount.kind)), this.list, this.state, this.button);
  }

  async more() {
    this.button.disabled = true;
    try {
      const parameters = [...this.parameters, ...FIELDS, ["limit", PAGE], ["offset", this.found]];
      const studies = await this.mount.search("studies", parameters, { signal: this.signal });
      this.#add(studies);
    } catch (error) {
      if (this.signal.aborted) return;
      this.state.textContent = explain(error);
      this.button.textContent = "Try again";
      this.button.hidden = false;
      const stop = onHealed(() => (stop(), this.signal.aborted || this.more()));
    }
    this.button.disabled = false;
  }

  #add(studies) {
    const cards = studies.map((study) => studyCard(this.mount, study));
    this.list.append(...cards);
    if (this.found) cards[0]?.querySelector("a").focus();
    this.found += studies.length;
    this.button.textContent = "Show more";
    this.button.hidden = studies.length < PAGE;
    if (this.found) this.state.textContent = this.button.hidden ? plural(this.found, "study", "studies") : `${plural(this.found, "study", "studies")} so far`;
    else this.state.textContent = this.parameters.length ? "No study matches. Names and numbers must match as they are stored; * stands for anything." : "There are no studies in this store.";
    say(this.state.textContent);
  }
}

const KINDS = { http: "a DICOMweb store", file: "a folder of files", sample: "the sample slide" };

function studyCard(mount, study) {
  const uid = first(study, "0020000D");
  const counts = [[number(study, "00201206"), "series", "series"], [number(study, "00201208"), "instance"]];
  const facts = [
    text(study, "00080061").replaceAll(", ", "/"),
    date(study, "00080020"),
    text(study, "00081030"),
    text(study, "00080050") && `accession ${text(study, "00080050")}`,
    ...counts.map(([number, one, many]) => number !== undefined && plural(number, one, many)),
  ];
  const title = [text(study, "00100010") || "No name", text(study, "00100020")].filter(Boolean).join(" · ");
  return card(`#/m/${mount.index}/studies/${uid}`, mount.study(uid), title, facts);
}

/** The series of a study. Throws Failure. */
export async function showStudy(main, mount, uid, signal) {
  document.title = "Study – twistedproxy";
  const fields = ["0008103E", "00201209"].map((tag) => ["includefield", tag]);
  const [series, studies] = await Promise.all([
    json(`${mount.study(uid)}/series?${new URLSearchParams(fields)}`, { signal }),
    mount.search("studies", [["StudyInstanceUID", uid], ...FIELDS], { signal }).catch(() => []),
  ]);
  const study = studies[0] ?? series[0] ?? {};
  const title = text(study, "00100010") || "Study";
  document.title = `${title} – twistedproxy`;
  const facts = [text(study, "00100020"), date(study, "00080020"), text(study, "00081030"), text(study, "00080050") && `accession ${text(study, "00080050")}`];
  series.sort((a, b) => (number(a, "00200011") ?? 0) - (number(b, "00200011") ?? 0));
  main.replaceChildren(
    h("p", {}, h("a", { href: "#/" }, "All studies")),
    h("h1", { tabindex: -1 }, title),
    h("p", {}, facts.filter(Boolean).join(" · ")),
    h("h2", {}, plural(series.length, "series", "series")),
    series.length ? h("ul.cards", {}, series.map((one) => seriesCard(mount, uid, one))) : h("p.state", {}, "The store names no series of this study."),
  );
}

function seriesCard(mount, study, series) {
  const uid = first(series, "0020000E");
  const instances = number(series, "00201209");
  const facts = [text(series, "00080060"), instances !== undefined && plural(instances, "instance"), date(series, "00080021")];
  const title = text(series, "0008103E") || `Series ${text(series, "00200011")}`;
  return card(`#/m/${mount.index}/studies/${study}/series/${uid}`, mount.series(study, uid), title, facts);
}

function card(href, resource, title, facts) {
  const shown = facts.filter(Boolean).join(" · ");
  return h("li", {}, h("a.card", { href }, thumbnail(resource), h("span", {}, h("strong", {}, title), h("span.facts", {}, shown))));
}

// A thumbnail once it comes into view; where the store has none, a small picture of one instance.
function thumbnail(resource) {
  const image = h("img", { alt: "", width: 96, height: 96 });
  seen.observe(image);
  image.load = async () => {
    image.onerror = async () => {
      image.onerror = () => image.removeAttribute("src");
      const other = await pictureOf(resource).catch(() => undefined);
      if (other) image.src = other;
      else image.removeAttribute("src");
    };
    image.src = `${resource}/thumbnail`;
  };
  return image;
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      target.load();
    }
  },
  { rootMargin: "200px" },
);
