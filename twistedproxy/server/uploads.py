"""A request's body as a `ByteStream`: pulled by its reader while the client still sends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from twisted.python.failure import Failure

from twistedproxy.deferreds import Waiters

HIGH_WATER = 256 * 1024
"""High-water mark of the upload buffer, in bytes: beyond it the client is paused."""

PIECE_COST = 64
"""Bytes that a piece costs beside its own: a client may send its body in chunks of one byte."""


class Upload:
    """The body of one request.

    *length*: its bytes, where they are known. *awaited* is called with True when reading begins, and again when the reader
    has taken what had paused the client; with False when the buffer is full. Once the body is closed, what still comes is
    dropped.
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
        self._failure: Optional[Failure] = None
        self._news: Waiters[None] = Waiters()

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
            await self._news.wait()
        if self._pieces:
            pieces, self._pieces, self._waiting = self._pieces, [], 0
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._read += len(chunk)
            return chunk
        if self._failure is not None:
            self._failure.raiseException()
        return b""

    def close(self) -> None:
        """See `ByteStream.close`. Reading on raises: a body that was not read must not look as if it had ended."""
        self._pieces.clear()
        self._waiting = 0
        if self._paused:
            self._let_come()
        self.failed(Failure(RuntimeError("the body was closed")))

    def received(self, data: bytes) -> None:
        """The next bytes came."""
        self.size += len(data)
        if self._failure is not None:  # closed
            return
        self._pieces.append(data)
        self._waiting += len(data) + PIECE_COST
        if not self._paused and self._waiting >= HIGH_WATER:
            self._paused = True
            self._awaited(False)
        self._news.fire()

    def ended(self) -> None:
        """All bytes have come."""
        self.complete = True
        self._news.fire()

    def failed(self, reason: Failure) -> None:
        """No more will come: the client has gone, or sent what is no body."""
        if not self.complete and self._failure is None:
            self._failure = reason
            self._news.fire()

    def _let_come(self) -> None:
        self._paused = False
        if not self.complete and self._failure is None:
            self._awaited(True)
