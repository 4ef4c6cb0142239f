"""DICOM's lookup tables as values: modality and VOI LUTs (PS3.3 section C.11) and palettes (C.7.6.3.1.5, C.7.9).

pydicom expands segmented tables only in a private function, and without a limit of entries.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from twistedproxy.imaging.errors import BadImage

MAX_ENTRIES = 65_536  # PS3.3 C.11.1.1: a descriptor of 0 means this many


class Fetched(bytes):
    """A value that the metadata only point to. It is what was asked for or an error, never absent."""


@attrs.frozen
class LookupTable:
    """*first* is the value of the first entry, *bits* the depth of the entries, *data* the entries as
    16-bit little-endian words."""

    first: int
    bits: int
    data: bytes = attrs.field(repr=False)


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
    depth = max(8 if packed else bits, max(words).bit_length(), 1)
    return LookupTable(first, depth, _little_endian(array("H", iter(words))).tobytes())


def _words(data: Any, bits: int) -> Sequence[int]:
    """Numbers from bytes (OW) that hold such of *bits*, or from numbers (US)."""
    if isinstance(data, bytes):
        return data if bits <= 8 else _little_endian(array("H", data + bytes(len(data) % 2)))
    return [int(value) & 0xFFFF for value in (data if isinstance(data, Iterable) else (data,))]


def _little_endian(words: array[int]) -> array[int]:
    """*words* between the machine's byte order and DICOM's."""
    if sys.byteorder == "big":
        words.byteswap()
    return words


def lay_out(words: Sequence[int], bits: int = 16) -> list[int]:
    """A segmented table's entries (PS3.3 section C.7.9.2): discrete, linear and indirect segments, in numbers of *bits*.

    Raises ValueError for what is no such table.
    """
    entries: list[int] = []
    _lay_out(words, 0, None, entries, 8 if bits <= 8 else 16)
    if not entries:
        raise ValueError("a segmented lookup table has no segment")
    return entries


def _lay_out(words: Sequence[int], place: int, count: int | None, entries: list[int], bits: int) -> None:
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
            before, step = entries[-1], (words[place] - entries[-1]) / (length or 1)
            entries.extend(round(before + step * number) for number in range(1, length + 1))
            place += 1
        elif kind == 2 and count is None and place + pointer <= len(words):
            parts = words[place : place + pointer]
            offset = sum(part << bits * index for index, part in enumerate(parts))  # bytes from the table's start
            _lay_out(words, offset * 8 // bits, length, entries, bits)
            place += pointer
        else:
            raise ValueError("a segmented lookup table has a segment that cannot be")
        left -= 1
