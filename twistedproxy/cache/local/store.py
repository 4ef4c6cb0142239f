"""Entries in segments, and in the index: written, and dropped where others need their room.

Rules:
- All methods wait for the disk, or for other processes; those that write are called from one thread.
- Segments and index together never have more than the limit. The oldest segment that no process writes to is dropped; what was
  asked for while it was old is copied to the newest one (a second chance). One segment's room is kept for these copies.
- A full disk means that the cache has less: what is new is kept in the place of the oldest.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional

import attrs
import lmdb

from twistedproxy.cache.local import segments
from twistedproxy.cache.local.index import EntryIndex, Indexed
from twistedproxy.cache.local.segments import MARK_BYTES, Place, SegmentReader, SegmentWriter

SEGMENTS = 64
"""Into how many segments the limit is divided, of `MIN_SEGMENT` to `MAX_SEGMENT` bytes each."""

MIN_SEGMENT = 256 << 10
MAX_SEGMENT = 256 << 20
STEPS = 4
"""Steps in which a segment's bytes are reserved: what is reserved and not written is lost to others."""

LARGEST = 4
"""One part in so many of the limit is the most that one entry may take."""

BATCH_BYTES = 1 << 20
"""Bytes that are written at once."""

COPIED_AT_ONCE = 64
"""Entries that are given a second chance together."""

FULL_DISK_TRIES = 3
"""Segments that are dropped for one batch where the disk is full."""

Entry = tuple[bytes, tuple[bytes, ...]]
"""A key, and the pieces of its value."""


@attrs.define(eq=False)
class SegmentStore:
    """Entries below *folder*, of at most *limit* bytes with the index. *clock*: seconds since the epoch."""

    folder: Path
    limit: int
    clock: Callable[[], float]
    index: EntryIndex = attrs.field(init=False)
    reader: SegmentReader = attrs.field(init=False)
    index_seconds: deque[float] = attrs.field(init=False, factory=lambda: deque(maxlen=1000))
    """How long the last batches took to get into the index."""
    _writer: Optional[SegmentWriter] = attrs.field(init=False, default=None)
    _reserved: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.index = EntryIndex(self.folder)
        self.reader = SegmentReader(self.folder)

    @property
    def segment_bytes(self) -> int:
        """Bytes of a segment; one that has a single, larger entry has more."""
        return min(max(self.limit // SEGMENTS, MIN_SEGMENT), MAX_SEGMENT)

    # Reading.

    def read(self, key: bytes, entry: Indexed) -> Optional[memoryview]:
        """The value of an entry that the index has. Waits for the disk."""
        stored = self.reader.read(entry.place)
        found = None if stored is None else segments.checked(key, memoryview(stored))
        return None if found is None else found[0]

    # Writing.

    def put(self, entries: Iterable[Entry], fence: int, ends: int) -> bool:
        """Write entries; whether all were taken. Raises OSError and `lmdb.Error`."""
        for batch in _batches(entries, min(self.segment_bytes, BATCH_BYTES)):
            if not self._put_in_place(batch, fence, ends):
                return False
        return True

    def _put_in_place(self, batch: Sequence[Entry], fence: int, ends: int) -> bool:
        """Write a batch, where the disk is full in the place of the oldest."""
        for _ in range(FULL_DISK_TRIES):
            try:
                return self._put(batch, fence, ends)
            except (OSError, lmdb.Error):
                if not self._is_disk_full() or not self._drop_oldest():
                    raise
        return self._put(batch, fence, ends)

    def _is_disk_full(self) -> bool:
        """LMDB can't tell: it calls a full disk an input/output error."""
        space = os.statvfs(self.folder)
        return space.f_bavail * space.f_frsize < self.segment_bytes or not space.f_favail

    def remove(self, keys: Sequence[bytes]) -> None:
        """Take entries back. Raises OSError and `lmdb.Error`."""
        held = [key for key, entry in zip(keys, self.index.find(keys)) if entry is not None]
        self.index.remove_all(held)
        self._write([segments.packed(key, (), 0, 0, self.clock()) for key in held])

    def _put(self, batch: Sequence[Entry], fence: int, ends: int) -> bool:
        now = self.clock()
        packed = [segments.packed(key, pieces, fence, ends, now) for key, pieces in batch]
        places = self._write(packed)
        if places is None:
            return False
        began = time.perf_counter()
        taken = self.index.put((key, Indexed(*place, ends, fence)) for (key, _), place in zip(batch, places))
        self.index_seconds.append(time.perf_counter() - began)
        return taken

    def _write(self, packed: Sequence[list[bytes]], copying: bool = False) -> Optional[list[Place]]:
        """Write packed entries to one segment, in the order in which they come; where they are. None where there is no room.
        *copying*: into the room that is kept for copies."""
        lengths = [sum(map(len, pieces)) for pieces in packed]
        total = sum(lengths)
        if not total:
            return []
        if not self._has_room(total, copying):
            return None
        writer = self._writer
        assert writer is not None
        at = writer.append([piece for pieces in packed for piece in pieces])
        places = []
        for length in lengths:
            places.append(Place(writer.number, at, length))
            at += length
        return places

    def _has_room(self, size: int, copying: bool) -> bool:
        """Whether the segment that is written to has room for *size* bytes more: reserve it, or begin a new one."""
        if size > self.limit // LARGEST:
            return False
        if self._writer is not None and self._writer.size + size > max(self.segment_bytes, size):
            self.seal()
        step = max(self.segment_bytes // STEPS, 1)
        while self._writer is None or self._writer.size + size > self._reserved:
            wanted = size if self._writer is None else self._writer.size + size
            wanted = -(-wanted // step) * step
            if self._reserve(wanted, copying):
                self._reserved = wanted
            elif copying or not self._drop_oldest():
                return False
        return True

    def _reserve(self, size: int, copying: bool) -> bool:
        limit = self.limit - self.index.size() - (0 if copying else self.segment_bytes)
        if self._writer is not None:
            try:
                return self.index.reserve(self._writer.number, size, limit)
            except KeyError:  # somebody removed its file, and another process forgot it
                self._writer.close()
                self._writer = None
                return self._reserve(size, copying)
        try:
            return self.index.begin(size, limit, self._begin)
        except BaseException:
            self._abandon()
            raise

    def _begin(self, number: int) -> None:
        self._writer = SegmentWriter(self.folder, number)

    def _abandon(self) -> None:
        """Remove a segment that was begun, and that the index does not know of."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            segments.drop(self.folder, writer.number)

    def seal(self) -> None:
        """Write no more to the segment that is written to."""
        writer, self._writer, self._reserved = self._writer, None, 0
        if writer is not None:
            try:
                self.index.reserve(writer.number, writer.size, self.limit)
            except KeyError:
                pass
            finally:
                writer.close()

    # Dropping.

    def _drop_oldest(self) -> bool:
        """Drop the oldest segment that no process writes to; whether there is one."""
        for number in self.index.segments():
            if self._writer is not None and number == self._writer.number:
                continue
            with segments.unwritten(self.folder, number) as file:
                if file is None:
                    continue
                self._drop(number, file)
                return True
        return False

    def _drop(self, number: int, file: int) -> None:
        held = [(one.key, one.place) for one in segments.headers(file, number)] if file >= 0 else []
        copied = self._copy_marked(number, held)
        try:
            evicted = self.index.leave(held)
        except lmdb.Error:  # a full disk: the index needs room to get smaller
            segments.drop(self.folder, number)
            evicted = self.index.leave(held)
        segments.drop(self.folder, number)
        self.index.end(number, evicted, copied)

    def _copy_marked(self, number: int, held: Sequence[tuple[bytes, Place]]) -> int:
        """Write what was asked for again to the newest segment, half of a segment at most; how many entries those are."""
        marks = segments.marks_of(self.folder, number)
        marked = [(key, place) for key, place in held if marks[place.offset // MARK_BYTES :][:1] == b"\1"]
        found = self.index.find([key for key, _ in marked])
        left, copied = self.segment_bytes // 2, 0
        batch: list[tuple[bytes, Indexed, bytearray]] = []
        for (key, place), entry in zip(marked, found):
            left -= place.length
            if left < 0:
                break
            stored = self.reader.read(place) if entry is not None and entry.place == place else None
            if entry is not None and stored is not None and segments.checked(key, memoryview(stored)) is not None:
                batch.append((key, entry, stored))
            if len(batch) >= COPIED_AT_ONCE:
                copied += self._copy(batch)
                batch = []
        return copied + self._copy(batch)

    def _copy(self, batch: Sequence[tuple[bytes, Indexed, bytearray]]) -> int:
        try:
            places = self._write([[bytes(stored)] for _, _, stored in batch], copying=True)
            if not places:
                return 0
            return self.index.move([(key, entry, place) for (key, entry, _), place in zip(batch, places)])
        except (OSError, lmdb.Error):
            return 0

    def close(self) -> None:
        """Close all files."""
        self.seal()
        self.reader.close()
        self.index.close()


def _batches(entries: Iterable[Entry], most: int) -> Iterator[list[Entry]]:
    """Entries in lists of *most* bytes at most, where a single one has no more."""
    batch: list[Entry] = []
    left = most
    for entry in entries:
        length = segments.HEADER.size + len(entry[0]) + sum(map(len, entry[1]))
        if batch and length > left:
            yield batch
            batch, left = [], most
        batch.append(entry)
        left -= length
    if batch:
        yield batch
