"""Frames out of an indexed file, as stored, and files as they are. Blocking: call it in a thread.

- A frame read reads that frame's bytes and the headers of its items, and no others. The frame of an encapsulated file is made
  of whole items, the one of a native file has its size.
- What is read comes from the very state of the file that was indexed, or `FileChanged` is raised.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.dataset import EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS, PIXEL_DATA
from twistedproxy.dicom.part10.pixels import native_frame_bits, swap_bytes, swapped_width
from twistedproxy.dicom.sniffing import other_codec
from twistedproxy.dicom.transfer_syntaxes import may_be
from twistedproxy.origin.folder.instance_file import (
    MAX_INFLATED,
    FileChanged,
    PixelElement,
    ReadAt,
    Stamp,
    StoredFile,
    UnreadableFile,
    open_content,
    open_plain,
    read_dataset,
    reader,
    stamp_of,
)
from twistedproxy.origin.folder.offset_table import OffsetTable, Spans, find_frames, frame_spans, total
from twistedproxy.streams import StreamTooLong

MAX_OPEN = 64  # files; a series of a slide has a dozen, the usual limit of a process is 1024
MAX_TABLE_BYTES = 64 * 1024 * 1024  # of all remembered tables: sixteen slides of 500,000 frames
CHUNK = 512 * 1024  # bytes read at once of what is streamed; a multiple of all words
_EXTENDED = [EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS]


class _Descriptor:
    """An open file, closed when nothing uses it any more."""

    def __init__(self, path: str, _stamp: Stamp) -> None:
        self._number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def stamp(self) -> Stamp:
        return stamp_of(os.fstat(self._number))

    def read_at(self, offset: int, size: int) -> bytes:
        """`os.pread` may give less than asked for, also before the end."""
        found = os.pread(self._number, size, offset)
        while len(found) < size and (more := os.pread(self._number, size - len(found), offset + len(found))):
            found += more
        return found


class FileReader:
    """Reads files, and remembers where their frames are. Its methods may be called from several threads.

    They raise `FileChanged`, `UnreadableFile`, `BadPixelLength`, `OSError`. Few files stay open: to open one of a network drive takes its time.
    """

    def __init__(self, max_open: int = MAX_OPEN, max_table_bytes: int = MAX_TABLE_BYTES) -> None:
        self._open = functools.lru_cache(max_open)(_Descriptor)
        self._max_table_bytes = max_table_bytes
        self._tables: OrderedDict[tuple[str, Stamp], OffsetTable] = OrderedDict()
        self._table_bytes = 0
        self._lock = threading.Lock()

    @property
    def open_files(self) -> int:
        """How many files are kept open."""
        return self._open.cache_info().currsize

    def close(self) -> None:
        """Keep none open: files that went or were replaced hold disk space while they are."""
        self._open.cache_clear()

    @contextmanager
    def reading(self, record: StoredFile) -> Iterator[ReadAt]:
        """Give a function that reads from the file."""
        opened = self._open(record.path, record.stamp)
        self._check(opened, record)
        yield opened.read_at
        self._check(opened, record)

    def _check(self, opened: _Descriptor, record: StoredFile) -> None:
        if opened.stamp() != record.stamp:
            self.close()
            raise FileChanged(record.path)

    @contextmanager
    def _content(self, record: StoredFile) -> Iterator[ReadAt]:
        with self.reading(record) as read_at:
            if not record.syntax.deflated:
                yield read_at
                return
            # Rare, and small by nature: inflated anew for each request rather than remembered.
            with open_plain(record.path) as file:
                yield reader(open_content(file))

    def has_table(self, record: StoredFile) -> bool:
        """Whether the frames of *record* can be read without looking for them first."""
        native = record.pixels is None or record.pixels.length is not None
        return native or (record.path, record.stamp) in self._tables

    def prepare(self, record: StoredFile) -> None:
        """Find out where the frames are."""
        with self._content(record) as read_at:
            self._table(record, _pixels(record), read_at)

    def read(self, record: StoredFile, numbers: Sequence[int], limit: Optional[int] = None) -> list[bytes]:
        """The frames *numbers* (from 1, all within the record's frames), native ones in little endian.

        Raises `StreamTooLong` before anything beyond *limit* bytes is read.
        """
        pixels = _pixels(record)
        with self._content(record) as read_at:
            if pixels.length is None:
                spans = [self._spans(record, pixels, read_at, number) for number in numbers]
                _check_limit(sum(map(total, spans)), limit)
                frames = [b"".join([read_at(start, end - start) for start, end in one]) for one in spans]
                if any(len(frame) != total(one) for frame, one in zip(frames, spans)):
                    raise UnreadableFile("its pixel data are cut off")
            else:
                _check_limit(len(numbers) * -(-native_frame_bits(record.facts, pixels.length) // 8), limit)
                frames = [native_frame(pixels, record.facts, read_at, number) for number in numbers]
        syntax = record.common.transfer_syntax
        if frames and (shown := other_codec(frames[0], syntax)):
            raise UnreadableFile(f"its frames are {shown}, which is not its transfer syntax")
        for number, frame in zip(numbers, frames):
            if frame and not may_be(frame, syntax):
                raise UnreadableFile(f"frame {number} begins with {frame[:16]!r}, as none in {syntax} does")
        return frames

    def pixel_data(self, record: StoredFile, count: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """All pixel data, as the bytes of *count* values: frames where they are encapsulated, which may be large (a video)."""
        pixels = _pixels(record)
        for number in range(1, count + 1):
            spans = [(pixels.start, pixels.start + (pixels.length or 0))]
            if pixels.length is None:
                with self._content(record) as read_at:
                    spans = self._spans(record, pixels, read_at, number)
            yield total(spans), self._chunks(record, pixels, spans)

    def _chunks(self, record: StoredFile, pixels: PixelElement, spans: Spans) -> Iterator[bytes]:
        """Native ones in little endian. The file is in use only within a piece."""
        step = MAX_INFLATED if record.syntax.deflated else CHUNK  # it is inflated for each piece anew
        for start, end in spans:
            for position in range(start, end, step):
                with self._content(record) as read_at:
                    chunk = read_at(position, min(step, end - position))
                yield swap_bytes(chunk, _swapped(pixels, record.facts))

    def file_chunks(self, record: StoredFile) -> Iterator[bytes]:
        """The whole file in pieces."""
        for position in range(0, record.stamp.size, CHUNK):
            with self.reading(record) as read_at:
                yield read_at(position, CHUNK)

    def _spans(self, record: StoredFile, pixels: PixelElement, read_at: ReadAt, number: int) -> Spans:
        table = self._table(record, pixels, read_at)
        try:
            return frame_spans(table, pixels, read_at, number)
        except UnreadableFile:
            if table.trusted:
                raise
            table = self._remember(record, find_frames(read_at, pixels, record.frames, record.syntax.end_marker, None))
            return frame_spans(table, pixels, read_at, number)

    def _table(self, record: StoredFile, pixels: PixelElement, read_at: ReadAt) -> OffsetTable:
        key = record.path, record.stamp
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        with open_plain(record.path) as file:
            dataset, _ = read_dataset(file, _EXTENDED)
        extended = [bytes(dataset[tag].value or b"") for tag in _EXTENDED if tag in dataset]
        found = find_frames(read_at, pixels, record.frames, record.syntax.end_marker, extended)
        return self._remember(record, found)

    def _remember(self, record: StoredFile, table: OffsetTable) -> OffsetTable:
        with self._lock:
            previous = self._tables.pop((record.path, record.stamp), None)
            self._tables[record.path, record.stamp] = table
            self._table_bytes += table.size - (previous.size if previous else 0)
            while self._table_bytes > self._max_table_bytes and len(self._tables) > 1:
                self._table_bytes -= self._tables.popitem(last=False)[1].size
        return table


def _check_limit(count: int, limit: Optional[int]) -> None:
    if limit is not None and count > limit:
        raise StreamTooLong(f"more than {limit} bytes")


def _pixels(record: StoredFile) -> PixelElement:
    """The pixel data, of the kind that belongs to the transfer syntax (PS3.5 section A.4: undefined length if encapsulated)."""
    pixels, syntax = record.pixels, record.syntax
    if pixels is None:
        raise UnreadableFile("it has no pixel data")
    if (syntax.encapsulated and pixels.tag == PIXEL_DATA) != (pixels.length is None):
        kind = "defined" if pixels.length is not None else "undefined"
        raise UnreadableFile(f"its pixel data have {kind} length, its transfer syntax is {syntax.uid}")
    return pixels


def _swapped(pixels: PixelElement, facts: InstanceMetadata) -> int:
    """Of how many bytes the words are that have to be swapped for little endian; 1: none."""
    return 1 if pixels.little_endian else swapped_width(pixels.vr, facts.bits_allocated)


def native_frame(pixels: PixelElement, facts: InstanceMetadata, read_at: ReadAt, number: int) -> bytes:
    """Frame *number* of native pixel data; one of 1-bit samples begins at a bit, least significant first (PS3.5 section 8.1.1),
    and is padded with zeros to whole bytes."""
    bits = native_frame_bits(facts, pixels.length or 0)
    start, end, shift = (number - 1) * bits // 8, -(-number * bits // 8), (number - 1) * bits % 8
    width = _swapped(pixels, facts)  # words are counted from the start of the value
    before, after = start % width, -end % width
    raw = swap_bytes(read_at(pixels.start + start - before, before + end - start + after), width)[before:][
        : end - start
    ]
    if len(raw) != end - start:
        raise UnreadableFile(f"frame {number} is cut off")
    if not shift and not bits % 8:
        return raw
    value = (int.from_bytes(raw, "little") >> shift) & ((1 << bits) - 1)
    return value.to_bytes(-(-bits // 8), "little")
