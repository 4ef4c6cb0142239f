"""Segment files: where the bytes of entries are.

Rules:
- A segment is written by one process, at its end only, and never again once that process has gone on to the next one. It is
  locked (flock) for as long as it is written: the kernel drops the lock with the process.
- A number is never used twice. Who drops a segment cuts it off before unlinking it: its space comes back at once, whoever
  has it open, and a reader that comes late finds too few bytes.
- A reader in the reactor's thread takes what the page cache has (RWF_NOWAIT), and nothing else: a disk stops only threads.
- Nothing is believed that does not have its CRC-32.

An entry: a header (CRC-32 of all that follows, length of the key, length of the value, fence, expiry, time of writing, digest of the
last piece of the value), key, value. One that expired at 0 says that the entry of its key was taken back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Optional

import attrs
import psutil
from isal.isal_zlib import crc32  # 0.6 us for 9 kB where zlib takes 3

from twistedproxy.dicom.multipart_writer import content_digest

HEADER = struct.Struct("!IHIQId16s")
"""CRC-32, bytes of the key and of the value, fence, expiry (whole seconds since the epoch), time of writing, digest."""

MAX_KEY = 511
"""Bytes of a key: what LMDB takes."""

NEVER = 0xFFFFFFFF
"""The expiry of what does not expire."""

MARK_BYTES = 512
"""Bytes of a segment for which there is one mark."""

JOINED_BYTES = 4 << 20
"""Bytes that are put together for one write; of more, each piece is written by itself."""

_NAME = re.compile(r"[0-9a-f]{8}\.segment")


class WouldWait(Exception):
    """The bytes are not at hand without waiting for the disk."""


class Place(NamedTuple):
    """Where an entry is: the number of its segment, its first byte there, and its length with header and key."""

    segment: int
    offset: int
    length: int


def _marks_path(folder: Path, number: int) -> Path:
    return folder / f"{number:08x}.marks"


def segment_path(folder: Path, number: int) -> Path:
    """The file of a segment."""
    return folder / f"{number:08x}.segment"


def segment_numbers(folder: Path) -> list[int]:
    """The segments that *folder* has, the oldest first."""
    return sorted(int(name[:8], 16) for name in os.listdir(folder) if _NAME.fullmatch(name))


def packed(key: bytes, pieces: Sequence[bytes], fence: int, ends: int, now: float) -> list[bytes]:
    """The pieces of an entry with this key and a value of *pieces*."""
    size = sum(map(len, pieces))
    rest = HEADER.pack(0, len(key), size, fence, ends, now, content_digest(pieces[-1:]))[4:] + key
    crc = crc32(rest)
    for piece in pieces:
        crc = crc32(piece, crc)
    return [crc.to_bytes(4, "big") + rest, *pieces]


def checked(key: bytes, stored: memoryview) -> Optional[tuple[memoryview, bytes]]:
    """The value of the entry that *stored* is, and the `content_digest` of its last piece; None where it is not all there, not what
    was written, or not the entry of *key*."""
    if len(stored) < HEADER.size:
        return None
    crc, key_length, size, _, _, _, digest = HEADER.unpack_from(stored)
    start = HEADER.size + key_length
    if len(stored) != start + size or stored[HEADER.size : start] != key or crc32(stored[4:]) != crc:
        return None
    return stored[start:], digest


def _writes(pieces: Sequence[bytes]) -> Sequence[bytes]:
    return pieces if sum(map(len, pieces)) > JOINED_BYTES else (b"".join(pieces),)


class SegmentWriter:
    """The segment *number* of *folder*, new and written by this process. Raises OSError."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.size = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        drop(folder, number)  # what a process left that ended before the index knew of it
        self._file = os.open(segment_path(folder, number), flags, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(os.open(_marks_path(folder, number), flags, 0o600))
        except BaseException:
            self.close()
            raise

    def append(self, pieces: Sequence[bytes]) -> int:
        """Write *pieces* at the end; where they begin. Raises OSError, and then has written nothing that counts."""
        try:
            return self._append(pieces)
        except OSError:
            os.ftruncate(self._file, self.size)  # what is left of it must not be taken for entries
            raise

    def _append(self, pieces: Sequence[bytes]) -> int:
        start = at = self.size
        for part in _writes(pieces):
            view = memoryview(part)
            while view:
                count = os.pwrite(self._file, view, at)
                at, view = at + count, view[count:]
        self.size = at
        return start

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


class SegmentReader:
    """Reads entries of the segments of *folder*. `read_now` is for the reactor's thread, all others are not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}
        self._flags = 0 if in_memory(folder) else getattr(os, "RWF_NOWAIT", -1)

    def read_now(self, segment: int, offset: int, into: memoryview) -> None:
        """Read as many bytes as *into* has. Raises `WouldWait`, also where the segment ends before."""
        file = self._files.get(segment, -1)
        if file < 0 or self._flags < 0:
            raise WouldWait
        try:
            count = os.preadv(file, (into,), offset, self._flags)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                self._flags = -1  # this file system can't tell
            raise WouldWait from None
        if count != len(into):
            raise WouldWait

    def read(self, place: Place) -> Optional[bytearray]:
        """The bytes at *place*; None where the segment has gone, or ends before. Waits for the disk."""
        stored = bytearray(place.length)
        view = memoryview(stored)
        at = 0
        try:
            file = self._files.get(place.segment, -1)
            if file < 0:
                file = self._open(place.segment)
            while at < place.length:
                count = os.preadv(file, [view[at:]], place.offset + at)
                if not count:
                    return None
                at += count
        except OSError:
            return None
        return stored

    def _open(self, number: int) -> int:
        file = os.open(segment_path(self._folder, number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        held = self._files.setdefault(number, file)
        if held != file:  # another thread was faster
            os.close(file)
        return held

    def forget(self, living: Iterable[int]) -> list[int]:
        """Forget segments that are not *living*; their files, which are to be closed in a moment: no thread reads them any more."""
        gone = set(self._files).difference(living)
        return [self._files.pop(number) for number in gone]

    def close(self) -> None:
        """Close all files."""
        for file in self.forget(()):
            os.close(file)


def in_memory(folder: Path) -> bool:
    """Whether the file system of *folder* is one in memory: reading it never waits for a disk. (It may not know RWF_NOWAIT.)"""
    mounts = [(mount.mountpoint, mount.fstype) for mount in psutil.disk_partitions(all=True)]
    resolved = folder.resolve()
    over = [(len(point), kind) for point, kind in mounts if resolved.is_relative_to(point)]
    return max(over, default=(0, ""))[1] in ("tmpfs", "ramfs")


@attrs.frozen
class EntryHeader:
    """How an entry begins: not checked."""

    place: Place
    key: bytes
    fence: int
    ends: int
    written: float


def headers(file: int, number: int) -> Iterator[EntryHeader]:
    """The entries of the segment *number*, which is open as *file*, in the order of their writing. Ends at what can't be one."""
    at, end = 0, os.fstat(file).st_size
    while at + HEADER.size <= end:
        start = os.pread(file, HEADER.size + MAX_KEY, at)
        _, key_length, size, fence, ends, written, _ = HEADER.unpack_from(start)
        length = HEADER.size + key_length + size
        if not 0 < key_length <= MAX_KEY or at + length > end:
            return
        key = start[HEADER.size : HEADER.size + key_length]
        yield EntryHeader(Place(number, at, length), key, fence, ends, written)
        at += length


def mark(folder: Path, places: Iterable[Place]) -> None:
    """Note that the entries at *places* were asked for."""
    by_segment: dict[int, set[int]] = {}
    for place in places:
        by_segment.setdefault(place.segment, set()).add(place.offset // MARK_BYTES)
    for number, marks in by_segment.items():
        try:
            file = os.open(_marks_path(folder, number), os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            for one in marks:
                os.pwrite(file, b"\1", one)
        except OSError:
            pass  # a full disk: a second chance less
        finally:
            os.close(file)


def marks_of(folder: Path, number: int) -> bytes:
    """The marks of a segment: 1 at ``offset // MARK_BYTES`` of what was asked for."""
    try:
        return _marks_path(folder, number).read_bytes()
    except OSError:
        return b""


def drop(folder: Path, number: int) -> None:
    """Remove a segment. Its space comes back now."""
    for path in (segment_path(folder, number), _marks_path(folder, number)):
        try:
            os.truncate(path, 0)
            os.unlink(path)
        except FileNotFoundError:
            pass


@contextmanager
def unwritten(folder: Path, number: int) -> Iterator[Optional[int]]:
    """Lock a segment that no process writes to or drops; its open file, -1 where there is none, None where one does."""
    try:
        file = os.open(segment_path(folder, number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield -1
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except OSError:
        locked = False
    try:
        yield file if locked else None
    finally:
        os.close(file)
