"""Prefetching in memory: an origin, a cache and a clock that a test holds in its hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import INSTANCE, JPEG
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.frames.access import Access
from twistedproxy.frames.entries import frame_name, unpack_frame
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.frames.read_through import FrameAnswer, FrameReader, FrameRequest
from twistedproxy.frames.series_answers import SeriesAnswers
from twistedproxy.origin.interface import Caller, Priority
from twistedproxy.prefetch.instance_load import Loaded
from twistedproxy.prefetch.jobs import JobBook, JobKind, Progress
from twistedproxy.prefetch.load_lock import LOCK
from twistedproxy.prefetch.loaders import LoadTask
from twistedproxy.prefetch.scheduler import Scheduler
from twistedproxy.settings import Settings
from twistedproxy.streams import BytesStream, ByteStream
from twistedproxy.system.machine_load import SystemLoad
from twistedproxy.system.metrics import Metrics

MIB = 1 << 20

# 200 x 100 frames of 256 px: more than a block of 8000 px holds, enough for a display load.
SLIDE = InstanceMetadata(
    frames=20_000,
    rows=256,
    columns=256,
    total_rows=25_600,
    total_columns=51_200,
    organization="TILED_FULL",
    transfer_syntax=JPEG,
)
LOOP = InstanceMetadata(frames=100, rows=480, columns=640, transfer_syntax=JPEG)


def content(number: int) -> bytes:
    """Frame *number*'s bytes."""
    return b"frame %d" % number


@attrs.define(eq=False)
class HeldOrigin:
    """Everybody may read it. While *held* is a list, requests for frames wait there for `release`.

    *asked*: priority and numbers of each request for frames. *per_request*: frames it serves best at once.
    *file*: what `stored_instance` streams.
    """

    metadata_value: InstanceMetadata = SLIDE
    per_request: int = 100
    url: str = INSTANCE.origin
    asked: list[tuple[Priority, tuple[int, ...]]] = attrs.Factory(list)
    metadata_asked: int = 0
    held: Optional[list[Deferred[None]]] = None
    cancelled: int = 0
    failure: Optional[Exception] = None
    file: ByteStream = attrs.Factory(BytesStream)
    syntax: str = JPEG

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        self.metadata_asked += 1
        return self.metadata_value

    async def frames(
        self,
        instance: Instance,
        numbers: Sequence[int],
        caller: Caller,
        metadata: InstanceMetadata,
        priority: Priority = Priority.CALLER,
        limit: Optional[int] = None,
    ) -> Mapping[int, Frame]:
        self.asked.append((priority, tuple(numbers)))
        if self.held is not None and priority is not Priority.CALLER:
            waiter: Deferred[None] = Deferred()
            self.held.append(waiter)
            try:
                await waiter
            except BaseException:
                self.cancelled += 1
                raise
        if self.failure is not None and priority is not Priority.CALLER:
            raise self.failure
        return {number: Frame(content(number), self.syntax) for number in numbers}

    def release(self, count: int = 1 << 30) -> None:
        """Answer the oldest of the requests that wait."""
        assert self.held is not None
        while self.held and count:
            count -= 1
            self.held.pop(0).callback(None)

    def frames_per_request(self, instance: Instance) -> int:
        return self.per_request

    async def stored_instance(
        self, instance: Instance, caller: Caller, priority: Priority = Priority.WHOLE
    ) -> ByteStream:
        return self.file

    async def local_file(self, instance: Instance) -> Optional[str]:
        return None

    def numbers(self, *priorities: Priority) -> list[int]:
        """The frames asked for with one of *priorities*, in order."""
        return [number for priority, numbers in self.asked if priority in priorities for number in numbers]


@attrs.define(eq=False)
class HeldLoader:
    """A `Loader` whose loads wait for the test."""

    tasks: list[LoadTask] = attrs.Factory(list)
    progress: list[Progress] = attrs.Factory(list)
    ends: list[Deferred[Loaded]] = attrs.Factory(list)
    cancelled: int = 0

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        self.tasks.append(task)
        self.progress.append(progress)
        end: Deferred[Loaded] = Deferred()
        self.ends.append(end)
        try:
            return await end
        except BaseException:
            self.cancelled += 1
            raise

    def finish(self, index: int = 0) -> None:
        """Let a load come to a good end."""
        self.ends[index].callback(Loaded(self.tasks[index].metadata.frames, 1000, JPEG))

    def fail(self, error: Exception, index: int = 0) -> None:
        """Let it fail."""
        self.ends[index].errback(error)


@attrs.define(eq=False)
class Worker:
    """One worker: its reader, its scheduler, its jobs."""

    reader: FrameReader
    scheduler: Scheduler
    jobs: JobBook
    metrics: Metrics
    small: HeldLoader
    whole: HeldLoader


class PrefetchCase(SynchronousTestCase):
    """A cache, an origin and a clock; workers that share them. *with_series*: whether these know what series are."""

    with_series = False

    def setUp(self) -> None:
        self.clock = Clock()
        self.cache = MemoryCache(self.clock, 64 * MIB)
        self.origin = HeldOrigin()
        self.reading = SystemLoad(0.0, 0.0)

    def worker(self, **settings: Any) -> Worker:
        """A worker whose whole-instance loaders wait."""
        metrics = Metrics()
        access = Access(self.cache, self.clock.seconds, 600.0)
        if self.with_series:
            access.series = SeriesAnswers(self.cache, self.clock, self.clock.seconds, 600.0)
        invalidation = Invalidation(self.cache, access.grants, self.clock)
        reader = FrameReader(self.cache, access, invalidation, 3600.0, 64 * MIB)
        jobs = JobBook(self.clock, metrics, 60.0)
        small, whole = HeldLoader(), HeldLoader()
        scheduler = Scheduler(
            Settings(**settings), self.cache, reader, metrics, self.clock, jobs, lambda: self.reading, small, whole
        )
        reader.answered = scheduler.answered
        reader.missed, reader.refused = scheduler.missed, scheduler.refused
        return Worker(reader, scheduler, jobs, metrics, small, whole)

    def caller(self, name: str = "alice") -> Caller:
        return Caller(name.encode(), ((b"Authorization", b"Bearer " + name.encode()),))

    def wanted(self, *numbers: int, caller: str = "alice") -> FrameRequest:
        return FrameRequest(self.origin, INSTANCE, numbers, self.caller(caller))  # type: ignore[arg-type]

    def ask(self, worker: Worker, *numbers: int, caller: str = "alice") -> FrameAnswer:
        """Ask for frames, which come at once."""
        answer = self.successResultOf(Deferred.fromCoroutine(worker.reader.read(self.wanted(*numbers, caller=caller))))
        self.clock.advance(0)  # prefetch is planned once the answer was written
        return answer

    def cached(self) -> set[int]:
        """The frames of the instance in the cache; each must be what the origin has."""
        numbers = range(1, self.origin.metadata_value.frames + 1)
        reading = self.successResultOf(
            Deferred.fromCoroutine(self.cache.get_many(INSTANCE, [frame_name(number) for number in numbers]))
        )
        found = set()
        for number in numbers:
            entry = reading.entries.get(frame_name(number))
            if entry is not None:
                self.assertEqual(unpack_frame(entry).data, content(number))
                found.add(number)
        return found

    def fence(self) -> bytes:
        """The instance's present fence."""
        fence = self.now(self.cache.get_many(INSTANCE, [])).fence
        assert fence is not None
        return fence

    def now(self, coroutine: Any) -> Any:
        """The result of a coroutine that does not wait."""
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def locked(self, fence: Optional[bytes] = None) -> bool:
        """Whether somebody holds the instance's lock."""
        name = LOCK + (fence or self.fence())
        taken = self.now(self.cache.claim(INSTANCE, [name], b"test", 0.001))
        if taken:
            self.now(self.cache.unclaim(INSTANCE, [name], b"test"))
        return not taken

    @contextlib.contextmanager
    def held_lock(self, before: bool) -> Iterator[Deferred[None]]:
        """Locks asked for in the block are taken once the given Deferred fires; not *before*: taken at once, answered then."""
        real, gate = self.cache.claim, Deferred[None]()

        async def held(instance: Instance, names: Sequence[bytes], *rest: Any) -> set[bytes]:
            if not names[0].startswith(LOCK):
                return await real(instance, names, *rest)
            if before:
                await gate
            taken = await real(instance, names, *rest)
            if not before:
                await gate
            return taken

        self.patch(self.cache, "claim", held)
        yield gate
        self.patch(self.cache, "claim", real)

    def events(self) -> list[dict[str, Any]]:
        """What is logged from now on."""
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        return events

    def running(self, worker: Worker) -> list[JobKind]:
        return [job.kind for job in worker.jobs.running]

    def ended(self, worker: Worker) -> list[dict[str, Any]]:
        return worker.jobs.status()["ended"]

    def count(self, worker: Worker, family: str, *labels: str) -> float:
        """What a counter of the worker says."""
        rows = worker.metrics.snapshot().get(family, [])
        return sum(row[1][0] for row in rows if list(row[0]) == list(labels))
