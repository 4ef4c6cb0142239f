"""Prefetching for real: a Redis server, a simulated store, loader children; all end with the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import attrs
import psutil
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.cache.support import RunningServer, alive, any_server
from tests.slides import Made, slide
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until, within
from twistedproxy.cache.address import UnixAddress
from twistedproxy.cache.redis.cache import RedisCache
from twistedproxy.cache.redis.open import redis_cache
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.access import Access
from twistedproxy.frames.entries import frame_name
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.frames.read_through import FrameAnswer, FrameReader, FrameRequest
from twistedproxy.origin.http.origin import HTTPOrigin
from twistedproxy.origin.interface import Caller
from twistedproxy.prefetch.jobs import JobBook
from twistedproxy.prefetch.loaders import MODULE, ChildLoader, InProcessLoader
from twistedproxy.prefetch.scheduler import Scheduler
from twistedproxy.settings import Settings
from twistedproxy.system.caller_demand import Demand
from twistedproxy.system.machine_load import SystemLoad
from twistedproxy.system.metrics import Metrics

TOKEN = "d41f6e0c-alice-token"
SIDE = 16  # frames: 256 of 8.7 kB, some batches
HALF = 1_300_000  # bytes: two batches and more are in the cache then


@attrs.define(eq=False)
class Worker:
    """One worker with a child of its own."""

    cache: RedisCache
    reader: FrameReader
    scheduler: Scheduler
    jobs: JobBook
    children: ChildLoader
    origin: HTTPOrigin
    invalidation: Invalidation

    async def stop(self) -> None:
        await self.scheduler.stop()
        await self.children.stop()
        self.invalidation.stop()
        await self.origin.stop()
        await self.cache.stop()

    async def child(self) -> int:
        """The child's process, once it is ready."""
        await wait_until(lambda: self.children.pids, "a child")
        return self.children.pids[0]


class RealCase(TestCase):
    """A store with one slide, a Redis server, and workers."""

    timeout = 120

    async def redis(self, *arguments: str) -> RunningServer:
        """A server of the test's own."""
        server = await RunningServer(any_server(), "--port", "0", *arguments).start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        return server

    def store(self, side: int = SIDE, made: Optional[Made] = None, **options: Any) -> SimulatedStore:
        """A store that holds a slide."""
        from twisted.internet import reactor

        self.slide = made or slide(self.mktemp(), side, side)
        self.frames = self.slide.stored_frames()
        store = SimulatedStore(reactor, instances=[self.slide.path], **options).start()
        store.allow(TOKEN)
        self.addCleanup(lambda: Deferred.fromCoroutine(store.stop()))
        self.url = store.url
        self.instance = Instance(store.url, "", self.slide.study, self.slide.series, self.slide.sop)
        return store

    async def worker(
        self, cache: Optional[RedisCache] = None, socket: str = "", module: str = MODULE, **settings: Any
    ) -> Worker:
        """A worker with a child; instances of two frames and more are loaded whole, by the child."""
        from twisted.internet import reactor

        given = {
            "block_pixels": 256,
            "prefetch_min_frames": 2,
            "display_min_frames": 1 << 20,
            "whole_instance_max_cpu": 100.0,
            "whole_instance_max_memory": 100.0,
            "origin_stall_timeout": 10.0,
            **settings,
        }
        chosen = Settings(**given)
        cache = cache or redis_cache(reactor, UnixAddress(socket))
        await cache.start()
        metrics = Metrics()
        access = Access(cache, reactor.seconds, 600.0)  # type: ignore[attr-defined]
        invalidation = Invalidation(cache, access.grants, reactor)
        reader = FrameReader(cache, access, invalidation, 3600.0, 1 << 28)
        jobs = JobBook(reactor, metrics, 60.0)
        demand = Demand(reactor, metrics.answered_from_cache, 2.0)
        children = ChildLoader(reactor, cache, chosen, metrics, demand, module)
        scheduler = Scheduler(
            chosen,
            cache,
            reader,
            metrics,
            reactor,
            jobs,
            lambda: SystemLoad(),
            InProcessLoader(cache, reactor),
            children,
        )
        reader.answered = scheduler.answered
        reader.refused = scheduler.refused
        origin = HTTPOrigin(reactor, self.url, chosen)
        worker = Worker(cache, reader, scheduler, jobs, children, origin, invalidation)
        self.addCleanup(lambda: Deferred.fromCoroutine(worker.stop()))
        children.start()
        return worker

    caller = Caller(b"alice", ((b"Authorization", b"Bearer " + TOKEN.encode()),), b"access_token=in-the-query")

    async def ask(self, worker: Worker, *numbers: int) -> FrameAnswer:
        """Ask for frames; they must be the slide's."""
        wanted = FrameRequest(worker.origin, self.instance, numbers, self.caller)
        answer = await within(worker.reader.read(wanted))  # type: ignore[arg-type]
        self.assertEqual([frame.data for frame in answer.frames], [self.frames[number - 1] for number in numbers])
        return answer

    async def cached(self, worker: Worker) -> int:
        """How many frames are in the cache."""
        names = [frame_name(number) for number in range(1, len(self.frames) + 1)]
        return len(await worker.cache.present(self.instance, names))

    async def locked(self, worker: Worker) -> bool:
        """Whether somebody holds the instance's lock."""
        fence = (await worker.cache.get_many(self.instance, [])).fence
        assert fence is not None
        taken = await worker.cache.claim(self.instance, [b"load" + fence], b"test", 0.001)
        await worker.cache.unclaim(self.instance, [b"load" + fence], b"test")
        return not taken

    async def complete(self, worker: Worker) -> None:
        """Every frame comes from the cache."""
        self.assertEqual(await self.cached(worker), len(self.frames))
        for first in range(1, len(self.frames) + 1, 400):
            numbers = range(first, min(first + 400, len(self.frames) + 1))
            self.assertEqual((await self.ask(worker, *numbers)).cached, len(numbers))

    async def ended(self, worker: Worker, count: int = 1) -> dict[str, Any]:
        """The last of *count* ended jobs."""
        await wait_until(lambda: len(worker.jobs.status()["ended"]) >= count, "the end of a job")
        return worker.jobs.status()["ended"][-1]


def absolute(path: Path | str) -> str:
    """The path for a process in another folder."""
    return str(Path(path).absolute())


def gone(pid: int) -> bool:
    """Whether a process is no more."""
    return not alive(pid)


def peak(pid: int) -> int:
    """Bytes of memory that a process had at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def said_outside(pid: int) -> str:
    """A process's command line and environment."""
    process = psutil.Process(pid)
    return " ".join([*process.cmdline(), *(f"{name}={value}" for name, value in process.environ().items())])
