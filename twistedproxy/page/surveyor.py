"""How much of watched instances is cached, being loaded or claimed: found out once for all who watch, at a bounded cost.

Rules:
- Nothing is done where nobody watches, and the cache is not looked through again before it, or a load, has changed.
- The cache is looked through a part at a time, with rests `REST` times as long as each part took: all watchers together cost 5 % of a
  core at most, and hold nobody up for longer than a part takes.
- What is found under one fence is not shown under another.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Optional, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence, Held
from twistedproxy.deferreds import Waiters, all_or_none
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.read_through import FrameReader
from twistedproxy.page.runs import runs_in, runs_of
from twistedproxy.page.survey import TICK, Loading, Survey
from twistedproxy.prefetch.ahead.frame_queues import FrameQueues
from twistedproxy.prefetch.jobs import Job, JobBook, JobKind

REST = 20.0
"""Rests are as many times as long as what they follow."""

MOST_REST = 1.0
"""Seconds of a rest at most: a machine that is too busy to look makes every look seem long."""

SMALL = 64
"""Frames of an instance that is looked up together with others: slices, labels."""

AT_ONCE = 24
"""Small instances of one part: half a millisecond."""

QUICK = 20_000
"""Frames of an instance that does not wait for larger ones."""

MAX_FRAMES = 4_000_000
"""Frames of an instance that is looked at. Metadata can claim any number."""

MAX_WATCHED = 50_000
"""Instances that one worker looks at, 1 kB each."""

_T = TypeVar("_T")


@attrs.define(eq=False)
class Lane:
    """Work, one piece after the other, with rests. *seconds*: a clock for durations."""

    clock: IReactorTime
    seconds: Callable[[], float] = time.perf_counter
    _lock: DeferredLock = attrs.field(init=False, factory=DeferredLock)
    _free: float = attrs.field(init=False, default=-math.inf)

    async def run(self, work: Callable[[], Coroutine[Deferred[Any], Any, _T]]) -> _T:
        """Do *work* when it is its turn."""
        async with self._lock:
            while (left := self._free - self.clock.seconds()) > 0:
                await deferLater(self.clock, left)
            began = self.seconds()
            try:
                return await work()
            finally:
                self.spent(self.seconds() - began)

    def spent(self, seconds: float) -> None:
        """So much was worked: rest."""
        self._free = max(self._free, self.clock.seconds()) + min(REST * seconds, MOST_REST)


@attrs.define(eq=False)
class _Group:
    """Watched instances of one size. *unseen*: those that were not looked at yet; *due*: those that the look under way is still to come
    to."""

    surveys: dict[Instance, Survey] = attrs.Factory(dict)
    unseen: dict[Instance, Survey] = attrs.Factory(dict)
    due: list[Survey] = attrs.Factory(list)
    looking: Optional[Deferred[None]] = None

    def next(self) -> list[Survey]:
        """Those to look at next, together: new ones first. None: all are looked at."""
        part: list[Survey] = []
        while len(part) < AT_ONCE and (self.unseen or self.due):
            survey = next(iter(self.unseen.values())) if self.unseen else self.due[-1]
            if survey.frames > SMALL and part:
                break
            if self.unseen.pop(survey.instance, None) is None:
                self.due.pop()
            if survey.watchers:
                part.append(survey)
            if survey.frames > SMALL:
                break
        return part


@attrs.define(eq=False)
class Surveyor:
    """Looks at watched instances, for one worker. *queues*: None where nothing is loaded ahead. *moved* fires when anything is new."""

    cache: Cache
    reader: FrameReader
    queues: Optional[FrameQueues]
    jobs: JobBook
    clock: IReactorTime
    lane: Lane
    moved: Waiters[None] = attrs.field(init=False, factory=Waiters)
    _groups: tuple[_Group, _Group] = attrs.field(init=False, factory=lambda: (_Group(), _Group()))
    _shown: set[Survey] = attrs.field(init=False, factory=set)
    _version: int = attrs.field(init=False, default=0)
    _next_tick: Optional[IDelayedCall] = attrs.field(init=False, default=None)
    _log = Logger()

    def __len__(self) -> int:
        return sum(len(group.surveys) for group in self._groups)

    def watch(self, instance: Instance, frames: int) -> Optional[Survey]:
        """Look at *instance*, which has so many frames, until as many have called `unwatch`. None: there are too many, or it is too
        large."""
        group = self._groups[frames > QUICK]
        survey = group.surveys.get(instance)
        if survey is not None and survey.frames == frames:
            survey.watchers += 1
            return survey
        if frames > MAX_FRAMES or len(self) >= MAX_WATCHED:
            return None
        survey = group.surveys[instance] = group.unseen[instance] = Survey(instance, frames, watchers=1)
        if self._next_tick is None:
            self._next_tick = self.clock.callLater(0, self._tick)
        else:
            self._look(group)
        return survey

    def unwatch(self, survey: Survey) -> None:
        """Look at it no more for one of its watchers."""
        survey.watchers -= 1
        group = self._groups[survey.frames > QUICK]
        if not survey.watchers:
            self._shown.discard(survey)
            for table in (group.surveys, group.unseen):
                if table.get(survey.instance) is survey:
                    del table[survey.instance]

    def stop(self) -> None:
        """Look at nothing any more."""
        for group in self._groups:
            group.surveys.clear()
            if group.looking is not None:
                group.looking.cancel()
        if self._next_tick is not None and self._next_tick.active():
            self._next_tick.cancel()

    def _tick(self) -> None:
        self._next_tick = None
        if not len(self):
            return
        began = self.lane.seconds()
        try:
            for group in self._groups:
                self._look(group)
            self._compose(())
        except Exception:
            self._log.failure("looking at coverage failed")
        self._next_tick = self.clock.callLater(max(TICK, REST * (self.lane.seconds() - began)), self._tick)

    def _look(self, group: _Group) -> None:
        """Look through the cache where that is due, unless a look is under way."""
        if group.looking is not None:
            return
        sign, now = self.cache.changes(), self.clock.seconds()
        seen = (survey for survey in group.surveys.values() if survey.instance not in group.unseen)
        group.due = [survey for survey in seen if survey.is_due(sign, now)]
        group.due.sort(key=lambda survey: -survey.frames)
        if group.due or group.unseen:
            group.looking = Deferred.fromCoroutine(self._look_at(group))
            group.looking.addErrback(self._failed)
            group.looking.addBoth(lambda _: setattr(group, "looking", None))

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("looking at coverage failed", failure)

    async def _look_at(self, group: _Group) -> None:
        while part := group.next():
            await self._find(part)
            self._compose(part)

    async def _find(self, surveys: Sequence[Survey]) -> None:
        """Look through the cache for all of *surveys*. If they are large, it is one."""
        before, sign = await self._fences(surveys), self.cache.changes()
        masks = [bytearray(survey.frames + 2) for survey in surveys]
        claims: list[list[int]] = [[] for _ in surveys]
        after: Optional[bytes] = b""
        while after is not None and any(survey.watchers for survey in surveys):
            parts = await self.lane.run(functools.partial(self._held, surveys, after))
            for mask, claim, part in zip(masks, claims, parts, strict=True):
                for number in part.cached:
                    mask[number] = 1
                claim.extend(part.claimed)
            after = parts[0].after
        fences, now = await self._fences(surveys), self.clock.seconds()
        if after is None and fences == before:  # else it is looked for anew
            for survey, fence, mask, claim in zip(surveys, fences, masks, claims, strict=True):
                survey.found(fence, runs_in(mask), runs_of(claim), sign, now)

    async def _held(self, surveys: Sequence[Survey], after: bytes) -> list[Held]:
        held = (self.cache.held(survey.instance, survey.frames, after) for survey in surveys)
        return await all_or_none([Deferred.fromCoroutine(one) for one in held])

    async def _fences(self, surveys: Sequence[Survey]) -> list[Optional[Fence]]:
        readings = (self.cache.get_many(survey.instance, []) for survey in surveys)
        return [reading.fence for reading in await all_or_none([Deferred.fromCoroutine(one) for one in readings])]

    def _compose(self, found: Sequence[Survey]) -> None:
        """Put together what was *found*, and all of which anything is or was being loaded."""
        now, loads, moved = self.clock.seconds(), self._loading(), False
        loaded = {*loads.asked, *loads.waiting, *loads.whole}
        surveys = {*found, *self._shown}
        for group in self._groups:
            surveys.update(group.surveys[instance] for instance in loaded & group.surveys.keys())
        for survey in surveys:
            if survey.compose(loads, now):
                self._version += 1
                survey.version, moved = self._version, True
            (self._shown.add if survey.shows_loads else self._shown.discard)(survey)
        if moved:
            self.moved.fire()

    def _loading(self) -> Loading:
        asked = defaultdict[Instance, set[int]](set)
        for instance, _, number in self.reader.in_flight():
            asked[instance].add(number)
        whole: dict[Instance, Job] = {}
        for job in self.jobs.running:
            if job.kind is JobKind.WHOLE:
                whole[job.instance] = job
            elif job.asked:
                asked[job.instance] |= job.asked
        return Loading(asked, {} if self.queues is None else self.queues.under_way(), whole)
