"""Answers that hold pictures: which form, whose work, and what to say when it cannot be done.

Rules kept here:
- one frame is one picture, unless only multipart is accepted; several frames are parts, whatever form was asked for
  (DICOM PS3.18 section 8.7.4 has no other for them);
- what nothing here decodes (video, unknown transfer syntaxes) is the origin's to render, as is everything where there
  are no rendering workers;
- frames asked for by extension parameters are frames of a virtual instance: multipart, with a transfer syntax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, NoReturn, Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    JPEG_BASELINE,
    JPEG_XL,
    JPEG_XL_RECOMPRESSION,
    OCTET_STREAM,
    lookup,
)
from twistedproxy.frames.answer_memory import AnswerMemory, Held
from twistedproxy.frames.pictures import Picture, PictureReader
from twistedproxy.frames.reader import Wanted
from twistedproxy.frames.sizes import expected, most
from twistedproxy.imaging import service
from twistedproxy.imaging.attributes import ASKED_FOR
from twistedproxy.imaging.errors import CallFailed, CannotRender, ChildDied, PoolBusy, PoolError, PoolTimeout
from twistedproxy.imaging.parameters import (
    DESCRIBING,
    FRAMES,
    PROFILES,
    RENDERED,
    Asked,
    BadParameter,
    Rendering,
    parse_query,
    without,
)
from twistedproxy.imaging.service import PICTURE_TYPES, Pictures, PictureService, PictureTooLarge, TooManyFrames
from twistedproxy.streams import BytesStream, ByteStream, StreamTooLong, read_all
from twistedproxy.web import negotiation, problems
from twistedproxy.web.digests import multipart_of, tag_of
from twistedproxy.web.framing import FrameAnswers, cache_outcome, cache_status, picture_status
from twistedproxy.web.hot import Source
from twistedproxy.web.mounts import Target
from twistedproxy.web.passthrough import Alteration
from twistedproxy.web.paths import Kind
from twistedproxy.web.problems import Problem

ORIGIN_TYPES = ("image/jpeg", "image/png", "image/gif", "image/jp2")
"""What origins render to (PS3.18 table 8.7.4-1)."""

RETRY_AFTER = 2
"""Seconds: about as long as a full queue of pictures takes."""

MAX_DESCRIPTION = 64 << 20
"""Bytes of an answer that can be given for a downsampled instance: it is rewritten as a whole."""


Keep = Callable[[Request, Instance, Source, str, Sequence[bytes]], None]
"""Keeps what was written as a hot response."""

Make = Callable[[PictureService, service.Request], Coroutine[Any, Any, Pictures]]


@attrs.frozen
class Form:
    """The form of an answer, and the name of its route."""

    route: str
    media_type: str
    multipart: bool
    transfer_syntax: Optional[str] = None


def _form(form: negotiation.FrameForm) -> Form:
    return Form("frames", form.media_type, form.multipart, form.transfer_syntax)


@attrs.frozen
class RenderedAnswers:
    """Answers requests for pictures. *pictures*: what the origin renders. *ours*: None where nothing is rendered here.
    *memory*: for what is held of answers."""

    answers: FrameAnswers
    pictures: PictureReader
    ours: Optional[PictureService]
    memory: AnswerMemory
    keep: Keep

    async def _as_stored(self, request: Request, wanted: Wanted) -> None:
        answer = await self.pictures.reader.read(wanted)
        _note(request, cache_outcome(answer))
        sent = await self.answers.send_single(request, answer.frames[0].data, b"image/jpeg", cache_status(answer))
        if sent is not None:
            self.keep(request, wanted.instance, answer, "frames_rendered", sent)

    async def frames_rendered(self, request: Request, wanted: Wanted, query: bytes, accept: Optional[bytes]) -> None:
        """``…/frames/{list}/rendered`` (PS3.18 section 10.4.1.1.6)."""

        async def make(ours: PictureService, what: service.Request) -> Pictures:
            return await ours.frames(what, wanted.numbers)

        sent = await self._rendered(request, wanted, query, accept, "frames_rendered", len(wanted.numbers) == 1, make)
        if not sent:
            await self._by_origin(request, wanted, query, accept)

    async def instance_rendered(self, request: Request, wanted: Wanted, query: bytes, accept: Optional[bytes]) -> bool:
        """``…/instances/{}/rendered``: one picture. False, and nothing is written, where that is the origin's to make."""

        async def make(ours: PictureService, what: service.Request) -> Pictures:
            return await ours.whole(what)

        return await self._rendered(request, wanted, query, accept, "instance_rendered", True, make)

    async def _rendered(
        self,
        request: Request,
        wanted: Wanted,
        query: bytes,
        accept: Optional[bytes],
        route: str,
        single: bool,
        make: Make,
    ) -> bool:
        """Answer with what *make* makes; False, and nothing is written, where that is the origin's to make."""
        if self.ours is None:
            return False
        try:
            asked = asked_of(query, RENDERED, self.ours.profiles.names)
            accepted = negotiation.parse_accept(accept, negotiation.query_accept(query))
            media_type, multipart = choose_picture(accepted, single)
        except Problem:  # it may be right for what the origin makes
            if await self._decodes(self.ours, wanted):
                raise
            return False
        with self.memory.hold() as held:
            await self._take(held, wanted, media_type)
            try:
                made = await make(self.ours, _request(wanted, asked, media_type, _check_decodable))
            except _NotDecodable:
                return False
            except CallFailed as failed:
                if failed.kind == "NotDecodable":
                    return False
                raise_problem(failed)
            except _FAILURES as error:
                raise_problem(error)
            await self._send(request, wanted, held, made, Form(route, media_type, multipart), asked)
        return True

    async def virtual_frames(self, request: Request, wanted: Wanted, asked: Asked, accept: negotiation.Wanted) -> None:
        """``…/frames/{list}`` with extension parameters that change the pixels."""
        if self.ours is None:
            raise problems.bad_request(
                "downsample, interpolation and iccprofile need rendering workers: there are none"
            )
        form = negotiation.choose_frames(
            accept, JPEG_BASELINE, len(wanted.numbers), (JPEG_XL, EXPLICIT_VR_LITTLE_ENDIAN)
        )  # fmt: skip
        with self.memory.hold() as held:
            await self._take(held, wanted, form.media_type)
            try:
                made = await self.ours.frames(_request(wanted, asked, form.media_type, _check_depth), wanted.numbers)
            except (CallFailed, *_FAILURES) as error:
                raise_problem(error)
            await self._send(request, wanted, held, made, _form(form), asked)

    async def transcoded(self, request: Request, wanted: Wanted, form: negotiation.FrameForm) -> None:
        """``…/frames/{list}`` in a transfer syntax of `producible`."""
        assert self.ours is not None, "nothing is producible without"
        with self.memory.hold() as held:
            await self._take(held, wanted, form.media_type)
            try:
                made = await self.ours.frames(_request(wanted, Asked(Rendering()), form.media_type), wanted.numbers)
            except (CallFailed, *_FAILURES) as error:
                raise_problem(error)
            await self._send(request, wanted, held, made, _form(form), Asked(Rendering()))

    def asked_frames(self, query: bytes) -> Asked:
        """What the query of a frames resource asks for, of what is ours. Raises `Problem` 400."""
        return asked_of(query, FRAMES, self.ours.profiles.names if self.ours is not None else PROFILES)

    def producible(self, metadata: InstanceMetadata, stored: str) -> tuple[str, ...]:
        """The transfer syntaxes that frames *stored* in one can be given in without loss, the preferred first."""
        syntax = lookup(stored)
        if self.ours is None or syntax is None or not service.can_decode(stored):
            return ()
        if metadata.transfer_syntax != stored:
            metadata = attrs.evolve(metadata, transfer_syntax=stored)
        native = (EXPLICIT_VR_LITTLE_ENDIAN,) if metadata.bits_allocated >= 8 else ()
        if service.is_same_picture(metadata, "image/jxl") and stored == JPEG_BASELINE:
            return (JPEG_XL_RECOMPRESSION, *native)
        if service.is_same_picture(metadata, "image/jpeg") and stored == JPEG_XL_RECOMPRESSION:
            return (JPEG_BASELINE, *native)
        return native if syntax.encapsulated or syntax.big_endian else ()

    def description(self, target: Target) -> tuple[Target, Optional[Alteration]]:
        """What the origin is to be asked for instead of metadata or a search with ``downsample``, and what becomes of its
        answer. Raises `Problem` 400."""
        asked = asked_of(target.query, DESCRIBING)
        if not asked.given:
            return target, None
        if self.ours is None:
            raise problems.bad_request("downsample needs rendering workers: there are none")
        query = without(target.query, DESCRIBING)
        if target.resource.kind is Kind.SEARCH:
            fields = [f"includefield={tag}".encode("ascii") for tag in ASKED_FOR]
            query = b"&".join([query, *fields] if query else fields)
        onward = attrs.evolve(target, query=query)
        return onward, functools.partial(_described, self.ours, asked.rendering.downsample)

    @staticmethod
    async def _decodes(ours: PictureService, wanted: Wanted) -> bool:
        """Whether the instance is worth a try. Raises the errors of `twistedproxy.origin.errors`."""
        request = service.Request(wanted.origin, wanted.instance, wanted.caller, Rendering())
        return service.can_decode((await ours.metadata(request)).transfer_syntax)

    async def _by_origin(self, request: Request, wanted: Wanted, query: bytes, accept: Optional[bytes]) -> None:
        if len(wanted.numbers) == 1 and not without_accept(query):
            grant, _ = await self.pictures.reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
            if _is_stored(negotiation.parse_accept(accept, negotiation.query_accept(query)), grant.metadata):
                await self._as_stored(request, wanted)
                return
        with self.memory.hold() as held:
            await self._take(held, wanted)
            answer = await self.pictures.read(Picture(wanted, query, accept or b""))
            _note(request, "hit" if answer.cached else "collapsed" if answer.shared else "miss")
            rendered = answer.rendered
            held.set(len(rendered.data))
            await self.answers.send_single(request, rendered.data, rendered.content_type, picture_status(answer))

    async def _take(self, held: Held, wanted: Wanted, media_type: str = "") -> None:
        """Wait for room for a list of pictures: compressed ones are taken to have what the frames probably have."""
        if len(wanted.numbers) > 1:
            reader = self.pictures.reader
            grant, _ = await reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
            each = most(grant.metadata) if media_type == OCTET_STREAM else expected(grant.metadata)
            await held.take(min(len(wanted.numbers) * each, reader.max_answer))

    async def _send(
        self, request: Request, wanted: Wanted, held: Held, made: Pictures, form: Form, asked: Asked
    ) -> None:
        held.set(sum(map(len, made.data)))
        if asked.annotations:  # PS3.18 section 8.3.5.1.1
            words = ", ".join(asked.annotations)
            warning = f'299 twistedproxy "The following annotations are not supported: {words}"'
            request.responseHeaders.setRawHeaders(b"Warning", [warning.encode("ascii")])
        _note(request, "hit" if not made.made + made.shared else "collapsed" if made.shared else "miss")
        status = pictures_status(made, asked.fresh)
        chunks: Sequence[bytes]
        if form.multipart:
            body = await multipart_of(made.data, form.media_type, form.transfer_syntax)
            content_type, chunks, etag = body.content_type, body.chunks, b'"%s"' % body.digest.encode("ascii")
        else:
            label = f"; transfer-syntax={form.transfer_syntax}" if form.transfer_syntax is not None else ""
            content_type, chunks = f"{form.media_type}{label}".encode("ascii"), made.data
            etag = await tag_of(content_type, chunks)
        ranged = len(made.data) == 1
        sent = await self.answers.send_body(request, content_type, chunks, etag, status, ranged)
        if sent is not None and not asked.fresh and not asked.annotations:
            self.keep(request, wanted.instance, made, form.route, sent)


async def _described(ours: PictureService, factor: float, body: ByteStream) -> ByteStream:
    """The metadata, or the answer to a search, of downsampled instances."""
    try:
        answer = await read_all(body, MAX_DESCRIPTION)
        made = await ours.pool.call({"op": "downsample", "factor": factor}, [answer])
    except StreamTooLong:
        raise problems.too_large(MAX_DESCRIPTION, "what the origin says of these instances") from None
    except PoolError as error:
        raise_problem(error)
    return BytesStream(made.blobs[0])


def asked_of(query: bytes, known: frozenset[str], profiles: Collection[str] = PROFILES) -> Asked:
    """What a query asks for. Raises `Problem` 400."""
    try:
        return parse_query(query, known, profiles)
    except BadParameter as error:
        raise problems.bad_request(str(error)) from None


def without_accept(query: bytes) -> bytes:
    """A raw query less what replaces Accept."""
    return b"&".join(field for field in query.split(b"&") if field and not field.lower().startswith(b"accept="))


def _is_stored(accepted: negotiation.Wanted, metadata: InstanceMetadata) -> bool:
    """Whether the stored frame is the picture that is accepted."""
    if metadata.transfer_syntax is None:
        return False
    try:
        return negotiation.choose_rendered(accepted, metadata.transfer_syntax, ORIGIN_TYPES).as_stored
    except Problem:  # the origin may know how to make what we have not heard of
        return False


def choose_picture(accepted: negotiation.Wanted, single: bool) -> tuple[str, bool]:
    """The media type of pictures, and whether they are parts. Raises `Problem` 406."""
    if single:
        try:
            return negotiation.choose_type(accepted, PICTURE_TYPES), False
        except Problem:
            if not any(range_.multipart for range_ in accepted.ranges):
                raise
    ranges = tuple(
        attrs.evolve(range_, multipart=False) for range_ in accepted.ranges if range_.multipart or not single
    )
    return negotiation.choose_type(attrs.evolve(accepted, ranges=ranges), PICTURE_TYPES), True


def pictures_status(made: Pictures, fresh: bool = False) -> bytes:
    """The Cache-Status of an answer (RFC 9211)."""
    if not made.made and not made.shared:
        return b"twistedproxy; hit"
    forward = b"request" if fresh else b"partial" if made.cached else b"uri-miss"
    stored = b"" if fresh else b"; stored"
    collapsed = b"; collapsed" if made.shared else b""
    return b"twistedproxy; fwd=%s%s%s" % (forward, stored, collapsed)


def _request(wanted: Wanted, asked: Asked, media_type: str, check: Any = None) -> service.Request:
    request = service.Request(
        wanted.origin, wanted.instance, wanted.caller, asked.rendering.to(media_type), asked.fresh
    )  # fmt: skip
    return request if check is None else attrs.evolve(request, check=check)


class _NotDecodable(Exception):
    """The instance's transfer syntax is none of those that are decoded here."""


def _check_decodable(metadata: InstanceMetadata) -> None:
    if not service.can_decode(metadata.transfer_syntax):
        raise _NotDecodable


def _check_depth(metadata: InstanceMetadata) -> None:
    """Frames of a virtual instance have 8 bits a sample, as its viewers would not know."""
    if metadata.bits_stored > 8:
        raise CannotRender(
            f"frames of {metadata.bits_stored} bits a sample cannot be resized without loss of depth: ask for …/rendered"
        )


_FAILURES = (CannotRender, TooManyFrames, PictureTooLarge, PoolError)


def raise_problem(error: Exception) -> NoReturn:
    """The answer to a picture that cannot be made."""
    detail = str(error)
    match error:
        case CannotRender():
            raise problems.bad_request(detail) from None
        case TooManyFrames() | PictureTooLarge():
            raise Problem(413, detail) from None
        case PoolBusy():
            raise problems.unavailable(detail, RETRY_AFTER) from None
        case PoolTimeout():
            raise problems.gateway_timeout(detail) from None
        case CallFailed(kind="NotDecodable"):
            raise problems.not_acceptable(["the frames as they are stored"]) from None
        case ChildDied():
            raise problems.bad_gateway(detail) from None
    raise problems.bad_gateway(f"the picture cannot be made: {detail}") from None


def _note(request: Any, outcome: str) -> None:
    request.cache_outcome = outcome
