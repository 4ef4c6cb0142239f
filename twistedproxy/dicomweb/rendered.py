"""Answers that hold pictures made here: which form, and what happens when a picture cannot be made.

Rules:
- One frame is one picture, unless only multipart is accepted; several frames are parts, whatever form was requested
  (DICOM PS3.18 section 8.7.4 has no other for them).
- What nothing here decodes (video, unknown transfer syntaxes, what has no pixels, frames that the store does not give) is
  the store's to render, as is everything where there are no rendering workers: it passes through.
- Frames requested by extension parameters are frames of a virtual instance: multipart, with a transfer syntax.
- Metadata and searches with ``downsample`` are the store's answer, edited to describe the smaller instances.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.media_types import BadMediaType
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.negotiation import FrameForm, NotAcceptable, choose_frames
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, JPEG_BASELINE, JPEG_XL, OCTET_STREAM
from twistedproxy.dicomweb.frames import CacheOutcome, FrameAnswers
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.passthrough import Alteration
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.dicomweb.requests import ParsedRequest, parse_parameters
from twistedproxy.frames.entries import expected, most
from twistedproxy.hot.responses import Source
from twistedproxy.imaging.downsampled_instance import ASKED_FOR
from twistedproxy.imaging.errors import CallFailed, CannotRender
from twistedproxy.imaging.parameters import DESCRIBING, PictureQuery, Rendering, Viewport, without
from twistedproxy.origin.errors import FramesRefused, NotAsStored
from twistedproxy.rendering import planner
from twistedproxy.rendering.planner import Pictures
from twistedproxy.rendering.pool import RenderPool
from twistedproxy.rendering.service import PictureService
from twistedproxy.server.problems import Problem
from twistedproxy.streams import BytesStream, ByteStream, StreamTooLong, read_all
from twistedproxy.system.memory_budget import AnswerMemory, Reservation

MAX_DESCRIPTION = 64 << 20
"""Bytes of an answer that can be given for a downsampled instance: it is rewritten as a whole."""

THUMBNAIL = Viewport(256, 256, enlarge=False)
"""The size of a thumbnail unless the request has one: twice what lists of series show, for dense screens."""

Keep = Callable[[Request, Instance, Source, str, Sequence[bytes]], None]
"""Keeps what was written as a hot response."""


class NotDecodableHere(Exception):
    """The instance has no pixels, or is in a transfer syntax that is not decoded here."""


@attrs.frozen
class RenderedAnswers:
    """Answers requests for pictures. *imaging*: None where none are made here. *keep*: see there. *memory*: for what is held of
    answers."""

    answers: FrameAnswers
    imaging: Optional[PictureService]
    memory: AnswerMemory
    keep: Keep

    async def rendered(self, request: Request, wanted: ParsedRequest, route: str) -> bool:
        """Answer with pictures of frames, or with one of the instance (PS3.18 sections 10.4.1.1.3 and 10.4.1.1.6). False, and
        nothing is written, where these are the store's to make."""
        imaging, asked = self.imaging, wanted.asked
        if imaging is None:
            return False
        if route == "thumbnail":
            wanted = attrs.evolve(wanted, numbers=wanted.numbers[:1])
        try:
            form = wanted.picture_form()
        except (NotAcceptable, BadMediaType, Problem):  # the request may be right for what the store makes
            if planner.can_render(await imaging.metadata(_job(wanted, Rendering()))):
                raise
            return False
        if route == "thumbnail" and asked.rendering.viewport is None:
            asked = attrs.evolve(asked, rendering=attrs.evolve(asked.rendering, viewport=THUMBNAIL))
        job = _job(wanted, asked.rendering.to(form.media_type), _check_decodable)
        with self.memory.hold() as held:
            try:
                made = await self._make(imaging, held, wanted, job)
            except (NotDecodableHere, NotAsStored, FramesRefused):
                return False
            except CallFailed as failed:
                if failed.kind != "NotDecodable":
                    raise
                return False
            await self._send(request, wanted, made, route, form)
        return True

    async def frames(self, request: Request, wanted: ParsedRequest, form: Optional[FrameForm] = None) -> None:
        """Answer a request for frames with frames made here: transcoded to *form*, or, where that is None, those of the virtual
        instance that extension parameters describe."""
        if self.imaging is None:
            raise Problem(400, "downsample, interpolation and iccprofile need render workers, which are disabled")
        asked = wanted.asked if form is None else PictureQuery(Rendering(), wanted.fresh)
        check = _check_depth if form is None else lambda _metadata: None
        if form is None:
            others = (JPEG_XL, EXPLICIT_VR_LITTLE_ENDIAN)
            form = choose_frames(wanted.accepted, JPEG_BASELINE, len(wanted.numbers), others)
        job = _job(wanted, attrs.evolve(asked.rendering, stored_values=True).to(form.media_type), check)
        with self.memory.hold() as held:
            made = await self._make(self.imaging, held, wanted, job)
            await self._send(request, wanted, made, "frames", form)

    @staticmethod
    async def _make(
        imaging: PictureService, held: Reservation, wanted: ParsedRequest, job: planner.Request
    ) -> Pictures:
        """The pictures, once there is room for them: compressed ones are taken to have what frames probably have."""
        count = len(wanted.numbers)
        if count > 1:
            metadata = await imaging.metadata(job)
            native = job.rendering.media_type == OCTET_STREAM
            await held.take(min(count * (most(metadata) if native else expected(metadata)), imaging.limits.answer))

        async def make() -> Pictures:
            return await (imaging.frames(job, wanted.numbers) if count else imaging.whole(job))

        return await held.read(make, lambda made: sum(map(len, made.data)))

    async def _send(
        self, request: Request, wanted: ParsedRequest, made: Pictures, route: str, form: FrameForm
    ) -> None:  # fmt: skip
        if self.imaging is not None:
            self.imaging.reader.access.grants.use(wanted.caller, wanted.instance)
        annotations, fresh = wanted.asked.annotations, wanted.fresh
        if annotations:  # PS3.18 section 8.3.5.1.1
            words = ", ".join(annotations)
            warning = f'299 twistedproxy "The following annotations are not supported: {words}"'
            request.responseHeaders.setRawHeaders(b"Warning", [warning.encode("ascii")])
        outcome = pictures_status(made, fresh)
        sent = await self.answers.send(request, made.data, form, outcome, made.digests, fresh)
        if sent is not None and not fresh and not annotations:
            self.keep(request, wanted.instance, made, route, sent)

    def description(self, target: Target) -> tuple[Target, Optional[Alteration]]:
        """The request to the store in the place of one for metadata, or of a search, with ``downsample``, and what becomes of
        its answer. Raises `Problem` 400."""
        asked = parse_parameters(target.query, DESCRIBING, self.imaging)
        if not asked.given:
            return target, None
        if self.imaging is None:
            raise Problem(400, "downsample needs render workers, which are disabled")
        query = without(target.query, DESCRIBING)
        if target.resource.kind is ResourceKind.SEARCH:
            fields = [f"includefield={tag}".encode("ascii") for tag in ASKED_FOR]
            query = b"&".join([query, *fields] if query else fields)
        alteration = functools.partial(_described, self.imaging.pool, asked.rendering.downsample)
        return attrs.evolve(target, query=query), alteration


async def _described(pool: RenderPool, factor: float, body: ByteStream) -> ByteStream:
    """The metadata, or the answer to a search, of downsampled instances."""
    try:
        answer = await read_all(body, MAX_DESCRIPTION)
        made = await pool.call({"op": "downsample", "factor": factor}, [answer])
    except StreamTooLong:
        raise Problem(413, f"the origin's response exceeds the limit of {MAX_DESCRIPTION} bytes") from None
    return BytesStream(made.blobs[0])


def _job(
    wanted: ParsedRequest, rendering: Rendering, check: Callable[[InstanceMetadata], None] = lambda _metadata: None
) -> planner.Request:
    return planner.Request(wanted.origin, wanted.instance, wanted.caller, rendering, wanted.fresh, check)


def _check_decodable(metadata: InstanceMetadata) -> None:
    if not planner.can_render(metadata):
        raise NotDecodableHere


def _check_depth(metadata: InstanceMetadata) -> None:
    """Frames of a virtual instance have 8 bits a sample, which its viewers would not know."""
    if metadata.bits_stored > 8:
        raise CannotRender(
            f"frames of {metadata.bits_stored} bits per sample cannot be resized without loss of depth; request …/rendered"
        )


def pictures_status(made: Pictures, fresh: bool = False) -> CacheOutcome:
    """That of an answer.

    ``fwd`` says that a request went on to the origin (section 2.2). A picture that is made of cached frames needs none: it
    is a hit, and ``detail`` says that it was made just now (section 2.8).
    """
    if not made.forwarded:
        if made.made or made.shared:
            return b"twistedproxy; hit; detail=rendered", "rendered"
        return b"twistedproxy; hit", "hit"
    here = made.cached + made.made + made.shared - made.forwarded
    forward = b"request" if fresh else b"partial" if here else b"uri-miss"
    stored = b"" if fresh else b"; stored"
    collapsed = b"; collapsed" if made.shared else b""
    return b"twistedproxy; fwd=%s%s%s" % (forward, stored, collapsed), "collapsed" if made.shared else "miss"
