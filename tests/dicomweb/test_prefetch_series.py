"""``{series}/prefetch`` and ``{study}/prefetch``: loads of all instances, over real sockets."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from tests.clients import Client, HeaderMap, RawConnection
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, token
from tests.slides import Made, loop, slide
from tests.stores.dialects import STANDARD
from tests.stores.faults import Answer
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames import searches
from twistedproxy.frames.entries import frame_name
from twistedproxy.prefetch.ahead import slices
from twistedproxy.prefetch.load_lock import LOCK
from twistedproxy.prefetch.on_request import job as on_request
from twistedproxy.prefetch.on_request import series

STUDY, SERIES = "/studies/1.2", "/studies/1.2/series/1.3"


class SeriesCase(ProxyCase):
    """A store with a study, and a proxy that loads by hand only."""

    def stack(self, slices: int, series: str = "1.3") -> list[Made]:
        """Slices of a CT, of one frame each."""
        positions = [
            {"ImagePositionPatient": [0, 0, n], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "InstanceNumber": n}
            for n in range(slices)
        ]
        return [
            loop(self.mktemp(), 1, 16, 16, study="1.2", series=series, sop=f"{series}.{n}", extra=extra)
            for n, extra in enumerate(positions)
        ]

    def multi_frames(self, count: int, series: str = "1.4") -> list[Made]:
        """Slides of twelve frames."""
        return [slide(self.mktemp(), 3, 4, 64, study="1.2", series=series, sop=f"{series}.{n}") for n in range(count)]

    async def started(self, *made: Made, **settings: Any) -> tuple[SimulatedStore, RunningProxy]:
        store = self.store(STANDARD, *made)
        return store, await self.warm_proxy(store, **settings)

    async def load(
        self, proxy: RunningProxy, path: str, headers: HeaderMap = (), query: str = "?follow=1"
    ) -> dict[str, Any]:
        """Load it to its end; the job."""
        answer = await proxy.client(headers).request("POST", f"{path}/prefetch{query}")
        self.assertEqual(answer.status, 202, answer.body)
        job: dict[str, Any] = json.loads(answer.body.splitlines()[-1])
        return job

    async def assert_cached(self, store: SimulatedStore, client: Client, *made: Made) -> None:
        """All frames come from the cache."""
        asked = len(store.seen("/frames/"))
        for one in made:
            answer = await client.frames(one.resource, range(1, one.frames + 1))
            self.assertEqual(answer.frames(), one.stored_frames())
        self.assertEqual(store.lines("/frames/")[asked:], [])


def counts(job: dict[str, Any]) -> tuple[int, int, int, int]:
    """Of instances: loaded, present, skipped, failed."""
    return job["loaded"], job["present"], job["skipped"], job["failed"]


class StackTests(SeriesCase):
    """Series of instances of one frame."""

    async def test_loaded(self) -> None:
        """All slices are loaded, each with one request; the store is asked for metadata once."""
        store, proxy = await self.started(*(made := self.stack(20)))
        job = await self.load(proxy, SERIES)
        self.assertEqual((job["instance"], job["kind"], job["result"]), (SERIES[1:], "series", "done"))
        self.assertEqual((job["instances"], *counts(job)), (20, 20, 0, 0, 0))
        self.assertEqual((job["frames"], job["total"], job["bytes"]), (20, 20, 20 * 256))
        self.assertEqual((job["not_loaded"], job["reason"]), ([], "asked-by-hand"))
        self.assertEqual(store.lines("/metadata"), [f"GET {SERIES}/metadata"])
        self.assertEqual(len(store.lines("/frames/1")), 20)
        await self.assert_cached(store, proxy.client(), *made)

    async def test_present(self) -> None:
        """What is in the cache is not asked for again, whatever is said."""
        store, proxy = await self.started(*(made := self.stack(3)))
        await self.load(proxy, f"/{made[1].resource}")
        first, second = await self.load(proxy, SERIES), await self.load(proxy, SERIES, query="?again=1&follow=1")
        self.assertEqual((counts(first), first["frames"], first["total"]), ((2, 1, 0, 0), 2, 2))
        self.assertEqual((counts(second), second["frames"], second["total"]), ((0, 3, 0, 0), 0, 0))
        self.assertEqual(len(store.lines("/frames/1")), 2)
        self.assertEqual(store.lines(f"{made[1].sop}/frames"), [])

    async def test_one_is_refused(self) -> None:
        """A slice that the store refuses is counted and named, and the others are loaded."""
        store, proxy = await self.started(*(made := self.stack(5)))
        store.fail(Answer(403), f"{made[2].sop}/frames", times=None)
        job = await self.load(proxy, SERIES)
        self.assertEqual((counts(job), job["result"]), ((4, 0, 0, 1), "done"))
        self.assertEqual(
            job["not_loaded"], [{"instance": made[2].resource, "result": "failed", "reason": "the origin answered 403"}]
        )
        await self.assert_cached(store, proxy.client(), *made[:2], *made[3:])

    async def test_all_are_refused(self) -> None:
        """Where nothing could be loaded, the job has failed, with the first reason."""
        store, proxy = await self.started(*self.stack(30))
        store.fail(Answer(403), "/frames/", times=None)
        job = await self.load(proxy, SERIES)
        self.assertEqual((counts(job), job["result"]), ((0, 0, 0, 30), "failed"))
        self.assertIn("the origin answered 403", job["reason"])
        self.assertEqual(len(job["not_loaded"]), on_request.MAX_NAMED)

    async def test_store_fails(self) -> None:
        """After some failures of the store in a row the job ends; one that is loaded begins the row anew."""
        store, proxy = await self.started(*(made := self.stack(40)))
        store.fail(Answer(500), "/frames/", times=None)
        job = await self.load(proxy, SERIES)
        self.assertEqual((job["result"], job["failed"]), ("failed", on_request.MAX_IN_A_ROW))
        self.assertIn("in a row", job["reason"])
        self.patch(on_request, "MAX_IN_A_ROW", 2)
        self.patch(slices, "SIDE_BY_SIDE", 1)
        store.heal()
        for one in made[::2]:
            store.fail(Answer(500), f"{one.sop}/frames", times=None)
        self.assertEqual(counts(await self.load(proxy, SERIES)), (20, 0, 0, 20))

    async def test_claimed(self) -> None:
        """A slice that another worker has claimed is left to it at first, and loaded all the same in the end."""
        store, proxy = await self.started(*(made := self.stack(3)))
        first = Instance(store.url, "", "1.2", "1.3", made[0].sop)
        self.assertTrue(await proxy.components.cache.claim(first, [frame_name(1)], b"other", 30.0))
        self.assertEqual(counts(await self.load(proxy, SERIES)), (3, 0, 0, 0))
        self.assertEqual([line.split("/")[6] for line in store.lines("/frames/")][-1], made[0].sop)

    async def test_frames_only_with_the_file(self) -> None:
        """Slices of a store that gives no frames for themselves are loaded with their files."""
        store, proxy = await self.started(*(made := self.stack(3)))
        store.fail(Answer(406), "/frames/", times=None)
        job = await self.load(proxy, SERIES)
        self.assertEqual((counts(job), job["frames"], job["result"]), ((3, 0, 0, 0), 3, "done"), job)
        await self.assert_cached(store, proxy.client(), *made)

    async def test_min_frames(self) -> None:
        """It is not asked whether an instance has frames enough to be prefetched by itself."""
        _, proxy = await self.started(*self.stack(2), prefetch_min_frames=100_000)
        self.assertEqual(counts(await self.load(proxy, SERIES)), (2, 0, 0, 0))


class ListingTests(SeriesCase):
    """Which instances there are."""

    async def test_by_searches(self) -> None:
        """Where the store gives no metadata of the series, it is searched, page by page, and looked at instance by instance."""
        self.patch(searches, "PAGE", 2)
        store, proxy = await self.started(*(made := self.stack(5)))
        store.fail(Answer(501), f"{SERIES}/metadata", times=None)
        job = await self.load(proxy, SERIES)
        self.assertEqual((job["instances"], counts(job), job["total"]), (5, (5, 0, 0, 0), 5))
        pages = [f"GET {SERIES}/instances?limit=2&offset={offset}" for offset in (0, 2, 4, 5)]
        self.assertEqual([line for line in store.lines() if "/instances?" in line][:4], pages)
        await self.assert_cached(store, proxy.client(), *made)

    async def test_not_shown(self) -> None:
        """A store's refusal goes back as it came, of a series and of a study, to POST and GET."""
        store, proxy = await self.started(*self.stack(3))
        store.allow(token(ALICE))
        for path in (SERIES, STUDY):
            for method in ("POST", "GET"):
                answer = await proxy.client(MALLORY).request(method, f"{path}/prefetch")
                self.assertEqual((answer.status, answer.body), (401, b"who are you?"), (path, method))
        self.assertEqual(proxy.components.jobs.status(), {"running": [], "ended": []})
        self.assertEqual(store.lines("/frames/"), [])

    async def test_searched_and_not_shown(self) -> None:
        """Who may search and not retrieve starts nothing."""
        store, proxy = await self.started(*self.stack(5))
        store.fail(Answer(403, (), b"not for you"), "/metadata", times=None)
        for path in (SERIES, STUDY):
            answer = await proxy.client(ALICE).request("POST", f"{path}/prefetch")
            self.assertEqual((answer.status, answer.body), (403, b"not for you"))
        self.assertEqual(proxy.components.jobs.status()["ended"], [])

    async def test_nothing_there(self) -> None:
        """Of a series or study that the store has not, it is a 404."""
        _, proxy = await self.started(*self.stack(1))
        for path in ("/studies/9.9/series/9.8", "/studies/9.9"):
            self.assertEqual((await proxy.client().request("POST", f"{path}/prefetch")).status, 404)

    async def test_some_of_it(self) -> None:
        """Who may read some instances of a series gets those."""
        made = self.stack(4)
        store, proxy = await self.started(*made)
        store.allow(token(ALICE), made[1].sop, made[2].sop)
        job = await self.load(proxy, SERIES, ALICE)
        self.assertEqual((job["instances"], counts(job)), (2, (2, 0, 0, 0)))


class StudyTests(SeriesCase):
    """All series of a study."""

    async def test_study(self) -> None:
        """Stacks, slides and what has no pixels: the latter is left out."""
        report = loop(self.mktemp(), 1, study="1.2", series="1.5", sop="1.5.0")
        made = [*self.stack(3), *self.multi_frames(2)]
        store, proxy = await self.started(*made, report)
        held = store.instances["1.5.0"]
        for tag in ("00280010", "00280011", "7FE00010", "00280008"):
            held.metadata.pop(tag, None)
        job = await self.load(proxy, STUDY)
        self.assertEqual((job["instance"], job["kind"], job["result"]), (STUDY[1:], "study", "done"))
        self.assertEqual((job["instances"], *counts(job)), (6, 5, 0, 1, 0), job)
        self.assertEqual((job["frames"], job["total"]), (27, 27))
        self.assertEqual(job["not_loaded"], [{"instance": report.resource, "result": "skipped", "reason": "no-pixels"}])
        kinds = [(job["kind"], job["frames"]) for job in proxy.components.jobs.status()["ended"]]
        self.assertEqual(kinds, [("whole", 12), ("whole", 12), ("study", 27)])
        metrics = (await proxy.client(prefix="").get("/metrics")).body
        self.assertIn(b'twistedproxy_prefetch_frames_total{kind="study"} 3.0', metrics)
        await self.assert_cached(store, proxy.client(), *made)

    async def test_a_series_is_refused(self) -> None:
        """A series that the store does not show is counted and named, and the next one is loaded."""
        store, proxy = await self.started(*self.stack(2), *self.stack(2, "1.6"))
        store.fail(Answer(403), "series/1.6/", times=None)
        job = await self.load(proxy, STUDY)
        self.assertEqual((counts(job), job["result"]), ((2, 0, 0, 1), "done"))
        self.assertEqual([one["instance"] for one in job["not_loaded"]], [f"{STUDY[1:]}/series/1.6"])

    async def test_loaded_lately(self) -> None:
        """Multi-frames that were loaded lately are left alone, unless it is said."""
        store, proxy = await self.started(*self.multi_frames(2))
        self.assertEqual(counts(await self.load(proxy, STUDY)), (2, 0, 0, 0))
        job = await self.load(proxy, STUDY)
        self.assertEqual((counts(job), job["total"], job["result"]), ((0, 2, 0, 0), 0, "done"))
        self.assertEqual(counts(await self.load(proxy, STUDY, query="?again=1&follow=1")), (2, 0, 0, 0))

    async def test_waits_for_room(self) -> None:
        """While another whole-instance load runs, the next one waits for its end."""
        store, proxy = await self.started(*(made := self.multi_frames(3)), block_pixels=1)
        gate = store.hold(lambda seen: seen.path.endswith(made[2].sop))
        await proxy.client().request("POST", f"/{made[2].resource}/prefetch")
        await gate.reached()
        loading = Deferred.fromCoroutine(self.load(proxy, STUDY))
        await wait_until(lambda: len(proxy.components.jobs.running) == 2)
        self.assertEqual(len([one for one in store.seen() if one.path.endswith(made[0].sop)]), 0)
        gate.release()
        self.assertEqual(sum(counts(await loading)[:2]), 3)

    async def test_waits_for_another_worker(self) -> None:
        """What another worker or host is loading is waited for, and loaded if that one goes without an end."""
        self.patch(series, "ELSEWHERE_SECONDS", 0.01)
        store, proxy = await self.started(*(made := self.multi_frames(2)))
        one, cache = Instance(store.url, "", made[0].study, made[0].series, made[0].sop), proxy.components.cache
        fence = (await cache.get_many(one, [])).fence
        assert fence is not None
        self.assertTrue(await cache.claim(one, [LOCK + fence], b"another", 60.0))
        loading = Deferred.fromCoroutine(self.load(proxy, STUDY))
        lost = lambda: proxy.components.metrics.snapshot().get("prefetch_locks_lost", [[[], [0]]])[0][1][0]  # noqa: E731
        await wait_until(lambda: lost() > 2, "some refusals")
        await cache.unclaim(one, [LOCK + fence], b"another")
        self.assertEqual(counts(await loading), (2, 0, 0, 0))


class JobTests(SeriesCase):
    """One job, and who hears of it."""

    async def held(self, **settings: Any) -> tuple[SimulatedStore, RunningProxy, Any]:
        """A store whose frames wait."""
        store, proxy = await self.started(*self.stack(4), **settings)
        return store, proxy, store.hold("/frames/")

    async def test_one_at_once(self) -> None:
        """Who asks for what is being loaded for the same caller hears of that job; another caller has one of its own."""
        store, proxy, gate = await self.held(max_jobs=2)
        alice, mallory = proxy.client(ALICE), proxy.client(MALLORY)
        for client in (alice, alice, mallory):
            self.assertEqual((await client.request("POST", f"{SERIES}/prefetch")).status, 202)
        self.assertEqual(len(proxy.components.jobs.running), 2)
        self.assertEqual((await alice.request("POST", f"{STUDY}/prefetch")).status, 503)
        gate.release()
        await proxy.components.scheduler.drain()
        self.assertEqual(len(store.lines("/frames/1")), 4)

    async def test_report(self) -> None:
        """A caller hears of its own job, while it runs and after; others of none."""
        _, proxy, gate = await self.held()
        alice = proxy.client(ALICE)
        self.assertEqual((await alice.get(f"{SERIES}/prefetch")).status, 404)
        answer = await alice.request("POST", f"{SERIES}/prefetch")
        self.assertEqual(answer.headers["location"], f"{proxy.url}/dicomweb{SERIES}/prefetch")
        running = (await alice.get(f"{SERIES}/prefetch")).json()
        self.assertEqual((running["result"], running["instances"], running["total"]), (None, 4, 4))
        self.assertNotIn("not_loaded", running)
        self.assertEqual((await proxy.client(MALLORY).get(f"{SERIES}/prefetch")).status, 404)
        self.assertEqual((await alice.get(f"{STUDY}/prefetch")).status, 404)
        following = Deferred.fromCoroutine(alice.get(f"{SERIES}/prefetch?follow=1"))
        await gate.reached()
        gate.release()
        self.assertEqual(json.loads((await following).body.splitlines()[-1])["result"], "done")
        self.assertEqual((await alice.get(f"{SERIES}/prefetch")).json()["loaded"], 4)

    async def test_client_leaves(self) -> None:
        """Who leaves does not stop the job."""
        _, proxy, gate = await self.held()
        connection = await self._following(proxy)
        await gate.reached()
        await connection.close()
        await wait_until(lambda: len(proxy.components.connections) == 0, "the proxy notices that the client left")
        gate.release()
        await proxy.components.scheduler.drain()
        self.assertEqual([job["result"] for job in proxy.components.jobs.status()["ended"]], ["done"])

    async def test_orderly_stop(self) -> None:
        """A proxy that is to stop gives the job up; its answer says so and ends whole, and no request is left."""
        _, proxy, gate = await self.held(stop_deadline=1.0)
        connection = await self._following(proxy)
        await gate.reached()
        stopping = Deferred.fromCoroutine(proxy.components.stop())
        received = await connection.until(b"\r\n0\r\n\r\n")
        self.assertIn(b'"result": "stopped"', received)
        await stopping
        await connection.close()
        self.assertEqual(proxy.components.jobs.running, [])
        gate.release()

    async def test_not_to_be_loaded(self) -> None:
        """A proxy that loads nothing says why; a page of another site starts nothing."""
        _, proxy = await self.started(*self.stack(2), prefetch=False)
        answer = await proxy.client().request("POST", f"{SERIES}/prefetch")
        self.assertEqual((answer.status, answer.json()["reason"]), (409, "prefetch-off"))
        answer = await proxy.client().request("POST", f"{SERIES}/prefetch", {"Origin": "https://evil.test"})
        self.assertEqual(answer.status, 403)

    async def test_metrics_while_it_runs(self) -> None:
        """The pages tell of it while it runs."""
        _, proxy, gate = await self.held()
        await proxy.client().request("POST", f"{SERIES}/prefetch")
        metrics = (await proxy.client(prefix="").get("/metrics")).body
        self.assertIn(b'twistedproxy_prefetch_jobs_running{kind="series"} 1.0', metrics)
        gate.release()
        await proxy.components.scheduler.drain()

    async def _following(self, proxy: RunningProxy) -> RawConnection:
        connection = await RawConnection.open(proxy.port)
        head = f"POST /dicomweb{SERIES}/prefetch?follow=1 HTTP/1.1\r\nHost: p\r\nContent-Length: 0\r\n\r\n"
        connection.send(head.encode())
        await connection.until(b'"result": null')
        return connection
