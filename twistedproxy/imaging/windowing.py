"""Stored values to the 8 bits that a screen shows (PS3.3 sections C.11.1, C.11.2 and C.7.6.3.1.5; PS3.4 annex N.2).

Rules:

- The order is the standard's: modality LUT or rescale, VOI LUT or window, then the inversion of MONOCHROME1 or of the
  Presentation LUT Shape.
- A window that was asked for goes before the instance's VOI LUT, and that before its first window.
- Without any of them (PS3.3 section C.11.2 leaves it to the viewer) values of up to 8 bits are shown as they are, and
  deeper ones from the smallest to the largest: those that the instance names, else those of the frame. Never those of one
  tile of many, since tiles would not match: those of some tiles, the same for every picture (`range_of`).
- Stored values of up to 16 bits go through a table, which is kept: 65,536 entries cost as much as a frame to compute.
- pydicom.pixels does the same by the frame, in floating point, and refuses what it finds odd: tests compare with it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy

from twistedproxy.imaging.errors import BadImage, NotDecodable
from twistedproxy.imaging.luts_and_palettes import LookupTable
from twistedproxy.imaging.parameters import Window
from twistedproxy.imaging.pixel_description import WINDOW_FUNCTIONS, PixelFacts

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]
Bytes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]
Words = numpy.ndarray[Any, numpy.dtype[numpy.uint16]]

_Window = tuple[float, float, str]
_Ends = tuple[float, float]

MAX_TABLES = 32  # of 64 kB: one for every instance and window that is looked at now


def to_display(
    array: Pixels, facts: PixelFacts, window: Window | None = None, stored_values: bool = False
) -> Bytes:  # fmt: skip
    """(rows, columns) of gray, or (rows, columns, 3) of RGB, 8 bits each, of what `decode` gave.

    *window* is in the values that the modality LUT gives, as in PS3.18 section 8.3.5.1.4; colors have none.
    *stored_values*: the client does all that to gray of 8 bits. Raises BadImage for a palette or a window function that
    cannot be.
    """
    if array.ndim == 3:
        return _eight_bits(array, facts.bits_stored)
    if facts.photometric_interpretation == "PALETTE COLOR":
        return _palette(array, facts)
    if stored_values and facts.bits_allocated == 8 and not facts.signed:
        return array
    chosen = _window(facts, window)
    named = chosen is not None or facts.voi_lut is not None or facts.modality_lut is not None
    ends = None if named else _ends(array, facts)
    if array.dtype.itemsize > 2:
        return _shown(array.astype(numpy.float64), facts, chosen, ends)
    return _table(array.dtype.str, facts, chosen, ends)[array.view(f"u{array.dtype.itemsize}")]


def range_of(array: Pixels, facts: PixelFacts) -> tuple[float, float] | None:
    """The smallest and largest value, padding and what is no number left out; None where all are the same."""
    if facts.padding is not None:
        array = array[(array < facts.padding[0]) | (array > facts.padding[1])]
    if facts.floating:
        array = array[numpy.isfinite(array)]
    if not array.size:
        return None
    low, high = array.min().item(), array.max().item()
    return (low, high) if low < high else None


def windowed(values: Pixels, center: float, width: float, function: str) -> Pixels:
    """Shares of white, from 0 to 1 once clipped (PS3.3 sections C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2)."""
    if function == "SIGMOID":
        return 1.0 / (1.0 + numpy.exp(numpy.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR" and width >= 1.0:  # below, which the standard does not allow, values are no integers
        center, width = center - 0.5, width - 1.0
    if width <= 0:  # one value wide: a threshold
        return (values > center).astype(numpy.float64)
    return (values - center) / width + 0.5


@functools.lru_cache(MAX_TABLES)
def _table(dtype: str, facts: PixelFacts, window: _Window | None, ends: _Ends | None) -> Bytes:
    """What each stored value is shown as."""
    kind = numpy.dtype(dtype)
    values = numpy.arange(1 << 8 * kind.itemsize, dtype=f"u{kind.itemsize}").view(kind)
    table = _shown(values.astype(numpy.float64), facts, window, ends)
    table.flags.writeable = False
    return table


def _shown(values: Pixels, facts: PixelFacts, window: _Window | None, ends: _Ends | None) -> Bytes:
    """float64 stored values of any shape as uint8. *ends*: the stored values that are shown black and white where there is
    neither a window nor a table."""
    with numpy.errstate(all="ignore"):  # what is out of bounds is black or white
        real = _real(values, facts)
        if window is not None:
            shares = windowed(real, *window)
        elif facts.voi_lut is not None:
            shares = _mapped(facts.voi_lut, numpy.rint(real)) / ((1 << facts.voi_lut.bits) - 1)
        else:
            lut = facts.modality_lut
            limits = _entries(lut).astype(numpy.float64) if lut is not None else _real(numpy.array(ends), facts)
            low, high = float(limits.min()), float(limits.max())
            shares = (real - low) / ((high - low) or 1.0)
        result = numpy.rint(numpy.nan_to_num(numpy.clip(shares, 0.0, 1.0)) * 255).astype(numpy.uint8)
    # The lowest value is shown white (PS3.3 sections C.7.6.3.1.2 and C.11.6).
    inverted = facts.inverse or facts.photometric_interpretation == "MONOCHROME1"
    return 255 - result if inverted else result


def _real(values: Pixels, facts: PixelFacts) -> Pixels:
    if facts.modality_lut is not None:
        return _mapped(facts.modality_lut, values).astype(numpy.float64)
    return values * (facts.rescale_slope or 1.0) + facts.rescale_intercept


def _window(facts: PixelFacts, asked: Window | None) -> _Window | None:
    """The window to use; None where the VOI LUT is, or nothing. A stored one that is not above 0 is ignored."""
    if asked is not None:
        center, width, function = asked.center, asked.width, asked.function.upper().replace("-", "_")
    elif facts.voi_lut is None and facts.window_widths and facts.window_widths[0] > 0:
        center, width, function = facts.window_centers[0], facts.window_widths[0], facts.voi_lut_function
    else:
        return None
    if function not in WINDOW_FUNCTIONS or not width > 0:
        raise BadImage(f"no window of function {function} and width {width}")
    return center, width, function


def _ends(array: Pixels, facts: PixelFacts) -> _Ends:
    if facts.bits_stored > 8 and facts.value_range is not None:
        return facts.value_range
    own = range_of(array, facts) if facts.bits_stored > 8 and not facts.tiled else None
    return own or facts.stored_range


def _eight_bits(array: Pixels, bits: int) -> Bytes:
    """Of deeper values the upper 8 bits, of shallower ones the same share of white."""
    if bits < 8:
        return (array.astype(numpy.uint16) * 255 // ((1 << bits) - 1)).astype(numpy.uint8)
    return array if array.dtype == numpy.uint8 else (array.view(f"u{array.dtype.itemsize}") >> bits - 8).astype("u1")


def _palette(array: Pixels, facts: PixelFacts) -> Bytes:
    if facts.palette is None:
        raise NotDecodable("the instance's palette is missing")
    return numpy.stack([_colors(table)[_places(table, array)] for table in facts.palette], axis=2)


def _colors(table: LookupTable) -> Bytes:
    """Entries as bytes. Tables that claim 16 bits and hold 8 are common."""
    entries = _entries(table)
    bits = 8 if table.bits > 8 and int(entries.max()) < 256 else table.bits
    return _eight_bits(entries, bits)


def _entries(table: LookupTable) -> Words:
    return numpy.frombuffer(table.data, "<u2")


def _places(table: LookupTable, values: Pixels) -> Pixels:
    """The entry for each value; those before the first and behind the last entry take the nearest (C.11.1.1.1)."""
    return numpy.clip(values.astype(numpy.int64) - table.first, 0, len(table.data) // 2 - 1)


def _mapped(table: LookupTable, values: Pixels) -> Words:
    return _entries(table)[_places(table, values)]
