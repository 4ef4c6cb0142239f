"""How the frames of an instance lie, and which of them a block load and a display load take. Pure: a request's place in its
grid in, regions out.

Rules:
- frame numbers start at 1; a region names none twice;
- a region is kept as one run of numbers for each row of frames, never as a list of frames;
- a load's region holds the request that it was made for, stays in that request's plane, and ends with the instance;
- a block and the display load beside it have no frame in common, and together are the block.

Frame n of a TILED_FULL instance stands, within its plane, at row (n-1) // columns and column
(n-1) % columns of the frame grid; planes (focal planes, optical paths) follow each other
(DICOM PS3.3 section C.7.6.17.3).
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Iterator

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata

Runs = tuple[range, ...]


class Tiling(enum.Enum):
    """How the frames of an instance lie."""

    FULL = "full"
    """They tile a plane, row by row."""

    SPARSE = "sparse"
    """They tile a plane in no order that can be relied on."""

    NONE = "none"
    """They follow each other: a loop, a stack."""


@attrs.frozen
class Region:
    """Frames of one instance: runs of numbers, ascending, disjoint, none empty, each within one row of frames."""

    runs: Runs = ()

    def __iter__(self) -> Iterator[int]:
        return numbers(self.runs)

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def __contains__(self, number: object) -> bool:
        return any(number in run for run in self.runs)

    def without(self, other: Region) -> Region:
        """This region less the frames of *other*, still row by row."""
        starts = [run.start for run in other.runs]
        left: list[range] = []
        for run in self.runs:
            at = run.start
            first = max(0, bisect_right(starts, at) - 1)
            for cut in other.runs[first : bisect_right(starts, run.stop - 1)]:
                left.append(range(at, cut.start))
                at = max(at, cut.stop)
            left.append(range(at, run.stop))
        return Region(tuple(run for run in left if run))


def numbers(runs: Iterable[range]) -> Iterator[int]:
    """Each frame number of *runs*, in their order."""
    for run in runs:
        yield from run


@attrs.frozen
class FrameGrid:
    """The frames of one instance: *rows* x *columns* of them in each plane, each *frame_rows* x *frame_columns* pixels.

    *frames* is NumberOfFrames, which may be less or more than one plane holds. An instance that is
    not tiled has a grid of one row.
    """

    rows: int = attrs.field(validator=attrs.validators.ge(1))
    columns: int = attrs.field(validator=attrs.validators.ge(1))
    frame_rows: int = attrs.field(validator=attrs.validators.ge(1))
    frame_columns: int = attrs.field(validator=attrs.validators.ge(1))
    frames: int = attrs.field(validator=attrs.validators.ge(1))
    tiling: Tiling = Tiling.FULL

    @classmethod
    def of(cls, metadata: InstanceMetadata) -> FrameGrid:
        """The grid of an instance. Raises ValueError where the metadata says no size of a frame, or no frames."""
        tiling = tiling_of(metadata)
        rows, columns = (1, metadata.frames) if tiling is Tiling.NONE else metadata.grid
        return cls(rows, columns, metadata.rows, metadata.columns, metadata.frames, tiling)

    def height(self, pixels: int) -> int:
        """Rows of frames that *pixels* reach over, however many there are."""
        return _frames_along(pixels, self.frame_rows)

    def width(self, pixels: int) -> int:
        """Columns of frames that *pixels* reach over, however many there are."""
        return _frames_along(pixels, self.frame_columns)

    def held(self, side: int) -> int:
        """Frames that a square of *side* pixels holds, however many there are."""
        return self.height(side) * self.width(side)

    def is_within(self, side: int) -> bool:
        """Whether a square of *side* pixels would hold as many frames as there are: its load would fetch as much."""
        return self.frames <= self.held(side)

    def place(self, number: int) -> tuple[int, int, int]:
        """Plane, row and column of a frame, each from 0."""
        plane, within = divmod(number - 1, self.rows * self.columns)
        return plane, *divmod(within, self.columns)


def tiling_of(metadata: InstanceMetadata) -> Tiling:
    """How the frames lie, by DimensionOrganizationType (PS3.3 section C.7.6.17) and the total pixel matrix.

    Older slides say no organization; theirs are taken to be full: a wrong guess costs only frames loaded in vain.
    """
    organization = metadata.organization or ""
    if organization == "TILED_SPARSE":
        return Tiling.SPARSE
    # "3D" and "3D_TEMPORAL" are stacks, whatever else the metadata says.
    if organization.startswith("3D") or not metadata.is_tiled:
        return Tiling.NONE
    return Tiling.FULL


def _frames_along(pixels: int, frame_pixels: int) -> int:
    return max(0, -(-pixels // frame_pixels))


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
