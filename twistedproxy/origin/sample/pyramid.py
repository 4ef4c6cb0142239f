"""The frames of all levels: a picture that looks like stained tissue (haematoxylin and eosin), cut into tiles, each with its
number, as baseline JPEG.

- The same version gives the same pixels: every number comes from a generator with a fixed seed.
- What is larger than a few cells (tissue, glands, vessels) is painted once on a map at a quarter of the size, fibres and nuclei
  at full size: 100 megapixels take seconds instead of minutes. A strip is painted without the others: several at once.
- A lower level is the one above it at a quarter of the size, by averaging, before numbers are drawn: each level carries its
  own numbers.
"""

from __future__ import annotations

import functools
import io
import math
import os
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from twistedproxy.origin.sample.slide import DOWNSAMPLING, LEVELS, TILE, SampleLevel

QUALITY = 78
MAX_THREADS = 4  # Pillow gives up the interpreter's lock while it resizes and encodes
_SEED = 20
_STEP = DOWNSAMPLING[1]
_MAP_SCALE = 4  # pixels of the slide in one pixel of the map
_CELL = 17  # pixels between nuclei where they are dense: 8 um
_SPRITES, _SPRITE = 64, 28  # how many different nuclei, and the side of one in pixels
_FIBRES = 1024  # pixels of the texture's side

_GLASS, _EOSIN, _STROMA = (243, 240, 244), (228, 160, 198), (241, 198, 219)
_EPITHELIUM, _MUCIN, _BLOOD = (205, 140, 192), (246, 236, 243), (214, 96, 110)

Size = tuple[int, int]


class Tissue:
    """The picture, *width* x *height* pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._random = Random(_SEED)  # noqa: S311 (a picture)
        self.width, self.height = width, height
        size = width // _MAP_SCALE, height // _MAP_SCALE
        # One large piece with a ragged edge: 255, glass: 0.
        middle = ImageOps.invert(Image.radial_gradient("L")).resize(size)
        self._mask = Image.blend(middle, self._noise(size, 6), 0.4).point(lambda level: (level - 96) * 12)
        self._map, crowd = self._paint(size)
        grain = Image.frombytes("L", (_FIBRES // 8, _FIBRES), self._random.randbytes(_FIBRES * _FIBRES // 8))
        waves = grain.resize((_FIBRES, _FIBRES), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.8))
        self._fibres = ImageOps.colorize(waves, (228, 175, 202), (255, 255, 255))
        self._sprites = [self._nucleus() for _ in range(_SPRITES)]
        self._nuclei = sorted(self._scatter(ImageChops.multiply(crowd, self._mask)))

    def strip(self, top: int, height: int) -> Image.Image:
        """Rows *top* to *top* + *height*, in RGB."""
        size, reach = (self.width, height), _SPRITE // 2
        box = (0, top / _MAP_SCALE, self.width / _MAP_SCALE, (top + height) / _MAP_SCALE)
        fibres = Image.new("RGB", size)
        for x in range(0, self.width, _FIBRES):
            for y in range(-(top % _FIBRES), height, _FIBRES):
                fibres.paste(self._fibres, (x, y))
        picture = self._map.resize(size, Image.Resampling.BICUBIC, box)
        mask = self._mask.resize(size, Image.Resampling.BILINEAR, box)
        picture.paste(ImageChops.multiply(picture, fibres), (0, 0), mask)
        near = slice(bisect_left(self._nuclei, (top - reach,)), bisect_left(self._nuclei, (top + height + reach,)))
        for y, x, sprite in self._nuclei[near]:
            colors, cover = self._sprites[sprite]
            picture.paste(colors, (x - reach, y - top - reach), cover)
        return picture

    def _noise(self, size: Size, detail: int, octaves: int = 5) -> Image.Image:
        """Smooth noise from 0 to 255: *detail* bumps over the width, then twice as many half as high, and so on."""
        noise = Image.new("L", size, 128)
        for octave in reversed(range(octaves)):
            columns = detail << octave
            rows = max(2, columns * size[1] // size[0])
            cells = Image.frombytes("L", (columns, rows), self._random.randbytes(columns * rows))
            noise = Image.blend(noise, cells.resize(size, Image.Resampling.BICUBIC), 0.5)
        return ImageOps.autocontrast(noise, cutoff=1)

    def _paint(self, size: Size) -> tuple[Image.Image, Image.Image]:
        """Colors at a quarter of the size, and how dense nuclei are there: glands in a stroma, with vessels."""
        blend = self._noise(size, 24).point(lambda level: (level - 90) * 3)
        picture = ImageOps.colorize(blend, _STROMA, _EOSIN)
        crowd = self._noise(size, 40).point(lambda level: max(12, (level - 100) // 2))
        draw, dense = ImageDraw.Draw(picture), ImageDraw.Draw(crowd)
        for x, y, radius in self._glands(size):
            outline = self._outline(x, y, radius)
            for factor, color, density in (
                (1.0, _EPITHELIUM, 30),
                (0.92, _EPITHELIUM, 255),
                (0.74, _EPITHELIUM, 30),
                (0.6, _MUCIN, 0),
            ):
                points = [(x + (a - x) * factor, y + (b - y) * factor) for a, b in outline]
                draw.polygon(points, fill=color)
                dense.polygon(points, fill=density)
        for _ in range(250):
            x, y = self._random.random() * size[0], self._random.random() * size[1]
            draw.polygon(self._outline(x, y, self._random.uniform(2.5, 7)), fill=_BLOOD)
        picture = picture.filter(ImageFilter.GaussianBlur(1.1))
        return Image.composite(picture, Image.new("RGB", size, _GLASS), self._mask), crowd

    def _glands(self, size: Size) -> list[tuple[float, float, float]]:
        """(x, y, radius) of glands that do not touch."""
        glands: list[tuple[float, float, float]] = []
        for _ in range(3000):
            x, y, reach = (self._random.random() for _ in range(3))
            x, y, radius = x * size[0], y * size[1], 24 + 46 * reach**2
            if all(math.hypot(x - a, y - b) > 1.35 * (radius + other) for a, b, other in glands):
                glands.append((x, y, radius))
        return glands

    def _outline(self, x: float, y: float, radius: float) -> list[tuple[float, float]]:
        """A closed line around a place, with some bumps."""
        first, second, turn = (self._random.uniform(0, 2 * math.pi) for _ in range(3))
        points = []
        for angle in (n * math.tau / 60 for n in range(60)):
            reach = radius * (1 + 0.16 * math.sin(2 * angle + first) + 0.1 * math.sin(5 * angle + second))
            points.append((x + reach * math.cos(angle + turn), y + 0.9 * reach * math.sin(angle + turn)))
        return points

    def _nucleus(self) -> tuple[Image.Image, Image.Image]:
        """One nucleus: its colors, and how much it covers what is below."""
        side = 4 * _SPRITE
        long = self._random.uniform(0.42, 0.7) * side / 2
        wide = long * self._random.uniform(0.5, 1.0)
        cover = Image.new("L", (side, side))
        middle = side / 2
        ellipse = (middle - long, middle - wide, middle + long, middle + wide)
        ImageDraw.Draw(cover).ellipse(ellipse, fill=self._random.randrange(195, 245))
        cover = cover.rotate(self._random.uniform(0, 180)).filter(ImageFilter.GaussianBlur(4))
        chromatin = self._noise((_SPRITE, _SPRITE), 6, 2)
        return ImageOps.colorize(chromatin, (70, 38, 112), (128, 92, 168)), cover.reduce(4)

    def _scatter(self, crowd: Image.Image) -> Iterator[tuple[int, int, int]]:
        """(y, x, sprite) of all nuclei."""
        chance, density = self._random, crowd.tobytes()
        for y in range(0, self.height - _CELL, _CELL):
            for x in range(0, self.width - _CELL, _CELL):
                a, b = x + int(chance.random() * _CELL), y + int(chance.random() * _CELL)
                if 255 * chance.random() < density[b // _MAP_SCALE * crowd.width + a // _MAP_SCALE]:
                    yield b, a, chance.randrange(_SPRITES)


def make_frames(base: SampleLevel = LEVELS[0], levels: tuple[SampleLevel, ...] = LEVELS) -> list[list[bytes]]:
    """The JPEG frames of each level, row by row (the order of TILED_FULL, PS3.3 section C.7.6.17.3)."""
    tissue = Tissue(base.columns * TILE, base.rows * TILE)
    below = Image.new("RGB", (tissue.width // _STEP, tissue.height // _STEP))
    frames: list[list[bytes]] = [[]]

    def paint(row: int) -> tuple[list[bytes], Image.Image]:
        strip = tissue.strip(row * TILE, TILE)
        return _tiles(strip, base, row), strip.reduce(_STEP)

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for row, (tiles, small) in enumerate(threads.map(paint, range(base.rows))):
            frames[0] += tiles
            below.paste(small, (0, row * TILE // _STEP))
    for level in levels[1:]:
        bands = (below.crop((0, row * TILE, below.width, (row + 1) * TILE)) for row in range(level.rows))
        frames.append([tile for row, band in enumerate(bands) for tile in _tiles(band, level, row)])
        below = below.reduce(_STEP)
    return frames


def _tiles(band: Image.Image, level: SampleLevel, row: int) -> list[bytes]:
    return [
        encode(numbered(band.crop((column * TILE, 0, (column + 1) * TILE, TILE)), row * level.columns + column + 1))
        for column in range(level.columns)
    ]


def numbered(tile: Image.Image, number: int) -> Image.Image:
    """*tile* with its frame number in the upper left corner and a fine line along two edges."""
    draw = ImageDraw.Draw(tile)
    draw.line([(0, TILE - 1), (0, 0), (TILE - 1, 0)], fill=(150, 130, 160))
    draw.text((8, 4), str(number), fill=(30, 20, 60), font=_font(), stroke_width=3, stroke_fill=(255, 255, 255))
    return tile


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(30)


def encode(tile: Image.Image) -> bytes:
    """Baseline JPEG; YBR_FULL_422, as in the header."""
    out = io.BytesIO()
    tile.save(out, "JPEG", quality=QUALITY, subsampling="4:2:2")
    return out.getvalue()
