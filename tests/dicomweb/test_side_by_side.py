"""Frames that are given while the metadata of their instance are under way, through sockets."""

from __future__ import annotations

import json

import attrs
from twisted.internet.defer import Deferred

from tests.cache.support import RunningServer, any_server
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, token
from tests.slides import slide
from tests.stores import faults
from tests.stores.dialects import DCM4CHEE, ORTHANC, STANDARD, Dialect
from tests.stores.simulated import SimulatedStore
from twistedproxy.cache.address import MemoryAddress, UnixAddress
from twistedproxy.dicom.multipart_writer import build

MISS = "twistedproxy; fwd=uri-miss; stored"
HIT = "twistedproxy; hit"


class SideBySideCase(ProxyCase):
    """A store whose metadata wait for `release`, and a proxy."""

    async def begin(self, dialect: Dialect = STANDARD) -> tuple[SimulatedStore, RunningProxy]:
        store = self.store(dialect)
        self.gate = store.hold("/metadata")
        return store, await self.proxy(store)

    def release(self) -> None:
        self.gate.release()


class AnswerTests(SideBySideCase):
    """Such an answer is like any other."""

    async def test_like_a_miss(self) -> None:
        """Headers and body are those of a frame that was not cached; ETag and body those of the hit that follows."""
        _, proxy = await self.begin()
        client = proxy.client(ALICE, settled=False)
        miss = await client.frames(self.slide.resource, [2])
        self.assertEqual((miss.status, miss.frames()), (200, self.stored[1:2]))
        self.release()
        await proxy.settled()
        hit = await client.frames(self.slide.resource, [2])
        other = await client.frames(self.slide.resource, [3])
        self.assertEqual([one.headers.pop("cache-status") for one in (miss, hit, other)], [MISS, HIT, MISS])
        for one in (miss, hit, other):
            del one.headers["date"], one.headers["x-request-id"]
        self.assertEqual((miss.headers, miss.body), (hit.headers, hit.body))
        self.assertEqual(miss.headers.keys(), other.headers.keys())

    async def test_head_range_and_conditions(self) -> None:
        """HEAD, Range and If-None-Match mean what they mean elsewhere."""
        _, proxy = await self.begin()
        client = proxy.client(ALICE, settled=False)
        path = f"/{self.slide.resource}/frames/1"
        whole = await client.get(path, {"Accept": "image/jpeg"})
        self.assertEqual(whole.body, self.stored[0])
        head = await client.request("HEAD", path, {"Accept": "image/jpeg"})
        self.assertEqual((head.status, head.body, head.headers["etag"]), (200, b"", whole.headers["etag"]))
        part = await client.get(path, {"Accept": "image/jpeg", "Range": "bytes=2-5"})
        self.assertEqual((part.status, part.body), (206, self.stored[0][2:6]))
        same = await client.get(path, {"Accept": "image/jpeg", "If-None-Match": whole.headers["etag"]})
        self.assertEqual((same.status, same.body), (304, b""))
        rows = proxy.components.metrics.snapshot()["requests"]
        self.assertEqual(
            {tuple(labels) for labels, _ in rows},
            {("frames", "GET", "2xx"), ("frames", "HEAD", "2xx"), ("frames", "GET", "3xx")},
        )
        self.release()

    async def test_contradicted(self) -> None:
        """A frame that the metadata contradict later is neither in the cache nor among the hot answers."""
        server = await RunningServer(any_server()).start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        for cache in (MemoryAddress(), UnixAddress(server.socket)):  # before the latter whole answers are hot
            store = self.store()
            store.fail(faults.number_of_frames(2), "/metadata", None)
            gate = store.hold("/metadata")
            proxy = await self.proxy(store, cache=cache, hot_memory=1 << 20)
            client = proxy.client(settled=False)
            self.assertEqual((await client.frames(self.slide.resource, [3])).frames(), self.stored[2:3])
            gate.release()
            await proxy.settled()
            self.assertEqual((await client.frames(self.slide.resource, [3])).status, 404)

    async def test_every_store(self) -> None:
        """Stores of each kind give frames so, once it is known how to ask them, and before."""
        for dialect in (STANDARD, ORTHANC):
            _, proxy = await self.begin(dialect)
            answer = await proxy.client(settled=False).frames(self.slide.resource, [1])
            self.assertEqual(answer.frames(), self.stored[:1], dialect)
            self.release()

    async def test_store_that_decompresses(self) -> None:
        """What an unknown store has decompressed is not given as stored: the metadata are waited for, and it is asked otherwise."""
        store = self.store(attrs.evolve(DCM4CHEE, root="/some/rs"))
        client = (await self.proxy(store)).client()
        answer = await client.frames(self.slide.resource, [1])
        self.assertEqual((answer.frames(), answer.headers["cache-status"]), (self.stored[:1], MISS))

    async def test_native(self) -> None:
        """Native frames wait for the metadata, and are asked for once."""
        store = self.store(STANDARD, slide(self.mktemp(), 2, 3, 64, encoding="raw"))
        gate = store.hold("/metadata")
        proxy = await self.proxy(store)
        asking = Deferred.fromCoroutine(proxy.client(settled=False).frames(self.slide.resource, [1]))
        await store.requested("/frames/")
        await gate.reached()
        self.assertNoResult(asking)
        gate.release()
        answer = await asking
        self.assertEqual((answer.frames(), answer.headers["cache-status"]), (self.stored[:1], MISS))
        self.assertEqual(len(store.lines("/frames/")), 1)

    async def test_fault_of_a_frame(self) -> None:
        """A frame that comes malformed, cut off or labelled wrongly is asked for again once the metadata are known."""
        for fault in (faults.html(), faults.server_error(), faults.Answer(406)):
            store = self.store()
            store.fail(fault, "/frames/")
            client = (await self.proxy(store)).client()
            self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1], fault)


class RightsTests(SideBySideCase):
    """Who gets what, while metadata are under way."""

    async def test_cached_for_others_only_with_a_grant(self) -> None:
        """A frame that one caller has got is not given to another: the store is asked, and its refusal goes back."""
        store, proxy = await self.begin()
        alice, mallory = (proxy.client(headers, settled=False) for headers in (ALICE, MALLORY))
        self.assertEqual((await alice.frames(self.slide.resource, [1])).status, 200)
        for status in (401, 403):
            store.fail(faults.Answer(status, (("WWW-Authenticate", "Bearer"),), b"no"), "/frames/")
            answer = await mallory.frames(self.slide.resource, [1])
            self.assertEqual((answer.status, answer.body), (status, b"no"))
            self.assertEqual(answer.headers.get("www-authenticate"), "Bearer")
        self.release()
        await proxy.settled()
        store.fail(faults.Answer(403, (), b"no"), "", None)
        self.assertEqual((await mallory.frames(self.slide.resource, [1])).status, 403)
        self.assertEqual((await alice.frames(self.slide.resource, [1])).headers["cache-status"], HIT)

    async def test_metadata_refused(self) -> None:
        """The store gives a caller frames and no metadata: the frames pass, and lists, which need facts, are refused."""
        store = self.store()
        store.fail(faults.Answer(403, (), b"no"), "/metadata", None)
        client = (await self.proxy(store)).client(ALICE)
        for number in (1, 2, 1):
            answer = await client.frames(self.slide.resource, [number])
            self.assertEqual(answer.frames(), [self.stored[number - 1]])
            self.assertNotEqual(answer.headers["cache-status"], HIT)
        self.assertEqual((await client.frames(self.slide.resource, [1, 2])).status, 403)

    async def test_a_cache_on_the_way(self) -> None:
        """A frame that a cache in front of the store gives, though it was to ask the store, opens nothing else; one that it has asked
        for does (some say so with an Age of 0)."""
        for age, status in (("7", 502), ("soon", 502), ("0", 200)):
            store = self.store()
            store.allow(token(ALICE))
            proxy = await self.proxy(store)
            alice, mallory = proxy.client(ALICE), proxy.client(MALLORY)
            for number in (1, 2):
                self.assertEqual((await alice.frames(self.slide.resource, [number])).status, 200)
            metadata = json.dumps([store.instances[self.slide.sop].metadata]).encode()
            part = build([self.stored[0]], "image/jpeg", "1.2.840.10008.1.2.4.50")
            for content_type, body, path in (
                ("application/dicom+json", metadata, "/metadata"),
                (part.content_type.decode(), b"".join(part.chunks), "/frames/1"),
            ):
                store.fail(faults.Answer(200, (("Content-Type", content_type), ("Age", age)), body), path, None)
            await mallory.frames(self.slide.resource, [1])
            self.assertEqual((await mallory.frames(self.slide.resource, [2])).status, status, age)

    async def test_ended_meanwhile(self) -> None:
        """After a DELETE nothing that was cached before it is given, and what comes late is not kept."""
        store, proxy = await self.begin()
        client = proxy.client(ALICE, settled=False)
        await client.frames(self.slide.resource, [1])
        self.assertEqual((await client.request("DELETE", f"/{self.slide.resource}")).status, 204)
        self.release()
        await proxy.settled()
        self.assertEqual((await client.frames(self.slide.resource, [1])).status, 404)
