"""What the model's store holds: pyramids and stacks, of frames that are all of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from tests.benchmarks.readers import Item
from tests.benchmarks.viewing import Level

FRAME_BYTES = 8_800  # a JPEG tile of 256 x 256, as of `tests.slides`
SLICE_BYTES = 524_288  # 512 x 512, 16 bits

SLIDES = {"tiny": (40, 4), "small": (123, 4), "halved": (110, 2), "large": (400, 4)}
"""Tiles along each side of the finest level, and how many times as wide it is as the next: 1,700 frames (15 MB, for many readers), 16,150
(142 MB), the same in levels that halve, and 170,700 (1.5 GB)."""

SMALLEST = 8  # tiles along a side

SLICES = 200


@attrs.frozen
class Series:
    """*levels*: of a pyramid, the finest first; of a stack, its slices in order. Sizes in bytes."""

    levels: tuple[Level, ...]
    frame_bytes: int
    stack: bool = False

    @property
    def size(self) -> int:
        return sum(level.columns * level.rows for level in self.levels) * self.frame_bytes


def pyramid(name: str, side: int, step: int = 4, frame_bytes: int = FRAME_BYTES) -> Series:
    """A square slide of *side* tiles a side, each level *step* times as wide as the next, down to one window's height."""
    sides = [side]
    while sides[-1] > SMALLEST:
        sides.append(-(-sides[-1] // step))
    levels = tuple(Level(f"{name}:{step**power}", step**power, along, along) for power, along in enumerate(sides))
    return Series(levels, frame_bytes)


def stack(name: str, slices: int = SLICES, frame_bytes: int = SLICE_BYTES) -> Series:
    """Single-frame instances, one after the other."""
    return Series(tuple(Level(f"{name}:{place}", 1, 1, 1) for place in range(slices)), frame_bytes, stack=True)


@attrs.frozen
class Place:
    """An instance within its series: the level or slice number *index*."""

    series: Series
    index: int

    @property
    def level(self) -> Level:
        return self.series.levels[self.index]

    @property
    def frames(self) -> int:
        return self.level.columns * self.level.rows

    def at(self, frame: int) -> tuple[int, int]:
        """Row and column of a frame, from 0."""
        return divmod(frame - 1, self.level.columns)

    def square(self, row: float, column: float, up: int, down: int, left: int, right: int) -> Iterator[Item]:
        """The frames so far around a place, nearest first; none beyond the edges."""
        level, middle_row, middle_column = self.level, int(row), int(column)
        rows = range(max(0, middle_row - up), min(level.rows, middle_row + down + 1))
        columns = range(max(0, middle_column - left), min(level.columns, middle_column + right + 1))
        around = [(max(abs(one - row), abs(other - column)), one, other) for one in rows for other in columns]
        for _, one, other in sorted(around):
            yield level.name, one * level.columns + other + 1


def places(series: Iterable[Series]) -> dict[str, Place]:
    """Instances by name."""
    return {level.name: Place(one, index) for one in series for index, level in enumerate(one.levels)}
