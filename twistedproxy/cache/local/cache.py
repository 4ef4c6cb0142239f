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
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional, Union

import lmdb
from twisted.internet.threads import deferToThread

from twistedproxy.cache.address import LocalAddress, SharedAddress, SharedFolder
from twistedproxy.cache.interface import CacheUnavailable, Fence, Head, Heads, Reading, Value, pieces
from twistedproxy.cache.keys import instance_keys, is_fact, read_outcome, scope_key
from twistedproxy.cache.local import segments
from twistedproxy.cache.local.claims import LocalClaims
from twistedproxy.cache.local.facts import Facts, facts_size
from twistedproxy.cache.local.folder import join
from twistedproxy.cache.local.generations import NAME as JOURNAL
from twistedproxy.cache.local.generations import Generations
from twistedproxy.cache.local.index import Indexed
from twistedproxy.cache.local.operations import ERRORS, Operations
from twistedproxy.cache.local.owner import FolderOwner
from twistedproxy.cache.local.segments import Place, WouldWait
from twistedproxy.cache.local.store import Entry, SegmentStore, checked
from twistedproxy.cache.local.upkeep import Upkeep
from twistedproxy.cache.monitoring import CacheObserver
from twistedproxy.dicom.resource import Instance, Scope

NOW_BYTES = 1 << 20
"""Bytes of one reading that are read in the reactor's thread: 0.3 ms."""


class LocalCache(LocalClaims):
    """A `Cache` in the folder at *address*; a `SharedFolder` is prepared already. *wall_clock*: seconds since the epoch."""

    shared = True

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
        self.operations = Operations(reactor, observer)
        self._clock = wall_clock
        self._member = -1
        self._writing: dict[bytes, tuple[Fence, tuple[bytes, ...]]] = {}

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
            self._upkeep = Upkeep(self._reactor, self.operations, self._folder, self.store, self.facts)
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
        self.operations.stop()
        self._upkeep.close()
        self.store.close()
        self.facts.close()
        self.generations.close()
        os.close(self._member)
        self._member = -1

    # Reading.

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """See `Cache`."""
        began = self.operations.now()
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
                if entry is None or not self._is_valid(entry, fence):
                    writing = self._writing.get(key)
                    if writing is not None and writing[0] == fence:
                        found[name] = b"".join(writing[1])
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
        except ERRORS as error:
            self.operations.failed("get_many", error, began)
            return Reading(None, {})
        self.operations.ended("get_many", read_outcome(names, found), began)
        return Reading(fence, found)

    def read_now(self, instance: Instance, name: bytes) -> Optional[tuple[Fence, memoryview]]:
        """The present fence and one entry, where that takes no waiting; else None."""
        fence = self.generations.fence(instance_keys(instance).generations)
        (key,) = _keys(instance, (name,))
        (entry,) = self.store.index.find((key,))
        if entry is None or not self._is_valid(entry, fence):
            return None
        try:
            value = self._now(key, entry)
        except WouldWait:
            return None
        return None if value is None else (fence, value)

    def _now(self, key: bytes, entry: Indexed) -> Optional[memoryview]:
        """The value of *entry*; None where it is damaged. Raises `WouldWait`."""
        stored = self.store.reader.read_now(entry.place)
        self._upkeep.note(entry.place)
        return checked(key, stored)

    def _is_valid(self, entry: Indexed, fence: Fence) -> bool:
        return entry.ends > self._clock() and entry.fence >= int.from_bytes(fence, "big")

    def _read(self, slow: Sequence[tuple[bytes, bytes, Indexed]]) -> dict[bytes, bytes]:
        found = {}
        for name, key, entry in slow:
            value = self.store.read(key, entry)
            if value is not None:
                found[name] = bytes(value)
                self._upkeep.note(entry.place)
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
        except ERRORS as error:
            self.operations.failed("present", error)
            return set()

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`. How a large entry begins is not checked."""
        began = self.operations.now()
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
        except ERRORS as error:
            self.operations.failed("heads", error, began)
            return Heads(None, {})
        self.operations.ended("heads", read_outcome(names, heads), began)
        return Heads(fence, heads)

    # Writing.

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """See `Cache`."""
        began = self.operations.now()
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
                    await self.operations.in_few(self.facts.put, values, fence, last)
                if taken and many:
                    packed = [(key, pieces(many[name])) for name, key in zip(many, _keys(instance, many))]
                    taken = await self._write(packed, fence, ends)
            except ERRORS as error:
                self.operations.failed("put_many", error)
                taken = False
        self.operations.ended("put_many", "ok" if taken else "failed", began)
        return taken

    async def _write(self, packed: Sequence[Entry], fence: Fence, ends: int) -> bool:
        """Write entries in the thread for frames; whoever reads them meanwhile finds them."""
        writing = {key: (fence, value) for key, value in packed}
        self._writing.update(writing)
        try:
            return bool(await self.operations.in_frames(self.store.put, packed, int.from_bytes(fence, "big"), ends))
        finally:
            for key, one in writing.items():
                if self._writing.get(key) is one:
                    del self._writing[key]

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""

        def removed() -> None:
            self.store.remove(keys)

        keys = _keys(instance, names)
        facts = [key for name, key in zip(names, keys) if is_fact(name)]
        for key in keys:
            self._writing.pop(key, None)
        try:
            await self.operations.in_frames(removed)
            if facts:
                await self.operations.in_few(self.facts.remove, facts)
        except ERRORS as error:
            self.operations.failed("remove", error)
            return False
        return True

    async def invalidate(self, scope: Scope) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        key = scope_key(scope)
        try:
            await self.operations.in_few(self.generations.invalidate, key)
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


def _keys(instance: Instance, names: Collection[bytes]) -> list[bytes]:
    """The keys of entries."""
    tag = instance_keys(instance).entry[4:-1]
    return [b"e%b%b" % (tag, name) for name in names]
