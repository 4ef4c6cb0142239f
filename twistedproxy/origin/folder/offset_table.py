"""Where the frames of encapsulated pixel data lie (DICOM PS3.5 section A.4).

- An Extended or Basic Offset Table (PS3.3 section C.7.6.3) is believed as far as its numbers are possible; `frame_spans` looks
  at the items of each frame, and says where a table lied.
- Where there is none, the item headers are read once, eight bytes each: the pixels are not.
- What is kept is 8 bytes a frame (16 with an Extended Offset Table). pydicom's `get_frame` keeps nothing: it reads the table
  anew for each frame, and all items where there is none.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Optional

import attrs
import numpy

from twistedproxy.dicom.part10.pixels import END_MARKER_BYTES
from twistedproxy.origin.folder.instance_file import PixelElement, ReadAt, UnreadableFile, items

Spans = list[tuple[int, int]]  # (first byte, byte after the last)


@attrs.frozen(eq=False)
class OffsetTable:
    """The items of frame n (from 1), headers included, lie in [starts[n-1], starts[n]) of the content.

    *lengths*: bytes of each frame without pad bytes, where the Extended Offset Table said them. *trusted*: the item headers
    were seen.
    """

    starts: array[int]
    lengths: Optional[array[int]] = None
    trusted: bool = False

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return 8 * (len(self.starts) + len(self.lengths or ()))


def total(spans: Spans) -> int:
    """The bytes of *spans* together."""
    return sum(end - start for start, end in spans)


def find_frames(
    read_at: ReadAt, pixels: PixelElement, frames: int, end_marker: Optional[bytes], extended: Optional[Sequence[bytes]]
) -> OffsetTable:
    """Where encapsulated frames lie. Raises `UnreadableFile`; what *read_at* raises.

    *extended*: the values of (7FE0,0001) and (7FE0,0002), as far as there are any; None: no table is to be believed.
    """
    basic, first = next(items(read_at, pixels.start, pixels.little_endian), (0, 0))
    if not first:
        raise UnreadableFile("its pixel data do not begin with a Basic Offset Table")
    if extended is not None:
        tables = [(read_at(basic, first - basic), 4, b"")]
        if len(extended) == 2 and len(extended[1]) == 8 * frames:
            tables.insert(0, (extended[0], 8, extended[1]))
        for offsets, width, lengths in tables:
            if len(offsets) == width * frames and (table := _believed(read_at, pixels, first, offsets, width, lengths)):
                return table
    starts = array("Q", (first,))  # where a fragment ends, the next one begins
    starts.extend(end for _, end in items(read_at, first, pixels.little_endian))
    fragments = len(starts) - 1
    if fragments > frames == 1:
        starts = array("Q", (first, starts[-1]))
    elif fragments > frames and end_marker:
        # Frames run to the fragment that ends as its codestream must; pad bytes may follow the mark.
        tails = (
            (end, read_at(tail := max(start + 8, end - END_MARKER_BYTES), end - tail))
            for start, end in pairwise(starts)
        )
        starts = array("Q", (first, *(end for end, tail in tails if end_marker in tail)))
    if len(starts) - 1 != frames:
        raise UnreadableFile(
            f"its header says {frames} frames and its pixel data have {fragments} fragments, {len(starts) - 1} frames"
        )
    return OffsetTable(starts, trusted=True)


def _believed(
    read_at: ReadAt, pixels: PixelElement, first: int, offsets: bytes, width: int, lengths: bytes
) -> Optional[OffsetTable]:
    """A table from offsets that ascend from 0, else None: Basic offsets wrap at 4 GiB, and some are just wrong."""
    order = "<" if pixels.little_endian else ">"
    numbers = numpy.frombuffer(offsets, f"{order}u{width}").astype("u8")
    if numbers[0] or (numbers[1:] <= numbers[:-1]).any():
        return None
    starts = array("Q", (numbers + first).tobytes())
    try:
        ends = [end for _, end in items(read_at, starts[-1], pixels.little_endian)]
    except UnreadableFile:
        return None
    if not ends:  # it names a place without an item
        return None
    starts.append(ends[-1])
    sizes = array("Q", numpy.frombuffer(lengths, f"{order}u8").astype("u8").tobytes()) if lengths else None
    return OffsetTable(starts, sizes)


def frame_spans(table: OffsetTable, pixels: PixelElement, read_at: ReadAt, number: int) -> Spans:
    """Where the fragments of frame *number* lie, pad bytes left out where they are known. Raises `UnreadableFile`."""
    start, end = table.starts[number - 1 : number + 1]
    found: Spans = []
    for span in items(read_at, start, pixels.little_endian):
        found.append(span)
        if span[1] >= end:
            break
    if not found or found[-1][1] != end:
        raise UnreadableFile(f"frame {number} is not made of whole items")
    if table.lengths is not None:
        # The Extended Offset Table says how long the frame is without the byte that makes its item even.
        padding = total(found) - table.lengths[number - 1]
        if padding not in (0, 1):
            raise UnreadableFile(
                f"frame {number} has {total(found)} bytes where its table says {table.lengths[number - 1]}"
            )
        found[-1] = found[-1][0], end - padding
    return found
