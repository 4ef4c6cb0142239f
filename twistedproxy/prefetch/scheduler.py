"""After each answered request: what to prefetch, and who may.

- One lock per instance: of two workers or hosts that want the same load, one gets it.
- A lock is given back on every way out on which no load came to its good end.
- Display loads need no lock: frames are claimed one by one.
- Whatever fails here is logged; the request that gave the reason was answered long before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.frames.reader import FrameAnswer, FrameReader, Wanted
from twistedproxy.metrics import Metrics
from twistedproxy.origin.errors import OriginError
from twistedproxy.origin.interface import Priority
from twistedproxy.prefetch.gates import LoadReading
from twistedproxy.prefetch.grid import numbers
from twistedproxy.prefetch.instance_load import LoadFailed
from twistedproxy.prefetch.jobs import Job, JobBook, JobKind, Result
from twistedproxy.prefetch.loaders import Loader, LoadTask
from twistedproxy.prefetch.plan import Kind, Plan, Reason, plan, plan_by_hand
from twistedproxy.prefetch.region_load import RegionLoad
from twistedproxy.prefetch.usefulness import Usefulness
from twistedproxy.settings import Settings

BLOCK_LOCK_SECONDS = 3.0
LOCK = b"load"


class NotStarted(Exception):
    """A load that was asked for by hand can't be started. *status*: of HTTP."""

    def __init__(self, status: int, reason: str, job: Optional[Job] = None) -> None:
        super().__init__(reason)
        self.status = status
        self.job = job


@attrs.frozen
class Occasion:
    """A request that gives reason to prefetch."""

    wanted: Wanted
    metadata: InstanceMetadata
    fence: Fence

    @property
    def instance(self) -> Instance:
        return self.wanted.instance

    @property
    def lock_name(self) -> bytes:
        """The fence is part of it: what was forgotten may be loaded anew at once."""
        return LOCK + self.fence


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
    load: Callable[[], LoadReading]
    small: Loader
    whole: Loader
    _slots: dict[str, DeferredLock] = attrs.field(init=False, factory=dict)
    _unsupported: set[Instance] = attrs.field(init=False, factory=set)
    _starting: set[Deferred[None]] = attrs.field(init=False, factory=set)
    _stopped: bool = attrs.field(init=False, default=False)
    usefulness: Usefulness = attrs.field(init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.usefulness = Usefulness(self.metrics)

    def answered(self, wanted: Wanted, answer: FrameAnswer) -> None:
        """Hear of an answered request. Never raises, and returns before anything is loaded."""
        if answer.prefetched:
            self.usefulness.asked(wanted.instance, answer.metadata.frames, answer.prefetched)
        from_origin = answer.fetched + answer.shared
        if answer.fence is None or self._stopped:
            return
        if not from_origin and self.settings.prefetch_trigger > 0:  # nearly every request
            return
        try:
            decided = self._decide(wanted, answer, from_origin)
        except Exception:
            self._log.failure("a prefetch could not be planned")
            return
        if decided.kind is not Kind.NOTHING:
            occasion = Occasion(wanted, _with_syntax(answer), answer.fence)
            self._in_background(self._begin(occasion, decided))

    def _decide(self, wanted: Wanted, answer: FrameAnswer, from_origin: int) -> Plan:
        requested = set(wanted.numbers)
        decided = plan(
            self.settings,
            answer.metadata,
            requested,
            self.load,
            from_origin=from_origin,
            transfer_syntax=answer.frames[0].transfer_syntax,
            one_frame_a_request=wanted.origin.frames_per_request(wanted.instance) == 1,
        )
        self.metrics.count("prefetch_plans", (decided.kind.value, decided.reason.value))
        if decided.reason is Reason.SYNTAX_NOT_SUPPORTED:
            self._say_once(wanted.instance, answer.frames[0].transfer_syntax)
        return decided

    def _say_once(self, instance: Instance, uid: str) -> None:
        if instance in self._unsupported:
            return
        if len(self._unsupported) >= 10_000:
            self._unsupported.clear()
        self._unsupported.add(instance)
        self._log.warn(
            "{instance} is not prefetched: frames stored in {transfer_syntax} can't be told apart",
            instance=instance.path,
            transfer_syntax=uid,
        )

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        starting = Deferred.fromCoroutine(work)
        self._starting.add(starting)
        starting.addErrback(self._start_failed)
        starting.addCallback(lambda _: self._starting.discard(starting))

    def _start_failed(self, failure: Any) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("a prefetch could not be started", failure)

    async def _begin(self, occasion: Occasion, decided: Plan) -> None:
        """Start what *decided* says, as far as the locks allow."""
        main = await self._main(occasion, decided)
        if main is not None and decided.kind is not Kind.WHOLE:
            return  # its display load goes first in the same job's turn
        if decided.display:
            self._run_display(occasion, decided)

    async def _main(self, occasion: Occasion, decided: Plan) -> Optional[Job]:
        """Start the whole-instance or block load, if it may be started now."""
        token = os.urandom(12)
        seconds = self.settings.recache_after if decided.whole else BLOCK_LOCK_SECONDS
        if not await self.cache.lock(occasion.instance, occasion.lock_name, token, seconds):
            self.metrics.count("prefetch_locks_lost")
            return None
        if decided.whole and self.jobs.find(occasion.instance, JobKind.WHOLE) is not None:
            return None  # it runs here already: its lock stays taken
        keep_lock = False
        try:
            if self._stopped:
                return None
            if self.jobs.count() >= self.settings.max_jobs:
                self._log.info(
                    "{instance} is not prefetched now: {jobs} jobs are running",
                    event="jobs_busy",
                    instance=occasion.instance.path,
                    jobs=self.jobs.count(),
                )
                self.metrics.count("prefetch_jobs_busy")
                return None
            job = await self._start(occasion, decided, token)
            keep_lock = decided.whole and job is not None
            return job
        finally:
            if not keep_lock:
                await self.cache.unlock(occasion.instance, occasion.lock_name, token)

    async def _start(self, occasion: Occasion, decided: Plan, token: bytes) -> Optional[Job]:
        if decided.whole:
            display_first = decided if decided.kind is Kind.SMALL else None
            return self._run_whole(occasion, decided, token, display_first)
        return self._run_block(occasion, decided)

    def _run_whole(self, occasion: Occasion, decided: Plan, token: bytes, display_first: Optional[Plan] = None) -> Job:
        job = self.jobs.start(occasion.instance, JobKind.WHOLE, decided.reason.value, occasion.metadata.frames)
        loader = self.small if decided.kind is Kind.SMALL else self.whole

        async def work() -> None:
            try:
                if display_first is not None and display_first.display:
                    await self._display(occasion, display_first)
                await self._load_whole(occasion, loader, job)
            except BaseException:
                await self.cache.unlock(occasion.instance, occasion.lock_name, token)
                raise

        self._run(job, work())
        return job

    async def _load_whole(self, occasion: Occasion, loader: Loader, job: Job) -> None:
        """Load in the one slot that whole-instance loads have at each origin."""
        slot = self._slots.setdefault(occasion.wanted.origin.url, DeferredLock())
        await slot.acquire()
        try:
            task = LoadTask(
                occasion.wanted.origin,
                occasion.instance,
                occasion.wanted.caller,
                occasion.metadata,
                occasion.fence,
                self.settings.frame_ttl,
            )
            loaded = await loader.load(task, _progress_of(job))
        finally:
            slot.release()
        job.frames, job.bytes = loaded.frames, loaded.bytes

    def _run_block(self, occasion: Occasion, decided: Plan) -> Job:
        job = self.jobs.start(occasion.instance, JobKind.BLOCK, decided.reason.value, len(decided.block))

        async def work() -> None:
            if decided.display:
                await self._display(occasion, decided)
            await self._region(occasion, decided, job, Priority.BLOCK)

        self._run(job, work())
        return job

    def _run_display(self, occasion: Occasion, decided: Plan) -> None:
        self._in_background(self._display(occasion, decided))

    async def _display(self, occasion: Occasion, decided: Plan) -> None:
        """A display load, to its end. Its failure is its own."""
        job = self.jobs.start(occasion.instance, JobKind.DISPLAY, decided.reason.value, len(decided.display))
        await self._carry_out(job, self._region(occasion, decided, job, Priority.DISPLAY))

    async def _region(self, occasion: Occasion, decided: Plan, job: Job, priority: Priority) -> None:
        display = priority is Priority.DISPLAY
        region = decided.display if display else decided.block
        load = RegionLoad(
            self.cache,
            self.clock,
            occasion.wanted,
            occasion.metadata,
            occasion.fence,
            self.settings.frame_ttl,
            priority,
            _progress_of(job),
        )
        on_their_way = self.reader.numbers_in_flight(occasion.instance) | set(occasion.wanted.numbers)
        order = [number for number in numbers(decided.in_load_order(region)) if number not in on_their_way]
        try:
            won = await load.claim(order, stop_at_claimed=display)
            job.total = len(won)
            if won:
                await load.run(won)
        finally:
            self.metrics.count("prefetch_claims_lost", (), load.claims_lost)

    def _run(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        job.running = Deferred.fromCoroutine(self._carry_out(job, work))
        job.running.addErrback(lambda failure: failure.trap(CancelledError) and None)

    async def _carry_out(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        """Do a job's work and note how it ended. Only cancellation is raised."""
        try:
            await work
        except CancelledError:
            self.jobs.end(job, Result.STOPPED, "stopped")
            raise
        except (LoadFailed, OriginError, OSError) as error:
            self.jobs.end(job, Result.FAILED, str(error) or type(error).__name__)
        except Exception as error:
            self._log.failure("a prefetch failed for a reason of our own")
            self.jobs.end(job, Result.FAILED, type(error).__name__)
        else:
            self.jobs.end(job, Result.DONE)

    async def by_hand(self, wanted: Wanted, metadata: InstanceMetadata, fence: Optional[Fence], again: bool) -> Job:
        """Start the whole-instance load that a caller (who has a grant) asks for; *again*: whoever holds the lock.

        Raises `NotStarted`.
        """
        decided = plan_by_hand(self.settings, metadata)
        self.metrics.count("prefetch_plans", (decided.kind.value, decided.reason.value))
        if decided.kind is Kind.NOTHING:
            raise NotStarted(409, f"nothing is loaded: {decided.reason.value}")
        if fence is None:
            raise NotStarted(503, "the cache can't be reached")
        running = self.jobs.find(wanted.instance, JobKind.WHOLE)
        if running is not None:
            return running
        occasion = Occasion(wanted, metadata, fence)
        token = os.urandom(12)
        locked = await self.cache.lock(wanted.instance, occasion.lock_name, token, self.settings.recache_after)
        if not locked and not again:
            seconds = self.settings.recache_after
            raise NotStarted(
                409, f"it was loaded, or began to be, less than {seconds:g} s ago; ?again=1 loads it again"
            )
        if self.jobs.count() >= self.settings.max_jobs:
            await self.cache.unlock(wanted.instance, occasion.lock_name, token)
            raise NotStarted(503, f"{self.jobs.count()} jobs are running, as many as --max-jobs allows")
        return self._run_whole(occasion, decided, token)

    async def drain(self) -> None:
        """Wait until no job is running and none is about to start."""
        while self._starting or self.jobs.count() or self.jobs.running:
            for starting in list(self._starting):
                waiter: Deferred[None] = Deferred()
                starting.addCallback(waiter.callback)
                await waiter
            await self.jobs.drain()

    async def stop(self) -> None:
        """Give up all jobs; their locks are given back and their unfinished work removed."""
        self._stopped = True
        for starting in list(self._starting):
            starting.cancel()
        for job in self.jobs.running:
            if job.running is not None:
                job.running.cancel()
        await self.drain()


def _progress_of(job: Job) -> Callable[[int, int], None]:
    def progress(frames: int, size: int) -> None:
        job.frames, job.bytes = frames, size

    return progress


def _with_syntax(answer: FrameAnswer) -> InstanceMetadata:
    if answer.metadata.transfer_syntax is not None:
        return answer.metadata
    return attrs.evolve(answer.metadata, transfer_syntax=answer.frames[0].transfer_syntax)
