"""Answers that hold pictures: which form, whose work, and what to say when it cannot be done.

Rules kept here:
- one frame is one picture, unless only multipart is accepted; several frames are parts, whatever form was asked for
  (DICOM PS3.18 section 8.7.4 has no other for them);
- what nothing here decodes (video, unknown transfer syntaxes, what has no pixels, frames that the origin does not give) is
  the origin's to render, as is everything where there are no rendering workers;
- frames asked for by extension parameters are frames of a virtual instance: multipart, with a transfer syntax.

Metadata and searches with ``downsample``: the origin's answer, told of the smaller instances.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, JPEG_BASELINE, JPEG_XL
from twistedproxy.dicomweb import negotiation
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.origin_pictures import OriginPictures
from twistedproxy.dicomweb.passthrough import Alteration
from twistedproxy.dicomweb.paths import Kind
from twistedproxy.dicomweb.rendered_answers import (
    FAILURES,
    Form,
    PictureAnswers,
    bytes_of,
    form_of_frames,
    raise_problem,
    take_room,
)
from twistedproxy.dicomweb.requests import (
    NotDecodableHere,
    asked_of,
    check_decodable,
    check_depth,
    choose_picture,
    request_of,
)
from twistedproxy.frames.read_through import Wanted
from twistedproxy.imaging.downsampled import ASKED_FOR
from twistedproxy.imaging.errors import CallFailed, PoolError
from twistedproxy.imaging.parameters import (
    DESCRIBING,
    FRAMES,
    PROFILES,
    RENDERED,
    PictureQuery,
    Rendering,
    Viewport,
    without,
)
from twistedproxy.origin.errors import FramesRefused, NotAsStored
from twistedproxy.rendering import jobs, media_types
from twistedproxy.rendering.jobs import Pictures
from twistedproxy.rendering.pool import RenderPool
from twistedproxy.rendering.service import PictureService
from twistedproxy.server import problems
from twistedproxy.server.problems import Problem
from twistedproxy.streams import BytesStream, ByteStream, StreamTooLong, read_all
from twistedproxy.system.memory_budget import AnswerMemory

MAX_DESCRIPTION = 64 << 20
"""Bytes of an answer that can be given for a downsampled instance: it is rewritten as a whole."""


def described(target: Target, pool: Optional[RenderPool]) -> tuple[Target, Optional[Alteration]]:
    """What the origin is to be asked for instead of metadata or a search with ``downsample``, and what becomes of its
    answer. Raises `Problem` 400."""
    asked = asked_of(target.query, DESCRIBING)
    if not asked.given:
        return target, None
    if pool is None:
        raise problems.bad_request("downsample needs rendering workers: there are none")
    query = without(target.query, DESCRIBING)
    if target.resource.kind is Kind.SEARCH:
        fields = [f"includefield={tag}".encode("ascii") for tag in ASKED_FOR]
        query = b"&".join([query, *fields] if query else fields)
    onward = attrs.evolve(target, query=query)
    return onward, functools.partial(_described, pool, asked.rendering.downsample)


async def _described(pool: RenderPool, factor: float, body: ByteStream) -> ByteStream:
    """The metadata, or the answer to a search, of downsampled instances."""
    try:
        answer = await read_all(body, MAX_DESCRIPTION)
        made = await pool.call({"op": "downsample", "factor": factor}, [answer])
    except StreamTooLong:
        raise Problem(413, f"the origin's answer is larger than the limit of {MAX_DESCRIPTION} bytes") from None
    except PoolError as error:
        raise_problem(error)
    return BytesStream(made.blobs[0])


THUMBNAIL = Viewport(256, 256, enlarge=False)
"""How large a thumbnail is unless its size is asked for: twice what lists of series show, for dense screens."""

Make = Callable[[PictureService, jobs.Request], Coroutine[Any, Any, Pictures]]


@attrs.frozen
class RenderedAnswers:
    """Answers requests for pictures. *by_origin*: those that are not made here. *ours*: None where nothing is. *memory*: for
    what is held of answers."""

    sending: PictureAnswers
    by_origin: OriginPictures
    ours: Optional[PictureService]
    memory: AnswerMemory

    async def frames_rendered(self, request: Request, wanted: Wanted, query: bytes, accept: Optional[bytes]) -> None:
        """``…/frames/{list}/rendered`` (PS3.18 section 10.4.1.1.6)."""

        async def make(ours: PictureService, what: jobs.Request) -> Pictures:
            return await ours.frames(what, wanted.numbers)

        sent = await self._rendered(request, wanted, query, accept, "frames_rendered", len(wanted.numbers) == 1, make)
        if not sent:
            await self.by_origin.answer(request, wanted, query, accept)

    async def instance_rendered(self, request: Request, wanted: Wanted, query: bytes, accept: Optional[bytes]) -> bool:
        """``…/instances/{}/rendered``: one picture. False, and nothing is written, where that is the origin's to make."""

        async def make(ours: PictureService, what: jobs.Request) -> Pictures:
            return await ours.whole(what)

        return await self._rendered(request, wanted, query, accept, "instance_rendered", True, make)

    async def thumbnail(self, request: Request, wanted: Wanted, query: bytes, accept: Optional[bytes]) -> bool:
        """``…/thumbnail`` of an instance, or of frames, whose first one stands for all (PS3.18 section 10.4, Thumbnail Resources): one small
        picture. False, and nothing is written, where that is the origin's to make."""

        async def make(ours: PictureService, what: jobs.Request) -> Pictures:
            return await ours.frames(what, wanted.numbers) if wanted.numbers else await ours.whole(what)

        return await self._rendered(request, wanted, query, accept, "thumbnail", True, make, THUMBNAIL)

    async def _rendered(
        self,
        request: Request,
        wanted: Wanted,
        query: bytes,
        accept: Optional[bytes],
        route: str,
        single: bool,
        make: Make,
        viewport: Optional[Viewport] = None,
    ) -> bool:
        """Answer with what *make* makes; False, and nothing is written, where that is the origin's to make. *viewport*: where
        the query has none."""
        ours = self.ours
        if ours is None:
            return False
        try:
            asked = asked_of(query, RENDERED, ours.planner.profiles.names)
            if asked.rendering.viewport is None and viewport is not None:
                asked = attrs.evolve(asked, rendering=attrs.evolve(asked.rendering, viewport=viewport))
            accepted = negotiation.parse_accept(accept, negotiation.query_accept(query))
            media_type, multipart = choose_picture(accepted, single)
        except Problem:  # it may be right for what the origin makes
            if await self._decodes(ours, wanted):
                raise
            return False
        with self.memory.hold() as held:
            await take_room(ours.reader, held, wanted, media_type)
            try:
                what = request_of(wanted, asked, media_type, check_decodable)
                made = await held.read(lambda: make(ours, what), bytes_of)
            except (NotDecodableHere, NotAsStored, FramesRefused):
                return False
            except CallFailed as failed:
                if failed.kind == "NotDecodable":
                    return False
                raise_problem(failed)
            except FAILURES as error:
                raise_problem(error)
            await self.sending.send(request, wanted.instance, made, Form(route, media_type, multipart), asked)
        return True

    async def virtual_frames(
        self, request: Request, wanted: Wanted, asked: PictureQuery, accept: negotiation.Wanted
    ) -> None:
        """``…/frames/{list}`` with extension parameters that change the pixels."""
        if self.ours is None:
            raise problems.bad_request(
                "downsample, interpolation and iccprofile need rendering workers: there are none"
            )
        form = negotiation.choose_frames(
            accept, JPEG_BASELINE, len(wanted.numbers), (JPEG_XL, EXPLICIT_VR_LITTLE_ENDIAN)
        )  # fmt: skip
        await self._frames(self.ours, request, wanted, asked, form, check_depth)

    async def transcoded(self, request: Request, wanted: Wanted, form: negotiation.FrameForm) -> None:
        """``…/frames/{list}`` in a transfer syntax of `producible`."""
        assert self.ours is not None, "nothing is producible without"
        await self._frames(self.ours, request, wanted, PictureQuery(Rendering(), wanted.fresh), form)

    async def _frames(
        self,
        ours: PictureService,
        request: Request,
        wanted: Wanted,
        asked: PictureQuery,
        form: negotiation.FrameForm,
        check: Optional[Callable[[InstanceMetadata], None]] = None,
    ) -> None:
        with self.memory.hold() as held:
            await take_room(ours.reader, held, wanted, form.media_type)
            frames = attrs.evolve(asked, rendering=attrs.evolve(asked.rendering, stored_values=True))
            try:
                what = request_of(wanted, frames, form.media_type, check)
                made = await held.read(lambda: ours.frames(what, wanted.numbers), bytes_of)
            except FAILURES as error:
                raise_problem(error)
            await self.sending.send(request, wanted.instance, made, form_of_frames(form), asked)

    def asked_frames(self, query: bytes) -> PictureQuery:
        """What the query of a frames resource asks for, of what is ours. Raises `Problem` 400."""
        return asked_of(query, FRAMES, self.ours.planner.profiles.names if self.ours is not None else PROFILES)

    def producible(self, metadata: InstanceMetadata, stored: str) -> tuple[str, ...]:
        """The transfer syntaxes that frames *stored* in one can be given in without loss, the preferred first."""
        return media_types.producible(metadata, stored) if self.ours is not None else ()

    def description(self, target: Target) -> tuple[Target, Optional[Alteration]]:
        """What the origin is to be asked for instead of metadata or a search with ``downsample``, and what becomes of its
        answer. Raises `Problem` 400."""
        return described(target, self.ours.pool if self.ours is not None else None)

    @staticmethod
    async def _decodes(ours: PictureService, wanted: Wanted) -> bool:
        """Whether the instance is worth a try. Raises the errors of `twistedproxy.origin.errors`."""
        request = jobs.Request(wanted.origin, wanted.instance, wanted.caller, Rendering())
        return media_types.can_render(await ours.metadata(request))
