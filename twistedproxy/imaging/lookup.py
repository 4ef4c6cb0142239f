"""DICOM's lookup tables as values: modality and VOI LUTs (PS3.3 section C.11) and palettes (C.7.6.3.1.5, C.7.9).

Entries are kept as 16-bit little-endian words, whatever they were; a table has at most 65,536 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def lut_item(item: Dataset, little_endian: bool = True) -> LookupTable | None:
    """A LUT sequence's item; None where its data is left out."""
    return _table(item.get("LUTDescriptor"), item.get("LUTData"), little_endian)


def palette_of(dataset: Dataset, little_endian: bool = True) -> tuple[LookupTable, LookupTable, LookupTable] | None:
    """The Palette Color Lookup Table module's three tables, segmented ones laid out; None unless all are there."""
    tables = []
    for colour in ("Red", "Green", "Blue"):
        descriptor = dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
        plain = dataset.get(f"{colour}PaletteColorLookupTableData")
        segmented = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
        if not plain and segmented and descriptor:
            plain = lay_out(_words(segmented, descriptor[2], 0, little_endian))
        table = _table(descriptor, plain, little_endian)
        if table is None:
            return None
        tables.append(table)
    return tables[0], tables[1], tables[2]


def _table(descriptor: Sequence[int] | None, data: Any, little_endian: bool) -> LookupTable | None:
    if not descriptor or data is None or data in (b"", ""):
        return None
    count, first, bits = (int(value) for value in descriptor)
    count = count or MAX_ENTRIES
    words = _words(data, bits, count, little_endian)[:count]
    if len(words) < count or not 0 < bits <= 16:
        raise ValueError("a lookup table is shorter than its descriptor says")
    return LookupTable(first, bits, words.astype("<u2").tobytes())


def _words(data: Any, bits: int, count: int, little_endian: bool) -> Words:
    """Entries from bytes (OW) or numbers (US). 8-bit ones may be packed two in a word."""
    if not isinstance(data, bytes):
        return numpy.atleast_1d(numpy.asarray(data, "<u2"))
    if bits <= 8 and count and len(data) < 2 * count:
        return numpy.frombuffer(data, "u1").astype("<u2")
    return numpy.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")


def lay_out(words: Words) -> list[int]:
    """A segmented table's entries (PS3.3 section C.7.9.2): discrete, linear and indirect segments.

    Raises ValueError for what is no such table.
    """
    entries: list[int] = []
    _segments([int(word) for word in words], 0, None, entries, nested=False)
    return entries


def _segments(words: list[int], start: int, count: int | None, entries: list[int], *, nested: bool) -> None:
    place = start
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
        elif kind == 2 and not nested and place + 3 < len(words):
            offset = (words[place + 2] | words[place + 3] << 16) // 2  # bytes from the table's start
            _segments(words, offset, length, entries, nested=True)
            place += 4
        else:
            raise ValueError("a segmented lookup table has a segment that cannot be")
        count = None if count is None else count - 1
