"""What pictures need of an instance's metadata: facts of its pixels, and where frames lie that are not TILED_FULL.

Rules:

- It is remembered, comes from the cache, or from the origin. There it is asked for with the headers of a caller that has
  a grant; then it is in the cache, for all that have one.
- The metadata are read by a rendering child, piece by piece: they may be 400 MB.
- That there is no placement is kept, too.
- Values that the metadata only point to (`twistedproxy.rendering.bulk_values`) are fetched for the pictures that need them. Where
  one cannot be had, or not by this caller, there is no picture, and nothing is kept: it would be wrong for all others, too.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Generic, Optional, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.stream import BadPart10, Part10Stream
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import lookup
from twistedproxy.frames.access import METADATA_SECONDS
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.imaging.describe import InstanceFacts
from twistedproxy.imaging.errors import CallFailed, CannotRender
from twistedproxy.imaging.object_header import HeldBack
from twistedproxy.imaging.pixel_description import PixelFacts
from twistedproxy.imaging.tile_index import Placement, read_placement
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import (
    Caller,
    OriginRequest,
    Priority,
    is_dicom_json,
)
from twistedproxy.rendering.bulk_values import read_bulk_value
from twistedproxy.rendering.planner import Request
from twistedproxy.rendering.pool import RenderPool
from twistedproxy.streams import ByteStream, StreamTooLong, YieldedStream, hold, read_all

FACTS = {False: b"p3", True: b"p3c"}
"""The names of an instance's facts in the cache, without and with its ICC profile, and the version of their form."""
PLACES = b"s3"
"""The name of a placement in the cache, and the version of its form."""
HEADER = b"h1"
"""The name of what an object's header gave, and the version of its form."""

REMEMBERED = 8 << 20
"""Bytes, as they are packed, that a worker remembers of each kind: placements take up to four times as much."""
MAX_REMEMBERED = 1024
READ_AT_ONCE = 8
PLACED_AT_ONCE = 2
"""Metadata that are read at once: each is held by a child meanwhile."""
MAX_BULK_VALUES = 8
PIECE = 1 << 20
MAX_REFUSAL = 64 << 10

T = TypeVar("T")
_Key = tuple[Instance, Optional[Fence]]

_COLOR = frozenset(
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "XYB")
)


@attrs.define(eq=False)
class MetadataLookup(Generic[T]):
    """Finds one kind of value. *name*: of its entry in the cache. *unpack* raises ValueError for what is no such entry, of it
    `CannotRender` for one that stands for a refusal. *at_once*: how many metadata are read at a time."""

    cache: Cache
    name: bytes
    unpack: Callable[[bytes], T]
    at_once: int
    _remembered: OrderedDict[_Key, tuple[T, int]] = attrs.field(init=False, factory=OrderedDict)
    _in_flight: SingleFlight[_Key, bytes] = attrs.field(init=False, factory=SingleFlight)
    _turns: DeferredSemaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._turns = DeferredSemaphore(self.at_once)

    async def find(
        self, instance: Instance, caller: Caller, fence: Optional[Fence], ask: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> T:
        """The value of *instance*, for a caller that has a grant. *fence*: that of the cache just now. *ask* gets it from the
        origin. Raises what *ask* and `unpack` raise."""
        key = (instance, fence)
        if fence is not None and key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key][0]
        reading = await self.cache.get_many(instance, [self.name])
        packed = reading.entries.get(self.name) if reading.fence == fence else None
        if packed is not None:
            try:
                return self._remember(key, packed)
            except CannotRender:
                raise
            except ValueError:  # of another version or machine
                pass

        async def work() -> bytes:
            return await self._turns.run(lambda: Deferred.fromCoroutine(ask()))

        async def keep(made: bytes) -> None:
            await self.cache.put_many(instance, fence, {self.name: made}, METADATA_SECONDS)

        return self._remember(key, (await self._in_flight.one(key, caller.credential, work, keep))[0])

    def _remember(self, key: _Key, packed: bytes) -> T:
        value = self.unpack(packed)
        if key[1] is not None and len(packed) <= REMEMBERED:
            self._remembered[key] = value, len(packed)
            sizes = [size for _, size in self._remembered.values()]
            while len(self._remembered) > MAX_REMEMBERED or sum(sizes) > REMEMBERED:
                self._remembered.popitem(last=False)
                del sizes[0]
        return value


def plain_facts(metadata: InstanceMetadata) -> Optional[InstanceFacts]:
    """The facts of an 8-bit color image, as far as they do not concern color management: no window, no table
    touches it (PS3.3 section C.11). None for any other."""
    if metadata.bits_allocated != 8 or metadata.photometric_interpretation not in _COLOR:
        return None
    names = {field.name for field in attrs.fields(PixelFacts)} & {
        field.name for field in attrs.fields(InstanceMetadata)
    }
    facts = PixelFacts(**{name: getattr(metadata, name) for name in names})
    return InstanceFacts(facts.to_bytes())


@attrs.define(eq=False)
class Descriptions:
    """What is known of instances. In all methods *fence* is that of the cache just now, and the caller has a grant."""

    cache: Cache
    pool: RenderPool
    _facts: Mapping[bool, MetadataLookup[InstanceFacts]] = attrs.field(init=False)
    _placements: MetadataLookup[Placement] = attrs.field(init=False)
    _headers: MetadataLookup[HeldBack] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        unpack = InstanceFacts.from_bytes
        self._facts = {color: MetadataLookup(self.cache, name, unpack, READ_AT_ONCE) for color, name in FACTS.items()}
        self._placements = MetadataLookup(self.cache, PLACES, read_placement, PLACED_AT_ONCE)
        self._headers = MetadataLookup(self.cache, HEADER, HeldBack.from_bytes, PLACED_AT_ONCE)

    async def facts(self, request: Request, fence: Optional[Fence], known: InstanceMetadata) -> InstanceFacts:
        """The facts of an instance's pixels, with its ICC profile where the request's pictures need that.

        Raises the errors of `twistedproxy.origin.errors` and `PoolError`.
        """
        color = request.rendering.profile != "no"
        plain = None if color and known.has_icc_profile else plain_facts(known)
        if plain is not None:
            return plain
        ask = functools.partial(self._ask, request, None, color)
        return await self._facts[color].find(request.instance, request.caller, fence, ask)

    async def placement(self, request: Request, fence: Optional[Fence], known: InstanceMetadata) -> Placement:
        """Where the frames lie of an instance that is not TILED_FULL.

        Raises `CannotRender` where there is none, the errors of `twistedproxy.origin.errors`, `PoolError`.
        """
        ask = functools.partial(self._ask, request, known, False)
        return await self._placements.find(request.instance, request.caller, fence, ask)

    async def held_back(self, request: Request, fence: Optional[Fence]) -> HeldBack:
        """What the origin may leave out of the metadata, from the stored object: that is read up to its pixels.

        Raises the errors of `twistedproxy.origin.errors`, `PoolError`.
        """
        ask = functools.partial(self._ask, request, None, False, header=True)
        return await self._headers.find(request.instance, request.caller, fence, ask)

    async def _ask(
        self, request: Request, known: Optional[InstanceMetadata], color: bool, header: bool = False
    ) -> bytes:
        """Have a child read the metadata: the packed facts, with the ICC profile where *color* matters; of what is *known* already,
        where frames lie. Or (*header*) the object's header."""
        head: dict[str, Any] = {
            "op": "describe",
            "uids": request.instance.uids,
            "metadata": None if known is None else known.to_bytes().decode(),
            "header": header,
        }
        body = await (_header(request) if header else _metadata(request))
        held = self.pool.held()
        whole, values = False, dict[str, bytes]()
        try:
            while not whole:
                piece, whole = await hold(body, PIECE)
                await held.call(head, [piece])
            while True:
                head = {"op": "described", "uris": list(values), "profile": color}
                answer = await held.call(head, list(values.values()))
                missing = [uri for uri in answer.head["uris"] if uri not in values]
                if not missing:
                    return answer.blobs[0]
                if len(missing) + len(values) > MAX_BULK_VALUES:
                    raise OriginBadAnswer(f"the origin's metadata point to more than {MAX_BULK_VALUES} values")
                for uri in missing:
                    values[uri] = await read_bulk_value(request.origin, request.instance, request.caller, uri)
        except CallFailed as failed:
            raise OriginBadAnswer(f"no picture can be made from the origin's metadata: {failed}") from None
        finally:
            body.close()
            held.release()


async def _header(request: Request) -> ByteStream:
    """The stored object, asked for in the caller's name, up to its pixels. Raises the errors of `twistedproxy.origin.errors`."""
    stream = await request.origin.stored_instance(request.instance, request.caller, Priority.CALLER)
    parser = Part10Stream()

    async def chunks() -> AsyncIterator[bytes]:
        while parser.metadata is None and not _is_deflated(parser) and (chunk := await stream.read()):
            try:
                parser.feed(chunk)
            except BadPart10 as error:
                if parser.metadata is None:
                    raise OriginBadAnswer(f"the origin's object cannot be read: {error}") from None
            if parser.metadata is not None and parser.uids != request.instance.uids:
                raise OriginBadAnswer("the origin's object is another instance")
            yield chunk
        stream.close()  # what follows would only hold a place at the origin

    return YieldedStream(chunks(), stream)


def _is_deflated(parser: Part10Stream) -> bool:
    """Of such an object nothing is read: to find its pixels would be to inflate it."""
    syntax = lookup(parser.transfer_syntax)
    return syntax is not None and syntax.deflated


async def _metadata(request: Request) -> ByteStream:
    """An instance's metadata, asked for in the caller's name. Raises the errors of `twistedproxy.origin.errors`."""
    path = f"{request.instance.root}/{request.instance.path}/metadata".encode("ascii")
    asked = OriginRequest.get(path, b"", b"application/dicom+json", request.caller)
    response = await request.origin.forward(asked)
    if response.status != 200:
        try:
            refusal = await read_all(response.body, MAX_REFUSAL)
        except StreamTooLong:
            refusal = b""
        if response.status < 400:
            raise OriginBadAnswer(f"the origin answered a request for metadata with {response.status}")
        raise OriginRefused(response.status, response.headers, refusal)
    if not is_dicom_json(response.headers):
        response.body.close()
        raise OriginBadAnswer("the origin's response to a metadata request is not DICOM JSON")
    return response.body
