"""Which source pixels a picture shows, and which stored frames hold them. Pure: no pixels here.

Rules:
- nothing outside the total pixel matrix is ever looked at: what stored edge frames hold there is the scanner's filling;
- a viewport's region is cut first, then made as large as fits the viewport, aspect kept (PS3.18 section 8.3.5.1.3): no
  filter looks beyond the region.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Optional

import attrs

from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.parameters import Viewport

SUPPORT = {"nearest": 0.0, "area": 0.5, "linear": 1.0, "cubic": 2.0, "lanczos4": 3.0}
"""How far a filter reaches from a target pixel's centre, in target pixels (source pixels where the picture grows)."""

LEFT_TO_FILTER = 2.0
"""Below this step, what a decoder averaged before shows in the picture."""

_EPSILON = 1e-9
"""Pixels: what rounding may add to a sum of exact sizes."""

_TOUCHED = 1e-6
"""Pixels: a region that reaches less far into one does not show it."""


@attrs.frozen
class Axis:
    """One direction of a picture: target pixel t covers the source from *start* + t * *step*, a *step* long.

    *count*: target pixels. *source*: source pixels that there are, from 0. *flip*: the target goes backwards. *low*, *high*:
    the first source pixel that may be looked at, and the one behind the last (None: all that there are).
    """

    source: int
    count: int
    start: float = 0.0
    step: float = 1.0
    flip: bool = False
    low: int = 0
    high: Optional[int] = None

    @property
    def stop(self) -> int:
        """The source pixel behind the last that may be looked at."""
        return self.source if self.high is None else self.high

    @property
    def is_copy(self) -> bool:
        """Whether each target pixel is one source pixel."""
        return self.step == 1.0 and self.start == int(self.start)

    def reach(self, interpolation: str) -> tuple[int, int]:
        """The source pixels that the filter looks at: from the first to before the second."""
        if self.is_copy:
            first, last = self.start, self.start + self.count
        elif interpolation in ("area", "nearest") and self.step >= 1.0:
            first, last = self.start, self.start + self.count * self.step
        else:
            support = max(SUPPORT[interpolation], 1.0) * max(self.step, 1.0)
            first = self.start + self.step / 2 - support - 1
            last = self.start + (self.count - 0.5) * self.step + support + 1
        low = min(max(math.floor(first + _EPSILON), self.low), self.stop - 1)
        return low, max(min(math.ceil(last - _EPSILON), self.stop), low + 1)

    def scaled(self, scale: int) -> Axis:
        """The same axis over a source that is *scale* times smaller."""
        return attrs.evolve(
            self,
            source=-(-self.source // scale),
            start=self.start / scale,
            step=self.step / scale,
            low=self.low // scale,
            high=-(-self.stop // scale),
        )

    def may_scale(self, scale: int) -> bool:
        """Whether no average over *scale* pixels mixes some that may be looked at with others."""
        return self.low % scale == 0 and (self.stop % scale == 0 or self.stop == self.source)


@attrs.frozen
class Tile:
    """A stored frame and the place of its first pixel in the source."""

    number: int
    top: int
    left: int


@attrs.frozen
class Cut:
    """One picture to be made: its two axes over a source that is tiled by frames of *frame_rows* x *frame_columns*.

    *rows*, *columns*: of the finished picture, which repeats its last pixels where the axes end before.
    *grid_columns*, *first_number*: how the frames of the source are numbered; the first is below 1 where the instance is a
    later part of a concatenation. *frames*: NumberOfFrames.
    """

    vertical: Axis
    horizontal: Axis
    frame_rows: int
    frame_columns: int
    grid_columns: int
    first_number: int
    frames: int
    rows: int
    columns: int

    @property
    def is_whole_frame(self) -> bool:
        """Whether the picture is one stored frame as it is."""
        return all(
            axis.is_copy and not axis.flip and axis.start == 0 and axis.count == axis.source == size
            for axis, size in ((self.vertical, self.frame_rows), (self.horizontal, self.frame_columns))
        ) and (self.rows, self.columns) == (self.frame_rows, self.frame_columns)

    def runs(self, interpolation: str) -> tuple[range, range]:
        """The rows and the columns of the grid whose frames are needed."""
        low, high = self.vertical.reach(interpolation)
        left, right = self.horizontal.reach(interpolation)
        return (
            range(low // self.frame_rows, -(-high // self.frame_rows)),
            range(left // self.frame_columns, -(-right // self.frame_columns)),
        )

    def source_count(self, interpolation: str) -> int:
        """How many stored frames are needed, at most."""
        rows, columns = self.runs(interpolation)
        return min(len(rows) * len(columns), self.frames)

    def tiles(self, interpolation: str) -> Iterator[Tile]:
        """The stored frames that are needed, row by row. Those that the instance lacks are left out."""
        rows, columns = self.runs(interpolation)
        # only the rows of the grid that hold frames: a matrix may have billions of others
        start = max(rows.start, -((self.first_number + columns.stop - 2) // self.grid_columns))
        stop = min(rows.stop, (self.frames - self.first_number - columns.start) // self.grid_columns + 1)
        for row in range(start, stop):
            first = self.first_number + row * self.grid_columns
            for column in range(max(columns.start, 1 - first), min(columns.stop, self.frames + 1 - first)):
                yield Tile(first + column, row * self.frame_rows, column * self.frame_columns)

    def shown(self, viewport: Optional[Viewport]) -> Cut:
        """What of this picture a viewport shows. Raises `CannotRender` for a region outside of it."""
        if viewport is None:
            return self
        width, height = _extent(viewport.x, viewport.region_width, self.columns), _extent(
            viewport.y, viewport.region_height, self.rows
        )  # fmt: skip
        if width <= 0 or height <= 0:
            raise CannotRender(
                f"the viewport's region begins at {viewport.x:g},{viewport.y:g}; the picture has "
                f"{self.columns} x {self.rows} pixels"
            )
        scale = min(viewport.width / width, viewport.height / height)
        if not viewport.enlarge:
            scale = min(scale, 1.0)
        columns = min(viewport.width, max(1, round(width * scale)))
        rows = min(viewport.height, max(1, round(height * scale)))
        return attrs.evolve(
            self,
            horizontal=_zoomed(self.horizontal, viewport.x, width, columns, (viewport.region_width or 1) < 0),
            vertical=_zoomed(self.vertical, viewport.y, height, rows, (viewport.region_height or 1) < 0),
            rows=rows,
            columns=columns,
        )


def _extent(start: float, size: Optional[float], whole: int) -> float:
    """How much of a region is inside the picture."""
    left = whole - start
    return min(abs(size), left) if size is not None else left


def _zoomed(axis: Axis, start: float, size: float, count: int, flip: bool) -> Axis:
    begin, length = axis.start + start * axis.step, axis.step * size
    low = min(max(math.floor(begin + _TOUCHED), 0), axis.source - 1)
    high = max(min(math.ceil(begin + length - _TOUCHED), axis.source), low + 1)
    return Axis(axis.source, count, begin, axis.step * (size / count), flip, low, high)


def decoder_scale(cut: Cut, any_step: bool = False, averages: bool = True, largest: int = 8) -> int:
    """By how much a decoder that averages by itself may shrink each frame; 1 where it should not.

    The largest power of two that divides the sizes of frames that must meet, and both ways of shrinking: what is left is a
    whole step, but for what int() cut off the last pixel. *any_step*: or leaves at least `LEFT_TO_FILTER` for the filter,
    where the picture is to be looked at, not put together with others. *averages*: whether what the decoder does is that;
    of what only comes close to it, a wavelet, that much is left to the filter always.
    """
    scale = largest
    while scale > 1:
        if all(
            (size % scale == 0 or axis.source <= size)
            and axis.may_scale(scale)
            and (_is_multiple(axis, scale) or any_step)
            and (axis.step / scale >= LEFT_TO_FILTER or (averages and _is_multiple(axis, scale)))
            for axis, size in ((cut.vertical, cut.frame_rows), (cut.horizontal, cut.frame_columns))
        ):
            return scale
        scale //= 2
    return 1


def _is_multiple(axis: Axis, scale: int) -> bool:
    """Whether shrinking by *scale* leaves a whole step, but for what int() cut off the last pixel of the whole."""
    rest = axis.step / scale
    whole = round(rest)
    return whole >= 1 and abs(rest - whole) * axis.source / axis.step < whole + _EPSILON
