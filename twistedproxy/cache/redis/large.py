"""Large entries on a server that speaks the Redis protocol: where their bytes are, and the slices in which they go there and back.

At the entry's own key stand a mark, the size, a random token, and how the entry begins. The bytes are at a key that has the
token in its name: who overwrites the entry writes elsewhere, and readers never mix two of them. Bytes whose entry is gone
end with their time, or go as the least recently used.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import DeferredSemaphore

from twistedproxy.cache.interface import LARGE, Value, pieces, size_of, whole
from twistedproxy.cache.redis import pipeline
from twistedproxy.cache.redis.pipeline import Command, Replies
from twistedproxy.streams import Gathered

SLICE = 1 << 20
"""Bytes of one command: a millisecond of the server's time, and of the reactor's."""

START = 128
"""Bytes of the beginning that are kept in the entry, for who asks for its size."""

MARK = b"\0large entry\xf1\x9c\x03"  # no frame's expiry, no JSON, no length of a content type begins like this

_LAYOUT = struct.Struct(f"!{len(MARK)}sQ8s")
PREFIX = _LAYOUT.size
"""Bytes that stand before the beginning."""


def is_packed(value: bytes) -> bool:
    """Whether *value*, or what it is the beginning of, says where a large entry is."""
    return value.startswith(MARK) and len(value) >= PREFIX


def size(packed: bytes) -> int:
    """How many bytes the entry has that begins with a mark."""
    return int(_LAYOUT.unpack_from(packed)[1])


READS = 2
"""Large entries that are read at once: all share one connection, and a reader that waits holds no bytes yet."""


@attrs.frozen
class LargeEntries:
    """Reads large entries by *read*, and writes them by *write*: keys, and a command for each, to replies; None where the server did
    not take them."""

    _read: Callable[[Sequence[bytes], Sequence[Command]], Awaitable[Replies]]
    _write: Callable[[Sequence[bytes], Sequence[Command]], Awaitable[Optional[Replies]]]
    _reading: DeferredSemaphore = attrs.field(init=False, factory=lambda: DeferredSemaphore(READS))

    async def placed(self, key: bytes, value: Value, seconds: Optional[float]) -> Optional[bytes]:
        """The value to write at *key*: *value* itself or, after its slices were written, the mark of a large entry. None
        where the server did not take a slice."""
        if size_of(value) <= LARGE:
            return whole(value)
        start = b"".join([piece[:START] for piece in pieces(value)])[:START]
        packed = _LAYOUT.pack(MARK, size_of(value), secrets.token_bytes(8)) + start
        place, begun = _place(key, packed), False
        for part in _parts(value):
            commands = (
                [(pipeline.command(b"APPEND", place, part),)]
                if begun
                else pipeline.set_entries(b"", [(place, part)], seconds)
            )
            if await self._write([place], commands) is None:
                return None
            begun = True
        return packed

    async def read(self, key: bytes, packed: bytes) -> Optional[bytes]:
        """The bytes of the large entry *packed* at *key*; None where they are not all there. Raises `CacheUnavailable`."""
        place, gathered, left = _place(key, packed), Gathered(), size(packed)
        await self._reading.acquire()
        try:
            for start in range(0, left, SLICE):
                wire = pipeline.command(b"GETRANGE", place, b"%d" % start, b"%d" % (start + SLICE - 1))
                (piece,) = await self._read([place], [(wire,)])
                if not isinstance(piece, bytes) or not piece:
                    return None  # evicted meanwhile
                gathered.add(piece)
                left -= len(piece)
        finally:
            self._reading.release()
        return gathered.whole() if not left else None


def _place(key: bytes, packed: bytes) -> bytes:
    """The key of the bytes of the entry *packed* at *key*."""
    return b"%b\0%b" % (key, _LAYOUT.unpack_from(packed)[2])


def _parts(value: Value) -> Iterator[bytes]:
    """The slices of *value*."""
    for piece in pieces(value):
        view = memoryview(piece)
        yield from (bytes(view[start : start + SLICE]) for start in range(0, len(view), SLICE))
