"""The facts that pictures of an instance need: from what is known anyway, from the cache, else from the origin.

- They are asked for with the caller's own headers, who has a grant; then they are in the cache, for all who have one.
- The metadata are read by a rendering child, piece by piece: they may be 100 MB.
- Values that the metadata only point to (ICC profiles, palettes) are fetched for the pictures that need them. Where one
  cannot be had, or not by this caller, there is no picture, and nothing is kept: it would be wrong for all others, too.

Values that an instance's metadata only point to (BulkDataURI, PS3.18 annex F): ICC profiles, palettes, tables.

They are fetched from the instance's own store with the caller's own headers, and nowhere else, wherever they point. A
reference is relative to the URL of the metadata (RFC 3986 section 5.2).
"""

from __future__ import annotations

from typing import Optional
from urllib.parse import unquote, urljoin, urlsplit

import attrs
from twisted.internet.defer import DeferredSemaphore

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.cache.lru import LruStore
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart import BadMultipart, PartCollector
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.access import METADATA_SECONDS
from twistedproxy.frames.single_flight import InFlight, Shared, shared
from twistedproxy.imaging.describe import InstanceFacts
from twistedproxy.imaging.errors import CallFailed
from twistedproxy.imaging.pixel_description import PixelFacts
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import AMBIGUOUS, Caller, Origin, OriginRequest, OriginResponse, first, media_type_of
from twistedproxy.rendering.pool import Held, RenderPool
from twistedproxy.rendering.tile_indexes import feed
from twistedproxy.streams import StreamTooLong, read_all

MAX_BULK = 16 << 20
"""Bytes of one value that the metadata point to: ICC profiles of scanners have up to 3 MB."""

_BYTES = frozenset(("application/octet-stream", "binary/octet-stream", "application/x-octet-stream"))
"""What values that are no pixels come as (PS3.18 table 8.7.3-5), by the names in use."""

_NO_HTTP = "http://origin.invalid"  # stands for the URL of an origin that is none of HTTP's


async def read_bulk_value(origin: Origin, instance: Instance, caller: Caller, uri: str) -> bytes:
    """A value that the metadata point to. Raises the errors of `twistedproxy.origin.errors`: a picture without a value
    that it needs would be a wrong one."""
    place = bulk_place(origin.url, instance, uri)
    if place is None:
        raise OriginBadAnswer(
            "the origin's metadata point elsewhere than to the store for a value that the picture needs"
        )
    path, query = place
    accept = b'multipart/related; type="application/octet-stream"'
    response = await origin.forward(OriginRequest.get(path, query, accept, caller))
    try:
        data = await read_all(response.body, MAX_BULK)
        if response.status in (401, 403):
            raise OriginRefused(response.status, response.headers, data)
        if response.status != 200:
            raise OriginBadAnswer(f"the origin answered {response.status} for a value that the picture needs")
        return _only_part(response, data)
    except (StreamTooLong, BadMultipart) as error:
        raise OriginBadAnswer(f"a value that the picture needs could not be read: {error}") from error


def bulk_place(url: str, instance: Instance, uri: str) -> Optional[tuple[bytes, bytes]]:
    """Path and query, below the origin at *url*, of what *uri* in the metadata of *instance* leads to. None for what is no
    place there.

    Many stores know themselves by another name than we do, so what follows ``/studies/`` or ``/bulkdata/`` counts. A folder
    names its values by its own URL, which is no http one.
    """
    if not url.startswith(("http://", "https://")):
        uri = uri.replace(url, _NO_HTTP, 1) if uri.startswith(f"{url}/") else uri
        url = _NO_HTTP
    if not uri.isascii() or AMBIGUOUS.search(uri):
        return None
    try:
        parts = urlsplit(urljoin(f"{url}{instance.root}/{instance.path}/metadata", uri))
    except ValueError:  # brackets that hold no address
        return None
    path, query, root = parts.path, parts.query, instance.root
    if parts.scheme not in ("http", "https") or not {".", ".."}.isdisjoint(unquote(path).split("/")):
        return None
    base = urlsplit(url).path.rstrip("/")
    if path.startswith(f"{base}{root}/"):
        return path[len(base) :].encode("ascii"), query.encode("ascii")
    for service in ("/studies/", "/bulkdata/"):
        if service in path:
            return (root + path[path.index(service) :]).encode("ascii"), query.encode("ascii")
    return None


def _only_part(response: OriginResponse, data: bytes) -> bytes:
    """The value in an answer: the one part of a multipart one, or all of it. Raises BadMultipart for what is no value, or
    may not be all of it: a picture would be made of a gateway's page."""
    framed, media_type = response.framed(), media_type_of(response.headers)
    if media_type is None:
        raise BadMultipart("its Content-Type is missing, or says nothing")
    if first(response.headers, b"content-range") is not None:
        raise BadMultipart("it came with a Content-Range, as a piece of something")
    kinds = [media_type.part_type]
    if media_type.is_multipart:
        collector = PartCollector(media_type.boundary, MAX_BULK, 1)
        parts = collector.feed(data) + collector.close(framed)
        if not parts:
            raise BadMultipart("a multipart answer has no part")
        data = parts[0].data
        if "content-type" in parts[0].headers:
            kinds.append(parts[0].media_type.type if parts[0].media_type is not None else "of no known type")
    elif not framed:
        raise BadMultipart("it ended with its connection: nothing says that it is whole")
    for kind in kinds:
        if kind is not None and kind not in _BYTES:
            raise BadMultipart(f"it came as {kind[:80]}, and application/octet-stream is accepted")
    if not data:
        raise BadMultipart("it is empty")
    return data


FACTS = {False: b"p3", True: b"p3c"}
"""The names of an instance's facts in the cache, without and with its ICC profile, and the version of their form."""

REMEMBERED = 16 << 20
"""Bytes of facts that a worker remembers: some dozen slides with ICC profiles, or 20,000 images without."""

MAX_BULK_VALUES = 8
AT_ONCE = 8
"""Metadata that are read at once: each is held by a child meanwhile."""

_COLOR = frozenset(
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "XYB")
)

_Key = tuple[Instance, Optional[Fence], bool]


def plain_facts(metadata: InstanceMetadata) -> Optional[InstanceFacts]:
    """The facts of an 8-bit color image, as far as they do not concern color management: no window, no table
    touches it (PS3.3 section C.11). None for any other."""
    if metadata.bits_allocated != 8 or metadata.photometric_interpretation not in _COLOR:
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
    )
    return InstanceFacts(facts.to_bytes())


@attrs.define(eq=False)
class FactsReader:
    """Finds the facts of instances."""

    cache: Cache
    pool: RenderPool
    _remembered: LruStore = attrs.field(init=False, factory=lambda: LruStore(REMEMBERED))
    _in_flight: InFlight[Shared[_Key], InstanceFacts] = attrs.field(init=False, factory=InFlight)
    _places: DeferredSemaphore = attrs.field(init=False, factory=lambda: DeferredSemaphore(AT_ONCE))

    async def read(
        self,
        origin: Origin,
        instance: Instance,
        caller: Caller,
        reading: Reading,
        color: bool,
        known: InstanceMetadata,
    ) -> InstanceFacts:
        """The facts of *instance*, for a caller who has a grant. *reading*: what was read of the cache, `FACTS` among it.
        *color*: whether the picture's colors are managed.

        Raises the errors of `twistedproxy.origin.errors` and `PoolError`.
        """
        plain = None if color and known.has_icc_profile else plain_facts(known)
        if plain is not None:
            return plain
        found = self._in_memory(instance, reading, color)
        if found is not None:
            return found
        found = _in_cache(reading, color)
        if found is not None:
            self._remember(instance, reading.fence, color, found)
            return found
        key = (instance, reading.fence, color)

        async def work() -> InstanceFacts:
            await self._places.acquire()
            try:
                return await self._ask(origin, instance, caller, color)
            finally:
                self._places.release()

        async def keep(facts: InstanceFacts) -> None:
            self._remember(instance, reading.fence, color, facts)
            await self.cache.put_many(instance, reading.fence, {FACTS[color]: facts.to_bytes()}, METADATA_SECONDS)

        return (await shared(self._in_flight, key, caller, work, keep))[0]

    def _name(self, instance: Instance, fence: Optional[Fence], color: bool) -> bytes:
        return b"%s %s %s/%s" % (FACTS[color], fence or b"", instance.place.encode(), instance.path.encode())

    def _in_memory(self, instance: Instance, reading: Reading, color: bool) -> Optional[InstanceFacts]:
        if reading.fence is None:
            return None
        packed = self._remembered.get(self._name(instance, reading.fence, color), 0.0)
        return InstanceFacts.from_bytes(packed) if packed is not None else None

    def _remember(self, instance: Instance, fence: Optional[Fence], color: bool, facts: InstanceFacts) -> None:
        name = self._name(instance, fence, color)
        if fence is not None and self._remembered.get(name, 0.0) is None:
            self._remembered.put(name, facts.to_bytes(), 0.0, None)

    async def _ask(self, origin: Origin, instance: Instance, caller: Caller, color: bool) -> InstanceFacts:
        async def described(held: Held, number: int) -> InstanceFacts:
            values: dict[str, bytes] = {}
            while True:
                head = {"op": "described", "number": number, "uris": list(values), "profile": color}
                answer = await held.call(head, list(values.values()))
                missing = [uri for uri in answer.head["uris"] if uri not in values]
                if not missing:
                    return InstanceFacts.from_bytes(answer.blobs[0])
                if len(missing) + len(values) > MAX_BULK_VALUES:
                    raise OriginBadAnswer(f"the origin's metadata point to more than {MAX_BULK_VALUES} values")
                for uri in missing:
                    values[uri] = await read_bulk_value(origin, instance, caller, uri)

        try:
            return await feed(self.pool, origin, instance, caller, {"op": "describe"}, described)
        except CallFailed as failed:
            raise OriginBadAnswer(f"the origin's metadata make no picture: {failed}") from None


def _in_cache(reading: Reading, color: bool) -> Optional[InstanceFacts]:
    packed = reading.entries.get(FACTS[color])
    if packed is None:
        return None
    try:
        return InstanceFacts.from_bytes(packed)
    except ValueError:
        return None
