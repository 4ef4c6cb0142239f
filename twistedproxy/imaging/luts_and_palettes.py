"""DICOM's lookup tables as values: modality and VOI LUTs (PS3.3 section C.11) and palettes (C.7.6.3.1.5, C.7.9).

pydicom expands segmented tables only in a private function, and without a limit of entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy

from twistedproxy.imaging.errors import BadImage

MAX_ENTRIES = 65_536  # PS3.3 C.11.1.1: a descriptor of 0 means this many

Words = numpy.ndarray[Any, numpy.dtype[numpy.uint16]]


class Fetched(bytes):
    """A value that the metadata only point to. It is what was asked for or an error, never absent."""


@attrs.frozen
class LookupTable:
    """*first* is the value of the first entry, *bits* the depth of the entries, *data* the entries as
    16-bit little-endian words."""

    first: int
    bits: int
    data: bytes = attrs.field(repr=False)

    @property
    def entries(self) -> Words:
        """The words of *data*."""
        return numpy.frombuffer(self.data, "<u2")

    def places(self, values: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """The entry for each value; those before the first and behind the last entry take the nearest (C.11.1.1.1)."""
        return numpy.clip(values.astype(numpy.int64) - self.first, 0, len(self.data) // 2 - 1)

    def apply(self, values: numpy.ndarray[Any, Any]) -> Words:
        """Map values."""
        return self.entries[self.places(values)]


def read_table(
    descriptor: Sequence[Any], data: Any, signed: bool, segmented: Any = None, needed: bool = False
) -> LookupTable | None:
    """A table of DICOM JSON; None where its data is missing. *data* and *segmented*: bytes or numbers. *signed*: whether the
    values that it maps may be below 0.

    Raises BadImage for a table that cannot be read if it is *needed*, or was fetched; else that is None, too.
    """
    try:
        if not data and segmented and descriptor:
            bits = int(descriptor[2])  # also of the numbers that the segments are made of
            return _table(descriptor, lay_out(_words(segmented, bits), bits), signed)
        return _table(descriptor, data, signed) if descriptor and data else None
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        if needed or isinstance(data, Fetched) or isinstance(segmented, Fetched):
            raise BadImage(f"a lookup table cannot be read: {error}") from error
        return None


def _table(descriptor: Sequence[Any], data: Any, signed: bool) -> LookupTable:
    count, first, bits = (int(value) for value in descriptor)
    count = count or MAX_ENTRIES
    # as many bytes as entries: they are of 8 bits, two in a word, whatever depth is declared
    packed = isinstance(data, bytes) and count <= len(data) <= count + 1 < 2 * count
    words = _words(data, 8 if packed else 16)[:count]
    if len(words) < count or bits > 16:
        raise ValueError(f"{len(words)} entries, when its descriptor has {count} of {bits} bits")
    first &= 0xFFFF  # "US or SS": stores send either
    if signed and first & 0x8000:
        first -= 0x10000
    depth = max(8 if packed else bits, int(words.max()).bit_length(), 1)
    return LookupTable(first, depth, words.astype("<u2").tobytes())


def _words(data: Any, bits: int) -> Words:
    """Numbers from bytes (OW) that hold such of *bits*, or from numbers (US)."""
    if not isinstance(data, bytes):
        return (numpy.atleast_1d(numpy.asarray(data, numpy.int64)) & 0xFFFF).astype("<u2")
    return numpy.frombuffer(data, "u1") if bits <= 8 else numpy.frombuffer(data + bytes(len(data) % 2), "<u2")


def lay_out(words: Words, bits: int = 16) -> list[int]:
    """A segmented table's entries (PS3.3 section C.7.9.2): discrete, linear and indirect segments, in numbers of *bits*.

    Raises ValueError for what is no such table.
    """
    entries: list[int] = []
    _lay_out([int(word) for word in words], 0, None, entries, 8 if bits <= 8 else 16)
    if not entries:
        raise ValueError("a segmented lookup table has no segment")
    return entries


def _lay_out(words: list[int], place: int, count: int | None, entries: list[int], bits: int) -> None:
    """*count*: of the segments that an indirect one repeats, None at the top."""
    left = -1 if count is None else count
    pointer = 32 // bits  # numbers that an offset takes, the least significant first
    while place + 2 < len(words) and left:
        kind, length = words[place], words[place + 1]
        place += 2
        if len(entries) + length > MAX_ENTRIES:
            raise ValueError("a segmented lookup table has too many entries")
        if kind == 0:
            entries.extend(words[place : place + length])
            place += length
        elif kind == 1 and entries:
            ramp = numpy.linspace(entries[-1], words[place], length + 1)[1:]
            entries.extend(int(value) for value in numpy.around(ramp))
            place += 1
        elif kind == 2 and count is None and place + pointer <= len(words):
            parts = words[place : place + pointer]
            offset = sum(part << bits * index for index, part in enumerate(parts))  # bytes from the table's start
            _lay_out(words, offset * 8 // bits, length, entries, bits)
            place += pointer
        else:
            raise ValueError("a segmented lookup table has a segment that cannot be")
        left -= 1
