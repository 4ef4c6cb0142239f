"""The slices beside the one that a caller looks at, loaded in the direction in which the caller goes, then behind.

- What the window of slices holds is bounded in bytes; it moves with the caller.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Optional

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.cache.interface import Fence
from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import expected
from twistedproxy.frames.read_through import FrameReader, FrameRequest, NoSuchFrame
from twistedproxy.frames.series_answers import SeriesAnswer, SeriesAnswers
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.prefetch.ahead.slices import OF_THIS_ONE, NotRead, SliceLoader, lanes
from twistedproxy.prefetch.jobs import Job, JobBook, JobKind, Result

AHEAD = 200
BEHIND = 50
"""Slices on either side of the one that is looked at."""

WINDOW_BYTES = 256 << 20
"""Bytes of the slices on one side, at most."""

RECENT = 8
"""Slices from whose order the direction is told: a viewer asks for six at once, and gets them in any order."""

MAX_REFUSED = 3
"""Refusals in a row after which a load ends."""

MAX_TRAVELS = 1000
"""Callers and series that are remembered."""


@attrs.define(eq=False)
class Travel:
    """Where a caller is in a stack of so many *slices*. *done*: those that need not be loaded; *lanes*: loads that run."""

    slices: int
    done: set[int] = attrs.Factory(set)
    lanes: int = 0
    _recent: deque[int] = attrs.field(init=False, factory=lambda: deque(maxlen=RECENT))

    def move(self, at: int) -> None:
        """The caller looks at slice *at* (from 0)."""
        self._recent.append(at)
        self.done.add(at)

    def next(self, ahead: int, behind: int) -> Optional[int]:
        """The slice to load next, of at most so many in the direction of travel, then behind. None: all of them are done."""
        at = self._recent[-1]
        step = -1 if at < self._recent[0] else 1
        for sign, reach in ((step, ahead), (-step, behind)):
            for distance in range(1, reach + 1):
                place = at + sign * distance
                if 0 <= place < self.slices and place not in self.done:
                    return place
        return None


@attrs.define
class _Load:
    """A load of slices in *order*. *refused*: how many the origin has refused in a row."""

    order: Sequence[str]
    travel: Travel
    window: tuple[int, int]
    refused: int = 0


@attrs.define(eq=False)
class Stacks:
    """Loads the slices of stacks, for one worker."""

    reader: FrameReader
    answers: SeriesAnswers
    jobs: JobBook
    _slices: SliceLoader = attrs.field(
        init=False, default=attrs.Factory(lambda self: SliceLoader(self.reader), takes_self=True)
    )
    _travels: OrderedDict[tuple[bytes, Instance], tuple[tuple[Fence, float], Travel]] = attrs.field(
        init=False, factory=OrderedDict
    )

    def is_done(self, wanted: FrameRequest) -> bool:
        """Whether nothing of the stack is left to load, as far as is known."""
        _, travel = self._travels.get((wanted.caller.credential, wanted.instance.of_series), (None, None))
        return travel is not None and len(travel.done) == travel.slices

    async def touched(self, wanted: FrameRequest, metadata: InstanceMetadata, fetched: bool) -> None:
        """A caller was answered who asked for the one frame of an instance: load what lies beside it, where it is of a stack.
        *fetched*: whether it came from the origin."""
        series = await self.answers.find(wanted.origin, wanted.instance, wanted.caller, ask=True)
        stack = None if series is None else series.stack
        at = None if stack is None else stack.index.get(wanted.instance.sop)
        if series is None or stack is None or at is None:
            return
        travel = self._travel(wanted, series, len(stack.order))
        if fetched and at in travel.done and not travel.lanes:  # it had been there: the cache lost it, and others
            travel.done.clear()
        travel.move(at)
        each = expected(metadata)
        reach = max(1, WINDOW_BYTES // each)
        window = min(AHEAD, reach), min(BEHIND, reach)
        if not travel.lanes and travel.next(*window) is not None:
            await self._load(wanted, _Load(stack.order, travel, window), lanes(metadata), series.fence)

    async def _load(self, wanted: FrameRequest, load: _Load, count: int, fence: Fence) -> None:
        travel = load.travel
        travel.lanes = count
        job = self.jobs.start(wanted.instance.of_series, JobKind.STACK, "stack", len(load.order), fence)
        try:
            work = all_or_none([Deferred.fromCoroutine(self._lane(wanted, load, job)) for _ in range(count)])
            await self.jobs.carry_out(job, work)
        finally:
            travel.lanes = 0
            if job.result is not Result.DONE:
                travel.done.clear()  # what was begun may not be there

    def _travel(self, wanted: FrameRequest, series: SeriesAnswer, slices: int) -> Travel:
        key, of = (wanted.caller.credential, wanted.instance.of_series), (series.fence, series.expires)
        known, travel = self._travels.get(key, (None, None))
        if travel is None or known != of:
            travel = Travel(slices)
        self._travels[key] = of, travel
        self._travels.move_to_end(key)
        if len(self._travels) > MAX_TRAVELS:
            self._travels.popitem(last=False)
        return travel

    async def _lane(self, wanted: FrameRequest, load: _Load, job: Job) -> None:
        while (place := load.travel.next(*load.window)) is not None:
            load.travel.done.add(place)
            instance = attrs.evolve(wanted.instance, sop=load.order[place])
            try:
                answer = await self._slices.load(wanted.origin, instance, wanted.caller)
            except OriginRefused as refused:
                load.refused += 1
                if refused.status not in OF_THIS_ONE or load.refused > MAX_REFUSED:
                    raise
                continue
            except NoSuchFrame:
                continue
            if isinstance(answer, NotRead):
                continue
            load.refused = 0
            if answer.fetched:
                job.progressed(job.frames + 1, job.bytes + answer.size)
