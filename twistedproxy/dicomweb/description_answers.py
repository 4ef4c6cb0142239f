"""Requests for what describes instances, and the answers: which may be kept, or shared, and how they go out."""

from __future__ import annotations

import re
import sys
from typing import Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.media_types import MULTIPART_RELATED
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicomweb.metadata_answers import DescriptionForm, form_of
from twistedproxy.dicomweb.metadata_observer import has_plain_query, is_bare_get
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.frames.entries import digests_of
from twistedproxy.frames.grants import Credentials
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse, first, is_for, media_type_of
from twistedproxy.server.compression import tokens
from twistedproxy.server.conditional import entity_tag, matches_none
from twistedproxy.streams import BytesStream, ByteStream, Gathered, read_all
from twistedproxy.system.memory_budget import Reservation

LIMITS = {ResourceKind.METADATA: 16 << 20, ResourceKind.BULKDATA: 8 << 20}
"""Bytes of an answer that is kept, at most: a longer one is streamed. Metadata of 10,000 frames have some 10 MB where the store says
much of each; ICC profiles of scanners have up to 3 MB."""

SEARCH_LIMIT = 4 << 20
"""Bytes of the answer to a search that is shared, at most."""

PADDING = 1024
"""Bytes of blanks that may follow metadata, at most."""

_BEGIN = re.compile(rb"\s*+\[\s*+\{")  # some stores send blanks while they work

PIECE = 64 << 10
"""Bytes of an answer at hand that are sent on at once."""

_SEARCHES = frozenset({ResourceKind.STUDIES, ResourceKind.SEARCH})
REFUSABLE = frozenset({*LIMITS, ResourceKind.INSTANCE, ResourceKind.SERIES, ResourceKind.STUDY})
"""What a refusal of ends proofs."""

_CHOOSING = (b"accept", b"origin")
"""Fields that the answer may depend on, or what browsers are told of it."""

_CONDITIONS = frozenset(b"if-none-match if-modified-since".split())
# What is the same for all answers to one URL, Accept, Origin and caller: other fields that an answer varies by may be why it was given.
_MAY_VARY_BY = frozenset(b"accept accept-encoding authorization cookie origin".split())
_OF_ONE = frozenset(b"set-cookie set-cookie2 content-range".split())
_REPLACED = frozenset(b"etag last-modified cache-control expires pragma age".split())
_BULK_TYPES = frozenset(
    ("application/octet-stream", "binary/octet-stream", "application/x-octet-stream", MULTIPART_RELATED)
)


@attrs.frozen
class DescriptionRequest:
    """A request for what may be kept, or, where *place* is None, shared. *url*: what is asked for, without who asks. *limit*: bytes
    of its answer. *fresh*: whether the client wants it from the store."""

    handed_on: OriginRequest
    place: Optional[Instance]
    kind: ResourceKind
    url: bytes
    limit: int
    fresh: bool

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return self.handed_on.caller

    @property
    def unconditional(self) -> OriginRequest:
        """What the store is asked: for all of it, in no coding."""
        headers = [(name, value) for name, value in self.handed_on.headers if name.lower() not in _CONDITIONS]
        if self.kind is ResourceKind.BULKDATA:
            headers = [(name, value) for name, value in headers if name.lower() != b"accept-encoding"]
            headers.append((b"Accept-Encoding", b"identity"))
        return attrs.evolve(self.handed_on, headers=tuple(headers))


def description_request(
    target: Target, handed_on: OriginRequest, credentials: Credentials
) -> Optional[DescriptionRequest]:
    """What *handed_on* asks for, if an answer to it may be kept or shared. Not of a folder: it is at hand, and notices what changed
    in it when it is asked."""
    kind, named = target.resource.kind, {name.lower() for name, _ in handed_on.headers}
    if not is_bare_get(handed_on, credentials) or not target.origin.url.startswith(("http://", "https://")):
        return None
    control = tokens(handed_on.headers, b"cache-control")
    fresh = b"no-cache" in control
    if b"no-store" in control:
        return None
    chosen = [b", ".join(value for name, value in handed_on.headers if name.lower() == field) for field in _CHOOSING]
    url = b"\0".join((kind.value.encode("ascii"), target.raw_path, target.query, *chosen))
    if kind in _SEARCHES and not named & _CONDITIONS:
        return DescriptionRequest(handed_on, None, kind, target.origin.url.encode() + url, SEARCH_LIMIT, fresh)
    place = place_of(target)
    if kind not in LIMITS or place is None or not has_plain_query(target):
        return None
    return DescriptionRequest(handed_on, place, kind, url, LIMITS[kind], fresh)


def is_whole(wanted: DescriptionRequest, response: OriginResponse, body: bytes) -> bool:
    """Whether the *body* of an answer that may be kept is what its head says, as far as its ends show, and not nothing: some
    gateways put a page behind it."""
    if not body or not response.framed():
        return False
    if wanted.kind is ResourceKind.BULKDATA or form_of(response.headers) is not DescriptionForm.JSON:
        return True
    return bool(_BEGIN.match(body)) and body[-PADDING:].rstrip().endswith(b"]")


def may_be_kept(wanted: DescriptionRequest, response: OriginResponse, credentials: Credentials) -> bool:
    """Whether an answer may be kept, or shared, by its head."""
    headers, names = response.headers, {name.lower() for name, _ in response.headers}
    if response.status != 200 or (response.length or 0) > wanted.limit or not is_for(wanted.caller, headers):
        return False
    if names & _OF_ONE or not {b"no-store", b"no-transform"}.isdisjoint(tokens(headers, b"cache-control")):
        return False
    if not set(tokens(headers, b"vary")) <= _MAY_VARY_BY | credentials.header_names:
        return False
    if not set(tokens(headers, b"content-encoding")) <= {b"", b"identity"}:
        return False
    if wanted.kind is not ResourceKind.BULKDATA:
        return form_of(headers) is not None
    media_type = media_type_of(headers)
    return media_type is not None and media_type.type in _BULK_TYPES


def place_of(target: Target) -> Optional[Instance]:
    """Where in the cache descriptions of what *target* names are: below an instance, or below the study for all above, for a refusal
    of the study is one of its series."""
    if target.resource.series is not None and target.resource.sop is not None:
        return target.instance
    return None if target.whole is None else target.whole.of_study


@attrs.frozen
class Answered:
    """An answer to be passed on. *status*: Cache-Status (RFC 9211), and *outcome* the same in one word. *size*: bytes of its body
    that are held. *tagged*: whether it has an entity tag of ours. *said*: whether the store has just said it to this request."""

    response: OriginResponse
    status: bytes = b"twistedproxy; fwd=bypass"
    outcome: str = ""
    size: int = 0
    tagged: bool = False
    said: bool = True


@attrs.frozen
class WholeAnswer:
    """An answer of the store that is at hand. *stored*: whether it is in the cache; None where it is not meant to be."""

    response: OriginResponse
    body: bytes = attrs.field(repr=False)
    stored: Optional[bool]

    def answered(self, joined: bool, fresh: bool) -> Answered:
        """It, as the answer to one that asked for it, or who *joined* that one."""
        forward = b"bypass" if self.stored is None else b"request" if fresh else b"uri-miss"
        stored = b"; stored" if self.stored else b""
        status = b"twistedproxy; fwd=%s%s%s" % (forward, stored, b"; collapsed" if joined else b"")
        outcome = "collapsed" if joined else "" if self.stored is None else "miss"
        response = attrs.evolve(self.response, body=stream_of(self.body), length=len(self.body))
        return Answered(response, status, outcome, len(self.body), self.stored is not None, not joined)


async def gather(body: ByteStream, limit: int, held: Reservation) -> tuple[bytes, bool]:
    """What comes of *body* up to *limit* bytes, and whether that is all. It is counted as it comes."""
    gathered, size = Gathered(), 0
    while chunk := await body.read():
        gathered.add(chunk)
        size += len(chunk)
        held.set(max(held.size, size))
        if size > limit:
            return gathered.whole(), False
    return gathered.whole(), True


def stream_of(body: bytes) -> ByteStream:
    """*body*, which may be a view of a cache's buffer, in pieces."""
    view = memoryview(body)
    return BytesStream(*(bytes(view[start : start + PIECE]) for start in range(0, len(view), PIECE)))


async def tagged(request: Request, response: OriginResponse, held: Reservation) -> OriginResponse:
    """*response* with an entity tag of what the client sees of it, or the 304 that it is to a condition of *request*. No cache may
    give it without asking: the right may have ended."""
    body = await read_all(response.body, sys.maxsize)
    held.set(max(held.size, 2 * len(body)))
    etag = entity_tag(first(response.headers, b"content-type") or b"", (await digests_of([body]))[0])
    headers = tuple(pair for pair in response.headers if pair[0].lower() not in _REPLACED)
    headers = (*headers, (b"ETag", etag), (b"Cache-Control", b"private, no-cache"))
    condition = request.requestHeaders.getRawHeaders(b"If-None-Match")
    if condition is not None and matches_none(b", ".join(condition), etag):
        shown = tuple(pair for pair in headers if not pair[0].lower().startswith(b"content-t"))
        return OriginResponse(304, shown, BytesStream())
    return attrs.evolve(response, headers=headers, body=stream_of(body), length=len(body))
