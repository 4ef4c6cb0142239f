"""DICOM's lookup tables as values: modality and VOI LUTs (PS3.3 section C.11) and palettes (C.7.6.3.1.5, C.7.9).

Entries are kept as 16-bit little-endian words, whatever they were; a table has at most 65,536 of them.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy
from pydicom import Dataset

MAX_ENTRIES = 65_536  # PS3.3 C.11.1.1: a descriptor of 0 stands for it

Words = numpy.ndarray[Any, numpy.dtype[numpy.uint16]]


@attrs.frozen
class LookupTable:
    """*first* is the value that the first entry stands for, *bits* the depth of the entries, *data* the words."""

    first: int
    bits: int
    data: bytes = attrs.field(repr=False)

    @property
    def entries(self) -> Words:
        """The words of *data*, which are little endian."""
        return numpy.frombuffer(self.data, "<u2")

    def apply(self, values: numpy.ndarray[Any, Any]) -> Words:
        """Map stored values; those before the first and behind the last entry take the nearest (C.11.1.1.1)."""
        entries = self.entries
        places = numpy.clip(values.astype(numpy.int64) - self.first, 0, len(entries) - 1)
        return entries[places]


def lut_item(item: Dataset, signed: bool, little_endian: bool = True) -> LookupTable | None:
    """A LUT sequence's item; None where its data is left out. *signed*: whether the values that it maps may be below 0.

    Raises ValueError for a table that cannot be read.
    """
    return _table(item.get("LUTDescriptor"), item.get("LUTData"), signed, little_endian)


def palette_of(
    dataset: Dataset, signed: bool, little_endian: bool = True
) -> tuple[LookupTable, LookupTable, LookupTable] | None:
    """The Palette Color Lookup Table module's three tables, segmented ones laid out; None unless all are there.

    Raises ValueError for tables that cannot be read.
    """
    tables = []
    for color in ("Red", "Green", "Blue"):
        descriptor = dataset.get(f"{color}PaletteColorLookupTableDescriptor")
        plain = dataset.get(f"{color}PaletteColorLookupTableData")
        segmented = dataset.get(f"Segmented{color}PaletteColorLookupTableData")
        if not plain and segmented and descriptor:
            bits = int(descriptor[2])  # also of the numbers that the segments are made of
            plain = lay_out(_words(segmented, bits, little_endian), bits)
        table = _table(descriptor, plain, signed, little_endian)
        if table is None:
            return None
        tables.append(table)
    return tables[0], tables[1], tables[2]


def _table(descriptor: Any, data: Any, signed: bool, little_endian: bool) -> LookupTable | None:
    if not descriptor or data is None or data in (b"", "", []):
        return None
    count, first, bits = (int(value) for value in descriptor)
    count = count or MAX_ENTRIES
    # as many bytes as entries: they are of 8 bits, two in a word, whatever depth is told
    packed = isinstance(data, bytes) and count <= len(data) <= count + 1 < 2 * count
    words = _words(data, 8 if packed else 16, little_endian)[:count]
    if len(words) < count or bits > 16:
        raise ValueError(f"a lookup table of {len(words)} entries, when its descriptor says {count} of {bits} bits")
    first &= 0xFFFF  # "US or SS": stores give it as either
    if signed and first & 0x8000:
        first -= 0x10000
    depth = max(8 if packed else bits, int(words.max()).bit_length(), 1)
    return LookupTable(first, depth, words.astype("<u2").tobytes())


def _words(data: Any, bits: int, little_endian: bool) -> Words:
    """Numbers from bytes (OW) that hold such of *bits*, or from numbers (US)."""
    if not isinstance(data, bytes):
        return (numpy.atleast_1d(numpy.asarray(data, numpy.int64)) & 0xFFFF).astype("<u2")
    if bits <= 8:
        return numpy.frombuffer(data, "u1").astype("<u2")
    return numpy.frombuffer(data + bytes(len(data) % 2), "<u2" if little_endian else ">u2")


def lay_out(words: Words, bits: int = 16) -> list[int]:
    """A segmented table's entries (PS3.3 section C.7.9.2): discrete, linear and indirect segments, in numbers of *bits*.

    Raises ValueError for what is no such table.
    """
    entries: list[int] = []
    _segments([int(word) for word in words], 0, None, entries, 8 if bits <= 8 else 16, nested=False)
    if not entries:
        raise ValueError("a segmented lookup table has no segment")
    return entries


def _segments(
    words: list[int], start: int, count: int | None, entries: list[int], bits: int, *, nested: bool
) -> None:  # fmt: skip
    place = start
    pointer = 32 // bits  # numbers that an offset takes, the least significant first
    while place + 2 < len(words) and count != 0:
        kind, length = words[place], words[place + 1]
        if len(entries) + length > MAX_ENTRIES:
            raise ValueError("a segmented lookup table has too many entries")
        if kind == 0:
            entries.extend(words[place + 2 : place + 2 + length])
            place += 2 + length
        elif kind == 1 and entries:
            ramp = numpy.linspace(entries[-1], words[place + 2], length + 1)[1:]
            entries.extend(int(value) for value in numpy.around(ramp))
            place += 3
        elif kind == 2 and not nested and place + 1 + pointer < len(words):
            parts = words[place + 2 : place + 2 + pointer]
            offset = sum(part << bits * index for index, part in enumerate(parts))  # bytes from the table's start
            _segments(words, offset * 8 // bits, length, entries, bits, nested=True)
            place += 2 + pointer
        else:
            raise ValueError("a segmented lookup table has a segment that cannot be")
        count = None if count is None else count - 1
