"""Entries as they are read: what is valid, what is at hand, and what has to be waited for.

Rules:
- An entry is valid under the present fence of its instance, until it ends. The entries of an instance whose time was prolonged
  are valid for that long, if they were written since it is known what the instance is: a table of facts that was full, or was made
  anew, forgets that, and frames of before could be those of another instance.
- `Readings.find` and `read_now` wait for nothing, all else does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Optional, cast

import attrs

from twistedproxy.cache.interface import FRAME, LARGE, EntryNow, Fence, Held, number_of
from twistedproxy.cache.keys import KNOWN_INSTANCES, instance_keys
from twistedproxy.cache.local.facts import Facts, name_of
from twistedproxy.cache.local.generations import Generations
from twistedproxy.cache.local.index import INDEXED, Indexed
from twistedproxy.cache.local.segments import HEADER, Place, WouldWait, checked
from twistedproxy.cache.local.store import SegmentStore
from twistedproxy.dicom.resource import Instance

NOW_BYTES = 1 << 20
"""Bytes of one reading that are read in the reactor's thread: 0.3 ms."""


_LEAST = struct.Struct("!d")
"""The end of the first entry of an instance that goes on."""

Slow = tuple[bytes, bytes, Indexed]
"""Name, key, and what the index has."""


@attrs.frozen
class Lookup:
    """*entries*: those that were at hand; *slow*: those that have to be waited for. *ended*: whether there are others whose time
    has ended."""

    fence: Fence
    entries: dict[bytes, bytes]
    slow: list[Slow]
    ended: bool


class _Known(NamedTuple):
    """What `Readings.read_now` knows of an instance: how keys of entries start, its fence, and what `Generations.look` gave then."""

    start: bytes
    fence: Fence
    least: int
    seen: bytes


@attrs.define(eq=False)
class Readings:
    """Reads entries. *clock*: seconds since the epoch. *from_memory*, *from_disk*: entries read from segments so far.
    *writing*: entries that are on their way to a segment, by key, with their fences."""

    store: SegmentStore
    facts: Facts
    generations: Generations
    clock: Callable[[], float]
    writing: dict[bytes, tuple[Fence, tuple[bytes, ...]]] = attrs.Factory(dict)
    from_memory: int = 0
    from_disk: int = 0
    _old_before: int = attrs.field(init=False, default=0)
    _asked_for: set[Place] = attrs.field(init=False, factory=set)
    _known: dict[Instance, _Known] = attrs.field(init=False, factory=dict)
    _buffer: memoryview = attrs.field(init=False, factory=lambda: memoryview(bytearray(NOW_BYTES)))

    def fence(self, instance: Instance) -> Fence:
        """The present fence of *instance*. Raises OSError."""
        return self.generations.fence(instance_keys(instance).generations)

    def find(self, instance: Instance, names: Sequence[bytes]) -> Lookup:
        """Look for entries, and read those that are at hand. Raises OSError and `lmdb.Error`."""
        fence, keys = self.fence(instance), keys_of(instance, names)
        found, room = Lookup(fence, {}, [], False), NOW_BYTES
        for name, key, entry in zip(names, keys, self.store.index.find(keys)):
            if entry is None or not self._is_valid(instance, entry, fence):
                other = self._elsewhere(key, fence)
                if other is not None:
                    found.entries[name] = other
                elif entry is not None and _is_of(entry, fence):
                    found = attrs.evolve(found, ended=True)
                continue
            room -= entry.length
            try:
                if room < 0:
                    raise WouldWait
                value = self._now(key, entry)
            except WouldWait:
                found.slow.append((name, key, entry))
            else:
                if value is not None:
                    found.entries[name] = bytes(value[0])
        return found

    def read_now(self, instance: Instance, names: Sequence[bytes]) -> Optional[tuple[Fence, list[EntryNow]]]:
        """See `Cache`. Raises OSError, `lmdb.Error` and `WouldWait`.

        On the way of every cached frame, and so in one piece: 6 us a frame, 11 as calls of what the other methods use.
        """
        known, seen = self._known.get(instance), self.generations.look()
        if known is None or known.seen is not seen:
            known = self._know(instance, seen)
        buffer, read_now, now, at = self._buffer, self.store.reader.read_now, self.clock(), 0
        found: list[EntryNow] = []
        transaction = self.store.index.begin_reading()
        try:
            for name in names:
                key = known.start + name
                value = transaction.get(key)
                if value is None:
                    return None
                segment, offset, length, ends, fence = INDEXED.unpack(value)
                if fence < known.least or (ends <= now and not self._goes_on(instance, ends, known.fence)):
                    return None
                stored = buffer[at : at + length]
                read_now(segment, offset, stored)
                entry = checked(key, stored)
                if entry is None:
                    return None
                if segment < self._old_before:
                    self._asked_for.add(Place(segment, offset, length))
                found.append(entry)
                at += length
        finally:
            transaction.abort()
        self.from_memory += len(found)
        return known.fence, found

    def _know(self, instance: Instance, seen: bytes) -> _Known:
        if len(self._known) >= KNOWN_INSTANCES:
            self._known.clear()
        fence = self.fence(instance)
        known = self._known[instance] = _Known(_start_of_keys(instance), fence, int.from_bytes(fence, "big"), seen)
        return known

    def read(self, slow: Sequence[Slow]) -> dict[bytes, bytes]:
        """The entries that `find` left."""
        found = {}
        for name, key, entry in slow:
            value = self.store.read(key, entry)
            if value is not None:
                # A large one is not copied: meanwhile no other thread runs.
                found[name] = bytes(value) if len(value) <= LARGE else cast(bytes, value.toreadonly())
                self.from_disk += 1
                self._note(entry)
        return found

    def present(self, instance: Instance, names: Collection[bytes]) -> set[bytes]:
        """Those of *names* that `find` would find."""
        fence, keys = self.fence(instance), keys_of(instance, names)
        return {
            name
            for name, key, entry in zip(names, keys, self.store.index.find(keys))
            if (entry is not None and self._is_valid(instance, entry, fence)) or self._elsewhere(key, fence) is not None
        }

    def held(self, instance: Instance, frames: int, after: bytes, count: int) -> Held:
        """See `Cache`; *count* frames at most. The index is read in the order of its keys: 1 us a frame."""
        fence, start = self.fence(instance), _start_of_keys(instance)
        prefix = start + FRAME
        entries = self.store.index.part(prefix, start + after if after else b"", count)
        valid, now, least = [], self.clock(), int.from_bytes(fence, "big")
        for key, value in entries:
            _, _, _, ends, written = INDEXED.unpack(value)
            if written >= least and (ends > now or self._goes_on(instance, ends, fence)):
                valid.append(name_of(key))
        if len(entries) == count:
            return Held(_numbers(valid, frames), (), name_of(entries[-1][0]))
        writing = [key for key, one in list(self.writing.items()) if key.startswith(prefix) and one[0] == fence]
        claims = self.facts.claimed(b"c" + prefix[1:])
        cached = _numbers({*valid, *map(name_of, writing)}, frames)
        return Held(cached, _numbers(map(name_of, claims), frames))

    def starts(
        self, instance: Instance, names: Sequence[bytes], length: int
    ) -> tuple[Fence, dict[bytes, tuple[bytes, int]]]:
        """How valid entries begin, at most *length* bytes that are not checked, and the size of each."""
        fence, keys = self.fence(instance), keys_of(instance, names)
        starts: dict[bytes, tuple[bytes, int]] = {}
        for name, key, entry in zip(names, keys, self.store.index.find(keys)):
            if entry is None or not self._is_valid(instance, entry, fence):
                other = self._elsewhere(key, fence)
                if other is not None:
                    starts[name] = other[:length], len(other)
            else:
                before = HEADER.size + len(key)
                size = entry.place.length - before
                begin = Place(entry.place.segment, entry.place.offset + before, min(length, size))
                start = self.store.reader.read(begin) if begin.length else bytearray()
                if start is not None:
                    starts[name] = bytes(start), size
        return fence, starts

    def prolong(self, instance: Instance, fence: Fence, ends: float, least: float) -> None:
        """Have the entries of *instance* under *fence* that would have ended at *least* or later end at *ends* at the earliest."""
        self.facts.put({_term_key(instance): _LEAST.pack(least)}, fence, ends)

    def _elsewhere(self, key: bytes, fence: Fence) -> Optional[bytes]:
        """The entry of *key* that is in no segment: a small one, or one that is being written."""
        writing = self.writing.get(key)
        if writing is not None and writing[0] == fence:
            return b"".join(writing[1])
        return self.facts.get(key, fence)

    # Second chances.

    def take_asked_for(self) -> set[Place]:
        """The places in old segments that were read since this was called last."""
        asked_for, self._asked_for = self._asked_for, set()
        return asked_for

    def living(self, segments: Sequence[int]) -> None:
        """These are the segments, the oldest first: the first half of them is old."""
        self._old_before = segments[len(segments) // 2] if segments else 0

    def _note(self, entry: Indexed) -> None:
        if entry.segment < self._old_before:
            self._asked_for.add(entry.place)

    def _now(self, key: bytes, entry: Indexed) -> Optional[tuple[memoryview, bytes]]:
        """The value of *entry*, which is read to the buffer, and its digest; None where it is damaged. Raises `WouldWait`."""
        stored = self._buffer[: entry.length]
        if len(stored) < entry.length:
            raise WouldWait
        self.store.reader.read_now(entry.segment, entry.offset, stored)
        self.from_memory += 1
        self._note(entry)
        return checked(key, stored)

    def _is_valid(self, instance: Instance, entry: Indexed, fence: Fence) -> bool:
        return _is_of(entry, fence) and (entry.ends > self.clock() or self._goes_on(instance, entry.ends, fence))

    def _goes_on(self, instance: Instance, ends: int, fence: Fence) -> bool:
        """Whether the time of what would have ended at *ends* was prolonged."""
        least = self.facts.get(_term_key(instance), fence)
        return least is not None and ends >= _LEAST.unpack(least)[0]


def _numbers(names: Iterable[bytes], frames: int) -> list[int]:
    return [number for number in map(number_of, names) if number <= frames]


def _is_of(entry: Indexed, fence: Fence) -> bool:
    return entry.fence >= int.from_bytes(fence, "big")


def _term_key(instance: Instance) -> bytes:
    """The key of the time to which entries of *instance* were prolonged."""
    return b"t" + instance_keys(instance).entry[4:-1]


def keys_of(instance: Instance, names: Collection[bytes]) -> list[bytes]:
    """The keys of entries."""
    start = _start_of_keys(instance)
    return [start + name for name in names]


@lru_cache(maxsize=KNOWN_INSTANCES)
def _start_of_keys(instance: Instance) -> bytes:
    return b"e" + instance_keys(instance).entry[4:-1]
