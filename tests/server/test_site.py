"""Connections without sockets: bodies that stream, deadlines, malformed requests, an orderly end."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.server.wire import CLIENT_TIMEOUT, Server, Wire, done
from twistedproxy.server.connections import IDLE_SECONDS, LINGER_SECONDS
from twistedproxy.server.problems import Problem
from twistedproxy.server.response_body import ClientGone
from twistedproxy.server.site import HIGH_WATER, StreamingRequest

GET = b"GET /a HTTP/1.1\r\nHost: proxy\r\n\r\n"
MIB = b"x" * (1 << 20)


def post(length: int, *more: bytes) -> bytes:
    """The head of a request with a body of *length* bytes."""
    fields = b"".join(field + b"\r\n" for field in more)
    return b"POST /a HTTP/1.1\r\nHost: proxy\r\nContent-Length: %d\r\n%s\r\n" % (length, fields)


def answers(wire: Wire) -> int:
    """How many answers were written."""
    return wire.value().count(b"HTTP/1.1 200")


class BodyTests(SynchronousTestCase):
    """Requests with bodies."""

    def setUp(self) -> None:
        self.server = Server()
        self.wire = self.server.connect()

    def begin(self, head: bytes) -> StreamingRequest:
        self.wire.send(head)
        return self.server.requests[-1]

    def read(self, request: StreamingRequest) -> Deferred[bytes]:
        assert request.upload is not None
        return Deferred.fromCoroutine(request.upload.read())

    def test_handed_on_at_once(self) -> None:
        """A request is handed on at the end of its head, and its body's bytes as they come."""
        request = self.begin(post(6))
        self.assertEqual((b"POST", b"/a"), (request.method, request.uri))
        first = self.read(request)
        self.wire.send(b"abc")
        self.assertEqual(b"abc", self.successResultOf(first))
        rest = self.read(request)
        self.wire.send(b"def")
        self.assertEqual(b"def", self.successResultOf(rest))
        self.assertEqual(b"", self.successResultOf(self.read(request)))

    def test_chunked(self) -> None:
        """A chunked body comes without its framing, and its length is not known."""
        request = self.begin(b"POST /a HTTP/1.1\r\nHost: proxy\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert request.upload is not None
        self.assertIsNone(request.upload.length)
        self.wire.send(b"3\r\nabc\r\n", b"3;x=y\r\ndef\r\n0\r\n\r\n")
        self.assertEqual(b"abcdef", self.successResultOf(self.read(request)))
        self.assertEqual(b"", self.successResultOf(self.read(request)))

    def test_no_body(self) -> None:
        """A request without a body has no upload, also one that says so."""
        self.assertIsNone(self.begin(GET).upload)
        done(self.server.requests[-1])
        self.assertIsNone(self.begin(post(0)).upload)

    def test_slow_reader(self) -> None:
        """A client that sends faster than its body is read must wait, and goes on once it was read."""
        request = self.begin(post(1 << 22))
        self.wire.send(MIB[:HIGH_WATER])
        self.assertTrue(self.wire.paused)
        self.read(request)
        self.assertFalse(self.wire.paused)

    def test_paused_whatever_is_written(self) -> None:
        """An answer that flows meanwhile does not let more of an unread body in."""
        request = self.begin(post(1 << 22))
        request.write(b"early")
        self.wire.send(MIB[:HIGH_WATER])
        self.wire.read_nothing()
        self.wire.read_all()
        self.assertTrue(self.wire.paused)

    def test_body_comes_whatever_is_unread(self) -> None:
        """A client that reads its answer only after it sent its body can do so."""
        request = self.begin(post(1 << 22))
        self.read(request)
        request.write(b"early")
        self.wire.read_nothing()
        self.assertFalse(self.wire.paused)

    def test_reading_goes_on_after_the_body(self) -> None:
        """With the body all there the connection is read again: else nobody would notice that the client left."""
        self.begin(post(HIGH_WATER))
        self.wire.send(MIB[:HIGH_WATER])
        self.assertFalse(self.wire.paused)

    def test_continue(self) -> None:
        """100 Continue is sent when the body is wanted, not before, and once."""
        request = self.begin(post(6, b"Expect: 100-continue"))
        self.assertEqual(b"", self.wire.value())
        self.read(request)
        self.assertEqual(b"HTTP/1.1 100 Continue\r\n\r\n", self.wire.value())
        self.wire.send(b"abc")
        self.read(request)
        self.assertEqual(1, self.wire.value().count(b"100 Continue"))

    def test_refused_without_continue(self) -> None:
        """A body that nobody wants is not asked for."""
        done(self.begin(post(6, b"Expect: 100-continue")))
        self.assertNotIn(b"100 Continue", self.wire.value())
        self.assertEqual(1, answers(self.wire))

    def test_pipelined(self) -> None:
        """A request right behind a body is answered after it."""
        self.wire.send(post(3) + b"abc" + GET)
        self.assertEqual(1, len(self.server.requests))
        done(self.server.requests[0])
        self.assertEqual(2, len(self.server.requests))
        done(self.server.requests[1])
        self.assertEqual(2, answers(self.wire))
        self.assertFalse(self.wire.gone)

    def test_many_pipelined(self) -> None:
        """A thousand requests in one read are answered one after the other."""
        self.server.answer = done
        self.wire.send(GET * 1000)
        self.assertEqual(1000, answers(self.wire))

    def test_early_answer(self) -> None:
        """An answer before the body's end says that the connection closes, is followed by the end of what we send, and
        the rest of the body is swallowed."""
        done(self.begin(post(1 << 30)), b"no")
        self.assertIn(b"Connection: close", self.wire.value())
        self.assertTrue(self.wire.half_closed)
        for _ in range(4):
            self.wire.send(MIB)
        self.assertFalse(self.wire.paused)
        self.assertFalse(self.wire.gone)

    def test_early_answer_body_ends(self) -> None:
        """The connection closes when the unwanted body has come."""
        done(self.begin(post(6)))
        self.wire.send(b"abcdef" + GET)
        self.assertTrue(self.wire.gone)
        self.assertFalse(self.wire.cut)
        self.assertEqual(1, len(self.server.requests))

    def test_early_answer_body_goes_on(self) -> None:
        """The connection is cut when the unwanted body does not end for long."""
        done(self.begin(post(1 << 30)))
        for _ in range(int(LINGER_SECONDS) - 1):
            self.server.wait(1)
            self.wire.send(MIB)
        self.assertFalse(self.wire.cut)
        self.server.wait(2)
        self.assertTrue(self.wire.cut)
        self.assertEqual(0, len(self.server.connections))

    def test_malformed(self) -> None:
        """Who reads a body that is none hears of it as of a bad request; an answer can still be given."""
        request = self.begin(b"POST /a HTTP/1.1\r\nHost: proxy\r\nTransfer-Encoding: chunked\r\n\r\n")
        reading = self.read(request)
        self.wire.send(b"no chunk\r\n", b"more", GET)
        self.assertEqual(400, self.failureResultOf(reading, Problem).value.status)  # type: ignore[attr-defined]
        self.assertEqual(b"", self.wire.value())
        done(request, b"bad")
        self.assertTrue(self.wire.half_closed)
        self.assertEqual(1, len(self.server.requests))

    def test_client_leaves(self) -> None:
        """Who reads the body of a client that left is told, and so is who waits for the request's end."""
        request = self.begin(post(6))
        ended, reading = request.notifyFinish(), self.read(request)
        self.wire.send(b"abc")
        self.wire.leave()
        self.failureResultOf(ended)
        self.assertEqual(b"abc", self.successResultOf(reading))
        self.failureResultOf(self.read(request), ClientGone)


class DeadlineTests(SynchronousTestCase):
    """Waits for a client end."""

    def setUp(self) -> None:
        self.server = Server()
        self.wire = self.server.connect()

    def trickle(self, data: bytes) -> int:
        """Send a byte a second; return how many went before the connection was cut."""
        for count, value in enumerate(data):
            if self.wire.cut:
                return count
            self.wire.send(bytes([value]))
            self.server.wait(1)
        return len(data)

    def test_head(self) -> None:
        """A client that sends a byte a second of its head is cut at the deadline."""
        self.assertIn(self.trickle(b"GET /" + b"a" * 200), (CLIENT_TIMEOUT, CLIENT_TIMEOUT + 1))

    def test_second_head(self) -> None:
        """So is one whose first request was quick."""
        self.wire.send(GET)
        done(self.server.requests[0])
        self.assertIn(self.trickle(GET[:20] + b"a" * 200), (CLIENT_TIMEOUT, CLIENT_TIMEOUT + 1))

    def test_quick_head(self) -> None:
        """While a request is worked on, the client owes nothing, also where it pipelines."""
        self.wire.send(GET)
        self.server.wait(100)
        self.wire.send(GET[:5])
        self.server.wait(1000)
        self.assertFalse(self.wire.gone)

    def test_body(self) -> None:
        """A client that sends a byte a second of a body that is waited for is cut at the deadline."""
        self.wire.send(post(1 << 20))
        upload = self.server.requests[0].upload
        assert upload is not None
        Deferred.fromCoroutine(upload.read())
        self.assertIn(self.trickle(b"x" * 200), (CLIENT_TIMEOUT, CLIENT_TIMEOUT + 1))
        self.assertEqual(0, len(self.server.connections))

    def test_steady_body(self) -> None:
        """64 kB within the deadline are enough, as often as they come."""
        self.wire.send(post(1 << 30))
        upload = self.server.requests[0].upload
        assert upload is not None
        for _ in range(100):
            Deferred.fromCoroutine(upload.read())
            self.server.wait(CLIENT_TIMEOUT / 2 - 1)
            self.wire.send(MIB[:32768])
        self.assertFalse(self.wire.gone)

    def test_nobody_waits_for_the_body(self) -> None:
        """A client whose body nobody reads yet has no deadline, nor has one that we pause."""
        self.wire.send(post(1 << 30), b"x")
        self.server.wait(1000)
        self.wire.send(MIB[:HIGH_WATER])
        self.server.wait(1000)
        self.assertFalse(self.wire.gone)
        upload = self.server.requests[0].upload
        assert upload is not None
        Deferred.fromCoroutine(upload.read())
        self.server.wait(CLIENT_TIMEOUT + 1)
        self.assertTrue(self.wire.cut)

    def test_never_reads(self) -> None:
        """A client that does not take its answer is cut, and its request ends."""
        self.wire.send(GET)
        request = self.server.requests[0]
        ended = request.notifyFinish()
        request.write(b"much")
        self.wire.read_nothing()
        self.server.wait(CLIENT_TIMEOUT - 1)
        self.assertFalse(self.wire.cut)
        self.server.wait(2)
        self.assertTrue(self.wire.cut)
        self.failureResultOf(ended)

    def test_never_reads_the_end(self) -> None:
        """So is one that does not take the last of its answer, whether the connection was to stay open or not."""
        closing = self.server.connect()
        closing.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.wire.send(GET)
        for wire, request in zip((closing, self.wire), self.server.requests, strict=True):
            request.write(b"much")
            wire.read_nothing()
            request.finish()
        self.server.wait(CLIENT_TIMEOUT + 1)
        self.assertEqual((True, True), (closing.cut, self.wire.cut))

    def test_reads_slowly(self) -> None:
        """A client that takes piece after piece in time is left alone."""
        self.wire.send(GET)
        for _ in range(10):
            self.server.requests[0].write(b"piece")
            self.wire.read_nothing()
            self.server.wait(CLIENT_TIMEOUT - 1)
            self.wire.read_all()
        self.server.wait(500)
        self.assertFalse(self.wire.gone)

    def test_pipelines_and_never_reads(self) -> None:
        """Who sends requests and takes no answer gets one, not hundreds, into the buffer."""
        self.server.answer = lambda request: (self.wire.read_nothing(), done(request))[-1]
        self.wire.send(GET * 100)
        self.assertEqual(1, len(self.server.requests))
        self.wire.read_all()
        self.assertEqual(2, len(self.server.requests))

    def test_idle(self) -> None:
        """An idle connection is closed in order after a time, counted from its last request."""
        self.server.wait(IDLE_SECONDS - 5)
        self.wire.send(GET)
        done(self.server.requests[0])
        self.server.wait(IDLE_SECONDS - 1)
        self.assertFalse(self.wire.gone)
        self.server.wait(2)
        self.assertTrue(self.wire.gone)
        self.assertFalse(self.wire.cut)

    def test_idle_and_deaf(self) -> None:
        """A client that does not answer the closing is cut."""
        self.server.wait(IDLE_SECONDS + CLIENT_TIMEOUT + 2)
        self.assertTrue(self.wire.cut)


class MalformedTests(SynchronousTestCase):
    """What is no request."""

    def setUp(self) -> None:
        self.server = Server()

    def refusal(self, *pieces: bytes) -> tuple[int, str]:
        """Status and detail of the one answer to what is no request."""
        wire = self.server.connect()
        wire.send(*pieces)
        head, _, body = wire.value().partition(b"\r\n\r\n")
        self.assertIn(b"Content-Type: application/problem+json", head)
        self.assertIn(b"Connection: close", head)
        self.assertEqual(1, head.count(b"HTTP/1.1"))
        self.assertIn(b"Content-Length: %d" % len(body), head)
        self.assertTrue(wire.half_closed)
        wire.send(MIB, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual(head + b"\r\n\r\n" + body, wire.value())
        self.assertFalse(wire.gone)
        self.server.wait(LINGER_SECONDS + 1)
        self.assertTrue(wire.cut)
        self.assertEqual([], self.server.requests)
        problem = json.loads(body)
        return problem["status"], problem["detail"]

    def test_malformed(self) -> None:
        """It gets one clean 400, what follows is swallowed for a moment, and nothing of it is worked on."""
        for text in (
            b"nonsense\r\n",
            b"GET / HTTP/3.0\r\n",
            b"GET /a b HTTP/1.1\r\n",
            b"G\x00T / HTTP/1.1\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad name: a\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        ):
            self.assertEqual((400, "the request is not well-formed HTTP/1.1"), self.refusal(text), text)

    def test_too_large(self) -> None:
        """Heads beyond the limits get one clean 431 that says the limit."""
        field = b"A: b\r\n"
        for pieces, limit in (
            ((b"GET /" + b"a" * 20000,), "16384 bytes"),
            ((b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 20000,), "16384 bytes"),
            ((b"GET / HTTP/1.1\r\n", *[b"A: " + b"b" * 1000 + b"\r\n"] * 20), "16384 bytes"),
            ((b"GET / HTTP/1.1\r\nHost: a\r\n" + field * 600 + b"\r\n",), "500 fields"),
            ((b"nope: nope\r\nGET /" + b"a" * 20000,), ""),
        ):
            status, detail = self.refusal(*pieces)
            self.assertEqual(431 if limit else 400, status)
            self.assertIn(limit, detail)

    def test_after_a_good_one(self) -> None:
        """The answer before it is not disturbed."""
        wire = self.server.connect()
        wire.send(GET + b"nonsense\r\n\r\n")
        self.assertEqual(b"", wire.value())
        done(self.server.requests[0], b"first")
        self.assertRegex(wire.value(), rb"(?s)^HTTP/1.1 200 .*firstHTTP/1.1 400 ")

    def ask(self, head: bytes) -> StreamingRequest:
        self.server.connect().send(head)
        return self.server.requests[-1]

    def test_hosts(self) -> None:
        """A request of HTTP/1.1 without a host, or with two, is refused; one of HTTP/1.0 needs none."""
        for head, status in (
            (b"GET /a HTTP/1.1\r\n\r\n", 400),
            (b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET /a HTTP/1.0\r\n\r\n", None),
            (GET, None),
        ):
            refused = self.ask(head).refused
            self.assertEqual(status, refused and refused.status)

    def test_absolute_form(self) -> None:
        """A target with scheme and host is its path and query, and the host counts in place of the Host field."""
        for target, uri, host in (
            (b"http://proxy.test:80/a/%2Fb?c=http://d", b"/a/%2Fb?c=http://d", b"proxy.test:80"),
            (b"HTTPS://user:secret@proxy.test/a", b"/a", b"proxy.test"),
            (b"http://proxy.test", b"/", b"proxy.test"),
            (b"http://proxy.test?a=b", b"/?a=b", b"proxy.test"),
        ):
            request = self.ask(b"GET %s HTTP/1.1\r\nHost: other\r\n\r\n" % target)
            self.assertIsNone(request.refused)
            self.assertEqual(uri, request.uri)
            self.assertEqual([host], request.requestHeaders.getRawHeaders(b"Host"))

    def test_other_targets(self) -> None:
        """A target that is neither a path nor a URL is refused."""
        for target in (b"a", b"ftp://a/b", b"http://", b"proxy.test:443", b"?a"):
            refused = self.ask(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target).refused
            assert refused is not None, target
            self.assertEqual(400, refused.status)

    def test_star(self) -> None:
        """``OPTIONS *`` is answered."""
        wire = self.server.connect()
        wire.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertIn(b"HTTP/1.1 200", wire.value())
        self.assertIn(b"Content-Length: 0", wire.value())

    def test_close(self) -> None:
        """A client that wants the connection closed gets that, however it says so."""
        for field in (b"Connection: close", b"connection: X-Hop, Close", b"Connection: X-Hop\r\nConnection: close"):
            wire = self.server.connect()
            wire.send(b"GET /a HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n")
            done(self.server.requests[-1])
            self.assertIn(b"Connection: close", wire.value())
            self.assertTrue(wire.gone)

    def test_http_1_0(self) -> None:
        """A client of HTTP/1.0 gets no chunks, and the end of the connection."""
        wire = self.server.connect()
        wire.send(b"GET /a HTTP/1.0\r\n\r\n")
        self.server.requests[0].write(b"body")
        self.server.requests[0].finish()
        self.assertTrue(wire.value().endswith(b"\r\n\r\nbody"))
        self.assertTrue(wire.gone)


class StopTests(SynchronousTestCase):
    """An orderly end."""

    def setUp(self) -> None:
        self.server = Server()

    def drain(self, seconds: float = 30) -> Deferred[int]:
        return Deferred.fromCoroutine(self.server.connections.drain(seconds))

    def test_nothing_open(self) -> None:
        """Without connections it ends at once, and no timer stays."""
        self.assertEqual(0, self.successResultOf(self.drain()))
        self.assertEqual([], self.server.clock.getDelayedCalls())

    def test_idle(self) -> None:
        """Idle connections are closed, used ones and new ones."""
        used, new = self.server.connect(), self.server.connect()
        used.send(GET)
        done(self.server.requests[0])
        draining = self.drain()
        self.assertEqual((True, True), (used.gone, new.gone))
        self.assertEqual((False, False), (used.cut, new.cut))
        used.leave()
        self.assertNoResult(draining)
        new.leave()
        self.assertEqual(0, self.successResultOf(draining))

    def test_running(self) -> None:
        """A running answer is finished, says that the connection closes, and that is what happens then."""
        wire = self.server.connect()
        wire.send(GET)
        draining = self.drain()
        self.server.wait(20)
        self.assertFalse(wire.gone)
        done(self.server.requests[0])
        self.assertIn(b"Connection: close", wire.value())
        self.assertTrue(wire.gone)
        self.assertFalse(wire.cut)
        wire.leave()
        self.assertEqual(0, self.successResultOf(draining))

    def test_begun(self) -> None:
        """An answer that has begun is finished; the next request on that connection is not heard."""
        wire = self.server.connect()
        wire.send(GET)
        request = self.server.requests[0]
        request.write(b"half")
        self.drain()
        wire.send(GET)
        request.write(b"rest")
        request.finish()
        self.assertIn(b"rest", wire.value())
        self.assertTrue(wire.gone)
        self.assertEqual(1, len(self.server.requests))

    def test_written_but_not_taken(self) -> None:
        """A connection is not closed before the client has taken its answer."""
        wire = self.server.connect()
        wire.send(GET)
        self.server.requests[0].write(b"much")
        wire.read_nothing()
        self.server.requests[0].finish()
        self.drain()
        self.assertFalse(wire.gone)
        wire.read_all()
        self.assertTrue(wire.gone)
        self.assertFalse(wire.cut)

    def test_half_a_head(self) -> None:
        """A request that has begun to come is answered, and the connection closed."""
        wire = self.server.connect()
        wire.send(GET[:10])
        self.drain()
        self.assertFalse(wire.gone)
        wire.send(GET[10:])
        done(self.server.requests[0])
        self.assertIn(b"Connection: close", wire.value())
        self.assertTrue(wire.gone)

    def test_deadline(self) -> None:
        """What is not finished by the deadline is cut, and counted."""
        wires = [self.server.connect() for _ in range(3)]
        for wire in wires[:2]:
            wire.send(GET)
        draining = self.drain(10)
        wires[2].leave()
        self.server.wait(9)
        self.assertNoResult(draining)
        self.server.wait(2)
        self.assertEqual(2, self.successResultOf(draining))
        self.assertEqual([True, True], [wire.cut for wire in wires[:2]])
        self.assertEqual([], self.server.clock.getDelayedCalls())

    def test_latecomer(self) -> None:
        """A connection that was accepted a moment too late is closed."""
        self.drain()
        self.assertTrue(self.server.connect().gone)
