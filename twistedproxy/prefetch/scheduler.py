"""After each answered request: what to prefetch, and who may.

- One lock per instance: of two workers or hosts that want the same load, one gets it, and holds it until that load ends.
- What a load left half done whose worker or host died is invalidated before the instance is loaded anew.
- Display loads need no lock: frames are claimed one by one.
- Whatever fails here is logged; the request that gave the reason was answered long before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.deferreds import Background
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import expected
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.read_through import FrameAnswer, FrameReader, FrameRequest
from twistedproxy.prefetch.ahead.frame_queues import FrameQueues
from twistedproxy.prefetch.ahead.slides import LookAhead, Seen
from twistedproxy.prefetch.ahead.stacks import Stacks
from twistedproxy.prefetch.jobs import Job, JobBook, JobKind, NotStarted, Refusal
from twistedproxy.prefetch.load_lock import is_half_loaded, load_lock, take
from twistedproxy.prefetch.loaders import Loader
from twistedproxy.prefetch.plan import Kind, Plan, Reason, plan, plan_by_hand, plan_for_picture, plan_small_level
from twistedproxy.prefetch.regions import Region
from twistedproxy.prefetch.rules import Room, switched_off, unsupported
from twistedproxy.prefetch.runner import Loads, Occasion
from twistedproxy.prefetch.succession import Succession
from twistedproxy.prefetch.usefulness import Usefulness
from twistedproxy.settings import Settings
from twistedproxy.system.machine_load import SystemLoad
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.outages import Recent

STOP_SECONDS = 6.0
"""How long jobs may take to end and clean up at an orderly stop. A cache that hangs is given up sooner."""

MAX_REMEMBERED = 10_000  # instances whose syntax was complained of, or whose frames were refused


@attrs.define(eq=False)
class Scheduler:
    """Prefetches for one worker. *load*: takes a reading of how busy the machine is; *small*, *whole*: loaders of
    whole instances, in this process and where there is more room."""

    settings: Settings
    cache: Cache
    reader: FrameReader
    metrics: Metrics
    clock: IReactorTime
    jobs: JobBook
    load: Callable[[], SystemLoad]
    small: Loader
    whole: Loader
    loads: Loads = attrs.field(init=False)
    stacks: Optional[Stacks] = attrs.field(init=False)
    ahead: Optional[LookAhead] = attrs.field(init=False)
    usefulness: Usefulness = attrs.field(init=False)
    _unsupported: Recent[Instance] = attrs.field(init=False, factory=lambda: Recent(float("inf"), MAX_REMEMBERED))
    _refused: Recent[tuple[Instance, bytes]] = attrs.field(init=False)
    background: Background = attrs.field(init=False)
    succession: Succession = attrs.field(init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.background = Background(self.clock, "a prefetch could not be started")
        self.succession = Succession(self.cache, self.clock, self.background, self._begin)
        self.usefulness = Usefulness(self.metrics)
        self._refused = Recent(self.settings.recache_after, MAX_REMEMBERED)
        answers = self.reader.access.series
        self.stacks = self.ahead = None
        if answers is not None and switched_off(self.settings) is None:
            self.stacks = Stacks(self.reader, answers, self.jobs)
            queues = FrameQueues(self.cache, self.reader, self.jobs, self.metrics, self.clock)
            pixels, least = self.settings.block_pixels, self.settings.prefetch_min_frames
            self.ahead = LookAhead(self.reader, answers, queues, self.clock, pixels, least, self._load_level)
        self.loads = Loads(
            self.settings, self.cache, self.reader, self.metrics, self.clock, self.jobs, self.small, self.whole
        )

    def answered(self, wanted: FrameRequest, answer: FrameAnswer) -> None:
        """Hear of an answered request. Never raises, and returns before anything is loaded."""
        metadata, from_origin, new = answer.metadata, answer.from_origin, []
        if answer.prefetched:
            new = self.usefulness.asked(wanted.instance, metadata.frames, answer.prefetched)
        if answer.fence is None or self.background.stopped:
            return
        if metadata.frames == 1 and not metadata.is_tiled:
            if self.stacks is not None and (from_origin or not self.stacks.is_done(wanted)):
                touched, run = self.stacks.touched, self.background.run
                self.background.once_written(lambda: run(touched(wanted, metadata, bool(from_origin))))
            return
        if metadata.transfer_syntax is None:
            metadata = attrs.evolve(metadata, transfer_syntax=answer.frames[0].transfer_syntax)
        occasion = Occasion(wanted, metadata, answer.fence, answer.size // len(answer.frames))
        if from_origin and answer.metadata.transfer_syntax is None:
            self._look(occasion, wanted.numbers)  # it was not known before that they may be prefetched
        elif new:
            self._look(occasion, new)
        if from_origin or self.settings.prefetch_trigger <= 0:
            self.background.once_written(lambda: self._consider(occasion, from_origin))

    def missed(self, wanted: FrameRequest, metadata: InstanceMetadata, fence: Optional[Fence]) -> None:
        """Hear of a request of which the origin is asked for something: what lies around is asked for beside that. Never raises."""
        if fence is not None and self.ahead is not None:
            self._look(Occasion(wanted, metadata, fence, expected(metadata)), wanted.numbers, missed=True)

    def hit(self, wanted: FrameRequest, grant: Grant, frame_bytes: int) -> None:
        """Hear of a request for cached frames that were loaded ahead of any. Never raises, and returns before anything is loaded."""
        new = self.usefulness.asked(wanted.instance, grant.metadata.frames, wanted.numbers)
        if new and grant.fence is not None:
            self._look(Occasion(wanted, grant.metadata, grant.fence, frame_bytes), new)

    def _look(self, occasion: Occasion, numbers: Sequence[int], missed: bool = False) -> None:
        ahead = self.ahead
        if ahead is not None and not self.background.stopped and unsupported(occasion.metadata) is None:
            self.background.once_written(lambda: self._look_ahead(ahead, occasion, numbers, missed))

    def _look_ahead(self, ahead: LookAhead, occasion: Occasion, numbers: Sequence[int], missed: bool) -> None:
        wanted, instance, size = occasion.wanted, occasion.instance, occasion.frame_bytes
        dear = self._is_dear(occasion) and not self.loads.unloadable(instance, wanted.caller)
        loaded = self.loads.is_loaded(instance, occasion.fence, missed)
        seen = Seen(wanted, occasion.metadata, occasion.fence, size, numbers, missed, dear, loaded)
        if ahead.around(seen):
            self.background.run(ahead.beyond(seen))

    async def _load_level(self, wanted: FrameRequest, metadata: InstanceMetadata, fence: Fence) -> None:
        decided = plan_small_level(self.settings, metadata)
        if decided.kind is Kind.SMALL:
            await self._begin(Occasion(wanted, metadata, fence), decided)

    @staticmethod
    def _is_dear(occasion: Occasion) -> bool:
        """Whether the origin serves one frame a request, each about as dear as the whole instance."""
        return occasion.wanted.origin.frames_per_request(occasion.instance) == 1

    def refused(self, wanted: FrameRequest, metadata: InstanceMetadata, fence: Optional[Fence]) -> None:
        """Hear of a request for frames that the origin did not want to answer. Never raises.

        Some origins cannot tell the frames of an instance apart, and give the whole of it all the same: for one
        caller it is loaded once in ``recache-after``, whatever comes of that.
        """
        asked, now = (wanted.instance, wanted.caller.credential), self.clock.seconds()
        if fence is None or self.background.stopped or self._refused.has(asked, now):
            return
        self._refused.add(asked, now)
        self._consider(Occasion(wanted, metadata, fence), len(set(wanted.numbers)), refused=True)

    def _consider(self, occasion: Occasion, from_origin: int, refused: bool = False) -> None:
        if self.background.stopped:
            return
        try:
            decided = self._decide(occasion, from_origin, refused)
        except Exception:
            self._log.failure("a prefetch could not be planned")
            return
        if decided.kind is not Kind.NOTHING:
            self.background.run(self._begin(occasion, decided))

    def _decide(self, occasion: Occasion, from_origin: int, refused: bool) -> Plan:
        wanted, metadata = occasion.wanted, occasion.metadata
        decided = plan(
            self.settings,
            metadata,
            set(wanted.numbers),
            self.load,
            from_origin=from_origin,
            one_frame_a_request=self._is_dear(occasion),
            frames_refused=refused,
            not_loadable=self.loads.unloadable(wanted.instance, wanted.caller),
            room=self._room(occasion),
            looked_ahead=self.ahead is not None,
        )
        self.metrics.count("prefetch_plans", (decided.kind.value, decided.reason.value))
        self._log.debug(
            "{instance}: {kind}, {reason}", event="planned", instance=wanted.instance.path, **decided.fields()
        )
        if decided.reason is Reason.SYNTAX_NOT_SUPPORTED and metadata.transfer_syntax is not None:
            self._say_once(wanted.instance, metadata.transfer_syntax)
        return decided

    def _room(self, occasion: Occasion) -> Room:
        frames = occasion.metadata.frames
        if self.ahead is not None:
            frames = self.ahead.slides(occasion.instance, occasion.wanted.caller.credential, frames)
        seconds = self.loads.seconds(occasion.wanted, frames * occasion.frame_bytes)
        return Room(self.cache.capacity, occasion.frame_bytes, seconds)

    def _say_once(self, instance: Instance, uid: str) -> None:
        if self._unsupported.has(instance, 0.0):
            return
        self._unsupported.add(instance, 0.0)
        self._log.warn(
            "{instance} is not prefetched: frames stored in {transfer_syntax} cannot be separated",
            event="syntax_not_supported",
            instance=instance.path,
            transfer_syntax=uid,
        )

    async def _begin(self, occasion: Occasion, decided: Plan) -> None:
        """Start what *decided* says, as far as the lock allows, and the display load that is not part of it."""
        try:
            await self._start(occasion, decided)
            alone = decided.kind is Kind.WHOLE
        except NotStarted as refused:
            alone = True
            if decided.whole and refused.elsewhere:
                self.succession.watch(occasion, attrs.evolve(decided, display=Region()))
        if decided.display and alone:
            await self.loads.display(occasion, decided)

    async def _start(self, occasion: Occasion, decided: Plan, again: bool = False) -> Job:
        """Start the whole-instance or block load; *again*: also of what was loaded lately. Raises `NotStarted`."""
        instance, fence = occasion.instance, occasion.fence
        async with load_lock(self.cache, self.clock, instance, fence) as lock:
            refused = await take(lock, fence, again)
            if refused is not None:
                self.metrics.count("prefetch_locks_lost")
            running = self.jobs.find(instance, JobKind.WHOLE, fence)
            if running is not None:
                refused = NotStarted(409, Refusal.RUNNING.value, "the instance is being loaded", running=running)
            if refused is not None:
                raise refused
            self.check_room(instance, self.jobs.count(), decided.waited_for or decided.kind is Kind.SMALL)
            if await is_half_loaded(self.cache, instance, fence):
                return await self._start_anew(occasion, decided)
            if not decided.whole:
                return self.loads.start_block(occasion, decided)
            return self.loads.start_whole(occasion, decided, lock)

    async def _start_anew(self, occasion: Occasion, decided: Plan) -> Job:
        """The same after the death of whoever began: nothing of that is given to anybody any more. Raises `NotStarted`."""
        instance = occasion.instance
        self._log.info("{instance}: a load was left half done", event="load_left", instance=instance.path)
        await self.reader.invalidation.purge(instance.scope, "load")
        fence = (await self.cache.get_many(instance, [])).fence
        if fence is None or fence == occasion.fence:
            raise NotStarted(503, Refusal.CACHE_UNREACHABLE.value, "the cache is unavailable")
        return await self._start(attrs.evolve(occasion, fence=fence), decided)

    def check_room(self, instance: Instance, running: int, waited_for: bool = False) -> None:
        """Raises `NotStarted` where as many jobs of a kind run as may, unless a caller waits, or where all of them are to end."""
        if self.background.stopped:
            raise NotStarted(503, Refusal.STOPPING.value, "the proxy is stopping")
        if running < self.settings.max_jobs or waited_for:
            return
        self.metrics.count("prefetch_jobs_busy")
        text = "{instance} is not prefetched now: {jobs} jobs are running"
        self._log.info(text, event="jobs_busy", instance=instance.path, jobs=running)
        raise NotStarted(503, Refusal.JOBS_BUSY.value, f"{running} jobs are running, as many as --max-jobs allows")

    async def by_hand(
        self, wanted: FrameRequest, metadata: InstanceMetadata, fence: Optional[Fence], again: bool
    ) -> Job:
        """Start the whole-instance load that a caller (who has a grant) asks for; *again*: also if it was loaded lately.

        The load that runs already, where one does. Raises `NotStarted`.
        """
        decided = plan_by_hand(self.settings, metadata)
        self.metrics.count("prefetch_plans", (decided.kind.value, decided.reason.value))
        if decided.kind is Kind.NOTHING:
            raise NotStarted(409, decided.reason.value, f"the instance is not loaded: {decided.reason.value}")
        if fence is None:
            raise NotStarted(503, Refusal.CACHE_UNREACHABLE.value, "the cache is unavailable")
        running = self.jobs.find(wanted.instance, JobKind.WHOLE, fence)
        if running is not None:
            return running
        try:
            return await self._start(Occasion(wanted, metadata, fence), decided, again)
        except NotStarted as refused:
            if refused.running is None:
                raise
            return refused.running

    async def for_picture(
        self, wanted: FrameRequest, metadata: InstanceMetadata, fence: Optional[Fence]
    ) -> Optional[Job]:
        """The whole-instance load of an instance that a caller (who has a grant) needs most frames of: the one that runs, or
        one that is started now, however many others run. None where it is not to be loaded whole."""
        if fence is None or self.background.stopped:
            return None
        running = self.jobs.find(wanted.instance, JobKind.WHOLE, fence)
        if running is not None:
            return running
        decided = plan_for_picture(self.settings, metadata, self.loads.unloadable(wanted.instance, wanted.caller))
        self.metrics.count("prefetch_plans", (decided.kind.value, decided.reason.value))
        if decided.kind is Kind.NOTHING:
            return None
        try:
            return await self._start(Occasion(wanted, metadata, fence), decided)
        except NotStarted as refused:
            return refused.running

    async def drain(self) -> None:
        """Wait until no job is running and none is about to start."""
        while not self.background.idle or self.jobs.running:
            await self.background.drain()
            await self.jobs.drain()

    async def stop(self) -> None:
        """Give up all jobs: their locks are given back and their unfinished work is removed."""
        self.background.stop()
        self.succession.stop()
        for job in self.jobs.running:
            if job.running is not None:
                job.running.cancel()
        drained = Deferred.fromCoroutine(self.drain()).addTimeout(STOP_SECONDS, self.clock)
        try:
            await drained
        except defer.TimeoutError:
            self._log.warn("{jobs} prefetches did not stop in time", jobs=len(self.jobs.running))
