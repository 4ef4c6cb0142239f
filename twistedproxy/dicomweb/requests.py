"""A request for frames or pictures, parsed once: path, caller, query and Accept become one value."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.media_types import BadMediaType
from twistedproxy.dicom.negotiation import (
    AcceptedTypes,
    FormChoice,
    FrameForm,
    NotAcceptable,
    choose_type,
    parse_accept,
    query_accept,
)
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicomweb.middleware import client_of
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.paths import parse_frame_list
from twistedproxy.frames.grants import Credentials
from twistedproxy.frames.read_through import FrameRequest
from twistedproxy.frames.series_lookup import SeriesLookup
from twistedproxy.imaging.parameters import (
    FRAMES,
    PROFILES,
    RENDERED,
    BadParameter,
    PictureQuery,
    Rendering,
    parse_query,
)
from twistedproxy.origin.interface import Caller
from twistedproxy.rendering.planner import PICTURE_TYPES, producible
from twistedproxy.rendering.service import PictureService
from twistedproxy.server.forwarded import Outside, outside
from twistedproxy.server.problems import Problem
from twistedproxy.settings import Settings

_NOTHING = PictureQuery(Rendering())
_ANYTHING = AcceptedTypes()


@attrs.frozen(eq=False)
class ParsedRequest(FrameRequest):
    """What a request for frames or pictures says. *numbers*: none, where it is about an instance.

    *asked*: its query; *accepted*: its Accept. *problem*: what is wrong with these two, if anything; it may be right for what
    the store makes. *form*: the form of frames, chosen as soon as it can be.
    """

    target: Target = attrs.field(kw_only=True)
    asked: PictureQuery = attrs.field(kw_only=True)
    accepted: AcceptedTypes = attrs.field(kw_only=True)
    form: FormChoice = attrs.field(kw_only=True)
    problem: Optional[Exception] = attrs.field(kw_only=True, default=None)

    def picture_form(self) -> FrameForm:
        """The form of pictures. Raises `problem`, or `NotAcceptable`."""
        if self.problem is not None:
            raise self.problem
        single, ranges = len(self.numbers) <= 1, self.accepted.ranges
        if single:
            try:
                return FrameForm(False, choose_type(self.accepted, PICTURE_TYPES), None, False)
            except NotAcceptable:
                if not any(range_.multipart for range_ in ranges):
                    raise
        parts = tuple(attrs.evolve(one, multipart=False) for one in ranges if one.multipart or not single)
        return FrameForm(True, choose_type(attrs.evolve(self.accepted, ranges=parts), PICTURE_TYPES), None, False)


@attrs.frozen(eq=False)
class RequestParser:
    """Parses requests. *imaging*: None where no pictures are made here."""

    settings: Settings
    credentials: Credentials
    series: SeriesLookup
    imaging: Optional[PictureService]

    async def frames(self, request: Request, target: Target) -> Optional[ParsedRequest]:
        """A request for frames; None for one by parameters of the store's own. Raises `Problem` 400."""
        asked = _NOTHING
        if target.query:
            asked = parse_parameters(target.query, FRAMES, self.imaging)
            if not asked.given and _without_accept(target.query):
                return None
        return await self._parsed(request, target, asked, accepted_by(request, target))

    async def pictures(self, request: Request, target: Target, instance: Optional[Instance]) -> ParsedRequest:
        """A request for pictures. *instance*: where the path names none."""
        asked, accepted = _NOTHING, _ANYTHING
        problem: Optional[Exception] = None
        try:
            asked = parse_parameters(target.query, RENDERED, self.imaging)
            accepted = accepted_by(request, target)
        except (BadMediaType, Problem) as error:
            problem = error
        return await self._parsed(request, target, asked, accepted, instance, problem)

    async def resource(self, request: Request, target: Target) -> FrameRequest:
        """A request about an instance, or about what stands for a series or study, whose query is none of pictures."""
        instance = target.whole if target.resource.sop is None else None
        return await self._parsed(request, target, _NOTHING, _ANYTHING, instance)

    async def _parsed(
        self,
        request: Request,
        target: Target,
        asked: PictureQuery,
        accepted: AcceptedTypes,
        instance: Optional[Instance] = None,
        problem: Optional[Exception] = None,
    ) -> ParsedRequest:
        if self.settings.trusted_proxy:
            self.outside(request)  # lets the log name the client
        resource = target.resource
        numbers: tuple[int, ...] = ()
        if resource.frame_list:
            numbers = parse_frame_list(resource.frame_list, self.settings.max_frames_per_request)
        caller = caller_of(request, target, self.credentials)
        if instance is None:
            if resource.series is None:
                instance = await self.series.instance(
                    target.origin, resource.root, resource.study, resource.sop, caller
                )
            else:
                instance = target.instance
        made_here = producible if self.imaging is not None else lambda _metadata, _stored: ()
        form = FormChoice(accepted, len(numbers), made_here)
        return ParsedRequest(
            target.origin,
            instance,
            numbers,
            caller,
            form.check,
            takes=form.takes,
            fresh=asked.fresh,
            target=target,
            asked=asked,
            accepted=accepted,
            form=form,
            problem=problem,
        )

    def outside(self, request: Request) -> Outside:
        """How the request looked to its client. Raises `Problem` 400."""
        peer = getattr(request.getClientAddress(), "host", None)
        host = request.getHost()
        default = f"{getattr(host, 'host', 'localhost')}:{getattr(host, 'port', 80)}"
        seen = outside(
            peer, bool(request.isSecure()), request.requestHeaders.getRawHeaders, self.settings.trusted_proxy, default
        )
        request.client_seen = seen.client  # type: ignore[attr-defined]
        return seen


def parse_parameters(query: bytes, known: frozenset[str], imaging: Optional[PictureService]) -> PictureQuery:
    """What a query asks for, of the parameters *known*. Raises `Problem` 400."""
    if not query:
        return _NOTHING
    profiles = imaging.planner.profile_names if imaging is not None else PROFILES
    try:
        return parse_query(query, known, profiles)
    except BadParameter as error:
        raise Problem(400, str(error)) from None


def caller_of(request: Request, target: Target, credentials: Credentials) -> Caller:
    """The caller that a request for *target* comes from."""
    return credentials.caller(request.requestHeaders.getRawHeaders, target.token, client_of(request))


def accept_of(request: Request) -> Optional[bytes]:
    """The Accept header, its lines joined."""
    values = request.requestHeaders.getRawHeaders(b"Accept")
    return b", ".join(values) if values else None


def accepted_by(request: Request, target: Target) -> AcceptedTypes:
    """The media types that *request* accepts, in its header or its query."""
    return parse_accept(accept_of(request), query_accept(target.query) if target.query else None)


def _without_accept(query: bytes) -> bytes:
    """A raw query less what replaces Accept."""
    return b"&".join(field for field in query.split(b"&") if field and not field.lower().startswith(b"accept="))
