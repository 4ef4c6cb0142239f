"""What the proxy says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.clients import Answer, Client
from tests.dicomweb.support import ProxyCase, RunningProxy
from tests.stores import faults
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.dicomweb.mounts import MountedOrigin, Mounts
from twistedproxy.dicomweb.status import CHECK_SECONDS, READY_SECONDS, Checks, StatusPages
from twistedproxy.system.caller_demand import DemandLevel
from twistedproxy.system.metrics import Metrics


def samples(answer: Answer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of a ``/metrics`` answer, by name and labels."""
    families = text_string_to_metric_families(answer.body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


class StatusTests(ProxyCase):
    """The pages."""

    async def test_health_and_readiness(self) -> None:
        """Both are well while cache and origin are there."""
        root = (await self.proxy(self.store())).client(prefix="")
        self.assertEqual((await root.get("/healthz")).json(), {"status": "ok"})
        ready = await root.get("/readyz")
        self.assertEqual((ready.status, ready.headers["content-type"]), (200, "application/json"))
        self.assertEqual(ready.json(), {"status": "ok", "checks": {"cache": "ok", "origin /dicomweb": "ok"}})
        self.assertEqual(ready.headers["cache-control"], "no-store")
        head = await root.request("HEAD", "/readyz")
        self.assertEqual((head.status, head.body), (200, b""))

    async def asked_anew(self, store: SimulatedStore) -> Client:
        """A client of a proxy that remembers no checks."""
        proxy = await self.proxy(store)
        proxy.components._routes.status.ready_seconds = 0.0
        return proxy.client(prefix="")

    async def test_origin_down(self) -> None:
        """An origin that is gone makes the proxy unready, and says why; its health is untouched."""
        store = self.store()
        root = await self.asked_anew(store)
        await store.stop()
        ready = await root.get("/readyz")
        self.assertEqual((ready.status, ready.json()["status"]), (503, "unavailable"))
        self.assertEqual(ready.json()["checks"]["cache"], "ok")
        self.assertEqual(
            ready.json()["checks"]["origin /dicomweb"],
            f"no connection to the origin: connection refused ({store.url}: is it running, and is that its port?)",
        )
        self.assertEqual((await root.get("/healthz")).status, 200)
        store.start(store.port)
        self.assertEqual((await root.get("/readyz")).status, 200)

    async def test_wrong_root(self) -> None:
        """An origin that has nothing but 404 may be the wrong URL: that is said, and keeps nobody away."""
        store = self.store()
        store.fail(faults.Answer(404), times=None)
        root = await self.asked_anew(store)
        ready = await root.get("/readyz")
        self.assertEqual((ready.status, ready.json()["status"]), (200, "doubtful"))
        self.assertIn("/studies answered 404: is ", ready.json()["checks"]["origin /dicomweb"])
        store.heal()
        self.assertEqual((await root.get("/readyz")).json()["status"], "ok")

    async def test_cache_down(self) -> None:
        """A cache that is gone makes the proxy unready, and says why."""
        proxy = await self.proxy(self.store())

        async def ping() -> None:
            raise CacheUnavailable("connection refused")

        self.patch(proxy.components.cache, "ping", ping)
        ready = await proxy.client(prefix="").get("/readyz")
        text = "connection refused (the cache: is it running, and is that its port?)"
        self.assertEqual((ready.status, ready.json()["checks"]["cache"]), (503, text))

    async def test_status_json(self) -> None:
        """Mounts, cache, workers and jobs are there."""
        store = self.store()
        proxy = await self.proxy(store)
        found = (await proxy.client(prefix="").get("/status.json")).json()
        self.assertLessEqual({"mounts", "cache", "workers", "jobs"}, found.keys())
        self.assertEqual((found["mounts"][0]["prefix"], found["mounts"][0]["url"]), ("/dicomweb", store.url))
        self.assertEqual((found["cache"]["provider"], found["cache"]["connected"]), ("memory", True))
        self.assertGreater(found["workers"][0]["pid"], 0)
        self.assertEqual(found["jobs"], {"running": [], "ended": []})

    async def test_demand(self) -> None:
        """How many answers callers get from the cache is seen, told, and heard of by those who stand back; that of the
        origin is none of them."""
        proxy = await self.proxy(self.store())
        heard: list[DemandLevel] = []
        proxy.components.demand.changed.append(lambda: heard.append(proxy.components.demand.level))
        client, root = proxy.client(), proxy.client(prefix="")
        await client.frames(self.slide.resource, [1])
        self.assertEqual(proxy.components.metrics.answered_from_cache(), 0)
        for _ in range(40):
            await client.frames(self.slide.resource, [1])
        await wait_until(lambda: heard, "some demand")
        self.assertGreater(heard[0], DemandLevel.LITTLE)
        (worker,) = (await root.get("/status.json")).json()["workers"]
        self.assertGreater(worker["cached_answers_per_second"], 0)
        await wait_until(lambda: heard[-1] is DemandLevel.LITTLE, "the end of it")

    async def test_metrics(self) -> None:
        """Prometheus reads them, and they count what happened."""
        proxy = await self.proxy(self.store())
        client, root = proxy.client(), proxy.client(prefix="")
        for numbers in ([1], [1], [1, 2], [99]):
            await client.frames(self.slide.resource, numbers)
        await client.get("/studies")
        found = samples(await root.get("/metrics"))

        def requests(route: str, code: str) -> float:
            return found["twistedproxy_requests_total", (("method", "GET"), ("route", route), ("status", code))]

        def outcomes(cache: str) -> float:
            return found["twistedproxy_request_seconds_count", (("cache", cache), ("route", "frames"))]

        self.assertEqual((requests("frames", "2xx"), requests("frames", "4xx"), requests("other", "2xx")), (3, 1, 1))
        self.assertEqual([outcomes(cache) for cache in ("hit", "miss", "partial", "none")], [1, 1, 1, 1])
        operations = {
            labels: value for (name, labels), value in found.items() if name.endswith("operation_seconds_count")
        }
        self.assertEqual(operations[("operation", "frames"), ("outcome", "ok")], 2)
        self.assertEqual(operations[("operation", "metadata"), ("outcome", "ok")], 1)
        self.assertEqual(found["twistedproxy_requests_in_flight", ()], 1)
        self.assertGreaterEqual(
            found["twistedproxy_client_bytes_total", (("direction", "out"),)], 4 * len(self.stored[0])
        )
        self.assertEqual(found["twistedproxy_cache_connected", ()], 1)
        self.assertGreater(found["twistedproxy_cache_used_bytes", ()], 0)


class CheckTests(SynchronousTestCase):
    """What readiness costs."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pings: list[Deferred[None]] = []
        mounts: Any = Mounts(
            MountedOrigin(f"/{name}", SimpleNamespace(ping=self.ping, url="http://s")) for name in "abc"
        )  # type: ignore[arg-type]
        cache: Any = SimpleNamespace(ping=self.answer)
        self.pages = StatusPages(mounts, cache, Metrics(), self.clock, dict)

    async def ping(self) -> None:
        self.pings.append(Deferred())
        await self.pings[-1]

    async def answer(self) -> None:
        """A cache that is there."""

    def checks(self) -> Deferred[Checks]:
        return Deferred.fromCoroutine(self.pages._checks())

    def test_stalling_origins(self) -> None:
        """Origins that do not answer cost one deadline together, however many there are."""
        checks = self.checks()
        self.assertEqual(3, len(self.pings))
        self.clock.advance(CHECK_SECONDS)
        found = self.successResultOf(checks)
        self.assertEqual({name for name, check in found.items() if check.usable}, {"cache"})
        self.assertTrue(found["origin /c"].text.startswith("no answer within 3 s (http://s: is it running"))

    def test_many_ask(self) -> None:
        """Asking again and again does not reach the origins each time, neither meanwhile nor for a moment afterwards."""
        many = [self.checks() for _ in range(5)]
        for ping in self.pings:
            ping.callback(None)
        for one in (*many, self.checks()):
            self.assertTrue(self.successResultOf(one)["origin /a"].usable)
        self.assertEqual(3, len(self.pings))
        self.clock.advance(READY_SECONDS)
        self.assertNoResult(self.checks())


class AdminTests(ProxyCase):
    """Where the pages are."""

    async def test_admin_listener(self) -> None:
        """With a listener of their own, metrics and status are nowhere else; nothing else is there."""
        proxy = await self.proxy(self.store(), admin_listen="tcp:0:interface=127.0.0.1")
        ordinary, admin = proxy.client(prefix=""), self._admin(proxy)
        for path in ("/metrics", "/status.json"):
            self.assertEqual((await ordinary.get(path)).status, 404)
            self.assertEqual((await admin.get(path)).status, 200)
        for path in ("/healthz", "/readyz"):
            self.assertEqual([(await one.get(path)).status for one in (ordinary, admin)], [200, 200])
        for method, path, code in (("GET", "/dicomweb/studies", 404), ("POST", "/metrics", 405)):
            answer = await admin.request(method, path)
            self.assertEqual((answer.status, answer.headers["content-type"]), (code, "application/problem+json"))

    def _admin(self, proxy: RunningProxy) -> Any:
        from tests.clients import client

        return client(self, f"http://127.0.0.1:{proxy.port_of(1)}")

    async def test_in_flight_falls_back(self) -> None:
        """A caller that hangs up is counted, and no more in flight."""
        from tests.clients import RawConnection

        store = self.store()
        proxy = await self.proxy(store)
        gate = store.hold("/frames/")
        connection = await RawConnection.open(proxy.port)
        connection.send(f"GET /dicomweb/{self.slide.resource}/frames/1 HTTP/1.1\r\nHost: p\r\n\r\n".encode())
        await gate.reached()
        await connection.close()
        await wait_until(lambda: proxy.components.metrics.snapshot()["requests_in_flight"] == [[[], [0.0]]])
        rows = proxy.components.metrics.snapshot()["requests"]
        self.assertEqual(rows, [[["frames", "GET", "4xx"], [1.0]]])
