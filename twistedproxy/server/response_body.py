"""Writing answers at the client's pace, and changing them on their way without holding up the reactor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.web.server import Request
from zope.interface import implementer

from twistedproxy.deferreds import Pausable
from twistedproxy.streams import BytesStream, ByteStream, YieldedStream

SLICE = 256 * 1024
"""Bytes handed to a connection at once: what one slow client can hold in its write buffer."""


PIECE = 32 * 1024
"""Bytes of an answer that are changed between two turns of the reactor: gzip takes 0.13 ms, a search's URLs 0.6 ms."""


class ClientGone(Exception):
    """The client closed its connection before it had the whole answer."""


@implementer(IPushProducer)
class _Pace(Pausable):
    """Knows whether the connection has room."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._request = request
        self._gone = False

    async def room(self) -> None:
        """Return once there is room to write. Raises `ClientGone`."""
        if self.paused and not self._gone:
            await self.resumed()
        if self._gone or self._request._disconnected:
            raise ClientGone

    def stopProducing(self) -> None:
        self._gone = True  # a waiting writer is cancelled in a moment, with the request


def send_page(request: Request, content_type: bytes, body: bytes) -> None:
    """Write *body* as all of an answer that no cache may keep."""
    fields = {b"Content-Type": content_type, b"Content-Length": b"%d" % len(body), b"Cache-Control": b"no-store"}
    for name, value in fields.items():
        request.responseHeaders.setRawHeaders(name, [value])
    request.write(body)


LINES = "application/x-ndjson"
"""The media type of JSON lines: one value a line, each sent as it comes."""


async def send_lines(request: Request, lines: AsyncIterator[bytes]) -> None:
    """Write *lines*, as `LINES`, as they come; of a HEAD none. Raises as `send_stream` does."""
    request.responseHeaders.setRawHeaders(b"Content-Type", [LINES.encode("ascii")])
    request.responseHeaders.setRawHeaders(b"X-Accel-Buffering", [b"no"])  # nginx would keep lines back
    request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-store"])
    if request.method == b"HEAD":
        request.write(b"")
    else:
        await send_stream(request, YieldedStream(lines, BytesStream()))


async def send_bytes(request: Request, chunks: Sequence[bytes]) -> None:
    """Write *chunks* in slices. Raises `ClientGone`."""

    async def slices() -> AsyncIterator[bytes]:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(chunk), SLICE):
                yield bytes(view[start : start + SLICE])

    await send_stream(request, YieldedStream(slices(), BytesStream()))


async def send_stream(request: Request, stream: ByteStream) -> int:
    """Write all of *stream*, no faster than the client takes it; return its bytes.

    Raises `ClientGone`, and what broke the stream. The stream is closed in any case.
    """
    size = 0
    pace = _Pace(request)
    try:
        if request._disconnected:
            raise ClientGone
        request.registerProducer(pace, True)
        while chunk := await stream.read():
            size += len(chunk)
            request.write(chunk)
            await pace.room()
    finally:
        stream.close()
        if request.producer is not None and request.channel is not None:
            request.unregisterProducer()
    return size


def in_pieces(
    source: ByteStream, feed: Callable[[bytes], bytes], end: Callable[[], bytes], clock: IReactorTime
) -> ByteStream:
    """What *feed* makes of *source*, a little at a time, and what *end* gives after it: the reactor gets its turns although
    much is there at once."""

    async def changed() -> AsyncIterator[bytes]:
        worked = 0  # bytes since the reactor's last turn: a source may have many small chunks at hand
        while chunk := await source.read():
            for start in range(0, len(chunk), PIECE):
                piece = chunk[start : start + PIECE]
                if out := feed(piece):
                    yield out
                worked += len(piece)
                if worked >= PIECE:
                    worked = 0
                    await deferLater(clock, 0)
        if rest := end():
            yield rest

    return YieldedStream(changed(), source)
