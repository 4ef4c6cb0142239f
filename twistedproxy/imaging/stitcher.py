"""A picture put together frame by frame, in memory bounded by the picture and one row of frames.

Frames come row by row, each decoded to 8 bits. Three ways, the cheapest that fits:
- each target pixel is one source pixel (no resizing, ``nearest``): copied;
- each target pixel is a block of whole source pixels of one frame (``area``, whole steps): averaged frame by frame;
- else each frame adds its part to every target pixel that it counts in, and a row of the picture is finished once no
  further row of frames counts in it. There are no seams: the weights are those of the whole source.

The weights of the filters: how much each source pixel counts in each target pixel.

They depend on a pixel's place in the whole source alone, so a picture may be put together frame by frame, in any cut,
and comes out as if the filter had run over the whole. All filters but ``nearest`` widen with the step, so that nothing
is skipped when a picture shrinks; ``area`` counts each pixel by how much of it is covered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import attrs
import numpy
from PIL import Image

from twistedproxy.imaging.geometry import SUPPORT, Axis, Cut

Floats = numpy.ndarray[Any, numpy.dtype[numpy.float32]]
Integers = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
BLOCK = 16
"""Target pixels that are made by one product."""

_Kernel = Callable[[Any], Any]


def _triangle(x: Any) -> Any:
    return numpy.maximum(1.0 - numpy.abs(x), 0.0)


def _cubic(x: Any) -> Any:
    """Keys' cubic convolution with a = -0.5, as Pillow has it."""
    x = numpy.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return numpy.where(x < 1.0, inner, numpy.where(x < 2.0, outer, 0.0))


def _lanczos(x: Any) -> Any:
    """Three lobes, as Pillow has it. OpenCV's LANCZOS4, after which the parameter is named, has four, and does not
    widen: made smaller, its pictures flicker."""
    return numpy.where(numpy.abs(x) < 3.0, numpy.sinc(x) * numpy.sinc(x / 3.0), 0.0)


_KERNELS: dict[str, _Kernel] = {"linear": _triangle, "cubic": _cubic, "lanczos4": _lanczos}


@attrs.frozen(eq=False)
class Weights:
    """For each target pixel, the first source pixel that counts and how much that and those after it do.

    *first*: (count,). *table*: (count, taps), each row's sum 1.
    """

    first: Integers
    table: Floats

    def targets(self, low: int, high: int) -> tuple[int, int]:
        """The target pixels in which source pixels *low* to before *high* count: from the first to before the second."""
        start = int(numpy.searchsorted(self.first + self.table.shape[1], low, side="right"))
        return start, max(start, int(numpy.searchsorted(self.first, high, side="left")))

    def between(self, low: int, high: int) -> Part:
        """What source pixels *low* to before *high* count for."""
        start, stop = self.targets(low, high)
        matrix = numpy.zeros((stop - start, high - low), numpy.float32)
        columns = self.first[start:stop, None] + numpy.arange(self.table.shape[1]) - low
        inside = (columns >= 0) & (columns < high - low)
        rows = numpy.broadcast_to(numpy.arange(stop - start)[:, None], columns.shape)
        matrix[rows[inside], columns[inside]] = self.table[start:stop][inside]
        blocks = []
        for first in range(0, stop - start, BLOCK):
            last = min(first + BLOCK, stop - start)
            counting = numpy.flatnonzero(matrix[first:last].any(axis=0))
            if counting.size:
                left, right = int(counting[0]), int(counting[-1]) + 1
                blocks.append(Block(first, last, left, right, numpy.ascontiguousarray(matrix[first:last, left:right])))
        return Part(start, stop - start, tuple(blocks))


@attrs.frozen(eq=False)
class Block:
    """Weights of source pixels *left* to before *right* in target pixels *first* to before *last*, both from the
    part's beginning."""

    first: int
    last: int
    left: int
    right: int
    matrix: Floats


@attrs.frozen(eq=False)
class Part:
    """What a run of source pixels counts for: *count* target pixels from *start* on, in blocks whose weights are mostly
    not zero."""

    start: int
    count: int
    blocks: tuple[Block, ...]

    def down(self, lines: Any) -> Floats:
        """The weighted sums of *lines*, (source pixels, n): (count, n)."""
        result = numpy.zeros((self.count, lines.shape[1]), numpy.float32)
        for block in self.blocks:
            numpy.matmul(block.matrix, lines[block.left : block.right], out=result[block.first : block.last])
        return result

    def across(self, lines: Any) -> Floats:
        """The weighted sums along the last axis of *lines*, (n, source pixels): (n, count)."""
        result = numpy.zeros((lines.shape[0], self.count), numpy.float32)
        for block in self.blocks:
            result[:, block.first : block.last] = lines[:, block.left : block.right] @ block.matrix.T
        return result


def weights(axis: Axis, interpolation: str) -> Weights:
    """The weights along *axis* of a filter other than ``nearest``. Where a picture grows, ``area`` means ``linear``:
    it would only repeat pixels."""
    if interpolation == "area" and axis.step >= 1.0:
        return _area(axis)
    name = "linear" if interpolation == "area" else interpolation
    scale = max(axis.step, 1.0)
    support = SUPPORT[name] * scale
    centers = axis.start + (numpy.arange(axis.count) + 0.5) * axis.step
    first = numpy.floor(centers - support + 0.5).astype(numpy.int64)
    taps = int(numpy.ceil(2 * support)) + 1
    places = first[:, None] + numpy.arange(taps)
    table = _KERNELS[name]((places - centers[:, None] + 0.5) / scale)
    return _normal(axis, first, places, table)


def nearest(axis: Axis) -> Integers:
    """The source pixel of each target pixel."""
    places = numpy.floor(axis.start + (numpy.arange(axis.count) + 0.5) * axis.step).astype(numpy.int64)
    return numpy.clip(places, axis.low, axis.stop - 1)


def _area(axis: Axis) -> Weights:
    low = axis.start + numpy.arange(axis.count) * axis.step
    high = low + axis.step
    first = numpy.floor(low).astype(numpy.int64)
    taps = int(numpy.ceil(axis.step)) + 1
    places = first[:, None] + numpy.arange(taps)
    covered = numpy.minimum(places + 1, high[:, None]) - numpy.maximum(places, low[:, None])
    covered[covered < 1e-6] = 0.0  # what rounding left of a border
    return _normal(axis, first, places, numpy.maximum(covered, 0.0))


def _normal(axis: Axis, first: Integers, places: Integers, table: Any) -> Weights:
    """Leave out what may not be looked at; a target pixel of nothing else is the nearest one that may."""
    table = numpy.where((places >= axis.low) & (places < axis.stop), table, 0.0)
    sums = table.sum(axis=1)
    outside = numpy.abs(sums) < 1e-6
    first = numpy.where(outside, numpy.clip(first, axis.low, axis.stop - 1), first)
    table[outside] = 0.0
    table[outside, 0] = 1.0
    sums[outside] = 1.0
    return Weights(first, (table / sums[:, None]).astype(numpy.float32))


Pixels = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

EMPTY = 255
"""What a picture shows where an instance lacks frames: the glass beside the tissue is white."""
MAX_PARTS = 1024
"""Columns of frames whose weights are kept: frames that lie in no grid may begin anywhere."""


class Canvas:
    """The picture that *cut* describes; *scale*: by how much frames come shrunk already, by their decoder. *empty*: the
    samples of a pixel where there is no frame, as many as frames have. *in_grid*: whether frames begin at multiples of their
    size."""

    def __init__(
        self,
        cut: Cut,
        interpolation: str = "area",
        scale: int = 1,
        empty: Sequence[int] = (EMPTY,),
        in_grid: bool = True,
    ) -> None:
        self._cut = cut
        self._empty = numpy.asarray(empty, numpy.uint8)
        self._scale = scale
        self._vertical = cut.vertical.scaled(scale)
        self._horizontal = cut.horizontal.scaled(scale)
        self._pixels: Optional[Pixels] = None
        self._block = in_grid and _block(self._vertical, self._horizontal, cut, interpolation, scale)
        copied = interpolation == "nearest" or (self._vertical.is_copy and self._horizontal.is_copy)
        self._way: Any = _Copied if copied else _Averaged if self._block else _Added
        self._work: Any = None
        self._interpolation = interpolation

    @property
    def source(self) -> tuple[int, int]:
        """Rows and columns of what frames tile."""
        return self._cut.vertical.source, self._cut.horizontal.source

    def add(self, top: int, left: int, frame: Pixels) -> None:
        """Add the frame whose first pixel stands at *top*, *left* of the source: uint8, (rows, columns) or
        (rows, columns, samples). Each row of frames comes after the one above it."""
        frame = frame if frame.ndim == 3 else frame[:, :, None]
        if self._work is None:
            shape = (self._vertical.count, self._horizontal.count, frame.shape[2])
            self._pixels = numpy.full(shape, self._empty, numpy.uint8)
            self._work = self._way(self._pixels, self._vertical, self._horizontal, self._interpolation)
        top, left = top // self._scale, left // self._scale
        frame = frame[: self._vertical.source - top, : self._horizontal.source - left]
        if frame.size:
            self._work.add(top, left, frame)

    def finish(self) -> Pixels:
        """The picture: uint8, (rows, columns) or (rows, columns, samples)."""
        if self._work is None or self._pixels is None:
            shape = (self._cut.rows, self._cut.columns)
            samples = () if len(self._empty) == 1 else self._empty.shape
            return numpy.full((*shape, *samples), self._empty, numpy.uint8)
        self._work.finish()
        pixels, self._pixels, self._work = self._pixels, None, None
        if self._vertical.flip:
            pixels = pixels[::-1]
        if self._horizontal.flip:
            pixels = pixels[:, ::-1]
        missing = (self._cut.rows - pixels.shape[0], self._cut.columns - pixels.shape[1])
        if any(missing):
            pixels = numpy.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        return numpy.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def resized(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """*pixels*, uint8, as *rows* x *columns*, averaged by area."""
    height, width = pixels.shape[:2]
    vertical, horizontal = Axis(height, rows, step=height / rows), Axis(width, columns, step=width / columns)
    canvas = Canvas(Cut(vertical, horizontal, height, width, 1, 1, 1, rows, columns))
    canvas.add(0, 0, pixels)
    return canvas.finish()


def averaged(pixels: Pixels, scale: int) -> Pixels:
    """*pixels*, each *scale* x *scale* of them made one; those at the edge of as many as there are."""
    return numpy.asarray(Image.fromarray(numpy.ascontiguousarray(pixels)).reduce(scale))


def _block(vertical: Axis, horizontal: Axis, cut: Cut, interpolation: str, scale: int) -> bool:
    """Whether every target pixel is a block of whole pixels of one frame."""
    return interpolation == "area" and all(
        axis.step >= 1.0
        and axis.step == int(axis.step)
        and (size // scale) % int(axis.step) == 0
        and axis.start % int(axis.step) == 0
        and axis.start + axis.count * axis.step <= axis.source
        for axis, size in ((vertical, cut.frame_rows), (horizontal, cut.frame_columns))
    )


class _Copied:
    def __init__(self, pixels: Pixels, vertical: Axis, horizontal: Axis, _interpolation: str) -> None:
        self._pixels = pixels
        self._rows, self._columns = nearest(vertical), nearest(horizontal)

    def add(self, top: int, left: int, frame: Pixels) -> None:
        rows, columns = _within(self._rows, top, frame.shape[0]), _within(self._columns, left, frame.shape[1])
        chosen = frame[_indices(self._rows[rows] - top)]
        self._pixels[rows, columns] = chosen[:, _indices(self._columns[columns] - left)]

    def finish(self) -> None:
        """All is in its place."""


def _indices(places: Any) -> Any:
    """A slice where the pixels follow each other, which copies ten times as fast."""
    if len(places) and places[-1] - places[0] == len(places) - 1 and places[0] <= places[-1]:
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def _within(places: Any, start: int, size: int) -> slice:
    """The target pixels whose source pixel is one of *size* from *start* on."""
    return slice(*(int(at) for at in numpy.searchsorted(places, (start, start + size), side="left")))


class _Averaged:
    def __init__(self, pixels: Pixels, vertical: Axis, horizontal: Axis, _interpolation: str) -> None:
        self._pixels = pixels
        self._vertical, self._horizontal = vertical, horizontal

    def add(self, top: int, left: int, frame: Pixels) -> None:
        down, across = int(self._vertical.step), int(self._horizontal.step)
        above, before = int(self._vertical.start) - top, int(self._horizontal.start) - left
        frame = frame[
            max(0, above) : above + self._vertical.count * down,
            max(0, before) : before + self._horizontal.count * across,
        ]
        if frame.size == 0 or above + self._vertical.count * down <= 0 or before + self._horizontal.count * across <= 0:
            return
        picture = Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame).reduce((across, down))
        reduced = numpy.asarray(picture).reshape(picture.height, picture.width, -1)
        row, column = max(0, -above) // down, max(0, -before) // across
        self._pixels[row : row + picture.height, column : column + picture.width] = reduced

    def finish(self) -> None:
        """All is in its place."""


class _Added:
    """*band*: sums for rows that are not finished, from *row* on: (rows, samples, columns). They are of differences to
    what the picture shows where there is no frame: so that is what comes of nothing."""

    def __init__(self, pixels: Pixels, vertical: Axis, horizontal: Axis, interpolation: str) -> None:
        self._pixels = pixels
        self._vertical = weights(vertical, interpolation)
        self._horizontal = weights(horizontal, interpolation)
        self._empty = pixels[0, 0].astype(numpy.float32)
        self._row = 0
        self._band: Floats = numpy.zeros((0, pixels.shape[2], pixels.shape[1]), numpy.float32)
        self._rows: Optional[tuple[tuple[int, int], Part]] = None
        self._columns: dict[tuple[int, int], Part] = {}

    def add(self, top: int, left: int, frame: Pixels) -> None:
        rows, columns, samples = frame.shape
        down, across = self._row_part(top, top + rows), self._column_part(left, left + columns)
        if not down.count or not across.count:
            return
        self._open(down.start, down.start + down.count)
        # a whole row at once: five times as fast as pixel by pixel
        differences = frame.reshape(rows, -1) - numpy.tile(self._empty, columns)
        narrow = down.down(differences).reshape(-1, columns, samples)
        turned = numpy.ascontiguousarray(narrow.transpose(0, 2, 1)).reshape(-1, columns)
        sums = across.across(turned).reshape(down.count, samples, across.count)
        first = down.start - self._row
        self._band[first : first + down.count, :, across.start : across.start + across.count] += sums

    def _row_part(self, top: int, bottom: int) -> Part:
        """The one row of frames that is at work: those above it are done."""
        if self._rows is None or self._rows[0] != (top, bottom):
            self._rows = ((top, bottom), self._vertical.between(top, bottom))
        return self._rows[1]

    def _column_part(self, left: int, right: int) -> Part:
        if (left, right) not in self._columns:
            if len(self._columns) >= MAX_PARTS:
                self._columns.clear()
            self._columns[left, right] = self._horizontal.between(left, right)
        return self._columns[left, right]

    def _open(self, start: int, stop: int) -> None:
        """Finish the rows above *start*, and have sums up to before *stop*."""
        if start > self._row:
            self._close(start)
        missing = stop - self._row - len(self._band)
        if missing > 0:
            more = numpy.zeros((missing, *self._band.shape[1:]), numpy.float32)
            self._band = numpy.concatenate([self._band, more])

    def _close(self, stop: int) -> None:
        done = self._band[: stop - self._row]
        rounded = numpy.clip(done + (self._empty[:, None] + 0.5), 0, 255).astype(numpy.uint8)
        self._pixels[self._row : self._row + len(done)] = rounded.transpose(0, 2, 1)
        self._band = self._band[stop - self._row :]
        self._row = stop

    def finish(self) -> None:
        self._close(self._row + len(self._band))
