"""Answers that a store compressed although it was asked for them as they are: web servers of ready-made files do that.

Rules that this module keeps:

- A chunk never unpacks to more than `MAX_STEP` bytes at once, whatever it claims: memory stays flat.
- A compressed body that ends before its own end mark is no whole body.
"""

from __future__ import annotations

import zlib

from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.streams import ByteStream

MAX_STEP = 256 * 1024  # bytes of one chunk that `read` gives
WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class Unpacked:
    """A `ByteStream` of what *body* holds, packed as *encoding* (RFC 9110 section 8.4.1) says."""

    def __init__(self, body: ByteStream, encoding: bytes) -> None:
        window = WINDOW.get(encoding.lower())
        if window is None:
            raise OriginBadAnswer("the origin compressed an answer that was asked for as it is")
        self._body = body
        self._unpacker = zlib.decompressobj(window)

    async def read(self) -> bytes:
        try:
            while not self._unpacker.eof:
                packed = self._unpacker.unconsumed_tail or await self._body.read()
                if data := self._unpacker.decompress(packed, MAX_STEP):
                    return data
                if not packed and not self._unpacker.eof:
                    raise OriginBadAnswer("the origin's compressed answer ended too early")
        except zlib.error as bad:
            raise OriginBadAnswer("the origin's answer is not compressed as it says") from bad
        while await self._body.read():
            pass  # what follows the end mark means nothing, and keeps its connection when it is read
        return b""

    def close(self) -> None:
        self._body.close()
