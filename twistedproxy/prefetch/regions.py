"""Which frames a block load and a display load take. Pure: a request's place in its grid in, regions out.

Rules:
- a region holds the request that it was made for, stays in that request's plane, and ends with the instance;
- a block and the display load beside it have no frame in common, and together are the block.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from twistedproxy.prefetch.grid import FrameGrid, Region, Runs, Tiling

NEAREST_FRAMES = 64
"""The most frames of a load where an origin serves one frame a request, each about as dear as the whole instance."""


@attrs.frozen
class Screen:
    """What a viewer is taken to look at: a square of *pixels* (display-pixels) around *request*.

    *request* is the smallest frame number asked for; what is seen starts there and is half a square high and wide.
    """

    grid: FrameGrid
    request: int
    pixels: int

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.request <= self.grid.frames:
            raise ValueError(f"frame {self.request} of an instance of {self.grid.frames} frames")

    def square(self, side: int) -> Region:
        """The frames of a square of *side* pixels around the request, row by row. None where frames lie in no order."""
        grid = self.grid
        if grid.tiling is Tiling.SPARSE:
            return Region()
        if grid.tiling is Tiling.NONE:
            return self._run(grid.held(side))
        plane, row, column = grid.place(self.request)
        half = self.pixels // 2
        height, width = grid.height(side), grid.width(side)
        rows = _span(row, height, max(0, height - grid.height(half)) // 2, grid.rows)
        columns = _span(column, width, max(0, width - grid.width(half)) // 2, grid.columns)
        return self._rows(plane, rows, columns)

    def display(self) -> Region:
        """The frames of the screen's own square."""
        return self.square(self.pixels)

    def nearest(self, region: Region, count: int) -> Region:
        """At most *count* frames of *region*: the narrowest rings around the request, in a ring the lowest numbers."""
        if count <= 0 or len(region) <= count:
            return region if count > 0 else Region()
        # Windows that double, so that a region of half a million frames is never looked at frame by frame.
        radius, reach = 1, max(self.grid.rows, self.grid.columns)
        while len(near := self._window(region, radius)) < count and radius < reach:
            radius *= 2
        chosen = sorted(sorted(near, key=self._ring)[:count])
        return self._by_rows(chosen)

    def viewport_first(self, region: Region) -> Runs:
        """The runs of *region* in the order to load them: the rows that are seen, then the others, nearest first.

        Without rows: from the request on, then what is before it.
        """
        if self.grid.tiling is not Tiling.FULL:
            after = Region((range(self.request, self.grid.frames + 1),))
            before = region.without(after)
            return region.without(before).runs + before.runs
        _, top, _ = self.grid.place(self.request)
        bottom = top + max(1, self.grid.height(self.pixels // 2)) - 1

        def distance(run: range) -> int:
            _, row, _ = self.grid.place(run.start)
            return max(top - row, row - bottom, 0)

        return tuple(sorted(region.runs, key=distance))

    def _run(self, length: int) -> Region:
        """*length* frames, a quarter of them before the request; moved to where there are frames, as squares are."""
        span = _span(self.request - 1, length, length // 4, self.grid.frames)
        return Region((range(span.start + 1, span.stop + 1),) if span else ())

    def _rows(self, plane: int, rows: range, columns: range) -> Region:
        first = plane * self.grid.rows * self.grid.columns + 1
        end = self.grid.frames + 1
        starts = (first + row * self.grid.columns for row in rows)
        runs = (range(start + columns.start, min(start + columns.stop, end)) for start in starts)
        return Region(tuple(run for run in runs if run))

    def _window(self, region: Region, radius: int) -> Region:
        """The frames of *region* (of the request's plane) that are at most *radius* rows and columns away."""
        plane, row, column = self.grid.place(self.request)
        rows = range(max(0, row - radius), min(row + radius + 1, self.grid.rows))
        columns = range(max(0, column - radius), min(column + radius + 1, self.grid.columns))
        return region.without(region.without(self._rows(plane, rows, columns)))

    def _ring(self, number: int) -> int:
        _, row, column = self.grid.place(self.request)
        _, other_row, other_column = self.grid.place(number)
        return max(abs(row - other_row), abs(column - other_column))

    def _by_rows(self, ascending: Iterable[int]) -> Region:
        runs: list[range] = []
        for number in ascending:
            if runs and runs[-1].stop == number and (number - 1) % self.grid.columns:
                runs[-1] = range(runs[-1].start, number + 1)
            else:
                runs.append(range(number, number + 1))
        return Region(tuple(runs))


def display_load(screen: Screen, one_frame_a_request: bool = False) -> Region:
    """The frames of a display load."""
    region = screen.display()
    return screen.nearest(region, NEAREST_FRAMES) if one_frame_a_request else region


def block_load(screen: Screen, side: int, display: Region, one_frame_a_request: bool = False) -> tuple[Region, Region]:
    """The frames of a block of *side* pixels beside *display*, and *display*: empty where it is as large as the block.

    The screen comes first: of a block of the nearest frames it is kept whole.
    """
    block = screen.square(side)
    size = min(len(block), NEAREST_FRAMES) if one_frame_a_request else len(block)
    if len(display) >= size:
        display = Region()
    rest = block.without(display)
    if one_frame_a_request:
        rest = screen.nearest(rest, size - len(display))
    return rest, display


def _span(place: int, length: int, before: int, limit: int) -> range:
    """*length* of the numbers 0 to *limit* - 1 from *before* before *place*, moved back at the end, not past 0."""
    start = max(0, min(place - before, limit - length))
    return range(start, min(start + length, limit))
