"""The routes: frames and pictures are answered here, through the cache; all else below a mount is handed on.

What a request is about is found in its raw path before Klein finds the handler (`RootResource`): a route here is a kind of
DICOMweb resource, or a page of the proxy's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Optional

import attrs
from klein import Klein
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from twistedproxy.dicom.multipart_writer import build
from twistedproxy.dicom.negotiation import wants_bare
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM
from twistedproxy.dicomweb.frames import StoredFrames
from twistedproxy.dicomweb.middleware import Accounting, answered
from twistedproxy.dicomweb.mounts import Mounts, Pages, RootResource, Target
from twistedproxy.dicomweb.passthrough import PassThrough
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.dicomweb.prefetch import PrefetchEndpoint, PrefetchParameters
from twistedproxy.dicomweb.rendered import RenderedAnswers
from twistedproxy.dicomweb.repairs.metadata import profile_place
from twistedproxy.dicomweb.requests import RequestParser, accept_of, accepted_by, caller_of
from twistedproxy.dicomweb.status import StatusPages, add_pages
from twistedproxy.frames.read_through import FrameRequest
from twistedproxy.origin.errors import HAS_NOT
from twistedproxy.prefetch.jobs import JobKind
from twistedproxy.server.cors import Cors, is_preflight, refuse_cross_site
from twistedproxy.server.problems import Problem, method_not_allowed
from twistedproxy.settings import Settings

_READ = ["GET", "HEAD"]
_ALL = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]
_LOADS = {(True, True): JobKind.WHOLE, (True, False): JobKind.SERIES, (False, False): JobKind.STUDY}
"""What is loaded, by whether a path names a series and an instance."""

Covering = Callable[[Request, FrameRequest, bool, Optional[bytes]], Awaitable[None]]
"""Answers a request for the coverage of an instance, or of what it stands for; with its Accept header."""

_NO_RESOURCE = "no such resource; DICOMweb resources are below a mount"


@attrs.define(eq=False, slots=False)
class ProxyRoutes:
    """All that listeners answer. Collaborators are given; none is made here."""

    settings: Settings
    mounts: Mounts
    requests: RequestParser
    stored_frames: StoredFrames
    pictures: RenderedAnswers
    pass_through: PassThrough
    status: StatusPages
    prefetching: PrefetchEndpoint
    covering: Covering
    accounting: Accounting
    cors: Cors = attrs.field(
        init=False, default=attrs.Factory(lambda self: Cors(self.settings.cors_origin), takes_self=True)
    )

    app = Klein()

    @app.route(f"/{ResourceKind.FRAMES.value}", methods=_READ)
    @answered("frames")
    async def frames(self, request: Request) -> None:
        """Frames (DICOM PS3.18 section 10.4.1.1.6)."""
        target = _target(request)
        wanted = await self.requests.frames(request, target)
        if wanted is None:
            await self._hand_on(request, target)
        elif wanted.asked.given and not wanted.asked.rendering.changes_nothing:
            await self.pictures.frames(request, wanted)
        else:
            await self.stored_frames.answer(request, wanted)

    @app.route(f"/{ResourceKind.FRAMES_RENDERED.value}", methods=_READ)
    @answered("frames_rendered")
    async def rendered(self, request: Request) -> None:
        """Pictures of frames (DICOM PS3.18 section 10.4.1.1.6): the stored frame where it is the picture requested."""
        await self._rendered(request, _target(request))

    @app.route(f"/{ResourceKind.INSTANCE_RENDERED.value}", methods=_READ)
    @answered("instance_rendered")
    async def instance_rendered(self, request: Request) -> None:
        """One picture of an instance (DICOM PS3.18 section 10.4.1.1.3)."""
        await self._rendered(request, _target(request))

    @app.route(f"/{ResourceKind.THUMBNAIL.value}", methods=_READ)
    @answered("thumbnail")
    async def thumbnail(self, request: Request) -> None:
        """A small picture of an instance, or of the first one of some frames (DICOM PS3.18 section 10.4, Thumbnail Resources);
        of a study or series that of an instance which stands for it, where the store names one."""
        target = _target(request)
        resource, instance = target.resource, None
        if resource.sop is None:
            if resource.study is not None:
                instance = await target.origin.representative(resource.root, resource.study, resource.series)
            if instance is None:
                await self._hand_on(request, target)
                return
        await self._rendered(request, target, instance)

    async def _rendered(self, request: Request, target: Target, instance: Optional[Instance] = None) -> None:
        if self.pictures.imaging is not None:
            wanted = await self.requests.pictures(request, target, instance)
            if await self.pictures.rendered(request, wanted, target.resource.kind.value):
                return
        await self._hand_on(request, target)

    @app.route(f"/{ResourceKind.PREFETCH.value}", methods=[*_READ, "POST"])
    @answered("prefetch")
    async def prefetch(self, request: Request) -> None:
        """The proxy's own resource: POST loads a whole instance, series or study into the cache, GET tells of it."""
        target = _target(request)
        asked = PrefetchParameters.of(target.query, accept_of(request))
        wanted = await self.requests.resource(request, target)
        kind = _LOADS[target.resource.series is not None, target.resource.sop is not None]
        if request.method == b"POST":
            seen = self.requests.outside(request)
            refuse_cross_site(request.requestHeaders.getRawHeaders, f"{seen.scheme}://{seen.host}", self.cors.origins)
            url = seen.base + request.uri.partition(b"?")[0].decode("ascii")
            await self.prefetching.start(request, wanted, kind, asked, url)
        else:
            await self.prefetching.report(request, wanted, kind, asked)

    @app.route(f"/{ResourceKind.COVERAGE.value}", methods=_READ)
    @answered("coverage")
    async def coverage(self, request: Request) -> None:
        """The proxy's own resource: which frames of an instance, or of all instances of a series, are cached."""
        target = _target(request)
        wanted, whole = await self.requests.resource(request, target), target.resource.sop is None
        await self.covering(request, wanted, whole, accept_of(request))

    @app.route(f"/{ResourceKind.BULKDATA.value}", methods=_READ)
    @answered("other")
    async def bulk_data(self, request: Request) -> None:
        """Bulk data (DICOM PS3.18 section 10.4.1.1.5): the store's, or an ICC profile that it gives with the object alone."""
        target = _target(request)
        if profile_place(target) is None:
            await self._hand_on(request, target)
        else:
            await self._give_profile(request, target)
        if request.code < 400 and target.resource.sop is not None:
            caller = caller_of(request, target, self.requests.credentials)
            self.prefetching.opened(FrameRequest(target.origin, target.instance, (1,), caller))

    async def _give_profile(self, request: Request, target: Target) -> None:
        accepted, outside = accepted_by(request, target), self.requests.outside(request).base + target.mount.prefix
        status = await self.pass_through.answer(request, target, outside, only_good=True)
        if status is None:
            return
        profile = None
        if status in HAS_NOT:
            caller = caller_of(request, target, self.requests.credentials)
            profile = await self.pass_through.descriptions.repairs.profile(target, caller)
        if profile is None:  # the store's refusal
            await self._hand_on(request, target)
        elif wants_bare(accepted, OCTET_STREAM):
            await self.pass_through.give(request, OCTET_STREAM.encode("ascii"), profile)
        else:
            parts = build([profile], OCTET_STREAM, None)
            await self.pass_through.give(request, parts.content_type, b"".join(parts.chunks))

    @app.route("/<path:anything>", methods=_ALL)
    @answered("other")
    async def other(self, request: Request) -> None:
        """Everything else: preflights are answered, DICOMweb resources handed on, the rest is not found."""
        origin, method = request.getHeader(b"Origin"), request.getHeader(b"Access-Control-Request-Method")
        if self.cors.origins and is_preflight(request.method, origin, method):
            self._answer_preflight(request)
            return
        target = _target(request)
        resource = target.resource
        if request.method.decode("latin-1") not in resource.methods:
            raise method_not_allowed(resource.methods)
        await self._hand_on(request, target)

    async def _hand_on(self, request: Request, target: Target) -> None:
        seen, alter = self.requests.outside(request), None
        if (
            target.query
            and request.method == b"GET"
            and target.resource.kind in (ResourceKind.METADATA, ResourceKind.SEARCH)
        ):
            target, alter = self.pictures.description(target)
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
    @answered("unrouted")
    async def routing_failed(self, _request: Request, failure: Any) -> None:
        """No route, or not with that method: what the routes above leave."""
        wrong_method = failure.value.code == 405
        raise method_not_allowed(_ALL) if wrong_method else Problem(404, _NO_RESOURCE)

    def resource(self, page: Pages) -> IResource:
        """The root resource of a listener. *page*: see `RootResource`."""
        return RootResource(self.mounts, self.app.resource(), self.requests.credentials, page)


def _target(request: Any) -> Target:
    """What the request is about, found by `RootResource`, which has the path name the route of its kind."""
    if request.target is None:
        raise request.nowhere or Problem(404, _NO_RESOURCE)
    target: Target = request.target
    return target
