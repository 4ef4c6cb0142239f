// The levels of a slide (PS3.3 A.32.8), from the metadata of its series: where each tile lies. Pure.
//
// - A level is all instances with one size of the total pixel matrix: parts of a concatenation, or one part for each
//   optical path.
// - TILED_FULL: frames count along the rows, then the focal planes, then the optical paths (PS3.3 C.7.6.17.3).
// - Else their positions are in the functional groups, and must lie on the grid of tiles.

import { browserShows, first, frameSize, INSTANCE, item, number, PER_FRAME, SHARED, SLIDE_CLASS, spacing, text, values } from "./dataset.js";

const WIDTH = "00480006";
const HEIGHT = "00480007";

export const isSlide = (instances) =>
  instances.some((one) => first(one, "00080016") === SLIDE_CLASS || number(one, WIDTH) > 0);

/**
 * {levels, paths, planes, others, problem}: levels from the largest to the smallest; paths {id, text}; planes: how many
 * focal planes; others: the label and overviews; problem: why levels are missing, or "".
 */
export function pyramid(instances) {
  const found = new Map();
  const others = [];
  const problems = [];
  for (const dataset of [...instances].sort((a, b) => (number(a, "00200013") ?? 0) - (number(b, "00200013") ?? 0))) {
    const flavor = values(dataset, "00080008")[2] ?? "VOLUME";
    if (!frameSize(dataset)) continue;
    if (!(number(dataset, WIDTH) > 0) || !["VOLUME", "THUMBNAIL"].includes(flavor)) {
      others.push(dataset);
      continue;
    }
    const part = new Part(dataset);
    if (part.problem) {
      problems.push(part.problem);
      continue;
    }
    const key = `${part.width} x ${part.height} of ${part.tileWidth} x ${part.tileHeight}`;
    if (!found.has(key)) found.set(key, new Level(part));
    found.get(key).parts.push(part);
  }
  let levels = [...found.values()].sort((a, b) => b.width - a.width);
  levels = levels.filter((level) => sameShape(level, levels[0]));
  const paths = new Map(levels.flatMap((level) => level.parts.flatMap((part) => part.paths.map((path) => [path.id, path]))));
  const planes = Math.max(1, ...levels.flatMap((level) => level.parts.map((part) => part.planes)));
  return { levels, paths: [...paths.values()], planes, others, problem: [...new Set(problems)].join(" ") };
}

// Levels of one slide have one shape, apart from what rounding does to small ones; a thumbnail may show more than that.
const sameShape = (level, base) =>
  Math.abs((level.width / level.height) * (base.height / base.width) - 1) < 0.02 + 2 / Math.min(level.width, level.height);

/** Instances of one size. Sizes in pixels; spacing in mm. */
export class Level {
  constructor({ width, height, tileWidth, tileHeight, spacing }) {
    Object.assign(this, { width, height, tileWidth, tileHeight, spacing, parts: [] });
    this.columns = Math.ceil(width / tileWidth);
    this.rows = Math.ceil(height / tileHeight);
  }

  /** {instance, frame, stored} of a tile, or undefined: nothing is there. `stored`: the browser shows it as it is stored. */
  locate(column, row, path, plane = 0) {
    for (const part of this.parts) {
      const frame = part.frame(column, row, path, plane);
      if (frame) return { instance: part.instance, frame, stored: part.stored };
    }
    return undefined;
  }
}

class Part {
  constructor(dataset) {
    const { rows, columns } = frameSize(dataset);
    this.instance = first(dataset, INSTANCE);
    this.width = number(dataset, WIDTH);
    this.height = number(dataset, HEIGHT);
    this.tileWidth = columns;
    this.tileHeight = rows;
    this.frames = number(dataset, "00280008") ?? 1;
    this.planes = number(dataset, "00480303") ?? 1;
    this.spacing = spacing(dataset) ?? fromVolume(dataset, this);
    this.stored = browserShows(dataset);
    this.paths = opticalPaths(dataset);
    this.across = Math.ceil(this.width / columns);
    this.inPlane = this.across * Math.ceil(this.height / rows);
    this.before = number(dataset, "00209228") ?? 0; // frames in earlier parts of a concatenation
    const whole = this.frames === 1 && this.inPlane === 1;
    if (text(dataset, "00209311") === "TILED_FULL" || whole) this.positions = null;
    else this.#readPositions(dataset);
  }

  frame(column, row, path, plane) {
    const pathIndex = path === undefined ? 0 : this.paths.findIndex(({ id }) => id === path);
    if (pathIndex < 0 || plane >= this.planes) return undefined;
    if (this.positions) return this.positions.get(key(column, row, this.paths[pathIndex].id, plane));
    const frame = (pathIndex * this.planes + plane) * this.inPlane + row * this.across + column + 1 - this.before;
    return frame >= 1 && frame <= this.frames ? frame : undefined;
  }

  #readPositions(dataset) {
    const groups = values(dataset, PER_FRAME);
    this.positions = new Map();
    if (groups.length < this.frames) {
      this.problem = "A level is tiled sparsely, and its metadata do not tell where its frames lie: it cannot be shown here.";
      return;
    }
    const heights = [...new Set(groups.map(height))].sort((a, b) => a - b);
    this.planes = heights.length;
    groups.forEach((group, index) => {
      const position = item(group, "0048021A");
      const [x, y] = [number(position, "0048021E") - 1, number(position, "0048021F") - 1];
      if (!(x % this.tileWidth === 0 && y % this.tileHeight === 0)) {
        this.problem = "The frames of a level lie on no regular grid: it cannot be shown here, but other viewers may show it.";
      }
      const path = text(item(group, "00480207"), "00480106") || text(item(dataset, SHARED, "00480207"), "00480106");
      const known = this.paths.some(({ id }) => id === path) ? path : this.paths[0].id;
      this.positions.set(key(x / this.tileWidth, y / this.tileHeight, known, heights.indexOf(height(group))), index + 1);
    });
  }
}

const key = (column, row, path, plane) => `${column},${row},${plane},${path}`;
const height = (group) => number(item(group, "0048021A"), "0040074A") ?? 0; // in µm above the slide

function opticalPaths(dataset) {
  const items = values(dataset, "00480105");
  if (!items.length) return [{ id: "", text: "" }];
  return items.map((path) => {
    const id = text(path, "00480106");
    return { id, text: text(path, "00480107") || text(item(path, "00220016"), "00080104") || id };
  });
}

function fromVolume(dataset, { width, height: rows }) {
  const [x, y] = [number(dataset, "00480001") / width, number(dataset, "00480002") / rows];
  return x > 0 && y > 0 ? { x, y } : undefined;
}

/**
 * The level to draw where a pixel of the largest one takes `scale` pixels of the screen: the smallest whose pixels need
 * not be enlarged by more than `most`, and of which a screen of `area` pixels takes no more than `limit` pixels.
 */
export function chooseLevel(levels, scale, area = 0, limit = Infinity, most = 1.3) {
  const enlarged = (level) => (scale * levels[0].width) / level.width;
  let chosen = levels.length - 1;
  while (chosen > 0 && enlarged(levels[chosen]) > most && area / enlarged(levels[chosen - 1]) ** 2 <= limit) chosen--;
  return chosen;
}

/** A round length for a scale bar of at most `pixels` pixels of `size` mm each: {pixels, text}. */
export function scaleBar(size, pixels) {
  const most = size * pixels;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((step) => step * power).find((one) => one <= most * 1.0001);
  const micrometers = length * 1000;
  const named = micrometers >= 1000 ? `${Number(length.toPrecision(1))} mm` : micrometers >= 1 ? `${Number(micrometers.toPrecision(1))} µm` : `${Number((micrometers * 1000).toPrecision(1))} nm`;
  return { pixels: length / size, text: named };
}
