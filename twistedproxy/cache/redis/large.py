"""Large entries on a server that speaks the Redis protocol: where their bytes are, and the slices in which they go there and back.

At the entry's own key stand a mark, the size, a random token, and how the entry begins. The bytes are at a key that has the
token in its name: who overwrites the entry writes elsewhere, and readers never mix two of them. Bytes whose entry is gone
end with their time, or go as the least recently used.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from typing import Optional

import attrs

from twistedproxy.cache.interface import Value, pieces, size_of
from twistedproxy.cache.redis import pipeline

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


@attrs.frozen
class Entry:
    """A large entry. *packed*: what stands at its key."""

    packed: bytes

    @classmethod
    def new(cls, value: Value) -> Entry:
        """The entry of *value*."""
        start = b"".join([piece[:START] for piece in pieces(value)])[:START]
        return cls(_LAYOUT.pack(MARK, size_of(value), secrets.token_bytes(8)) + start)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return size(self.packed)

    def _key(self, key: bytes) -> bytes:
        return b"%b\0%b" % (key, _LAYOUT.unpack_from(self.packed)[2])

    def writes(self, key: bytes, value: Value, seconds: Optional[float]) -> Iterator[bytes]:
        """The commands that write *value*, the entry at *key*, one after the other."""
        place, begun = self._key(key), False
        for piece in pieces(value):
            view = memoryview(piece)
            for start in range(0, len(view), SLICE):
                part = bytes(view[start : start + SLICE])
                if begun:
                    yield pipeline.command(b"APPEND", place, part)
                else:
                    yield b"".join(pipeline.set_entries(b"", [(place, part)], seconds))
                begun = True

    def reads(self, key: bytes) -> Iterator[bytes]:
        """The commands that read it."""
        place = self._key(key)
        for start in range(0, self.size, SLICE):
            yield pipeline.command(b"GETRANGE", place, b"%d" % start, b"%d" % (start + SLICE - 1))
