"""Where each frame lies in a file (DICOM PS3.5 section 8 and annex A.4). Blocking: call it in a thread.

- An Extended or Basic Offset Table is believed as far as its numbers are possible; each frame read by it is
  checked again by its item headers, and a table that lied is replaced by a scan.
- Without a table the item headers are read once, eight bytes each: the pixels are not.
- What is kept is 8 bytes a frame (16 with an Extended Offset Table), whatever the frame's size.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Callable, Iterator
from typing import Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.native_pixels import BadPixelLength, native_frame_bits
from twistedproxy.dicom.part10.pixels import END_MARKER_BYTES
from twistedproxy.dicom.transfer_syntaxes import lookup
from twistedproxy.origin.folder.instance_file import PixelElement

# Reads so many bytes from so far into the content; fewer only at its end.
ReadAt = Callable[[int, int], bytes]

ITEM = 0xFFFEE000
DELIMITER = 0xFFFEE0DD
_HEADER = 8


class BadPixelData(Exception):
    """The pixel data are not what the header or the standard says; `str()` says how."""


@attrs.frozen(eq=False)
class FrameTable:
    """Bounds of frames, as bytes in the content: frame n (from 1) lies in [starts[n-1], starts[n]).

    Encapsulated: the bounds of its items, headers included. *lengths*: bytes of each frame without pad bytes,
    where the Extended Offset Table said them. *trusted*: the item headers were seen.
    """

    starts: array[int]
    lengths: Optional[array[int]] = None
    trusted: bool = False

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return 8 * (len(self.starts) + len(self.lengths or ()))

    def bounds(self, number: int) -> tuple[int, int]:
        """Where frame *number* (from 1) begins, and where the next one does."""
        return self.starts[number - 1], self.starts[number]


def native_span(pixels: PixelElement, facts: InstanceMetadata, number: int) -> tuple[int, int, int]:
    """(first byte, byte after the last, bits to drop in front) of native frame *number*."""
    assert pixels.length is not None
    try:
        bits = native_frame_bits(facts, pixels.length)
    except BadPixelLength as error:
        raise BadPixelData(str(error)) from None
    first, last = (number - 1) * bits, number * bits
    return pixels.start + first // 8, pixels.start - (-last // 8), first % 8


def item_header(raw: bytes, order: str) -> tuple[int, int]:
    """(tag, length) of an item (PS3.5 section 7.5)."""
    if len(raw) < _HEADER:
        raise BadPixelData("its pixel data end in the middle of an item")
    group, element, length = struct.unpack(f"{order}HHI", raw[:_HEADER])
    return group << 16 | element, length


def byte_order(pixels: PixelElement) -> str:
    """As `struct` writes it."""
    return "<" if pixels.little_endian else ">"


def build_table(
    read_at: ReadAt,
    pixels: PixelElement,
    frames: int,
    transfer_syntax: str,
    extended: Optional[tuple[bytes, bytes]],
    believe_tables: bool = True,
) -> FrameTable:
    """The table of encapsulated frames. Raises `BadPixelData`; what *read_at* raises.

    *extended*: values of (7FE0,0001) and (7FE0,0002). *believe_tables* False: look at the items only.
    """
    order = byte_order(pixels)
    tag, length = item_header(read_at(pixels.start, _HEADER), order)
    if tag != ITEM:
        raise BadPixelData("its pixel data do not begin with a Basic Offset Table")
    first = pixels.start + _HEADER + length
    if believe_tables:
        if extended and (table := _from_extended(read_at, first, frames, extended, order)):
            return table
        if length == 4 * frames:
            numbers = array("Q", struct.unpack(f"{order}{frames}I", read_at(pixels.start + _HEADER, length)))
            if table := _from_offsets(read_at, first, numbers, order):
                return table
    return _from_items(read_at, first, frames, transfer_syntax, order)


def _from_extended(
    read_at: ReadAt, first: int, frames: int, extended: tuple[bytes, bytes], order: str
) -> Optional[FrameTable]:
    if any(len(value) != 8 * frames for value in extended):
        return None
    offsets, lengths = (array("Q", struct.unpack(f"{order}{frames}Q", value)) for value in extended)
    table = _from_offsets(read_at, first, offsets, order)
    return attrs.evolve(table, lengths=lengths) if table else None


def _from_offsets(read_at: ReadAt, first: int, offsets: array[int], order: str) -> Optional[FrameTable]:
    """A table from offsets that ascend from 0, else None: Basic offsets wrap at 4 GiB, and some are just wrong."""
    if not offsets or offsets[0] != 0 or any(a >= b for a, b in itertools.pairwise(offsets)):
        return None
    starts = array("Q", (first + offset for offset in offsets))
    try:
        starts.append(_last_end(read_at, starts[-1], order))
    except BadPixelData:
        return None
    return FrameTable(starts)


def _last_end(read_at: ReadAt, start: int, order: str) -> int:
    end = start
    for position, length in items(read_at, start, order):
        end = position + _HEADER + length
    if end == start:
        raise BadPixelData("its offset table names a place without an item")
    return end


def items(read_at: ReadAt, position: int, order: str) -> Iterator[tuple[int, int]]:
    """(position of its header, length of its value) of each item up to the sequence delimiter."""
    while True:
        tag, length = item_header(read_at(position, _HEADER), order)
        if tag == DELIMITER:
            return
        if tag != ITEM:
            raise BadPixelData("its pixel data hold something else than items")
        yield position, length
        position += _HEADER + length


def fragments(table: FrameTable, pixels: PixelElement, read_at: ReadAt, number: int) -> list[tuple[int, int]]:
    """(first byte, byte after the last) of each fragment of frame *number*, pad bytes left out where they are known."""
    start, end = table.bounds(number)
    found = []
    for position, length in items(read_at, start, byte_order(pixels)):
        if position >= end:
            break
        found.append((position + _HEADER, position + _HEADER + length))
    size = sum(last - first for first, last in found)
    if table.lengths is not None and found and size - 1 <= table.lengths[number - 1] <= size:
        found[-1] = found[-1][0], found[-1][1] - (size - table.lengths[number - 1])
    return found


def _from_items(read_at: ReadAt, first: int, frames: int, transfer_syntax: str, order: str) -> FrameTable:
    starts = array("Q")
    end = first
    for position, length in items(read_at, first, order):
        starts.append(position)
        end = position + _HEADER + length
    starts.append(end)
    fragments = len(starts) - 1
    if fragments > frames == 1:
        starts = array("Q", (first, end))
    elif fragments > frames:
        starts = _joined(read_at, starts, transfer_syntax)
    if len(starts) - 1 != frames:
        raise BadPixelData(
            f"its header says {frames} frames and its pixel data have {fragments} fragments, {len(starts) - 1} frames"
        )
    return FrameTable(starts, trusted=True)


def _joined(read_at: ReadAt, starts: array[int], transfer_syntax: str) -> array[int]:
    """Frames that run to the fragment which ends as its codestream must; pad bytes may follow the mark."""
    syntax = lookup(transfer_syntax)
    marker = syntax.end_marker if syntax else None
    if marker is None:
        return starts
    joined = array("Q", starts[:1])
    for start, end in itertools.pairwise(starts):
        tail = max(start + _HEADER, end - END_MARKER_BYTES)
        if marker in read_at(tail, end - tail):
            joined.append(end)
    return joined
