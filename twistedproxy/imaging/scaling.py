"""Resizing arrays.

Rules that this file keeps:

- A part can be resized as a part of the whole: *box* takes fractions of a pixel, so that tiles made one by one meet
  without a seam.
- Making smaller averages over all pixels that are dropped, whatever the interpolation, "nearest" excepted.
- "area" weighs pixels by the exact area that they cover, also at fractional factors. Pillow's BOX takes a pixel wholly
  or not at all, which flips at ties.

Why Pillow and numpy, not OpenCV: its wheel unpacks to 153 MB, it cannot resize a box with fractions, and it resizes
without averaging. It is faster (512 x 512 to 256 x 256 by area: 0.05 ms beside 0.17 ms), but encoding the result as
JPEG takes three times as long as that.
"""

from __future__ import annotations

from typing import Any

import numpy
from PIL import Image

from twistedproxy.imaging.errors import BadImage

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]
"""(rows, columns) or (rows, columns, 3)."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the array: what of it fills the result."""

AREA = "area"
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "cubic": Image.Resampling.BICUBIC,
    "lanczos4": Image.Resampling.LANCZOS,
}
INTERPOLATIONS = (AREA, *_FILTERS)

REACH = {"nearest": 0.5, AREA: 0.5, "linear": 1.0, "cubic": 2.0, "lanczos4": 3.0}
"""Source pixels that a result's pixel takes from on either side of its middle, for each pixel of the factor."""

_AREA_BLOCK = 16  # lines made by one product: few enough that the weights are mostly not zero


def resize(array: Pixels, rows: int, columns: int, interpolation: str = AREA, box: Box | None = None) -> Pixels:
    """*array*, or the part of it inside *box*, as *rows* x *columns* of the same type.

    Raises ValueError for an unknown interpolation, BadImage for a size or a box that cannot be.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"no interpolation is called {interpolation}")
    height, width = array.shape[:2]
    left, top, right, bottom = box = box or (0.0, 0.0, float(width), float(height))
    if rows < 1 or columns < 1 or not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise BadImage(f"no {columns} x {rows} picture can be made of {box} of {width} x {height} pixels")
    if (rows, columns) == (bottom - top, right - left) and left == int(left) and top == int(top):
        return array[int(top) : int(bottom), int(left) : int(right)]
    if interpolation == AREA:
        return _area(array, rows, columns, box)
    return _filtered(array, rows, columns, _FILTERS[interpolation], box)


def _filtered(array: Pixels, rows: int, columns: int, resample: Image.Resampling, box: Box) -> Pixels:
    if array.dtype == numpy.uint8:
        picture = Image.fromarray(numpy.ascontiguousarray(array))
        return numpy.asarray(picture.resize((columns, rows), resample, box))
    planes = array[:, :, None] if array.ndim == 2 else array
    resized = [
        numpy.asarray(Image.fromarray(planes[:, :, band].astype(numpy.float32)).resize((columns, rows), resample, box))
        for band in range(planes.shape[2])
    ]
    result = resized[0] if array.ndim == 2 else numpy.stack(resized, axis=2)
    return _rounded(result, array.dtype)


def _area(array: Pixels, rows: int, columns: int, box: Box) -> Pixels:
    left, top, right, bottom = box
    factor = (right - left) / columns
    if array.dtype == numpy.uint8 and factor == (bottom - top) / rows == int(factor) > 1 and _whole(left, top):
        part = numpy.ascontiguousarray(array[int(top) : int(bottom), int(left) : int(right)])
        return numpy.asarray(Image.fromarray(part).reduce(int(factor)))
    bands = 1 if array.ndim == 2 else array.shape[2]
    lines = _average(array.reshape(array.shape[0], -1), rows, top, bottom)  # (rows, width * bands)
    turned = lines.reshape(rows, array.shape[1], bands).transpose(1, 0, 2).reshape(array.shape[1], -1)
    result = _average(turned, columns, left, right).reshape(columns, rows, bands).transpose(1, 0, 2)
    return _rounded(result.reshape(rows, columns, *array.shape[2:]), array.dtype)


def _whole(*values: float) -> bool:
    return all(value == int(value) for value in values)


def _average(lines: Pixels, count: int, start: float, end: float) -> Pixels:
    """*count* averages of the lines from *start* to *end*, each line weighed by how much of it lies inside."""
    edges = start + (end - start) / count * numpy.arange(count + 1)
    edges[-1] = end
    result = numpy.empty((count, lines.shape[1]), numpy.float32)
    for first in range(0, count, _AREA_BLOCK):
        last = min(count, first + _AREA_BLOCK)
        low, high = int(edges[first]), min(len(lines), int(numpy.ceil(edges[last])))
        line = numpy.arange(low, high)
        inside = numpy.minimum(edges[first + 1 : last + 1, None], line + 1)
        inside -= numpy.maximum(edges[first:last, None], line)
        weights = numpy.clip(inside, 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        numpy.matmul(weights.astype(numpy.float32), lines[low:high].astype(numpy.float32), out=result[first:last])
    return result


def _rounded(values: Pixels, dtype: numpy.dtype[Any]) -> Pixels:
    if dtype.kind not in "iu":
        return values.astype(dtype)
    limits = numpy.iinfo(dtype)
    # +0.5 and floor, as Pillow rounds; numpy's own rint takes ties to even
    return numpy.clip(numpy.floor(values + 0.5), limits.min, limits.max).astype(dtype)
