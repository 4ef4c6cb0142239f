"""Open files, few and remembered. Used from several threads at once.

- At most `MAX_OPEN` stay open while nobody reads them, the least recently used go first.
- A file is checked when it is opened, before and after each read: what is read comes from the very state of
  the file that was indexed, or `FileChanged` is raised.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from twistedproxy.origin.folder.instance_file import FileChanged, Stamp, StoredFile

MAX_OPEN = 64  # a series of a slide has a dozen files; the usual limit of a process is 1024


@attrs.define(eq=False)
class _Open:
    descriptor: int
    readers: int = 0
    dropped: bool = False


class OpenFiles:
    """Descriptors by file."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self._max_open = max_open
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, Stamp], _Open] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    @contextmanager
    def reading(self, record: StoredFile) -> Iterator[Callable[[int, int], bytes]]:
        """Give a function that reads (offset, size) from the file. Raises `FileChanged`, `OSError`."""
        opened = self._take(record)
        try:
            self._check(opened, record)
            yield lambda offset, size: _read_at(opened.descriptor, offset, size)
            self._check(opened, record)
        finally:
            self._give_back(opened)

    def keep_only(self, wanted: Callable[[str, Stamp], bool]) -> None:
        """Close what is not *wanted* any more (files that went or were replaced hold disk space while open)."""
        with self._lock:
            for key in [key for key in self._files if not wanted(*key)]:
                self._drop(key)

    def close(self) -> None:
        self.keep_only(lambda _path, _stamp: False)

    def _take(self, record: StoredFile) -> _Open:
        key = record.path, record.stamp
        with self._lock:
            opened = self._files.get(key)
            if opened is not None:
                self._files.move_to_end(key)
                opened.readers += 1
                return opened
        # Opened outside the lock: on a slow disk this takes its time.
        descriptor = os.open(record.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with self._lock:
            if key in self._files:
                os.close(descriptor)
            else:
                self._files[key] = _Open(descriptor)
                while len(self._files) > self._max_open:
                    self._drop(next(iter(self._files)))
            opened = self._files[key]
            opened.readers += 1
            return opened

    def _drop(self, key: tuple[str, Stamp]) -> None:
        opened = self._files.pop(key)
        opened.dropped = True
        if not opened.readers:
            os.close(opened.descriptor)

    def _give_back(self, opened: _Open) -> None:
        with self._lock:
            opened.readers -= 1
            if opened.dropped and not opened.readers:
                os.close(opened.descriptor)

    def _check(self, opened: _Open, record: StoredFile) -> None:
        if Stamp.of(os.fstat(opened.descriptor)) != record.stamp:
            with self._lock:
                if self._files.get((record.path, record.stamp)) is opened:
                    self._drop((record.path, record.stamp))
            raise FileChanged(record.path)


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    """`os.pread` may give less than asked for, also before the end."""
    found = os.pread(descriptor, size, offset)
    if len(found) == size or not found:
        return found
    chunks = [found]
    size -= len(found)
    while size > 0 and (found := os.pread(descriptor, size, offset + sum(map(len, chunks)))):
        chunks.append(found)
        size -= len(found)
    return b"".join(chunks)
