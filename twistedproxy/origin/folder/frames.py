"""Frames out of an indexed file, as stored. Blocking: call it in a thread.

- A frame read reads that frame's bytes and no others.
- Every encapsulated frame is checked by its item headers; every native one by its size.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

from twistedproxy.dicom.native_pixels import PIXEL_DATA, swap_bytes
from twistedproxy.dicom.part10.dataset import EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS
from twistedproxy.dicom.sniffing import may_be, other_codec
from twistedproxy.dicom.transfer_syntaxes import lookup
from twistedproxy.origin.folder.instance_file import (
    MAX_INFLATED,
    PixelElement,
    Stamp,
    StoredFile,
    UnreadableFile,
    open_content,
    open_plain,
    read_dataset,
)
from twistedproxy.origin.folder.offset_table import (
    ITEM,
    BadPixelData,
    FrameTable,
    ReadAt,
    build_table,
    byte_order,
    fragments,
    item_header,
    native_span,
)
from twistedproxy.origin.folder.open_files import OpenFiles
from twistedproxy.streams import StreamTooLong

MAX_TABLE_BYTES = 64 * 1024 * 1024  # of all remembered tables; 8 bytes a frame: sixteen slides of 500,000 frames
_ITEM_HEADER = 8
_CHUNK = 512 * 1024  # bytes read at once of what is streamed; a multiple of all words


class FrameReader:
    """Reads frames, and remembers where they are. Its methods may be called from several threads."""

    def __init__(self, files: OpenFiles, max_table_bytes: int = MAX_TABLE_BYTES) -> None:
        self._files = files
        self._max_table_bytes = max_table_bytes
        self._tables: OrderedDict[tuple[str, Stamp], FrameTable] = OrderedDict()
        self._table_bytes = 0
        self._lock = threading.Lock()

    def has_table(self, record: StoredFile) -> bool:
        """Whether the frames of *record* can be read without looking for them first."""
        native = record.pixels is None or record.pixels.length is not None
        with self._lock:
            return native or (record.path, record.stamp) in self._tables

    def prepare(self, record: StoredFile) -> None:
        """Find out where the frames are. Raises `BadPixelData`, `FileChanged`, `OSError`."""
        with self._content(record) as read_at:
            self._table(record, read_at)

    def read(self, record: StoredFile, numbers: Sequence[int], limit: Optional[int] = None) -> list[bytes]:
        """The frames *numbers* (from 1, all within the record's frames), native ones in little endian.

        Raises `BadPixelData`, `FileChanged`, `OSError`, and `StreamTooLong` before anything beyond *limit* bytes is read.
        """
        with self._content(record) as read_at:
            spans = [self._span(record, read_at, number) for number in numbers]
            if limit is not None and sum(end - start for start, end in spans) > limit + _ITEM_HEADER * len(spans):
                raise StreamTooLong(f"more than {limit} bytes")
            frames = [self._frame(record, read_at, number) for number in numbers]
        if limit is not None and sum(map(len, frames)) > limit:
            raise StreamTooLong(f"more than {limit} bytes")
        if frames and (shown := other_codec(frames[0], record.transfer_syntax)):
            raise BadPixelData(f"its frames are {shown}, which is not its transfer syntax")
        for number, frame in zip(numbers, frames):
            if frame and not may_be(frame, record.transfer_syntax):
                raise BadPixelData(
                    f"frame {number} begins with {frame[:16]!r}, as none in {record.transfer_syntax} does"
                )
        return frames

    def spans(self, record: StoredFile, number: Optional[int] = None) -> list[tuple[int, int]]:
        """Where the bytes of a frame, or of all native pixel data, lie: (first, after the last) of each piece.

        A frame that is large (a video) can be read so piece by piece. Raises as `read` does.
        """
        with self._content(record) as read_at:
            pixels = _pixels(record)
            if number is None:
                assert pixels.length is not None
                return [(pixels.start, pixels.start + pixels.length)]
            table = self._table(record, read_at)
            return fragments(table, pixels, read_at, number)

    def chunks(self, record: StoredFile, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of *spans* in pieces, native ones in little endian. The file is open only within a piece."""
        step = _CHUNK if not record.deflated else MAX_INFLATED  # which is inflated for each piece anew
        for start, end in spans:
            for position in range(start, end, step):
                with self._content(record) as read_at:
                    chunk = read_at(position, min(step, end - position))
                if len(chunk) != min(step, end - position):
                    raise BadPixelData("its pixel data are cut off")
                yield swap_bytes(chunk, record.swapped)

    @contextmanager
    def _content(self, record: StoredFile) -> Iterator[ReadAt]:
        with self._files.reading(record) as read_at:
            if not record.deflated:
                yield read_at
                return
            # Rare, and small by nature: inflated anew for each request rather than remembered.
            with open_plain(record.path) as file:
                content = open_content(file)
                yield lambda offset, size: _slice(content, offset, size)

    def _span(self, record: StoredFile, read_at: ReadAt, number: int) -> tuple[int, int]:
        pixels = _pixels(record)
        if pixels.length is None:
            return self._table(record, read_at).bounds(number)
        return native_span(pixels, record.facts, number)[:2]

    def _frame(self, record: StoredFile, read_at: ReadAt, number: int) -> bytes:
        pixels = _pixels(record)
        if pixels.length is not None:
            return _native_frame(record, pixels, read_at, number)
        table = self._table(record, read_at)
        try:
            return _encapsulated_frame(table, pixels, read_at, number)
        except BadPixelData:
            if table.trusted:
                raise
            table = self._remember(record, _look(record, pixels, read_at, believe_tables=False))
            return _encapsulated_frame(table, pixels, read_at, number)

    def _table(self, record: StoredFile, read_at: ReadAt) -> FrameTable:
        key = record.path, record.stamp
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        return self._remember(record, _look(record, _pixels(record), read_at, believe_tables=True))

    def _remember(self, record: StoredFile, table: FrameTable) -> FrameTable:
        with self._lock:
            previous = self._tables.pop((record.path, record.stamp), None)
            self._tables[record.path, record.stamp] = table
            self._table_bytes += table.size - (previous.size if previous else 0)
            while self._table_bytes > self._max_table_bytes and len(self._tables) > 1:
                self._table_bytes -= self._tables.popitem(last=False)[1].size
        return table


def _pixels(record: StoredFile) -> PixelElement:
    """The pixel data, of the kind that the transfer syntax says (PS3.5 section A.4: undefined length if encapsulated)."""
    pixels, syntax = record.pixels, lookup(record.transfer_syntax)
    if pixels is None:
        raise BadPixelData("it has no pixel data")
    if syntax is not None and (syntax.encapsulated and pixels.tag == PIXEL_DATA) != (pixels.length is None):
        kind = "defined" if pixels.length is not None else "undefined"
        raise BadPixelData(f"its pixel data have {kind} length, its transfer syntax is {syntax.uid}")
    return pixels


def _look(record: StoredFile, pixels: PixelElement, read_at: ReadAt, believe_tables: bool) -> FrameTable:
    extended = _extended_tables(record) if believe_tables else None
    return build_table(read_at, pixels, record.frames, record.transfer_syntax, extended, believe_tables)


def _extended_tables(record: StoredFile) -> Optional[tuple[bytes, bytes]]:
    """The Extended Offset Table and its lengths (PS3.3 section C.7.6.3), where there are both."""
    try:
        with open_plain(record.path) as file:
            dataset = read_dataset(file, [EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS])
        return bytes(dataset[EXTENDED_OFFSET_TABLE].value), bytes(dataset[EXTENDED_OFFSET_TABLE_LENGTHS].value)
    except (KeyError, TypeError, UnreadableFile):
        return None


def _encapsulated_frame(table: FrameTable, pixels: PixelElement, read_at: ReadAt, number: int) -> bytes:
    start, end = table.bounds(number)
    raw = read_at(start, end - start)
    if len(raw) != end - start:
        raise BadPixelData(f"frame {number} is cut off")
    order = byte_order(pixels)
    fragments = []
    position = 0
    while position < len(raw):
        tag, length = item_header(raw[position : position + _ITEM_HEADER], order)
        position += _ITEM_HEADER
        if tag != ITEM or position + length > len(raw):
            raise BadPixelData(f"frame {number} is not made of whole items")
        fragments.append(raw[position : position + length])
        position += length
    frame = fragments[0] if len(fragments) == 1 else b"".join(fragments)
    if table.lengths is None:
        return frame
    # The Extended Offset Table says how long the frame is without the byte that makes its item even.
    if not len(frame) - 1 <= table.lengths[number - 1] <= len(frame):
        raise BadPixelData(f"frame {number} has {len(frame)} bytes where its table says {table.lengths[number - 1]}")
    return frame[: table.lengths[number - 1]]


def _native_frame(record: StoredFile, pixels: PixelElement, read_at: ReadAt, number: int) -> bytes:
    start, end, shift = native_span(pixels, record.facts, number)
    width = record.swapped  # words are counted from the start of the value
    before, after = (start - pixels.start) % width, -(end - pixels.start) % width
    raw = swap_bytes(read_at(start - before, before + end - start + after), width)[before:][: end - start]
    if len(raw) != end - start:
        raise BadPixelData(f"frame {number} is cut off")
    return raw if record.facts.bits_allocated % 8 == 0 else _bits(raw, shift, record.facts.frame_bits)


def _bits(raw: bytes, shift: int, count: int) -> bytes:
    """*count* bits from bit *shift* on, least significant first (PS3.5 section 8.1.1), padded with zeros to whole bytes."""
    if shift == 0 and count == 8 * len(raw):
        return raw
    value = (int.from_bytes(raw, "little") >> shift) & ((1 << count) - 1)
    return value.to_bytes(-(-count // 8), "little")


def _slice(content: object, offset: int, size: int) -> bytes:
    assert isinstance(content, io.BytesIO)  # open_content inflates into memory
    content.seek(offset)
    return content.read(size)
