"use strict";

// A series of slide levels (DICOM PS3.3 section A.32.8) as a tile source of OpenSeadragon.
//
// - Levels are the instances of one series that hold the slide itself, each a grid of frames; a tile is one frame,
//   asked for as `/frames/N/rendered`, so it does not matter how the store keeps them.
// - The grid is the one of TILED_FULL: row by row, the first focal plane of the first optical path.
// - `onTile` is told how long each tile took and what its Cache-Status says, which a page may read only where the
//   server exposes it.

const ROWS = "00280010";
const COLUMNS = "00280011";
const TOTAL_COLUMNS = "00480006";
const TOTAL_ROWS = "00480007";
const IMAGE_TYPE = "00080008";
const FRAMES = "00280008";
const STUDY = "0020000D";
const SERIES = "0020000E";
const INSTANCE = "00080018";

const first = (dataset, tag) => dataset[tag]?.Value?.[0];

async function json(url, headers) {
  const answer = await fetch(url, { headers: { Accept: "application/dicom+json", ...headers } });
  if (!answer.ok) {
    throw new Error(`${answer.status} for ${url}`);
  }
  return answer.status === 204 ? [] : answer.json();
}

class DicomwebTiles extends OpenSeadragon.TileSource {
  /** The series given, or the first series of slides that a search finds. */
  static async ofSeries(root, { study, series, headers } = {}) {
    if (!study || !series) {
      const [found] = await json(`${root}/series?Modality=SM&limit=1`, headers);
      if (!found) {
        throw new Error(`no slides at ${root}`);
      }
      [study, series] = [first(found, STUDY), first(found, SERIES)];
    }
    const path = `${root}/studies/${study}/series/${series}/instances`;
    const uids = (await json(path, headers)).map((instance) => first(instance, INSTANCE));
    const described = await Promise.all(uids.map((uid) => json(`${path}/${uid}/metadata`, headers)));
    const levels = described
      .map(([dataset]) => ({
        url: `${path}/${first(dataset, INSTANCE)}`,
        volume: (dataset[IMAGE_TYPE]?.Value ?? []).includes("VOLUME"),
        width: first(dataset, TOTAL_COLUMNS),
        height: first(dataset, TOTAL_ROWS),
        tileWidth: first(dataset, COLUMNS),
        tileHeight: first(dataset, ROWS),
        frames: Number(first(dataset, FRAMES) ?? 1),
      }))
      .filter((level) => level.volume && level.width)
      .sort((a, b) => a.width - b.width);
    if (!levels.length) {
      throw new Error(`no levels of a slide in ${path}`);
    }
    return new DicomwebTiles(levels, headers);
  }

  /** levels: {url, width, height, tileWidth, tileHeight}, the smallest first; sizes in pixels. */
  constructor(levels, headers = {}) {
    const base = levels[levels.length - 1];
    super({
      width: base.width,
      height: base.height,
      tileWidth: base.tileWidth,
      tileHeight: base.tileHeight,
      minLevel: 0,
      maxLevel: levels.length - 1,
      ready: true,
    });
    this.levels = levels;
    this.headers = headers;
    this.onTile = () => {};
  }

  // Levels need not be halves of one another, so whatever follows from the level is told here.
  getLevelScale(level) {
    return this.levels[level].width / this.levels[this.levels.length - 1].width;
  }

  getTileWidth(level) {
    return this.levels[level].tileWidth;
  }

  getTileHeight(level) {
    return this.levels[level].tileHeight;
  }

  getNumTiles(level) {
    const { width, height, tileWidth, tileHeight } = this.levels[level];
    return new OpenSeadragon.Point(Math.ceil(width / tileWidth), Math.ceil(height / tileHeight));
  }

  getTileUrl(level, x, y) {
    return `${this.levels[level].url}/frames/${y * this.getNumTiles(level).x + x + 1}/rendered`;
  }

  downloadTileStart(context) {
    const stop = new AbortController();
    context.userData.stop = stop;
    this.#fetch(context.src, stop.signal).then(
      (blob) => context.finish(blob, null, "rasterBlob"),
      (error) => context.fail(error.message, null),
    );
  }

  downloadTileAbort(context) {
    context.userData.stop.abort();
  }

  async #fetch(url, signal) {
    const began = performance.now();
    const answer = await fetch(url, { headers: { Accept: "image/jpeg", ...this.headers }, signal });
    if (!answer.ok) {
      throw new Error(`${answer.status} for ${url}`);
    }
    const blob = await answer.blob();
    const milliseconds = performance.now() - began;
    this.onTile({ url, milliseconds, cacheStatus: answer.headers.get("Cache-Status") });
    return blob;
  }
}
