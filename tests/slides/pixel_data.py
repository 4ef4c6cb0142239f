"""The Pixel Data element written by hand (DICOM PS3.5 section 8 and annex A.4).

By hand because tests want what a careful library won't write: fragments at will, an offset table or none,
elements behind the pixels.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import BinaryIO

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0" + b"\x00" * 4
_PIXEL_DATA = b"\xe0\x7f\x10\x00"


class OffsetTable(enum.Enum):
    """Where an encapsulated file says at which byte each frame starts."""

    NONE = "none"
    BASIC = "basic"
    EXTENDED = "extended"


def fragments(frame: bytes, count: int) -> list[bytes]:
    """Cut *frame* into at most *count* pieces of even length; only the last gets a pad byte."""
    padded = frame + b"\x00" * (len(frame) % 2)
    size = max(2, -(-len(padded) // count))
    size += size % 2
    return [padded[start : start + size] for start in range(0, len(padded), size)]


def frame_offsets(frames: Sequence[Sequence[bytes]]) -> list[int]:
    """The byte at which each frame's first item starts, counted from the first byte after the offset table."""
    offsets, place = [], 0
    for pieces in frames:
        offsets.append(place)
        place += sum(8 + len(piece) for piece in pieces)
    return offsets


def extended_table(frames: Sequence[Sequence[bytes]]) -> tuple[bytes, bytes]:
    """Extended Offset Table (7FE0,0001) and its Lengths (7FE0,0002): PS3.3 section C.7.6.3.1.8."""
    lengths = [sum(len(piece) for piece in pieces) for pieces in frames]
    form = f"<{len(frames)}Q"
    return struct.pack(form, *frame_offsets(frames)), struct.pack(form, *lengths)


def write_encapsulated(file: BinaryIO, frames: Sequence[Sequence[bytes]], basic_offset_table: bool) -> None:
    """Append Pixel Data (7FE0,0010) with one item per piece of every frame, explicit VR little endian."""
    table = struct.pack(f"<{len(frames)}I", *frame_offsets(frames)) if basic_offset_table else b""
    file.write(_PIXEL_DATA + b"OB\x00\x00\xff\xff\xff\xff")
    file.write(_ITEM + struct.pack("<I", len(table)) + table)
    for pieces in frames:
        file.writelines(_ITEM + struct.pack("<I", len(piece)) + piece for piece in pieces)
    file.write(_SEQUENCE_DELIMITER)
