"""Which scopes were invalidated, and when: a journal that all processes of one proxy share.

Rules:
- An invalidation has a number, greater than those before it. The fence of an instance is the number of the last one that
  concerned the instance; what was written under a smaller one is never read again.
- A record is on the disk before its invalidation is confirmed: a machine that loses power forgets none.
- The file has its full size from the beginning: a full disk keeps no invalidation from being written.
- Readers look at the header, 0.2 us, and read only what is new.

Layout: a header (magic, how many records, the last number, CRC-32), then records (number, time, scope key, CRC-32).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from twistedproxy.cache.interface import Fence

NAME = "invalidations"

MAX_RECORDS = 100_000
"""Records that fit: 4.5 MB. When they are full, the next invalidation is one of everything."""

_HEADER = struct.Struct("!8sIQI")
_RECORD = struct.Struct("!Qd25sI")
_MAGIC = b"tpgener1"
_EVERYTHING = b"*" * 25
"""The scope key of all scopes."""

_TRIES = 5
"""Readings of a header that is just being written."""

_Record = tuple[int, float, bytes]


class JournalDamaged(OSError):
    """The journal is not what this version writes: it is not known what was invalidated."""


class Generations:
    """The journal in *folder*. Raises OSError, and `JournalDamaged`."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        if os.fstat(self._file).st_size < mmap.PAGESIZE:
            os.close(self._file)
            raise JournalDamaged("the journal of invalidations was cut off")
        self._header = mmap.mmap(self._file, mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._reading = threading.Lock()
        self._seen = b""
        self._count = 0
        self._last: dict[bytes, int] = {}
        self._number = 0
        self._everything = 0
        try:
            self._catch_up()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(folder: Path) -> None:
        """Begin an empty journal, in the place of what is there."""
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = _HEADER.size + MAX_RECORDS * _RECORD.size
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)
            os.pwrite(file, _header(0, 0), 0)
            os.fsync(file)
        finally:
            os.close(file)

    def fence(self, generations: Sequence[bytes]) -> Fence:
        """The present fence of what has these generation keys."""
        self.look()
        last = self._last  # before what stands for everything: another thread may just begin anew
        return max([*[last.get(key, 0) for key in generations], self._everything]).to_bytes(8, "big")

    def look(self) -> bytes:
        """Look for invalidations; what stands for those so far. As long as it is the same object, fences are the same."""
        if self._header[: _HEADER.size] != self._seen:
            self._catch_up()
        return self._seen

    def invalidate(self, keys: Sequence[bytes]) -> None:
        """End what lies below these scope keys. Blocks until the disk has it. Raises OSError."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._catch_up()
            full = self._count + len(keys) > MAX_RECORDS
            ended = (_EVERYTHING,) if full else keys
            records = [(number, time.time(), key) for number, key in enumerate(ended, self._number + 1)]
            self._append(records, 0 if full else self._count)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def compact(self) -> None:
        """Drop all but the last record of each scope. To be called while no other process has the journal.

        By its age none can be dropped: an entry that is given a second chance keeps the fence that it had, and outlives what
        was written after it."""
        last = {record[2]: record for record in self._records(0, self._count)}
        if len(last) < self._count:
            self._append(sorted(last.values()), 0)

    def close(self) -> None:
        """Close the file."""
        self._header.close()
        os.close(self._file)

    def _append(self, records: Sequence[_Record], at: int) -> None:
        os.pwrite(self._file, b"".join(map(_packed, records)), _HEADER.size + at * _RECORD.size)
        os.fdatasync(self._file)  # the records first: the header on the disk counts none that is not there
        number = max((record[0] for record in records), default=self._number)
        os.pwrite(self._file, _header(at + len(records), number), 0)
        os.fdatasync(self._file)
        self._catch_up()

    def _catch_up(self) -> None:
        with self._reading:
            for _ in range(_TRIES):
                seen = os.pread(self._file, _HEADER.size, 0)
                if len(seen) == _HEADER.size and seen == _header(*_HEADER.unpack(seen)[1:3]):
                    break
            else:
                raise JournalDamaged("the journal of invalidations has a damaged header")
            _, count, number, _ = _HEADER.unpack(seen)
            if number - self._number == count - self._count >= 0:
                first, last = self._count, self._last
            else:  # it began anew
                first, last = 0, {}
            records = self._records(first, count)
            for one, _, key in records:
                if key == _EVERYTHING:
                    self._everything = one
                last[key] = one
            self._last = last  # whole: other threads look into it
            self._count, self._number, self._seen = count, number, seen

    def _records(self, first: int, end: int) -> list[_Record]:
        packed = os.pread(self._file, (end - first) * _RECORD.size, _HEADER.size + first * _RECORD.size)
        records = [packed[at : at + _RECORD.size] for at in range(0, len(packed), _RECORD.size)]
        found: list[_Record] = []
        for record in records:
            number, when, key, _ = _RECORD.unpack(record) if len(record) == _RECORD.size else (0, 0.0, b"", 0)
            if record != _packed((number, when, key)):
                raise JournalDamaged("the journal of invalidations has a damaged record")
            found.append((number, when, key))
        if len(found) != end - first:
            raise JournalDamaged("the journal of invalidations was cut off")
        return found


def _header(count: int, number: int) -> bytes:
    return _HEADER.pack(_MAGIC, count, number, zlib.crc32(b"%d %d" % (count, number)))


def _packed(record: _Record) -> bytes:
    return _RECORD.pack(*record, zlib.crc32(_RECORD.pack(*record, 0)))
