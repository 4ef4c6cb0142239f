"""A request's body as a `ByteStream`: pulled by whoever hands it on, while the client still sends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

HIGH_WATER = 256 * 1024
"""Bytes that wait for the reader before the client is told to pause."""

PIECE_COST = 64
"""What a piece costs beside its bytes: a client may send its body in chunks of one byte."""


class Upload:
    """The body of one request.

    *length*: its bytes where the client said it. *awaited* is told True when somebody begins to read, and again when
    the reader has taken what made the client wait, and False when more has come than was taken. Of a body that was
    closed the rest is dropped as it comes.
    """

    def __init__(self, length: Optional[int], awaited: Callable[[bool], None]) -> None:
        self.length = length
        self.complete = False
        """Whether all of it came."""
        self.size = 0
        """Bytes that came so far."""
        self._read = 0
        self._awaited = awaited
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._begun = False
        self._paused = False
        self._closed = False
        self._failure: Optional[Failure] = None
        self._reader: Optional[Deferred[None]] = None

    @property
    def taken(self) -> bool:
        """Whether all of it came and was read."""
        return self.complete and self._begun and self._read == self.size

    async def read(self) -> bytes:
        """All that has come since the last time. See `ByteStream.read`."""
        if not self._begun or self._paused:
            self._begun = True
            self._let_come()
        if not (self._pieces or self.complete or self._failure is not None):
            self._reader = Deferred()
            await self._reader
        if self._pieces:
            pieces, self._pieces, self._waiting = self._pieces, [], 0
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._read += len(chunk)
            return chunk
        if self._failure is not None:
            self._failure.raiseException()
        return b""

    def close(self) -> None:
        """See `ByteStream.close`. Who reads on is told: the end of what was not read must not look like its end."""
        self._closed = True
        self._pieces.clear()
        self._waiting = 0
        if self._paused:
            self._let_come()
        self.failed(Failure(RuntimeError("the body was closed")))

    def received(self, data: bytes) -> None:
        """The next bytes came."""
        self.size += len(data)
        if self._closed:
            return
        self._pieces.append(data)
        self._waiting += len(data) + PIECE_COST
        if not self._paused and self._waiting >= HIGH_WATER:
            self._paused = True
            self._awaited(False)
        self._wake()

    def ended(self) -> None:
        """All bytes have come."""
        self.complete = True
        self._wake()

    def failed(self, reason: Failure) -> None:
        """No more will come: the client has gone, or sent what is no body."""
        if not self.complete and self._failure is None:
            self._failure = reason
            self._wake()

    def _let_come(self) -> None:
        self._paused = False
        if not self.complete and self._failure is None:
            self._awaited(True)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)
