"""The cache in files of this host: all workers and loaders of one proxy share it, each with a `LocalCache` of its own.

Rules:
- The reactor's thread reads what is in memory. It waits for no disk, and begins no transaction that writes: frames are written in
  one thread, claims, small entries and invalidations in another.
- An invalidation is seen by every process with its next reading.
- What can't be written is not cached; what can't be read is a miss. Both are counted, and logged now and then.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional, Union

import lmdb
from twisted.internet.threads import deferToThread

from twistedproxy.cache.address import LocalAddress, SharedAddress, SharedFolder
from twistedproxy.cache.interface import CacheUnavailable, EntryNow, Fence, Head, Heads, Held, Reading, Value, pieces
from twistedproxy.cache.keys import is_fact, read_outcome, scope_keys
from twistedproxy.cache.local import segments
from twistedproxy.cache.local.claims import LocalClaims
from twistedproxy.cache.local.facts import Facts, facts_size, name_of
from twistedproxy.cache.local.folder import join
from twistedproxy.cache.local.generations import NAME as JOURNAL
from twistedproxy.cache.local.generations import Generations
from twistedproxy.cache.local.operations import ERRORS, Operations
from twistedproxy.cache.local.owner import FolderOwner
from twistedproxy.cache.local.reading import Readings, keys_of
from twistedproxy.cache.local.segments import WouldWait
from twistedproxy.cache.local.store import SegmentStore
from twistedproxy.cache.local.upkeep import Upkeep
from twistedproxy.cache.monitoring import CacheObserver
from twistedproxy.dicom.resource import Instance, Scope

MAX_QUEUED = 256 << 20
"""Bytes that may wait for a slow disk; what comes then is not cached."""

FEW = 250
"""Frames of an instance of which `LocalCache.held` tells in the reactor's thread: 0.3 ms."""

HELD_AT_ONCE = 1000
"""Frames of one part of it else: 1 ms."""

MANY = 1000
"""Names that are looked up in the reactor's thread: 1 ms."""


class LocalCache(LocalClaims):
    """A `Cache` in the folder at *address*; a `SharedFolder` is prepared already. *wall_clock*: seconds since the epoch.
    *in_threads*: see `Operations`."""

    shared = True
    reads_now = True
    keeps_ended = True
    capacity: Optional[int] = None

    def __init__(
        self,
        reactor: Any,
        address: Union[LocalAddress, SharedFolder],
        observer: Optional[CacheObserver] = None,
        wall_clock: Callable[[], float] = time.time,
        in_threads: bool = True,
    ) -> None:
        self.address: Optional[SharedAddress] = address if isinstance(address, SharedFolder) else None
        self._owner = None if isinstance(address, SharedFolder) else FolderOwner(reactor, address)
        self._folder = Path()
        self._size = 0
        self._reactor = reactor
        self.operations = Operations(reactor, observer, in_threads)
        self._clock = wall_clock
        self._member = -1
        self._queued = 0

    async def start(self) -> None:
        """Open the folder. Raises OSError or RuntimeError."""
        if self._owner is not None:
            self.address = await self._owner.start()
        assert isinstance(self.address, SharedFolder)
        self._folder, self._size = Path(self.address.folder), self.address.size
        self.capacity = self._size
        try:
            await deferToThread(self._open)
        except lmdb.Error as error:
            raise RuntimeError(f"the cache in {self._folder} can't be opened: {error}") from None
        self.operations.start()
        self._upkeep.start()

    def _open(self) -> None:
        with ExitStack() as opened:
            member = join(self._folder)
            opened.callback(os.close, member)
            self.generations = Generations(self._folder)
            opened.callback(self.generations.close)
            self.facts = Facts(self._folder, facts_size(self._size), self._clock)
            opened.callback(self.facts.close)
            own = facts_size(self._size) + os.stat(self._folder / JOURNAL).st_size
            self.store = SegmentStore(self._folder, self._size - own, self._clock)
            self.readings = Readings(self.store, self.facts, self.generations, self._clock)
            self._upkeep = Upkeep(self._reactor, self.operations, self._folder, self.readings)
            opened.pop_all()
            self._member = member

    async def stop(self) -> None:
        """Write what is to be written, and close the folder."""
        if self._member >= 0:
            self._upkeep.stop()
            await deferToThread(self._close)
        if self._owner is not None:
            await self._owner.stop()

    def _close(self) -> None:
        with ExitStack() as closing:  # the last first; each of them, whatever happens to others
            closing.callback(os.close, self._member)
            self._member = -1
            for part in (self.generations, self.facts, self.store, self._upkeep):
                closing.callback(part.close)
            self.operations.stop()

    # Reading.

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """See `Cache`."""
        began = self.operations.now()
        try:
            found = self.readings.find(instance, names)
            if found.slow:
                found.entries.update(await self.operations.in_cold(self.readings.read, found.slow))
        except ERRORS as error:
            self.operations.failed("get_many", error, began)
            return Reading(None, {})
        self.operations.ended("get_many", read_outcome(names, found.entries), began)
        return Reading(found.fence, found.entries, found.ended)

    def read_now(self, instance: Instance, names: Sequence[bytes]) -> Optional[tuple[Fence, list[EntryNow]]]:
        """See `Cache`."""
        try:
            return self.readings.read_now(instance, names)
        except (WouldWait, *ERRORS):
            return None

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`."""
        try:
            if len(names) <= MANY:
                return self.readings.present(instance, names)
            found: set[bytes] = await self.operations.in_cold(self.readings.present, instance, names)
            return found
        except ERRORS as error:
            self.operations.failed("present", error)
            return set()

    def changes(self) -> Optional[Hashable]:
        """See `Cache`."""
        try:
            return self.store.index.version(), self.facts.version(), self.generations.look()
        except ERRORS:
            return None

    async def held(self, instance: Instance, frames: int, after: bytes = b"") -> Held:
        """See `Cache`."""
        try:
            if frames <= FEW:
                return self.readings.held(instance, frames, after, HELD_AT_ONCE)
            part: Held = await self.operations.in_cold(self.readings.held, instance, frames, after, HELD_AT_ONCE)
            return part
        except ERRORS as error:
            self.operations.failed("held", error)
            return Held((), ())

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`. How an entry begins is not checked."""
        began = self.operations.now()
        try:
            fence, starts = await self.operations.in_cold(self.readings.starts, instance, names, length)
        except ERRORS as error:
            self.operations.failed("heads", error, began)
            return Heads(None, {})
        self.operations.ended("heads", read_outcome(names, starts), began)
        return Heads(fence, {name: Head(*start) for name, start in starts.items()})

    # Writing.

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """See `Cache`."""
        began = self.operations.now()
        taken = False
        try:
            if fence is not None and fence == self.readings.fence(instance) and self._queued <= MAX_QUEUED:
                ends = math.inf if seconds is None else self._clock() + seconds
                packed = [pieces(value) for value in entries.values()]
                taken = await self._write(fence, dict(zip(keys_of(instance, entries), packed)), ends)
        except ERRORS as error:
            self.operations.failed("put_many", error)
        self.operations.ended("put_many", "ok" if taken else "failed", began)
        return taken

    async def _write(self, fence: Fence, packed: Mapping[bytes, tuple[bytes, ...]], ends: float) -> bool:
        """Write entries in threads; whoever reads them meanwhile finds them."""
        writing, under_way = {key: (fence, value) for key, value in packed.items()}, self.readings.writing
        facts = {key: b"".join(value) for key, value in packed.items() if is_fact(name_of(key))}
        others = [(key, value) for key, value in packed.items() if key not in facts]
        last, taken = math.ceil(min(ends, segments.NEVER)), True
        under_way.update(writing)
        size = sum(map(len, (piece for value in packed.values() for piece in value)))
        self._queued += size
        try:
            if facts:
                await self.operations.in_few(self.facts.put, facts, fence, ends)
            if others:
                taken = await self.operations.in_frames(self.store.put, others, int.from_bytes(fence, "big"), last)
            return taken
        finally:
            self._queued -= size
            for key, one in writing.items():
                if under_way.get(key) is one:
                    del under_way[key]

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""
        facts = keys_of(instance, [name for name in names if is_fact(name)])
        others = keys_of(instance, [name for name in names if not is_fact(name)])
        for key in (*facts, *others):
            self.readings.writing.pop(key, None)
        try:
            if others:
                await self.operations.in_frames(self.store.remove, others)
            if facts:
                await self.operations.in_few(self.facts.remove, facts)
        except ERRORS as error:
            self.operations.failed("remove", error)
            return False
        return True

    async def prolong(self, instance: Instance, fence: Fence, seconds: float, since: float) -> None:
        """See `Cache`."""
        try:
            ends = self._clock() + seconds
            await self.operations.in_few(self.readings.prolong, instance, fence, ends, since + seconds)
        except ERRORS as error:
            self.operations.failed("prolong", error)

    async def invalidate(self, scope: Scope) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        keys = scope_keys(scope)
        try:
            await self.operations.in_few(self.generations.invalidate, keys)
        except ERRORS as error:
            raise CacheUnavailable(f"the invalidation could not be written: {error}") from None

    async def ping(self) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        try:
            self.generations.fence(())
            self.store.index.counts()
            os.stat(self._folder)
        except ERRORS as error:
            raise CacheUnavailable(str(error)) from None

    async def status(self) -> dict[str, object]:
        """See `Cache`."""
        try:
            counts, index_size = self.store.index.counts(), self.store.index.size()
        except ERRORS as error:
            return {"provider": "local", "connected": False, "error": str(error), "max_bytes": self._size}
        return {
            "provider": "local",
            "connected": True,
            "folder": str(self._folder),
            "used_bytes": counts.reserved + index_size,
            "max_bytes": self._size,
            "evicted": counts.evicted,
            "second_chances": counts.second_chances,
            "segments_dropped": counts.dropped,
            "read_from_memory": self.readings.from_memory,
            "read_from_disk": self.readings.from_disk,
            "write_queue_bytes": self._queued,
            "index_write_p99_seconds": _p99(list(self.store.index_seconds)),
            "items": len(self.store.index),
        }


def _p99(values: list[float]) -> float:
    values.sort()
    return values[len(values) * 99 // 100] if values else 0.0
