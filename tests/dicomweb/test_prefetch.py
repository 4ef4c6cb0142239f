"""``{instance}/prefetch``: loads on request over real sockets."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.clients import Client, RawConnection
from tests.dicomweb.support import ALICE, MALLORY, STORED, ProxyCase, RunningProxy, token
from tests.frames.support import INSTANCE
from tests.slides import Made, slide
from tests.stores.dialects import NO_SYNTAX, STANDARD
from tests.stores.faults import Answer
from tests.waiting import wait_until
from twistedproxy.dicomweb.prefetch import LINE_SECONDS, PrefetchEndpoint
from twistedproxy.prefetch.jobs import JobBook, JobKind, Result
from twistedproxy.streams import BytesStream, YieldedStream
from twistedproxy.system.metrics import Metrics

JOB_FIELDS = {"instance", "kind", "frames", "total", "bytes", "seconds", "result", "reason"}


class WarmingCase(ProxyCase):
    """A store with slides of twelve frames, and a proxy that prefetches."""

    def slides(self, count: int = 1) -> list[Made]:
        return [slide(self.mktemp(), 3, 4, 64) for _ in range(count)]

    @property
    def path(self) -> str:
        return f"/{self.slide.resource}/prefetch"


class OpenedTests(WarmingCase):
    """What viewers read before the first tile."""

    async def test_profile(self) -> None:
        """After the metadata of a slide's series, bulk data of one of its levels have the small levels loaded, and nothing else has."""
        store = self.store(STANDARD, *self.slides())
        proxy = await self.warm_proxy(store, prefetch_min_frames=2)
        client = proxy.client()
        series = "/" + "/".join(self.slide.resource.split("/")[:4])
        for path, jobs in (
            (f"/{self.slide.resource}/bulkdata/7FE00010", []),
            (f"{series}/metadata", []),
            (f"/{self.slide.resource}/bulkdata/00420042", []),  # there is none
            (f"/{self.slide.resource}/bulkdata/7FE00010", ["small-level"]),
            (f"/{self.slide.resource}/bulkdata/7FE00010", ["small-level"]),
        ):
            await client.get(path)
            await proxy.components.scheduler.drain()
            ended = proxy.components.jobs.status()["ended"]
            self.assertEqual([job["reason"] for job in ended], jobs, path)


class StartTests(WarmingCase):
    """POST starts a load."""

    async def test_loads_the_instance(self) -> None:
        """It is answered at once with a job; then every frame comes from the cache."""
        store = self.store(NO_SYNTAX, *self.slides())
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop))
        proxy = await self.warm_proxy(store)
        client = proxy.client()
        answer = await client.request("POST", self.path)
        self.assertEqual((answer.status, answer.headers["content-type"]), (202, "application/json"))
        self.assertEqual(answer.headers["location"], f"{proxy.url}/dicomweb{self.path}")
        job = answer.json()
        self.assertEqual(set(job), JOB_FIELDS)
        self.assertEqual(
            [job[name] for name in ("instance", "kind", "frames", "total", "result", "reason")],
            [self.slide.resource, "whole", 0, 12, None, "asked-by-hand"],
        )
        gate.release()
        await proxy.components.scheduler.drain()
        asked = len(store.requests)
        self.assertEqual((await client.frames(self.slide.resource, range(1, 13))).frames(), self.stored)
        self.assertEqual(len(store.requests), asked)

    async def test_running_already(self) -> None:
        """Who asks for what is being loaded hears of that job, and the origin is read once."""
        store = self.store(NO_SYNTAX, *self.slides())
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop))
        proxy = await self.warm_proxy(store)
        client = proxy.client()
        for query in ("", "", "?again=1"):
            self.assertEqual((await client.request("POST", self.path + query)).status, 202)
        await gate.reached()
        gate.release()
        await proxy.components.scheduler.drain()
        self.assertEqual(len(gate.waiting), 1)

    async def test_needs_a_grant(self) -> None:
        """Who may not read the instance starts nothing and hears of nothing: the origin's refusal goes back."""
        store = self.store(NO_SYNTAX, *self.slides())
        store.allow(token(ALICE))
        proxy = await self.warm_proxy(store)
        self.assertEqual((await proxy.client(ALICE).request("POST", self.path)).status, 202)
        await proxy.components.scheduler.drain()
        asked = len(store.requests)
        for method in ("POST", "GET"):
            self.assertEqual((await proxy.client(MALLORY).request(method, self.path + "?follow=1")).status, 401)
        self.assertEqual(len(proxy.components.jobs.status()["ended"]), 1)
        self.assertEqual([line for line in store.lines()[asked:] if not line.endswith("/metadata")], [])

    async def test_again(self) -> None:
        """What was loaded lately is refused with a time to wait, and loaded again when that is said."""
        store = self.store(NO_SYNTAX, *self.slides())
        proxy = await self.warm_proxy(store, recache_after=120.0)
        client = proxy.client()
        await client.request("POST", self.path)
        await proxy.components.scheduler.drain()
        answer = await client.request("POST", self.path)
        self.assertEqual(answer.status, 409)
        self.assertIn(int(answer.headers["retry-after"]), range(60, 121))
        self.assertEqual(answer.headers["content-type"], "application/problem+json")
        self.assertEqual(answer.json()["reason"], "loaded-lately")
        self.assertEqual((await client.request("POST", self.path + "?again=1")).status, 202)
        await proxy.components.scheduler.drain()
        self.assertEqual([job["result"] for job in proxy.components.jobs.status()["ended"]], ["done", "done"])

    async def test_not_to_be_loaded(self) -> None:
        """What will never be loaded is a 409 with the plan's reason and no time to come back."""
        proxy = await self.warm_proxy(self.store(NO_SYNTAX, *self.slides()), prefetch=False)
        answer = await proxy.client().request("POST", self.path)
        self.assertEqual((answer.status, answer.json()["reason"]), (409, "prefetch-off"))
        self.assertNotIn("retry-after", answer.headers)

    async def test_frames_that_the_store_cannot_give(self) -> None:
        """A store that refuses single frames of an unknown transfer syntax may give the instance: the file says it."""
        store = self.store(NO_SYNTAX, *self.slides())
        store.fail(Answer(500), "/frames/", times=None)
        proxy = await self.warm_proxy(store)
        client = proxy.client()
        last = json.loads((await client.request("POST", self.path + "?follow=1")).body.splitlines()[-1])
        self.assertEqual((last["result"], last["frames"]), ("done", 12))
        self.assertEqual((await client.frames(self.slide.resource, range(1, 13))).frames(), self.stored)

    async def test_frames_that_the_store_denies(self) -> None:
        """Who may not read frames loads no instance, whatever the metadata are open to."""
        store = self.store(NO_SYNTAX, *self.slides())
        store.fail(Answer(403), "/frames/", times=None)
        proxy = await self.warm_proxy(store)
        self.assertEqual((await proxy.client().request("POST", self.path)).status, 403)
        self.assertEqual(proxy.components.jobs.status(), {"running": [], "ended": []})

    async def test_too_many_jobs(self) -> None:
        """With as many jobs as may run, it is 503 with a time to come back; afterwards it goes."""
        store = self.store(NO_SYNTAX, *(made := self.slides(2)))
        gate = store.hold(lambda seen: seen.path.endswith(made[0].sop))
        proxy = await self.warm_proxy(store, block_pixels=1)  # small ones are not counted
        client = proxy.client()
        await client.request("POST", self.path)
        await gate.reached()
        answer = await client.request("POST", f"/{made[1].resource}/prefetch")
        self.assertEqual((answer.status, answer.headers["content-type"]), (503, "application/problem+json"))
        self.assertEqual(answer.json()["reason"], "jobs-busy")
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        gate.release()
        await proxy.components.scheduler.drain()
        self.assertEqual((await client.request("POST", f"/{made[1].resource}/prefetch")).status, 202)
        await proxy.components.scheduler.drain()

    async def test_bad_requests(self) -> None:
        """A misspelt parameter is a 400, another method a 405, and neither reaches the origin."""
        store = self.store(NO_SYNTAX, *self.slides())
        client = (await self.warm_proxy(store)).client()
        self.assertEqual((await client.request("POST", self.path + "?agian=1")).status, 400)
        self.assertEqual((await client.request("POST", self.path + "?again=maybe")).status, 400)
        answer = await client.request("DELETE", self.path)
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD, POST"))
        self.assertEqual(store.lines(), [])

    async def test_pages_of_other_sites(self) -> None:
        """A page of another site starts no load with its user's login, and nothing is asked of the origin; it may hear
        what a load is at, if the login lets it read."""
        store = self.store(NO_SYNTAX, *self.slides())
        proxy = await self.warm_proxy(store, cors_origin=("https://viewer.test",))
        client = proxy.client({"Cookie": "session=1"})
        for headers in ({"Origin": "https://evil.test"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = await client.request("POST", self.path, headers)
            self.assertEqual((answer.status, answer.headers["content-type"]), (403, "application/problem+json"))
        self.assertEqual((store.lines(), proxy.components.jobs.status()["ended"]), ([], []))
        own = {"Origin": proxy.url, "Sec-Fetch-Site": "same-origin"}
        self.assertEqual((await client.request("POST", self.path, own)).status, 202)
        await proxy.components.scheduler.drain()
        self.assertEqual((await client.request("GET", self.path, {"Origin": "https://evil.test"})).status, 200)

    async def test_counted_and_open_to_pages(self) -> None:
        """It has a route of its own in the metrics, and pages that may read frames may read it."""
        store = self.store(NO_SYNTAX, *self.slides())
        proxy = await self.warm_proxy(store, cors_origin=("https://viewer.test",))
        answer = await proxy.client().request("POST", self.path, {"Origin": "https://viewer.test"})
        self.assertEqual(answer.headers["access-control-allow-origin"], "https://viewer.test")
        metrics = (await proxy.client(prefix="").get("/metrics")).body
        self.assertIn(b'twistedproxy_requests_total{method="POST",route="prefetch",status="2xx"} 1.0', metrics)


class FollowTests(WarmingCase):
    """An answer that ends with the job."""

    async def test_lines(self) -> None:
        """Lines tell of the job while it loads; the last one has its result."""
        store = self.store(NO_SYNTAX, *self.slides())
        half = len(self.slide.path.read_bytes()) // 2
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=half)
        proxy = await self.warm_proxy(store)
        connection = await RawConnection.open(proxy.port)
        connection.send(self._post(proxy, "?follow=1"))
        await connection.until(b'"result": null')
        await gate.reached()
        gate.release()
        received = await connection.until(b'"result": "done"')
        self.assertIn(b"Content-Type: application/x-ndjson\r\n", received)
        await connection.until(b"\r\n0\r\n\r\n")
        await connection.close()

    async def test_by_accept(self) -> None:
        """Accept asks for lines as the query does; each line is a job, and only the last one's result is set."""
        store = self.store(NO_SYNTAX, *self.slides())
        client = (await self.warm_proxy(store)).client()
        answer = await client.request("POST", self.path, {"Accept": "application/x-ndjson, application/json;q=0.5"})
        jobs = [json.loads(line) for line in answer.body.splitlines()]
        self.assertEqual((answer.status, answer.headers["content-type"]), (202, "application/x-ndjson"))
        self.assertEqual({frozenset(job) for job in jobs}, {frozenset(JOB_FIELDS)})
        self.assertEqual([job["result"] for job in jobs[:-1]], [None] * (len(jobs) - 1))
        self.assertEqual((jobs[-1]["result"], jobs[-1]["frames"]), ("done", 12))
        self.assertEqual(jobs[-1]["bytes"], sum(map(len, self.stored)))

    async def test_failed(self) -> None:
        """A load that fails ends with a line that says so, and why."""
        store = self.store(NO_SYNTAX, *self.slides())
        store.fail(Answer(500), lambda seen: seen.path.endswith(self.slide.sop), times=None)
        client = (await self.warm_proxy(store)).client()
        last = json.loads((await client.request("POST", self.path + "?follow=1")).body.splitlines()[-1])
        self.assertEqual(last["result"], "failed")
        self.assertIn("500", last["reason"])

    async def test_client_leaves(self) -> None:
        """Who leaves does not stop the job."""
        store = self.store(NO_SYNTAX, *self.slides())
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop))
        proxy = await self.warm_proxy(store)
        connection = await RawConnection.open(proxy.port)
        connection.send(self._post(proxy, "?follow=1"))
        await connection.until(b'"result": null')
        await gate.reached()
        await connection.close()
        await wait_until(lambda: len(proxy.components.connections) == 0, "the proxy notices that the client left")
        gate.release()
        await proxy.components.scheduler.drain()
        self.assertEqual([job["result"] for job in proxy.components.jobs.status()["ended"]], ["done"])

    async def test_orderly_stop(self) -> None:
        """A proxy that is to stop gives a followed load up within its deadline: the answer says so, and ends whole."""
        store = self.store(NO_SYNTAX, *self.slides())
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop))
        proxy = await self.warm_proxy(store, stop_deadline=1.0)
        connection = await RawConnection.open(proxy.port)
        connection.send(self._post(proxy, "?follow=1"))
        await connection.until(b'"result": null')
        await gate.reached()
        stopping = Deferred.fromCoroutine(proxy.components.stop())
        await connection.until(b'"result": "stopped", "reason": "stopped"}\n\r\n0\r\n\r\n')
        await stopping
        await connection.close()
        gate.release()

    def _post(self, proxy: RunningProxy, query: str) -> bytes:
        return f"POST /dicomweb{self.path}{query} HTTP/1.1\r\nHost: p\r\nContent-Length: 0\r\n\r\n".encode()


class StopTests(SynchronousTestCase):
    """Lines about a job when it is too late for more of them."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.jobs = JobBook(self.clock, Metrics(), 60.0)
        nobody: Any = None
        self.warming = PrefetchEndpoint(nobody, nobody, self.jobs, self.clock)
        self.job = self.jobs.start(INSTANCE, JobKind.WHOLE, "asked-by-hand", 12)
        self.lines = YieldedStream(self.warming.lines(self.job), BytesStream())

    def line(self) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self.lines.read())

    def test_time_to_end(self) -> None:
        """A followed job may end by itself in the first part of the deadline; then it is given up, and only then."""
        given_up: list[bool] = []
        self.job.running = Deferred(lambda _: given_up.append(True))
        self.job.running.addErrback(lambda _: self.jobs.end(self.job, Result.STOPPED, "stopped"))
        self.successResultOf(self.line())
        self.warming.stop_within(10.0)
        for _ in range(19):
            waiting = self.line()
            self.clock.advance(LINE_SECONDS)
            self.assertIn(b'"result": null', self.successResultOf(waiting))
        self.assertEqual(given_up, [])
        waiting = self.line()
        self.clock.advance(LINE_SECONDS)
        self.assertIn(b'"result": "stopped"', self.successResultOf(waiting))
        self.assertEqual((given_up, self.successResultOf(self.line())), ([True], b""))

    def test_a_part_of_another_job(self) -> None:
        """A display load that goes before another load can't be given up by itself: the answer ends without its result."""
        self.warming.stop_within(0.0)
        self.assertIn(b'"result": null', self.successResultOf(self.line()))
        self.assertEqual(self.successResultOf(self.line()), b"")


class TellTests(WarmingCase):
    """GET tells of a load."""

    async def test_running_and_last(self) -> None:
        """There is none at first, then a running one, and then it is the last one."""
        store = self.store(NO_SYNTAX, *self.slides())
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop))
        proxy = await self.warm_proxy(store)
        client = proxy.client()
        answer = await client.get(self.path)
        self.assertEqual((answer.status, answer.headers["content-type"]), (404, "application/problem+json"))
        await client.request("POST", self.path)
        self.assertIsNone((await self._job(client))["result"])
        gate.release()
        await proxy.components.scheduler.drain()
        self.assertEqual((await self._job(client))["result"], "done")

    async def test_of_a_load_nobody_asked_for(self) -> None:
        """A load that a request for frames triggered is told of, too."""
        store = self.store(NO_SYNTAX, *self.slides())
        proxy = await self.warm_proxy(store, prefetch_min_frames=2)
        client = proxy.client()
        await client.frames(self.slide.resource, [1], STORED)
        await proxy.components.scheduler.drain()
        self.assertEqual((await self._job(client))["reason"], "small-instance")

    async def test_follow_a_running_one(self) -> None:
        """A running load can be followed without starting one; not by who refuses lines, and a HEAD does not wait for its end."""
        store = self.store(NO_SYNTAX, *self.slides())
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop))
        proxy = await self.warm_proxy(store)
        client = proxy.client()
        await client.request("POST", self.path)
        following = Deferred.fromCoroutine(client.get(self.path + "?follow=1"))
        await gate.reached()
        refused = await client.get(self.path, {"Accept": "application/x-ndjson;q=0, application/json"})
        self.assertEqual(refused.headers["content-type"], "application/json")
        head = await client.request("HEAD", self.path + "?follow=1")  # while it still runs
        self.assertEqual((head.headers["content-type"], head.body), ("application/x-ndjson", b""))
        gate.release()
        lines = (await following).body.splitlines()
        self.assertEqual(json.loads(lines[-1])["result"], "done")

    async def _job(self, client: Client) -> dict[str, Any]:
        answer = await client.get(self.path)
        self.assertEqual(answer.status, 200)
        job: dict[str, Any] = answer.json()
        return job
