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
from twistedproxy.cache.local.index import Indexed
from twistedproxy.cache.local.owner import FolderOwner
from twistedproxy.cache.local.segments import Place, WouldWait
from twistedproxy.cache.local.store import SegmentStore, checked
from twistedproxy.cache.monitoring import CacheObserver, Complaints, NullObserver
from twistedproxy.dicom.resource import Instance, Scope

NOW_BYTES = 1 << 20
"""Bytes of one reading that are read in the reactor's thread: 0.3 ms."""

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
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._old_before = 0
        self._asked_for: set[Place] = set()
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
        self._frames.start()
        self._few.start()
        self._looking.start(LOOK_SECONDS, now=False)

    def _open(self) -> None:
        self._member = join(self._folder)
        self.generations = Generations(self._folder)
        self.facts = Facts(self._folder, facts_size(self._size), self._clock)
        own = facts_size(self._size) + os.stat(self._folder / JOURNAL).st_size
        self.store = SegmentStore(self._folder, self._size - own, self._clock)

    async def stop(self) -> None:
        """Write what is to be written, and close the folder."""
        if self._looking.running:
            self._looking.stop()
        if self._member >= 0:
            await deferToThread(self._close)
        if self._owner is not None:
            await self._owner.stop()

    def _close(self) -> None:
        self._frames.stop()
        self._few.stop()
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
            fence = self.generations.fence(instance_keys(instance).generations)
            keys = _keys(instance, names)
            found: dict[bytes, bytes] = {}
            slow: list[tuple[bytes, bytes, Indexed]] = []
            room = NOW_BYTES
            for name, key, entry in zip(names, keys, self.store.index.find(keys)):
                if entry is None:
                    fact = self.facts.get(key, fence)
                    if fact is not None:
                        found[name] = fact
                    continue
                if not self._is_valid(entry, fence):
                    continue
                room -= entry.place.length
                try:
                    if room < 0:
                        raise WouldWait
                    value = self._now(key, entry)
                except WouldWait:
                    slow.append((name, key, entry))
                else:
                    if value is not None:
                        found[name] = bytes(value)
            if slow:
                found.update(await deferToThread(self._read, slow))
        except _ERRORS as error:
            self._failed("get_many", error, began)
            return Reading(None, {})
        self._observer.cache_operation("get_many", read_outcome(names, found), self._reactor.seconds() - began)
        return Reading(fence, found)

    def read_now(self, instance: Instance, name: bytes) -> Optional[tuple[Fence, bytes]]:
        """See `Cache`."""
        try:
            fence = self.generations.fence(instance_keys(instance).generations)
            (key,) = _keys(instance, (name,))
            (entry,) = self.store.index.find((key,))
            if entry is None or not self._is_valid(entry, fence):
                return None
            value = self._now(key, entry)
        except (WouldWait, *_ERRORS):
            return None
        return None if value is None else (fence, bytes(value))

    def _now(self, key: bytes, entry: Indexed) -> Optional[memoryview]:
        """The value of *entry*; None where it is damaged. Raises `WouldWait`."""
        stored = self.store.reader.read_now(entry.place)
        self._note(entry)
        return checked(key, stored)

    def _note(self, entry: Indexed) -> None:
        if entry.place.segment < self._old_before:
            self._asked_for.add(entry.place)

    def _is_valid(self, entry: Indexed, fence: Fence) -> bool:
        return entry.ends > self._clock() and entry.fence >= int.from_bytes(fence, "big")

    def _read(self, slow: Sequence[tuple[bytes, bytes, Indexed]]) -> dict[bytes, bytes]:
        found = {}
        for name, key, entry in slow:
            value = self.store.read(key, entry)
            if value is not None:
                found[name] = bytes(value)
                self._note(entry)
        return found

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`."""
        try:
            fence = self.generations.fence(instance_keys(instance).generations)
            keys = _keys(instance, names)
            return {
                name
                for name, key, entry in zip(names, keys, self.store.index.find(keys))
                if (self.facts.get(key, fence) is not None if entry is None else self._is_valid(entry, fence))
            }
        except _ERRORS as error:
            self._failed("present", error)
            return set()

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`. How a large entry begins is not checked."""
        began = self._reactor.seconds()
        heads: dict[bytes, Head] = {}
        try:
            fence = self.generations.fence(instance_keys(instance).generations)
            keys = _keys(instance, names)
            asked: dict[bytes, tuple[Place, int]] = {}
            for name, key, entry in zip(names, keys, self.store.index.find(keys)):
                before = segments.HEADER.size + len(key)
                if entry is None:
                    fact = self.facts.get(key, fence)
                    if fact is not None:
                        heads[name] = Head(fact[:length], len(fact))
                elif self._is_valid(entry, fence):
                    size = entry.place.length - before
                    start = Place(entry.place.segment, entry.place.offset + before, min(length, size))
                    heads[name] = Head(b"", size)
                    if start.length:
                        asked[name] = start, size
            if asked:
                starts = await deferToThread(lambda: [self.store.reader.read(start) for start, _ in asked.values()])
                for (name, (_, size)), begin in zip(asked.items(), starts):
                    if begin is None:
                        del heads[name]
                    else:
                        heads[name] = Head(bytes(begin), size)
        except _ERRORS as error:
            self._failed("heads", error, began)
            return Heads(None, {})
        self._observer.cache_operation("heads", read_outcome(names, heads), self._reactor.seconds() - began)
        return Heads(fence, heads)

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
                taken = fence == self.generations.fence(instance_keys(instance).generations)
                if taken and few:
                    values = {key: b"".join(pieces(few[name])) for name, key in zip(few, _keys(instance, few))}
                    last = math.inf if seconds is None else self._clock() + seconds
                    await self._in(self._few, self.facts.put, values, fence, last)
                if taken and many:
                    packed = [(key, pieces(many[name])) for name, key in zip(many, _keys(instance, many))]
                    taken = await self._in(self._frames, self.store.put, packed, int.from_bytes(fence, "big"), ends)
            except _ERRORS as error:
                self._failed("put_many", error)
                taken = False
        self._observer.cache_operation("put_many", "ok" if taken else "failed", self._reactor.seconds() - began)
        return taken

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""

        facts = _keys(instance, [name for name in names if is_fact(name)])
        others = _keys(instance, [name for name in names if not is_fact(name)])
        try:
            if others:
                await self._in(self._frames, self.store.remove, others)
            if facts:
                await self._in(self._few, self.facts.remove, facts)
        except _ERRORS as error:
            self._failed("remove", error)
            return False
        return True

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
        asked_for, self._asked_for = self._asked_for, set()
        closing, self._to_close = self._to_close, []
        try:
            living = await self._in(self._frames, self._tidy, asked_for, closing)
        except _ERRORS as error:
            self._failed("maintenance", error)
            return
        self._to_close = self.store.reader.forget(living)
        self._old_before = living[len(living) // 2] if living else 0

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


def _keys(instance: Instance, names: Collection[bytes]) -> list[bytes]:
    """The keys of entries."""
    tag = instance_keys(instance).entry[4:-1]
    return [b"e%b%b" % (tag, name) for name in names]


def _claims(instance: Instance, names: Collection[bytes]) -> list[bytes]:
    """The keys of claims."""
    tag = instance_keys(instance).claim[4:-1]
    return [b"c%b%b" % (tag, name) for name in names]
