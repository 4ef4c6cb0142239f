"""The answer to a request for frames: form, validators, ranges, and what may keep it.

The answer to a request for a long list of frames: written as its frames come, at the client's pace.

- It has a Content-Length where all sizes are known beforehand; else it is chunked (RFC 9112 section 7.1).
- It has no ETag, for that would follow from all of its bytes; the boundary follows from the list and the instance's
  generation, which nobody outside knows.
- What fails after the head went out cuts the connection: nobody takes half an answer for a whole one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.multipart_writer import MultipartForm
from twistedproxy.dicomweb.negotiation import FrameForm
from twistedproxy.frames.entries import digest_of, multipart_of
from twistedproxy.frames.pictures import PictureAnswer
from twistedproxy.frames.read_through import FrameAnswer
from twistedproxy.frames.streamed import FramePieces
from twistedproxy.server.conditional import ByteRange, entity_tag, matches_none, requested_range
from twistedproxy.server.response_body import SLICE, send_bytes, send_stream


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


@attrs.frozen
class FrameAnswers:
    """Writes answers of frames. *cache_control* and *vary* are the same for all of them."""

    cache_control: bytes
    vary: bytes

    def of(self, fresh: bool) -> FrameAnswers:
        """These, or those of answers that nobody is to keep."""
        return attrs.evolve(self, cache_control=b"no-store") if fresh else self

    async def send(self, request: Request, answer: FrameAnswer, form: FrameForm) -> Optional[Sequence[bytes]]:
        """Write *answer* in *form*; return what `send_body` does."""
        if form.multipart:
            body = await multipart_of([frame.data for frame in answer.frames], form.media_type, form.transfer_syntax)
            return await self.send_body(
                request, body.content_type, body.chunks, b'"%s"' % body.digest.encode("ascii"), cache_status(answer),
                ranged=len(answer.frames) == 1,
            )  # fmt: skip
        return await self.send_single(request, answer.frames[0].data, form.part_content_type, cache_status(answer))

    async def send_single(
        self, request: Request, data: bytes, content_type: bytes, status: bytes
    ) -> Optional[Sequence[bytes]]:
        """Write one frame, or one picture, as it is; return what `send_body` does."""
        return await self.send_body(
            request, content_type, [data], entity_tag(content_type, await digest_of(data)), status, ranged=True
        )

    async def send_pieces(self, request: Request, pieces: FramePieces, form: FrameForm) -> None:
        """Write a long list of frames in *form* as its frames come. Raises what breaks it, with the answer begun."""
        multipart = MultipartForm.of(form.media_type, form.transfer_syntax, boundary_of(pieces))
        set_header = request.responseHeaders.setRawHeaders
        set_header(b"Cache-Status", [cache_status(pieces.answer)])
        request.responseHeaders.addRawHeader(b"Vary", self.vary)
        set_header(b"Cache-Control", [self.cache_control])
        set_header(b"Content-Type", [multipart.content_type])
        sizes = pieces.frame_sizes
        if sizes is not None:
            set_header(b"Content-Length", [b"%d" % multipart.length(sizes)])
        if request.method == b"HEAD":
            pieces.close()
            request.write(b"")
            return
        await send_stream(request, PiecesBody(pieces, multipart))

    async def send_body(
        self, request: Request, content_type: bytes, chunks: Sequence[bytes], etag: bytes, status: bytes, ranged: bool
    ) -> Optional[Sequence[bytes]]:
        """Write *chunks*, or what the request's conditions make of them. Return what was written where that was all.

        Raises `Problem` 416. *ranged*: whether a Range is heard.
        """
        set_header = request.responseHeaders.setRawHeaders
        set_header(b"Cache-Status", [status])
        request.responseHeaders.addRawHeader(b"Vary", self.vary)
        unchanged = matches_none(_joined(request, b"If-None-Match"), etag)
        size = sum(map(len, chunks))
        part = _asked_range(request, etag, size) if ranged and not unchanged else None
        set_header(b"Cache-Control", [self.cache_control])
        set_header(b"ETag", [etag])
        if unchanged:
            request.setResponseCode(304)
            return None
        if ranged:
            set_header(b"Accept-Ranges", [b"bytes"])
        if part is not None:
            chunks = _cut(chunks, part)
            size = part.stop - part.start
            set_header(b"Content-Range", [part.content_range])
            request.setResponseCode(206)
        set_header(b"Content-Type", [content_type])
        set_header(b"Content-Length", [b"%d" % size])
        await send_bytes(request, chunks)
        return chunks if part is None else None


def _cut(chunks: Sequence[bytes], part: ByteRange) -> list[bytes]:
    """What lies in *part* of *chunks*; of large ones no more is copied."""
    cut, at = [], 0
    for chunk in chunks:
        cut.append(chunk[max(0, part.start - at) : max(0, part.stop - at)])
        at += len(chunk)
    return cut


def cache_status(answer: FrameAnswer) -> bytes:
    """The Cache-Status of an answer (RFC 9211)."""
    if not answer.fetched and not answer.shared:
        return b"twistedproxy; hit"
    forward = b"request" if answer.fresh else b"partial" if answer.cached else b"uri-miss"
    stored = b"; stored" if answer.stored else b""
    collapsed = b"; collapsed" if answer.shared else b""
    return b"twistedproxy; fwd=%s%s%s" % (forward, stored, collapsed)


def picture_status(answer: PictureAnswer) -> bytes:
    """The same for pictures."""
    if answer.cached:
        return b"twistedproxy; hit"
    return b"twistedproxy; fwd=%s%s%s" % (
        b"request" if answer.fresh else b"uri-miss",
        b"; stored" if answer.stored else b"",
        b"; collapsed" if answer.shared else b"",
    )


def cache_outcome(answer: FrameAnswer) -> str:
    """The same in one word, for metrics and the log."""
    if answer.shared:
        return "collapsed"
    if answer.fetched:
        return "partial" if answer.cached else "miss"
    return "hit"


def note_outcome(request: Any, outcome: str) -> None:
    """Keep what the cache did, in one word, for metrics and the log."""
    request.cache_outcome = outcome


def transfer_syntax_of(frames: Sequence[Frame]) -> str:
    """The one transfer syntax of *frames*: an instance has one (DICOM PS3.10 section 7.1)."""
    return frames[0].transfer_syntax


def _asked_range(request: Request, etag: bytes, size: int) -> ByteRange | None:
    """What Range asks for; only GET knows ranges (RFC 9110 section 14.2)."""
    asked = request.getHeader(b"Range") if request.method == b"GET" else None
    return requested_range(asked, request.getHeader(b"If-Range"), etag, size) if asked else None


def _joined(request: Request, name: bytes) -> bytes | None:
    values = request.requestHeaders.getRawHeaders(name)
    return b", ".join(values) if values else None
