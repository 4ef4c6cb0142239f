"""Coverage over real sockets: it is what the cache holds, and shown to whom the store lets read."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers

from tests.cache.support import RunningServer, any_server
from tests.clients import RawConnection
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, token
from tests.page.support import LINES, Followed, cached, instance_of, series_of
from tests.prefetch.real import HALF
from tests.slides import Made, loop, slide
from tests.stores.dialects import NO_SYNTAX, STANDARD
from tests.waiting import wait_until
from twistedproxy.cache.address import CacheAddress, LocalAddress, MemoryAddress, UnixAddress
from twistedproxy.deferreds import Waiters
from twistedproxy.page import coverage, survey, surveyor
from twistedproxy.prefetch.jobs import JobKind

FRAMES = 12
NOTHING = {"instances": {}, "jobs": []}


class CoverageCase(ProxyCase):
    """A store with slides of twelve frames."""

    def slides(self, count: int = 1) -> list[Made]:
        return [slide(self.mktemp(), 3, 4, 64) for _ in range(count)]

    @property
    def of_instance(self) -> str:
        return f"/{self.slide.resource}/coverage"

    @property
    def of_series(self) -> str:
        return f"{series_of(self.slide)}/coverage"

    async def follow(self, proxy: RunningProxy, path: str, headers: Any = ()) -> Followed:
        """A stream of *path*."""
        return await Followed.open(self, f"{proxy.url}/dicomweb{path}", headers)

    async def told(self, proxy: RunningProxy, path: str, headers: Any = ()) -> dict[str, Any]:
        """One object."""
        answer = await proxy.client(headers).get(path)
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, "application/json"), answer.body)
        self.assertEqual(answer.headers["cache-control"], "no-store")
        found: dict[str, Any] = answer.json()
        return found


class AnswerTests(CoverageCase):
    """What is told."""

    async def test_once(self) -> None:
        """Of a series and of an instance: runs of cached frames, of granted instances; the store is not asked for that."""
        store = self.store(STANDARD, *self.slides())
        proxy = await self.proxy(store)
        for path in (self.of_series, self.of_instance):
            self.assertEqual(await self.told(proxy, path), NOTHING)
        await proxy.client().frames(self.slide.resource, [1, 2, 3, 7])
        before = store.lines()
        for path in (self.of_series, self.of_instance):
            self.assertEqual((await self.told(proxy, path))["instances"], {
                self.slide.sop: {"frames": FRAMES, "cached": [[1, 3], [7, 7]], "loading": [], "claimed": []}
            })  # fmt: skip
        self.assertEqual(store.lines(), before)
        self.assertEqual(len(proxy.components._coverage.surveyor), 0)

    async def test_series_metadata(self) -> None:
        """Who was given the metadata of a series has a grant for all of it, frames or none."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()))
        await proxy.client().get(f"{series_of(self.slide)}/metadata")
        told = await self.told(proxy, self.of_series)
        self.assertEqual(told["instances"][self.slide.sop]["cached"], [])

    async def test_methods(self) -> None:
        """HEAD has the headers, also of a stream, and ends; other methods are refused; a study has none."""
        store = self.store(STANDARD, *self.slides())
        proxy = await self.proxy(store)
        for headers, kind in (({}, "application/json"), (LINES, "application/x-ndjson")):
            head = await proxy.client().request("HEAD", self.of_series, headers)
            self.assertEqual((head.status, head.headers["content-type"], head.body), (200, kind, b""))
        answer = await proxy.client().request("POST", self.of_series)
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD"))
        study = "/".join(series_of(self.slide).split("/")[:3])
        self.assertEqual((await proxy.client().get(f"{study}/coverage")).status, 404)
        none = await proxy.client().get(self.of_series, {"Accept": "application/x-ndjson;q=0, */*"})
        self.assertEqual(none.headers["content-type"], "application/json")
        self.assertEqual(store.lines(), [])

    async def test_pages_of_other_origins(self) -> None:
        """They may read it where they may read frames."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()), cors_origin=("https://viewer.test",))
        answer = await proxy.client().get(self.of_series, {"Origin": "https://viewer.test"})
        self.assertEqual(answer.headers["access-control-allow-origin"], "https://viewer.test")
        answer = await proxy.client().get(self.of_series, {"Origin": "https://evil.test"})
        self.assertNotIn("access-control-allow-origin", answer.headers)

    async def test_loading(self) -> None:
        """What is asked of the store is being loaded; frames that a whole load is still to bring, too; then it is cached."""
        store = self.store(NO_SYNTAX, *self.slides())
        proxy = await self.warm_proxy(store)
        client = proxy.client()
        await client.frames(self.slide.resource, [5])
        gate = store.hold("/frames/2")
        asking = Deferred.fromCoroutine(client.frames(self.slide.resource, [2]))
        await gate.reached()
        told = (await self.told(proxy, self.of_instance))["instances"][self.slide.sop]
        self.assertEqual((told["cached"], told["loading"]), ([[5, 5]], [[2, 2]]))
        gate.release()
        await asking
        half = len(self.slide.path.read_bytes()) // 2
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=half)
        followed = await self.follow(proxy, self.of_instance)
        self.assertEqual((await client.request("POST", f"/{self.slide.resource}/prefetch")).status, 202)
        await gate.reached()
        await followed.until(lambda: followed.runs(self.slide.sop, "loading"))
        loading, there = followed.runs(self.slide.sop, "loading"), followed.runs(self.slide.sop)
        self.assertEqual((loading | there, loading & there), (set(range(1, FRAMES + 1)), set()))
        self.assertEqual([(job["kind"], job["state"], job["instance"], job["total"], job["reason"])
                          for job in followed.objects[-1]["jobs"]],
                         [("whole", "running", self.slide.sop, FRAMES, "asked-by-hand")])  # fmt: skip
        gate.release()
        await followed.until(lambda: len(followed.runs(self.slide.sop)) == FRAMES)
        await followed.until(lambda: [job["state"] for job in followed.objects[-1]["jobs"]] == ["done"])
        self.assertEqual(followed.runs(self.slide.sop, "loading"), set())
        (job,) = followed.objects[-1]["jobs"]
        self.assertEqual((job["frames"], job["bytes"]), (FRAMES, sum(map(len, self.stored))))
        self.assertGreater(job["bytes_per_second"], 0)

    async def test_claimed(self) -> None:
        """What another worker has claimed, and what waits here."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()))
        await proxy.client().frames(self.slide.resource, [1])
        cache, instance = proxy.components.cache, instance_of(proxy, self.slide)
        await cache.claim(instance, [b"F1", b"F3", b"F4"], b"other", 60.0)
        told = (await self.told(proxy, self.of_instance))["instances"][self.slide.sop]
        self.assertEqual((told["cached"], told["claimed"]), ([[1, 1]], [[3, 4]]))

    async def test_jobs_of_others(self) -> None:
        """A job that one caller alone may know of is told to no other, nor one of an instance that is not granted."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides(2)))
        await proxy.client().frames(self.slide.resource, [1])
        jobs, instance = proxy.components.jobs, instance_of(proxy, self.slide)
        jobs.start(instance, JobKind.BLOCK, "a", 5)
        jobs.start(instance.of_series, JobKind.STACK, "b", 5)
        jobs.start(attrs.evolve(instance, sop="1.2.3"), JobKind.BLOCK, "c", 5)
        jobs.start(attrs.evolve(instance, series="1.2.3").of_series, JobKind.STACK, "d", 5)
        jobs.start(instance.of_series, JobKind.SERIES, "e", 5).credential = b"another"
        told = (await self.told(proxy, self.of_series))["jobs"]
        self.assertEqual([(job["reason"], job["instance"]) for job in told], [("a", self.slide.sop), ("b", None)])


class TruthTests(CoverageCase):
    """What a stream tells is what the cache holds, whichever it is, while a load runs and after."""

    async def compare(self, cache: CacheAddress) -> None:
        """Follow a whole load of 256 frames of 8.7 kB, held in its middle, then an invalidation."""
        store = self.store(NO_SYNTAX, slide(self.mktemp(), 16, 16))
        gate = store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=HALF)
        proxy = await self.warm_proxy(store, cache=cache)
        client, instance = proxy.client(), instance_of(proxy, self.slide)
        await client.frames(self.slide.resource, [256])
        followed = await self.follow(proxy, self.of_series)
        await followed.until(lambda: followed.runs(self.slide.sop) == {256})
        await client.request("POST", f"/{self.slide.resource}/prefetch")
        await gate.reached()
        whole = set(range(1, 257))

        async def true_now() -> bool:
            """Whether the newest object is what the cache holds."""
            truth = await cached(proxy.components.cache, instance, 256)
            return followed.runs(self.slide.sop) == truth

        while True:
            count = len(followed.objects)
            if await true_now() and 20 < len(followed.runs(self.slide.sop)) < 256:
                break
            await followed.until(lambda count=count: len(followed.objects) > count)
        self.assertEqual(followed.runs(self.slide.sop, "loading"), whole - followed.runs(self.slide.sop))
        gate.release()
        await followed.until(lambda: followed.runs(self.slide.sop) == whole)
        self.assertTrue(await true_now())
        await proxy.components.invalidation.invalidate(instance.scope)
        await followed.until(lambda: followed.seen[self.slide.sop] is None)
        await client.frames(self.slide.resource, [7])
        await followed.until(lambda: followed.runs(self.slide.sop) == {7})
        self.assertTrue(await true_now())

    async def test_memory(self) -> None:
        """In memory."""
        await self.compare(MemoryAddress())

    async def test_local(self) -> None:
        """In files, which a loader child writes."""
        await self.compare(LocalAddress(size=64 << 20))

    async def test_redis(self) -> None:
        """On a Redis server, which tells of no changes."""
        server = RunningServer(any_server())
        await server.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        await self.compare(UnixAddress(server.socket))


class RightsTests(CoverageCase):
    """ALICE may read all and has filled the cache; MALLORY never may; BOB's right begins and ends."""

    async def begin(self, **settings: Any) -> RunningProxy:
        """A proxy that holds all frames of two slides, for ALICE."""
        self.origin = self.store(STANDARD, *self.slides(2))
        self.other = next(sop for sop in self.origin.instances if sop != self.slide.sop)
        self.origin.allow(token(ALICE))
        self.origin.allow(token(MALLORY), self.other)
        proxy = await self.proxy(self.origin, **settings)
        await proxy.client(ALICE).frames(self.slide.resource, range(1, FRAMES + 1))
        await proxy.client(ALICE).get(f"{series_of(self.slide)}/metadata")
        return proxy

    async def revoke(self, proxy: RunningProxy, headers: dict[str, str]) -> None:
        """Another worker was told that the caller with *headers* may not read the slide any more."""
        raw = Headers({name: [value] for name, value in headers.items()})
        credential, instance = (
            proxy.components._credentials.caller(raw.getRawHeaders).credential,
            instance_of(proxy, self.slide),
        )
        await proxy.components.cache.remove(instance, [b"g" + credential])
        await proxy.components.cache.remove(instance.of_series, [b"s" + credential])
        proxy.components.revoke(credential, instance)

    async def test_matrix(self) -> None:
        """Each proof with each way in which a right ends, of both resources, streamed and not: exactly while the right lasts."""
        proxy = await self.begin()
        everyone = [await self.follow(proxy, path, MALLORY) for path in (self.of_series, self.of_instance)]
        for number, (proof, ending) in enumerate(
            itertools.product(("frame", "metadata", "series"), ("time", "metadata", "object", "elsewhere"))
        ):
            bob = {"Authorization": f"Bearer bob-{number}-77aa88bb99"}
            self.origin.allow(token(bob), self.other)
            follows = [await self.follow(proxy, path, bob) for path in (self.of_series, self.of_instance)]
            for path in (self.of_series, self.of_instance):
                self.assertEqual(await self.told(proxy, path, bob), NOTHING)
            self.origin.allow(token(bob))
            client = proxy.client(bob)
            path = {"frame": f"/{self.slide.resource}/frames/1", "metadata": f"/{self.slide.resource}/metadata",
                    "series": f"{series_of(self.slide)}/metadata"}[proof]  # fmt: skip
            self.assertEqual((await client.get(path)).status, 200)
            asked = len(self.origin.requests)
            for path, followed in zip((self.of_series, self.of_instance), follows):
                if proof == "series" and path == self.of_instance:
                    continue  # the proof becomes a grant of the instance with its first frame
                told = (await self.told(proxy, path, bob))["instances"][self.slide.sop]
                self.assertEqual(told["cached"], [[1, FRAMES]])
                await followed.until(lambda followed=followed: followed.seen.get(self.slide.sop))
            self.assertEqual(len(self.origin.requests), asked)
            self.origin.allow(token(bob), self.other)
            fresh = {"Cache-Control": "no-cache"}
            if ending == "time":
                proxy.wall.now += 601.0
                for resource in ("frames/1", "metadata"):
                    await proxy.client(ALICE).get(f"/{self.slide.resource}/{resource}", fresh)
                await proxy.client(ALICE).get(f"{series_of(self.slide)}/metadata", fresh)
            elif ending == "elsewhere":
                await self.revoke(proxy, bob)
            else:
                resource = "/metadata" if ending == "metadata" else ""
                self.assertEqual((await client.get(f"/{self.slide.resource}{resource}", fresh)).status, 403)
            for path in (self.of_series, self.of_instance):
                self.assertEqual((await self.told(proxy, path, bob))["instances"], {}, (proof, ending))
            for followed in follows:
                if followed.seen:
                    await followed.until(lambda followed=followed: followed.seen[self.slide.sop] is None)
                await followed.close()
        for followed in everyone:
            self.assertEqual([told["instances"] for told in followed.objects], [{}])

    async def test_pixels(self) -> None:
        """Where only pixels prove a right to pixels, who was given metadata is told nothing."""
        proxy = await self.begin(proof="pixels")
        bob = {"Authorization": "Bearer bob-1122334455"}
        self.origin.allow(token(bob))
        for resource in (f"{series_of(self.slide)}/metadata", f"/{self.slide.resource}/metadata"):
            await proxy.client(bob).get(resource)
        for path in (self.of_series, self.of_instance):
            self.assertEqual(await self.told(proxy, path, bob), NOTHING)
        await proxy.client(bob).get(f"/{self.slide.resource}/frames/1")
        for path in (self.of_series, self.of_instance):
            self.assertIn(self.slide.sop, (await self.told(proxy, path, bob))["instances"])

    async def test_invalidated_elsewhere(self) -> None:
        """A grant from before another host has invalidated the instance is worth nothing, although nobody told this worker."""
        self.origin = self.store(STANDARD, *self.slides())
        proxy = await self.proxy(self.origin)
        await proxy.client().frames(self.slide.resource, [1])
        follows = [await self.follow(proxy, path) for path in (self.of_series, self.of_instance)]
        for followed in follows:
            await followed.until(lambda followed=followed: followed.runs(self.slide.sop) == {1})
        await proxy.components.cache.invalidate(instance_of(proxy, self.slide).scope)
        for followed in follows:
            await followed.until(lambda followed=followed: followed.seen[self.slide.sop] is None)
        for path in (self.of_series, self.of_instance):
            self.assertEqual((await self.told(proxy, path))["instances"], {})

    async def test_while_it_is_looked_for(self) -> None:
        """A right that ends while the cache is looked through shows nothing of what was found."""
        proxy = await self.begin()
        held, gate, began = proxy.components.cache.held, Deferred[None](), Deferred[None]()

        async def slowly(*arguments: Any) -> Any:
            if not began.called:
                began.callback(None)
            await gate
            return await held(*arguments)

        self.patch(proxy.components.cache, "held", slowly)
        followed = await self.follow(proxy, self.of_series, ALICE)
        await began
        self.origin.allow(token(ALICE), self.other)
        fresh = {"Cache-Control": "no-cache"}
        self.assertEqual((await proxy.client(ALICE).get(f"/{self.slide.resource}/metadata", fresh)).status, 403)
        gate.callback(None)
        await wait_until(lambda: not len(proxy.components._coverage.surveyor), "nothing is watched")
        self.assertEqual([told["instances"] for told in followed.objects], [{}])


class StreamTests(CoverageCase):
    """Streams, and how they end."""

    async def test_changes_alone(self) -> None:
        """The first object has all, later ones what changed; while nothing does, no object comes, but a sign of life."""
        self.patch(coverage, "ALIVE_SECONDS", 0.3)
        proxy = await self.proxy(self.store(STANDARD, *self.slides(2)))
        client = proxy.client()
        await client.frames(self.slide.resource, [1])
        followed = await self.follow(proxy, self.of_series)
        self.assertEqual(followed.headers.getRawHeaders(b"X-Accel-Buffering"), [b"no"])
        await followed.until(lambda: followed.runs(self.slide.sop) == {1})
        count = len(followed.objects)
        await followed.until(lambda: followed.blank >= 2)
        self.assertEqual(len(followed.objects), count)
        await client.frames(self.slide.resource, [2])
        await followed.until(lambda: followed.runs(self.slide.sop) == {1, 2})

    async def test_client_leaves(self) -> None:
        """With the last client ends all that was done for it."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()))
        await proxy.client().frames(self.slide.resource, [1])
        answers = proxy.components._coverage
        one, other = [await self.follow(proxy, path) for path in (self.of_series, self.of_instance)]
        await one.until(lambda: one.runs(self.slide.sop))
        await other.until(lambda: other.runs(self.slide.sop))
        self.assertEqual((answers.watches, len(answers.surveyor)), (2, 1))
        await one.close()
        await wait_until(lambda: answers.watches == 1)
        self.assertEqual(len(answers.surveyor), 1)
        await other.close()
        await wait_until(lambda: answers.watches == 0)
        self.assertEqual(len(answers.surveyor), 0)
        await wait_until(lambda: answers.surveyor._next_tick is None, "no more ticks")

    async def test_too_many(self) -> None:
        """One stream too many is a 503 with a time to come back, and there is room again when one ends."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()))
        await proxy.client().frames(self.slide.resource, [1])
        proxy.components._coverage.max_watches = 1
        followed = await self.follow(proxy, self.of_series)
        await followed.until(lambda: followed.runs(self.slide.sop))
        for headers in (LINES, {}):
            answer = await proxy.client().get(self.of_series, headers)
            self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "10"))
            self.assertIn("as many as may", answer.json()["detail"])
        await followed.close()
        await wait_until(lambda: proxy.components._coverage.watches == 0)
        self.assertEqual(list((await self.told(proxy, self.of_series))["instances"]), [self.slide.sop])

    async def test_many_with_nothing_to_show(self) -> None:
        """Streams without a grant keep nobody out: the oldest of them ends, in an orderly way, and none that shows anything."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()))
        await proxy.client(ALICE).frames(self.slide.resource, [1])
        proxy.components._coverage.max_watches = 3
        shown = await self.follow(proxy, self.of_series, ALICE)
        await shown.until(lambda: shown.runs(self.slide.sop))
        strangers = [await self.follow(proxy, self.of_series, MALLORY) for _ in range(4)]
        for stranger in strangers[:2]:
            await stranger.until(lambda one=stranger: one.ended)
            self.assertIsNotNone(stranger.ended and stranger.ended.check(ResponseDone))
        await wait_until(lambda: proxy.components._coverage.watches == 3)
        self.assertEqual([one.ended for one in (shown, *strangers[2:])], [None] * 3)
        self.assertIn(self.slide.sop, (await self.told(proxy, self.of_series, ALICE))["instances"])

    async def test_rest(self) -> None:
        """A look is followed by a rest: 20 times as long as it took, for each client that watches, and 10 seconds at most."""
        clock, worked = Clock(), itertools.count(0.0, 0.01)
        lane = surveyor.Lane(clock, lambda: next(worked))
        survey_of: Any = SimpleNamespace(lane=lane, moved=Waiters(), jobs=SimpleNamespace(running=(), ended=()))
        answers = coverage.CoverageAnswers(None, survey_of, clock)  # type: ignore[arg-type]
        looked: list[float] = []

        async def granted(_answers: Any, _watch: Any) -> dict[str, Any]:
            looked.append(clock.seconds())
            return {}

        self.patch(coverage.CoverageAnswers, "_granted", granted)
        for clients, rest in ((1, 0.2), (5, 1.0), (200, 10.0)):
            answers._open.clear()
            answers._open.update((coverage._Watch(None, True), None) for _ in range(clients))  # type: ignore[arg-type]
            lines = answers.lines(next(iter(answers._open)))
            self.successResultOf(ensureDeferred(anext(lines)))  # type: ignore[arg-type]
            more: Deferred[bytes] = ensureDeferred(anext(lines))  # type: ignore[arg-type]
            more.addErrback(lambda _: None)
            looked.clear()
            start = clock.seconds()
            while not looked:
                survey_of.moved.fire()
                clock.advance(0.1)
            self.assertTrue(rest - 0.01 < looked[0] - start < rest + 0.21, (clients, looked[0] - start))
            more.cancel()

    async def test_stop(self) -> None:
        """A proxy that stops ends its streams in an orderly way, at once."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()), stop_deadline=15.0)
        await proxy.client().frames(self.slide.resource, [1])
        connection = await RawConnection.open(proxy.port)
        connection.send(self._get())
        await connection.until(b'"cached":[[1,1]]')
        began = proxy.components._reactor.seconds()
        await proxy.components.stop()
        self.assertTrue((await connection.end()).endswith(b"\r\n0\r\n\r\n"))
        self.assertLess(proxy.components._reactor.seconds() - began, 10.0)

    async def test_slow_reader(self) -> None:
        """A client that does not read is sent no more than its connection holds; when it reads again it gets the newest state."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()))
        await proxy.client().frames(self.slide.resource, [1])
        large, made = b'"x":"%s"' % (b"x" * (8 << 20)), [0]
        told = coverage.CoverageAnswers._object

        def padded(answers: Any, watch: Any, granted: Any) -> Any:
            made[0] += 1
            line = told(answers, watch, granted)
            return None if line is None else line[:-2] + b',%b,"n":%d}\n' % (large, made[0])

        self.patch(coverage.CoverageAnswers, "_object", padded)
        connection = await RawConnection.open(proxy.port)
        connection.send(self._get())
        await connection.until(b"HTTP/1.1 200")
        connection.pause()
        count = made[0]
        for number in range(2, 8):
            await proxy.client().frames(self.slide.resource, [number])
        survey_of = proxy.components._coverage.surveyor
        await wait_until(
            lambda: b"[[1,7]]" in next(iter(survey_of._groups[0].surveys.values()), NO_SURVEY).text, "found"
        )
        self.assertLessEqual(made[0] - count, 2)
        connection.resume()
        await connection.until(b'"cached":[[1,7]]')
        await connection.close()

    async def test_deadlines(self) -> None:
        """A stream that lives is not cut by the deadlines of connections, however long it is silent."""
        proxy = await self.proxy(self.store(STANDARD, *self.slides()), client_timeout=0.3)
        followed = await self.follow(proxy, self.of_series)
        await followed.until(lambda: followed.objects)
        connections = proxy.components.connections
        self.patch(connections, "_idle_seconds", 0.1)
        seconds = connections.seconds
        connections.seconds = lambda: seconds() + 3600.0  # all deadlines of before have passed
        self.addCleanup(setattr, connections, "seconds", seconds)
        connections._sweep()
        await proxy.client().frames(self.slide.resource, [3])
        await followed.until(lambda: followed.runs(self.slide.sop) == {3})

    def _get(self) -> bytes:
        head = f"GET /dicomweb{self.of_series} HTTP/1.1\r\nHost: p\r\nAccept: application/x-ndjson\r\n\r\n"
        return head.encode()


NO_SURVEY: Any = survey.Survey(None, 0)  # type: ignore[arg-type]


class StackTests(CoverageCase):
    """A stack of more slices than are looked up together."""

    SLICES = 2 * surveyor.AT_ONCE + 2

    async def test_stack(self) -> None:
        """All slices are told of once the series' metadata were given, and later those alone that changed."""
        made = [loop(self.mktemp(), 1, 16, 16, study="1.2", series="1.3", sop=f"1.3.{n}") for n in range(self.SLICES)]
        store = self.store(STANDARD, *made)
        proxy = await self.proxy(store)
        await proxy.client().get("/studies/1.2/series/1.3/metadata")
        followed = await self.follow(proxy, "/studies/1.2/series/1.3/coverage")
        await followed.until(lambda: len(followed.seen) == self.SLICES)
        known = len(followed.objects)
        asked = len(store.requests)
        await proxy.client().frames(made[7].resource, [1])
        await followed.until(lambda: followed.runs("1.3.7"))
        changed = [told["instances"] for told in followed.objects[known:] if told["instances"]]
        self.assertEqual({sop for instances in changed for sop in instances}, {"1.3.7"})
        self.assertEqual(followed.seen["1.3.7"], {"frames": 1, "cached": [[1, 1]], "loading": [], "claimed": []})
        self.assertEqual(store.lines()[asked:], [f"GET /{made[7].resource}/frames/1"])
        told = await self.told(proxy, "/studies/1.2/series/1.3/coverage")
        self.assertEqual(told["instances"], followed.seen)
