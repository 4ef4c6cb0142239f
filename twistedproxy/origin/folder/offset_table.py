"""Where the frames of encapsulated pixel data lie (DICOM PS3.5 section A.4).

- An Extended or Basic Offset Table (PS3.3 section C.7.6.3) is believed as far as its numbers are possible; `frame_spans` looks
  at the items of each frame, and raises where a table is wrong.
- Where there is none, the item headers are read once, eight bytes each: the pixels are not.
- What is kept is 8 bytes a frame (16 with an Extended Offset Table). pydicom's `get_frame` keeps nothing: it reads the table
  anew for each frame, and all items where there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Optional

import attrs
import numpy
from numpy.typing import NDArray

from twistedproxy.dicom.part10.pixels import END_MARKER_BYTES
from twistedproxy.origin.folder.instance_file import PixelElement, ReadAt, UnreadableFile, items

_OVERHEAD = 600  # bytes of memory that a table takes beside its numbers: a folder may hold thousands of single images
Spans = list[tuple[int, int]]  # (first byte, byte after the last)


@attrs.frozen(eq=False)
class OffsetTable:
    """The items of frame n (from 1), headers included, lie from starts[n-1] to starts[n] of the content, or to its end.

    *lengths*: bytes of each frame without pad bytes, where the Extended Offset Table has them. *trusted*: the item headers
    were seen.
    """

    starts: NDArray[numpy.uint64]
    lengths: Optional[NDArray[numpy.uint64]] = None
    trusted: bool = False

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return _OVERHEAD + self.starts.nbytes + (0 if self.lengths is None else self.lengths.nbytes)


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
        order = "<" if pixels.little_endian else ">"
        tables = [(read_at(basic, first - basic), f"{order}u4", b"")]
        if len(extended) == 2 and len(extended[1]) == 8 * frames:
            tables.insert(0, (extended[0], f"{order}u8", extended[1]))
        for raw, kind, lengths in tables:
            if len(raw) == frames * numpy.dtype(kind).itemsize:
                offsets = numpy.frombuffer(raw, kind).astype("u8")
                # Basic offsets wrap at 4 GiB, and some are just wrong.
                if not offsets[0] and (offsets[1:] > offsets[:-1]).all():
                    return OffsetTable(offsets + first, numpy.frombuffer(lengths, kind) if lengths else None)
    # Where a fragment ends, the next one begins.
    ends = (end for _, end in items(read_at, first, pixels.little_endian))
    starts = numpy.fromiter(itertools.chain((first,), ends), "u8")
    fragments = len(starts) - 1
    if fragments > frames == 1:
        starts = starts[[0, -1]]
    elif fragments > frames and end_marker:
        # Frames run to the fragment that ends as its codestream must; pad bytes may follow the mark.
        marked = [
            end
            for start, end in itertools.pairwise(starts.tolist())
            if end_marker in read_at(tail := max(start + 8, end - END_MARKER_BYTES), end - tail)
        ]
        starts = numpy.array([first, *marked], "u8")
    if len(starts) - 1 != frames:
        raise UnreadableFile(
            f"its header has {frames} frames and its pixel data have {fragments} fragments, {len(starts) - 1} frames"
        )
    return OffsetTable(starts, trusted=True)


def frame_spans(table: OffsetTable, pixels: PixelElement, read_at: ReadAt, number: int) -> Spans:
    """Where the fragments of frame *number* lie, pad bytes left out where they are known. Raises `UnreadableFile`."""
    start, *ends = table.starts[number - 1 : number + 1].tolist()
    found: Spans = []
    for span in items(read_at, start, pixels.little_endian):
        found.append(span)
        if ends and span[1] >= ends[0]:
            break
    if not found or (ends and found[-1][1] != ends[0]):
        raise UnreadableFile(f"frame {number} is not made of whole items")
    if table.lengths is not None:
        # The Extended Offset Table has the length of the frame without the byte that makes its item even.
        padding = total(found) - int(table.lengths[number - 1])
        if padding not in (0, 1):
            raise UnreadableFile(f"frame {number} has {padding} more bytes than in its offset table")
        found[-1] = found[-1][0], found[-1][1] - padding
    return found


def total(spans: Spans) -> int:
    """The bytes of *spans* together."""
    return sum(end - start for start, end in spans)
