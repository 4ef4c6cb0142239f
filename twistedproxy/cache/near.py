"""A cache in files of this host in front of one that several hosts share: frames that were read there, or written, are kept here, too,
and read from here without the network.

Rules:
- What is kept here carries the fence of the shared cache under which it was read or written, and is given under that fence only.
- That fence is asked for again after `FENCE_SECONDS`, until when what another host has invalidated may still be given; what this host
  invalidates is not (`invalidated`).
- All but frames is the shared cache's alone.
- Frames of an instance that is being loaded may turn out wrong, and are then removed from the shared cache, by whoever loads them:
  here they are kept by that host only.
- Who reads does not wait until what was read is kept.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedproxy.cache.address import NearAddress, SharedAddress, SharedFolder
from twistedproxy.cache.interface import (
    FRAME,
    LARGE,
    Cache,
    EntryNow,
    Fence,
    Heads,
    Held,
    PlainCache,
    Reading,
    Value,
    pieces,
)
from twistedproxy.cache.keys import EXPIRY, FENCE_LENGTH, LOADING, split_frame, unstamp
from twistedproxy.dicom.resource import Instance, Scope

FENCE_SECONDS = 0.75
"""How long the fence of an instance is taken to be what it was. With what a cluster (`cluster_reads.LAST_SECONDS`) and hot answers
(`hot.responses.CHECK_SECONDS`) add, what another host ends is noticed within 5 s."""

MAX_FENCES = 10_000
"""Instances whose fence is remembered."""


@attrs.define(eq=False)
class NearCache(PlainCache):
    """A `Cache`: *near* in front of *far*. *wall_clock*: seconds since the epoch."""

    clock: IReactorTime
    near: Cache
    far: Cache
    wall_clock: Callable[[], float] = time.time
    from_near: int = attrs.field(init=False, default=0)
    """Frames that were read here."""
    from_far: int = attrs.field(init=False, default=0)
    """Frames that were read from the shared cache."""
    _fences: OrderedDict[Instance, tuple[Fence, float]] = attrs.field(init=False, factory=OrderedDict)
    _invalidations: int = attrs.field(init=False, default=0)
    address: Optional[SharedAddress] = attrs.field(init=False, default=None)
    capacity: Optional[int] = attrs.field(init=False, default=None)
    shared = True
    reads_now = True
    _log = Logger()

    # Reading.

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """See `Cache`."""
        invalidations, asked = self._invalidations, self.clock.seconds()
        kept = [name for name in names if name.startswith(FRAME)]
        here = dict((await self.near.get_many(instance, kept)).entries) if kept else {}
        fence = self._fence(instance)
        if fence is not None and len(kept) == len(names):
            found = _under(fence, here)
            if len(found) == len(set(names)) and names:
                self.from_near += len(found)
                return Reading(fence, found)
        missing = [name for name in names if name not in here]
        reading = await self.far.get_many(instance, [*missing, LOADING] if kept and LOADING not in names else missing)
        if reading.fence is None:
            return reading
        self._confirm(instance, reading.fence, invalidations, asked)
        found = _under(reading.fence, here)
        self.from_near += len(found)
        read = dict(reading.entries)
        if ended := [name for name in here if name not in found]:
            again = await self.far.get_many(instance, ended)
            if again.fence != reading.fence:
                return again
            read.update(again.entries)
        await self._keep(instance, reading.fence, read)
        if LOADING not in names:
            read.pop(LOADING, None)
        return Reading(reading.fence, {**found, **read})

    async def _keep(self, instance: Instance, fence: Fence, read: Mapping[bytes, bytes]) -> None:
        """Keep here the frames of what was *read* from the shared cache. Only where they are large is that waited for: memory must
        not fill with them."""
        new = {name: value for name, value in read.items() if name.startswith(FRAME)}
        self.from_far += len(new)
        if not new or LOADING in read or min(map(len, new.values())) <= EXPIRY.size:
            return
        seconds = min(EXPIRY.unpack_from(value)[0] for value in new.values()) - self.wall_clock()
        split = {name: split_frame(value) for name, value in new.items()}
        writing = Deferred.fromCoroutine(
            self._put_near(instance, fence, split, None if seconds == math.inf else seconds)
        )
        writing.addErrback(lambda failure: self._log.failure("frames were not kept", failure))
        if sum(map(len, new.values())) > LARGE:
            await writing

    def read_now(self, instance: Instance, names: Sequence[bytes]) -> Optional[tuple[Fence, list[EntryNow]]]:
        """See `Cache`."""
        fence = self._fence(instance)
        read = None if fence is None else self.near.read_now(instance, names)
        if fence is None or read is None or any(value[:FENCE_LENGTH] != fence for value, _ in read[1]):
            return None
        self.from_near += len(names)
        return fence, [(value[FENCE_LENGTH:], digest) for value, digest in read[1]]

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`. What is kept here alone does not count: other hosts could not read it."""
        return await self.far.present(instance, names)

    async def held(self, instance: Instance, frames: int, after: bytes = b"") -> Held:
        """See `Cache`."""
        return await self.far.held(instance, frames, after)

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`."""
        return await self.far.heads(instance, names, length)

    def _fence(self, instance: Instance) -> Optional[Fence]:
        """The fence of *instance*, where it was asked for lately."""
        fence, until = self._fences.get(instance, (None, 0.0))
        return fence if self.clock.seconds() < until else None

    def _confirm(self, instance: Instance, fence: Fence, invalidations: int, asked: float) -> None:
        """*fence* was read by a request of the time *asked*, before which there had been so many invalidations."""
        if invalidations != self._invalidations:
            return
        self._fences[instance] = fence, asked + FENCE_SECONDS
        self._fences.move_to_end(instance)
        if len(self._fences) > MAX_FENCES:
            self._fences.popitem(last=False)

    # Writing.

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """See `Cache`."""
        kept = {name: value for name, value in entries.items() if name.startswith(FRAME)}
        writing = None
        if fence is not None and kept:
            writing = Deferred.fromCoroutine(self._put_near(instance, fence, kept, seconds))
        taken = await self.far.put_many(instance, fence, entries, seconds)
        if writing is not None:
            await writing
        return taken

    async def _put_near(
        self, instance: Instance, fence: Fence, entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> None:
        """Keep *entries* here. A failure is only counted: the shared cache has them."""
        own = (await self.near.get_many(instance, [])).fence
        await self.near.put_many(instance, own, {name: _stamped(fence, entries[name]) for name in entries}, seconds)

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""
        kept = [name for name in names if name.startswith(FRAME)]
        near = await self.near.remove(instance, kept) if kept else True
        return await self.far.remove(instance, names) and near

    async def invalidate(self, scope: Scope) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        try:
            await self.far.invalidate(scope)
        finally:
            self.invalidated(scope)

    def invalidated(self, scope: Scope) -> None:
        """See `Cache`."""
        self._invalidations += 1
        self._fences.clear()
        self.far.invalidated(scope)

    # The shared cache's alone.

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """See `Cache`."""
        return await self.far.claim(instance, names, token, seconds)

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> bool:
        """See `Cache`."""
        return await self.far.renew_claims(instance, names, token, seconds)

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """See `Cache`."""
        await self.far.unclaim(instance, names, token)

    async def claim_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """See `Cache`."""
        return await self.far.claim_left(instance, name)

    async def ping(self) -> None:
        """See `Cache`. The shared one counts: without this one answers only take longer."""
        await self.far.ping()

    async def status(self) -> dict[str, object]:
        """See `Cache`."""
        near = {**await self.near.status(), "entries_from_here": self.from_near, "entries_from_shared": self.from_far}
        return {**await self.far.status(), "near": near}

    async def start(self) -> None:
        """See `Cache`."""
        await self.near.start()
        await self.far.start()
        near, far, self.capacity = self.near.address, self.far.address, self.far.capacity
        if isinstance(near, SharedFolder) and far is not None:
            self.address = NearAddress(near, far)

    async def stop(self) -> None:
        """See `Cache`."""
        try:
            await self.far.stop()
        finally:
            await self.near.stop()


def _under(fence: Fence, entries: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Those of *entries* that are kept under *fence*."""
    values = {name: unstamp(fence, stored) for name, stored in entries.items()}
    return {name: value for name, value in values.items() if value is not None}


def _stamped(fence: Fence, value: Value) -> Value:
    """An entry with its fence before it; the last piece, of which the digest is kept, stays what it is."""
    first, *rest = pieces(value)
    return (fence + first, *rest) if rest else (fence, first)
