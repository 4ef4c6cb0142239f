"""Long lists of frames over real sockets: sent in pieces, whole or visibly not whole."""

from __future__ import annotations

import contextlib
from typing import Any

from tests.clients import Answer, RawConnection, split_multipart
from tests.dicomweb.support import ProxyCase, RunningProxy
from tests.stores import faults
from tests.stores.faults import server_error
from tests.stores.simulated import SimulatedStore
from twistedproxy.cache.address import NoAddress
from twistedproxy.dicom.multipart_writer import MultipartForm
from twistedproxy.system import memory_budget

JPEG = "1.2.840.10008.1.2.4.50"
ALL = (1, 2, 3, 4, 5, 6)
ORDER = (6, 1, 2, 3, 4, 5, 6, 6)


class LongListCase(ProxyCase):
    """Every list is a long one, and each frame a piece."""

    async def proxy(self, *stores: SimulatedStore, **settings: Any) -> RunningProxy:
        proxy = await super().proxy(*stores, **settings)
        proxy.components.lists.long = 0
        proxy.components.lists.piece = 1
        return proxy

    def expected(self, *numbers: int) -> list[bytes]:
        """Frames as they are stored."""
        return [self.stored[number - 1] for number in numbers]


class FormTests(LongListCase):
    """What a long list looks like."""

    async def test_from_the_origin(self) -> None:
        """What is not cached comes chunked, in the form that clients read, without a validator."""
        store = self.store()
        client = (await self.proxy(store)).client()
        answer = await client.frames(self.slide.resource, ORDER)
        self.assertEqual(answer.frames(), self.expected(*ORDER))
        self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=uri-miss; stored")
        self.assertEqual(answer.headers["cache-control"], "private, max-age=3600")
        self.assertEqual(answer.headers["vary"], "Accept, Authorization, Cookie")
        self.assertNotIn("etag", answer.headers)
        self.assertNotIn("content-length", answer.headers)
        self.assertEqual(len(store.lines("/frames/")), len(ALL))

    async def test_from_the_cache(self) -> None:
        """What is cached comes chunked, too, with the same bytes each time."""
        store = self.store()
        client = (await self.proxy(store)).client()
        await client.frames(self.slide.resource, ALL)
        first, again = [await client.frames(self.slide.resource, ORDER) for _ in range(2)]
        self.assertEqual(first.frames(), self.expected(*ORDER))
        own = {name: first.headers[name] for name in ("date", "x-request-id")}
        self.assertEqual((first.headers, first.body), ({**again.headers, **own}, again.body))
        self.assertEqual(first.headers["cache-status"], "twistedproxy; hit")
        self.assertNotIn("content-length", first.headers)
        self.assertEqual(len(store.lines("/frames/")), len(ALL))

    async def test_disable_caching(self) -> None:
        """What is not to be cached is asked for anew, though it is cached, and nothing of it stays."""
        store = self.store()
        client = (await self.proxy(store)).client()
        for cached in (False, True):
            for _ in range(2):
                before = len(store.lines("/frames/"))
                answer = await client.get(f"/{self.slide.resource}/frames/6,1,6?disable_caching=true")
                self.assertEqual(answer.frames(), self.expected(6, 1, 6))
                self.assertEqual(answer.headers["cache-control"], "no-store")
                self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=request")
                self.assertGreaterEqual(len(store.lines("/frames/")) - before, 2)
            answer = await client.frames(self.slide.resource, [1, 6])
            self.assertEqual("hit" in answer.headers["cache-status"], cached)

    async def test_the_form_of_short_ones(self) -> None:
        """A list is written to the letter as a short one is, with a boundary of its own."""
        proxy = await self.proxy(self.store())
        client = proxy.client()
        long = await client.frames(self.slide.resource, ALL)
        proxy.components.lists.long = 1 << 30
        short = await client.frames(self.slide.resource, ALL)
        ours, theirs = _boundary(long), _boundary(short)
        self.assertNotEqual(ours, theirs)
        self.assertEqual(long.body.replace(ours, theirs), short.body)
        self.assertEqual(
            long.headers["content-type"].encode().replace(ours, theirs).decode(), short.headers["content-type"]
        )

    async def test_head(self) -> None:
        """HEAD has the header of GET and no body."""
        proxy = await self.proxy(self.store())
        await proxy.client().frames(self.slide.resource, ALL)
        get = await proxy.client().frames(self.slide.resource, ALL)
        head, _, body = (await self._raw(proxy, "HEAD")).partition(b"\r\n\r\n")
        self.assertIn(_boundary(get), head)
        self.assertEqual(body, b"")

    async def test_transcoded(self) -> None:
        """A form that has to be made is made of all frames."""
        client = (await self.proxy(self.store())).client()
        answer = await client.frames(self.slide.resource, [1, 2, 3], 'multipart/related; type="image/jxl"')
        self.assertEqual([frame[:2] in (b"\xff\x0a", b"\0\0") for frame in answer.frames()], [True] * 3)

    async def test_not_acceptable(self) -> None:
        """A form that cannot be made is refused, as of a short list."""
        client = (await self.proxy(self.store())).client()
        answer = await client.frames(self.slide.resource, ALL, 'multipart/related; type="image/jp2"')
        self.assertEqual(answer.status, 406)

    async def test_slow_reader(self) -> None:
        """A client that takes its time gets everything in the end, and its memory is given back."""
        proxy = await self.proxy(self.store())
        proxy.components.lists.piece = 1 << 20
        whole = await self._raw(proxy, "GET")
        self.assertIn(self.stored[5], whole)
        self.assertTrue(whole.endswith(b"--\r\n\r\n0\r\n\r\n"), whole[-20:])
        self.assertEqual(proxy.components.answer_memory.used, 0)

    async def _raw(self, proxy: RunningProxy, method: str) -> bytes:
        connection = await RawConnection.open(proxy.port)
        connection.send(_request(method, self.slide.resource))
        return await connection.end()


class FailureTests(LongListCase):
    """Half an answer is never taken for a whole one."""

    async def test_first_fails(self) -> None:
        """Where the first piece cannot be had the origin's refusal is the answer."""
        store = self.store()
        client = (await self.proxy(store)).client()
        await client.frames(self.slide.resource, [6])
        store.fail(server_error(), "/frames/1", None)
        store.fail(faults.Answer(404), lambda seen: seen.path.endswith(self.slide.sop), None)
        answer = await client.frames(self.slide.resource, ALL)
        self.assertEqual((answer.status, answer.headers.get("cache-control")), (500, "no-store"))

    async def test_later_fails(self) -> None:
        """Where a later one cannot be had the connection is cut, and the last chunk does not come."""
        store = self.store()
        proxy = await self.proxy(store)
        store.fail(server_error(), "/frames/4", None)
        store.fail(faults.Answer(404), lambda seen: seen.path.endswith(self.slide.sop), None)
        connection = await RawConnection.open(proxy.port)
        connection.send(_request("GET", self.slide.resource))
        got = b""
        with contextlib.suppress(Exception):
            got = await connection.until(self.stored[2])
            await connection.end()
        self.assertTrue(got.startswith(b"HTTP/1.1 200 OK\r\n"), got[:200])
        self.assertNotIn(b"--\r\n\r\n0\r\n", connection.received)
        self.assertNotIn(self.stored[3], connection.received)

    async def test_no_cache(self) -> None:
        """Without a cache a long list is answered all the same."""
        client = (await self.proxy(self.store(), cache=NoAddress())).client()
        answer = await client.frames(self.slide.resource, ORDER)
        self.assertEqual(answer.frames(), self.expected(*ORDER))
        self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=uri-miss")

    async def test_too_large(self) -> None:
        """What is too large together is a 413 that says the limit, as far as the first piece shows; else it is cut."""
        for limit, piece in ((3000, 1 << 20), (5000, 1)):
            proxy = await self.proxy(self.store(), max_answer=limit)
            proxy.components.lists.piece = piece
            connection = await RawConnection.open(proxy.port)
            connection.send(_request("GET", self.slide.resource))
            got = await connection.end()
            if piece > 1:
                self.assertTrue(got.startswith(b"HTTP/1.1 413 "), got[:200])
                self.assertIn(b"3000 bytes", got)
            else:
                self.assertTrue(got.startswith(b"HTTP/1.1 200 "), got[:200])
                self.assertNotIn(b"--\r\n\r\n0\r\n", got)
                self.assertNotIn(self.stored[5], got)

    async def test_no_room(self) -> None:
        """Who finds no memory for an answer is told to come again."""
        proxy = await self.proxy(self.store(), answer_memory=1 << 20)
        proxy.components.answer_memory.max_waiting = 0
        proxy.components.lists.piece = 1 << 20
        await proxy.components.answer_memory.take(1 << 20)
        answer = await proxy.client().frames(self.slide.resource, ALL)
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, str(memory_budget.RETRY_AFTER)))

    async def test_no_room_for_one(self) -> None:
        """The same of single frames, pictures, ours and the origin's, and of what is handed on."""
        store = self.store()
        for workers in (1, 0):
            proxy = await self.proxy(store, answer_memory=1 << 20, render_workers=workers)
            proxy.components.answer_memory.max_waiting = proxy.components.answer_memory.small = 0
            client = proxy.client()
            for path in ("/frames/1", "/frames/1/rendered", "/frames/1/rendered?quality=50", "/metadata"):
                with proxy.components.answer_memory.hold() as held:
                    held.set(1 << 20)
                    answer = await client.get(f"/{self.slide.resource}{path}")
                    self.assertEqual(answer.status, 503, path)
                answer = await client.get(f"/{self.slide.resource}{path}")
                self.assertEqual((answer.status, proxy.components.answer_memory.used), (200, 0), path)


def _request(method: str, resource: str) -> bytes:
    numbers = ",".join(map(str, ALL))
    return f"{method} /dicomweb/{resource}/frames/{numbers} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode()


def _boundary(answer: Answer) -> bytes:
    boundary = answer.headers["content-type"].rpartition("boundary=")[2]
    assert len(split_multipart(answer.headers["content-type"], answer.body)) == len(ALL)
    assert MultipartForm.of("image/jpeg", JPEG, boundary).content_type.decode() == answer.headers["content-type"]
    return boundary.encode()
