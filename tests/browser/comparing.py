"""Whether what a browser drew is what it should have drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from tests.browser.slides import Pixels, Truth

BLOCK = 64  # pixels; smaller than a tile, so a tile that is missing or elsewhere fills several
BLURRED = 4  # pixels that are averaged before comparing: viewers stretch tiles by half a pixel to hide their seams
MOST = 12.0  # levels of 255 that a block may differ by on average: 6 to 7 are seen, 18 if tiles are 2 pixels away
BLANK = 3.0  # levels; the standard deviation of a picture in which nothing is to be seen is 0


def drawn(path: Path) -> Pixels:
    """A screenshot: uint8, (rows, columns, 3)."""
    return numpy.asarray(Image.open(path).convert("RGB"))


def is_blank(path: Path) -> bool:
    """Whether a screenshot shows next to nothing."""
    return float(drawn(path).std()) < BLANK


def worst_block(path: Path, truth: Truth, left: int, top: int) -> float:
    """The largest mean difference, in levels, of any block between a screenshot and the slide at that place.

    What the screenshot shows beyond the slide is not looked at.
    """
    shown = drawn(path)
    expected = truth.region(left, top, shown.shape[1], shown.shape[0])
    height, width = (side // BLOCK * BLOCK for side in expected.shape[:2])
    difference = abs(_blurred(shown[:height, :width]) - _blurred(expected[:height, :width])).mean(axis=2)
    side = BLOCK // BLURRED
    blocks = difference.reshape(height // BLOCK, side, width // BLOCK, side).mean(axis=(1, 3))
    return float(blocks.max())


def _blurred(pixels: Pixels) -> Any:
    height, width = pixels.shape[:2]
    return pixels.reshape(height // BLURRED, BLURRED, width // BLURRED, BLURRED, 3).mean(axis=(1, 3))


def keep(path: Path, kept: Path, most: int = 400_000) -> None:
    """Save a screenshot as *kept*, a JPEG of *most* bytes at most."""
    picture = Image.open(path).convert("RGB")
    for quality in range(90, 30, -5):
        picture.save(kept, "JPEG", quality=quality, optimize=True)
        if kept.stat().st_size <= most:
            return
