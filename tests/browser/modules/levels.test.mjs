// Where tiles lie, from metadata.

import assert from "node:assert/strict";
import { test } from "node:test";
import { chooseLevel, isSlide, pyramid, scaleBar } from "../static/levels.js";

const attribute = (...values) => ({ Value: values });

function instance(uid, width, height, tile, more = {}) {
  return {
    "00080016": attribute("1.2.840.10008.5.1.4.1.1.77.1.6"),
    "00080008": attribute("DERIVED", "PRIMARY", "VOLUME", "NONE"),
    "00080018": attribute(uid),
    "00280010": attribute(tile),
    "00280011": attribute(tile),
    "00280008": attribute(Math.ceil(width / tile) * Math.ceil(height / tile)),
    "00480006": attribute(width),
    "00480007": attribute(height),
    "00209311": attribute("TILED_FULL"),
    "52009229": attribute({ "00289110": attribute({ "00280030": attribute("0.0005", "0.00025") }) }),
    ...more,
  };
}

const paths = (...ids) => attribute(...ids.map((id) => ({ "00480106": attribute(id), "00480107": attribute(`path ${id}`) })));
const group = (column, row, path, height = 0) => ({
  "0048021A": attribute({ "0048021E": attribute(column), "0048021F": attribute(row), "0040074A": attribute(height) }),
  ...(path === undefined ? {} : { "00480207": attribute({ "00480106": attribute(path) }) }),
});

test("levels are sorted by size, with the last column and row standing over", () => {
  const { levels, problem } = pyramid([instance("b", 250, 130, 64), instance("a", 1000, 520, 64)]);
  assert.equal(problem, "");
  assert.deepEqual(levels.map(({ width, columns, rows }) => [width, columns, rows]), [[1000, 16, 9], [250, 4, 3]]);
  assert.deepEqual(levels[0].spacing, { x: 0.00025, y: 0.0005 });
  assert.deepEqual(levels[1].locate(3, 2), { instance: "b", frame: 12, stored: false });
});

test("frames count along the rows, then the focal planes, then the optical paths", () => {
  const more = { "00280008": attribute(4 * 3 * 2), "00480303": attribute(3), "00480105": paths("1", "2") };
  const { levels, planes, paths: named } = pyramid([instance("a", 128, 128, 64, more)]);
  assert.equal(planes, 3);
  assert.deepEqual(named, [{ id: "1", text: "path 1" }, { id: "2", text: "path 2" }]);
  assert.equal(levels[0].locate(1, 0, "1", 0).frame, 2);
  assert.equal(levels[0].locate(0, 1, "1", 1).frame, 7);
  assert.equal(levels[0].locate(1, 1, "2", 2).frame, 24);
  assert.equal(levels[0].locate(0, 0, "1", 3), undefined);
});

test("parts of a concatenation hold the frames behind their offset", () => {
  const parts = [
    instance("a", 128, 192, 64, { "00280008": attribute(4), "00209228": attribute(0) }),
    instance("b", 128, 192, 64, { "00280008": attribute(2), "00209228": attribute(4), "00200013": attribute(2) }),
  ];
  const [level] = pyramid(parts).levels;
  assert.deepEqual([level.locate(1, 1), level.locate(0, 2)].map(({ instance: uid, frame }) => [uid, frame]), [["a", 4], ["b", 1]]);
});

test("an instance for each optical path is one level", () => {
  const { levels, paths: named } = pyramid([instance("a", 128, 64, 64, { "00480105": paths("red") }), instance("b", 128, 64, 64, { "00480105": paths("green") })]);
  assert.equal(levels.length, 1);
  assert.deepEqual(named.map(({ id }) => id), ["red", "green"]);
  assert.equal(levels[0].locate(1, 0, "green").instance, "b");
});

test("sparse frames lie where their functional groups say, by path and height", () => {
  const sparse = {
    "00209311": attribute("TILED_SPARSE"),
    "00280008": attribute(3),
    "00480105": paths("1", "2"),
    "52009230": attribute(group(65, 1, "1", 2), group(1, 65, "1", 0), group(65, 1, "2", 0)),
  };
  const { levels, planes } = pyramid([instance("a", 128, 128, 64, sparse)]);
  assert.equal(planes, 2);
  assert.equal(levels[0].locate(1, 0, "1", 1).frame, 1);
  assert.equal(levels[0].locate(0, 1, "1", 0).frame, 2);
  assert.equal(levels[0].locate(1, 0, "2", 0).frame, 3);
  assert.equal(levels[0].locate(0, 0, "1", 0), undefined);
});

test("what cannot be placed is named, and not guessed", () => {
  const without = instance("a", 128, 128, 64, { "00209311": attribute("TILED_SPARSE") });
  assert.match(pyramid([without]).problem, /cannot be shown/);
  assert.deepEqual(pyramid([without]).levels, []);
  const askew = instance("a", 128, 64, 64, { "00209311": undefined, "52009230": attribute(group(1, 1), group(70, 1)) });
  assert.match(pyramid([askew]).problem, /no regular grid/);
});

test("labels, overviews and thumbnails of another shape are no levels", () => {
  const flavor = (name) => ({ "00080008": attribute("ORIGINAL", "PRIMARY", name, "NONE") });
  const series = [instance("a", 1000, 500, 100), instance("l", 100, 100, 100, flavor("LABEL")), instance("t", 100, 90, 100, flavor("THUMBNAIL"))];
  const { levels, others } = pyramid(series);
  assert.deepEqual(levels.map(({ width }) => width), [1000]);
  assert.deepEqual(others.map((one) => one["00080018"].Value[0]), ["l"]);
});

test("a series of other pictures is no slide", () => {
  assert.equal(isSlide([{ "00080016": attribute("1.2.840.10008.5.1.4.1.1.2") }]), false);
  assert.equal(isSlide([instance("a", 100, 100, 100)]), true);
});

test("JPEG that says what its components are is shown as it is stored", () => {
  const stored = (syntax, colors) => pyramid([instance("a", 64, 64, 64, { "00083002": attribute(syntax), "00280004": attribute(colors) })]).levels[0].locate(0, 0).stored;
  assert.equal(stored("1.2.840.10008.1.2.4.50", "YBR_FULL_422"), true);
  assert.equal(stored("1.2.840.10008.1.2.4.50", "RGB"), false);
  assert.equal(stored("1.2.840.10008.1.2.4.91", "YBR_ICT"), false);
});

test("the level is the smallest that need not be enlarged, within the limit of pixels", () => {
  const levels = [{ width: 1000 }, { width: 500 }, { width: 250 }];
  assert.deepEqual([2, 1, 0.6, 0.3, 0.01].map((scale) => chooseLevel(levels, scale)), [0, 0, 1, 2, 2]);
  assert.equal(chooseLevel(levels, 0.7, 1e6, 1e6), 1);
});

test("a scale bar has a round length that fits", () => {
  assert.deepEqual(scaleBar(0.0005, 150), { pixels: 100, text: "50 µm" });
  assert.deepEqual(scaleBar(0.01, 160), { pixels: 100, text: "1 mm" });
  assert.equal(scaleBar(0.000001, 160).text, "100 nm");
});
