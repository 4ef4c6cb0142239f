"""Where the frames of instances lie that are not TILED_FULL: remembered, from the cache, else from the origin's metadata.

- They are asked for with the caller's own headers, who has a grant; then they are in the cache, for all who have one.
- That it cannot be told is remembered, too: its metadata may be 400 MB.

An instance's metadata on their way from the origin to a rendering child, piece by piece: they may be 400 MB.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Optional, TypeVar

import attrs
from twisted.internet.defer import DeferredSemaphore

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.access import METADATA_SECONDS
from twistedproxy.frames.single_flight import InFlight, Shared, shared
from twistedproxy.imaging.errors import CallFailed
from twistedproxy.imaging.tile_index import Placement, read_placement
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, OriginRequest, is_dicom_json
from twistedproxy.rendering.pool import HeldChild, RenderPool
from twistedproxy.streams import ByteStream, StreamTooLong, hold, read_all

PIECE = 1 << 20
MAX_REFUSAL = 64 << 10

T = TypeVar("T")

_numbers = itertools.count(1)


async def feed(
    pool: RenderPool,
    origin: Origin,
    instance: Instance,
    caller: Caller,
    head: Mapping[str, Any],
    finish: Callable[[HeldChild, int], Awaitable[T]],
) -> T:
    """Have a child read the metadata by calls that begin with *head*; then what *finish* makes of the child and of the
    number by which it knows what it has read.

    Raises the errors of `twistedproxy.origin.errors` and `PoolError`.
    """
    number = next(_numbers)
    path = f"{instance.root}/{instance.path}/metadata".encode("ascii")
    body = await _opened(origin, path, caller)
    held: Optional[HeldChild] = None
    try:
        while True:
            piece, whole = await hold(body, PIECE)
            call = {**head, "number": number, "uids": instance.uids}
            if held is None:
                held = await pool.hold(call, [piece])
            else:
                await held.call(call, [piece])
            if whole:
                return await finish(held, number)
    finally:
        body.close()
        if held is not None:
            held.release({"op": "drop", "number": number})


async def _opened(origin: Origin, path: bytes, caller: Caller) -> ByteStream:
    """The body of a successful answer to a GET of the caller. Raises the errors of `twistedproxy.origin.errors`."""
    response = await origin.forward(OriginRequest.get(path, b"", b"application/dicom+json", caller))
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
        raise OriginBadAnswer("the origin's answer to a metadata request is no DICOM JSON")
    return response.body


PLACES = b"s2"
"""The name of a placement in the cache, and the version of its form."""

REMEMBERED = 4
"""Placements that a worker remembers, of up to 6 MB each."""

AT_ONCE = 2
"""Metadata that are read at once: each is held by a child meanwhile."""

_Key = tuple[Instance, Optional[Fence]]


@attrs.define(eq=False)
class PlacementReader:
    """Finds the placements of instances."""

    cache: Cache
    pool: RenderPool
    _remembered: OrderedDict[_Key, Placement] = attrs.field(init=False, factory=OrderedDict)
    _in_flight: InFlight[Shared[_Key], bytes] = attrs.field(init=False, factory=InFlight)
    _turns: DeferredSemaphore = attrs.field(init=False, factory=lambda: DeferredSemaphore(AT_ONCE))

    async def read(
        self, origin: Origin, instance: Instance, caller: Caller, fence: Optional[Fence], known: InstanceMetadata
    ) -> Placement:
        """The placement of *instance*, for a caller who has a grant. *fence*: that of the cache just now.

        Raises `CannotRender` where it cannot be told, the errors of `twistedproxy.origin.errors`, `PoolError`.
        """
        key = (instance, fence)
        found = self._remembered.get(key) if fence is not None else None
        if found is None:
            found = read_placement(await self._packed(origin, caller, key, known))
        if fence is not None:
            self._remembered[key] = found
            self._remembered.move_to_end(key)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    async def _packed(self, origin: Origin, caller: Caller, key: _Key, known: InstanceMetadata) -> bytes:
        instance, fence = key
        reading = await self.cache.get_many(instance, [PLACES])
        if PLACES in reading.entries and reading.fence == fence:
            return reading.entries[PLACES]

        async def work() -> bytes:
            await self._turns.acquire()
            try:
                return await self._ask(origin, instance, caller, known)
            finally:
                self._turns.release()

        async def keep(packed: bytes) -> None:
            await self.cache.put_many(instance, fence, {PLACES: packed}, METADATA_SECONDS)

        return (await shared(self._in_flight, key, caller, work, keep))[0]

    async def _ask(self, origin: Origin, instance: Instance, caller: Caller, known: InstanceMetadata) -> bytes:
        async def placed(held: HeldChild, number: int) -> bytes:
            return (await held.call({"op": "placed", "number": number})).blobs[0]

        head = {"op": "place", "metadata": known.to_bytes().decode()}
        try:
            return await feed(self.pool, origin, instance, caller, head, placed)
        except CallFailed as failed:
            raise OriginBadAnswer(f"the origin's metadata tell no places of frames: {failed}") from None
