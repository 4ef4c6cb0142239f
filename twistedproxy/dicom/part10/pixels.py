"""Pixel data: cut into frames as they come in a DICOM stream (PS3.5 section 8, annex A.4); the size of a native frame, and the
byte order (PS3.5 sections 7.3, 8.1 and 8.2).

Rules that this file keeps:

- A frame is given as soon as its last byte is there, and only then.
- Native frames have the length that rows, columns, samples and bits make, and the length of the value must fit; it is never
  length / number of frames: frames cut in the wrong places look like pictures.
- Bytes are swapped from the start of the value on: frames of an odd length begin in the middle of a word.
- Encapsulated: an offset table decides if it fits the number of frames; from where it stops ascending (Basic
  offsets wrap at 4 GiB, some writers leave zeros) the fragments decide. Then one fragment is one frame as long as
  each ends as its codestream must; where one doesn't, the frame runs to the fragment that does.
- An Extended Offset Table is used where it comes with its lengths and ascends throughout. Its lengths say where
  a frame ends in its item: without the pad byte, which all other frames keep, as pydicom's do.
- A frame without a byte is one only where an offset table says so: scanners leave tiles empty that hold nothing.
- What waits is bounded by one frame of at most `max_frame_bytes`, whatever lengths the stream claims.
"""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from collections.abc import Sequence

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.dataset import MAX_TABLE_BYTES, UNDEFINED_LENGTH, BadPart10, Gatherer

END_MARKER_BYTES = 10
"""How near to its fragment's end an end marker stands. PS3.5 section A.4 has at most one pad byte after it, some
writers align to more; pydicom looks as far."""

_ITEM = 0xE000FFFE  # (FFFE,E000) and (FFFE,E0DD), both halves read as one little endian number
_SEQUENCE_END = 0xE0DDFFFE
_HEADER = struct.Struct("<LL")
_WORDS = {2: "H", 4: "I", 8: "Q"}


class BadPixelLength(ValueError):
    """The length of the pixel data does not fit the attributes; `str()` says both."""


def native_frame_bits(facts: InstanceMetadata, length: int) -> int:
    """Bits of one frame of native pixel data of *length* bytes. Raises `BadPixelLength`.

    One pad byte is usual, some writers leave more behind, but a whole frame more is a wrong number of frames.
    Subsampled data may come with all samples: ultrasound machines and decompressing stores leave the photometric
    interpretation of the compressed data.
    """
    stated, whole = facts.frame_bits, facts.pixel_bits
    if not stated:
        raise BadPixelLength(f"the size of its frames is not known: {facts.columns} x {facts.rows} pixels")
    for bits in (stated, whole):
        if 0 <= length - -(-facts.frames * bits // 8) <= 1:
            return bits
    surplus = length - -(-facts.frames * stated // 8)
    if stated != whole or not 0 <= surplus < max(stated // 8, 2):
        raise BadPixelLength(
            f"{length} bytes of pixel data for {facts.frames} frames of {-(-stated // 8)} bytes:"
            f" {facts.columns} x {facts.rows} {facts.photometric_interpretation} pixels,"
            f" {facts.samples_per_pixel} samples of {facts.bits_allocated} bits"
        )
    return stated


def swapped_width(vr: str, bits_allocated: int) -> int:
    """How many bytes are swapped with each other in Explicit VR Big Endian; 1: none are.

    Samples of 8 bits or fewer are swapped in the words of OW (PS3.5 section 8.1.2), larger ones as a whole.
    """
    width = bits_allocated // 8
    if width in _WORDS:
        return width
    return 2 if vr == "OW" else 1


def swap_bytes(data: bytes, width: int) -> bytes:
    """*data* with the bytes of each word of *width* bytes in reverse; what is left of no whole word stays as it is."""
    if width == 1:
        return data
    whole = len(data) - len(data) % width
    words = array(_WORDS[width], data[:whole])
    words.byteswap()
    return words.tobytes() + data[whole:]


class NativeFrames:
    """Cuts native pixel data of *length* bytes into *frames* frames of *frame_length* bytes.

    *swapped*: of so many bytes are the words that have to be swapped (PS3.5 section 7.3).
    """

    def __init__(self, length: int, frames: int, frame_length: int, swapped: int = 1) -> None:
        if length == UNDEFINED_LENGTH:
            raise BadPart10("native pixel data of undefined length")
        self._frame_length = frame_length
        self._left = frames
        self._gather = Gatherer(frame_length)
        self._width = swapped
        self._rest = b""  # of no whole word yet

    @property
    def complete(self) -> bool:
        """Whether all frames have come."""
        return self._left == 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes of the value; return the frames that they complete."""
        if self._width > 1:
            chunk = self._rest + chunk
            whole = len(chunk) - len(chunk) % self._width
            chunk, self._rest = swap_bytes(chunk[:whole], self._width), chunk[whole:]
        data = self._gather.add(chunk) if self._left else None
        if data is None:
            return []
        step = self._frame_length
        count = min(len(data) // step, self._left)
        self._left -= count
        if self._left:
            self._gather.keep(data, count * step, step)
        return [data[start : start + step] for start in range(0, count * step, step)]


class EncapsulatedFrames:
    """Puts *frames* frames together from the items of encapsulated pixel data.

    *end_marker*: what each frame's codestream ends with, None where frames have no such mark. *whole_length*:
    bytes of a frame where all have the same (encapsulated uncompressed). *extended_offsets*: values of the Extended
    Offset Table and of its lengths (PS3.3 section C.7.6.3.1.8).
    """

    def __init__(
        self,
        frames: int,
        end_marker: bytes | None,
        max_frame_bytes: int,
        whole_length: int | None = None,
        extended_offsets: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        self._frames = frames
        self._end_marker = end_marker
        self._max_frame_bytes = max_frame_bytes
        self._whole_length = whole_length
        self._offsets, self._lengths = self._extended(*extended_offsets)
        self._has_basic_table = False
        self._given = 0
        self._position = 0  # of the next item, as offset tables count
        self._begun: bytearray | None = None  # the fragments of a frame that has more than one
        self._gather = Gatherer(8)
        self.complete = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes of the value; return the frames that they complete."""
        data = None if self.complete else self._gather.add(chunk)
        if data is None:
            return []
        frames: list[bytes] = []
        position, size, need = 0, len(data), 8
        while size - position >= 8:
            tag, length = _HEADER.unpack_from(data, position)
            if tag != _ITEM:
                self._end(tag, frames)
                return frames
            end = position + 8 + length
            if end > size:
                self._check_length(length)
                need = 8 + length
                break
            if not self._has_basic_table:
                self._has_basic_table = True
                self._offsets = self._offsets or self._basic(data[position + 8 : end])
            else:
                self._position += 8 + length
                self._add_fragment(data, position + 8, end, frames)
            position = end
        self._gather.keep(data, position, need)
        return frames

    def _add_fragment(self, data: bytes, start: int, end: int, frames: list[bytes]) -> None:
        begun = self._begun
        if begun is None and self._ends_frame(data, start, end):
            if end == start and not self._offsets:
                raise BadPart10("an empty frame")
            self._give(data[start:end], frames)
            return
        if len(begun or b"") + end - start > self._max_frame_bytes:
            raise BadPart10(f"a frame of more than {self._max_frame_bytes} bytes")
        self._begun = bytearray() if begun is None else begun
        self._begun += memoryview(data)[start:end]
        if begun is not None and self._ends_frame(begun, 0, len(begun)):
            self._give(bytes(begun), frames)

    def _ends_frame(self, data: bytes | bytearray, start: int, end: int) -> bool:
        """Whether the frame whose bytes so far are data[start:end] is complete; an item has just ended."""
        if self._frames == 1:  # PS3.5 section A.4: all fragments are the one frame's
            return False
        given = self._given
        if self._offsets:
            if given + 1 >= len(self._offsets):
                return False  # the last frame runs to the sequence's end
            following = self._offsets[given + 1]
            if following > self._offsets[given]:
                if self._position > following:
                    raise BadPart10(f"the offset table places frame {given + 2} inside a fragment")
                return self._position == following
            self._offsets = ()
        marker = self._end_marker
        if marker is None:
            return self._whole_length is None or end - start >= self._whole_length
        size = len(marker)
        if data[end - size : end] == marker:
            return end - start >= size
        return marker in data[max(start, end - END_MARKER_BYTES) : end]

    def _give(self, frame: bytes, frames: list[bytes]) -> None:
        self._begun = None
        self._given += 1
        if self._given > self._frames:
            raise BadPart10(f"more than the {self._frames} frames that the data set has")
        if self._lengths:
            length = self._lengths[self._given - 1]
            if not len(frame) - 1 <= length <= len(frame):
                raise BadPart10(f"frame {self._given} has {len(frame)} bytes where its offset table says {length}")
            frame = frame[:length]
        frames.append(frame)

    def _end(self, tag: int, frames: list[bytes]) -> None:
        """Something else than an item came: the delimiter, or the end of sense."""
        if tag != _SEQUENCE_END:
            raise BadPart10("an element that is not a fragment stands among the fragments")
        if self._begun is not None:
            if self._frames > 1 and not self._offsets:
                raise BadPart10("the last frame has no end marker")
            if not self._begun and self._frames == 1:
                raise BadPart10("an empty frame")
            self._give(bytes(self._begun), frames)
        if self._given != self._frames:
            raise BadPart10(f"{self._given} frames, the data set says {self._frames}")
        self.complete = True

    def _check_length(self, length: int) -> None:
        limit = self._max_frame_bytes - len(self._begun or b"") if self._has_basic_table else MAX_TABLE_BYTES
        if length > limit:
            raise BadPart10(f"a fragment or offset table of {length} bytes, more than {limit}")

    def _extended(self, table: bytes, table_lengths: bytes) -> tuple[Sequence[int], Sequence[int]]:
        """Offsets and lengths of the Extended Offset Table; none where it makes no sense."""
        offsets, lengths = (self._numbers(value, array("Q")) for value in (table, table_lengths))
        if not offsets or not lengths or offsets[0] != 0 or any(a >= b for a, b in itertools.pairwise(offsets)):
            return (), ()
        return offsets, lengths

    def _basic(self, table: bytes) -> Sequence[int]:
        """The offsets of the Basic Offset Table as far as is known now: they may wrap further on."""
        offsets = self._numbers(table, array("I"))
        return offsets if offsets and offsets[0] == 0 else ()

    def _numbers(self, table: bytes, numbers: array[int]) -> Sequence[int]:
        """What *table* holds, read into *numbers*, if there is one for each frame; else nothing."""
        if len(table) != self._frames * numbers.itemsize:
            return ()
        numbers.frombytes(table)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers
