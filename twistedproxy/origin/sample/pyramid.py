"""The frames of all levels: tissue cut into tiles, each with its number, as baseline JPEG.

A lower level is the one above it at a quarter of the size, by averaging, before numbers are drawn: each
level carries its own numbers.
"""

from __future__ import annotations

import functools
import io
import os
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageDraw, ImageFont

from twistedproxy.origin.sample.slide import DOWNSAMPLING, LEVELS, TILE, SampleLevel
from twistedproxy.origin.sample.tissue import Tissue

QUALITY = 78
MAX_THREADS = 4  # Pillow gives up the interpreter's lock while it resizes and encodes
_FONT_SIZE = 30  # pixels
_STEP = DOWNSAMPLING[1]


def make_frames(base: SampleLevel = LEVELS[0], levels: tuple[SampleLevel, ...] = LEVELS) -> list[list[bytes]]:
    """The JPEG frames of each level, row by row (the order of TILED_FULL, PS3.3 section C.7.6.17.3)."""
    tissue = Tissue(base.columns * TILE, base.rows * TILE)
    below = Image.new("RGB", (tissue.width // _STEP, tissue.height // _STEP))
    frames: list[list[bytes]] = [[]]
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for row, (tiles, small) in enumerate(threads.map(functools.partial(_row, tissue, base), range(base.rows))):
            frames[0] += tiles
            below.paste(small, (0, row * TILE // _STEP))
    for level in levels[1:]:
        frames.append([tile for row in range(level.rows) for tile in _tiles(_band(below, row), level, row)])
        below = below.reduce(_STEP)
    return frames


def _row(tissue: Tissue, base: SampleLevel, row: int) -> tuple[list[bytes], Image.Image]:
    strip = tissue.strip(row * TILE, TILE)
    return _tiles(strip, base, row), strip.reduce(_STEP)


def _band(picture: Image.Image, row: int) -> Image.Image:
    return picture.crop((0, row * TILE, picture.width, (row + 1) * TILE))


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
    return ImageFont.load_default(_FONT_SIZE)


def encode(tile: Image.Image) -> bytes:
    """Baseline JPEG, YBR_FULL_422 as the header says."""
    out = io.BytesIO()
    tile.save(out, "JPEG", quality=QUALITY, subsampling="4:2:2")
    return out.getvalue()
