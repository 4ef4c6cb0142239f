"""A picture that looks like stained tissue (haematoxylin and eosin), strip by strip.

- The same version gives the same pixels: every number comes from generators with fixed seeds.
- What is larger than a few cells (tissue, glands, vessels) is painted once on a map at a quarter of the size,
  fine fibres and nuclei at full size: 100 megapixels take seconds instead of minutes.
- A strip can be painted without the others, so strips can be painted side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
from PIL import Image, ImageChops, ImageDraw, ImageFilter

MAP_SCALE = 4  # pixels of the slide in one pixel of the map
_SEED = 20
_CELL = 30  # pixels between nuclei, about: 15 um
_SPRITES = 64
_SPRITE = 28  # pixels
_FIBRES = 1024  # pixels of the texture's side

_GLASS = (243, 240, 244)
_EOSIN = (231, 168, 203)
_STROMA = (240, 192, 216)
_EPITHELIUM = (205, 140, 192)
_MUCIN = (246, 236, 243)
_BLOOD = (214, 96, 110)

Array = numpy.ndarray[Any, numpy.dtype[Any]]


class Tissue:
    """The picture, *width* x *height* pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._random = numpy.random.default_rng(_SEED)
        self.width, self.height = width, height
        size = (width // MAP_SCALE, height // MAP_SCALE)
        self._mask = self._tissue_mask(size)
        glands = self._glands(size)
        self._map, lumen = self._paint_map(size, glands)
        self._fibres = self._fibre_texture()
        self._sprites = [self._nucleus() for _ in range(_SPRITES)]
        self._nuclei = self._scatter(numpy.asarray(self._mask), lumen, glands)

    def strip(self, top: int, height: int) -> Image.Image:
        """Rows *top* to *top* + *height*, in RGB."""
        box = (0, top / MAP_SCALE, self.width / MAP_SCALE, (top + height) / MAP_SCALE)
        size = (self.width, height)
        picture = self._map.resize(size, Image.Resampling.BICUBIC, box=box)
        mask = self._mask.resize(size, Image.Resampling.BILINEAR, box=box)
        picture = Image.composite(ImageChops.multiply(picture, self._fibre_strip(top, height)), picture, mask)
        reach = _SPRITE // 2
        first, last = numpy.searchsorted(self._nuclei[:, 1], (top - reach, top + height + reach))
        for x, y, sprite in self._nuclei[first:last].tolist():
            colour, alpha = self._sprites[sprite]
            picture.paste(colour, (x - reach, y - top - reach), alpha)
        return picture

    def _noise(self, size: tuple[int, int], detail: int, octaves: int) -> Array:
        """Smooth noise from 0 to 1: *detail* bumps over the width, then twice as many half as high, and so on."""
        total = numpy.zeros((size[1], size[0]), numpy.float32)
        weight, weights = 1.0, 0.0
        for _ in range(octaves):
            cells = self._random.random((max(2, detail * size[1] // size[0]), detail), numpy.float32)
            layer = Image.fromarray(cells, "F").resize(size, Image.Resampling.BICUBIC)
            total += weight * numpy.asarray(layer)
            weights += weight
            weight, detail = weight / 2, detail * 2
        return total / weights

    def _tissue_mask(self, size: tuple[int, int]) -> Image.Image:
        """Where there is tissue: 255, glass: 0. One large piece with a ragged edge and some tears."""
        small = (size[0] // 4, size[1] // 4)
        y, x = numpy.mgrid[-1 : 1 : small[1] * 1j, -1 : 1 : small[0] * 1j]
        field = 1.25 - numpy.hypot(x * 1.12, y * 1.18) + (self._noise(small, 6, 5) - 0.5) * 1.3
        field -= 1.6 * numpy.clip(self._noise(small, 9, 4) - 0.62, 0, 1)
        mask = numpy.clip((field - 0.18) * 9, 0, 1)
        return Image.fromarray((mask * 255).astype(numpy.uint8)).resize(size, Image.Resampling.BICUBIC)

    def _glands(self, size: tuple[int, int]) -> list[list[tuple[float, float]]]:
        """Outlines (x, y on the map) of glands that do not touch, within the tissue."""
        taken: list[tuple[float, float, float]] = []
        outlines = []
        mask = numpy.asarray(self._mask)
        for _ in range(4000):
            x, y = self._random.random(2) * size
            radius = 24 + 46 * float(self._random.random()) ** 2
            near = any(math.hypot(x - a, y - b) < radius * 1.35 + c * 1.35 for a, b, c in taken)
            if near or mask[int(y), int(x)] < 250:
                continue
            taken.append((x, y, radius))
            outlines.append(self._outline(x, y, radius))
        return outlines

    def _outline(self, x: float, y: float, radius: float) -> list[tuple[float, float]]:
        angle = numpy.linspace(0, 2 * math.pi, 72, endpoint=False)
        swing = (
            1
            + sum(
                self._random.uniform(-0.5, 0.5) / order * numpy.sin(order * angle + self._random.uniform(0, 6.3))
                for order in (2, 3, 5)
            )
            * 0.55
        )
        stretch, turn = self._random.uniform(0.75, 1.2), self._random.uniform(0, math.pi)
        a, b = radius * swing * numpy.cos(angle), radius * swing * stretch * numpy.sin(angle)
        xs, ys = x + a * math.cos(turn) - b * math.sin(turn), y + a * math.sin(turn) + b * math.cos(turn)
        return list(zip(xs.tolist(), ys.tolist()))

    def _paint_map(self, size: tuple[int, int], glands: list[list[tuple[float, float]]]) -> tuple[Image.Image, Array]:
        """Colours at a quarter of the size, and where nothing but mucin is (255)."""
        blend = self._noise(size, 24, 5)
        blend = numpy.clip((blend - 0.35) * 3.2, 0, 1)[:, :, None]
        pink = numpy.array(_EOSIN) * blend + numpy.array(_STROMA) * (1 - blend)
        pink *= 0.94 + 0.1 * self._noise(size, 5, 2)[:, :, None]
        picture = Image.fromarray(numpy.clip(pink, 0, 255).astype(numpy.uint8))
        lumen = Image.new("L", size)
        draw, hollow = ImageDraw.Draw(picture), ImageDraw.Draw(lumen)
        for outline in glands:
            draw.polygon(outline, fill=_EPITHELIUM)
            inner = _shrunk(outline, 0.62)
            draw.polygon(inner, fill=_MUCIN)
            hollow.polygon(inner, fill=255)
        for _ in range(260):
            self._vessel(draw, size)
        picture = picture.filter(ImageFilter.GaussianBlur(1.1))
        return Image.composite(picture, Image.new("RGB", size, _GLASS), self._mask), numpy.asarray(lumen)

    def _vessel(self, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
        x, y = self._random.random(2) * size
        radius = self._random.uniform(2.5, 7)
        draw.polygon(self._outline(x, y, radius), fill=_BLOOD)

    def _fibre_texture(self) -> Image.Image:
        """Wavy fibres to multiply with, the same at opposite edges."""
        grain = self._random.random((_FIBRES, _FIBRES), numpy.float32)
        spectrum = numpy.fft.rfft2(grain)
        v = numpy.fft.fftfreq(_FIBRES)[:, None] * _FIBRES
        u = numpy.fft.rfftfreq(_FIBRES)[None, :] * _FIBRES
        along = numpy.exp(-((u / 60) ** 2) - ((v / 210) ** 2)) + 0.35 * numpy.exp(-((u / 330) ** 2) - ((v / 330) ** 2))
        waves = numpy.fft.irfft2(spectrum * along * (numpy.hypot(u, v) > 6))
        waves = waves / waves.std()
        shade = numpy.clip(236 + waves * 13, 150, 255)
        tinted = numpy.stack([shade * 0.3 + 255 * 0.7, shade, shade * 0.6 + 255 * 0.4], axis=2)
        return Image.fromarray(tinted.astype(numpy.uint8))

    def _fibre_strip(self, top: int, height: int) -> Image.Image:
        strip = Image.new("RGB", (self.width, height))
        start = top % _FIBRES
        for x in range(0, self.width, _FIBRES):
            for y in range(-start, height, _FIBRES):
                strip.paste(self._fibres, (x, y))
        return strip

    def _nucleus(self) -> tuple[Image.Image, Image.Image]:
        """One nucleus: its colours, and how much it covers what is below."""
        y, x = numpy.mgrid[-1 : 1 : _SPRITE * 1j, -1 : 1 : _SPRITE * 1j]
        turn, long = self._random.uniform(0, math.pi), self._random.uniform(0.42, 0.72)
        wide = long * self._random.uniform(0.5, 1.0)
        a, b = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
        distance = numpy.hypot(a / long, b / wide)
        alpha = numpy.clip((1.08 - distance) * 5, 0, 1) * self._random.uniform(0.75, 0.95)
        chromatin = self._noise((_SPRITE, _SPRITE), 8, 2)
        dark = numpy.clip(0.55 + 0.45 * chromatin - 0.25 * (distance > 0.8), 0, 1)[:, :, None]
        purple = numpy.array((96, 58, 140)) * self._random.uniform(0.85, 1.15)
        colour = purple * (0.72 + 0.5 * (1 - dark))
        return (
            Image.fromarray(numpy.clip(colour, 0, 255).astype(numpy.uint8)),
            Image.fromarray((alpha * 255).astype(numpy.uint8)),
        )

    def _scatter(self, mask: Array, lumen: Array, glands: list[list[tuple[float, float]]]) -> Array:
        """(x, y, sprite) of all nuclei, sorted by y: loose in the stroma, side by side along the glands."""
        columns, rows = self.width // _CELL, self.height // _CELL
        x, y = numpy.meshgrid(numpy.arange(columns), numpy.arange(rows))
        places = numpy.stack([x.ravel(), y.ravel()], axis=1) * float(_CELL)
        places += self._random.random(places.shape) * _CELL
        crowd = numpy.asarray(Image.fromarray(self._noise((columns, rows), 40, 3), "F")).ravel()
        places = places[self._random.random(len(places)) < numpy.clip((crowd - 0.36) * 3.0, 0.05, 0.95)]
        ring = numpy.array([point for outline in glands for point in _along(_shrunk(outline, 0.86), 3.6)])
        ring = ring * MAP_SCALE + self._random.normal(0, 3.0, ring.shape)
        places = numpy.concatenate([places, ring])
        places = places[((places > 0) & (places < (self.width - 1, self.height - 1))).all(axis=1)].astype(numpy.int64)
        across, down = places[:, 0] // MAP_SCALE, places[:, 1] // MAP_SCALE
        places = places[(mask[down, across] > 200) & (lumen[down, across] == 0)]
        sprites = self._random.integers(0, _SPRITES, len(places))
        found = numpy.column_stack([places, sprites])
        return found[numpy.argsort(found[:, 1], kind="stable")]


def _shrunk(outline: list[tuple[float, float]], factor: float) -> list[tuple[float, float]]:
    x = sum(point[0] for point in outline) / len(outline)
    y = sum(point[1] for point in outline) / len(outline)
    return [(x + (a - x) * factor, y + (b - y) * factor) for a, b in outline]


def _along(outline: list[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """Points on a closed outline, about *step* apart."""
    points = []
    for (a, b), (c, d) in zip(outline, outline[1:] + outline[:1]):
        count = max(1, round(math.hypot(c - a, d - b) / step))
        points += [(a + (c - a) * n / count, b + (d - b) * n / count) for n in range(count)]
    return points
