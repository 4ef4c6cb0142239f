"""Where the pixels of a smaller or cut picture come from. Pure: no pixels here.

Rules kept here:
- a downsampled instance has max(1, int(size / factor)) pixels a side, in frames of the stored frames' size, as
  TILED_FULL (DICOM PS3.3 section C.7.6.17.3); its planes follow each other as the stored ones do;
- its pixel t covers the source from t * size / new size on: the whole matrix, not a remainder less, so that PixelSpacing
  times matrix stays what it was;
- nothing outside the total pixel matrix is ever looked at: what stored edge frames hold there is the scanner's filling;
  a virtual edge frame is filled by repeating the last row and column, which adds no edge to compress;
- frames of an instance that is not tiled are resized each by itself;
- a viewport's region is cut first, then made as large as fits the viewport, aspect kept (PS3.18 section 8.3.5.1.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.imaging.parameters import Viewport

TILED_SPARSE = "TILED_SPARSE"

SUPPORT = {"nearest": 0.0, "area": 0.5, "linear": 1.0, "cubic": 2.0, "lanczos4": 3.0}
"""How far a filter reaches from a target pixel's centre, in target pixels (source pixels where the picture grows)."""

LEFT_TO_FILTER = 2.0
"""Below this step, what a decoder averaged before shows in the picture."""

_EPSILON = 1e-9
"""Pixels: what rounding may add to a sum of exact sizes."""


class CannotRender(ValueError):
    """The picture asked for cannot be made of this instance, or not within the limits; `str()` says why."""


class NoSuchVirtualFrame(LookupError):
    """A frame number is past the frames that the downsampled instance has."""


@attrs.frozen
class Axis:
    """One direction of a picture: target pixel t covers the source from *start* + t * *step*, a *step* long.

    *count*: target pixels. *source*: source pixels that there are, from 0. *flip*: the target goes backwards.
    """

    source: int
    count: int
    start: float = 0.0
    step: float = 1.0
    flip: bool = False

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
        low = min(max(math.floor(first + _EPSILON), 0), self.source - 1)
        return low, max(min(math.ceil(last - _EPSILON), self.source), low + 1)

    def scaled(self, scale: int) -> Axis:
        """The same axis over a source that is *scale* times smaller."""
        return attrs.evolve(
            self, source=-(-self.source // scale), start=self.start / scale, step=self.step / scale
        )  # fmt: skip


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
    *grid_columns*, *first_number*: how the frames of the source are numbered. *frames*: NumberOfFrames.
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
    def pixels(self) -> int:
        """Pixels of the finished picture."""
        return self.rows * self.columns

    @property
    def is_whole_frame(self) -> bool:
        """Whether the picture is one stored frame as it is."""
        return all(
            axis.is_copy and not axis.flip and axis.start == 0 and axis.count == axis.source == size
            for axis, size in ((self.vertical, self.frame_rows), (self.horizontal, self.frame_columns))
        ) and (self.rows, self.columns) == (self.frame_rows, self.frame_columns)

    def _runs(self, interpolation: str) -> tuple[range, range]:
        low, high = self.vertical.reach(interpolation)
        left, right = self.horizontal.reach(interpolation)
        return (
            range(low // self.frame_rows, -(-high // self.frame_rows)),
            range(left // self.frame_columns, -(-right // self.frame_columns)),
        )

    def source_count(self, interpolation: str) -> int:
        """How many stored frames are needed."""
        rows, columns = self._runs(interpolation)
        return len(rows) * len(columns)

    def tiles(self, interpolation: str) -> Iterator[Tile]:
        """The stored frames that are needed, row by row. Those that the instance lacks are left out."""
        rows, columns = self._runs(interpolation)
        for row in rows:
            for column in columns:
                number = self.first_number + row * self.grid_columns + column
                if number <= self.frames:
                    yield Tile(number, row * self.frame_rows, column * self.frame_columns)

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
    step = axis.step * (size / count)
    return Axis(axis.source, count, axis.start + start * axis.step, step, flip)


@attrs.frozen
class Downsampled:
    """An instance as it looks at *factor*: the stored one itself at 1.

    *rows*, *columns*: of one frame. *total_rows*, *total_columns*: of the picture that the frames tile; of one frame
    where it is not tiled.
    """

    metadata: InstanceMetadata
    factor: float
    is_tiled: bool
    rows: int
    columns: int
    total_rows: int
    total_columns: int
    planes: int

    @classmethod
    def of(cls, metadata: InstanceMetadata, factor: float = 1.0) -> Downsampled:
        """Raises `CannotRender` where the metadata say no size, or the frames lie in no order that can be relied on."""
        if metadata.rows < 1 or metadata.columns < 1:
            raise CannotRender("the metadata do not say how large a frame is")
        if not lies_in_order(metadata):
            if factor > 1.0 and metadata.organization == TILED_SPARSE:
                raise CannotRender("the frames of a TILED_SPARSE instance lie in no order: they cannot be downsampled")
            rows, columns = shrunk(metadata.rows, factor), shrunk(metadata.columns, factor)
            return cls(metadata, factor, False, rows, columns, rows, columns, metadata.frames)
        assert metadata.total_rows is not None and metadata.total_columns is not None
        grid_rows, grid_columns = metadata.grid
        return cls(
            metadata,
            factor,
            True,
            metadata.rows,
            metadata.columns,
            shrunk(metadata.total_rows, factor),
            shrunk(metadata.total_columns, factor),
            max(1, metadata.frames // (grid_rows * grid_columns)),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of frames in one plane."""
        return -(-self.total_rows // self.rows), -(-self.total_columns // self.columns)

    @property
    def frames(self) -> int:
        """NumberOfFrames."""
        if self.factor == 1.0:
            return self.metadata.frames
        rows, columns = self.grid
        return rows * columns * self.planes

    def frame(self, number: int) -> Cut:
        """Frame *number*, from 1. Raises `NoSuchVirtualFrame`."""
        if not 1 <= number <= self.frames:
            raise NoSuchVirtualFrame(
                f"frame {number} was asked for; at downsample={self.factor:g} the instance has frames 1 to {self.frames}"
            )
        if not self.is_tiled or self.factor == 1.0:
            return self._by_itself(number)
        rows, columns = self.grid
        plane, within = divmod(number - 1, rows * columns)
        row, column = divmod(within, columns)
        top, left = row * self.rows, column * self.columns
        return self._of_plane(
            plane, top, left, min(self.rows, self.total_rows - top), min(self.columns, self.total_columns - left)
        )  # fmt: skip

    def whole(self, plane: int = 0) -> Cut:
        """All of one plane as one picture; of an instance that is not tiled, one frame."""
        if not self.is_tiled:
            return self._by_itself(plane + 1)
        cut = self._of_plane(plane, 0, 0, self.total_rows, self.total_columns)
        return attrs.evolve(cut, rows=self.total_rows, columns=self.total_columns)

    def _by_itself(self, number: int) -> Cut:
        """A stored frame, pixel for pixel, or resized."""
        metadata = self.metadata
        vertical = Axis(metadata.rows, self.rows, 0.0, metadata.rows / self.rows)
        horizontal = Axis(metadata.columns, self.columns, 0.0, metadata.columns / self.columns)
        return Cut(
            vertical, horizontal, metadata.rows, metadata.columns, 1, number, metadata.frames, self.rows, self.columns
        )  # fmt: skip

    def _of_plane(self, plane: int, top: int, left: int, rows: int, columns: int) -> Cut:
        metadata = self.metadata
        assert metadata.total_rows is not None and metadata.total_columns is not None
        grid_rows, grid_columns = metadata.grid
        down, across = metadata.total_rows / self.total_rows, metadata.total_columns / self.total_columns
        return Cut(
            Axis(metadata.total_rows, rows, _exact(top, metadata.total_rows, self.total_rows), down),
            Axis(metadata.total_columns, columns, _exact(left, metadata.total_columns, self.total_columns), across),
            metadata.rows,
            metadata.columns,
            grid_columns,
            plane * grid_rows * grid_columns + 1,
            metadata.frames,
            self.rows,
            self.columns,
        )


def _exact(at: int, source: int, target: int) -> float:
    """Where target pixel *at* begins: multiplied first, so that whole pixels come out whole."""
    return at * source / target


def shrunk(size: int, factor: float) -> int:
    """Pixels of a side at *factor*."""
    return max(1, int(size / factor))


def lies_in_order(metadata: InstanceMetadata) -> bool:
    """Whether frames tile a total pixel matrix row by row. Older slides say no organization; theirs are taken to."""
    organization = metadata.organization or ""
    return metadata.is_tiled and organization != TILED_SPARSE and not organization.startswith("3D")


def decoder_scale(cut: Cut, any_step: bool = False, largest: int = 8) -> int:
    """By how much a decoder that averages by itself may shrink each frame; 1 where it should not.

    The largest power of two that divides the frames' sizes and both ways of shrinking: what is left is a whole step,
    but for what int() cut off the last pixel. *any_step*: or leaves at least `LEFT_TO_FILTER` for the filter, where
    the picture is to be looked at, not put together with others.
    """
    scale = largest
    while scale > 1:
        if all(
            size % scale == 0 and (_is_multiple(axis, scale) or (any_step and axis.step / scale >= LEFT_TO_FILTER))
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
