"""A request's body as a `ByteStream`: pulled by whoever hands it on, while the client still sends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Optional

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

HIGH_WATER = 256 * 1024
"""Bytes that wait for the reader before the client is told to pause."""


class Upload:
    """The body of one request.

    *length*: its bytes where the client said it. *awaited* is told False when more has come than the reader took,
    True when there is room again: at the end of the reader's interest too, when the rest is dropped as it comes.
    """

    def __init__(self, length: Optional[int], awaited: Callable[[bool], None]) -> None:
        self.length = length
        self.complete = False
        self._awaited = awaited
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._closed = False
        self._failure: Optional[Failure] = None
        self._reader: Optional[Deferred[None]] = None

    async def read(self) -> bytes:
        if not self._chunks and not self.complete and self._failure is None and not self._closed:
            self._reader = Deferred(self._stop_waiting)
            await self._reader
        if self._chunks:
            chunk = self._chunks.popleft()
            self._size -= len(chunk)
            if self._paused and self._size <= HIGH_WATER // 2:
                self._pause(False)
            return chunk
        if self._failure is not None:
            self._failure.raiseException()
        return b""

    def _stop_waiting(self, _reader: Deferred[None]) -> None:
        self._reader = None

    def close(self) -> None:
        self._closed = True
        self._chunks.clear()
        self._size = 0
        if self._paused:
            self._pause(False)
        self._wake()

    def received(self, data: bytes) -> None:
        """The next bytes came."""
        if self._closed:
            return
        self._chunks.append(data)
        self._size += len(data)
        if not self._paused and self._size >= HIGH_WATER:
            self._pause(True)
        self._wake()

    def ended(self) -> None:
        """All bytes have come."""
        self.complete = True
        self._wake()

    def failed(self, reason: Failure) -> None:
        """The client has gone."""
        if not self.complete and self._failure is None:
            self._failure = reason
            self._paused = False
            self._wake()

    def _pause(self, pause: bool) -> None:
        self._paused = pause
        if not self.complete and self._failure is None:
            self._awaited(not pause)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)
