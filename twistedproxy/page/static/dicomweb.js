// Requests to the proxy: searches, metadata, and the addresses of pictures.

import { first } from "./dataset.js";
import { BASE, suspect } from "./health.js";
import { Failure } from "./words.js";

/** Fetches with the browser's own credentials. Throws Failure, or AbortError once `signal` is aborted. */
export async function request(url, { accept, signal, cache } = {}) {
  let answer;
  try {
    answer = await fetch(url, { headers: { Accept: accept }, credentials: "same-origin", signal, cache });
  } catch (error) {
    if (signal?.aborted) throw error;
    suspect(0);
    throw new Failure(0);
  }
  if (answer.ok) return answer;
  suspect(answer.status);
  throw new Failure(answer.status, await detail(answer));
}

async function detail(answer) {
  if (!(answer.headers.get("Content-Type") ?? "").includes("json")) return "";
  try {
    return (await answer.json()).detail ?? "";
  } catch {
    return "";
  }
}

/** JSON; an empty list where the answer is 204, as searches without a match may be. */
export async function json(url, { accept = "application/dicom+json", ...options } = {}) {
  const answer = await request(url, { accept, ...options });
  return answer.status === 204 ? [] : answer.json();
}

/** A store behind the proxy. */
export class Mount {
  constructor({ prefix, kind }, index) {
    Object.assign(this, { prefix, kind, index });
    this.url = BASE + prefix.replace(/^\//, "");
  }

  search(path, parameters, options) {
    return json(`${this.url}/${path}?${new URLSearchParams(parameters)}`, options);
  }

  study(uid) {
    return `${this.url}/studies/${uid}`;
  }

  series(study, uid) {
    return `${this.study(study)}/series/${uid}`;
  }
}

/** Of a study or series, the address of a small picture where there is no thumbnail: one of its own instances. */
export async function pictureOf(resource, signal) {
  const fields = ["00080018", "00280010", "00480006"].map((tag) => ["includefield", tag]);
  const below = resource.includes("/series/") ? resource : await firstSeries(resource, signal);
  if (!below) return undefined;
  const found = await json(`${below}/instances?${new URLSearchParams([["limit", "200"], ...fields])}`, { signal });
  const [smallest] = found.filter((one) => first(one, "00480006")).sort((a, b) => first(a, "00480006") - first(b, "00480006"));
  const chosen = smallest ?? found[found.length >> 1];
  return chosen && `${below}/instances/${first(chosen, "00080018")}/rendered?viewport=256,256`;
}

async function firstSeries(study, signal) {
  const [found] = await json(`${study}/series?limit=1`, { signal });
  return found && `${study}/series/${first(found, "0020000E")}`;
}
