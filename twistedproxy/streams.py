"""Byte streams that are pulled: the reader's pace is the writer's pace.

Every body that may be large (a stored instance, an upload, an origin's answer) moves through the
proxy as a `ByteStream`. One reader at a time; a chunk that was not asked for is never produced
beyond a small bound, so memory does not grow with the size of what passes.
"""

from __future__ import annotations

from typing import Protocol


class ByteStream(Protocol):
    """Bytes to be pulled, chunk by chunk, by one reader."""

    async def read(self) -> bytes:
        """Return the next chunk (never empty), or ``b""`` once all have been read.

        Raises what broke the stream. A stream that broke stays broken.
        """

    def close(self) -> None:
        """Let go of what feeds the stream (connection, file). Harmless when repeated or at the end."""


class StreamTooLong(ValueError):
    """A stream had more bytes than its reader was ready to keep."""


class BytesStream:
    """A `ByteStream` over bytes that are there already."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = [chunk for chunk in reversed(chunks) if chunk]

    async def read(self) -> bytes:
        return self._chunks.pop() if self._chunks else b""

    def close(self) -> None:
        self._chunks.clear()


async def read_all(stream: ByteStream, limit: int) -> bytes:
    """Read *stream* to its end, close it, and return what came.

    Raises `StreamTooLong` as soon as more than *limit* bytes came.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := await stream.read():
            size += len(chunk)
            if size > limit:
                raise StreamTooLong(f"more than {limit} bytes")
            chunks.append(chunk)
    finally:
        stream.close()
    return b"".join(chunks)


class ChainedStream:
    """Several streams, one after the other."""

    def __init__(self, *streams: ByteStream) -> None:
        self._streams = list(streams)

    async def read(self) -> bytes:
        while self._streams:
            if chunk := await self._streams[0].read():
                return chunk
            self._streams.pop(0).close()
        return b""

    def close(self) -> None:
        while self._streams:
            self._streams.pop().close()


async def hold(stream: ByteStream, limit: int) -> tuple[bytes, bool]:
    """Read *stream* until it ends or *limit* bytes have come; return them and whether that was all.

    The stream is closed only when it breaks. What is held may pass *limit* by less than one chunk.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        while size < limit:
            chunk = await stream.read()
            if not chunk:
                return b"".join(chunks), True
            chunks.append(chunk)
            size += len(chunk)
    except BaseException:
        stream.close()
        raise
    return b"".join(chunks), False
