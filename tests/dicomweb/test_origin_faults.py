"""Origins that fail in the middle of frames, and cache servers that die: clear answers in time, nothing wrong kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from tests.cache.support import RunningServer, any_server
from tests.clients import Answer, Client
from tests.dicomweb.support import ProxyCase
from tests.stores import faults
from tests.stores.faults import Fault
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.cache.address import UnixAddress

SHORT = {"origin_timeout": 1.0, "origin_stall_timeout": 0.3, "origin_connect_timeout": 0.5}
HIT = "twistedproxy; hit"


class FaultCase(ProxyCase):
    """A proxy with short deadlines."""

    async def started(self, **settings: Any) -> tuple[SimulatedStore, Client]:
        """The store, and a client that has a grant."""
        store = self.store()
        client = (await self.proxy(store, **{**SHORT, **settings})).client(seconds=5.0)
        self.assertEqual((await client.frames(self.slide.resource, [6])).status, 200)
        return store, client

    def is_instance(self, seen: Any) -> bool:
        """Whether a request is for the instance as a file, which helps where frames are refused."""
        return bool(seen.path.endswith(self.slide.sop))

    @staticmethod
    def is_decoded(seen: Any) -> bool:
        """Whether a request is for decoded frames."""
        return "/frames/" in seen.path and "transfer-syntax=1.2.840.10008.1.2.1" in seen.header("Accept")

    async def check(self, store: SimulatedStore, client: Client, fault: Fault, *statuses: int) -> None:
        """While *fault* lasts, frames 1 and 2 get one of *statuses* as a problem; afterwards they are right, and
        came from the origin."""
        store.fail(fault, "/frames/", None)
        store.fail(faults.Answer(404), self.is_instance, None)
        for numbers in ([1, 2], [1]):
            answer = await client.frames(self.slide.resource, numbers)
            self.assertIn(answer.status, statuses, (fault, answer.body))
            self.assertEqual(answer.headers["content-type"], "application/problem+json", fault)
            self.assertIn("origin", answer.json()["detail"], fault)
            self.assertEqual(answer.headers["cache-control"], "no-store")
        store.heal()
        healed = await client.frames(self.slide.resource, [1, 2])
        self.assertEqual((healed.status, healed.frames()), (200, self.stored[:2]), fault)
        self.assertIn("fwd=uri-miss", healed.headers["cache-status"], fault)


class FrameFaultTests(FaultCase):
    """Frames from an origin that fails."""

    async def test_stalls(self) -> None:
        """Silence before or in the middle of an answer is a 504 at the deadline."""
        for fault in (faults.Stall(), faults.Stall(after=100)):
            store, client = await self.started()
            await self.check(store, client, fault, 504)

    async def test_broken_connections(self) -> None:
        """A connection that breaks is a 502."""
        for fault in (faults.Reset(), faults.Reset(after=100), faults.Close(), faults.Close(after=100)):
            store, client = await self.started()
            await self.check(store, client, fault, 502)

    async def test_wrong_answers(self) -> None:
        """Pages, halves, too few or too many parts, a missing closing delimiter, another type: 502."""
        for fault in (
            faults.html(),
            faults.HalfMultipart(),
            faults.TooFewParts(),
            faults.TooManyParts(),
            faults.NoClosingDelimiter(),
            faults.WrongPartType("text/html"),
            faults.WrongPartType("image/jp2; transfer-syntax=1.2.840.10008.1.2.4.90"),
            faults.redirect("http://127.0.0.1:1/elsewhere"),
            faults.Answer(200, (("Content-Type", "image/jpeg"),), b""),
            faults.Answer(204),
        ):
            store, client = await self.started()
            await self.check(store, client, fault, 502)

    async def test_frames_refused(self) -> None:
        """Frames that the origin refuses come out of the instance at once, and are cached with the others in it."""
        store, client = await self.started(prefetch=False)
        store.fail(faults.server_error(), "/frames/", None)
        answer = await client.frames(self.slide.resource, [1])
        self.assertEqual(answer.frames(), self.stored[:1])
        again = await client.frames(self.slide.resource, [1, 2, 3])
        self.assertEqual((again.frames(), again.headers["cache-status"]), (self.stored[:3], HIT))

    async def test_decoded_by_the_origin(self) -> None:
        """Where it gives no instance either, it is asked for decoded frames, if the caller takes those: they are not
        cached. Who wants them as stored gets the refusal as it came; what was refused is not asked for again soon."""
        octets = "multipart/related; type=application/octet-stream"
        for accept, status in ((f"{octets}; transfer-syntax=*", 200), (octets, 200), (f"{octets}, image/png", 200),
                               ("multipart/related; type=image/jpeg", 500)):  # fmt: skip
            store, client = await self.started(prefetch=False)
            store.fail(faults.Answer(404), self.is_instance, None)
            store.fail(
                faults.server_error(),
                lambda seen: "/frames/" in seen.path and not self.is_decoded(seen),
                None,
            )
            for _ in range(2):
                answer = await client.frames(self.slide.resource, [1], accept)
                self.assertEqual(answer.status, status, accept)
                if status == 200:
                    self.assertIn(b"decompressed", answer.frames()[0])
                    self.assertIn("fwd", answer.headers["cache-status"])
        # A refusal may be meant for one caller, and of some kinds the next request may go well.
        for status, again in ((406, 1), (404, 1), (500, 2), (403, 2)):
            store, client = await self.started(prefetch=False)
            store.fail(faults.Answer(404), self.is_instance, None)
            store.fail(faults.Answer(status), self.is_decoded, None)
            store.fail(faults.server_error(), "/frames/", None)
            for asked, cookie in ((2, "of=one"), (again, "of=one"), (2, "of=another")):
                before = len(store.seen("/frames/"))
                self.assertEqual((await client.frames(self.slide.resource, [1], octets, Cookie=cookie)).status, 500)
                self.assertEqual(len(store.seen("/frames/")) - before, asked, status)

    async def test_own_errors(self) -> None:
        """The origin's own errors go back as they came."""
        for fault in (faults.server_error(), faults.too_many_requests(60), faults.unavailable(60)):
            store, client = await self.started()
            store.fail(fault, "/frames/", None)
            store.fail(faults.Answer(404), self.is_instance, None)
            answer = await client.frames(self.slide.resource, [1])
            self.assertEqual((answer.status, answer.body), (fault.status, fault.body))
            for name, value in fault.headers:
                self.assertEqual(answer.headers[name.lower()], value)
            store.heal()
            self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1])

    async def test_patience(self) -> None:
        """An origin that asks to come back soon is asked again: the caller notices nothing."""
        store, client = await self.started(origin_timeout=5.0)
        store.fail(faults.too_many_requests(0), "/frames/1")
        self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1])

    async def test_gone(self) -> None:
        """An origin that is gone costs what is not cached, and nothing else."""
        store, client = await self.started()
        await store.stop()
        self.assertEqual((await client.frames(self.slide.resource, [1])).status, 502)
        self.assertEqual((await client.frames(self.slide.resource, [6])).headers["cache-status"], HIT)
        store.start(store.port)
        self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1])

    async def test_all_who_wait(self) -> None:
        """All who wait for a fetch that fails are told, and it was one fetch."""
        store, client = await self.started()
        store.fail(faults.Stall(), "/frames/1", None)
        asked = [Deferred.fromCoroutine(client.frames(self.slide.resource, [1])) for _ in range(20)]
        self.assertEqual({answer.status for answer in await gatherResults(asked)}, {504})
        self.assertEqual(len(store.lines("/frames/1")), 1)


class MetadataFaultTests(FaultCase):
    """Metadata from an origin that fails: no grant, and no frames, but the one that the origin gives without."""

    async def test_faults(self) -> None:
        """The first request for an instance fails as clearly, and works after recovery."""
        cases: Sequence[tuple[Fault, int]] = (
            (faults.Stall(), 504),
            (faults.Stall(after=50), 504),
            (faults.Reset(after=50), 502),
            (faults.html(), 502),
            (faults.Answer(200, (("Content-Type", "application/dicom+json"),), b"[]"), 502),
            (faults.Answer(200, (("Content-Type", "application/dicom+json"),), b'[{"00280008"'), 502),
            (faults.Answer(204), 502),
            (faults.server_error(), 500),
        )
        for fault, status in cases:
            store = self.store()
            client = (await self.proxy(store, **SHORT)).client(seconds=5.0)  # type: ignore[arg-type]
            store.fail(fault, "/metadata", None)
            self.assertEqual((await client.frames(self.slide.resource, [1, 2])).status, status, fault)
            self.assertEqual(store.lines("/frames/"), [], fault)
            self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1], fault)
            store.heal()
            self.assertEqual((await client.frames(self.slide.resource, [1, 2])).frames(), self.stored[:2], fault)

    async def test_wrong_number_of_frames(self) -> None:
        """Metadata that promise more frames than there are end in the origin's 404, and nothing is kept of it."""
        store = self.store()
        client = (await self.proxy(store, **SHORT)).client()  # type: ignore[arg-type]
        store.fail(faults.number_of_frames(9), "/metadata")
        self.assertEqual((await client.frames(self.slide.resource, [8])).status, 404)
        self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1])


class CacheServerTests(FaultCase):
    """The cache's server dies under load."""

    async def test_killed_and_back(self) -> None:
        """No answer fails, and caching resumes by itself."""
        server = await RunningServer(any_server()).start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        store = self.store()
        proxy = await self.proxy(store, cache=UnixAddress(server.socket), origin_timeout=5.0)
        client = proxy.client()
        answers: list[Answer] = []
        stopping = False

        async def keep_asking() -> None:
            number = 0
            while not stopping:
                number = number % 6 + 1
                answer = await client.frames(self.slide.resource, [number])
                self.assertEqual((answer.status, answer.frames()), (200, [self.stored[number - 1]]))
                answers.append(answer)

        asking = [Deferred.fromCoroutine(keep_asking()) for _ in range(8)]
        await wait_until(lambda: any(answer.headers["cache-status"] == HIT for answer in answers))
        before = len(answers)
        await server.kill()
        miss = "twistedproxy; fwd=uri-miss"
        await wait_until(lambda: any(answer.headers["cache-status"] == miss for answer in answers[before:]))
        await server.start()
        await wait_until(lambda: answers[-1].headers["cache-status"] == HIT)
        stopping = True
        await gatherResults(asking)
