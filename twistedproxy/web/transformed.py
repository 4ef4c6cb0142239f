"""A stream whose bytes pass a transform, a little at a time: the reactor gets its turn although much is there at once."""

from __future__ import annotations

from typing import Optional

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.streams import ByteStream
from twistedproxy.web.rewriting import Transform

PIECE = 16 << 10
"""Bytes that go through a transform at once: half a millisecond of a search's JSON, two where it is all URLs."""

STRETCH = 0.002
"""Seconds of work after which the reactor gets its turn. By the clock: where nothing changes, hundreds of kB pass in that."""


class TransformedStream:
    """A `ByteStream` of another one's bytes, transformed. What is ready is not held back while the source takes its time."""

    def __init__(self, source: ByteStream, transform: Transform, clock: IReactorTime) -> None:
        self._source = source
        self._transform: Optional[Transform] = transform
        self._clock = clock
        self._chunk = memoryview(b"")  # of it, what is still to go through
        self._worked = 0.0  # seconds since the reactor's last turn

    async def read(self) -> bytes:
        """The next bytes, empty at the end. See `ByteStream.read`."""
        ready: list[bytes] = []
        while self._transform is not None:
            if not self._chunk:
                if ready:
                    break
                self._chunk = memoryview(await self._source.read())
                if not self._chunk:
                    transform, self._transform = self._transform, None
                    return transform.close()
            if self._worked >= STRETCH:
                if ready:
                    break
                await deferLater(self._clock, 0)
                self._worked = 0.0
            if out := self._some(self._transform):
                ready.append(out)
        return b"".join(ready)

    def _some(self, transform: Transform) -> bytes:
        """What the next piece gives."""
        piece, self._chunk = bytes(self._chunk[:PIECE]), self._chunk[PIECE:]
        begin = self._clock.seconds()
        out = transform.feed(piece)
        self._worked += self._clock.seconds() - begin
        return out

    def close(self) -> None:
        """See `ByteStream.close`."""
        self._source.close()
