"""Frames that are loaded before they are asked for, some at a time, in the order in which they are likely to be.

- Each caller and instance has one queue, and what is newly wanted goes in front. Queues have turns, and what all of them have under
  way at one store is bounded in bytes: one caller's loads do not keep another's from being loaded, nor one store those of another.
- Frames are read as callers read them, behind all of those at the origin: one that a caller asks for meanwhile is waited for, and
  not asked for twice.
- What is cached is left alone, and so is what another worker has claimed. What this worker has in a queue, or has loaded, is known
  here, and the cache is not asked about it again.
- An instance that the origin refuses to the caller is left alone for a while.
- A queue ends with the fence that it was begun under.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.read_through import AnswerTooLarge, FrameReader, FrameRequest, NoSuchFrame
from twistedproxy.origin.interface import Priority
from twistedproxy.prefetch.ahead.claims import claimed
from twistedproxy.prefetch.jobs import Job, JobBook, JobKind, LoadFailed
from twistedproxy.prefetch.loaders import turns
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.outages import Recent

SIDE_BY_SIDE = 12
"""Requests of one queue at once."""

IN_THE_BACKGROUND = 4
"""The same where nobody looks at the instance yet: they must not take the slots at the origin of what lies around a caller's frames."""

BYTES_UNDER_WAY = 32 << 20
"""What the requests of all queues ask one store for, at most; one for a frame is always sent."""

MAX_WAITING = 2000
"""Frames of one queue that wait; of more the ones that are the least likely to be asked for."""

MAX_QUEUES = 1000
"""Queues that are remembered, with what is known of their instances' frames."""

REFUSED_SECONDS = 60.0
"""How long an instance is left alone of which the origin refused frames."""

LOST_SECONDS = 10.0
"""How often the frames of one queue may turn out to be lost (seconds)."""

_Key = tuple[bytes, Instance]


class _Changed(LoadFailed):
    """What is being loaded was planned for another content of the instance, or cannot be kept."""

    def __str__(self) -> str:
        return "the instance has changed, or the cache cannot be reached"


@attrs.define(eq=False)
class FrameQueue:
    """What is to be loaded of one instance for one caller, written under *fence*. *wanted*: a request of the caller, with the headers
    that are needed while anything is loaded. *frame_bytes*: of a frame, about. *known*: frames that are cached, wait here, or are
    *loading*. *looked_at*: whether the caller looks at frames of the instance now."""

    key: _Key
    fence: Fence
    wanted: Optional[FrameRequest] = None
    frame_bytes: int = 1
    known: set[int] = attrs.Factory(set)
    loading: set[int] = attrs.Factory(set)
    lanes: set[Deferred[None]] = attrs.Factory(set)
    looked_at: bool = True
    lost: float = -math.inf
    """When frames were lost last (seconds of the clock)."""
    job: Optional[Job] = None
    over: Optional[Deferred[None]] = None
    _waiting: OrderedDict[int, None] = attrs.Factory(OrderedDict)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def place(self) -> str:
        """The store that is asked."""
        return self.key[1].origin

    @property
    def has_lane(self) -> bool:
        """Whether one more request may be sent."""
        return len(self.lanes) < (SIDE_BY_SIDE if self.looked_at else IN_THE_BACKGROUND)

    @property
    def waiting(self) -> Collection[int]:
        """The frames that wait."""
        return self._waiting.keys()

    def put(self, numbers: Sequence[int]) -> int:
        """Have those of *numbers* loaded that are not known, before all that wait; how many these are."""
        new = [number for number in numbers if number not in self.known]
        self.known.update(new)
        for number in reversed(new):
            self._waiting[number] = None
            self._waiting.move_to_end(number, last=False)
        while len(self._waiting) > MAX_WAITING:
            self.known.discard(self._waiting.popitem()[0])
        return len(new)

    def take(self, count: int) -> list[int]:
        """The next to load."""
        numbers = [self._waiting.popitem(last=False)[0] for _ in range(min(count, len(self._waiting)))]
        self.loading.update(numbers)
        return numbers

    def missed(self, numbers: Iterable[int], now: float) -> None:
        """The origin was asked for these: if they were thought to be cached, they were lost, and so may be others. That is believed
        once in a while: a cache that loses all, or takes none, is not filled in vain with each miss."""
        lost = any(one in self.known and one not in self._waiting and one not in self.loading for one in numbers)
        if lost and now >= self.lost + LOST_SECONDS:
            self.known, self.lost = {*self._waiting, *self.loading}, now
        self.known.update(numbers)

    def end(self) -> None:
        """All of it is loaded."""
        over, self.over, self.job, self.wanted = self.over, None, None, None
        if over is not None:
            over.callback(None)

    def stop(self) -> None:
        """Load nothing more; nothing is known. Who waits for the end is not told."""
        self.over = self.job = self.wanted = None
        self._waiting.clear()
        self.known.clear()
        for lane in list(self.lanes):
            lane.cancel()


@attrs.define(eq=False)
class FrameQueues:
    """All queues of one worker."""

    cache: Cache
    reader: FrameReader
    jobs: JobBook
    metrics: Metrics
    clock: IReactorTime
    _queues: OrderedDict[_Key, FrameQueue] = attrs.field(init=False, factory=OrderedDict)
    _turns: OrderedDict[FrameQueue, None] = attrs.field(init=False, factory=OrderedDict)
    _under_way: Counter[str] = attrs.field(init=False, factory=Counter)
    _going_on: bool = attrs.field(init=False, default=False)
    _breathe: Callable[[], Optional[Awaitable[None]]] = attrs.field(
        init=False, default=attrs.Factory(lambda self: turns(self.clock), takes_self=True)
    )
    _refused: Recent[_Key] = attrs.field(init=False, factory=lambda: Recent(REFUSED_SECONDS))

    def of(self, wanted: FrameRequest, fence: Fence, frame_bytes: int) -> FrameQueue:
        """The queue of the caller and the instance of *wanted*, which has this *fence* now."""
        key = (wanted.caller.credential, wanted.instance)
        queue = self._queues.get(key)
        if queue is not None and queue.fence != fence:
            self._give_up(queue, Failure(_Changed()))
        if queue is None or queue.fence != fence:
            queue = self._queues[key] = FrameQueue(key, fence)
        queue.frame_bytes = max(1, frame_bytes)
        self._queues.move_to_end(key)
        if len(self._queues) > MAX_QUEUES:
            self._queues.popitem(last=False)
        return queue

    def under_way(self) -> Mapping[Instance, set[int]]:
        """The frames that wait in queues, or are being loaded, by their instances."""
        found = defaultdict[Instance, set[int]](set)
        for (_, instance), queue in self._queues.items():
            if queue.job is not None:
                found[instance].update(queue.waiting, queue.loading)
        return found

    def add(self, queue: FrameQueue, wanted: FrameRequest, numbers: Sequence[int], looked_at: bool = True) -> None:
        """Load those of *numbers* that are not known to be cached, in this order, before what *queue* holds, for the caller of *wanted*,
        who looks at the instance, or at another."""
        if self._refused.has(queue.key, self.clock.seconds()):
            return
        new, queue.looked_at = queue.put(numbers), looked_at
        if len(queue):
            queue.wanted = attrs.evolve(wanted, prefetch=False, priority=Priority.DISPLAY)
        if queue.job is None and len(queue):
            self._begin(queue)
        elif queue.job is not None:
            queue.job.total += new
        self._turns[queue] = None
        self._go_on()

    def _begin(self, queue: FrameQueue) -> None:
        queue.job = job = self.jobs.start(queue.key[1], JobKind.AHEAD, "look-ahead", len(queue), queue.fence)
        queue.over = Deferred(lambda _: queue.stop())
        job.running = Deferred.fromCoroutine(self.jobs.carry_out(job, queue.over))
        job.running.addErrback(lambda failure: failure.trap(CancelledError) and None)

    def _go_on(self) -> None:
        """Send what may be sent now. Not re-entered: what ends at once must not recurse as deep as a queue is long."""
        if self._going_on:
            return
        self._going_on = True
        try:
            full: list[FrameQueue] = []
            while self._turns:
                queue, _ = self._turns.popitem(last=False)
                if len(queue) and self._under_way[queue.place] >= BYTES_UNDER_WAY:
                    full.append(queue)
                elif len(queue) and queue.has_lane:
                    self._turns[queue] = None  # behind the others
                    self._send(queue)
                elif not len(queue) and not queue.lanes:
                    queue.end()
            self._turns = OrderedDict.fromkeys(full)
        finally:
            self._going_on = False

    def _send(self, queue: FrameQueue) -> None:
        wanted = queue.wanted
        assert wanted is not None  # something waits
        room = (BYTES_UNDER_WAY - self._under_way[queue.place]) // queue.frame_bytes
        numbers = queue.take(max(1, min(room, wanted.origin.frames_per_request(wanted.instance))))
        size = len(numbers) * queue.frame_bytes
        self._under_way[queue.place] += size
        lane = Deferred.fromCoroutine(self._load(queue, wanted, numbers))

        def ended(result: object) -> None:
            self._under_way[queue.place] -= size
            queue.lanes.discard(lane)
            queue.loading.difference_update(numbers)
            if isinstance(result, Failure):
                self._failed(queue, result)
            self._turns[queue] = None
            self._go_on()

        queue.lanes.add(lane)
        lane.addBoth(ended)

    def _failed(self, queue: FrameQueue, failure: Failure) -> None:
        """A request failed: the others would, too."""
        if self._give_up(queue, failure) and failure.check(_Changed) is None:
            self._refused.add(queue.key, self.clock.seconds())

    @staticmethod
    def _give_up(queue: FrameQueue, reason: Failure) -> bool:
        """Load nothing more of *queue*; whether it had not come to its end before."""
        over = queue.over
        queue.stop()
        if over is None or over.called:
            return False
        over.errback(reason)
        return True

    async def _load(self, queue: FrameQueue, wanted: FrameRequest, numbers: Sequence[int]) -> None:
        """Load what nobody else has loaded, or is loading. Raises `LoadFailed`, and the errors of `twistedproxy.origin.errors`."""
        instance, job = wanted.instance, queue.job
        if (turn := self._breathe()) is not None:  # a cache in this process answers at once
            await turn
        async with claimed(self.cache, instance, numbers) as (mine, lost):
            self.metrics.count("prefetch_claims_lost", (), lost)
            if not mine:
                return
            await wanted.origin.ready(wanted.caller)  # first: who asks for it joins what does not wait for a slot
            try:
                answer = await self.reader.read(attrs.evolve(wanted, numbers=mine))
            except (NoSuchFrame, AnswerTooLarge) as error:  # other metadata were true when it was planned, or none are
                raise LoadFailed(str(error)) from None
            if answer.fence != queue.fence:
                raise _Changed
            if job is not None:
                job.progressed(job.frames + answer.fetched, job.bytes + answer.size)
