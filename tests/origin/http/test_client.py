"""Single requests over real sockets, to servers that do what they should and what they shouldn't."""

from __future__ import annotations

import hashlib
from typing import Any, Optional

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.origin.http.wire import Head, Script, Wire, WireServer
from tests.waiting import wait_until
from twistedproxy.origin.errors import OriginBadAnswer, OriginTimeout, OriginUnreachable
from twistedproxy.origin.http import exchange
from twistedproxy.origin.http.client import Transport, normal_url
from twistedproxy.origin.http.exchange import HIGH_WATER, PROGRESS, SLOWEST, AnswerBody
from twistedproxy.origin.http.uploads import Running
from twistedproxy.origin.interface import OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream, read_all

MB = 1 << 20


class HandStream:
    """A `ByteStream` fed by the test."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.reads = 0
        self.closed = False
        self.ended = False
        self.error: Optional[Exception] = None
        self._waiter: Optional[Deferred[None]] = None

    def feed(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    async def read(self) -> bytes:
        while not self.chunks and not self.ended and self.error is None:
            self._waiter = Deferred()
            await self._waiter
        if self.error is not None:
            raise self.error
        self.reads += 1
        return self.chunks.pop(0) if self.chunks else b""

    def close(self) -> None:
        self.closed = True


class Zeros:
    """*size* bytes, made as they are read."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.closed = False

    async def read(self) -> bytes:
        count = min(65536, self.left)
        self.left -= count
        return bytes(count)

    def close(self) -> None:
        self.closed = True


class TransportTestCase(TestCase):
    timeout = 20

    def serve(self, script: Script, **settings: Any) -> WireServer:
        """A running server; `self.transport` talks to it."""
        from twisted.internet import reactor

        self.server = server = WireServer(script)
        self.url = self.server.listen(reactor)
        self.transport = transport = self.make(self.url, **settings)

        async def stop() -> None:
            await transport.close()
            await server.stop()

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        return server

    def make(self, url: str, **settings: Any) -> Transport:
        from twisted.internet import reactor

        known: dict[str, Any] = {"connect_timeout": 5, "timeout": 10, "stall_timeout": 10, "connections": 4}
        known.update(settings)
        return Transport(reactor, url, **known)

    async def pause(self, seconds: float = 0.0) -> None:
        """Let the reactor turn."""
        from twisted.internet import reactor

        await deferLater(reactor, seconds)  # type: ignore[arg-type]

    async def arrived(self, text: bytes) -> None:
        """Return once an open connection of the server has *text*."""
        await wait_until(
            lambda: any(text in wire.buffer and not wire.gone for wire in self.server.connections), repr(text)
        )

    async def get(self, target: bytes = b"/x") -> OriginResponse:
        return await self.transport.request(OriginRequest(b"GET", target))


async def ok(wire: Wire, head: Head) -> None:
    wire.answer(b"200 OK", b"body")


class RequestTests(TransportTestCase):
    async def test_target_is_not_touched(self) -> None:
        """Path and query go out byte for byte, below the path of the origin's URL."""
        server = self.serve(ok)
        transport = self.make(self.url + "/pacs/")
        targets = [
            b"/studies/1%2F2/a%2fb/..%2f;x=1?",
            b"//double//slash?q=%20+&PatientName=%5e*&a[]=1",
            b"/a?b?c=/../d",
            b"/~%7E!$&'()*,;=:@",
        ]
        for target in targets:
            await read_all((await transport.request(OriginRequest(b"GET", target))).body, MB)
        await transport.close()
        self.assertEqual([head.target for head in server.requests], [b"/pacs" + target for target in targets])

    async def test_target_with_a_line_end(self) -> None:
        """What would break out of the request line, or of the target, is never sent."""
        server = self.serve(ok)
        for target in (b"/a b", b"/a\r\nX: 1", b"/\xe9", b"x", b"/a#b", b"/a?b#c"):
            with self.subTest(target=target):
                with self.assertRaises(ValueError):
                    await self.get(target)
        self.assertEqual(server.requests, [])

    async def test_fields(self) -> None:
        """Host and User-Agent are ours, the given fields go along, nothing else is added."""
        server = self.serve(ok)
        answer = await self.transport.request(OriginRequest(b"GET", b"/", headers=((b"Accept", b"a"), (b"X-B", b"c"))))
        await read_all(answer.body, MB)
        self.assertEqual(
            server.requests[0].fields,
            {
                b"host": self.url.removeprefix("http://").encode(),
                b"user-agent": b"twistedproxy",
                b"accept": b"a",
                b"x-b": b"c",
            },
        )

    async def test_answer_fields(self) -> None:
        """Fields of the hop, those that Connection names among them, stay behind; a repeated field stays repeated."""

        async def script(wire: Wire, head: Head) -> None:
            wire.answer(
                b"404 Gone fishing",
                b"no",
                b"Connection: X-Hop, keep-alive",
                b"Keep-Alive: timeout=5",
                b"X-Hop: 1",
                b"Set-Cookie: a=1",
                b"Set-Cookie: b=2",
                b"Content-Type: text/plain",
            )

        self.serve(script)
        answer = await self.get()
        self.assertEqual((answer.status, answer.length), (404, 2))
        self.assertEqual(await read_all(answer.body, MB), b"no")
        self.assertEqual(
            sorted((name.lower(), value) for name, value in answer.headers),
            [(b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
        )

    async def test_no_body(self) -> None:
        """HEAD says the length that a GET would have and brings no byte; 204 and 304 say none."""

        async def script(wire: Wire, head: Head) -> None:
            if head.line.startswith(b"HEAD"):
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nConnection: a\r\nA: b\r\n\r\n")
            else:
                wire.send(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nConnection: a\r\nA: b\r\n\r\n")

        self.serve(script)
        head = await self.transport.request(OriginRequest(b"HEAD", b"/"))
        self.assertEqual((head.headers, head.length, await head.body.read()), ((), 1234, b""))
        unmodified = await self.get()
        self.assertEqual([value for _, value in unmodified.headers], [b"x"])
        self.assertEqual((unmodified.length, await unmodified.body.read()), (None, b""))
        self.assertEqual(len(self.server.connections), 1)

    async def test_interim_answers(self) -> None:
        """1xx answers are passed over."""

        async def script(wire: Wire, head: Head) -> None:
            wire.send(b"HTTP/1.1 102 Processing\r\nConnection: X-A\r\n\r\n")
            wire.answer(b"200 OK", b"y", b"X-A: 1")

        self.serve(script)
        answer = await self.get()
        self.assertEqual((answer.status, [value for _, value in answer.headers]), (200, [b"1"]))
        await read_all(answer.body, MB)

    async def test_statuses_that_are_none(self) -> None:
        """Statuses that HTTP has not are no answer, and their connection is not kept."""
        for status in (b"600", b"999", b"1000", b"0", b"-200"):

            async def script(wire: Wire, head: Head, status: bytes = status) -> None:
                wire.answer(status + b" Odd", b"body")

            server = self.serve(script)
            for _ in range(2):
                with self.assertRaises(OriginUnreachable):
                    await self.get()
            self.assertEqual(2, len(server.connections))

    async def test_redirects_are_answers(self) -> None:
        """A redirect comes back as it came; nobody follows it."""

        async def script(wire: Wire, head: Head) -> None:
            wire.answer(b"302 Found", b"", b"Location: http://127.0.0.1:1/")

        self.serve(script)
        answer = await self.get()
        self.assertEqual((answer.status, answer.headers), (302, ((b"Location", b"http://127.0.0.1:1/"),)))


class ConnectionTests(TransportTestCase):
    async def test_kept(self) -> None:
        """An answer that was read leaves its connection for the next request."""
        server = self.serve(ok)
        for _ in range(5):
            await read_all((await self.get()).body, MB)
        self.assertEqual(len(server.connections), 1)

    async def test_dropped_idle_connections(self) -> None:
        """When the origin dropped the kept connections, the request goes out on a new one at once."""

        async def script(wire: Wire, head: Head) -> None:
            if head.target == b"/slow":
                await self.pause(0.05)
            if len(self.server.connections) == 3 and head.target == b"/again":
                wire.reset()
            else:
                wire.answer(b"200 OK", b"body")

        server = self.serve(script)
        bodies = [Deferred.fromCoroutine(self.get(b"/slow")) for _ in range(3)]
        for body in bodies:
            await read_all((await body).body, MB)
        answer = await self.get(b"/again")
        self.assertEqual(await read_all(answer.body, MB), b"body")
        self.assertEqual(len(server.connections), 4)

    async def test_no_answer_on_a_new_connection(self) -> None:
        """An origin that drops a new connection without a word isn't asked over and over."""

        async def script(wire: Wire, head: Head) -> None:
            wire.reset()

        server = self.serve(script)
        with self.assertRaises(OriginUnreachable):
            await self.get()
        self.assertEqual(len(server.requests), 1)

    async def test_what_cannot_be_repeated(self) -> None:
        """POST and DELETE never meet a kept connection, which may be gone already."""
        server = self.serve(ok)
        await read_all((await self.get()).body, MB)
        for method in (b"POST", b"DELETE"):
            await read_all((await self.transport.request(OriginRequest(method, b"/"))).body, MB)
        self.assertEqual(len(server.connections), 3)

    async def test_refused(self) -> None:
        """A port that nobody listens on is an unreachable origin; the error and the log say why, the log once."""
        transport = self.make("http://127.0.0.1:1")
        with capturedLogs() as events:
            for _ in range(3):
                with self.assertRaises(OriginUnreachable) as caught:
                    await transport.request(OriginRequest(b"GET", b"/"))
                self.assertEqual(str(caught.exception), "no connection to the origin: connection refused")
        said = [formatEvent(event) for event in events if event.get("event") == "unavailable"]
        self.assertEqual(said, ["the origin http://127.0.0.1:1 is unavailable: connection refused"])

    async def test_unknown_host(self) -> None:
        """So is a name that has no address."""
        transport = self.make("http://nowhere.invalid")
        with self.assertRaises(OriginUnreachable) as caught:
            await transport.request(OriginRequest(b"GET", b"/"))
        self.assertIn("unknown host name", str(caught.exception))

    async def test_cancel_drops_the_connection(self) -> None:
        """A request that is cancelled while it waits closes its connection."""
        arrived: Deferred[Wire] = Deferred()

        async def script(wire: Wire, head: Head) -> None:
            arrived.callback(wire)
            await wire.more()

        self.serve(script)
        running = Deferred.fromCoroutine(self.get())
        wire = await arrived
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        while not wire.gone:
            await self.pause()

    async def test_a_head_without_end(self) -> None:
        """Fields, folded lines or interim answers without end are given up: nothing else would bound their memory."""
        for text in (b"X: " + b"y" * 1000 + b"\r\n", b" " + b"y" * 1000 + b"\r\n", b"\r\nHTTP/1.1 103 x\r\n"):

            async def script(wire: Wire, head: Head, text: bytes = text) -> None:
                wire.send(b"HTTP/1.1 103 x\r\nX: y\r\n" + text * (2 * exchange.MAX_HEAD // len(text)))
                await wire.lost()

            self.serve(script)
            with self.assertRaises(OriginUnreachable):
                await self.get()

    async def test_nonsense(self) -> None:
        """What is no HTTP, or stops in the headers, is an unreachable origin."""
        for text in (
            b"SSH-2.0-OpenSSH_9\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b"HTTP/1.1 abc x\r\n\r\n",
            b"HTTP/1.1 099 x\r\n\r\n",
            *(
                b"HTTP/1.1 200 OK\r\n" + field + b"\r\nConnection: close\r\n\r\nok"
                for field in (
                    b"A: b\nSet-Cookie: c",
                    b"A: b\rSet-Cookie: c",
                    b"A: b\0",
                    b"Content-Length: " + b"9" * 5000,
                    b"Content-Length: +2",
                    b"Content-Length: 2, 2",
                    b"Content-Length:",
                )
            ),
        ):

            async def script(wire: Wire, head: Head, text: bytes = text) -> None:
                wire.send(text)
                wire.close()

            self.serve(script)
            with self.subTest(text=text):
                with self.assertRaises(OriginUnreachable):
                    await self.get()
        self.flushLoggedErrors()


class DeadlineTests(TransportTestCase):
    async def test_first_byte(self) -> None:
        """An origin that says nothing is given up after the timeout, and its connection is dropped."""

        async def script(wire: Wire, head: Head) -> None:
            await wire.more()

        server = self.serve(script, timeout=0.05)
        with self.assertRaises(OriginTimeout):
            await self.get()
        while not server.connections[0].gone:
            await self.pause()

    async def test_stall(self) -> None:
        """An answer that stops in its middle is given up after the stall timeout, and stays broken."""

        async def script(wire: Wire, head: Head) -> None:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            await wire.more()

        server = self.serve(script, stall_timeout=0.05)
        answer = await self.get()
        self.assertEqual(await answer.body.read(), b"half")
        for _ in range(2):
            with self.assertRaises(OriginTimeout):
                await answer.body.read()
        while not server.connections[0].gone:
            await self.pause()

    async def test_slow_reader_is_no_stall(self) -> None:
        """Time that the reader takes doesn't count."""

        async def script(wire: Wire, head: Head) -> None:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
            while not go:
                await self.pause(0.01)
            wire.send(b"more")

        go: list[bool] = []
        self.serve(script, stall_timeout=0.1)
        answer = await self.get()
        self.assertEqual(await answer.body.read(), b"half")
        await self.pause(0.25)
        reading = Deferred.fromCoroutine(answer.body.read())
        go.append(True)
        self.assertEqual(await reading, b"more")
        await self.pause()

    async def test_slow_bytes_are_no_stall(self) -> None:
        """A byte now and then keeps an answer alive for a while."""

        async def script(wire: Wire, head: Head) -> None:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
            for _ in range(6):
                await self.pause(0.05)
                wire.send(b"x")

        self.serve(script, stall_timeout=0.2)
        self.assertEqual(await read_all((await self.get()).body, MB), b"xxxxxx")

    async def test_upload_that_nobody_takes(self) -> None:
        """An origin that stops taking an upload's bytes is given up."""

        async def script(wire: Wire, head: Head) -> None:
            wire.transport.pauseProducing()  # type: ignore[union-attr]
            await done
            wire.transport.resumeProducing()  # type: ignore[union-attr]

        done: Deferred[None] = Deferred()
        self.serve(script, stall_timeout=0.1)
        stream = Zeros(64 * MB)
        with self.assertRaises(OriginTimeout):
            await self.transport.request(OriginRequest(b"POST", b"/", body=stream, length=64 * MB))
        done.callback(None)
        self.assertTrue(stream.closed)


class TrickleTests(SynchronousTestCase):
    """An answer that brings something in time, each time, but not much."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.aborted = False
        self.body = AnswerBody(Running(self.clock, 30.0, lambda direction, size: None), lambda: None, self.abort)
        self.body.makeConnection(StringTransport())

    def abort(self) -> None:
        self.aborted = True

    def read(self, seconds: float, size: int) -> bool:
        """Read, and let *size* bytes come after *seconds*; whether the answer is still alive."""
        reading = Deferred.fromCoroutine(self.body.read())
        self.clock.pump([0.5] * int(seconds * 2))
        if self.aborted:
            self.failureResultOf(reading, OriginTimeout)
            return False
        self.body.dataReceived(bytes(size))
        self.assertEqual(len(self.successResultOf(reading)), size)
        return True

    def test_one_byte_each(self) -> None:
        """One byte within each stall timeout defeats no deadline."""
        reads = 0
        while self.read(25.0, 1):
            reads += 1
        self.assertEqual(reads, SLOWEST * 30 // 25)

    def test_steady(self) -> None:
        """A store that sends a few kB/s is left alone, as often as they come."""
        for _ in range(50):
            self.assertTrue(self.read(25.0, PROGRESS // 4))

    def test_slow_reader(self) -> None:
        """Time in which nobody waits for the origin does not count."""
        for _ in range(50):
            self.clock.pump([0.5] * 50)
            self.assertTrue(self.read(1.0, PROGRESS // 100))


class BodyTests(TransportTestCase):
    async def test_broken_off(self) -> None:
        """An answer whose connection ends before its length is an error at that point, chunked or not."""
        for start in (b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"):

            async def script(wire: Wire, head: Head, start: bytes = start) -> None:
                wire.send(b"HTTP/1.1 200 OK\r\n" + start)
                wire.close()

            self.serve(script)
            with self.subTest(start=start):
                answer = await self.get()
                with self.assertRaises(OriginUnreachable):
                    await read_all(answer.body, MB)

    async def test_line_ends_without_cr(self) -> None:
        """A head whose lines all end with LF alone is one; CRs at the ends of some lines are a fault of the others."""

        async def script(wire: Wire, head: Head) -> None:
            wire.send(b"HTTP/1.1 200 OK\nA: b\nContent-Length: 2\n\nok")

        self.serve(script)
        answer = await self.get()
        self.assertEqual((answer.headers, await read_all(answer.body, MB)), (((b"A", b"b"),), b"ok"))

    async def test_more_than_the_length(self) -> None:
        """A body that goes on beyond its length is not whole, and its connection not kept; a line end is no body."""
        for start in (b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"):
            for more, whole in ((b"more", False), (b"\r\n", True)):

                async def script(wire: Wire, head: Head, text: bytes = start + more) -> None:
                    wire.send(b"HTTP/1.1 200 OK\r\n" + text)

                server = self.serve(script)
                for _ in range(2):
                    answer = await self.get()
                    if whole:
                        self.assertEqual(await read_all(answer.body, MB), b"ok")
                    else:
                        with self.assertRaises(OriginBadAnswer):
                            await read_all(answer.body, MB)
                self.assertEqual(len(server.connections), 1 if whole else 2)

    async def test_without_length(self) -> None:
        """A body that ends with its connection is read, and known to be without an end mark."""

        async def script(wire: Wire, head: Head) -> None:
            wire.send(b"HTTP/1.0 200 OK\r\n\r\nall")
            wire.close()

        self.serve(script)
        answer = await self.get()
        self.assertEqual((answer.length, await read_all(answer.body, MB), answer.framed()), (None, b"all", False))

    async def test_reader_sets_the_pace(self) -> None:
        """Of an answer that nobody reads only a little is taken in; read on, it comes whole."""
        size = 64 * MB
        sent = 0

        async def script(wire: Wire, head: Head) -> None:
            nonlocal sent
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            producing = _Producing(wire)
            while sent < size and not wire.gone:
                await producing.ready()
                wire.send(bytes(65536))
                sent += 65536

        self.serve(script)
        answer = await self.get()
        await answer.body.read()
        await self.pause(0.2)
        self.assertLessEqual(answer.body._size, HIGH_WATER + 65536)
        self.assertLess(sent, size)
        count = 0
        while chunk := await answer.body.read():
            count += len(chunk)
        self.assertGreater(count, size - MB)

    async def test_close_drops_the_connection(self) -> None:
        """Closing a body before its end closes its connection, also when it was paused; the pool stays usable."""

        async def script(wire: Wire, head: Head) -> None:
            if head.target == b"/small":
                wire.answer(b"200 OK", b"fine")
                return
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MB))
            wire.send(bytes(8 * MB))

        ended: list[bool] = []
        server = self.serve(script)
        answer = await self.transport.request(OriginRequest(b"GET", b"/"), on_end=lambda: ended.append(True))
        await wait_until(lambda: answer.body._size >= HIGH_WATER, "as much as is kept")
        answer.body.close()
        answer.body.close()
        self.assertEqual(ended, [True])
        while not server.connections[0].gone:
            await self.pause()
        self.assertEqual(await read_all((await self.get(b"/small")).body, MB), b"fine")

    async def test_close_after_the_end(self) -> None:
        """Closing a body that has come whole keeps its connection."""
        server = self.serve(ok)
        for _ in range(3):
            answer = await self.get()
            await self.pause(0.02)
            answer.body.close()
        self.assertEqual(len(server.connections), 1)

    async def test_cancelled_read(self) -> None:
        """A reader that gives up one wait may read on later."""

        async def script(wire: Wire, head: Head) -> None:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
            while not go:
                await self.pause(0.01)
            wire.send(b"late")

        go: list[bool] = []
        self.serve(script)
        answer = await self.get()
        reading = Deferred.fromCoroutine(answer.body.read())
        reading.cancel()
        with self.assertRaises(CancelledError):
            await reading
        go.append(True)
        self.assertEqual(await read_all(answer.body, MB), b"late")


class _Producing:
    """Lets a script write as fast as the socket takes it."""

    def __init__(self, wire: Wire) -> None:
        self._paused = False
        self._waiter: Optional[Deferred[None]] = None
        wire.transport.registerProducer(self, True)  # type: ignore[union-attr]

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()

    async def ready(self) -> None:
        if self._paused:
            self._waiter = Deferred()
            await self._waiter


class UploadTests(TransportTestCase):
    async def test_first_bytes_go_before_the_last_come(self) -> None:
        """The origin sees an upload's first bytes while its sender still sends."""
        seen: Deferred[bytes] = Deferred()

        async def script(wire: Wire, head: Head) -> None:
            seen.callback(await wire.until(b"first"))
            await wire.until(b"last\r\n0\r\n\r\n" if b"transfer-encoding" in head.fields else b"last")
            wire.answer(b"200 OK", b"stored")

        server = self.serve(script)
        for length in (9, None):
            with self.subTest(length=length):
                seen = Deferred()
                stream = HandStream()
                running = Deferred.fromCoroutine(
                    self.transport.request(OriginRequest(b"POST", b"/studies", body=stream, length=length))
                )
                stream.feed(b"first")
                await seen
                stream.feed(b"last")
                stream.end()
                answer = await running
                self.assertEqual(await read_all(answer.body, MB), b"stored")
                self.assertTrue(stream.closed)
        fields = [head.fields for head in server.requests]
        self.assertEqual(fields[0][b"content-length"], b"9")
        self.assertEqual(fields[1][b"transfer-encoding"], b"chunked")
        self.assertNotIn(b"content-length", fields[1])

    async def test_pace(self) -> None:
        """An origin that takes nothing stops the reading of the upload."""
        go: Deferred[None] = Deferred()

        async def script(wire: Wire, head: Head) -> None:
            wire.transport.pauseProducing()  # type: ignore[union-attr]
            await go
            wire.transport.resumeProducing()  # type: ignore[union-attr]
            digest = hashlib.sha256()
            count = 0
            while count < 32 * MB:
                count += len(wire.buffer)
                digest.update(wire.buffer)
                wire.buffer = b""
                if count < 32 * MB:
                    await wire.more()
            wire.answer(b"200 OK", digest.hexdigest().encode())

        self.serve(script)
        stream = Zeros(32 * MB)
        running = Deferred.fromCoroutine(
            self.transport.request(OriginRequest(b"POST", b"/", body=stream, length=32 * MB))
        )
        await self.pause(0.2)
        self.assertGreater(stream.left, 16 * MB)
        go.callback(None)
        answer = await running
        self.assertEqual(await read_all(answer.body, MB), hashlib.sha256(bytes(32 * MB)).hexdigest().encode())

    async def test_failing_upload(self) -> None:
        """When the sender breaks off, the origin's connection is dropped, never ended as if all had come."""
        rests: list[bytes] = []

        async def script(wire: Wire, head: Head) -> None:
            await wire.lost()
            rests.append(wire.buffer)

        self.serve(script)
        for length in (100, None):
            rests.clear()
            stream = HandStream()
            running = Deferred.fromCoroutine(
                self.transport.request(OriginRequest(b"POST", b"/", body=stream, length=length))
            )
            stream.feed(b"part")
            await self.arrived(b"part")
            stream.fail(ConnectionError("the client left"))
            with self.subTest(length=length):
                with self.assertRaises(ConnectionError):
                    await running
                while not rests:
                    await self.pause()
                self.assertIn(b"part", rests[0])
                self.assertNotIn(b"\r\n0\r\n", rests[0])

    async def test_early_refusal(self) -> None:
        """An origin that refuses before it has the whole upload is heard, and the upload ends."""

        async def script(wire: Wire, head: Head) -> None:
            await wire.until(b"part")
            wire.answer(b"401 Unauthorized", b"who?", b"WWW-Authenticate: Bearer")
            await wire.lost()

        self.serve(script)
        for length in (100, None):
            with self.subTest(length=length):
                stream = HandStream()
                stream.feed(b"part")
                answer = await self.transport.request(OriginRequest(b"POST", b"/", body=stream, length=length))
                self.assertEqual((answer.status, await read_all(answer.body, MB)), (401, b"who?"))
                self.assertTrue(stream.closed)
                while not self.server.connections[-1].gone:
                    await self.pause()

    async def test_cancelled_upload(self) -> None:
        """Cancelling the request lets go of both sides."""

        async def script(wire: Wire, head: Head) -> None:
            await wire.lost()

        server = self.serve(script)
        stream = HandStream()
        stream.feed(b"part")
        running = Deferred.fromCoroutine(self.transport.request(OriginRequest(b"POST", b"/", body=stream, length=None)))
        await self.arrived(b"part")
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        self.assertTrue(stream.closed)
        while not server.connections[0].gone:
            await self.pause()

    async def test_wrong_length(self) -> None:
        """An upload with fewer or more bytes than announced fails and isn't taken for whole."""
        self.serve(ok)
        for body in (b"abc", b"abcdefgh"):
            with self.subTest(body=body):
                with self.assertRaises(OriginUnreachable):
                    await self.transport.request(OriginRequest(b"POST", b"/", body=BytesStream(body), length=5))

    async def test_deadline_starts_after_the_upload(self) -> None:
        """A sender slower than the timeout is no slow origin."""

        async def script(wire: Wire, head: Head) -> None:
            await wire.until(b"end")
            wire.answer(b"200 OK", b"stored")

        self.serve(script, timeout=0.1)
        stream = HandStream()
        running = Deferred.fromCoroutine(self.transport.request(OriginRequest(b"POST", b"/", body=stream, length=3)))
        await self.pause(0.25)
        stream.feed(b"end")
        stream.end()
        self.assertEqual((await running).status, 200)


class URLTests(SynchronousTestCase):
    def test_normal(self) -> None:
        """One origin has one URL, however it was written; paths are told apart by every letter."""
        for url, expected in (
            ("HTTP://Pacs.test:80/DICOM-web/", "http://pacs.test/DICOM-web"),
            ("https://pacs.test:443", "https://pacs.test"),
            ("https://pacs.test:80/a%2Fb//", "https://pacs.test:80/a%2Fb"),
            ("http://[::1]:8042/x", "http://[::1]:8042/x"),
        ):
            self.assertEqual(expected, normal_url(url))
            self.assertEqual(expected, normal_url(expected))


class BadURLTests(TransportTestCase):
    def test_bad_urls(self) -> None:
        """What is no plain http(s) URL is refused, and what carries a password is not repeated in the message."""
        for url in ("ftp://a/", "http://", "http://u:secret@a/", "http://a/?q=1"):
            with self.subTest(url=url):
                error = self.assertRaises(ValueError, self.make, url)
                self.assertNotIn("secret", str(error))
