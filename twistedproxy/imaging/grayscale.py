"""Stored values to the 8 bits that a screen shows (PS3.3 sections C.11.1, C.11.2 and C.7.6.3.1.5; PS3.4 annex N.2).

Rules that this file keeps:

- The order is the standard's: modality LUT or rescale, VOI LUT or window, then the inversion of MONOCHROME1.
- A window that was asked for goes before the instance's VOI LUT, and that before its first window.
- Without any of them 8-bit values are shown as they are, and deeper ones from the smallest to the largest: those that
  the instance names, else those of its only frame, else those that its bits can hold. Never those of one frame of
  many: tiles would not match.
- Stored values of up to 16 bits go through a table, which is kept: 65,536 entries cost as much as a frame to compute.
"""

from __future__ import annotations

import functools
from typing import Any

import attrs
import numpy

from twistedproxy.imaging.errors import BadImage, NotDecodable
from twistedproxy.imaging.facts import PixelFacts
from twistedproxy.imaging.lookup import LookupTable
from twistedproxy.imaging.parameters import Window

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]
Bytes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

MAX_TABLES = 32  # of 64 kB: one for every instance and window that is looked at now

FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})


def to_display(array: Pixels, facts: PixelFacts, window: Window | None = None) -> Bytes:
    """(rows, columns) of gray, or (rows, columns, 3) of RGB, 8 bits each, of what `decode` gave.

    *window* is in the values that the modality LUT gives, as in PS3.18 section 8.3.5.1.4; colours have none. Raises
    BadImage for a palette or a window function that cannot be.
    """
    if array.ndim == 3:
        return _eight_bits(array, facts.bits_stored)
    if facts.photometric_interpretation == "PALETTE COLOR":
        return _palette(array, facts)
    look = _look(array, facts, window)
    if look.is_nothing:
        return array
    if array.dtype.itemsize > 2:
        return look.shown(array.astype(numpy.float64))
    return _table(look, array.dtype.str)[array.view(f"u{array.dtype.itemsize}")]


@attrs.frozen
class Look:
    """How one instance's gray is shown. *window*: center, width and function; *ends*: the stored values that are
    shown black and white where there is neither window nor VOI LUT."""

    slope: float
    intercept: float
    modality_lut: LookupTable | None
    voi_lut: LookupTable | None
    window: tuple[float, float, str] | None
    ends: tuple[int, int]
    inverted: bool

    @property
    def is_nothing(self) -> bool:
        """Whether 8-bit values are shown as they are."""
        return self == Look(1.0, 0.0, None, None, None, (0, 255), False)

    def shown(self, values: Pixels) -> Bytes:
        """float64 stored values of any shape as uint8."""
        real = self._modality(values)
        if self.window is not None:
            shares = windowed(real, *self.window)
        elif self.voi_lut is not None:
            shares = self.voi_lut.apply(numpy.rint(real)) / ((1 << self.voi_lut.bits) - 1)
        else:
            shares = self._stretched(real)
        result = numpy.rint(numpy.clip(shares, 0.0, 1.0) * 255).astype(numpy.uint8)
        return 255 - result if self.inverted else result

    def _modality(self, values: Pixels) -> Pixels:
        if self.modality_lut is not None:
            return self.modality_lut.apply(values).astype(numpy.float64)
        return values * self.slope + self.intercept

    def _stretched(self, real: Pixels) -> Pixels:
        if self.modality_lut is not None:
            return real / ((1 << self.modality_lut.bits) - 1)
        ends = numpy.array(self.ends, numpy.float64) * self.slope + self.intercept
        low, high = float(ends.min()), float(ends.max())
        return (real - low) / ((high - low) or 1.0)


def windowed(values: Pixels, center: float, width: float, function: str) -> Pixels:
    """Shares of white, from 0 to 1 once clipped (PS3.3 sections C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2)."""
    if function == "SIGMOID":
        return 1.0 / (1.0 + numpy.exp(numpy.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width <= 0:  # one value wide: a threshold
        return (values > center).astype(numpy.float64)
    return (values - center) / width + 0.5


@functools.lru_cache(MAX_TABLES)
def _table(look: Look, dtype: str) -> Bytes:
    kind = numpy.dtype(dtype)
    table = look.shown(numpy.arange(1 << 8 * kind.itemsize, dtype=f"u{kind.itemsize}").view(kind).astype(numpy.float64))
    table.flags.writeable = False
    return table


def _look(array: Pixels, facts: PixelFacts, window: Window | None) -> Look:
    chosen = _window(facts, window)
    stretched = chosen is None and facts.voi_lut is None and facts.modality_lut is None
    return Look(
        facts.rescale_slope or 1.0,
        facts.rescale_intercept,
        facts.modality_lut,
        facts.voi_lut if chosen is None else None,
        chosen,
        _ends(array, facts) if stretched else (0, 255),
        facts.photometric_interpretation == "MONOCHROME1",
    )


def _window(facts: PixelFacts, asked: Window | None) -> tuple[float, float, str] | None:
    """The window to use; None where the VOI LUT is, or nothing. A stored one that is not above 0 says nothing."""
    if asked is not None:
        center, width, function = asked.center, asked.width, asked.function.upper().replace("-", "_")
    elif facts.voi_lut is None and facts.window_widths and facts.window_widths[0] > 0:
        center, width, function = facts.window_centers[0], facts.window_widths[0], facts.voi_lut_function
    else:
        return None
    if function not in FUNCTIONS or not width > 0:
        raise BadImage(f"no window of function {function} and width {width}")
    return center, width, function


def _ends(array: Pixels, facts: PixelFacts) -> tuple[int, int]:
    low, high = (0, (1 << facts.bits_stored) - 1)
    if facts.signed:
        low, high = -(1 << facts.bits_stored - 1), (1 << facts.bits_stored - 1) - 1
    if facts.bits_stored <= 8:
        return low, high
    if facts.value_range is not None:
        return facts.value_range
    if facts.single_frame:
        return _range_of(array, facts) or (low, high)
    return low, high


def _range_of(array: Pixels, facts: PixelFacts) -> tuple[int, int] | None:
    """The frame's smallest and largest value, padding left out; None where all are the same."""
    if facts.padding is not None:
        array = array[(array < facts.padding[0]) | (array > facts.padding[1])]
    if not array.size:
        return None
    low, high = int(array.min()), int(array.max())
    return (low, high) if low < high else None


def _eight_bits(array: Pixels, bits: int) -> Bytes:
    """Of deeper values the upper 8 bits, of shallower ones the same share of white."""
    if bits < 8:
        return (array.astype(numpy.uint16) * 255 // ((1 << bits) - 1)).astype(numpy.uint8)
    return array if array.dtype == numpy.uint8 else (array.view(f"u{array.dtype.itemsize}") >> bits - 8).astype("u1")


def _palette(array: Pixels, facts: PixelFacts) -> Bytes:
    if facts.palette is None:
        raise NotDecodable("the instance's palette is missing")
    return numpy.stack([_colours(table)[_places(array, table)] for table in facts.palette], axis=2)


def _places(array: Pixels, table: LookupTable) -> Pixels:
    return numpy.clip(array.astype(numpy.int32) - table.first, 0, len(table.data) // 2 - 1)


def _colours(table: LookupTable) -> Bytes:
    """Entries as bytes. Tables that claim 16 bits and hold 8 are common."""
    entries = table.entries
    bits = 8 if table.bits > 8 and int(entries.max()) < 256 else table.bits
    return _eight_bits(entries, bits)
