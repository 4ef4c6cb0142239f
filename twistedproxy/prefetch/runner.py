"""The jobs of one worker, carried out: whole-instance, block and display loads.

- A whole-instance load has the one slot that such loads have at its origin (small ones, and those that callers wait for, have
  another), holds its lock until it ends, and leaves a mark if it comes to its good end.
- After a load that failed when frames of it had been served, the instance is invalidated: no worker and no host gives
  them any more, from the cache or from memory.
- What makes a whole-instance load fail and will not pass is remembered: of that instance, and, where two of a store failed
  so and none came to a good end since, of all of that store.
- How a job ended is noted and logged here, whatever went wrong.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Coroutine
from itertools import islice
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.cache.lease import Lease
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.origin.interface import Caller, Priority
from twistedproxy.prefetch.jobs import Job, JobBook, JobKind, Withdrawn, is_lasting
from twistedproxy.prefetch.load_lock import mark_loaded
from twistedproxy.prefetch.loaders import Loader, LoadTask
from twistedproxy.prefetch.plan import Kind, Plan
from twistedproxy.prefetch.region_load import SIDE_BY_SIDE, RegionLoad
from twistedproxy.prefetch.regions import numbers
from twistedproxy.settings import Settings
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.outages import Recent

MAX_REGION_FRAMES = 16_384
"""The most frames that a block or display load takes, of larger regions those that come first: 8000 pixels squared of
frames of 64. Metadata that tell of frames of one pixel must not make lists of 64 million numbers."""


USUAL_RATE = 50e6
"""Bytes a second of a whole-instance load from an origin that is not known."""

MAX_LOADED = 1000
"""Instances of which it is known that they were loaded whole."""

RATE_SECONDS = 600.0
"""How long a rate counts: one that was slow for once must not keep instances from being loaded, and so from being measured, for good."""

TELLING_BYTES = 16 << 20
"""Of a load that tells how fast its origin is: a smaller one tells more of its latency."""


@attrs.frozen
class Occasion:
    """A request that gives reason to prefetch."""

    wanted: FrameRequest
    metadata: InstanceMetadata
    fence: Fence
    frame_bytes: int = 0
    """Of a frame that was answered, about; 0 where that is not known."""

    @property
    def instance(self) -> Instance:
        """The instance that was asked for."""
        return self.wanted.instance


@attrs.define(eq=False)
class Loads:
    """Carries out what was decided. *small*, *whole*: loaders of whole instances, in this process and where there is
    more room."""

    settings: Settings
    cache: Cache
    reader: FrameReader
    metrics: Metrics
    clock: IReactorTime
    jobs: JobBook
    small: Loader
    whole: Loader
    _slots: dict[tuple[str, bool, bool], DeferredLock] = attrs.field(init=False, factory=dict)
    _whole: OrderedDict[Instance, Fence] = attrs.field(init=False, factory=OrderedDict)
    _rates: dict[str, tuple[float, float]] = attrs.field(init=False, factory=dict)
    _unloadable: Recent[tuple[Instance, bytes]] = attrs.field(init=False)
    _first_of: Recent[tuple[str, bytes]] = attrs.field(init=False)
    _none_of: Recent[tuple[str, bytes]] = attrs.field(init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        seconds = self.settings.recache_after
        self._unloadable, self._first_of, self._none_of = Recent(seconds), Recent(seconds), Recent(seconds)

    def unloadable(self, instance: Instance, caller: Caller) -> bool:
        """Whether a whole-instance load would fail, as one of it or two of others at that store did for *caller* a short
        while ago. What a store refuses one caller says nothing of others."""
        now, who = self.clock.seconds(), caller.credential
        return self._unloadable.has((instance, who), now) or self._none_of.has((instance.place, who), now)

    def seconds(self, wanted: FrameRequest, size: int) -> float:
        """How long a whole-instance load of *size* bytes would take, by the last one from that origin, if that was lately."""
        rate, until = self._rates.get(wanted.origin.url, (USUAL_RATE, math.inf))
        return size / (rate if self.clock.seconds() < until else USUAL_RATE)

    def is_loaded(self, instance: Instance, fence: Fence, missed: bool) -> bool:
        """Whether all frames of *instance* were loaded under *fence*; not any more once one is *missed*."""
        loaded = self._whole.get(instance) == fence
        if loaded and missed:
            del self._whole[instance]
        return loaded and not missed

    def _note_failure(self, instance: Instance, caller: Caller) -> None:
        now, place, one = self.clock.seconds(), (instance.place, caller.credential), (instance, caller.credential)
        if self._first_of.has(place, now) and not self._unloadable.has(one, now):
            self._none_of.add(place, now)
        self._first_of.add(place, now)
        self._unloadable.add(one, now)

    def _note_success(self, instance: Instance, caller: Caller) -> None:
        self._unloadable.discard((instance, caller.credential))
        self._first_of.discard((instance.place, caller.credential))
        self._none_of.discard((instance.place, caller.credential))

    def start_whole(self, occasion: Occasion, decided: Plan, lock: Lease) -> Job:
        """Start a whole-instance load; in this process after its display load."""
        job = self._job(occasion, JobKind.WHOLE, decided, occasion.metadata.frames)
        job.small = decided.kind is Kind.SMALL
        loader = self.small if decided.kind is Kind.SMALL else self.whole

        async def work() -> None:
            try:
                if decided.kind is Kind.SMALL and decided.display:
                    await self.display(occasion, decided)
                await self._load_whole(occasion, decided, loader, job)
                await mark_loaded(lock, occasion.fence, self.settings.recache_after)
            finally:
                await lock.give_back()

        lock.keep()
        self._run(job, work())
        return job

    def start_block(self, occasion: Occasion, decided: Plan) -> Job:
        """Start a block load: first its display load, then the rest."""
        job = self._job(occasion, JobKind.BLOCK, decided, len(decided.block))

        async def work() -> None:
            if decided.display:
                await self.display(occasion, decided)
            await self._load_region(occasion, decided, job, Priority.BLOCK)

        self._run(job, work())
        return job

    async def display(self, occasion: Occasion, decided: Plan) -> None:
        """A display load, to its end. Its failure is its own."""
        job = self._job(occasion, JobKind.DISPLAY, decided, len(decided.display))
        await self.jobs.carry_out(job, self._load_region(occasion, decided, job, Priority.DISPLAY))

    def _job(self, occasion: Occasion, kind: JobKind, decided: Plan, total: int) -> Job:
        return self.jobs.start(occasion.instance, kind, decided.reason.value, total, occasion.fence)

    async def _load_whole(self, occasion: Occasion, decided: Plan, loader: Loader, job: Job) -> None:
        wanted = occasion.wanted
        seconds = self.settings.frame_ttl
        task = LoadTask(wanted.origin, wanted.instance, wanted.caller, occasion.metadata, occasion.fence, seconds)
        try:
            slot = wanted.origin.url, decided.kind is Kind.SMALL, decided.waited_for
            job.waits = True
            async with self._slots.setdefault(slot, DeferredLock()):
                job.waits = False
                began = self.clock.seconds()
                loaded = await loader.load(task, job.progressed)
        except Withdrawn:
            await self.reader.invalidation.purge(occasion.instance.scope, "load")
            raise
        except Exception as failed:
            if is_lasting(failed):
                self._note_failure(occasion.instance, wanted.caller)
            raise
        self._note_success(occasion.instance, wanted.caller)
        self._whole[occasion.instance] = occasion.fence
        if len(self._whole) > MAX_LOADED:
            self._whole.popitem(last=False)
        if loaded.bytes >= TELLING_BYTES:
            now = self.clock.seconds()
            self._rates[wanted.origin.url] = loaded.bytes / max(0.001, now - began), now + RATE_SECONDS
        job.progressed(loaded.frames, loaded.bytes)

    async def _load_region(self, occasion: Occasion, decided: Plan, job: Job, priority: Priority) -> None:
        is_display = priority is Priority.DISPLAY
        # Where a frame is about as dear as the whole instance, the screen must not keep that waiting.
        dear = decided.kind is Kind.WHOLE and occasion.wanted.origin.frames_per_request(occasion.instance) == 1
        load = RegionLoad(
            self.cache,
            self.clock,
            occasion.wanted,
            occasion.metadata,
            occasion.fence,
            self.settings.frame_ttl,
            priority,
            job.progressed,
            side_by_side=1 if dear else SIDE_BY_SIDE,
            asked=job.asked,
        )
        in_flight = {number for one, _, number in self.reader.in_flight() if one == occasion.instance}
        on_their_way = in_flight | set(occasion.wanted.numbers)
        runs = decided.in_load_order(decided.display if is_display else decided.block)
        first = islice(numbers(runs), MAX_REGION_FRAMES)
        try:
            won = await load.claim(
                [number for number in first if number not in on_their_way], stop_at_claimed=is_display
            )
            job.total = len(won)
            if won:
                await load.run(won)
        finally:
            job.total -= load.spared
            self.metrics.count("prefetch_claims_lost", (), load.claims_lost)

    def _run(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        job.running = Deferred.fromCoroutine(self.jobs.carry_out(job, work))
        job.running.addErrback(lambda failure: failure.trap(CancelledError) and None)
