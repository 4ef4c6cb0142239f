"""What a proxy says of its prefetches while they run and after."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.dicomweb.support import ProxyCase, RunningProxy
from tests.slides import slide
from tests.stores.dialects import STANDARD
from tests.stores.faults import Answer
from twistedproxy.dicomweb.status import running_gauges, totals
from twistedproxy.prefetch.jobs import JobKind
from twistedproxy.system.metrics import Metrics, merge

Samples = dict[tuple[str, tuple[str, ...]], float]


class NumberTests(SynchronousTestCase):
    """Numbers of several workers."""

    def test_running(self) -> None:
        """Progress is summed by kind, of every kind, and one that does not run is 0, not missing."""
        job = {"kind": "block", "frames": 3, "total": 10, "bytes": 500}
        gauges = running_gauges([job, {**job, "frames": 4}])
        running = {labels[0]: values[0] for labels, values in gauges["prefetch_jobs_running"]}
        self.assertEqual(running, {kind.value: 2 * (kind is JobKind.BLOCK) for kind in JobKind})
        self.assertEqual(gauges["prefetch_frames_running"][1], [["block"], [7]])
        self.assertEqual(gauges["prefetch_frames_wanted"][1], [["block"], [20]])
        self.assertEqual(gauges["prefetch_bytes_running"][1], [["block"], [1000]])
        every = running_gauges([{**job, "kind": kind.value} for kind in JobKind])
        self.assertEqual({value for _, (value,) in every["prefetch_jobs_running"]}, {1})

    def test_totals(self) -> None:
        """Plans are told by kind and reason, of all workers together."""
        workers = [Metrics(), Metrics()]
        for worker in workers:
            worker.count("prefetch_plans", ("nothing", "too-few-frames"))
            worker.count("prefetch_plans", ("block", "cpu-above-limit"), 2)
            worker.count("prefetch_locks_lost")
            worker.count("prefetch_claims_lost", (), 5)
            worker.set("prefetch_children", 1)
        told = totals(merge(worker.snapshot() for worker in workers))
        self.assertEqual(told["plans"], {"nothing": {"too-few-frames": 2}, "block": {"cpu-above-limit": 4}})
        self.assertEqual((told["locks_lost"], told["claims_lost"], told["children"]), (2, 10, 2))

    def test_nothing_yet(self) -> None:
        """Before anything happened it is 0 already."""
        told = totals(Metrics().snapshot())
        self.assertEqual((told["used"], told["busy"], told["children"], told["plans"]), (0, 0, 0, {}))


class PageTests(ProxyCase):
    """``/status.json`` and ``/metrics`` of a whole proxy."""

    async def test_while_it_runs_and_after(self) -> None:
        """A job under way is seen with its progress, an ended one with result and reason, and what was used of it."""
        store = self.store(STANDARD, slide(self.mktemp(), 3, 4, 64))
        half = len(self.slide.path.read_bytes()) // 2
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=half)
        proxy = await self._proxy(store)
        client = proxy.client()
        await client.frames(self.slide.resource, [1])
        await gate.reached()
        jobs, _ = await self._status(proxy)
        self.assertIn(("whole", 12, None), [(job["kind"], job["total"], job["result"]) for job in jobs["running"]])
        samples = await self._metrics(proxy)
        self.assertEqual(samples["prefetch_jobs_running", ("whole",)], 1)
        self.assertEqual(samples["prefetch_frames_wanted", ("whole",)], 12)
        gate.release()
        await proxy.components.scheduler.drain()
        await client.frames(self.slide.resource, [5, 6])
        jobs, prefetch = await self._status(proxy)
        ended = [(job["frames"], job["result"], job["reason"]) for job in jobs["ended"] if job["kind"] == "whole"]
        self.assertEqual((jobs["running"], ended), ([], [(12, "done", "small-instance")]))
        self.assertEqual((prefetch["ended"]["whole"], prefetch["frames"]["whole"]), ({"done": 1}, 12))
        self.assertEqual(prefetch["plans"], {"small": {"small-instance": 1}})
        samples = await self._metrics(proxy)
        self.assertEqual(samples["prefetch_plans_total", ("small", "small-instance")], 1)
        self.assertEqual(samples["prefetch_jobs_total", ("whole", "done")], 1)
        self.assertEqual(samples["prefetch_frames_total", ("whole",)], 12)
        self.assertEqual((samples["prefetch_frames_used_total", ()], prefetch["used"]), (2, 2))
        for name in ("prefetch_locks_lost_total", "prefetch_claims_lost_total", "prefetch_children"):
            self.assertEqual(samples[name, ()], 0)

    async def test_failed(self) -> None:
        """A load that failed says why."""
        store = self.store(STANDARD, slide(self.mktemp(), 3, 4, 64))
        store.fail(Answer(500), lambda seen: seen.path.endswith(self.slide.sop), times=None)
        proxy = await self._proxy(store)
        await proxy.client().frames(self.slide.resource, [1])
        await proxy.components.scheduler.drain()
        jobs, prefetch = await self._status(proxy)
        (job,) = [job for job in jobs["ended"] if job["kind"] == "whole"]
        self.assertEqual(job["result"], "failed")
        self.assertIn("500", job["reason"])
        self.assertEqual(prefetch["ended"]["whole"], {"failed": 1})

    async def _proxy(self, store: Any) -> RunningProxy:
        proxy = await self.proxy(store, prefetch=True, whole_instance_max_cpu=100, whole_instance_max_memory=100)
        self.addCleanup(lambda: Deferred.fromCoroutine(proxy.components.scheduler.stop()))
        return proxy

    async def _status(self, proxy: RunningProxy) -> tuple[Any, Any]:
        status = (await proxy.client(prefix="").get("/status.json")).json()
        return status["jobs"], status["prefetch"]

    async def _metrics(self, proxy: RunningProxy) -> Samples:
        text = (await proxy.client(prefix="").get("/metrics")).body.decode()
        return {
            (sample.name.removeprefix("twistedproxy_"), tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
