"""The facts that pictures of an instance need: from what is known anyway, from the cache, else from the origin.

- They are asked for with the caller's own headers, who has a grant; then they are in the cache, for all who have one.
- The metadata are read by a rendering child, piece by piece: they may be 100 MB.
- Values that the metadata only point to (ICC profiles, palettes) are fetched for the pictures that need them.
"""

from __future__ import annotations

from typing import Optional
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import DeferredSemaphore
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.cache.lru import LruStore
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.media_types import parse_media_type
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart import BadMultipart, PartCollector
from twistedproxy.frames.access import METADATA_SECONDS
from twistedproxy.frames.inflight import InFlight
from twistedproxy.imaging.description import InstanceFacts
from twistedproxy.imaging.errors import CallFailed
from twistedproxy.imaging.facts import PixelFacts
from twistedproxy.imaging.pool import Held, RenderPool
from twistedproxy.imaging.sharing import shared
from twistedproxy.origin.errors import OriginBadAnswer, OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, OriginRequest
from twistedproxy.streams import ByteStream, StreamTooLong, hold, read_all

FACTS = b"p1"
"""The name of an instance's facts in the cache, and the version of their form."""

REMEMBERED = 16 << 20
"""Bytes of facts that a worker remembers: some dozen slides with ICC profiles, or 20,000 images without."""

PIECE = 1 << 20
MAX_REFUSAL = 64 << 10
MAX_BULK = 16 << 20
"""Bytes of one value that the metadata point to: ICC profiles of scanners have up to 3 MB."""
MAX_BULK_VALUES = 8
AT_ONCE = 8
"""Metadata that are read at once: each is held by a child meanwhile."""

_COLOUR = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420"))

_Key = tuple[Instance, Optional[Fence]]
_log = Logger()


def plain_facts(metadata: InstanceMetadata) -> Optional[InstanceFacts]:
    """The facts of an 8-bit colour image, as far as they do not concern colour management: no window, no table
    touches it (PS3.3 section C.11). None for any other."""
    if metadata.bits_allocated != 8 or metadata.photometric_interpretation not in _COLOUR:
        return None
    facts = PixelFacts(
        rows=metadata.rows,
        columns=metadata.columns,
        samples_per_pixel=metadata.samples_per_pixel,
        bits_allocated=8,
        bits_stored=metadata.bits_stored,
        high_bit=metadata.high_bit,
        pixel_representation=metadata.pixel_representation,
        planar_configuration=metadata.planar_configuration,
        photometric_interpretation=metadata.photometric_interpretation,
        single_frame=metadata.frames == 1 and not metadata.is_tiled,
    )
    return InstanceFacts(facts.to_bytes())


@attrs.define(eq=False)
class FactsReader:
    """Finds the facts of instances."""

    cache: Cache
    pool: RenderPool
    _numbers: int = attrs.field(init=False, default=0)
    _remembered: LruStore = attrs.field(init=False, factory=lambda: LruStore(REMEMBERED))
    _in_flight: InFlight[_Key, InstanceFacts] = attrs.field(init=False, factory=InFlight)
    _places: DeferredSemaphore = attrs.field(init=False, factory=lambda: DeferredSemaphore(AT_ONCE))

    async def read(
        self,
        origin: Origin,
        instance: Instance,
        caller: Caller,
        reading: Reading,
        colour: bool,
        known: InstanceMetadata,
    ) -> InstanceFacts:
        """The facts of *instance*, for a caller who has a grant. *reading*: what was read of the cache, `FACTS` among it.
        *colour*: whether the picture's colours are managed.

        Raises the errors of `twistedproxy.origin.errors` and `PoolError`.
        """
        plain = None if colour and known.has_icc_profile else plain_facts(known)
        if plain is not None:
            return plain
        found = self._in_memory(instance, reading) or _in_cache(reading)
        if found is not None:
            self._remember(instance, reading.fence, found)
            return found
        key = (instance, reading.fence)

        async def work() -> InstanceFacts:
            await self._places.acquire()
            try:
                return await self._ask(origin, instance, caller)
            finally:
                self._places.release()

        async def keep(facts: InstanceFacts) -> None:
            self._remember(instance, reading.fence, facts)
            await self.cache.put_many(instance, reading.fence, {FACTS: facts.to_bytes()}, METADATA_SECONDS)

        return (await shared(self._in_flight, key, caller, work, keep))[0]

    def _name(self, instance: Instance, fence: Optional[Fence]) -> bytes:
        return b"%s %s%s/%s" % (fence or b"", instance.origin.encode(), instance.root.encode(), instance.path.encode())

    def _in_memory(self, instance: Instance, reading: Reading) -> Optional[InstanceFacts]:
        if reading.fence is None:
            return None
        packed = self._remembered.get(self._name(instance, reading.fence), 0.0)
        return InstanceFacts.from_bytes(packed) if packed is not None else None

    def _remember(self, instance: Instance, fence: Optional[Fence], facts: InstanceFacts) -> None:
        name = self._name(instance, fence)
        if fence is not None and self._remembered.get(name, 0.0) is None:
            self._remembered.put(name, facts.to_bytes(), 0.0, None)

    async def _ask(self, origin: Origin, instance: Instance, caller: Caller) -> InstanceFacts:
        self._numbers += 1
        number = self._numbers
        path = f"{instance.root}/{instance.path}/metadata".encode("ascii")
        body = await _opened(origin, path, b"", caller, b"application/dicom+json")
        held: Optional[Held] = None
        try:
            while True:
                piece, whole = await hold(body, PIECE)
                head = {"op": "describe", "number": number}
                if held is None:
                    held = await self.pool.hold(head, [piece])
                else:
                    await held.call(head, [piece])
                if whole:
                    break
            return await self._described(origin, instance, caller, held, number)
        except CallFailed as failed:
            raise OriginBadAnswer(f"the origin's metadata make no picture: {failed}") from None
        finally:
            body.close()
            if held is not None:
                held.forget({"op": "drop", "number": number})

    @staticmethod
    async def _described(
        origin: Origin, instance: Instance, caller: Caller, held: Held, number: int
    ) -> InstanceFacts:  # fmt: skip
        values: dict[str, bytes] = {}
        while True:
            head = {"op": "described", "number": number, "uris": list(values)}
            answer = await held.call(head, list(values.values()))
            missing = [uri for uri in answer.head["uris"] if uri not in values][: MAX_BULK_VALUES - len(values)]
            if not missing:
                return InstanceFacts.from_bytes(answer.blobs[0])
            for uri in missing:
                values[uri] = await _bulk_value(origin, instance, caller, uri)


def _in_cache(reading: Reading) -> Optional[InstanceFacts]:
    packed = reading.entries.get(FACTS)
    if packed is None:
        return None
    try:
        return InstanceFacts.from_bytes(packed)
    except ValueError:
        return None


async def _opened(origin: Origin, path: bytes, query: bytes, caller: Caller, accept: bytes) -> ByteStream:
    """The body of a successful answer to a GET of the caller. Raises the errors of `twistedproxy.origin.errors`."""
    headers = (*caller.headers, (b"Accept", accept), (b"Accept-Encoding", b"identity"))
    response = await origin.forward(OriginRequest(b"GET", path, query, headers))
    if response.status != 200:
        try:
            refusal = await read_all(response.body, MAX_REFUSAL)
        except StreamTooLong:
            refusal = b""
        raise OriginRefused(response.status, response.headers, refusal)
    return response.body


async def _bulk_value(origin: Origin, instance: Instance, caller: Caller, uri: str) -> bytes:
    """A value that the metadata point to; b"" where it cannot be had: the picture is made without it."""
    place = _below(origin.url, instance.root, uri)
    if place is None:
        _log.info("a bulk data URI points elsewhere than to its store", instance=instance.path)
        return b""
    accept = b'multipart/related; type="application/octet-stream"'
    headers = (*caller.headers, (b"Accept", accept), (b"Accept-Encoding", b"identity"))
    try:
        response = await origin.forward(OriginRequest(b"GET", *place, headers))
        data = await read_all(response.body, MAX_BULK)
        if response.status != 200:
            raise OriginBadAnswer(f"the origin answered {response.status}")
        content_type = next((value for name, value in response.headers if name.lower() == b"content-type"), b"")
        return _only_part(content_type, data)
    except (OriginError, StreamTooLong, ValueError) as error:
        _log.info("bulk data could not be read: {reason}", reason=str(error), instance=instance.path)
        return b""


def _below(url: str, root: str, uri: str) -> Optional[tuple[bytes, bytes]]:
    """Path and query of *uri* below the origin: many stores know themselves by another name than we do, so what follows
    ``/studies/`` or ``/bulkdata/`` counts. None for what is no such place."""
    if not uri.isascii() or ".." in uri:
        return None
    path, query = urlsplit(uri).path, urlsplit(uri).query
    base = urlsplit(url).path.rstrip("/")
    if path.startswith(f"{base}{root}/"):
        return path[len(base) :].encode("ascii"), query.encode("ascii")
    for service in ("/studies/", "/bulkdata/"):
        if service in path:
            return (root + path[path.index(service) :]).encode("ascii"), query.encode("ascii")
    return None


def _only_part(content_type: bytes, data: bytes) -> bytes:
    """The value in an answer: the one part of a multipart one, or all of it."""
    media_type = parse_media_type(content_type or b"application/octet-stream")
    if not media_type.is_multipart:
        return data
    collector = PartCollector(media_type.boundary, MAX_BULK, 1)
    parts = collector.feed(data)
    collector.close()
    if not parts:
        raise BadMultipart("a multipart answer has no part")
    return parts[0].data
