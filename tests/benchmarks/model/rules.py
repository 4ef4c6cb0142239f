"""Prefetch rules that can be tried on the model, each by itself: today's, and those for series.

Distances are in frames, along each side of the grid; of stacks, in slices.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from tests.benchmarks.model.proxy import BLOCK, DISPLAY, Proxy, Seen
from tests.benchmarks.model.series import Place
from tests.benchmarks.readers import Item

FEWEST_FRAMES = 10  # --prefetch-min-frames
BLOCK_SIDE = 32  # frames; --block-pixels
DISPLAY_SIDE = 12  # frames; --display-pixels
DISPLAY_FROM = 10_000  # frames of an instance; --display-min-frames
BLOCK_LOCK = 3.0  # seconds
WHOLE_LOCK = 300.0  # seconds; --recache-after


@attrs.define(eq=False)
class AfterMisses:
    """What was not cached calls for the whole instance, or above *whole_limit* frames for a block of *block* frames a side (0: for
    nothing). *slide_limit*: bytes of a slide, above which the same goes for all but its small levels. *small_are_jobs*: whether
    whole loads of the smallest wait for others."""

    whole_limit: int = 500_000
    block: int = BLOCK_SIDE
    small_are_jobs: bool = True
    slide_limit: float = float("inf")
    _locks: dict[str, float] = attrs.Factory(dict)

    def __call__(self, proxy: Proxy, seen: Seen) -> None:
        place, now = seen.place, proxy.events.now()
        if seen.hit or place.frames < FEWEST_FRAMES or place.series.stack:
            return
        if place.frames >= DISPLAY_FROM and self.block:
            proxy.load(around(seen, DISPLAY_SIDE // 2), DISPLAY)
        if self._locks.get(place.level.name, 0.0) > now:
            return
        limit = self.whole_limit if place.series.size <= self.slide_limit else 1
        if place.frames > max(limit, BLOCK_SIDE**2 if limit else 0):
            if not self.block:
                return
            self._locks[place.level.name] = now + BLOCK_LOCK
            proxy.load(around(seen, self.block // 2), BLOCK)
            return
        counted = self.small_are_jobs or place.frames > BLOCK_SIDE**2
        if proxy.load_whole(place, counted):
            self._locks[place.level.name] = now + WHOLE_LOCK


def around(seen: Seen, side: int) -> Iterator[Item]:
    """Frames at most *side* away from the one that was asked for."""
    return seen.place.square(*seen.place.at(seen.frame), side, side, side, side)


@attrs.define(eq=False)
class SmallLevels:
    """When a series is opened, its levels of at most *most* frames are loaded whole, the smallest first, one after the other
    in the order of the store's answers. They are no jobs."""

    most: int = 1024
    _opened: set[str] = attrs.Factory(set)

    def __call__(self, proxy: Proxy, seen: Seen) -> None:
        series = seen.place.series
        if series.stack or series.levels[0].name in self._opened:
            return
        self._opened.add(series.levels[0].name)
        # The series' metadata say what levels there are.
        proxy.events.later(proxy.store.latency, lambda: self._load(proxy, seen))

    def _load(self, proxy: Proxy, seen: Seen) -> None:
        levels = [Place(seen.place.series, index) for index in range(len(seen.place.series.levels))]
        for place in sorted(levels, key=lambda one: one.frames):
            if place.frames <= self.most:
                proxy.load_whole(place, counted=False)


@attrs.define
class _Movement:
    """Where a reader asks for frames of one instance: the mean of the last, which lags behind one who moves."""

    row: float
    column: float

    def step(self, row: int, column: int, jump: int) -> tuple[int, int]:
        """Take in one more place; the direction, each of -1, 0, 1."""
        down, right = row - self.row, column - self.column
        if max(abs(down), abs(right)) > jump:
            self.row, self.column = row, column
            return 0, 0
        self.row += down / 16
        self.column += right / 16
        return _sign(down), _sign(right)


def _sign(distance: float) -> int:
    return 0 if abs(distance) < 2 else 1 if distance > 0 else -1


@attrs.define(eq=False)
class NeighbouringLevels:
    """Around the middle of what is asked for lately, the same place in the next finer and the next coarser level: *margin*
    frames of that level to each side. Looked at again when the middle has moved by half of that."""

    margin: int = 6
    _middles: dict[tuple[str, str], _Movement] = attrs.Factory(dict)
    _looked: dict[tuple[str, str], tuple[float, float]] = attrs.Factory(dict)

    def __call__(self, proxy: Proxy, seen: Seen) -> None:
        place = seen.place
        if place.series.stack:
            return
        row, column = place.at(seen.frame)
        middle = self._middles.setdefault((seen.reader, place.level.name), _Movement(row, column))
        middle.step(row, column, 2 * self.margin)
        for index in (place.index + 1, place.index - 1):
            if 0 <= index < len(place.series.levels):
                self._look(proxy, seen, Place(place.series, index), middle)

    def _look(self, proxy: Proxy, seen: Seen, other: Place, middle: _Movement) -> None:
        ratio = seen.place.level.scale / other.level.scale
        row, column = (middle.row + 0.5) * ratio, (middle.column + 0.5) * ratio
        key = (seen.reader, f"{seen.place.level.name} {other.level.name}")
        before = self._looked.get(key)
        if before is None or max(abs(row - before[0]), abs(column - before[1])) > self.margin / 2:
            self._looked[key] = row, column
            proxy.load(other.square(row, column, *[self.margin] * 4), DISPLAY)


@attrs.define(eq=False)
class LookAhead:
    """On hits, too: a ring of *ring* frames around what is asked for, *further* more in the direction of movement. It is
    loaded when a frame at its edge is missing: eight look-ups for a request."""

    ring: int = 6
    further: int = 0
    _movements: dict[tuple[str, str], _Movement] = attrs.Factory(dict)

    def __call__(self, proxy: Proxy, seen: Seen) -> None:
        place = seen.place
        if place.series.stack or place.frames < FEWEST_FRAMES:
            return
        row, column = place.at(seen.frame)
        movement = self._movements.setdefault((seen.reader, place.level.name), _Movement(row, column))
        down, right = movement.step(row, column, 3 * self.ring + self.further)
        reach = [self.ring + self.further * (sign > 0) for sign in (-down, down, -right, right)]
        if any(map(proxy.missing, self._edge(place, row, column, reach))):
            proxy.load(place.square(row, column, *reach), DISPLAY)

    def _edge(self, place: Place, row: int, column: int, reach: list[int]) -> Iterator[Item]:
        up, down, left, right = reach
        level = place.level
        for one in (max(0, row - up), row, min(level.rows - 1, row + down)):
            for other in (max(0, column - left), column, min(level.columns - 1, column + right)):
                yield level.name, one * level.columns + other + 1


@attrs.define(eq=False)
class SlicesAhead:
    """After a slice: *ahead* slices in the direction of travel, nearest first, then *behind* on the other side."""

    ahead: int = 12
    behind: int = 4
    _last: dict[tuple[str, str], tuple[int, int]] = attrs.Factory(dict)

    def __call__(self, proxy: Proxy, seen: Seen) -> None:
        if not seen.place.series.stack:
            return
        levels, index = seen.place.series.levels, seen.place.index
        key = (seen.reader, levels[0].name)
        before, direction = self._last.get(key, (index, 1))
        if index != before:
            direction = 1 if index > before else -1
        self._last[key] = index, direction
        near = [index + direction * step for step in range(1, self.ahead + 1)]
        near += [index - direction * step for step in range(1, self.behind + 1)]
        proxy.load(((levels[one].name, 1) for one in near if 0 <= one < len(levels)), DISPLAY)
