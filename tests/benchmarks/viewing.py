"""A viewer's session over a pyramid, made up from a seed: which tiles it asks for, screen by screen. Pure.

A window of 1920 x 1080 pixels looks at the slide. It pans mostly, by a fifth to three fifths of a screen, keeping its
direction for a while as one does who reads a slide, and zooms in and out by two. A screen shows the tiles of the
coarsest level that is fine enough. The viewer keeps the last 200 tiles (as OpenSeadragon does) and asks for the others,
those nearest to the middle first.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import attrs

WINDOW = (1920, 1080)
KEPT_TILES = 200
ZOOM_SHARE = 0.15  # of moves, in and out together
TURN_SHARE = 0.25  # of pans go elsewhere than the one before
DWELL = (0.1, 0.8)  # seconds between a screen that is complete and the next move


@attrs.frozen
class Level:
    """One instance: *columns* x *rows* tiles of *tile* pixels, *scale* pixels of the finest level to one of this."""

    name: str
    scale: int
    columns: int
    rows: int
    tile: int = 256


@attrs.frozen
class Screen:
    """What a viewer asks for at one place: frame numbers of one level, in this order. *dwell*: seconds until it moves."""

    level: Level
    frames: tuple[int, ...]
    dwell: float


def session(seed: int, levels: Sequence[Level], moves: int) -> Iterator[Screen]:
    """The screens of one session: most of the slide, a dive into it, *moves* moves."""
    chance = random.Random(seed)
    finest = min(levels, key=lambda level: level.scale)
    width, height = finest.columns * finest.tile, finest.rows * finest.tile
    widest = max(level.scale for level in levels)
    zoom, angle = widest, chance.uniform(0, 2 * math.pi)
    x, y = width * chance.uniform(0.3, 0.7), height * chance.uniform(0.3, 0.7)
    kept: OrderedDict[tuple[str, int], None] = OrderedDict()
    dive = [widest >> step for step in range(1, widest.bit_length())]
    for move in range(-len(dive) - 1, moves):
        if move < 0:
            zoom = ([widest, *dive])[move + len(dive) + 1]
        elif chance.random() < ZOOM_SHARE:
            zoom = min(widest, max(1, zoom * 2 if chance.random() < 0.5 else zoom // 2))
        else:
            if chance.random() < TURN_SHARE:
                angle = chance.uniform(0, 2 * math.pi)
            far = chance.uniform(0.2, 0.6) * zoom
            x, y = x + math.cos(angle) * far * WINDOW[0], y + math.sin(angle) * far * WINDOW[1]
            if not (0 < x < width and 0 < y < height):
                x, y, angle = min(max(x, 0), width), min(max(y, 0), height), angle + math.pi
        level = max((one for one in levels if one.scale <= zoom), key=lambda one: one.scale)
        frames = tuple(number for number in visible(level, zoom, x, y) if _asked(kept, level, number))
        yield Screen(level, frames, chance.uniform(*DWELL))


def visible(level: Level, zoom: float, x: float, y: float) -> list[int]:
    """The frames of *level* in a window around (*x*, *y*), in the finest level's pixels, the middle ones first."""
    side = level.tile * level.scale
    left, right = (int((x + sign * WINDOW[0] * zoom / 2) // side) for sign in (-1, 1))
    top, bottom = (int((y + sign * WINDOW[1] * zoom / 2) // side) for sign in (-1, 1))
    places = [
        (row, column)
        for row in range(max(0, top), min(bottom, level.rows - 1) + 1)
        for column in range(max(0, left), min(right, level.columns - 1) + 1)
    ]
    places.sort(key=lambda place: ((place[0] + 0.5) * side - y) ** 2 + ((place[1] + 0.5) * side - x) ** 2)
    return [row * level.columns + column + 1 for row, column in places]


def _asked(kept: OrderedDict[tuple[str, int], None], level: Level, number: int) -> bool:
    """Whether the viewer has to ask for a tile that it shows."""
    known = (level.name, number) in kept
    kept[level.name, number] = None
    kept.move_to_end((level.name, number))
    while len(kept) > KEPT_TILES:
        kept.popitem(last=False)
    return not known
