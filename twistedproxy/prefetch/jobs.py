"""Running prefetches and those that ended a short while ago, and how a load fails or is not started.

- A job is logged when it starts and when it ends, with the same field names.
- Ended jobs stay visible for one interval, then a LoopingCall drops them; nothing that goes wrong in it ends it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel

from twistedproxy.cache.interface import Fence
from twistedproxy.deferreds import Waiters
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.errors import OriginBadAnswer, OriginError, OriginRefused
from twistedproxy.prefetch.load_lock import LoadLock
from twistedproxy.system.metrics import Metrics


class LoadFailed(Exception):
    """A load was given up. The text says why, and holds no secrets."""


class NotLoadable(LoadFailed):
    """The origin does not give this instance as a file, or gives another one: the next load would end likewise."""


# How origins say that they have no instance resource, or not in any form that we know. S3 says 403 of what is not there.
NO_INSTANCE = frozenset({400, 403, 404, 405, 406, 410, 415, 501})


def is_lasting(error: Optional[BaseException]) -> bool:
    """Whether what ended a load will not pass by itself."""
    refused = isinstance(error, OriginRefused) and error.status in NO_INSTANCE
    return refused or isinstance(error, (NotLoadable, OriginBadAnswer))


class Withdrawn(LoadFailed):
    """A load was given up after frames of it were in the cache, and may have been served.

    They were removed as far as that was possible; who hears this must see to it that nobody is given them any more.
    """


class Refusal(enum.Enum):
    """Why a load that was decided on is not started. The values are stable, as those of a plan's reasons are."""

    LOADED_LATELY = "loaded-lately"
    RUNNING = "running"
    JOBS_BUSY = "jobs-busy"
    STOPPING = "stopping"
    CACHE_UNREACHABLE = "cache-unreachable"


@attrs.define(eq=False)
class NotStarted(Exception):
    """A load is not started. Its text is for people.

    *reason*: the value of a `Refusal`, or of a plan's reason. *status*: of HTTP. *retry_after*: seconds after which
    it can be, None where that is not known. *running*: the load that there is already.
    """

    status: int
    reason: str
    text: str
    retry_after: Optional[float] = None
    running: Optional[Job] = None

    def __str__(self) -> str:
        return self.text


MAX_ENDED = 1000
"""Ended jobs that are kept at most, about 1 kB each."""


class JobKind(enum.Enum):
    """The sizes of prefetch. *stack*: slices that are instances of one frame; *ahead*: frames around those that are looked at. A
    series or study is loaded on request."""

    WHOLE = "whole"
    BLOCK = "block"
    DISPLAY = "display"
    STACK = "stack"
    AHEAD = "ahead"
    SERIES = "series"
    STUDY = "study"


_SEGMENTS = {JobKind.STUDY: 2, JobKind.SERIES: 4, JobKind.STACK: 4}
"""Of the path of what stands for a series or study, how many name it."""


class Result(enum.Enum):
    """How a job ended."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


_Digest = bytes


@attrs.define(eq=False)
class Job:
    """One prefetch. *frames*, *bytes*: loaded so far; *total*: frames wanted; *started*, *ended*: seconds of the clock.

    *reason*: why it was started, and of an ended one that failed or was stopped, why. *fence*: what it writes under.
    *lock*: what it gives back if it fails. *small*: whether it runs however many others do. *waits*: whether another one has its place at the
    origin. *asked*: frames of a block or display that the origin is asked for now. *credential*: of the one caller that
    may know of it; empty: whoever may read the instance. *running* fires when it has ended; *over* is for those who wait for that,
    *moved* for those who wait for more of its frames, or for its end.
    """

    instance: Instance
    kind: JobKind
    reason: str
    total: int
    started: float
    fence: Fence = attrs.field(default=b"", repr=False)
    lock: Optional[LoadLock] = attrs.field(default=None, repr=False)
    small: bool = False
    waits: bool = False
    asked: set[int] = attrs.field(factory=set, repr=False)
    frames: int = 0
    bytes: int = 0
    credential: _Digest = attrs.field(default=b"", repr=False)
    ended: Optional[float] = None
    result: Optional[Result] = None
    running: Optional[Deferred[None]] = attrs.field(default=None, repr=False)
    moved: Waiters[None] = attrs.field(init=False, factory=Waiters, repr=False)
    over: Waiters[None] = attrs.field(init=False, factory=Waiters, repr=False)

    async def reached(self, frames: int) -> None:
        """Return once so many frames are loaded, or the job has ended, however."""
        while self.ended is None and self.frames < frames:
            await self.moved.wait()

    def progressed(self, frames: int, size: int) -> None:
        """Note how much is loaded."""
        self.frames, self.bytes = frames, size
        self.moved.fire()

    @property
    def resource(self) -> str:
        """The DICOMweb resource that is loaded, below the root (DICOM PS3.18 section 10.4), no leading slash."""
        return "/".join(self.instance.path.split("/")[: _SEGMENTS.get(self.kind)])

    @property
    def kept(self) -> int:
        """How many of its frames stay in the cache, now that it has ended: those of a whole-instance load that did not
        come to its good end were taken back."""
        return 0 if self.kind is JobKind.WHOLE and self.result is not Result.DONE else self.frames

    def fields(self, now: float) -> dict[str, object]:
        """What ``/status.json`` and the log say of it."""
        return {
            "instance": self.resource,
            "kind": self.kind.value,
            "frames": self.frames,
            "total": self.total,
            "bytes": self.bytes,
            "seconds": round((self.ended if self.ended is not None else now) - self.started, 3),
            "result": self.result.value if self.result is not None else None,
            "reason": self.reason,
        }


class JobBook:
    """All jobs of one worker."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, metrics: Metrics, reap_interval: float) -> None:
        self._clock = clock
        self._metrics = metrics
        self._interval = reap_interval
        self._running: list[Job] = []
        self._ended: deque[Job] = deque(maxlen=MAX_ENDED)
        self._ends: Waiters[None] = Waiters()
        self._reaper = LoopingCall(self._reap)
        self._reaper.clock = clock

    @property
    def running(self) -> list[Job]:
        """The running jobs, the oldest first."""
        return list(self._running)

    def find(self, instance: Instance, kind: JobKind, fence: Fence) -> Optional[Job]:
        """The running job of one kind for an instance, unless the instance was forgotten since."""
        wanted = (kind, instance, fence)
        return next((job for job in self._running if (job.kind, job.instance, job.fence) == wanted), None)

    def last(self, instance: Instance, credential: bytes = b"") -> Optional[Job]:
        """The running job of an instance (of several, the largest), else the last that ended, as far as remembered; of those that
        only the caller with this *credential* may know of, if one is given. Not what is loaded where callers look."""
        wanted = (instance, credential)

        def is_wanted(job: Job) -> bool:
            return (job.instance, job.credential) == wanted and job.kind is not JobKind.AHEAD

        if running := list(filter(is_wanted, self._running)):
            return max(running, key=lambda job: (job.kind is JobKind.WHOLE, job.total))
        return next(filter(is_wanted, reversed(self._ended)), None)

    def count(self) -> int:
        """How many running jobs count towards ``max-jobs``: those of blocks, and of whole instances that are not small."""
        return sum(job.kind in (JobKind.WHOLE, JobKind.BLOCK) and not job.small for job in self._running)

    async def fewer(self) -> None:
        """Return once a job has ended; at once where none runs that counts."""
        if self.count():
            await self._ends.wait()

    def start(self, instance: Instance, kind: JobKind, reason: str, total: int, fence: Fence = b"") -> Job:
        """Note a new job."""
        job = Job(instance, kind, reason, total, self._clock.seconds(), fence)
        self.add(job)
        return job

    def add(self, job: Job) -> None:
        """Note one that has been made."""
        self._running.append(job)
        if job.kind is not JobKind.AHEAD:  # these are many, and short
            self._log.info("prefetch started: {kind} of {instance}", event="job_started", **job.fields(job.started))

    def end(self, job: Job, result: Result, reason: Optional[str] = None) -> None:
        """Note a job's end. *reason* replaces the one that it was started for."""
        job.ended, job.result = self._clock.seconds(), result
        job.reason = reason or job.reason
        self._running.remove(job)
        if job.kind is not JobKind.AHEAD or job.frames or result is not Result.DONE:  # else all was there
            self._tell(job, result)
        job.moved.fire()
        job.over.fire()
        self._ends.fire()

    def _tell(self, job: Job, result: Result) -> None:
        self._ended.append(job)
        self._metrics.count("prefetch_jobs", (job.kind.value, result.value))
        self._metrics.count("prefetch_frames", (job.kind.value,), job.kept)
        self._log.emit(
            LogLevel.warn if result is Result.FAILED else LogLevel.info,
            "prefetch {result}: {kind} of {instance}, {frames} of {total} frames, {bytes} bytes in {seconds} s: {reason}",
            event="job_ended",
            **job.fields(self._clock.seconds()),
        )

    async def carry_out(self, job: Job, work: Awaitable[object]) -> None:
        """Do a job's work and note how it ended. Only cancellation is raised."""
        try:
            await work
        except CancelledError:
            self.end(job, Result.STOPPED, "stopped")
            raise
        except (LoadFailed, OriginError, OSError) as error:
            self.end(job, Result.FAILED, str(error) or type(error).__name__)
        except Exception as error:
            self._log.failure("unexpected error in a prefetch")
            self.end(job, Result.FAILED, type(error).__name__)
        else:
            self.end(job, Result.DONE)

    async def drain(self) -> None:
        """Return once no job is running."""
        while self._running:
            await self._running[0].over.wait()

    @property
    def ended(self) -> list[Job]:
        """The ended jobs that are remembered, the last one first."""
        return list(reversed(self._ended))

    def status(self) -> dict[str, list[dict[str, object]]]:
        """What ``/status.json`` says of jobs."""
        now = self._clock.seconds()
        return {
            "running": [job.fields(now) for job in self._running],
            "ended": [job.fields(now) for job in self._ended],
        }

    def start_reaping(self) -> None:
        """Drop ended jobs from now on."""
        self._reaper.start(self._interval, now=False)

    def stop_reaping(self) -> None:
        """Drop no more."""
        if self._reaper.running:
            self._reaper.stop()

    def _reap(self) -> None:
        try:
            self.drop_ended(self._clock.seconds() - self._interval)
        except Exception:
            self._log.failure("removing finished jobs failed")

    def drop_ended(self, before: float) -> None:
        """Drop the jobs that ended *before* that second of the clock."""
        while self._ended and (self._ended[0].ended or 0.0) <= before:
            job = self._ended.popleft()
            self._log.debug("prefetch dropped: {kind} of {instance}", event="job_dropped", **job.fields(0.0))


Progress = Callable[[int, int], None]
"""Hears of frames and bytes, each counted from the beginning."""
