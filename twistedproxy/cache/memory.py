"""The cache in this process: for one worker, and where no server can be started. Of 0 bytes it keeps nothing (``--cache none``):
every read is a miss, and no claim is ever won.

It works like a small server of the Redis provider's kind: the same keys, the same stamps, generations that
can be evicted like entries, so both providers behave alike.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Optional

from twisted.internet.interfaces import IReactorTime

from twistedproxy.cache.address import SharedAddress
from twistedproxy.cache.interface import (
    HELD_AT_ONCE,
    EntryNow,
    Fence,
    Head,
    Heads,
    Held,
    PlainCache,
    Reading,
    Value,
    frame_names,
    number_of,
    pieces,
)
from twistedproxy.cache.keys import (
    fence_of,
    instance_keys,
    new_generation,
    read_outcome,
    scope_keys,
    unstamp,
)
from twistedproxy.cache.lru import LruStore
from twistedproxy.cache.monitoring import CacheObserver, NullObserver
from twistedproxy.dicom.resource import Instance, Scope


class MemoryCache(PlainCache):
    """A `Cache` of at most *max_bytes*, bookkeeping included."""

    shared = False
    reads_now = True
    address: Optional[SharedAddress] = None

    def __init__(self, reactor: IReactorTime, max_bytes: int, observer: Optional[CacheObserver] = None) -> None:
        self._reactor = reactor
        self._store = LruStore(max_bytes)
        self.capacity = max_bytes
        self._observer = observer or NullObserver()

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """See `Cache`."""
        now = self._reactor.seconds()
        keys = instance_keys(instance)
        fence = self._begun_fence(keys.generations, now)
        found: dict[bytes, bytes] = {}
        for name in names:
            stored = self._store.get(keys.entry + name, now)
            entry = None if stored is None or fence is None else unstamp(fence, stored)
            if entry is not None:
                found[name] = entry
        self._observer.cache_operation("get_many", read_outcome(names, found), self._reactor.seconds() - now)
        return Reading(fence, found)

    def read_now(self, instance: Instance, names: Sequence[bytes]) -> Optional[tuple[Fence, list[EntryNow]]]:
        """See `Cache`."""
        now = self._reactor.seconds()
        keys = instance_keys(instance)
        fence = self._fence(keys.generations, now)
        stored = [self._store.get(keys.entry + name, now) for name in names]
        if fence is None:
            return None
        entries = [None if value is None else unstamp(fence, value) for value in stored]
        found: list[EntryNow] = [(entry, None) for entry in entries if entry is not None]
        return (fence, found) if len(found) == len(names) else None

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`."""
        now = self._reactor.seconds()
        keys = instance_keys(instance)
        fence = self._fence(keys.generations, now)
        if fence is None:
            return set()
        stored = ((name, self._store.get(keys.entry + name, now)) for name in names)
        return {name for name, value in stored if value is not None and value.startswith(fence)}

    def changes(self) -> Hashable:
        """See `Cache`."""
        return self._store.changes

    async def held(self, instance: Instance, frames: int, after: bytes = b"") -> Held:
        """See `Cache`."""
        now, keys = self._reactor.seconds(), instance_keys(instance)
        first = number_of(after) + 1 if after else 1
        last = min(frames, first + HELD_AT_ONCE - 1)
        fence, cached, claimed = fence_of([self._store.peek(key, now) for key in keys.generations]), [], []
        for number, name in enumerate(frame_names(first, last), first):
            stored = self._store.peek(keys.entry + name, now)
            if stored is not None and fence is not None and stored.startswith(fence):
                cached.append(number)
            elif self._store.peek(keys.claim + name, now) is not None:
                claimed.append(number)
        return Held(cached, claimed, b"F%x" % last if last < frames else None)

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`."""
        now = self._reactor.seconds()
        keys = instance_keys(instance)
        fence = self._fence(keys.generations, now)
        heads: dict[bytes, Head] = {}
        for name in names:
            stored = self._store.get(keys.entry + name, now)
            if stored is not None and fence is not None and stored.startswith(fence):
                heads[name] = Head(stored[len(fence) : len(fence) + length], len(stored) - len(fence))
        self._observer.cache_operation("heads", read_outcome(names, heads), self._reactor.seconds() - now)
        return Heads(fence, heads)

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """See `Cache`. What alone is larger than the cache is not taken."""
        now = self._reactor.seconds()
        keys = instance_keys(instance)
        # Here an ended fence can be seen at no cost, and such entries would only push out others.
        taken = fence is not None and fence == self._fence(keys.generations, now)
        if taken and fence is not None:
            for name, value in entries.items():
                taken = self._store.put(keys.entry + name, b"".join((fence, *pieces(value))), now, seconds) and taken
        self._done("put_many", taken, now)
        return taken

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""
        for key in instance_keys(instance).entries(list(names)):
            self._store.delete(key)
        return True

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """See `Cache`."""
        now = self._reactor.seconds()
        claim = instance_keys(instance).claim
        return {name for name in names if self._store.put_if_absent(claim + name, token, now, seconds)}

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> bool:
        """See `Cache`."""
        now = self._reactor.seconds()
        ours = [key for key in instance_keys(instance).claims(list(names)) if self._store.get(key, now) == token]
        for key in ours:
            self._store.prolong(key, now, seconds)
        return len(ours) == len(names)

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """See `Cache`."""
        for key in instance_keys(instance).claims(list(names)):
            if self._store.get(key, self._reactor.seconds()) == token:
                self._store.delete(key)

    async def claim_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """See `Cache`."""
        return self._store.left(instance_keys(instance).claim + name, self._reactor.seconds())

    async def invalidate(self, scope: Scope) -> None:
        """See `Cache`. Never raises here, but for a scope that names a level without the one above it."""
        for key in scope_keys(scope):
            self._store.delete(key)

    async def ping(self) -> None:
        """It always works."""

    async def status(self) -> dict[str, object]:
        """Facts for ``/status.json``."""
        store = self._store
        return {
            "provider": "memory" if store.max_bytes else "none",
            "connected": True,
            "used_bytes": store.used,
            "max_bytes": store.max_bytes,
            "evicted": store.evicted,
            "items": len(store),
        }

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Give the memory back."""
        self._store.clear()

    def _fence(self, generation_keys: Sequence[bytes], now: float) -> Optional[Fence]:
        """The present fence; None where a generation is missing."""
        return fence_of([self._store.get(key, now) for key in generation_keys])

    def _begun_fence(self, generation_keys: Sequence[bytes], now: float) -> Optional[Fence]:
        """The present fence; generations that are missing begin."""
        for key in generation_keys:
            self._store.put_if_absent(key, new_generation(), now, None)
        return self._fence(generation_keys, now)

    def _done(self, name: str, worked: bool, began: float) -> None:
        self._observer.cache_operation(name, "ok" if worked else "failed", self._reactor.seconds() - began)
