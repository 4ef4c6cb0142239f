"""YBR to RGB: PS3.3 section C.7.6.3.1.2, as ITU-T T.871 rounds it."""

from __future__ import annotations

from typing import Any

import numpy

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]

FULL = frozenset({"YBR_FULL", "YBR_FULL_422"})
PARTIAL = frozenset({"YBR_PARTIAL_422", "YBR_PARTIAL_420"})
SUBSAMPLED = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
"""Native frames of these have two Y for each Cb and Cr: half of the chroma is not there."""

_TO_RGB = numpy.array(
    [
        [1.0, 1.0, 1.0],
        [0.0, -0.114 * 1.772 / 0.587, 1.772],
        [1.402, -0.299 * 1.402 / 0.587, 0.0],
    ],
    numpy.float32,
)
# Retired (PS3.3-2014 C.7.6.3.1.2): Y from 16 to 235, chroma from 16 to 240
_FROM_PARTIAL = numpy.array([255 / 219, 255 / 224, 255 / 224], numpy.float32)


def ybr_to_rgb(array: Pixels, bits: int = 8, partial: bool = False) -> Pixels:
    """(rows, columns, 3) of *bits* deep YBR_FULL, or YBR_PARTIAL, as RGB of the same type."""
    middle = 1 << (bits - 1)
    values = array.astype(numpy.float32)
    values -= (middle // 8 if partial else 0, middle, middle)
    matrix = _TO_RGB * _FROM_PARTIAL[:, None] if partial else _TO_RGB
    values = numpy.matmul(values, matrix)
    values += 0.5
    return numpy.clip(values, 0, 2 * middle - 1).astype(array.dtype)


def expand_422(values: Pixels, rows: int, columns: int) -> Pixels:
    """A native frame of Y Y Cb Cr quadruples as (rows, columns, 3); *columns* is even (PS3.3 C.7.6.3.1.2)."""
    groups = values.reshape(rows, columns // 2, 4)
    result = numpy.empty((rows, columns // 2, 2, 3), values.dtype)
    result[..., 0] = groups[..., :2]
    result[..., 1:] = groups[..., None, 2:]
    return result.reshape(rows, columns, 3)
