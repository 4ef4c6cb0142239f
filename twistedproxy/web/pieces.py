"""The answer to a request for a long list of frames: written as its frames come, at the client's pace.

- It has a Content-Length where all sizes are known beforehand; else it is chunked (RFC 9112 section 7.1).
- It has no ETag, for that would follow from all of its bytes; the boundary follows from the list and the instance's
  generation, which nobody outside knows.
- What fails after the head went out cuts the connection: nobody takes half an answer for a whole one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence

import attrs

from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.multipart_writer import MultipartForm
from twistedproxy.frames.pieces import FramePieces
from twistedproxy.web.sending import SLICE


def boundary_of(pieces: FramePieces) -> str:
    """32 hexadecimal digits."""
    fence = pieces.sizes.fence
    if fence is None:
        return secrets.token_hex(16)
    wanted = pieces.wanted
    what = f"{wanted.instance} {','.join(map(str, wanted.numbers))}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(what, digest_size=16, key=fence).hexdigest()


@attrs.define(eq=False)
class PiecesBody:
    """A `ByteStream` of a multipart body whose parts are *pieces*."""

    pieces: FramePieces
    form: MultipartForm
    _begun: bool = attrs.field(init=False, default=False)
    _ended: bool = attrs.field(init=False, default=False)
    _chunks: Iterator[bytes] = attrs.field(init=False, factory=lambda: iter(()))

    async def read(self) -> bytes:
        while True:
            chunk = next(self._chunks, b"")
            if chunk or self._ended:
                return chunk
            frames = await self.pieces.read()
            self._ended = not frames
            self._chunks = self._written(frames) if frames else iter((self.form.end,))

    def close(self) -> None:
        self._chunks, self._ended = iter(()), True
        self.pieces.close()

    def _written(self, frames: Sequence[Frame]) -> Iterator[bytes]:
        """The parts of *frames*: small ones together, large ones in slices."""
        together: list[bytes] = []
        size = 0
        for frame in frames:
            together.append(self.form.head(len(frame.data), not self._begun))
            self._begun = True
            size += len(together[-1])
            view = memoryview(frame.data)
            for start in range(0, len(view), SLICE):
                together.append(bytes(view[start : start + SLICE]))
                size += len(together[-1])
                if size >= SLICE:
                    yield b"".join(together)
                    together, size = [], 0
        if together:
            yield b"".join(together)
