"""Which answers that describe instances may be kept, or shared by requests under way. No I/O."""

from __future__ import annotations

import re
from typing import Optional

import attrs

from twistedproxy.dicom.media_types import MULTIPART_RELATED
from twistedproxy.dicom.resource import Instance, known_instance
from twistedproxy.dicomweb.metadata_answers import DescriptionForm, form_of
from twistedproxy.dicomweb.metadata_observer import has_plain_query, is_bare_get
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.frames.grants import Credentials
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse, is_for, media_type_of
from twistedproxy.server.compression import tokens

LIMITS = {ResourceKind.METADATA: 16 << 20, ResourceKind.BULKDATA: 8 << 20}
"""Bytes of an answer that is kept, at most: a longer one is streamed. Metadata of 10,000 frames have some 10 MB where the store says
much of each; ICC profiles of scanners have up to 3 MB."""

SEARCH_LIMIT = 4 << 20
"""Bytes of the answer to a search that is shared, at most."""

PADDING = 1024
"""Bytes of blanks that may follow metadata, at most."""

_BEGIN = re.compile(rb"\s*+\[\s*+\{")  # some stores send blanks while they work

_SEARCHES = frozenset({ResourceKind.STUDIES, ResourceKind.SEARCH})
REFUSABLE = frozenset({*LIMITS, ResourceKind.INSTANCE, ResourceKind.SERIES, ResourceKind.STUDY})
"""What a refusal of ends proofs."""

_CONDITIONS = frozenset(b"if-none-match if-modified-since".split())
# What is the same for all answers to one URL, Accept and caller: other fields that an answer varies by may be why it was given.
_MAY_VARY_BY = frozenset(b"accept accept-encoding authorization cookie origin".split())
_OF_ONE = frozenset(b"set-cookie set-cookie2 content-range".split())
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
    accept = b", ".join(value for name, value in handed_on.headers if name.lower() == b"accept")
    url = b"\0".join((kind.value.encode("ascii"), target.raw_path, target.query, accept))
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
    resource, origin = target.resource, target.origin.url
    if resource.study is None:
        return None
    if resource.series is not None and resource.sop is not None:
        return target.instance
    return known_instance(origin, resource.root, resource.study, resource.study, resource.study).of_study
