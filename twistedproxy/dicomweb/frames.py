"""Answers to requests for frames: form, validators, ranges, and what may keep them.

Rules:
- A list that is read in pieces is chunked (RFC 9112 section 7.1) and written at the client's pace. It has no ETag, for that
  would follow from all of its bytes; its boundary follows from the list, the instance's generation and the secret key.
- What fails after the head was sent cuts the connection: half an answer is never taken for a whole one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Optional, Union

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.multipart_writer import MultipartForm, build, part_content_type
from twistedproxy.dicom.negotiation import FrameForm, NotAcceptable, choose_frames
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from twistedproxy.dicomweb.passthrough import PassThrough
from twistedproxy.dicomweb.requests import ParsedRequest
from twistedproxy.frames.entries import LARGE_FRAME, digests_of
from twistedproxy.frames.grants import normal_key
from twistedproxy.frames.read_through import FrameAnswer, size_of
from twistedproxy.frames.streamed import FramePieces, ListReader
from twistedproxy.hot.dispatcher import HotDispatcher
from twistedproxy.origin.errors import HAS_NOT, FramesRefused, NotAsStored
from twistedproxy.server.conditional import ByteRange, entity_tag, matches_none, requested_range
from twistedproxy.server.forwarded import Outside
from twistedproxy.server.response_body import SLICE, send_bytes, send_stream
from twistedproxy.settings import Settings
from twistedproxy.streams import YieldedStream
from twistedproxy.system.memory_budget import AnswerMemory
from twistedproxy.system.outages import Recent

DECODED = f'multipart/related; type="application/octet-stream"; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}'.encode()
"""The Accept value for frames that every store can make which can decode them (PS3.18 section 8.7.3.5.2)."""

Answer = Union[FrameAnswer, FramePieces]

CacheOutcome = tuple[bytes, str]
"""What the cache did: as Cache-Status (RFC 9211), and in one word, for metrics and the log."""


def boundary_of(pieces: FramePieces, secret: bytes) -> str:
    """32 hexadecimal digits that nobody can foretell who does not know *secret*."""
    fence = pieces.answer.fence
    if fence is None:
        return secrets.token_hex(16)
    what = f"{fence.hex()} {pieces.request.instance} {','.join(map(str, pieces.request.numbers))}"
    return hashlib.blake2b(what.encode("utf-8", "surrogateescape"), digest_size=16, key=secret).hexdigest()


async def parts_of(pieces: FramePieces, form: MultipartForm) -> AsyncIterator[bytes]:
    """The multipart body whose parts are *pieces*: small ones together, large ones in slices."""
    begun = False
    while frames := await pieces.read():
        together: list[bytes] = []
        size = 0
        for frame in frames:
            together.append(form.head(len(frame.data), not begun))
            begun = True
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
    yield form.end


@attrs.frozen
class FrameAnswers:
    """Writes answers of frames and pictures. *cache_control* and *vary* are the same for all of them; *secret* goes into
    boundaries."""

    cache_control: bytes
    vary: bytes
    secret: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, settings: Settings) -> FrameAnswers:
        """Those of a proxy with *settings*."""
        vary = dict.fromkeys(["Accept", *settings.credential_header, "Cookie"])
        control = b"private, max-age=%d" % settings.client_max_age
        return cls(control, ", ".join(vary).encode("ascii"), normal_key(settings.secret))

    async def send(
        self,
        request: Request,
        data: Sequence[bytes],
        form: FrameForm,
        outcome: CacheOutcome,
        digests: Sequence[bytes] = (),
        fresh: bool = False,
    ) -> Optional[Sequence[bytes]]:
        """Write *data* in *form*, or what the request's conditions make of it: parts, or one frame or picture as it is.
        *digests*: their `content_digest`, where it is known. Return what was written where that was all.

        Raises `Problem` 416. *fresh*: whether no cache may keep it.
        """
        ranged = not form.multipart or len(data) == 1
        digests = digests or await digests_of(data)
        if form.multipart:
            body = build(data, form.media_type, form.transfer_syntax, digests)
            content_type, data, etag = body.content_type, body.chunks, b'"%s"' % body.digest.encode("ascii")
        else:
            content_type = part_content_type(form.media_type, form.transfer_syntax).encode("ascii")
            etag = entity_tag(content_type, digests[0])
        set_header = request.responseHeaders.setRawHeaders
        size = sum(map(len, data))
        condition = request.requestHeaders.getRawHeaders(b"If-None-Match")
        unchanged = condition is not None and matches_none(b", ".join(condition), etag)
        asked = request.getHeader(b"Range") if request.method == b"GET" else None  # RFC 9110 section 14.2
        part = None
        if asked is not None and ranged and not unchanged:
            part = requested_range(asked, request.getHeader(b"If-Range"), etag, size)
        self._set_headers(request, outcome, fresh)
        set_header(b"ETag", [etag])
        if unchanged:
            request.setResponseCode(304)
            return None
        if ranged:
            set_header(b"Accept-Ranges", [b"bytes"])
        if part is not None:
            data = _cut(data, part)
            size = part.stop - part.start
            set_header(b"Content-Range", [part.content_range])
            request.setResponseCode(206)
        set_header(b"Content-Type", [content_type])
        set_header(b"Content-Length", [b"%d" % size])
        if size <= SLICE:
            request.write(b"".join(data))  # a single one is not copied
        else:
            await send_bytes(request, data)
        return data if part is None else None

    async def send_pieces(self, request: Request, pieces: FramePieces, form: FrameForm) -> None:
        """Write a long list of frames in *form* as its frames come. Raises what breaks it, with the answer begun."""
        multipart = MultipartForm.of(form.media_type, form.transfer_syntax, boundary_of(pieces, self.secret))
        self._set_headers(request, cache_status(pieces.answer), pieces.answer.fresh)
        request.responseHeaders.setRawHeaders(b"Content-Type", [multipart.content_type])
        try:
            if request.method == b"HEAD":
                pieces.close()
                request.write(b"")
            else:
                await send_stream(request, YieldedStream(parts_of(pieces, multipart), pieces))
        finally:
            _, request.cache_outcome = cache_status(pieces.answer)  # type: ignore[attr-defined]

    def _set_headers(self, request: Any, outcome: CacheOutcome, fresh: bool) -> None:
        set_header = request.responseHeaders.setRawHeaders
        status, request.cache_outcome = outcome
        set_header(b"Cache-Status", [status])
        request.responseHeaders.addRawHeader(b"Vary", self.vary)
        set_header(b"Cache-Control", [b"no-store" if fresh else self.cache_control])


@attrs.frozen(eq=False)
class StoredFrames:
    """Answers requests for frames. *transcode*: answers in a form that has to be made. *outside*: how the request looked to its
    client. *not_decoded*: what a store did not decode lately. *seconds*: a clock for that."""

    answers: FrameAnswers
    lists: ListReader
    memory: AnswerMemory
    hot: HotDispatcher
    pass_through: PassThrough
    outside: Callable[[Request], Outside]
    transcode: Callable[[Request, ParsedRequest, FrameForm], Awaitable[None]]
    not_decoded: Recent[tuple[Instance, bytes]]
    seconds: Callable[[], float]

    async def answer(self, request: Request, wanted: ParsedRequest) -> None:
        """Give the frames as stored, where that form is the best one, else transcoded without loss."""
        reader = self.lists.reader
        with self.memory.hold() as held:
            try:
                if self._is_small(wanted):
                    answer: Answer = await held.read(lambda: reader.read(wanted), size_of)
                else:
                    answer = await self.lists.read(wanted, held)
            except (FramesRefused, NotAsStored):
                held.set(0)
                if not await self._decoded_by_store(request, wanted):
                    raise
                return
            reader.access.grants.use(wanted.caller, wanted.instance)
            read = answer.answer if isinstance(answer, FramePieces) else answer
            form = wanted.form.of(read.metadata, read.frames[0].transfer_syntax)
            if form.as_stored and isinstance(answer, FramePieces):
                await self.answers.send_pieces(request, answer, form)
                return
            if form.as_stored:
                data = [frame.data for frame in read.frames]
                sent = await self.answers.send(request, data, form, cache_status(read), fresh=read.fresh)
                if sent is not None and not wanted.fresh and read.checked:
                    self.hot.keep(
                        request, wanted.instance, read, "frames", sent, (form, read.frames[0].transfer_syntax)
                    )
                return
        del answer, read  # what was read as stored is not held beside what is made of it
        await self.transcode(request, wanted, form)

    def _is_small(self, request: ParsedRequest) -> bool:
        """Whether it is for one frame that is known to be small: it may be read before there is memory for it."""
        grant = self.lists.reader.access.known(request.caller, request.instance)
        return len(request.numbers) == 1 and grant is not None and grant.most <= LARGE_FRAME

    async def _decoded_by_store(self, request: Request, wanted: ParsedRequest) -> bool:
        """Hand on for decoded frames what the store does not give as stored, if the caller takes those. They pass as they
        come, and are not cached: they are not the stored ones. False, and nothing is written, where it refuses these too."""
        key = wanted.instance, wanted.caller.credential
        if self.not_decoded.has(key, self.seconds()):
            return False
        try:
            choose_frames(wanted.accepted, EXPLICIT_VR_LITTLE_ENDIAN, len(wanted.numbers))
        except NotAcceptable:
            return False
        request.requestHeaders.setRawHeaders(b"Accept", [DECODED])
        target = attrs.evolve(wanted.target, query=b"")
        base = self.outside(request).base + target.mount.prefix
        refused = await self.pass_through.answer(request, target, base, only_good=True)
        if refused in HAS_NOT:
            self.not_decoded.add(key, self.seconds())
        return refused is None


def _cut(chunks: Sequence[bytes], part: ByteRange) -> list[bytes]:
    """What lies in *part* of *chunks*; of large ones no more is copied."""
    cut, at = [], 0
    for chunk in chunks:
        cut.append(chunk[max(0, part.start - at) : max(0, part.stop - at)])
        at += len(chunk)
    return cut


def cache_status(answer: FrameAnswer) -> CacheOutcome:
    """That of an answer; of one in pieces, that of what was read so far."""
    if not answer.from_origin:
        return b"twistedproxy; hit", "hit"
    forward = b"request" if answer.fresh else b"partial" if answer.cached else b"uri-miss"
    stored = b"; stored" if answer.stored else b""
    collapsed = b"; collapsed" if answer.shared else b""
    word = "collapsed" if answer.shared else "partial" if answer.cached else "miss"
    return b"twistedproxy; fwd=%s%s%s" % (forward, stored, collapsed), word


def cache_outcome(answer: FrameAnswer) -> str:
    """What `cache_status` says, in one word, for metrics and the log."""
    if answer.shared:
        return "collapsed"
    if answer.fetched:
        return "partial" if answer.cached else "miss"
    return "hit"
