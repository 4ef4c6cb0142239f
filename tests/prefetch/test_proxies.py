"""Prefetching by whole proxies, as they are started: ends of every kind, several at once, callers who notice nothing."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import psutil
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from tests.cache.support import ask, until
from tests.clients import Answer, client
from tests.dicomweb.support import ProxyCase
from tests.prefetch.real import HALF, SIDE, TOKEN, RealCase, absolute
from tests.running import Proxy, Store, signals
from tests.slides import slide
from tests.waiting import wait_until, within
from twistedproxy.cache.address import LocalAddress
from twistedproxy.cache.lease import LEASE_SECONDS
from twistedproxy.prefetch.ahead.surroundings import RING
from twistedproxy.system.tuning import freeze_gc

AS_STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
STALL_SECONDS = 0.05
PATIENCE = 60.0  # seconds to the end of a lease: it lasts for a sixth of that


def kill_at_once(processes: Sequence[psutil.Process]) -> None:
    """Kill *processes*, none of which sees the end of another."""
    for process in processes:
        process.suspend()
    for process in processes:
        process.kill()


class ProxyTests(RealCase):
    """Proxies of their own processes on one Redis server."""

    async def setUpAll(self, *options: str, proxies: int = 1) -> None:
        self.redis_server = await self.redis()
        self.held = self.store(SIDE)
        self.worker_beside = await self.worker(socket=self.redis_server.socket)
        more = ["--block-pixels", "256", "--prefetch-min-frames", "2", "--whole-instance-max-cpu", "100"]
        cache = f"unix:{self.redis_server.socket}"
        self.proxies = []
        for _ in range(proxies):
            proxy = await Proxy.started(
                *("--log-format", "json"),
                "--origin", f"/dicomweb={self.held.url}", "--cache", cache, *more, "--whole-instance-max-memory", "100",
                *options,
            )  # fmt: skip
            self.addCleanup(proxy.remove)
            self.proxies.append(proxy)

    async def get(self, proxy: Proxy, number: int) -> None:
        """Get a frame, which must be the right one."""
        asking = client(self, f"{proxy.url}/dicomweb", HEADERS)
        answer = await within(asking.frames(self.slide.resource, [number], AS_STORED))
        self.assertEqual(answer.frames(), [self.frames[number - 1]])

    def instances(self) -> int:
        """How often the store was asked for the whole instance."""
        return len([seen for seen in self.held.requests if seen.path.endswith(self.slide.sop)])

    async def wait_for_all(self) -> None:
        cached = [0]

        async def look() -> None:
            cached[0] = await self.cached(self.worker_beside)

        loop = LoopingCall(look)
        loop.start(0.02)
        try:
            await wait_until(lambda: cached[0] == len(self.frames), "all frames in the cache")
        finally:
            loop.stop()

    async def half(self, proxy: Proxy) -> Any:
        """A load in its middle."""
        gate = self.held.hold(lambda seen: seen.path.endswith(self.slide.sop), after=HALF)
        await wait_until(lambda: len(proxy.family()) > 1, "a child")
        await self.get(proxy, 1)
        await within(gate.reached())
        return gate

    async def test_two_proxies(self) -> None:
        """Two proxies on one server, triggered at once: the instance is loaded once, and both serve all of it."""
        await self.setUpAll(proxies=2)
        await gatherResults([ensureDeferred(self.get(proxy, 3)) for proxy in self.proxies])
        await self.wait_for_all()
        self.assertEqual(self.instances(), 1)
        before = len(self.held.seen("/frames/"))
        for proxy in self.proxies:
            await self.get(proxy, 200)
        self.assertEqual(len(self.held.seen("/frames/")), before)

    async def test_killed(self) -> None:
        """Killed in mid-load: no process is left, the lock runs out in seconds, and then another proxy loads."""
        await self.setUpAll(proxies=2)
        gate = await self.half(self.proxies[0])
        proxy = self.proxies[0]
        (lock,) = await ask(self.redis_server.socket, b"KEYS", b"*load*")
        self.assertIn(await ask(self.redis_server.socket, b"PTTL", lock), range(1, round(LEASE_SECONDS * 1000) + 1))
        await deferToThread(proxy.kill)
        await wait_until(lambda: not proxy.strays(), "the end of all processes")
        gate.release()

        async def free() -> bool:
            return not await self.locked(self.worker_beside)

        await until(free, "the end of the lease", PATIENCE)
        await self.get(self.proxies[1], 99)
        await self.wait_for_all()

    async def test_host_died(self) -> None:
        """Killed with its loader, which could remove nothing: another proxy, which was refused the lock, loads all anew within
        seconds, and nothing of the half is given any more."""
        await self.setUpAll(proxies=2)
        gate = await self.half(self.proxies[0])

        async def written() -> bool:
            return await self.cached(self.worker_beside) > 50  # a batch may wait for more

        await until(written, "frames in the cache")
        half = await self.fence()
        kill_at_once(self.proxies[0].family())
        await wait_until(lambda: not self.proxies[0].strays(), "the end of all processes")
        gate.release()
        self.assertGreater(await self.cached(self.worker_beside), 50)
        successor = self.proxies[1]
        await self.get(successor, len(self.frames))
        await wait_until(lambda: successor.logged("load_left"), "another load", PATIENCE)
        await self.wait_for_all()
        self.assertEqual(self.instances(), 2)
        self.assertNotEqual(await self.fence(), half)

    async def fence(self) -> Any:
        """The fence of the instance now."""
        return (await self.worker_beside.cache.get_many(self.instance, [])).fence

    async def test_terminated(self) -> None:
        """Stopped in mid-load: the lock is given back, the frames are taken back, no process is left, nothing is
        complained of."""
        await self.setUpAll("--stop-deadline", "2")
        (proxy,) = self.proxies
        gate = await self.half(proxy)
        await deferToThread(proxy.stop)
        self.assertEqual(proxy.strays(), [])
        self.assertLessEqual(
            await self.cached(self.worker_beside), (RING + 1) ** 2
        )  # those around the first frame stay
        self.assertFalse(await self.locked(self.worker_beside))
        self.assertNotIn("Unhandled", proxy.output())
        self.assertNotIn("Traceback", proxy.output())
        self.assertIn("stopped", [event["result"] for event in proxy.logged("job_ended")])
        self.assertNotIn(TOKEN, proxy.output())
        gate.release()

    async def test_interrupted(self) -> None:
        """Ctrl-C, which reaches the child too, ends both in order."""
        # A shell has what it starts in the background ignore the signal, and children inherit that.
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        await self.setUpAll("--stop-deadline", "2")
        (proxy,) = self.proxies
        gate = await self.half(proxy)

        def up() -> bool:
            children = proxy.family()[1:]
            return len(children) == 2 and all(signal.SIGINT in signals(child.pid, "SigIgn") for child in children)

        await wait_until(up, "a loader and a renderer that have come up")
        for process in reversed(proxy.family()):
            process.send_signal(signal.SIGINT)
        await wait_until(lambda: not proxy.running(), "the proxy's end")
        self.assertEqual(proxy.strays(), [])
        self.assertFalse(await self.locked(self.worker_beside))
        self.assertNotIn("Traceback", proxy.output())
        gate.release()

    async def test_stopped_at_once(self) -> None:
        """Stopped as soon as it is there, its child still starting: nothing is left or complained of."""
        await self.setUpAll("--stop-deadline", "2")
        (proxy,) = self.proxies
        await deferToThread(proxy.stop)
        self.assertEqual(proxy.strays(), [])
        self.assertNotIn("Unhandled", proxy.output())
        self.assertNotIn("Traceback", proxy.output())

    async def test_child_killed(self) -> None:
        """A proxy whose child is killed in mid-load goes on, and loads with another."""
        await self.setUpAll()
        (proxy,) = self.proxies
        gate = await self.half(proxy)
        child = next(one for one in proxy.family() if "twistedproxy.prefetch.loader_main" in one.cmdline())
        child.kill()
        gate.release()
        failed = lambda: [event for event in proxy.logged("job_ended") if event["result"] == "failed"]  # noqa: E731
        await wait_until(failed, "the failure in the log")
        self.assertTrue(failed()[0]["instance"].endswith(self.slide.sop))
        await self.get(proxy, 77)
        await self.wait_for_all()


class WorkerTests(RealCase):
    """Workers of one proxy, on a local cache."""

    async def test_killed(self) -> None:
        """A worker is killed in mid-load: the other, or its successor, loads all anew, and no half is left."""
        side = 32
        held = self.store(side)
        gate = held.hold(lambda seen: seen.path.endswith(self.slide.sop), after=HALF)
        proxy = await Proxy.started(
            *(
                "--log-format",
                "json",
                "--origin",
                f"/dicomweb={held.url}",
                "--cache",
                "local?size=64M",
                "--workers",
                "2",
            ),
            *("--block-pixels", "256", "--prefetch-min-frames", "2"),
            *("--whole-instance-max-cpu", "100", "--whole-instance-max-memory", "100"),
        )
        self.addCleanup(proxy.remove)
        # Each far from the others, so that it is not loaded ahead of its request.
        missing = iter(row * side + column for row in (30, 23, 16, 9) for column in (4, 12, 20, 28))

        async def get(*numbers: int) -> Answer:
            asking = client(self, f"{proxy.url}/dicomweb", HEADERS, persistent=False)
            answer = await within(asking.frames(self.slide.resource, numbers, AS_STORED))
            self.assertTrue(answer.frames() == [self.frames[number - 1] for number in numbers], numbers)
            return answer

        def loaders() -> list[psutil.Process]:
            return [one for one in proxy.family() if "twistedproxy.prefetch.loader_main" in one.cmdline()]

        await wait_until(lambda: len(loaders()) == 2, "the loaders")
        await get(next(missing))
        await within(gate.reached())
        asking = client(self, proxy.url)

        async def written() -> bool:
            jobs = (await asking.get("/status.json")).json()["jobs"]["running"]
            return any(job["frames"] > 100 for job in jobs)

        await until(written, "frames in the cache")
        port = int(held.url.rpartition(":")[2].partition("/")[0])
        (loading,) = [one for one in loaders() if any(c.raddr and c.raddr.port == port for c in one.net_connections())]
        await get(next(missing))  # of the other worker, maybe
        kill_at_once([psutil.Process(loading.ppid()), loading])
        await wait_until(lambda: not loading.is_running(), "the end of the loader")
        gate.release()

        async def taken_over() -> bool:
            await get(next(missing, 1))
            return bool(proxy.logged("load_left"))

        await until(taken_over, "another load", PATIENCE, pause=0.5)

        async def complete() -> bool:
            batches = [range(first, first + 128) for first in range(1, len(self.frames), 128)]
            answers = [await get(*batch) for batch in batches]
            return {answer.headers["cache-status"] for answer in answers} == {"twistedproxy; hit"}

        def loads() -> int:
            return len([seen for seen in held.requests if seen.path.endswith(self.slide.sop)])

        await wait_until(lambda: loads() > 1, "another load's request")
        await until(complete, "all frames in the cache")
        self.assertEqual(loads(), 2)


class NoCacheTests(RealCase):
    """``--cache none``."""

    async def test_said(self) -> None:
        """Nothing is prefetched, and the log says so and why."""
        store = self.store(4)
        proxy = await Proxy.started("--origin", f"/dicomweb={store.url}", "--cache", "none", "--log-format", "json")
        self.addCleanup(proxy.remove)
        asking = client(self, f"{proxy.url}/dicomweb", HEADERS)
        await asking.frames(self.slide.resource, [1], AS_STORED)
        self.assertEqual([seen for seen in store.requests if seen.path.endswith(self.slide.sop)], [])
        self.assertEqual(["no-cache"], [event["reason"] for event in proxy.logged("prefetch_off")])
        self.assertEqual(len(proxy.family()), 1)


class StallTests(ProxyCase):
    """While an instance loads, nobody waits for the reactor."""

    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        freeze_gc()  # as a proxy does at its start: here it would be what all other tests have loaded, too
        self.addCleanup(gc.unfreeze)

    async def stall(self, **settings: Any) -> float:
        """The most seconds of work (of this process, so that a busy machine makes no difference) between two turns of
        the reactor while an instance of 10 MB loads."""
        made = slide(absolute(self.mktemp()), 34, 34)
        outside = Store(str(made.path))
        self.addCleanup(outside.remove)
        url = await deferToThread(outside.wait_until_ready)
        self.frames = made.stored_frames()
        whole = {"prefetch": True, "whole_instance_max_cpu": 100.0, "whole_instance_max_memory": 100.0, **settings}

        elsewhere: Any = SimpleNamespace(url=url)  # all that is asked of a store here
        proxy = await self.proxy(elsewhere, **whole)
        worst = [0.0]
        last = [time.process_time()]

        def tick() -> None:
            now = time.process_time()
            worst[0] = max(worst[0], now - last[0])
            last[0] = now

        asking = proxy.client()
        await asking.frames(made.resource, [1], AS_STORED)
        loop = LoopingCall(tick)
        loop.start(0.001)
        try:
            await within(proxy.components.scheduler.drain())
        finally:
            loop.stop()
        ended = proxy.components.jobs.status()["ended"]
        self.assertEqual([(job["result"], job["frames"]) for job in ended if job["kind"] == "whole"],
                         [("done", len(self.frames))])  # fmt: skip
        answer = await asking.frames(made.resource, [2, 500, len(self.frames)], AS_STORED)
        self.assertEqual(answer.frames(), [self.frames[1], self.frames[499], self.frames[-1]])
        return worst[0]

    async def test_in_process(self) -> None:
        """In this process, into the in-process cache, a load works in turns that nobody notices."""
        self.assertLess(await self.stall(), STALL_SECONDS)

    async def test_child(self) -> None:
        """A child's load and the display load beside it take the reactor no longer either."""
        stall = await self.stall(cache=LocalAddress(None, 64 << 20), block_pixels=1000, display_min_frames=100)
        self.assertLess(stall, STALL_SECONDS)
