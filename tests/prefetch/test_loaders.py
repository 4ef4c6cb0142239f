"""Whole-instance loads in real child processes, and what may befall them."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from tests.cache.support import ask
from tests.dicomweb.support import logged
from tests.prefetch.real import HALF, TOKEN, RealCase, Worker, absolute, gone, peak, said_outside
from tests.slides import slide
from tests.stores import faults
from tests.stores.faults import Reset, number_of_frames, server_error
from tests.waiting import wait_until, within
from twistedproxy.cache.redis.cache import RedisCache
from twistedproxy.frames.entries import frame_name
from twistedproxy.origin.interface import Caller
from twistedproxy.prefetch import instance_load, loaders
from twistedproxy.processes.child import ChildProcess, StartFailed
from twistedproxy.processes.messages import CONTROL_IN
from twistedproxy.system.caller_demand import DemandLevel

MIB = 1 << 20


class ChildCase(RealCase):
    """Helpers."""

    async def progress(self, worker: Worker) -> None:
        """Return once the running load has frames in the cache."""
        (job,) = worker.jobs.running
        await wait_until(lambda: job.frames > 50 or job.result is not None, "progress")
        self.assertIsNone(job.result, job.reason)


class LoadTests(ChildCase):
    """A child brings an instance into the cache."""

    async def test_whole(self) -> None:
        """One request to the origin brings all frames; they are served with the origin stopped."""
        store = self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        await worker.child()
        self.assertEqual((await self.ask(worker, 7)).fetched, 1)
        job = await self.ended(worker)
        self.assertEqual((job["result"], job["frames"], job["bytes"]), ("done", 256, sum(map(len, self.frames))))
        (seen,) = [seen for seen in store.requests if seen.path.endswith(self.slide.sop)]
        self.assertEqual(seen.query, "access_token=in-the-query")
        await store.stop()
        await self.complete(worker)
        instances = [seen for seen in store.requests if seen.path.endswith(self.slide.sop)]
        self.assertEqual(len(instances), 1)
        self.assertEqual(instances[0].header("Authorization"), f"Bearer {TOKEN}")

    async def test_rests(self) -> None:
        """While callers want much, a child's loads rest after each chunk, and all frames come nonetheless."""
        self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        await worker.child()
        self.patch(instance_load, "REST_SECONDS", dict.fromkeys(DemandLevel, 0.02))
        for hears in worker.children.demand.changed:
            hears()
        began = time.monotonic()
        await self.ask(worker, 7)
        await self.ended(worker)
        chunks = sum(map(len, self.frames)) // 65536
        self.assertGreater(chunks, 20)
        self.assertGreaterEqual(time.monotonic() - began, chunks * 0.02)
        await self.complete(worker)

    async def test_formats(self) -> None:
        """Native, JPEG 2000, JPEG-LS, RLE and HTJ2K: all frames from the cache equal pydicom's, the origin stopped."""
        server = await self.redis()
        for encoding in ("raw", "raw-16", "jpeg2000", "jpegls", "rle", "htj2k", "jpegxl"):
            store = self.store(made=slide(self.mktemp(), 3, 4, 64, encoding))
            worker = await self.worker(socket=server.socket, block_pixels=64)
            await self.ask(worker, 1)
            self.assertEqual((await self.ended(worker))["result"], "done")
            await store.stop()
            await self.complete(worker)

    async def test_served_meanwhile(self) -> None:
        """Frames are served from the cache while the rest is on its way, and the job says how far it is."""
        store = self.store()
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=HALF)
        worker = await self.worker(socket=(await self.redis()).socket)
        await self.ask(worker, 1)
        await within(gate.reached())
        await self.progress(worker)
        self.assertEqual((await self.ask(worker, 2, 50)).cached, 2)
        gate.release()
        self.assertEqual((await self.ended(worker))["result"], "done")
        await self.complete(worker)

    async def test_local_file(self) -> None:
        """An origin that keeps the file on this machine is not asked for it: the child reads it."""
        store = self.store()
        worker = await self.worker(socket=(await self.redis()).socket)

        path = absolute(self.slide.path)

        async def local_file(_instance: object) -> str:
            return path

        self.patch(worker.origin, "local_file", local_file)
        await self.ask(worker, 1)
        self.assertEqual((await self.ended(worker))["result"], "done")
        self.assertEqual([seen for seen in store.requests if seen.path.endswith(self.slide.sop)], [])
        await self.complete(worker)
        self.slide.path.unlink()
        await worker.cache.invalidate(self.instance.scope)
        await self.ask(worker, 1)
        self.assertIn("can't be read", (await self.ended(worker, 2))["reason"])

    async def test_secrets(self) -> None:
        """Neither headers nor addresses are in the child's command line or environment; options of ours aren't."""
        store = self.store()
        self.patch(os, "environ", {**os.environ, "TWISTEDPROXY_CACHE": "redis://:secret-word@host/0"})
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop))
        server = await self.redis()
        worker = await self.worker(socket=server.socket)
        child = await worker.child()
        await self.ask(worker, 1)
        await within(gate.reached())
        said = said_outside(child)
        for secret in (TOKEN, store.url, server.socket, "secret-word", self.slide.sop):
            self.assertNotIn(secret, said)
        gate.release()
        await self.ended(worker)

    async def test_two_workers_at_once(self) -> None:
        """Of two workers on one server, both triggered at once, one loads the instance: once."""
        store = self.store()
        server = await self.redis()
        workers = [await self.worker(socket=server.socket) for _ in range(2)]
        for worker in workers:
            await worker.child()
        await gatherResults([Deferred.fromCoroutine(self.ask(worker, 3)) for worker in workers])
        await wait_until(lambda: sum(len(worker.jobs.status()["ended"]) for worker in workers), "a load")
        for worker in workers:
            await worker.scheduler.drain()
        self.assertEqual(sum(len(worker.jobs.status()["ended"]) for worker in workers), 1)
        self.assertEqual(len([seen for seen in store.requests if seen.path.endswith(self.slide.sop)]), 1)
        await self.complete(workers[0])

    async def test_flat_memory(self) -> None:
        """A larger instance takes the child no more memory than a small one."""
        server = await self.redis()
        peaks = []
        for side in (32, 64):
            self.store(side)
            worker = await self.worker(socket=server.socket)
            child = await worker.child()
            await self.ask(worker, 1)
            self.assertEqual((await self.ended(worker))["result"], "done")
            peaks.append(peak(child))
        self.assertLess(peaks[1], 100 * MIB)
        self.assertLess(peaks[1] - peaks[0], 10 * MIB)

    async def test_slow_cache(self) -> None:
        """A cache slower than the origin slows the origin down; neither memory nor what is on its way grows."""
        store = self.store(64)
        server = await self.redis()
        worker = await self.worker(socket=server.socket)
        child = await worker.child()
        await self.slow(store, server, worker)
        self.assertEqual((await self.ended(worker))["result"], "done")
        self.assertLess(peak(child), 100 * MIB)
        await self.complete(worker)

    async def slow(self, store: Any, server: Any, worker: Any) -> None:
        """Trigger a load in whose middle the cache's server stands still until the origin does, too."""
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=MIB)
        await self.ask(worker, 1)
        await within(gate.reached())
        server.signal(signal.SIGSTOP)
        gate.release()
        looks: deque[int] = deque([0], maxlen=50)

        def stands_still() -> bool:
            looks.append(gate.waiting[0].sent)
            return looks[0] == looks[-1] > MIB

        await wait_until(stands_still, "the origin waits")
        self.assertLess(gate.waiting[0].sent, 25 * MIB)
        server.signal(signal.SIGCONT)


class FaultTests(ChildCase):
    """Each fault leaves a working system with correct frames."""

    async def half(self, worker: Any, store: Any) -> Any:
        """A load that stands in its middle, with frames in the cache; the gate that holds it."""
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=HALF)
        await worker.child()
        await self.ask(worker, 1)
        await within(gate.reached())
        await self.progress(worker)
        self.assertGreater(await self.cached(worker), 50)
        return gate

    async def failed(self, worker: Any, what: str, result: str = "failed") -> None:
        """The load ended so; nothing of it is left, its lock neither."""
        job = await self.ended(worker)
        self.assertEqual((job["result"], job["kind"], job["instance"]), (result, "whole", self.instance.path))
        self.assertIn(what, job["reason"])
        await worker.scheduler.drain()
        self.assertLessEqual(await self.cached(worker), 1)  # what the caller got for itself may be there
        self.assertFalse(await self.locked(worker))

    async def works_again(self, worker: Any) -> None:
        """The next request is answered, and the instance is loaded."""
        await self.ask(worker, 100)
        self.assertEqual((await self.ended(worker, 2))["result"], "done")
        await self.complete(worker)

    async def test_no_instance_resource(self) -> None:
        """A child says that the store gives no instances; blocks are loaded from then on."""
        store = self.store()
        store.fail(faults.Answer(404), lambda seen: seen.path.endswith(self.slide.sop), times=None)
        worker = await self.worker(socket=(await self.redis()).socket)
        await worker.child()
        await self.ask(worker, 1)
        await self.failed(worker, "404")
        self.assertTrue(worker.scheduler.loads.unloadable(self.instance, self.caller))
        other = Caller(b"bob")
        self.assertFalse(worker.scheduler.loads.unloadable(self.instance, other), "it says nothing of other callers")

    async def test_child_killed(self) -> None:
        """The child is killed in mid-load: what it wrote is gone, another child comes, the next load works."""
        store = self.store()
        server = await self.redis()
        worker = await self.worker(socket=server.socket)
        heard: list[object] = []
        worker.invalidation.also.append(heard.append)
        gate = await self.half(worker, store)
        child = await worker.child()
        os.kill(child, signal.SIGKILL)
        await self.failed(worker, "the loader process exited")
        self.assertEqual(heard, [self.instance.scope], "hot responses, too, must not have what nobody vouches for")
        left = await ask(server.socket, b"KEYS", b"tpf*")
        frames = [key for key in left if key.partition(b"}")[2].startswith(frame_name(1)[:1])]
        self.assertLessEqual(len(frames), 1, "what nobody can see takes memory")
        gate.release()
        self.assertNotEqual(await worker.child(), child)
        await self.works_again(worker)

    async def test_origin_resets(self) -> None:
        """The origin resets the connection in mid-stream."""
        store = self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        store.fail(Reset(HALF), lambda seen: seen.path.endswith(self.slide.sop))
        await self.ask(worker, 1)
        await self.failed(worker, "cut off")
        await self.works_again(worker)

    async def test_origin_refuses(self) -> None:
        """The origin refuses the whole instance."""
        store = self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        store.fail(server_error(), lambda seen: seen.path.endswith(self.slide.sop), times=None)
        await self.ask(worker, 1)
        job = await self.ended(worker)
        self.assertEqual((job["result"], job["reason"]), ("failed", "the origin answered 500"))
        store.heal()
        await self.works_again(worker)

    async def test_wrong_number_of_frames(self) -> None:
        """Metadata and file differ in NumberOfFrames."""
        store = self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        store.fail(number_of_frames(200), "/metadata")
        await self.ask(worker, 1)
        job = await self.ended(worker)
        self.assertEqual(job["reason"], "the file has 256 frames, its metadata say 200")
        self.assertLessEqual(await self.cached(worker), 1)
        self.assertFalse(await self.locked(worker))

    async def test_cache_full(self) -> None:
        """The cache is full and evicts nothing: the load ends and makes room again."""
        store = self.store(40)
        server = await self.redis("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
        worker = await self.worker(socket=server.socket)
        await worker.child()
        await self.ask(worker, 1)
        await self.failed(worker, "the cache did not take the frames")
        self.assertEqual((await self.ask(worker, 5)).fetched, 1)
        self.assertEqual((await self.ask(worker, 5)).cached, 1)
        self.assertGreater(len(store.requests), 3)

    async def test_cache_killed(self) -> None:
        """The cache's server is killed in mid-load: when it is there again, the child finds it."""
        store = self.store()
        server = await self.redis()
        worker = await self.worker(socket=server.socket)
        gate = await self.half(worker, store)
        child = await worker.child()
        await server.kill()
        gate.release()
        job = await self.ended(worker)
        self.assertEqual(job["result"], "failed")
        await server.start()
        assert isinstance(worker.cache, RedisCache)
        await worker.cache.wait_up(10.0)

        async def loaded() -> bool:
            await self.ask(worker, 9)
            await worker.scheduler.drain()
            return worker.jobs.status()["ended"][-1]["result"] == "done"

        while not await loaded():  # until the child has found the server, loads fail
            await worker.cache.invalidate(self.instance.scope)
        self.assertEqual(await worker.child(), child)
        await self.complete(worker)

    async def test_stopped(self) -> None:
        """Stopped in mid-load: the frames are taken back, the lock is given back, the child ends."""
        store = self.store()
        server = await self.redis()
        other = await self.worker(socket=server.socket)
        worker = await self.worker(socket=server.socket)
        gate = await self.half(worker, store)
        child = await worker.child()
        await within(worker.scheduler.stop())
        await self.failed(worker, "stopped", "stopped")
        await within(worker.children.stop())
        self.assertTrue(gone(child))
        gate.release()
        await self.ask(other, 2)
        self.assertEqual((await self.ended(other))["result"], "done")

    async def test_stopped_with_a_child_that_hangs(self) -> None:
        """A child that does not answer is killed at the deadline, and the instance is forgotten."""
        self.patch(loaders, "STOP_SECONDS", 0.3)
        store = self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        await self.half(worker, store)
        child = await worker.child()
        os.kill(child, signal.SIGSTOP)
        await within(worker.scheduler.stop())
        await self.failed(worker, "did not clean up")
        await wait_until(lambda: gone(child), "the child's end")

    async def test_proxy_gone(self) -> None:
        """A child whose pipe ends takes back what is half loaded, and ends."""
        store = self.store()
        server = await self.redis()
        looker = await self.worker(socket=server.socket)
        worker = await self.worker(socket=server.socket)
        await self.half(worker, store)
        child = await worker.child()
        kept = worker.children._kept
        kept._stopped = True  # no other child
        assert kept.child is not None and kept.child.transport is not None
        kept.child.transport.closeChildFD(CONTROL_IN)  # type: ignore[attr-defined]
        await wait_until(lambda: gone(child), "the child's end")
        self.assertEqual(await self.cached(looker), 0)


class StartTests(RealCase):
    """Children that don't start."""

    async def test_started_early_and_used_again(self) -> None:
        """A child is there before the first load, and the second load is the same child's."""
        self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        child = await worker.child()
        for count in (1, 2):
            await self.ask(worker, 1)
            await self.ended(worker, count)
            await worker.cache.invalidate(self.instance.scope)
        self.assertEqual(worker.children.pids, [child])

    async def test_broken(self) -> None:
        """Where no child can be started, loads fail with a reason, and frames are answered."""
        self.patch(loaders, "CHILD_SECONDS", 0.1)
        self.store()
        worker = await self.worker(socket=(await self.redis()).socket, module="twistedproxy.prefetch.no_such_module")
        await self.ask(worker, 1)
        job = await self.ended(worker)
        self.assertEqual((job["result"], job["reason"]), ("failed", "the loader process could not be started"))
        self.assertFalse(await self.locked(worker))
        self.assertEqual((await self.ask(worker, 2)).fetched, 1)
        await within(worker.scheduler.stop())
        await within(worker.children.stop())

    async def test_spawning_fails(self) -> None:
        """A machine that starts no process more does not end the proxy's trying."""
        failed: list[str] = []
        spawn = loaders.ChildProcess.spawn

        def scarce(child: ChildProcess, module: str) -> None:
            if not failed:
                failed.append(module)
                raise StartFailed("Resource temporarily unavailable")
            spawn(child, module)

        self.patch(loaders.ChildProcess, "spawn", scarce)
        self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        await worker.child()
        self.assertEqual(failed, [loaders.MODULE])

    async def test_a_child_that_hangs(self) -> None:
        """A child that does not get ready in time is killed and replaced."""
        self.patch(loaders, "CONFIGURE_SECONDS", 0.02)
        spawned: list[ChildProcess] = []
        spawn = loaders.ChildProcess.spawn

        def counted(child: ChildProcess, module: str) -> None:
            if spawned:
                self.patch(loaders, "CONFIGURE_SECONDS", 30.0)
            spawned.append(child)
            spawn(child, module)

        self.patch(loaders.ChildProcess, "spawn", counted)
        self.store()
        worker = await self.worker(socket=(await self.redis()).socket)
        child = await worker.child()
        self.assertEqual([one.pid for one in spawned], [None, child])

    async def test_stopped_while_starting(self) -> None:
        """Stopping while a child starts, or while the next try waits, leaves nothing."""
        self.store()
        server = await self.redis()
        worker = await self.worker(socket=server.socket)
        await within(worker.children.stop())
        self.assertEqual(worker.children.pids, [])
        with logged() as events:
            other = await self.worker(socket=server.socket, module="twistedproxy.prefetch.no_such_module")
            await wait_until(
                lambda: [one for one in events if one.get("event") == "loader_failed"], "the first try's end"
            )
        await within(other.children.stop())
