"""The model's proxy: cache, places at the origin, loads. What is loaded is decided by rules (`tests.benchmarks.model.rules`).

Rules:
- a caller's request is sent before loads where places at the origin are short, and joins one that is under way for another
  caller; it joins what a load has asked for, or is about to bring, only where `Policy.join` is set;
- each instance of a pyramid, and each stack, has one queue of frames to load, what is newly wanted in front, and some
  requests side by side;
- a frame that is cached or under way is not asked for again, except by a whole load, which reads all.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Optional, Protocol

import attrs

from tests.benchmarks.model.series import Place
from tests.benchmarks.model.store import Call, Events, Store
from tests.benchmarks.readers import Answer, Done, Item

HOP = 0.002  # seconds that the proxy takes for a frame
METADATA_BYTES = 4_000
BATCH = 10  # frames that a load asks for at once
STREAM_PIECE = 16  # frames of a whole load that come at once
QUEUE = 2_000  # frames that may wait in one instance's queue; the oldest go
NEAR = 0.25  # seconds; a load that brings a tile so soon was nearly there

CALLER, DISPLAY, BLOCK = 0, 1, 2
"""Who goes first where places at the origin are short."""


@attrs.frozen
class Seen:
    """One answered request: what rules look at. *hit*: from the cache."""

    reader: str
    place: Place
    frame: int
    hit: bool


class Rule(Protocol):
    """Looks at an answered request, and calls `Proxy.load` and `Proxy.load_whole`. May keep things between calls: one object
    serves one run."""

    def __call__(self, proxy: Proxy, seen: Seen) -> None: ...


@attrs.frozen
class Policy:
    """*side_by_side*: requests of one instance's loads. *slots*: requests at the origin, whole loads not counted. *jobs*: whole
    loads at once. *beside*: a frame is not held up by metadata, and a series' metadata prove all its instances.
    *early*: rules look at a miss when it begins, not when it was answered. *caller_weight*: share of the line that a caller's
    request gets beside one of a load."""

    name: str
    rules: Callable[[], Sequence[Rule]] = tuple
    join: bool = False
    beside: bool = False
    early: bool = False
    side_by_side: int = 4
    slots: int = 20
    jobs: int = 1
    caller_weight: float = 1.0


@attrs.define(eq=False)
class _Slots:
    """Places at the origin."""

    free: int
    _waiting: list[tuple[int, int, Call]] = attrs.Factory(list)
    _count: int = 0

    def take(self, priority: int, go: Call) -> None:
        self._count += 1
        heapq.heappush(self._waiting, (priority, self._count, go))
        self._next()

    def give_back(self) -> None:
        self.free += 1
        self._next()

    def _next(self) -> None:
        while self.free and self._waiting:
            self.free -= 1
            heapq.heappop(self._waiting)[2]()


@attrs.define(eq=False)
class _Queue:
    """Frames that are to be loaded, *batch* in one request; *priority*: of the last that were wanted."""

    batch: int
    frames: deque[Item] = attrs.Factory(deque)
    known: set[Item] = attrs.Factory(set)
    lanes: int = 0
    priority: int = BLOCK


@attrs.define(eq=False)
class _Stream:
    """A whole load: *came* frames from the first on, since *began* (seconds)."""

    began: float
    came: int = 0

    def seconds_to(self, frame: int, now: float) -> Optional[float]:
        """Until it brings *frame*, at its pace so far; None where it has passed it, or nothing came yet."""
        if not self.came or frame <= self.came:
            return None
        return (frame - self.came) * (now - self.began) / self.came


@attrs.define(eq=False)
class Proxy:
    """*capacity*: bytes of the cache."""

    events: Events
    store: Store
    places: Mapping[str, Place]
    policy: Policy
    capacity: float = float("inf")
    rules: Sequence[Rule] = attrs.field(init=False)
    jobs: int = 0
    _slots: _Slots = attrs.field(init=False)
    _cache: OrderedDict[Item, int] = attrs.field(init=False, factory=OrderedDict)
    _held: int = 0
    _flights: dict[Item, list[tuple[str, Done, bool]]] = attrs.field(init=False, factory=dict)
    _loading: set[Item] = attrs.field(init=False, factory=set)
    _joined: dict[Item, list[tuple[str, Done, bool]]] = attrs.field(init=False, factory=dict)
    _queues: dict[str, _Queue] = attrs.field(init=False, factory=dict)
    _streams: dict[str, _Stream] = attrs.field(init=False, factory=dict)
    _grants: set[tuple[str, str]] = attrs.field(init=False, factory=set)
    _proving: dict[tuple[str, str], list[Call]] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.rules = self.policy.rules()
        self._slots = _Slots(self.policy.slots)

    # Callers.

    def ask(self, reader: str, item: Item, done: Done) -> None:
        """Answer one request for one frame."""
        name = item[0]
        if (reader, name) in self._grants or (self.policy.beside and item not in self._cache):
            self._answer(reader, item, done)
            return
        series = self.places[name].series
        proof = series.levels[0].name if self.policy.beside else name
        waiting = self._proving.setdefault((reader, proof), [])
        waiting.append(lambda: self._answer(reader, item, done))
        if len(waiting) == 1:
            names = [level.name for level in series.levels] if self.policy.beside else [name]
            self._prove((reader, proof), names)

    def _prove(self, key: tuple[str, str], names: Sequence[str]) -> None:
        def proven() -> None:
            self._slots.give_back()
            self._grants.update((key[0], name) for name in names)
            for call in self._proving.pop(key):
                call()

        size = METADATA_BYTES * len(names)
        self._slots.take(CALLER, lambda: self.store.request(size, proven, self.policy.caller_weight))

    def _answer(self, reader: str, item: Item, done: Done) -> None:
        if item in self._cache:
            self._cache.move_to_end(item)
            self._finish(reader, item, done, Answer(hit=True))
            return
        near = self._is_near(item)
        waiter = (reader, done, near)
        if item in self._flights:
            self._flights[item].append(waiter)
        elif self.policy.join and near:
            self._joined.setdefault(item, []).append(waiter)
        else:
            self._flights[item] = [waiter]
            self._slots.take(CALLER, lambda: self._fetch(item))
        if self.policy.early:
            self.events.later(HOP, lambda: self._tell(reader, item, False))

    def _is_near(self, item: Item) -> bool:
        """Whether a load has asked for a frame, or a whole load is about to bring it."""
        if item in self._loading:
            return True
        stream = self._streams.get(item[0])
        seconds = stream.seconds_to(item[1], self.events.now()) if stream else None
        return seconds is not None and seconds < min(NEAR, self.store.latency)

    def _fetch(self, item: Item) -> None:
        size = self.places[item[0]].series.frame_bytes
        self.store.request(size, lambda: self._fetched(item), self.policy.caller_weight)

    def _fetched(self, item: Item) -> None:
        self._slots.give_back()
        waiters = self._flights.pop(item)
        brought = item in self._cache or self._is_near(item)
        self._put(item)
        for reader, done, near in waiters:
            self._finish(reader, item, done, Answer(soon=near or brought))

    def _finish(self, reader: str, item: Item, done: Done, answer: Answer) -> None:
        self._grants.add((reader, item[0]))
        self.events.later(HOP, lambda: done(answer))
        if answer.hit or not self.policy.early:
            self._tell(reader, item, answer.hit)

    def _tell(self, reader: str, item: Item, hit: bool) -> None:
        seen = Seen(reader, self.places[item[0]], item[1], hit)
        for rule in self.rules:
            rule(self, seen)

    # The cache.

    def missing(self, item: Item) -> bool:
        """Whether a frame is neither cached, nor under way, nor in a queue."""
        if item in self._cache or item in self._flights or item in self._loading:
            return False
        queue = self._queues.get(self._key(item))
        return queue is None or item not in queue.known

    def _put(self, item: Item) -> None:
        if item not in self._cache:
            self._cache[item] = self.places[item[0]].series.frame_bytes
            self._held += self._cache[item]
            while self._held > self.capacity:
                self._held -= self._cache.popitem(last=False)[1]
        for reader, done, _ in self._joined.pop(item, ()):
            self._finish(reader, item, done, Answer(soon=True))

    # Loads.

    def load(self, items: Iterable[Item], priority: int = DISPLAY) -> None:
        """Load frames, in this order, before what their instances' queues hold already."""
        wanted: dict[str, list[Item]] = {}
        for item in items:
            if self.missing(item):
                wanted.setdefault(self._key(item), []).append(item)
        for name, new in wanted.items():
            queue = self._queues.get(name) or self._queues.setdefault(name, _Queue(self._batch(new[0])))
            queue.frames.extendleft(reversed(new))
            queue.known.update(new)
            queue.priority = priority
            while len(queue.frames) > QUEUE:
                queue.known.discard(queue.frames.pop())
            self._pump(queue)

    def _key(self, item: Item) -> str:
        series = self.places[item[0]].series
        return series.levels[0].name if series.stack else item[0]

    def _batch(self, item: Item) -> int:
        return 1 if self.places[item[0]].series.stack else BATCH

    def _pump(self, queue: _Queue) -> None:
        while queue.lanes < self.policy.side_by_side and queue.frames:
            queue.lanes += 1
            self._slots.take(queue.priority, lambda: self._send(queue))

    def _send(self, queue: _Queue) -> None:
        batch: list[Item] = []
        while queue.frames and len(batch) < queue.batch:
            item = queue.frames.popleft()
            queue.known.discard(item)
            if self.missing(item):
                batch.append(item)
        if not batch:
            self._lane_ends(queue)
            return
        self._loading.update(batch)
        size = sum(self.places[item[0]].series.frame_bytes for item in batch)
        self.store.request(size, lambda: self._loaded(queue, batch))

    def _loaded(self, queue: _Queue, batch: Sequence[Item]) -> None:
        self._loading.difference_update(batch)
        for item in batch:
            self._put(item)
        self._lane_ends(queue)

    def _lane_ends(self, queue: _Queue) -> None:
        queue.lanes -= 1
        self._slots.give_back()
        self._pump(queue)

    def load_whole(self, place: Place, counted: bool = True) -> bool:
        """Stream a whole instance; *counted*: as a job, of which only so many run. Whether it began, or runs already."""
        name = place.level.name
        if name in self._streams:
            return True
        if counted and self.jobs >= self.policy.jobs:
            return False
        self.jobs += counted
        self._streams[name] = _Stream(self.events.now())
        pieces = [
            min(STREAM_PIECE, place.frames - first) * place.series.frame_bytes
            for first in range(0, place.frames, STREAM_PIECE)
        ]

        def came(piece: int) -> None:
            stream = self._streams[name]
            first, stream.came = stream.came, min(place.frames, (piece + 1) * STREAM_PIECE)
            if piece + 1 == len(pieces):
                del self._streams[name]
                self.jobs -= counted
            for frame in range(first + 1, stream.came + 1):
                self._put((name, frame))

        self.store.stream(pieces, came)
        return True
