"""What a store or a script tells the proxy of: ``DELETE …/cache`` at the listener for administrators."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from tests.clients import Answer, Client, client
from tests.dicomweb.support import ALICE, STORED, ProxyCase, RunningProxy, logged, token
from tests.slides import slide
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.dicom.resource import Scope
from twistedproxy.frames.invalidation import RETRY_SECONDS

HIT, MISS = "twistedproxy; hit", "twistedproxy; fwd=uri-miss; stored"


class PurgeCase(ProxyCase):
    """A proxy with a listener for administrators."""

    async def begin(self, **settings: Any) -> None:
        self.origin: SimulatedStore = self.store()
        self.origin.allow(token(ALICE))
        self.running: RunningProxy = await self.proxy(
            self.origin, admin_listen="tcp:0:interface=127.0.0.1", hot_memory=1 << 24, **settings
        )
        self.alice = self.running.client(ALICE)
        self.admin: Client = client(self, f"http://127.0.0.1:{self.running.port_of(1)}")
        self.study = f"/dicomweb/studies/{self.slide.study}"
        self.series = f"{self.study}/series/{self.slide.series}"
        self.instance = f"{self.series}/instances/{self.slide.sop}"

    async def frame(self) -> Answer:
        """Frame 1, as the proxy gives it."""
        answer = await self.alice.frames(self.slide.resource, [1], STORED)
        self.assertEqual(answer.status, 200)
        return answer

    async def purge(self, path: str) -> Answer:
        """The answer to a purge."""
        return await self.admin.request("DELETE", f"{path}/cache")


class PurgeTests(PurgeCase):
    """What is gone, and how it is said."""

    async def test_gone(self) -> None:
        """At each level the old frame is gone, and what the store has now is given; what nobody has is purged as well."""
        await self.begin()
        await self.frame()
        for number, path in enumerate((self.instance, self.series, self.study), start=1):
            self.assertEqual((await self.frame()).headers["cache-status"], HIT)
            uids = {"study": self.slide.study, "series": self.slide.series, "sop": self.slide.sop}
            twin = slide(self.mktemp(), 2, 3, 64 - 8 * number, **uids)
            self.origin.add(twin.path)
            self.assertEqual((await self.frame()).frames(), self.stored[:1], "not noticed without a purge")
            with logged() as events:
                answers = [await self.purge(path) for _ in range(2)]
            self.assertEqual([(one.status, one.body) for one in answers], [(204, b"")] * 2)
            self.assertEqual([one["path"] for one in events if one.get("event") == "purged"], [f"{path}/cache"] * 2)
            answer = await self.frame()
            self.stored = twin.stored_frames()
            self.assertEqual((answer.frames(), answer.headers["cache-status"]), (self.stored[:1], MISS))
        self.assertEqual((await self.purge("/dicomweb/studies/1.2.3")).status, 204)
        self.assertEqual((await self.purge(self.study.replace("/studies", "/projects/one/studies"))).status, 204)
        self.assertEqual(self.origin.seen("/cache"), [])

    async def test_others_stay(self) -> None:
        """What lies beside is not touched."""
        await self.begin()
        await self.frame()
        for path in (f"{self.series}/instances/1.2", f"{self.study}/series/1.2", "/dicomweb/studies/1.2"):
            self.assertEqual((await self.purge(path)).status, 204)
        self.assertEqual((await self.frame()).headers["cache-status"], HIT)

    async def test_refused(self) -> None:
        """Wrong UIDs are named; what is nothing to be purged is not found; other methods are not allowed."""
        await self.begin()
        wrong = await self.purge("/dicomweb/studies/1.2/series/1.x")
        self.assertEqual((wrong.status, wrong.headers["content-type"]), (400, "application/problem+json"))
        self.assertIn("'1.x' is not a UID", wrong.json()["detail"])
        for path in ("", "/dicomweb", "/other/studies/1.2", f"{self.instance}/frames/1"):
            answer = await self.purge(path)
            self.assertEqual((answer.status, answer.headers["content-type"]), (404, "application/problem+json"), path)
        self.assertEqual((await self.admin.request("DELETE", self.study)).status, 404)
        for method in ("GET", "POST"):
            answer = await self.admin.request(method, f"{self.study}/cache")
            self.assertEqual((answer.status, answer.headers["allow"]), (405, "DELETE"))
        answer = await self.admin.request("DELETE", "/metrics")
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD"))

    async def test_pages(self) -> None:
        """No page in a browser purges, of whichever origin it is or seems to be."""
        await self.begin()
        await self.frame()
        own = f"http://127.0.0.1:{self.running.port_of(1)}"
        for origin in (own, "https://evil.test", "null"):
            answer = await self.admin.request("DELETE", f"{self.study}/cache", {"Origin": origin})
            self.assertEqual((answer.status, answer.headers["content-type"]), (403, "application/problem+json"))
        self.assertEqual((await self.frame()).headers["cache-status"], HIT)

    async def test_not_public(self) -> None:
        """Elsewhere it is not found, whether there is a listener for administrators or not, and is never handed on."""
        await self.begin()
        without = await self.proxy(self.origin)
        for running in (self.running, without):
            await running.client(ALICE).frames(self.slide.resource, [1], STORED)
            seen = len(self.origin.requests)
            for method in ("DELETE", "GET", "POST", "PUT"):
                answer = await running.client(ALICE).request(method, f"{self.series.removeprefix('/dicomweb')}/cache")
                self.assertEqual((answer.status, answer.headers["content-type"]), (404, "application/problem+json"))
                self.assertIn("--admin-listen", answer.json()["detail"])
            self.assertEqual(len(self.origin.requests), seen)
            answer = await running.client(ALICE).frames(self.slide.resource, [1], STORED)
            self.assertEqual(answer.headers["cache-status"], HIT)

    async def test_not_confirmed(self) -> None:
        """While the cache cannot be told, that is said, and this host gives nothing of it from the cache; it is told as soon as it
        can be, without being asked once more."""
        await self.begin()
        await self.frame()
        cache = self.running.components.cache
        real, told = cache.invalidate, Deferred[None]()

        async def down(scope: Scope) -> None:
            raise CacheUnavailable("down")

        async def up(scope: Scope) -> None:
            await real(scope)
            told.callback(None)

        self.patch(cache, "invalidate", down)
        answer = await self.purge(self.series)
        self.assertEqual((answer.status, answer.headers["content-type"]), (503, "application/problem+json"))
        self.assertGreater(float(answer.headers["retry-after"]), RETRY_SECONDS)
        self.assertIn("did not confirm", answer.json()["detail"])
        self.assertNotIn("hit", (await self.frame()).headers["cache-status"])
        self.patch(cache, "invalidate", up)
        await told
        await wait_until(lambda: not self.running.components.invalidation.pending)
        self.assertEqual((await self.frame()).headers["cache-status"], MISS)
        self.patch(cache, "invalidate", real)
        self.assertEqual((await self.purge(self.series)).status, 204)
