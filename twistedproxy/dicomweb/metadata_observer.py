"""Answers that describe instances (metadata, searches, what a STOW stored), looked at while they pass.

- URLs of the origin become the proxy's, in JSON and in XML.
- What the origin left out is added to JSON (`twistedproxy.dicomweb.repairs`), the transfer syntax as far as it is known here: for one
  instance's metadata one frame is asked for to know.
- The JSON metadata of one instance are the caller's grant for it, those of a series or study for all instances that they name, if
  nothing in the request but what makes the caller could have moved the origin to give them, and if they are all there is: no
  parameters ask for a part of them. A cache's answer to a caller with credentials is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Optional, Union

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.server import Request

from twistedproxy.cache.interface import Cache, Reading
from twistedproxy.deferreds import all_or_none, follow, in_slices
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.metadata import InstanceMetadata, MetadataParser
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicomweb.metadata_answers import STORED_STATUSES, DescriptionForm, form_of
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.dicomweb.repairs.members import Members, instances_in, syntax_members, with_members, with_turns
from twistedproxy.dicomweb.repairs.metadata import MetadataRepairs
from twistedproxy.dicomweb.repairs.searches import SearchRepairs
from twistedproxy.dicomweb.url_rewriting import UrlMap, json_urls, xml_urls
from twistedproxy.frames.access import Access, metadata_in
from twistedproxy.frames.entries import METADATA
from twistedproxy.frames.grants import Credentials
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.frames.series_answers import MAX_ANSWER
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse, is_for
from twistedproxy.series.members import SeriesParser, StudyParser
from twistedproxy.server.compression import altered
from twistedproxy.server.response_body import in_pieces
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream, YieldedStream, hold
from twistedproxy.system.memory_budget import Reservation

_log = Logger()

HELD = 4 << 20
"""Bytes of metadata that are held back to know what they lack before the first is sent on."""

SEARCH_HELD = 256 << 10
"""Bytes of other answers that are held back to find the instances in them."""

PIECE = 64 << 10
"""Bytes of metadata parsed between two turns of the reactor: 1.7 ms."""

PROBE_SECONDS = 5.0
"""How long a metadata answer may wait for the frame that shows the transfer syntax (seconds). The frame is fetched all the same."""

# The one field of a query that no store decides by: a media type without parameters, for some split fields at semicolons.
_ACCEPT = re.compile(rb"accept=(?:[A-Za-z0-9./+*,_-]|%2[BCFbcf])*", re.IGNORECASE)

# Request headers that no store decides by. Any other may be why it answered, and is no part of the grant's credential.
_HARMLESS = frozenset(
    b"host accept accept-charset accept-encoding accept-language user-agent referer origin connection keep-alive"
    b" cache-control content-type pragma dnt priority te upgrade-insecure-requests x-requested-with if-none-match"
    b" if-modified-since"
    b" via traceparent tracestate x-request-id x-forwarded-proto x-forwarded-host x-forwarded-port".split()
)


_Record = Callable[[InstanceMetadata], Awaitable[None]]


async def _record_nothing(_: InstanceMetadata) -> None:
    """An answer of a cache on the way proves nothing."""


@attrs.frozen
class MetadataObserver:
    """Watches describing answers pass."""

    cache: Cache
    access: Access
    reader: FrameReader
    credentials: Credentials
    clock: IReactorTime
    repairs: MetadataRepairs

    async def watch(self, request: Request, target: Target, handed_on: OriginRequest) -> ObservedAnswer:
        """Get ready for the answer to *request*, *handed_on* like that. To be called before the origin is asked: a
        grant holds only for what the cache knew then."""
        caller = handed_on.caller
        assert caller is not None  # `request_for_origin` has found it
        instance, whole = None, None
        if self._would_grant(handed_on, target):
            instance, whole = (None, target.whole) if target.resource.sop is None else (target.instance, None)
        seen, asked = instance or whole, self.access.wall_clock()
        reading = await self.read(seen) if seen is not None else Reading(None, {})
        return ObservedAnswer(self, target, caller, request.method, instance, whole, reading, asked)

    async def revoke(self, handed_on: OriginRequest, target: Target) -> None:
        """End the caller's grant for the instance that *target* is about, or what was said of its series or study: the origin has
        just refused to show it."""
        resource, caller = target.resource, handed_on.caller
        if resource.series is not None and resource.sop is not None:
            await self.access.revoke(caller, target.instance)
        elif target.whole is not None:
            await self.access.revoke_whole(caller, target.whole)

    async def read(self, instance: Instance, names: Sequence[bytes] = (METADATA,)) -> Reading:
        """What the cache holds below *instance*; nothing while a change of it waits for the cache."""
        if self.reader.invalidation.is_pending(instance):
            return Reading(None, {})
        return await self.cache.get_many(instance, names)

    def _would_grant(self, handed_on: OriginRequest, target: Target) -> bool:
        of_metadata = target.resource.kind is ResourceKind.METADATA
        return of_metadata and has_plain_query(target) and is_bare_get(handed_on, self.credentials)


def has_plain_query(target: Target) -> bool:
    """Whether nothing but ``accept=`` is in a query: an answer to another may be a part of what there is."""
    return all(_ACCEPT.fullmatch(field) for field in target.query.split(b"&") if field)


def is_bare_get(handed_on: OriginRequest, credentials: Credentials) -> bool:
    """Whether a request is a GET without a body, and what makes the caller is all in its head that can move the origin to give
    this answer or another one."""
    names = [name.lower() for name, _ in handed_on.headers]
    harmless = credentials.are_all(name for name in names if not _is_harmless(name))
    return handed_on.method == b"GET" and handed_on.body is None and harmless


def _is_harmless(name: bytes) -> bool:
    return name in _HARMLESS or name.startswith(b"sec-")


@attrs.frozen
class ObservedAnswer:
    """One describing answer. *instance* is set where it is that instance's metadata and makes a grant, *whole* where it is that of
    the series or study that this stands for; *reading*: what the cache knew of them before. *said*: whether the origin has just given it."""

    _observer: MetadataObserver
    _target: Target
    _caller: Caller
    _method: bytes
    _instance: Optional[Instance]
    _whole: Optional[Instance]
    _reading: Reading
    _asked: float
    _said: bool = True

    @property
    def held(self) -> int:
        """Bytes of the answer that are held back to be looked into, at most."""
        return HELD if self._target.resource.kind is ResourceKind.METADATA else SEARCH_HELD

    def of_cache(self) -> ObservedAnswer:
        """The same for an answer that the origin did not just give: it proves nothing, and is shown with what is known."""
        return attrs.evolve(self, said=False)

    def understands(self, response: OriginResponse) -> bool:
        """Whether the answer can be looked into: a successful one, in a form that we know, of no content coding."""
        good = {200} if self._method in (b"GET", b"HEAD") else STORED_STATUSES
        return response.status in good and form_of(response.headers) is not None

    async def follow(self, response: OriginResponse, urls: UrlMap, memory: Reservation) -> OriginResponse:
        """The answer as the client shall see it; its length is not known beforehand.

        *urls*: from the origin to the mount as the client sees it. *memory*: counts what is held, where that is all. To be called only
        if it `understands` the answer.
        """
        form = form_of(response.headers) or DescriptionForm.JSON
        body: ByteStream = response.body
        headers, ends = altered(response.headers), dict[int, int]()
        record = self._record if is_for(self._caller, response.headers) else _record_nothing
        if self._whole is not None and form is DescriptionForm.JSON and is_for(self._caller, response.headers):
            body = self._proving(self._whole, body)
        if form is DescriptionForm.JSON and self._method == b"GET":
            start, whole = await hold(body, self.held)
            if whole:
                memory.set(len(start))
            try:
                syntaxes = await self._syntaxes(start, whole, record)
                members, ends = await self._repaired(start, whole)
                for at, syntax in syntax_members(syntaxes).items():
                    members[at] = {**members.get(at, {}), **syntax}
                begun = with_members(start, members, ends)
                if len(start) > PIECE:
                    await deferLater(self._observer.clock, 0)
            except BaseException:
                body.close()
                raise
            pieces = [begun[start : start + PIECE] for start in range(0, len(begun), PIECE)]
            body = ChainedStream(BytesStream(*pieces), body)
            if self._instance is not None and self._said and not whole:
                parser = MetadataParser(self._instance.uids)
                body = YieldedStream(_observed(body, parser, record, self._observer.clock), body)
        json = form is DescriptionForm.JSON
        rewriting = json_urls(urls) if json else xml_urls(urls, parts=form is DescriptionForm.XML_PARTS)
        if ends:  # the origin's validators do not tell what was put back from what was not
            memory.set(memory.size + len(begun) - len(start))
            headers = tuple(pair for pair in headers if pair[0].lower() not in (b"etag", b"last-modified"))
        shown = in_pieces(body, rewriting.feed, rewriting.close, self._observer.clock)
        return attrs.evolve(response, headers=headers, body=shown, length=None)

    async def _repaired(self, start: bytes, whole: bool) -> tuple[dict[int, Members], dict[int, int]]:
        """What the origin left out of the objects in the *start* of an answer, by where they begin; and where some of them end."""
        if self._target.resource.kind is ResourceKind.METADATA:
            return await self._observer.repairs.members(start, self._target, self._caller)
        return await SearchRepairs(self._observer.clock).members(start, whole, self._target, self._caller), {}

    async def _syntaxes(self, start: bytes, whole: bool, record: _Record) -> dict[int, str]:
        """The transfer syntaxes that are known of objects in the *start* of an answer, by where they begin."""
        if self._instance is None:
            return await self._known_syntaxes(start[:SEARCH_HELD])
        syntax = await self._granted(self._instance, start, record) if whole and self._said else self._learned()
        return {start.find(b"{"): syntax} if syntax else {}

    def _learned(self) -> Optional[str]:
        """The transfer syntax that the cache knew."""
        known = metadata_in(self._reading)
        return known.transfer_syntax if known is not None else None

    async def _granted(self, instance: Instance, answer: bytes, record: _Record) -> Optional[str]:
        """*record* the metadata that this answer holds; return the instance's transfer syntax."""
        parser = MetadataParser(instance.uids)
        try:
            await in_slices(parser.feed, answer, self._observer.clock)
            metadata = parser.close()
        except BadMetadata:
            return None
        await record(metadata)
        syntax = metadata.transfer_syntax or self._learned()
        return syntax if syntax or not metadata.has_pictures else await self._probe(instance)

    async def _record(self, metadata: InstanceMetadata) -> None:
        if self._instance is not None:
            expires = self._asked + self._observer.access.ttl
            await self._observer.access.record_passing(self._instance, self._caller, metadata, self._reading, expires)

    def _proving(self, whole: Instance, body: ByteStream) -> ByteStream:
        """*body*, the metadata of a series or study, which at its end is the caller's grant for all instances that it names."""
        answers, fence, of_series = self._observer.access.series, self._reading.fence, self._target.resource.series
        if answers is None or fence is None or not self._said:
            return body
        parser = StudyParser(whole.study) if of_series is None else SeriesParser(whole.study, of_series)
        keep = answers.record_study if of_series is None else answers.record

        async def record(found: Any) -> None:
            await keep(whole, self._caller, found, fence, self._asked)

        return YieldedStream(_observed(body, parser, record, self._observer.clock, MAX_ANSWER), body)

    async def _probe(self, instance: Instance) -> Optional[str]:
        """The transfer syntax of the first frame, if it comes soon. If not, it is known the next time."""
        reading = Deferred.fromCoroutine(self._first_frame(instance))
        try:
            return await follow(reading).addTimeout(PROBE_SECONDS, self._observer.clock)
        except defer.TimeoutError:
            return None

    async def _first_frame(self, instance: Instance) -> Optional[str]:
        wanted = FrameRequest(self._target.origin, instance, (1,), self._caller, prefetch=False)
        try:
            return (await self._observer.reader.read(wanted)).frames[0].transfer_syntax
        except Exception as error:
            _log.info(
                "the transfer syntax of {instance} is unknown: its first frame could not be read: {reason}",
                reason=str(error),
                instance=instance.path,
            )
            return None

    async def _known_syntaxes(self, answer: bytes) -> dict[int, str]:
        """The transfer syntaxes that objects in *answer* have in another place, or that the cache knows, by where the objects
        begin."""
        places: dict[int, Instance] = {}
        syntaxes: dict[int, str] = {}
        async for position, found in with_turns(instances_in(answer, self._target), self._observer.clock):
            if isinstance(found, Instance):
                places[position] = found
            elif found is not None:
                syntaxes[position] = found
        readings = await all_or_none([Deferred.fromCoroutine(self._observer.read(one)) for one in places.values()])
        known = zip(places, map(metadata_in, readings), strict=True)
        learned = {position: found.transfer_syntax for position, found in known if found and found.transfer_syntax}
        return syntaxes | learned


async def _observed(
    source: ByteStream,
    parser: Union[MetadataParser, SeriesParser, StudyParser],
    record: Callable[[Any], Awaitable[None]],
    clock: IReactorTime,
    most: float = math.inf,
) -> AsyncIterator[bytes]:
    """The chunks of metadata, which are parsed as they pass, and recorded at the end, where they have *most* bytes at most."""
    good, size = True, 0
    while chunk := await source.read():
        size += len(chunk)
        good = good and size <= most
        if good:
            try:
                await in_slices(parser.feed, chunk, clock)
            except BadMetadata:
                good = False
            await deferLater(clock, 0)
        yield chunk
    if good:
        with suppress(BadMetadata):
            await record(parser.close())
