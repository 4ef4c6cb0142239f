"""Pictures of frames where nothing is rendered here: the stored frame where it is the picture, else the origin's, kept."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from tests.clients import Client
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, token
from tests.slides import slide
from tests.stores import faults
from tests.stores.dialects import STANDARD
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until

HIT, MISS = "twistedproxy; hit", "twistedproxy; fwd=uri-miss; stored"
PNG = (("Content-Type", "image/png"),)


class RenderedCase(ProxyCase):
    """A proxy without rendering workers in front of a store with one slide that is not JPEG."""

    async def started(self, encoding: str = "raw") -> tuple[SimulatedStore, Client]:
        """The store, and a client of the proxy."""
        store = self.store(STANDARD, slide(self.mktemp(), 2, 3, 64, encoding=encoding))
        self.path = f"/{self.slide.resource}/frames/1/rendered"
        self.running: RunningProxy = await self.proxy(store, render_workers=0)
        return store, self.running.client()


class StoredTests(RenderedCase):
    """A JPEG frame is its own picture."""

    async def test_stored_jpeg(self) -> None:
        """The stored JPEG is given as image/jpeg, to whoever takes that, and shares the cache with frames."""
        store, client = await self.started("jpeg")
        for accept in ("image/jpeg", "*/*", "image/png;q=0.5, image/jpeg"):
            answer = await client.get(self.path, {"Accept": accept})
            self.assertEqual((answer.headers["content-type"], answer.body), ("image/jpeg", self.stored[0]))
        self.assertEqual(answer.headers["cache-status"], HIT)
        self.assertEqual(store.lines("/rendered"), [])
        self.assertEqual((await client.frames(self.slide.resource, [1])).headers["cache-status"], HIT)

    async def test_gray_jpeg(self) -> None:
        """What is gray is the origin's to make: it may have a window, which is not known here."""
        store, client = await self.started("jpeg-gray")
        await client.get(self.path, {"Accept": "image/jpeg"})
        self.assertEqual(store.lines("/rendered"), [f"GET {self.path}"])

    async def test_other_pictures_of_jpeg(self) -> None:
        """PNG, or a picture with parameters, is the origin's to make; so is what we have not heard of."""
        store, client = await self.started("jpeg")
        await client.get(self.path, {"Accept": "image/png"})
        await client.get(f"{self.path}?viewport=10,10", {"Accept": "image/jpeg"})
        await client.get(self.path, {"Accept": "image/apng"})
        self.assertEqual(
            store.lines("/rendered"), [f"GET {self.path}", f"GET {self.path}?viewport=10,10", f"GET {self.path}"]
        )


class OriginPictureTests(RenderedCase):
    """The origin's pictures are kept."""

    async def test_second_time(self) -> None:
        """The second time comes from the cache with the same headers; an If-None-Match is heard."""
        store, client = await self.started()
        first = await client.get(self.path, {"Accept": "image/jpeg"})
        second = await client.get(self.path, {"Accept": "image/jpeg"})
        self.assertEqual((first.headers["cache-status"], second.headers["cache-status"]), (MISS, HIT))
        self.assertEqual((second.body, second.headers["etag"]), (first.body, first.headers["etag"]))
        self.assertEqual(second.headers["content-type"], "image/jpeg")
        self.assertEqual(second.headers["cache-control"], "private, max-age=3600")
        self.assertEqual(len(store.lines("/rendered")), 1)
        third = await client.get(self.path, {"Accept": "image/jpeg", "If-None-Match": first.headers["etag"]})
        self.assertEqual(third.status, 304)

    async def test_disable_caching(self) -> None:
        """The origin's pictures are asked for anew, and not kept, where nothing is to be cached."""
        store, client = await self.started("jpeg")
        path = f"{self.path}?disable_caching=true"
        for count in (1, 2):
            answer = await client.get(path, {"Accept": "image/png"})
            self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=request")
            self.assertEqual(answer.headers["cache-control"], "no-store")
            self.assertEqual(len(store.lines("/rendered")), count)
        self.assertEqual((await client.get(f"{self.path}?disable_caching=perhaps")).status, 400)

    async def test_what_the_answer_depends_on(self) -> None:
        """Accept, the query and the frame list each make another picture."""
        store, client = await self.started()
        asked = (
            (self.path, "image/jpeg"),
            (self.path, "image/png"),
            (f"{self.path}?window=1,2,linear", "image/jpeg"),
            (self.path.replace("frames/1", "frames/2"), "image/jpeg"),
        )
        for number, (path, accept) in enumerate(asked):
            store.fail(faults.Answer(200, PNG, b"picture %d" % number), "/rendered")
            self.assertEqual((await client.get(path, {"Accept": accept})).body, b"picture %d" % number)
        for number, (path, accept) in enumerate(asked):
            self.assertEqual((await client.get(path, {"Accept": accept})).body, b"picture %d" % number)
        self.assertEqual(len(store.lines("/rendered")), 4)

    async def test_shared(self) -> None:
        """Who asks for a picture that is on its way waits for it."""
        store, client = await self.started()
        gate = store.hold("/rendered")
        asked = [Deferred.fromCoroutine(client.get(self.path)) for _ in range(3)]
        await gate.reached()
        fetches = self.running.rooms._routes._rendered.by_origin.pictures._in_flight._fetches
        await wait_until(lambda: [len(fetch._waiters) for fetch in fetches.values()] == [3])
        gate.release()
        answers = await gatherResults(asked)
        self.assertEqual(
            sorted(answer.headers["cache-status"] for answer in answers), [MISS] + [f"{MISS}; collapsed"] * 2
        )
        self.assertEqual(len(store.lines("/rendered")), 1)

    async def test_short_path(self) -> None:
        """A path without the series is resolved, and the origin asked by the whole path."""
        store, client = await self.started()
        short = f"/studies/{self.slide.study}/instances/{self.slide.sop}/frames/1/rendered"
        self.assertEqual((await client.get(short)).status, 200)
        self.assertEqual(store.lines("/rendered"), [f"GET {self.path}"])
        self.assertEqual((await client.get(self.path)).headers["cache-status"], HIT)

    async def test_refusal(self) -> None:
        """The origin's refusal goes back as it came and is not kept."""
        store, client = await self.started()
        store.fail(faults.Answer(406, (("Content-Type", "text/plain"),), b"no codec"), "/rendered")
        refused = await client.get(self.path)
        self.assertEqual(
            (refused.status, refused.headers["content-type"], refused.body), (406, "text/plain", b"no codec")
        )
        self.assertEqual(refused.headers["cache-control"], "no-store")
        self.assertEqual((await client.get(self.path)).status, 200)

    async def test_no_picture(self) -> None:
        """A page, a redirect, an encoded or half an answer is a 502, and is not kept."""
        store, client = await self.started()
        half = (("Content-Type", "multipart/related; type=image/png; boundary=b"),)
        wrong = (
            faults.html(),
            faults.redirect("https://elsewhere.test/"),
            faults.Answer(200, (*PNG, ("Content-Encoding", "gzip")), b"\x1f\x8b"),
            faults.Answer(200, half, b"--b\r\nContent-Type: image/png\r\n\r\nhalf"),
            faults.Answer(200, PNG, b""),
            faults.Answer(200, (), b"what is this"),
        )
        for fault in wrong:
            store.fail(fault, "/rendered")
            answer = await client.get(self.path)
            self.assertEqual((answer.status, answer.headers["content-type"]), (502, "application/problem+json"), fault)
        self.assertEqual((await client.get(self.path)).headers["cache-status"], MISS)

    async def test_past_the_end(self) -> None:
        """A frame that is not there has no picture."""
        store, client = await self.started()
        self.assertEqual((await client.get(self.path.replace("frames/1", "frames/7"))).status, 404)
        self.assertEqual(store.lines("/rendered"), [])

    async def test_grants(self) -> None:
        """Who may not read the instance gets no picture of it that another cached."""
        store, _ = await self.started()
        store.allow(token(ALICE))
        store.allow(token(MALLORY), "1.2.3")
        self.assertEqual((await self.running.client(ALICE).get(self.path)).status, 200)
        self.assertEqual((await self.running.client(MALLORY).get(self.path)).status, 403)
        self.assertEqual((await self.running.client().get(self.path)).status, 401)
        self.assertEqual(len(store.lines("/rendered")), 1)
