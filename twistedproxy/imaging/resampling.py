"""The weights of the filters: how much each source pixel counts in each target pixel.

They depend on a pixel's place in the whole source alone, so a picture may be put together frame by frame, in any cut,
and comes out as if the filter had run over the whole. All filters but ``nearest`` widen with the step, so that nothing
is skipped when a picture shrinks; ``area`` counts each pixel by how much of it is covered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy

from twistedproxy.imaging.cut import SUPPORT, Axis

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
