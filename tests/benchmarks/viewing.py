"""What viewers ask for, screen by screen, made up from a seed: over a pyramid, and through a stack. Pure.

A window of 1920 x 1080 pixels looks at a slide. `session` pans mostly, by a fifth to three fifths of a screen, keeping its
direction for a while as one does who reads a slide, and zooms in and out by two; `reading` also jumps elsewhere and returns
to places seen before. A screen shows the tiles of the coarsest level that is fine enough. The viewer keeps the last 200 tiles
(as OpenSeadragon does) and asks for the others, those nearest to the middle first.

`scroll` goes through the slices of a stack at the reader's pace, whether they have come or not.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import attrs

WINDOW = (1920, 1080)
KEPT_TILES = 200
KEPT_SLICES = 50
ZOOM_SHARE = 0.15  # of moves, in and out together
OUT_SHARE = 0.35  # of a reading's zooms go out: who reads returns to the details
TURN_SHARE = 0.25  # of pans go elsewhere than the one before
JUMP_SHARE = 0.06  # of the moves of a reading go to a place far away; as many return
RETURNS_AFTER = 5  # screens
DWELL = (0.1, 0.8)  # seconds between a screen that is complete and the next move
PACES = (8.0, 25.0)  # slices a second
RUNS = (15, 60)  # slices in one direction
PAUSES = (0.5, 2.0)  # seconds between two runs


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
    """What a viewer asks for at one place: frame numbers of one level, in this order. *dwell*: seconds until it moves.

    *move*: what brought it there ("overview", "zoom", "pan", "jump", "return"; "forwards", "back"). *first*: nothing of this
    level, or stack, was seen before. *waits*: whether *dwell* counts from when the screen is complete, or from its start.
    """

    level: Level
    frames: tuple[int, ...]
    dwell: float
    move: str = "pan"
    first: bool = False
    waits: bool = True


class _Viewer:
    """Where the window is, and which tiles the viewer keeps. *zoom*: pixels of the finest level to one of the window."""

    def __init__(self, chance: random.Random, levels: Sequence[Level]) -> None:
        finest = min(levels, key=lambda level: level.scale)
        self._chance = chance
        self._levels = levels
        self._kept: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._visited: list[tuple[float, float, int]] = []
        self._seen: set[str] = set()
        self._width, self._height = finest.columns * finest.tile, finest.rows * finest.tile
        self.widest = self.zoom = max(level.scale for level in levels)
        self._angle = chance.uniform(0, 2 * math.pi)
        self._x, self._y = self._width * chance.uniform(0.3, 0.7), self._height * chance.uniform(0.3, 0.7)

    def zoom_by_two(self, out: float = 0.5) -> None:
        """*out*: how likely it is to zoom out."""
        zoom = self.zoom * 2 if self._chance.random() < out else self.zoom // 2
        self.zoom = min(self.widest, max(1, zoom))

    def pan(self) -> None:
        if self._chance.random() < TURN_SHARE:
            self._angle = self._chance.uniform(0, 2 * math.pi)
        far = self._chance.uniform(0.2, 0.6) * self.zoom
        self._x += math.cos(self._angle) * far * WINDOW[0]
        self._y += math.sin(self._angle) * far * WINDOW[1]
        if not (0 < self._x < self._width and 0 < self._y < self._height):
            self._x, self._y = min(max(self._x, 0), self._width), min(max(self._y, 0), self._height)
            self._angle += math.pi

    def jump(self) -> None:
        """To any place of the slide, as with a click on its overview."""
        self._x, self._y = self._width * self._chance.random(), self._height * self._chance.random()

    def go_back(self) -> None:
        """To a place, at its zoom, that was on the screen some screens ago."""
        self._x, self._y, self.zoom = self._chance.choice(self._visited[:-RETURNS_AFTER])

    def may_return(self) -> bool:
        return len(self._visited) > RETURNS_AFTER

    def screen(self, move: str) -> Screen:
        level = max((one for one in self._levels if one.scale <= self.zoom), key=lambda one: one.scale)
        shown = visible(level, self.zoom, self._x, self._y)
        frames = tuple(number for number in shown if _asked(self._kept, (level.name, number), KEPT_TILES))
        first = level.name not in self._seen
        self._seen.add(level.name)
        self._visited.append((self._x, self._y, self.zoom))
        return Screen(level, frames, self._chance.uniform(*DWELL), move, first)


def session(seed: int, levels: Sequence[Level], moves: int) -> Iterator[Screen]:
    """The screens of one session: most of the slide, a dive into it, *moves* moves."""
    chance = random.Random(seed)
    viewer = _Viewer(chance, levels)
    yield from _dive(viewer)
    for _ in range(moves):
        if chance.random() < ZOOM_SHARE:
            viewer.zoom_by_two()
            yield viewer.screen("zoom")
        else:
            viewer.pan()
            yield viewer.screen("pan")


def reading(seed: int, levels: Sequence[Level], moves: int) -> Iterator[Screen]:
    """The screens of one reading: most of the slide, a dive into it, *moves* moves, among them jumps and returns."""
    chance = random.Random(seed)
    viewer = _Viewer(chance, levels)
    yield from _dive(viewer)
    for _ in range(moves):
        lot = chance.random()
        if lot < JUMP_SHARE:
            move, go = "jump", viewer.jump
        elif lot < 2 * JUMP_SHARE and viewer.may_return():
            move, go = "return", viewer.go_back
        elif lot < 2 * JUMP_SHARE + ZOOM_SHARE:
            move, go = "zoom", lambda: viewer.zoom_by_two(OUT_SHARE)
        else:
            move, go = "pan", viewer.pan
        go()
        yield viewer.screen(move)


def _dive(viewer: _Viewer) -> Iterator[Screen]:
    yield viewer.screen("overview")
    for step in range(1, viewer.widest.bit_length()):
        viewer.zoom = viewer.widest >> step
        yield viewer.screen("zoom")


def scroll(seed: int, slices: Sequence[Level], moves: int) -> Iterator[Screen]:
    """The screens of one reading of a stack, at most *moves*: runs forwards and back from a slice near the middle, each at a
    pace of its own, with pauses between. The viewer keeps the last 50 slices."""
    chance = random.Random(seed)
    kept: OrderedDict[tuple[str, int], None] = OrderedDict()
    place, direction, done = int(len(slices) * chance.uniform(0.3, 0.6)), 1, 0
    while done < moves:
        pace = chance.uniform(*PACES)
        run = min(chance.randint(*RUNS), moves - done)
        for left in reversed(range(run)):
            frames = (1,) if _asked(kept, (slices[place].name, 1), KEPT_SLICES) else ()
            dwell = 1 / pace if left else chance.uniform(*PAUSES)
            yield Screen(slices[place], frames, dwell, "forwards" if direction > 0 else "back", not done, waits=False)
            done += 1
            if not 0 <= place + direction < len(slices):
                direction = -direction
            place += direction
        direction = -direction if chance.random() < 0.6 else direction
        direction = direction if 0 <= place + direction < len(slices) else -direction


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


def _asked(kept: OrderedDict[tuple[str, int], None], tile: tuple[str, int], most: int) -> bool:
    """Whether the viewer has to ask for a tile that it shows: it keeps *most*."""
    known = tile in kept
    kept[tile] = None
    kept.move_to_end(tile)
    while len(kept) > most:
        kept.popitem(last=False)
    return not known
