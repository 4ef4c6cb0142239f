"""The routes: frames are answered here, through the cache; all else below a mount is handed on.

What a request is about, `Entry` has found in its raw path before Klein finds the handler: a route here is a kind of
DICOMweb resource, or a page of the proxy's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import attrs
from klein import Klein
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from twistedproxy.dicomweb import negotiation
from twistedproxy.dicomweb.forward_headers import caller_of
from twistedproxy.dicomweb.frames import FrameAnswers, cache_outcome, note_outcome, transfer_syntax_of
from twistedproxy.dicomweb.middleware import answer_unrouted, answered
from twistedproxy.dicomweb.mounts import Entry, Mounts, Target
from twistedproxy.dicomweb.origin_pictures import OriginPictures
from twistedproxy.dicomweb.passthrough import PassThrough
from twistedproxy.dicomweb.paths import Kind, parse_frame_list
from twistedproxy.dicomweb.prefetch import PrefetchEndpoint, PrefetchParameters
from twistedproxy.dicomweb.rendered import RenderedAnswers
from twistedproxy.dicomweb.rendered_answers import PictureAnswers
from twistedproxy.dicomweb.requests import without_accept
from twistedproxy.dicomweb.status import StatusPages, add_pages
from twistedproxy.frames.grants import Credentials
from twistedproxy.frames.pictures import PictureReader
from twistedproxy.frames.read_through import FrameReader, Wanted
from twistedproxy.frames.series_lookup import SeriesLookup
from twistedproxy.frames.streamed import FramePieces, ListReader
from twistedproxy.hot.dispatcher import HotServer
from twistedproxy.origin.errors import HAS_NOT, FramesRefused, NotAsStored
from twistedproxy.rendering.service import PictureService
from twistedproxy.server import problems
from twistedproxy.server.cors import Cors, is_preflight, refuse_cross_site
from twistedproxy.server.forwarded import Outside, outside
from twistedproxy.server.problems import Problem
from twistedproxy.settings import Settings
from twistedproxy.system.logs import AccessLog
from twistedproxy.system.memory_budget import AnswerMemory
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.recent import Recent

DECODED = f'multipart/related; type="application/octet-stream"; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}'.encode()
"""The Accept value for frames that every store can make which can decode them (PS3.18 section 8.7.3.5.2)."""

_READ = ["GET", "HEAD"]
_ALL = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]


class ProxyRoutes:
    """All that listeners answer. Collaborators are given; nothing here makes any."""

    app = Klein()

    def __init__(
        self,
        settings: Settings,
        mounts: Mounts,
        credentials: Credentials,
        reader: FrameReader,
        memory: AnswerMemory,
        pictures: PictureReader,
        imaging: Optional[PictureService],
        series: SeriesLookup,
        pass_through: PassThrough,
        status: StatusPages,
        warming: PrefetchEndpoint,
        hot: HotServer,
        metrics: Metrics,
        access_log: AccessLog,
        seconds: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.mounts = mounts
        self.credentials = credentials
        self.reader = reader
        self.lists = ListReader(reader)
        self.memory = memory
        self.series = series
        self.pass_through = pass_through
        self.status = status
        self.warming = warming
        self.hot = hot
        self.metrics = metrics
        self.seconds = seconds
        self.access_log = access_log
        self.cors = Cors(settings.cors_origin)
        self._not_decoded: Recent[tuple[Instance, bytes]] = Recent(settings.recache_after)
        self._answers = FrameAnswers(b"private, max-age=%d" % settings.client_max_age, _vary(settings))
        self._rendered = RenderedAnswers(
            PictureAnswers(self._answers, hot.keep),
            OriginPictures(self._answers, pictures, memory, hot.keep),
            imaging,
            memory,
        )

    @app.route(f"/{Kind.FRAMES.value}", methods=_READ)
    @answered("frames")
    async def frames(self, request: Request) -> None:
        """Frames as stored (DICOM PS3.18 section 10.4.1.1.6)."""
        self._note_client(request)
        target = self._target(request, Kind.FRAMES)
        asked = self._rendered.asked_frames(target.query) if target.query else None
        if asked is not None and not asked.given and without_accept(target.query):
            await self._hand_on(request, target)  # asks for something of the origin's own
            return
        wanted_form = negotiation.parse_accept(_accept(request), negotiation.query_accept(target.query))
        numbers = parse_frame_list(target.resource.frame_list, self.settings.max_frames_per_request)
        if asked is not None and not asked.rendering.changes_nothing:
            wanted = await self._wanted(request, target, numbers)
            await self._rendered.virtual_frames(request, wanted, asked, wanted_form)
            return

        def form_of(metadata: InstanceMetadata, stored: str) -> negotiation.FrameForm:
            producible = self._rendered.producible(metadata, stored)
            return negotiation.choose_frames(wanted_form, stored, len(numbers), producible)

        def check(metadata: InstanceMetadata) -> None:
            if metadata.transfer_syntax is not None:
                known = lookup(metadata.transfer_syntax)
                swapped = known is not None and known.big_endian  # frames are expected in little endian
                form_of(metadata, EXPLICIT_VR_LITTLE_ENDIAN if swapped else metadata.transfer_syntax)

        wanted = await self._wanted(request, target, numbers, check)
        if asked is not None and asked.fresh:
            wanted = attrs.evolve(wanted, fresh=True)
        answers = self._answers.of(wanted.fresh)
        with self.memory.hold() as held:
            try:
                answer = await self.lists.read(wanted, held)
            except (FramesRefused, NotAsStored):
                held.set(0)
                if not await self._decoded_by_origin(request, target, wanted, wanted_form):
                    raise
                return
            told = answer.answer if isinstance(answer, FramePieces) else answer
            form = form_of(told.metadata, transfer_syntax_of(told.frames))
            if form.as_stored:
                note_outcome(request, cache_outcome(told))
                if isinstance(answer, FramePieces):
                    await answers.send_pieces(request, answer, form)
                    return
                sent = await answers.send(request, answer, form)
                if sent is not None and not wanted.fresh:
                    self.hot.keep(request, wanted.instance, answer, "frames", sent)
                return
        del answer, told  # what was read as stored is not held beside what is made of it
        await self._rendered.transcoded(request, wanted, form)

    async def _decoded_by_origin(
        self, request: Request, target: Target, wanted: Wanted, accepted: negotiation.Wanted
    ) -> bool:
        """Hand on for decoded frames what the origin does not give as stored, if the caller takes those. They pass as they
        come, and are not cached: they are not the stored ones. False, and nothing is written, where it refuses these too."""
        asked = wanted.instance, wanted.caller.credential
        if self._not_decoded.has(asked, self.seconds()):
            return False
        try:
            negotiation.choose_frames(accepted, EXPLICIT_VR_LITTLE_ENDIAN, len(wanted.numbers))
        except Problem:
            return False
        request.requestHeaders.setRawHeaders(b"Accept", [DECODED])
        outside = self._outside(request).base + target.mount.prefix
        plain = attrs.evolve(target, query=b"")
        refused = await self.pass_through.answer(request, plain, outside, only_good=True)
        if refused in HAS_NOT:
            self._not_decoded.add(asked, self.seconds())
        return refused is None

    @app.route(f"/{Kind.FRAMES_RENDERED.value}", methods=_READ)
    @answered("frames_rendered")
    async def rendered(self, request: Request) -> None:
        """Pictures of frames (DICOM PS3.18 section 10.4.1.1.6): the stored frame where it is the picture asked for."""
        self._note_client(request)
        target = self._target(request, Kind.FRAMES_RENDERED)
        numbers = parse_frame_list(target.resource.frame_list, self.settings.max_frames_per_request)
        wanted = await self._wanted(request, target, numbers)
        await self._rendered.frames_rendered(request, wanted, target.query, _accept(request))

    @app.route(f"/{Kind.INSTANCE_RENDERED.value}", methods=_READ)
    @answered("instance_rendered")
    async def instance_rendered(self, request: Request) -> None:
        """One picture of an instance (DICOM PS3.18 section 10.4.1.1.3)."""
        self._note_client(request)
        target = self._target(request, Kind.INSTANCE_RENDERED)
        wanted = await self._wanted(request, target, ())
        if not await self._rendered.instance_rendered(request, wanted, target.query, _accept(request)):
            await self._hand_on(request, target)

    @app.route(f"/{Kind.THUMBNAIL.value}", methods=_READ)
    @answered("thumbnail")
    async def thumbnail(self, request: Request) -> None:
        """A small picture of an instance, or of frames (DICOM PS3.18 section 10.4, Thumbnail Resources); of what is larger, the origin's."""
        self._note_client(request)
        target = self._target(request, Kind.THUMBNAIL)
        resource = target.resource
        wanted: Optional[Wanted] = None
        if resource.sop is not None:
            frames = resource.frame_list
            numbers = parse_frame_list(frames, self.settings.max_frames_per_request)[:1] if frames else ()
            wanted = await self._wanted(request, target, numbers)
        elif resource.study is not None:
            instance = await target.origin.representative(resource.root, resource.study, resource.series)
            if instance is not None:
                wanted = Wanted(target.origin, instance, (), caller_of(request, target, self.credentials))
        if wanted is None or not await self._rendered.thumbnail(request, wanted, target.query, _accept(request)):
            await self._hand_on(request, target)

    @app.route(f"/{Kind.PREFETCH.value}", methods=[*_READ, "POST"])
    @answered("prefetch")
    async def prefetch(self, request: Request) -> None:
        """The proxy's own resource: POST loads the whole instance into the cache, GET tells of it."""
        target = self._target(request, Kind.PREFETCH)
        asked = PrefetchParameters.of(target.query, _accept(request))
        wanted = await self._wanted(request, target, ())
        if request.method == b"POST":
            seen = self._outside(request)
            refuse_cross_site(request.requestHeaders.getRawHeaders, f"{seen.scheme}://{seen.host}", self.cors.origins)
            url = seen.base + request.uri.partition(b"?")[0].decode("ascii")
            await self.warming.start(request, wanted, asked, url)
        else:
            await self.warming.report(request, wanted, asked)

    @app.route("/<path:anything>", methods=_ALL)
    @answered("other")
    async def other(self, request: Request) -> None:
        """Everything else: preflights are answered, DICOMweb resources handed on, the rest is not found."""
        origin, method = request.getHeader(b"Origin"), request.getHeader(b"Access-Control-Request-Method")
        if self.cors.origins and is_preflight(request.method, origin, method):
            self._answer_preflight(request)
            return
        target = self._target(request)
        resource = target.resource
        if request.method.decode("latin-1") not in resource.methods:
            raise problems.method_not_allowed(resource.methods)
        await self._hand_on(request, target)

    async def _hand_on(self, request: Request, target: Target) -> None:
        seen, alter = self._outside(request), None
        if target.query and request.method == b"GET" and target.resource.kind in (Kind.METADATA, Kind.SEARCH):
            target, alter = self._rendered.description(target)
        await self.pass_through.answer(request, target, seen.base + target.mount.prefix, alter)

    add_pages(app, lambda routes: routes.settings.admin_listen is None)

    def _answer_preflight(self, request: Request) -> None:
        request.setResponseCode(204)
        request.responseHeaders.removeHeader(b"Vary")
        headers = self.cors.preflight(
            request.getHeader(b"Origin"),
            request.getHeader(b"Access-Control-Request-Headers"),
            request.getHeader(b"Access-Control-Request-Private-Network"),
        )
        for name, value in headers:
            request.responseHeaders.setRawHeaders(name, [value])

    @app.handle_errors(HTTPException)
    def routing_failed(self, request: Any, failure: Failure) -> None:
        """No route, or not with that method: what the routes above leave."""
        error = failure.value
        if isinstance(error, HTTPException) and error.code == 405:
            answer_unrouted(self, request, problems.method_not_allowed(_ALL))
        else:
            answer_unrouted(self, request, problems.not_found("there is nothing here; DICOMweb is below a mount"))

    def resource(self) -> IResource:
        """The root resource of a listener."""
        return Entry(self.mounts, self.app.resource(), self.credentials)

    @staticmethod
    def _target(request: Any, *kinds: Kind) -> Target:
        """What the request is about, found by `Entry`: one of *kinds*, where any are given."""
        if request.nowhere is not None:
            raise request.nowhere
        target: Optional[Target] = request.target
        if target is None or (kinds and target.resource.kind not in kinds):
            raise problems.not_found("there is nothing here; DICOMweb is below a mount")
        return target

    async def _wanted(
        self,
        request: Request,
        target: Target,
        numbers: tuple[int, ...],
        check: Callable[[InstanceMetadata], None] = lambda _metadata: None,
    ) -> Wanted:
        caller = caller_of(request, target, self.credentials)
        resource = target.resource
        if resource.series is None:
            instance = await self.series.instance(target.origin, resource.root, resource.study, resource.sop, caller)
        else:
            instance = target.instance
        return Wanted(target.origin, instance, numbers, caller, check)

    def _note_client(self, request: Request) -> None:
        """Let the log name the client behind a trusted proxy; nothing else of a frame's answer depends on it."""
        if self.settings.trusted_proxy:
            self._outside(request)

    def _outside(self, request: Request) -> Outside:
        peer = getattr(request.getClientAddress(), "host", None)
        host = request.getHost()
        default = f"{getattr(host, 'host', 'localhost')}:{getattr(host, 'port', 80)}"
        seen = outside(
            peer, bool(request.isSecure()), request.requestHeaders.getRawHeaders, self.settings.trusted_proxy, default
        )
        request.client_seen = seen.client  # type: ignore[attr-defined]
        return seen


def _accept(request: Request) -> Optional[bytes]:
    values = request.requestHeaders.getRawHeaders(b"Accept")
    return b", ".join(values) if values else None


def _vary(settings: Settings) -> bytes:
    return ", ".join(dict.fromkeys(["Accept", *settings.credential_header, "Cookie"])).encode("ascii")
