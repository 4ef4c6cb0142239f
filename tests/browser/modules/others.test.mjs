// Runs of frames, lines of streams, figures of the reader's traffic, and metrics.

import assert from "node:assert/strict";
import { test } from "node:test";
import { browserShows, date, text } from "../static/dataset.js";
import { contains, lineSplitter, merged, stateOf, total } from "../static/runs.js";
import { outcomeOf, Traffic } from "../static/traffic.js";
import { bytes, duration, explain, Failure, readiness } from "../static/words.js";

test("runs hold their ends, and nothing between them", () => {
  const runs = [[1, 3], [7, 7], [9, 12]];
  assert.deepEqual([0, 1, 3, 4, 7, 8, 12, 13].map((frame) => contains(runs, frame)), [false, true, true, false, true, false, true, false]);
  assert.equal(total(runs), 8);
  assert.equal(contains(undefined, 1), false);
});

test("a frame's state is the first that holds", () => {
  const instances = { a: { frames: 9, cached: [[1, 2]], loading: [[2, 3]], claimed: [[4, 4]] } };
  assert.deepEqual([1, 2, 3, 4, 5].map((frame) => stateOf(instances, "a", frame)), ["cached", "cached", "loading", "claimed", "absent"]);
  assert.equal(stateOf(instances, "b", 1), "absent");
});

test("a line replaces whole instances, removes those that are null, and leaves others", () => {
  const known = { instances: { a: 1, b: 2, c: 3 }, jobs: [1] };
  assert.deepEqual(merged(known, { instances: { a: 5, b: null }, jobs: [] }), { instances: { a: 5, c: 3 }, jobs: [] });
  assert.deepEqual(known.instances, { a: 1, b: 2, c: 3 });
});

test("lines are whole, however their text is cut", () => {
  const sent = '{"a":1}\n\n{"b":2}\n{"c"';
  for (let size = 1; size < sent.length; size++) {
    const lines = lineSplitter();
    const found = [];
    for (let at = 0; at < sent.length; at += size) found.push(...lines(sent.slice(at, at + size)));
    assert.deepEqual(found, ['{"a":1}', '{"b":2}']);
  }
});

test("Cache-Status says what an answer was", () => {
  const outcomes = ["twistedproxy; hit", "twistedproxy; hit; detail=rendered", "twistedproxy; fwd=uri-miss; stored; collapsed", "twistedproxy; fwd=uri-miss; stored", null];
  assert.deepEqual(outcomes.map((status) => outcomeOf(status, false)), ["hit", "hit", "joined", "store", "store"]);
  assert.equal(outcomeOf("twistedproxy; fwd=uri-miss", true), "browser");
});

test("traffic is of the last minute, and of all time", () => {
  const traffic = new Traffic();
  traffic.add("store", 80, 1000, 1_000);
  for (const wait of [1, 2, 3, 4]) traffic.add("hit", wait, 100, 50_500);
  assert.deepEqual(traffic.summary(50_900).seconds.at(-1), { hit: 4, joined: 0, store: 0, browser: 0, bytes: 400 });
  const { answers, hits, p50, p95, bytes: sent } = traffic.summary(50_900);
  assert.deepEqual([answers, hits, p50, p95, sent], [5, 4, 3, 80, 1400]);
  assert.equal(traffic.summary(70_000).answers, 4);
  assert.equal(traffic.totals.bytes, 1400);
});

test("values of DICOM JSON as text", () => {
  const dataset = { "00100010": { Value: [{ Alphabetic: "DOE^JANE^^DR" }] }, "00080020": { Value: ["20260131"] }, "00080061": { Value: ["SM", "CT"] } };
  assert.deepEqual([text(dataset, "00100010"), date(dataset, "00080020"), text(dataset, "00080061"), text(dataset, "00080050")], ["DOE, JANE, DR", "2026-01-31", "SM, CT", ""]);
  assert.equal(browserShows({}), false);
});

test("figures and failures in words", () => {
  assert.deepEqual([999, 1000, 12_345, 16e9].map(bytes), ["999 B", "1.0 kB", "12 kB", "16 GB"]);
  assert.deepEqual([0.0005, 0.0254, 2.5].map(duration), ["500 µs", "25 ms", "2.5 s"]);
  assert.match(explain(new Failure(401)), /login/);
  assert.match(explain(new Failure(502, "connection refused")), /\(connection refused\)$/);
  assert.match(explain(new Failure(418)), /status 418/);
  assert.equal(readiness("origin /a", "ok"), "");
  assert.match(readiness("origin /a", "connection refused"), /store of \/a cannot be reached/);
  assert.match(readiness("cache", "no answer"), /The cache cannot be used/);
});
