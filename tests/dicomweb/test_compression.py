"""Compressed answers: streams on a clock, and a whole proxy between real sockets."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.clients import Answer
from tests.dicomweb.support import ProxyCase
from tests.stores import faults
from twistedproxy.dicomweb import description_answers
from twistedproxy.server import compression
from twistedproxy.streams import BytesStream, ByteStream, read_all

JSON = ("Content-Type", "application/dicom+json")


def described(items: int) -> bytes:
    """DICOM JSON of *items* instances."""
    chance = random.Random(4)
    return json.dumps(
        [{"00080018": {"vr": "UI", "Value": [f"2.25.{chance.getrandbits(100)}"]}} for _ in range(items)]
    ).encode()


def decoded(coding: str, data: bytes) -> bytes:
    """All that *data* holds, whether or not the end is there."""
    if coding == "gzip":
        return zlib.decompressobj(31).decompress(data)
    return bytes(compression.ZSTD_LIBRARY.ZstdDecompressor().decompress(data))


class StreamTests(SynchronousTestCase):
    """`compressed`."""

    def test_whole(self) -> None:
        """What comes out is what went in, however it was cut, and much smaller; nothing at all is well-formed too."""
        data = described(8_000)
        for coding in compression.COMPRESSORS:
            for chunks in ([data], [data[at : at + 999] for at in range(0, len(data), 999)], []):
                packed = self.all_of(BytesStream(*chunks), coding)
                self.assertEqual(decoded(coding, packed), b"".join(chunks))
                self.assertLess(len(packed), max(100, len(data) // 2))
        self.assertEqual(gzip.decompress(self.all_of(BytesStream(), "gzip")), b"")

    def all_of(self, source: ByteStream, coding: str) -> bytes:
        """Everything, with the clock turning."""
        clock = Clock()
        reading = Deferred.fromCoroutine(read_all(compression.compressed(source, coding, clock), 1 << 30))
        while not reading.called:
            (call,) = clock.getDelayedCalls()
            clock.advance(0)
        return self.successResultOf(reading)


class AnswerTests(ProxyCase):
    """Metadata, searches, STOW answers and pages."""

    big = described(200)

    async def given(
        self, accept_encoding: str, *headers: tuple[str, str], body: bytes = big, status: int = 200, **more: Any
    ) -> Answer:
        """What the proxy makes of a store's answer."""
        if not hasattr(self, "origin"):
            self.origin = self.store()
            self.running = await self.proxy(self.origin)
            self.ask = self.running.client()
        self.origin.fail(faults.Answer(status, (JSON, *headers), body), "/studies")
        method, path = more.get("method", "GET"), more.get("path", "/studies")
        return await self.ask.request(method, path, {"Accept-Encoding": accept_encoding} if accept_encoding else {})

    async def test_codings(self) -> None:
        """A search comes in the coding that the client asks for, with no length and a Vary; a client that asks for
        none gets it plain."""
        for coding in compression.COMPRESSORS:
            answer = await self.given(coding)
            self.assertEqual((answer.headers["content-encoding"], answer.headers["vary"]), (coding, "Accept-Encoding"))
            self.assertNotIn("content-length", answer.headers)
            self.assertEqual(decoded(coding, answer.body), self.big)
            self.assertLess(len(answer.body), len(self.big) // 2)
        for refused in ("", "br", "gzip;q=0, zstd;q=0"):
            answer = await self.given(refused)
            self.assertNotIn("content-encoding", answer.headers)
            self.assertEqual((answer.body, answer.headers["vary"]), (self.big, "Accept-Encoding"))

    async def test_metadata(self) -> None:
        """Real metadata are rewritten first, and say the same compressed or plain; HEAD tells what GET would."""
        store = self.store()
        client = (await self.proxy(store)).client()
        path = f"/{self.slide.resource}/metadata"
        plain = await client.get(path)
        packed = await client.get(path, {"Accept-Encoding": "gzip"})
        self.assertEqual(json.loads(gzip.decompress(packed.body)), plain.json())
        self.assertNotIn(store.server.encode(), gzip.decompress(packed.body))
        head = await client.request("HEAD", path, {"Accept-Encoding": "gzip"})
        self.assertEqual((head.status, head.body), (200, b""))
        for name in ("content-encoding", "vary", "content-type"):  # a tag needs the body
            self.assertEqual(head.headers.get(name), packed.headers.get(name), name)

    async def test_small(self) -> None:
        """Small answers stay plain, but for a client that refuses those."""
        small = described(3)
        answer = await self.given("gzip", body=small)
        self.assertNotIn("content-encoding", answer.headers)
        self.assertEqual(answer.body, small)
        required = await self.given("gzip, identity;q=0", body=small)
        self.assertEqual(gzip.decompress(required.body), small)

    async def test_length_not_told(self) -> None:
        """Where the store tells no length, its answer does."""
        chunked = ("Transfer-Encoding", "chunked")
        for body, coded in ((described(3), False), (self.big, True)):
            chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            answer = await self.given("gzip", chunked, body=chunks)
            self.assertEqual("content-encoding" in answer.headers, coded)
            self.assertEqual(gzip.decompress(answer.body) if coded else answer.body, body)

    async def test_left_alone(self) -> None:
        """What is a part, or must not be transformed, goes as it came."""
        answer = await self.given("gzip", ("Content-Range", "bytes 0-9/10"), status=206)
        self.assertEqual((answer.headers.get("content-encoding"), answer.body), (None, self.big))
        answer = await self.given("gzip", ("Cache-Control", "no-transform"))
        self.assertEqual((answer.headers.get("content-encoding"), answer.body), (None, self.big))

    async def test_coded_by_the_store(self) -> None:
        """What the store coded unasked is looked into, and goes in a coding that the client takes."""
        packed = ("Content-Encoding", "gzip"), ("ETag", '"a"')
        for accepted, coding in (("gzip", "gzip"), ("identity", None)):
            answer = await self.given(accepted, *packed, body=gzip.compress(self.big))
            self.assertEqual((answer.headers.get("content-encoding"), answer.headers["etag"]), (coding, 'W/"a"'))
            self.assertEqual(gzip.decompress(answer.body) if coding else answer.body, self.big)
        refused = await self.given("br", ("Content-Encoding", "br"), body=b"x")
        self.assertEqual(refused.status, 502)

    async def test_frames(self) -> None:
        """Frames and what else is no description are never compressed."""
        client = (await self.proxy(self.store())).client()
        answer = await client.frames(self.slide.resource, [1, 2], **{"Accept-Encoding": "gzip, zstd"})
        self.assertEqual((answer.headers.get("content-encoding"), answer.frames()), (None, self.stored[:2]))
        bulk = await client.get(f"/{self.slide.resource}/bulkdata/7FE00010", {"Accept-Encoding": "gzip"})
        self.assertEqual((bulk.headers.get("content-encoding"), bulk.body), (None, b"".join(self.stored)))

    async def test_tags(self) -> None:
        """A coded answer has a weak tag, and so has the 304 for it."""
        tag = ("ETag", '"a"')
        for status in (200, 404):
            self.assertEqual((await self.given("gzip", tag, status=status)).headers["etag"], 'W/"a"')
        unchanged = await self.given("gzip", tag, body=b"", status=304)
        self.assertEqual(
            (unchanged.status, unchanged.headers["etag"], unchanged.headers["vary"]),
            (304, 'W/"a"', "Accept-Encoding"),
        )

    async def test_stow(self) -> None:
        """A STOW's long answer is compressed too; errors of the proxy's own are not."""
        body = json.dumps({"00081199": {"vr": "SQ", "Value": json.loads(self.big)}}).encode()
        answer = await self.given("gzip", body=body, method="POST")
        self.assertEqual(json.loads(gzip.decompress(answer.body)), json.loads(body))
        nothing = await self.ask.get("/nothing", {"Accept-Encoding": "gzip"})
        self.assertEqual((nothing.status, nothing.headers.get("content-encoding")), (404, None))

    async def test_broken(self) -> None:
        """An answer that breaks off is no whole compressed one."""
        self.patch(description_answers, "SEARCH_LIMIT", 1 << 16)  # a longer one is streamed
        self.origin = self.store()
        self.running = await self.proxy(self.origin, origin_stall_timeout=0.3)
        body = described(6_000)
        self.origin.fail(faults.Answer(200, (JSON,), body), "/studies")
        self.origin.hold("/studies", after=len(body) - 10)
        connection = await self.raw()
        connection.send(b"GET /dicomweb/studies HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
        came = await connection.end()
        self.assertIn(b"Content-Encoding: gzip", came)
        self.assertFalse(came.endswith(b"\r\n0\r\n\r\n"))

    async def raw(self) -> Any:
        """A bare connection to the proxy."""
        from tests.clients import RawConnection

        connection = await RawConnection.open(self.running.port)
        self.addCleanup(lambda: Deferred.fromCoroutine(connection.close()))
        return connection

    async def test_pages(self) -> None:
        """Metrics and status are compressed for who asks, HEAD alike; the small pages stay as they are."""
        root = (await self.proxy(self.store())).client(prefix="")
        asked = {"Accept-Encoding": "gzip"}
        metrics = await root.get("/metrics", asked)
        self.assertIn(b"twistedproxy_requests_total", gzip.decompress(metrics.body))
        self.assertEqual((metrics.headers["content-encoding"], metrics.headers["vary"]), ("gzip", "Accept-Encoding"))
        head = await root.request("HEAD", "/metrics", asked)
        self.assertEqual((head.headers.get("content-encoding"), head.body), ("gzip", b""))
        health = await root.get("/healthz", asked)
        self.assertEqual((health.headers.get("content-encoding"), health.json()), (None, {"status": "ok"}))
        plain = await root.get("/metrics")
        self.assertEqual(plain.headers["content-length"], str(len(plain.body)))


class LibraryTests(SynchronousTestCase):
    """zstd is there where its library is."""

    def test_zstd(self) -> None:
        """It comes first where it can be had."""
        if compression.ZSTD_LIBRARY is None:
            raise SkipTest("there is no zstd")
        self.assertEqual(list(compression.COMPRESSORS), ["zstd", "gzip"])
