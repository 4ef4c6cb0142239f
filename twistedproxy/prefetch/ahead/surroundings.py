"""Which frames lie around those that a caller looks at: ahead in the direction of movement, and at the same place of another level.
Pure.

Distances are in frames along each side of the grid. The values were found with ``tests/benchmarks/reader_model``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.prefetch.regions import FrameGrid, Tiling, tiling_of

RING = 3
"""Frames that are loaded around one that a caller looks at."""

FURTHER = 3
"""Frames more in the direction of movement."""

RUN, RUN_FURTHER = 8, 24
"""The same of frames that follow each other: a loop, a stack."""

MARGIN = 6
"""Frames of a neighbouring level around the middle of what a caller looks at: a screen of tiles of 256 pixels."""

LAG = 16
"""The mean of so many of the last frames is where a caller looks: it lags behind one who moves, which tells the direction."""

MOVED = 2
"""Frames by which one lies beside the mean where the caller moves in that direction."""


class Reach(NamedTuple):
    """So many frames to each side."""

    up: int
    down: int
    left: int
    right: int


@attrs.define
class Gaze:
    """Where a caller looks in one instance: *row* and *column*, from 0, of *plane*. *ring*, *further*: frames to load around it, and
    more of them in the direction of movement."""

    plane: int
    row: float
    column: float
    ring: int = RING
    further: int = FURTHER

    @classmethod
    def at(cls, grid: FrameGrid, number: int) -> Gaze:
        """Of a caller who looks at frame *number* first."""
        return cls(*grid.place(number), *((RING, FURTHER) if grid.tiling is Tiling.FULL else (RUN, RUN_FURTHER)))

    def move(self, plane: int, row: int, column: int) -> Reach:
        """The caller looks at one more frame: how far around it to load."""
        down, right = row - self.row, column - self.column
        if plane != self.plane or max(abs(down), abs(right)) > 3 * self.ring + self.further:
            self.plane, self.row, self.column = plane, row, column
            return Reach(self.ring, self.ring, self.ring, self.ring)
        self.row += down / LAG
        self.column += right / LAG
        sides = (-down, down, -right, right)
        return Reach(*[self.ring + self.further * (distance >= MOVED) for distance in sides])


def edge(grid: FrameGrid, number: int, reach: Reach) -> Iterator[int]:
    """The frame, and the eight at the corners and the middles of the sides of what lies within *reach* of it."""
    plane, row, column = grid.place(number)
    first = plane * grid.rows * grid.columns + 1
    for one in (max(0, row - reach.up), row, min(grid.rows - 1, row + reach.down)):
        for other in (max(0, column - reach.left), column, min(grid.columns - 1, column + reach.right)):
            if (at := first + one * grid.columns + other) <= grid.frames:
                yield at


def around(grid: FrameGrid, plane: int, row: float, column: float, reach: Reach) -> list[int]:
    """The frames within *reach* of a place, nearest first."""
    top, left = int(row), int(column)
    rows = range(max(0, top - reach.up), min(grid.rows, top + reach.down + 1))
    columns = range(max(0, left - reach.left), min(grid.columns, left + reach.right + 1))
    first = plane * grid.rows * grid.columns + 1
    found = [
        (max(abs(one - row), abs(other - column)), number)
        for one in rows
        for other in columns
        if (number := first + one * grid.columns + other) <= grid.frames
    ]
    return [number for _, number in sorted(found)]


def same_place(gaze: Gaze, metadata: InstanceMetadata, other: InstanceMetadata) -> tuple[float, float]:
    """The row and column of another level's grid where the middle of what a caller looks at lies: in frames, from 0."""
    row = (gaze.row + 0.5) * metadata.rows / (metadata.total_rows or 1) * (other.total_rows or 0) / other.rows
    column = (gaze.column + 0.5) * metadata.columns / (metadata.total_columns or 1)
    return row, column * (other.total_columns or 0) / other.columns


def ordered(metadata: InstanceMetadata) -> Optional[FrameGrid]:
    """The grid of an instance whose frames lie in an order that is known: they tile a plane row by row, or follow each other. None of
    others."""
    tiling = tiling_of(metadata)
    if metadata.frames < (1 if tiling is Tiling.FULL else 2) or tiling is Tiling.SPARSE:
        return None
    if metadata.rows < 1 or metadata.columns < 1:
        return None
    return FrameGrid.of(metadata)


def tiled_fully(metadata: InstanceMetadata) -> Optional[FrameGrid]:
    """The grid of an instance whose frames tile a plane row by row; None of others."""
    grid = ordered(metadata)
    return grid if grid is not None and grid.tiling is Tiling.FULL else None
