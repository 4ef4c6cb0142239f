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
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

import lmdb
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread, deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from twistedproxy.cache.address import LocalAddress, SharedAddress, SharedFolder
from twistedproxy.cache.interface import CacheUnavailable, Fence, Head, Heads, Reading, Value, pieces
from twistedproxy.cache.keys import instance_keys, is_fact, read_outcome, scope_key
from twistedproxy.cache.local import segments
from twistedproxy.cache.local.facts import Facts, facts_size
from twistedproxy.cache.local.folder import join
from twistedproxy.cache.local.generations import NAME as JOURNAL
from twistedproxy.cache.local.generations import Generations
from twistedproxy.cache.local.owner import FolderOwner
from twistedproxy.cache.local.reading import Readings, keys_of
from twistedproxy.cache.local.segments import Place, WouldWait
from twistedproxy.cache.local.store import SegmentStore
from twistedproxy.cache.monitoring import CacheObserver, Complaints, NullObserver
from twistedproxy.dicom.resource import Instance, Scope

READING_THREADS = 8
"""Threads that wait for the disk."""

MANY = 1000
"""Names that are looked up in the reactor's thread: 1 ms."""

LOOK_SECONDS = 1.0
"""How often segments that are gone are closed, and marks written."""

CHECK_SECONDS = 10.0
"""How often what killed readers held is given back."""

_ERRORS = (OSError, lmdb.Error)
_T = TypeVar("_T")


class LocalCache:
    """A `Cache` in the folder at *address*; a `SharedFolder` is prepared already. *wall_clock*: seconds since the epoch."""

    shared = True
    reads_now = True
    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: Union[LocalAddress, SharedFolder],
        observer: Optional[CacheObserver] = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.address: Optional[SharedAddress] = address if isinstance(address, SharedFolder) else None
        self._owner = None if isinstance(address, SharedFolder) else FolderOwner(reactor, address)
        self._folder = Path()
        self._size = 0
        self._reactor = reactor
        self._observer = observer or NullObserver()
        self._complaints = Complaints(self.log, reactor.seconds)
        self._clock = wall_clock
        self._member = -1
        self._frames = ThreadPool(0, 1, "cache frames")
        self._few = ThreadPool(0, 1, "cache facts")
        self._cold = ThreadPool(0, READING_THREADS, "cache reads")
        self._pools = (self._frames, self._few, self._cold)
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._to_close: list[int] = []
        self._checked = 0.0

    async def start(self) -> None:
        """Open the folder. Raises OSError or RuntimeError."""
        if self._owner is not None:
            self.address = await self._owner.start()
        assert isinstance(self.address, SharedFolder)
        self._folder, self._size = Path(self.address.folder), self.address.size
        try:
            await deferToThread(self._open)
        except lmdb.Error as error:
            raise RuntimeError(f"the cache in {self._folder} can't be opened: {error}") from None
        for pool in self._pools:
            pool.start()
        self._looking.start(LOOK_SECONDS, now=False)

    def _open(self) -> None:
        self._member = join(self._folder)
        self.generations = Generations(self._folder)
        self.facts = Facts(self._folder, facts_size(self._size), self._clock)
        own = facts_size(self._size) + os.stat(self._folder / JOURNAL).st_size
        self.store = SegmentStore(self._folder, self._size - own, self._clock)
        self.readings = Readings(self.store, self.facts, self.generations, self._clock)

    async def stop(self) -> None:
        """Write what is to be written, and close the folder."""
        if self._looking.running:
            self._looking.stop()
        if self._member >= 0:
            await deferToThread(self._close)
        if self._owner is not None:
            await self._owner.stop()

    def _close(self) -> None:
        for pool in self._pools:
            pool.stop()
        self.store.close()
        self.facts.close()
        self.generations.close()
        os.close(self._member)
        self._member = -1

    # Reading.

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """See `Cache`."""
        began = self._reactor.seconds()
        try:
            found = self.readings.find(instance, names)
            if found.slow:
                found.entries.update(await self._in(self._cold, self.readings.read, found.slow))
        except _ERRORS as error:
            self._failed("get_many", error, began)
            return Reading(None, {})
        outcome = read_outcome(names, found.entries)
        self._observer.cache_operation("get_many", outcome, self._reactor.seconds() - began)
        return Reading(found.fence, found.entries, found.ended)

    def read_now(self, instance: Instance, name: bytes) -> Optional[tuple[Fence, bytes]]:
        """See `Cache`."""
        try:
            return self.readings.read_now(instance, name)
        except (WouldWait, *_ERRORS):
            return None

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`."""
        try:
            if len(names) <= MANY:
                return self.readings.present(instance, names)
            return await self._in(self._cold, self.readings.present, instance, names)
        except _ERRORS as error:
            self._failed("present", error)
            return set()

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`. How an entry begins is not checked."""
        began = self._reactor.seconds()
        try:
            fence, starts = await self._in(self._cold, self.readings.starts, instance, names, length)
        except _ERRORS as error:
            self._failed("heads", error, began)
            return Heads(None, {})
        self._observer.cache_operation("heads", read_outcome(names, starts), self._reactor.seconds() - began)
        return Heads(fence, {name: Head(*start) for name, start in starts.items()})

    # Writing.

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """See `Cache`."""
        began = self._reactor.seconds()
        taken = False
        if fence is not None:
            ends = segments.NEVER if seconds is None else min(math.ceil(self._clock() + seconds), segments.NEVER)
            few = {name: value for name, value in entries.items() if is_fact(name)}
            many = {name: value for name, value in entries.items() if name not in few}
            try:
                taken = fence == self.readings.fence(instance)
                if taken and few:
                    values = {key: b"".join(pieces(few[name])) for name, key in zip(few, keys_of(instance, few))}
                    last = math.inf if seconds is None else self._clock() + seconds
                    await self._in(self._few, self.facts.put, values, fence, last)
                if taken and many:
                    packed = [(key, pieces(many[name])) for name, key in zip(many, keys_of(instance, many))]
                    taken = await self._in(self._frames, self.store.put, packed, int.from_bytes(fence, "big"), ends)
            except _ERRORS as error:
                self._failed("put_many", error)
                taken = False
        self._observer.cache_operation("put_many", "ok" if taken else "failed", self._reactor.seconds() - began)
        return taken

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""

        facts = keys_of(instance, [name for name in names if is_fact(name)])
        others = keys_of(instance, [name for name in names if not is_fact(name)])
        try:
            if others:
                await self._in(self._frames, self.store.remove, others)
            if facts:
                await self._in(self._few, self.facts.remove, facts)
        except _ERRORS as error:
            self._failed("remove", error)
            return False
        return True

    async def prolong(self, instance: Instance, fence: Fence, seconds: Optional[float]) -> None:
        """See `Cache`."""
        ends = math.inf if seconds is None else self._clock() + seconds
        try:
            await self._in(self._few, self.readings.prolong, instance, fence, ends)
        except _ERRORS as error:
            self._failed("prolong", error)

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """See `Cache`. None is won where the table can't be written."""
        began = self._reactor.seconds()
        keys = _claims(instance, names)
        try:
            won = await self._in(self._few, self.facts.claim, keys, token, seconds)
        except _ERRORS as error:
            self._failed("claim", error, began)
            return set()
        self._observer.cache_operation(
            "claim", "ok" if len(won) == len(keys) else "lost", self._reactor.seconds() - began
        )
        return {name for name, key in zip(names, keys) if key in won}

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> None:
        """See `Cache`."""
        try:
            await self._in(self._few, self.facts.renew, _claims(instance, names), token, seconds)
        except _ERRORS as error:
            self._failed("renew_claims", error)

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """See `Cache`."""
        try:
            await self._in(self._few, self.facts.renew, _claims(instance, names), token, 0.0)
        except _ERRORS as error:
            self._failed("unclaim", error)

    async def claim_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """See `Cache`."""
        try:
            return self.facts.left(_claims(instance, (name,))[0])
        except _ERRORS as error:
            self._failed("claim_left", error)
            return None

    async def invalidate(self, scope: Scope) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        key = scope_key(scope)
        try:
            await self._in(self._few, self.generations.invalidate, key)
        except _ERRORS as error:
            raise CacheUnavailable(f"the invalidation could not be written: {error}") from None

    async def ping(self) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        try:
            self.generations.fence(())
            self.store.index.counts()
            os.stat(self._folder)
        except _ERRORS as error:
            raise CacheUnavailable(str(error)) from None

    async def status(self) -> dict[str, object]:
        """See `Cache`."""
        counts = self.store.index.counts()
        return {
            "provider": "local",
            "connected": True,
            "folder": str(self._folder),
            "used_bytes": counts.reserved + self.store.index.size(),
            "max_bytes": self._size,
            "evicted": counts.evicted,
            "second_chances": counts.second_chances,
            "items": len(self.store.index),
        }

    # The threads.

    def _in(self, pool: ThreadPool, do: Callable[..., _T], *arguments: Any) -> Any:
        """Have *do* done in the one thread of *pool*; a Deferred of its result."""
        return deferToThreadPool(self._reactor, pool, do, *arguments)

    async def _look(self) -> None:
        """Write marks, and close the files of segments that are gone. What is closed was forgotten at the last look: no thread
        reads it any more."""
        closing, self._to_close = self._to_close, []
        try:
            living = await self._in(self._frames, self._tidy, self.readings.take_asked_for(), closing)
        except _ERRORS as error:
            self._failed("maintenance", error)
            return
        self._to_close = self.store.reader.forget(living)
        self.readings.living(living)

    def _tidy(self, asked_for: set[Place], closing: list[int]) -> list[int]:
        segments.mark(self._folder, asked_for)
        for file in closing:
            os.close(file)
        if self._reactor.seconds() - self._checked >= CHECK_SECONDS:
            self._checked = self._reactor.seconds()
            self.store.index.check_readers()
            self.facts.check_readers()
        return list(self.store.index.segments())

    def _failed(self, operation: str, error: Exception, began: Optional[float] = None) -> None:
        self._complaints.complain(operation, str(error))
        if began is not None:
            self._observer.cache_operation(operation, "failed", self._reactor.seconds() - began)


def _claims(instance: Instance, names: Collection[bytes]) -> list[bytes]:
    """The keys of claims."""
    tag = instance_keys(instance).claim[4:-1]
    return [b"c%b%b" % (tag, name) for name in names]
