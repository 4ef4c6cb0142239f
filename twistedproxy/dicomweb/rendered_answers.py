"""Answers that hold pictures made here: their bytes and headers, and what to say when they cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM
from twistedproxy.dicomweb import negotiation
from twistedproxy.dicomweb.frames import FrameAnswers, note_outcome
from twistedproxy.frames.entries import digest_of, expected, most, multipart_of
from twistedproxy.frames.read_through import FrameReader, Wanted
from twistedproxy.hot.responses import Source
from twistedproxy.imaging.errors import (
    CallFailed,
    CannotRender,
    ChildDied,
    PictureTooLarge,
    PoolBusy,
    PoolError,
    PoolTimeout,
    TooManyFrames,
)
from twistedproxy.imaging.parameters import PictureQuery
from twistedproxy.rendering.jobs import Pictures
from twistedproxy.server import problems
from twistedproxy.server.conditional import entity_tag
from twistedproxy.server.problems import Problem
from twistedproxy.system.memory_budget import Held

RETRY_AFTER = 2
"""Seconds: about as long as a full queue of pictures takes."""

Keep = Callable[[Request, Instance, Source, str, Sequence[bytes]], None]
"""Keeps what was written as a hot response."""


@attrs.frozen
class Form:
    """The form of an answer, and the name of its route."""

    route: str
    media_type: str
    multipart: bool
    transfer_syntax: Optional[str] = None


def form_of_frames(form: negotiation.FrameForm) -> Form:
    return Form("frames", form.media_type, form.multipart, form.transfer_syntax)


@attrs.frozen
class PictureAnswers:
    """Writes answers of pictures made here."""

    answers: FrameAnswers
    keep: Keep

    async def send(self, request: Request, instance: Instance, made: Pictures, form: Form, asked: PictureQuery) -> None:
        """Write *made* in *form*, with what the request's conditions make of it."""
        if asked.annotations:  # PS3.18 section 8.3.5.1.1
            words = ", ".join(asked.annotations)
            warning = f'299 twistedproxy "The following annotations are not supported: {words}"'
            request.responseHeaders.setRawHeaders(b"Warning", [warning.encode("ascii")])
        note_outcome(request, _outcome(made))
        status = pictures_status(made, asked.fresh)
        chunks: Sequence[bytes]
        if form.multipart:
            body = await multipart_of(made.data, form.media_type, form.transfer_syntax)
            content_type, chunks, etag = body.content_type, body.chunks, b'"%s"' % body.digest.encode("ascii")
        else:
            label = f"; transfer-syntax={form.transfer_syntax}" if form.transfer_syntax is not None else ""
            content_type, chunks = f"{form.media_type}{label}".encode("ascii"), made.data
            digest = made.digests[0] if made.digests else await digest_of(made.data[0])
            etag = entity_tag(content_type, digest)
        ranged = len(made.data) == 1
        sent = await self.answers.of(asked.fresh).send_body(request, content_type, chunks, etag, status, ranged)
        if sent is not None and not asked.fresh and not asked.annotations:
            self.keep(request, instance, made, form.route, sent)


def pictures_status(made: Pictures, fresh: bool = False) -> bytes:
    """The Cache-Status of an answer (RFC 9211).

    ``fwd`` says that a request went on to the origin (section 2.2). A picture that is made of cached frames needs none: it
    is a hit, and ``detail`` says that it was made just now (section 2.8).
    """
    if not made.forwarded:
        return b"twistedproxy; hit; detail=rendered" if made.made or made.shared else b"twistedproxy; hit"
    here = made.cached + made.made + made.shared - made.forwarded
    forward = b"request" if fresh else b"partial" if here else b"uri-miss"
    stored = b"" if fresh else b"; stored"
    collapsed = b"; collapsed" if made.shared else b""
    return b"twistedproxy; fwd=%s%s%s" % (forward, stored, collapsed)


FAILURES = (CannotRender, TooManyFrames, PictureTooLarge, PoolError)


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
            raise Problem(504, detail) from None
        case CallFailed(kind="NotDecodable"):
            raise problems.not_acceptable(["the frames as they are stored"]) from None
        case ChildDied():
            raise Problem(502, detail) from None
    raise Problem(502, f"the picture cannot be made: {detail}") from None


async def take_room(reader: FrameReader, held: Held, wanted: Wanted, media_type: str = "") -> None:
    """Wait for room for a list of pictures: compressed ones are taken to have what the frames probably have."""
    if len(wanted.numbers) > 1:
        grant, _ = await reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
        each = most(grant.metadata) if media_type == OCTET_STREAM else expected(grant.metadata)
        await held.take(min(len(wanted.numbers) * each, reader.max_answer))


def bytes_of(made: Pictures) -> int:
    """Bytes of *made* together."""
    return sum(map(len, made.data))


def _outcome(made: Pictures) -> str:
    """The same in one word, for metrics and the log."""
    if not made.forwarded:
        return "rendered" if made.made or made.shared else "hit"
    return "collapsed" if made.shared else "miss"
