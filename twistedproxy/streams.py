"""Byte streams that are pulled: the reader's pace is the writer's pace.

Every body that may be large (a stored instance, an upload, an origin's answer) moves through the
proxy as a `ByteStream`. One reader at a time; a chunk that was not asked for is never produced
beyond a small bound, so memory does not grow with the size of what passes.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any, Optional, Protocol

ZSTD_LIBRARY: Any = None
"""Python 3.14 has one, and the package backports.zstd is the same for those before; None where there is none."""

for _name in ("backports.zstd", "compression.zstd"):
    with contextlib.suppress(ImportError):
        ZSTD_LIBRARY = importlib.import_module(_name)


class Closable(Protocol):
    """What holds something open."""

    def close(self) -> None:
        """Let go of what feeds the stream (connection, file). Harmless when repeated or at the end."""


class ByteStream(Closable, Protocol):
    """Bytes to be pulled, chunk by chunk, by one reader."""

    async def read(self) -> bytes:
        """Return the next chunk (never empty), or ``b""`` once all have been read.

        Raises what broke the stream. A stream that broke stays broken.
        """


class YieldedStream:
    """A `ByteStream` of what *chunks* yields, none of them empty. Closing it closes *source*."""

    def __init__(self, chunks: AsyncIterator[bytes], source: Closable) -> None:
        self._chunks = chunks
        self._source = source
        self._broken: Optional[BaseException] = None

    async def read(self) -> bytes:
        if self._broken is not None:  # a generator that raised looks as if it had ended
            raise self._broken
        try:
            return await anext(self._chunks, b"")
        except BaseException as error:
            self._broken = error
            raise

    def close(self) -> None:
        self._source.close()


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


class Gathered:
    """Chunks that become one. They are copied as they come: joined at the end, 300 MB would stop the reactor for 0.1 to 0.5 s,
    and be held twice."""

    def __init__(self) -> None:
        self._first = b""
        self._more: Optional[BytesIO] = None

    def add(self, chunk: bytes) -> None:
        """The next chunk."""
        if self._more is not None:
            self._more.write(chunk)
        elif not self._first:
            self._first = chunk
        else:
            self._more = BytesIO()
            self._more.write(self._first)
            self._more.write(chunk)

    def whole(self) -> bytes:
        """All of it. Not copied: a `BytesIO` gives its buffer away."""
        return self._first if self._more is None else self._more.getvalue()


async def read_all(stream: ByteStream, limit: int) -> bytes:
    """Read *stream* to its end, close it, and return what came.

    Raises `StreamTooLong` as soon as more than *limit* bytes came.
    """
    gathered = Gathered()
    size = 0
    try:
        while chunk := await stream.read():
            size += len(chunk)
            if size > limit:
                raise StreamTooLong(f"more than {limit} bytes")
            gathered.add(chunk)
    finally:
        stream.close()
    return gathered.whole()


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
    gathered = Gathered()
    size = 0
    try:
        while size < limit:
            chunk = await stream.read()
            if not chunk:
                return gathered.whole(), True
            gathered.add(chunk)
            size += len(chunk)
    except BaseException:
        stream.close()
        raise
    return gathered.whole(), False
