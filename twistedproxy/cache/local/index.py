"""The index: where in the segments each entry is, and how many bytes the segments have.

An LMDB environment (see `twistedproxy.cache.local.facts`). It is not synchronized with the disk, and can be made anew from the
segments. A value of an entry takes 24 bytes; with its key, and the room that pages leave, an entry takes some 100.

Rules:
- An entry is in the index only once its bytes are in its segment, and never with a smaller fence than was there.
- Space is reserved before it is written; what all segments have reserved is known exactly, in the transaction that reserves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Optional

import attrs
import lmdb

from twistedproxy.cache.local.facts import in_parts, open_environment
from twistedproxy.cache.local.segments import Place

NAME = "index"
MAX_SIZE = 64 << 30
"""Bytes of address space: the file has as many bytes as it needs."""

INDEXED = struct.Struct("!IIIIQ")
"""Segment, offset, length, expiry (whole seconds since the epoch), fence."""

_SEGMENT = struct.Struct("!Q")
"""Bytes that a segment has reserved."""

_COUNTS = struct.Struct("!QQQQQ")
_COUNTS_KEY = b"\0c"
_SEGMENT_KEY = struct.Struct("!2sI")
_SEGMENTS = b"\0s"


class Indexed(NamedTuple):
    """An entry: its place, when it ends (whole seconds since the epoch), and its fence."""

    segment: int
    offset: int
    length: int
    ends: int
    fence: int

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.segment, self.offset, self.length)


@attrs.frozen
class Counts:
    """*reserved*: bytes of all segments. *next_segment*: a number that is free. *evicted*, *second_chances*: entries that were
    dropped with their segment, and those that were copied instead, ever; *dropped*: those segments."""

    reserved: int = 0
    next_segment: int = 1
    evicted: int = 0
    second_chances: int = 0
    dropped: int = 0


class EntryIndex:
    """The index below *folder*. Raises `lmdb.Error`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._environment = open_environment(self._path, MAX_SIZE)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove the files of an index."""
        for name in (NAME, NAME + "-lock"):
            (folder / name).unlink(missing_ok=True)

    # Entries.

    def begin_reading(self) -> lmdb.Transaction:
        """A transaction that sees the index as it is now; to be aborted. Entries have the layout `INDEXED`."""
        return self._environment.begin()

    def find(self, keys: Iterable[bytes]) -> list[Optional[Indexed]]:
        """What is at each of *keys*, all from one moment."""
        with self._environment.begin() as transaction:
            values = [transaction.get(key) for key in keys]
        return [None if value is None else _indexed(value) for value in values]

    def put(self, entries: Iterable[tuple[bytes, Indexed]], replace: bool = True) -> bool:
        """Add entries, whose segment must be there still; whether it was. *replace*: those of the same fence."""
        for part in in_parts(entries):
            with self._environment.begin(write=True) as transaction:
                if any(transaction.get(_segment_key(number)) is None for number in {one.segment for _, one in part}):
                    return False
                for key, entry in part:
                    held = transaction.get(key)
                    if held is None or INDEXED.unpack(held)[4] < entry.fence + replace:
                        transaction.put(key, INDEXED.pack(*entry))
        return True

    def remove_all(self, keys: Iterable[bytes]) -> None:
        """Take entries back."""
        for part in in_parts(keys):
            with self._environment.begin(write=True) as transaction:
                for key in part:
                    transaction.delete(key)

    def move(self, moves: Sequence[tuple[bytes, Indexed, Place]]) -> int:
        """Have those entries that are still what they were be at other places; how many those are."""
        moved = 0
        for part in in_parts(moves):
            with self._environment.begin(write=True) as transaction:
                for key, entry, place in part:
                    if transaction.get(key) == INDEXED.pack(*entry):
                        moved += transaction.put(key, INDEXED.pack(*place, entry.ends, entry.fence))
        return moved

    def leave(self, places: Sequence[tuple[bytes, Place]]) -> int:
        """Remove those entries that are still where *places* says; how many those were."""
        removed = 0
        for part in in_parts(places):
            with self._environment.begin(write=True) as transaction:
                for key, place in part:
                    held = transaction.get(key)
                    if held is not None and _indexed(held).place == place:
                        removed += transaction.delete(key)
        return removed

    # Segments.

    def segments(self) -> dict[int, int]:
        """The bytes that each segment has reserved, the oldest first."""
        with self._environment.begin() as transaction:
            return _segments(transaction)

    def counts(self) -> Counts:
        """What is known of all segments."""
        with self._environment.begin() as transaction:
            return _counts(transaction)

    def begin(self, size: int, limit: int, create: Callable[[int], None]) -> bool:
        """Reserve *size* bytes for a new segment, which *create* makes; False where all would have more than *limit* then."""
        with self._environment.begin(write=True) as transaction:
            counts = _counts(transaction)
            if counts.reserved + size > limit:
                return False
            create(counts.next_segment)
            transaction.put(_segment_key(counts.next_segment), _SEGMENT.pack(size))
            reserved, number = counts.reserved + size, counts.next_segment + 1
            _put_counts(transaction, attrs.evolve(counts, reserved=reserved, next_segment=number))
            return True

    def reserve(self, segment: int, size: int, limit: int) -> bool:
        """Have *segment* reserve *size* bytes in all. False where all would have more than *limit* then.

        Raises KeyError where the segment is gone."""
        with self._environment.begin(write=True) as transaction:
            counts, key = _counts(transaction), _segment_key(segment)
            held = transaction.get(key)
            if held is None:
                raise KeyError(segment)
            reserved = counts.reserved + size - _SEGMENT.unpack(held)[0]
            if reserved > limit:
                return False
            transaction.put(key, _SEGMENT.pack(size))
            _put_counts(transaction, attrs.evolve(counts, reserved=reserved))
            return True

    def end(self, segment: int, evicted: int = 0, second_chances: int = 0) -> None:
        """Give back what a segment that is gone has reserved."""
        with self._environment.begin(write=True) as transaction:
            counts, key = _counts(transaction), _segment_key(segment)
            held = transaction.get(key)
            if held is not None:
                transaction.delete(key)
                counts = attrs.evolve(
                    counts,
                    reserved=counts.reserved - _SEGMENT.unpack(held)[0],
                    evicted=counts.evicted + evicted,
                    second_chances=counts.second_chances + second_chances,
                    dropped=counts.dropped + 1,
                )
                _put_counts(transaction, counts)

    # The environment.

    def version(self) -> int:
        """A number that grows with each change, whichever process makes it."""
        return int(self._environment.info()["last_txnid"])

    def part(self, prefix: bytes, after: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The first *count* entries at most, with the layout `INDEXED`, whose keys begin with *prefix* and come after *after*."""
        with self._environment.begin() as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(after + b"\0" if after else prefix)
            entries = list(islice(cursor.iternext(), count)) if found else []
        return [entry for entry in entries if entry[0].startswith(prefix)]

    def under(self, prefix: bytes) -> list[bytes]:
        """The keys that begin with *prefix*."""
        keys: list[bytes] = []
        with self._environment.begin() as transaction:
            cursor = transaction.cursor()
            more = cursor.set_range(prefix)
            while more and bytes(cursor.key()).startswith(prefix):
                keys.append(bytes(cursor.key()))
                more = cursor.next()
        return keys

    def begin_anew(self, sizes: Mapping[int, int]) -> None:
        """Have an empty index know of segments that have these bytes."""
        with self._environment.begin(write=True) as transaction:
            for number, size in sizes.items():
                transaction.put(_segment_key(number), _SEGMENT.pack(size))
            _put_counts(transaction, Counts(sum(sizes.values()), max(sizes, default=0) + 1))

    def walk(self) -> None:
        """Read all of it, and begin to write: what is damaged raises, or ends the process."""
        with self._environment.begin() as transaction:
            for key, value in transaction.cursor():
                if not key.startswith(b"\0"):
                    _indexed(value)
        with self._environment.begin(write=True) as transaction:
            transaction.put(b"\0walked", b"")
            transaction.abort()

    def size(self) -> int:
        """Bytes that its file takes."""
        return self._path.stat().st_size

    def __len__(self) -> int:
        return int(self._environment.stat()["entries"])

    def check_readers(self) -> None:
        """Have the pages back that a killed reader held."""
        self._environment.reader_check()

    def close(self) -> None:
        """Close the index."""
        self._environment.close()


def _indexed(value: bytes) -> Indexed:
    return Indexed._make(INDEXED.unpack(value))


def _segment_key(number: int) -> bytes:
    return _SEGMENT_KEY.pack(_SEGMENTS, number)


def _segments(transaction: lmdb.Transaction) -> dict[int, int]:
    segments: dict[int, int] = {}
    cursor = transaction.cursor()
    more = cursor.set_range(_SEGMENTS)
    while more and bytes(cursor.key()).startswith(_SEGMENTS):
        segments[_SEGMENT_KEY.unpack(cursor.key())[1]] = _SEGMENT.unpack(cursor.value())[0]
        more = cursor.next()
    return segments


def _counts(transaction: lmdb.Transaction) -> Counts:
    held = transaction.get(_COUNTS_KEY)
    return Counts() if held is None else Counts(*_COUNTS.unpack(held))


def _put_counts(transaction: lmdb.Transaction, counts: Counts) -> None:
    transaction.put(_COUNTS_KEY, _COUNTS.pack(*attrs.astuple(counts)))
