"""Everything that is no frame, handed on both ways: a whole proxy between real sockets."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from tests.cache.certificates import certificate
from tests.clients import Answer, Client, RawConnection
from tests.dicomweb.support import ProxyCase, RunningProxy
from tests.slides import slide
from tests.stores import faults
from tests.stores.http_server import Seen
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until, within
from twistedproxy.settings import Mount

BIG = "/studies/1.2/series/1.2/instances/1.2/bulkdata/big"
STOW = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=stow'}


def stow_body(*files: bytes) -> bytes:
    """A body that stores DICOM files (PS3.18 section 10.5)."""
    parts = b"".join(b"--stow\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
    return parts + b"--stow--\r\n"


@implementer(IBodyProducer)
class Handed:
    """A body that a test hands over piece by piece; *length* None: in chunks."""

    def __init__(self, length: Any = None) -> None:
        self.length = UNKNOWN_LENGTH if length is None else length
        self._consumer: Any = None
        self._done: Deferred[None] = Deferred()
        self.started: Deferred[None] = Deferred()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._consumer = consumer
        self.started.callback(None)
        return self._done

    def hand(self, data: bytes) -> None:
        self._consumer.write(data)

    def end(self) -> None:
        self._done.callback(None)

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


class PassThroughCase(ProxyCase):
    """A store, a proxy, a client."""

    store_: SimulatedStore
    running: RunningProxy
    ask: Client

    async def begin(self, **settings: Any) -> None:
        self.accesses: list[LogEvent] = []
        globalLogPublisher.addObserver(self._note_access)
        self.addCleanup(globalLogPublisher.removeObserver, self._note_access)
        self.store_ = self.store()
        self.running = await self.proxy(self.store_, **settings)
        self.ask = self.running.client()

    def _note_access(self, event: LogEvent) -> None:
        if event.get("event") == "access":
            self.accesses.append(event)

    @property
    def seen(self) -> Seen:
        """The last request that the store saw."""
        return self.store_.requests[-1]

    async def raw(self) -> RawConnection:
        """A bare connection to the proxy."""
        connection = await RawConnection.open(self.running.port)
        self.addCleanup(lambda: ensureDeferred(connection.close()))
        return connection

    def counted(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.running.components.metrics.render().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    async def settled(self) -> None:
        """Return once no request is in flight at the proxy."""
        await wait_until(lambda: self.counted("twistedproxy_requests_in_flight") == 0, "in flight")


class AnswerTests(PassThroughCase):
    """Requests and answers come out as they went in."""

    async def test_methods(self) -> None:
        """GET, HEAD, POST, PUT, DELETE and OPTIONS reach the store, with path and query byte for byte."""
        await self.begin()
        query = "?ModalitiesInStudy=SM&PatientName=M%c3%bcller%2B*&x=%2f..%2F&y=a+b&&z"
        for method, path in (
            ("GET", "/studies"),
            ("HEAD", "/studies"),
            ("OPTIONS", "/studies"),
            ("POST", "/studies"),
            ("PUT", f"/{self.slide.resource}"),
            ("DELETE", "/studies/1.2.3"),
            ("GET", "/projects/p%20q/studies"),
        ):
            body = b"body" if method in ("POST", "PUT") else None
            await self.ask.request(method, path + query, body=body)
            self.assertEqual(f"{method} {self.store_.dialect.root}{path}{query}", self.seen.line)

    async def test_headers(self) -> None:
        """Headers go through both ways but for those of the hop; Host is the origin's."""
        await self.begin()
        self.store_.fail(
            faults.Answer(
                200, (("X-Store", "b"), ("Connection", "X-Hop, close"), ("X-Hop", "c"), ("Keep-Alive", "timeout=5"))
            )
        )
        answer = await self.ask.request(
            "GET",
            "/studies",
            {"X-Caller": "a", "TE": "trailers", "Authorization": "Bearer t", "Keep-Alive": "9", "X-Own": "d"},
        )
        self.assertEqual("b", answer.headers["x-store"])
        for name in ("x-hop", "keep-alive"):
            self.assertNotIn(name, answer.headers)
        for name in ("te", "keep-alive"):
            self.assertEqual("", self.seen.header(name))
        self.assertEqual(("a", "Bearer t"), (self.seen.header("X-Caller"), self.seen.header("Authorization")))
        self.assertEqual(f"127.0.0.1:{self.store_.port}", self.seen.header("Host"))

    async def test_named_hop_headers(self) -> None:
        """What the caller's Connection field names stays on its hop too."""
        await self.begin()
        connection = await self.raw()
        connection.send(
            b"GET /dicomweb/studies HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop\r\nX-Hop: b\r\nX-End: c\r\n\r\n"
        )
        await connection.end()
        self.assertEqual(("", "c"), (self.seen.header("X-Hop"), self.seen.header("X-End")))

    async def test_another_request(self) -> None:
        """What makes another request of it stays behind, also where a server takes an underscore for a dash: a GET that
        a store takes for a DELETE would leave the cache as it is."""
        await self.begin()
        names = ("X-HTTP-Method-Override", "X-Http-Method", "X-Method-Override", "X_HTTP_Method_Override")
        told = {
            "X-Original-URL": "/app",
            "X-Rewrite-URL": "/app",
            "Content_Length": "5",
            "Transfer_Encoding": "chunked",
            "Proxy": "http://evil.test",
            **dict.fromkeys(names, "DELETE"),
        }
        await self.ask.get("/studies", told)
        for name in told:
            self.assertEqual("", self.seen.header(name), name)

    async def test_strangers_forwarding_headers(self) -> None:
        """What a stranger says of proxies and clients stays behind, but a credential whatever its name."""
        await self.begin(credential_header=("X-Forwarded-User",))
        told = dict.fromkeys(("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X_Forwarded_User", "X-Real-IP"), "a")
        await self.ask.get("/studies", {**told, "X-Forwarded-User": "alice"})
        for name in told:
            self.assertEqual("", self.seen.header(name), name)
        self.assertEqual("alice", self.seen.header("X-Forwarded-User"))

    async def test_trusted_forwarding_headers(self) -> None:
        """What a trusted proxy says goes on, but for another method."""
        await self.begin(trusted_proxy=(ip_network("127.0.0.0/8"),))
        told = {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https", "Forwarded": "for=192.0.2.9"}
        await self.ask.get("/studies", {**told, "X-Forwarded-Method": "DELETE"})
        for name, value in told.items():
            self.assertEqual(value, self.seen.header(name))
        self.assertEqual("", self.seen.header("X-Forwarded-Method"))

    async def test_via(self) -> None:
        """The store learns by which HTTP the proxy was asked, and by whom it was before."""
        await self.begin()
        answer = await self.ask.get("/studies")
        self.assertEqual("1.1 twistedproxy", self.seen.header("Via"))
        self.assertNotIn("via", answer.headers)
        connection = await self.raw()
        connection.send(b"GET /dicomweb/studies HTTP/1.0\r\nVia: 1.1 edge\r\n\r\n")
        await connection.end()
        via = [value for name, value in self.seen.headers if name.lower() == "via"]
        self.assertEqual(["1.1 edge", "1.0 twistedproxy"], via)

    async def test_connection_names_too_much(self) -> None:
        """What makes the caller goes on although Connection names it: else the store would judge another caller than
        the one that gets a grant for its answer. What the proxy itself says goes on too."""
        await self.begin()
        connection = await self.raw()
        connection.send(
            b"GET /dicomweb/studies HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nCookie: b=c\r\nVia: 1.1 edge\r\n"
            b"Connection: close, Authorization, cookie\r\nConnection: Accept-Encoding,Via, Host\r\n\r\n"
        )
        await connection.end()
        names = ("Authorization", "Cookie", "Accept-Encoding", "Via", "Host")
        expected = ["Bearer a", "b=c", "identity", "1.1 twistedproxy", f"127.0.0.1:{self.store_.port}"]
        self.assertEqual(expected, [self.seen.header(name) for name in names])

    async def test_pages_of_the_store(self) -> None:
        """What a store says runs in no browser as a page of the proxy: neither an answer nor a refusal."""
        await self.begin()
        page = (("Content-Type", "text/html"), ("Content-Security-Policy", "default-src 'self'"))
        for path in (
            "/studies",
            f"/{self.slide.resource}/rendered?accept=text/html",
            f"/{self.slide.resource}/frames/1",
        ):
            for status in (200, 403):
                self.store_.fail(faults.Answer(status, page, b"<script>"), times=None)
                answer = await self.ask.get(path)
                self.assertEqual("nosniff", answer.headers["x-content-type-options"])
                if answer.headers["content-type"] == "text/html":
                    self.assertIn("sandbox", answer.headers["content-security-policy"], (path, status))
                self.store_.heal()
        answer = await self.ask.get("/studies")
        self.assertNotIn("content-security-policy", answer.headers)

    async def test_another_way_to_the_store(self) -> None:
        """That the store can be reached elsewhere is nothing for callers: they would take it for the proxy."""
        await self.begin()
        self.store_.fail(faults.Answer(200, (("Alt-Svc", 'h3=":443"'), ("X-Store", "a")), b"x"))
        answer = await self.ask.get("/studies")
        self.assertEqual(("a", False), (answer.headers["x-store"], "alt-svc" in answer.headers))

    async def test_said_once(self) -> None:
        """Date, Server and content type are the store's; what it does not say is not made up."""
        await self.begin()
        self.store_.fail(faults.Answer(200, (("Server", "store/1"), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT")), b"x"))
        answer = await self.ask.get("/studies/1.2/series/1.2/instances/1.2/bulkdata/1")
        self.assertEqual("store/1", answer.headers["server"])
        self.assertEqual("Thu, 01 Jan 1970 00:00:00 GMT", answer.headers["date"])
        self.assertNotIn("content-type", answer.headers)

    async def test_cross_origin_said_once(self) -> None:
        """Where both the proxy and the store allow an origin it is said once: browsers refuse it said twice."""
        await self.begin(cors_origin=("https://viewer.test",))
        allow = (("Access-Control-Allow-Origin", "*"), ("Vary", "X-Store"), ("Content-Type", "text/plain"))
        self.store_.fail(faults.Answer(200, allow, b"x"))
        answer = await self.ask.get("/studies", {"Origin": "https://viewer.test"})
        self.assertEqual("https://viewer.test", answer.headers["access-control-allow-origin"])
        self.assertIn("X-Store", answer.headers["vary"])

    async def test_statuses(self) -> None:
        """Errors come as the store sent them, and so do answers without a body."""
        await self.begin()
        for status, body in ((400, b"no"), (401, b"who"), (409, b"{}"), (500, b"<html>"), (204, b""), (304, b"")):
            headers = (("Content-Type", "text/odd"), ("WWW-Authenticate", "Odd")) if body else ()
            self.store_.fail(faults.Answer(status, headers, body))
            answer = await self.ask.get("/studies/1.2/series")
            self.assertEqual((status, body), (answer.status, answer.body))
            if body:
                self.assertEqual(
                    ("text/odd", "Odd"), (answer.headers["content-type"], answer.headers["www-authenticate"])
                )

    async def test_length(self) -> None:
        """A length that the store said is said, to HEAD as well; an answer in chunks goes out in chunks."""
        await self.begin()
        answer = await self.ask.get(f"{BIG}?size=100000")
        self.assertEqual("100000", answer.headers["content-length"])
        self.assertEqual(100000, len(answer.body))
        self.store_.fail(faults.Answer(200, (("X-Length", "1"),), b"abc"))
        self.assertEqual("3", (await self.ask.get(BIG)).headers["content-length"])

    async def test_compressed(self) -> None:
        """A compressed answer that is no description is not touched."""
        await self.begin()
        packed = gzip.compress(b"value" * 1000)
        self.store_.fail(faults.Answer(200, (("Content-Encoding", "gzip"), ("Content-Type", "text/x")), packed))
        answer = await self.ask.get(f"{BIG}?size=1", {"Accept-Encoding": "gzip"})
        self.assertEqual("gzip", self.seen.header("Accept-Encoding"))
        self.assertEqual((packed, "gzip"), (answer.body, answer.headers["content-encoding"]))

    async def test_redirects(self) -> None:
        """A redirect is given back, not followed; one to the store names the proxy, one elsewhere stays."""
        await self.begin()
        elsewhere = "https://login.test/start?next=1"
        for told, expected in ((f"{self.store_.url}/studies/1.2", f"{self.running.url}/dicomweb/studies/1.2"),) + (
            (elsewhere, elsewhere),
        ):
            self.store_.fail(faults.redirect(told))
            answer = await self.ask.get("/studies")
            self.assertEqual((302, expected), (answer.status, answer.headers["location"]))
        self.assertEqual(2, len(self.store_.requests))

    async def test_redirects_out_of_the_root(self) -> None:
        """A redirect to something else at the store is a 502 that does not say where to."""
        await self.begin()
        for told in (f"http://127.0.0.1:{self.store_.port}/app", "/app", "http://127.0.0.1:1/"):
            self.store_.fail(faults.redirect(told, 307))
            answer = await self.ask.get("/studies")
            self.assertEqual((502, "application/problem+json"), (answer.status, answer.headers["content-type"]))
            self.assertNotIn("location", answer.headers)
            self.assertNotIn(b"app", answer.body)

    async def test_absolute_form(self) -> None:
        """A target with scheme and host is answered like its path."""
        await self.begin()
        connection = await self.raw()
        connection.send(b"GET http://proxy.test/dicomweb/studies HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        self.assertTrue((await connection.end()).startswith(b"HTTP/1.1 200"))
        self.assertEqual(f"GET {self.store_.dialect.root}/studies", self.seen.line)

    async def test_not_http(self) -> None:
        """Methods, targets and hosts that make no sense get a problem, and do not reach the store."""
        await self.begin()
        for head, status in (
            (b"TRACE /dicomweb/studies HTTP/1.1\r\nHost: a", 405),
            (b"PROPFIND /dicomweb/studies HTTP/1.1\r\nHost: a", 405),
            (b"CONNECT store:443 HTTP/1.1\r\nHost: a", 405),
            (b"!#$ /dicomweb/studies HTTP/1.1\r\nHost: a", 405),
            (b"GET studies HTTP/1.1\r\nHost: a", 400),
            (b"GET /dicomweb/studies HTTP/1.1", 400),
            (b"GET /dicomweb/%ff%fe HTTP/1.1\r\nHost: a", 400),
            (b"GET /dicomweb/nothing HTTP/1.1\r\nHost: a..b\xff", 404),
            (b"GET /dicomweb/\x80 HTTP/1.1\r\nHost: a", 400),
        ):
            connection = await self.raw()
            connection.send(head + b"\r\nConnection: close\r\n\r\n")
            answer = await connection.end()
            self.assertTrue(answer.startswith(b"HTTP/1.1 %d " % status), (head, answer))
            self.assertIn(b"application/problem+json", answer)
        self.assertEqual([], self.store_.requests)
        self.assertEqual(9, len(self.accesses))
        self.assertEqual(9, self.counted("twistedproxy_requests_total"))


class FailureTests(PassThroughCase):
    """The origin fails, or the client leaves."""

    async def test_statuses_that_are_none(self) -> None:
        """A status that HTTP has not is a 502."""
        await self.begin()
        for status in (600, 999):
            self.store_.fail(faults.Answer(status, (("X-Odd", "1"),), b"odd"))
            answer = await self.ask.get("/studies/1.2/series")
            self.expect_problem(502, answer)
            self.assertNotIn("x-odd", answer.headers)

    def expect_problem(self, status: int, answer: Answer) -> None:
        self.assertEqual((status, "application/problem+json"), (answer.status, answer.headers["content-type"]))

    async def test_breaks(self) -> None:
        """An answer that breaks at the origin breaks at the client: never an end that looks like the end."""
        await self.begin()
        for fault in (faults.Reset(100_000), faults.Close(100_000)):
            self.store_.fail(fault)
            connection = await self.raw()
            connection.send(b"GET /dicomweb%s?size=900000 HTTP/1.1\r\nHost: a\r\n\r\n" % BIG.encode())
            answer = await connection.end()
            self.assertIn(b"Content-Length: 900000", answer)
            self.assertLess(len(answer), 900_000)
        await self.settled()

    async def test_breaks_in_chunks(self) -> None:
        """Also where no length was said: the last chunk does not come."""
        await self.begin()
        arrived = Deferred[None]()

        async def half(exchange: Any) -> None:
            await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await arrived
            exchange.close()

        self.store_.factory.handler = half
        connection = await self.raw()
        connection.send(b"GET /dicomweb%s HTTP/1.1\r\nHost: a\r\n\r\n" % BIG.encode())
        await connection.until(b"3\r\nabc\r\n")
        arrived.callback(None)
        answer = await connection.end()
        self.assertNotIn(b"\r\n0\r\n", answer)

    async def test_breaks_before_the_body(self) -> None:
        """An answer that breaks before the first byte of its body is a 502, which has none of its headers."""
        await self.begin()

        async def head(exchange: Any) -> None:
            await exchange.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Encoding: gzip\r\nETag: x\r\nLocation: y\r\n\r\n"
            )
            exchange.close()

        self.store_.factory.handler = head
        answer = await self.ask.get(BIG)
        self.expect_problem(502, answer)
        self.assertEqual(502, answer.json()["status"])
        for name in ("content-encoding", "etag", "location"):
            self.assertNotIn(name, answer.headers)

    async def test_unreachable(self) -> None:
        """An origin that is not there, drops the connection, or does not answer: 502, 502, 504."""
        await self.begin(origin_timeout=0.3)
        self.store_.fail(faults.Reset(), times=None)
        self.expect_problem(502, await self.ask.get("/studies"))
        self.store_.heal()
        self.store_.fail(faults.Stall())
        self.expect_problem(504, await self.ask.get("/studies"))
        await self.store_.stop()
        self.expect_problem(502, await self.ask.get("/studies"))
        await self.settled()

    async def test_never_there(self) -> None:
        """Nor does an origin that never was there keep the proxy from starting."""
        store = self.store()
        await store.stop()
        running = await self.proxy(store)
        self.expect_problem(502, await running.client().get("/studies"))

    async def test_client_leaves_download(self) -> None:
        """A client that leaves in the middle ends the origin's answer too; it is counted once, and nothing is logged
        as an error."""
        await self.begin()
        connection = await self.raw()
        connection.send(b"GET /dicomweb%s?size=200000000 HTTP/1.1\r\nHost: a\r\n\r\n" % BIG.encode())
        await connection.until(b"\r\n\r\n")
        await connection.close()
        await wait_until(lambda: self.seen.aborted, "the origin's answer ends")
        await self.settled()
        self.assertEqual(1, self.counted("twistedproxy_requests_total"))
        self.assertEqual(1, len(self.accesses))
        self.assertEqual([], self.flushLoggedErrors())

    async def test_client_leaves_waiting(self) -> None:
        """So does one that leaves before the answer began: 499 in the log."""
        await self.begin()
        gate = self.store_.hold("studies")
        connection = await self.raw()
        connection.send(b"GET /dicomweb/studies HTTP/1.1\r\nHost: a\r\n\r\n")
        await gate.reached()
        await connection.close()
        await self.settled()
        self.assertEqual([499], [event["status"] for event in self.accesses])
        self.assertEqual([], self.flushLoggedErrors())

    async def test_slow_client(self) -> None:
        """A client that does not read holds the origin back."""
        await self.begin()
        connection = await self.raw()
        connection.pause()
        connection.send(b"GET /dicomweb%s?size=200000000 HTTP/1.1\r\nHost: a\r\n\r\n" % BIG.encode())
        await self.store_.requested("big")
        before = -1

        def stands_still() -> bool:
            nonlocal before
            stands, before = before == self.seen.sent > 0, self.seen.sent
            return stands

        await wait_until(stands_still, "the origin waits")
        self.assertLess(self.seen.sent, 40_000_000)  # what the buffers of four sockets hold

    async def test_never_reads(self) -> None:
        """And is dropped at its deadline."""
        await self.begin(client_timeout=1.0)
        connection = await self.raw()
        connection.pause()
        connection.send(b"GET /dicomweb%s?size=200000000 HTTP/1.1\r\nHost: a\r\n\r\n" % BIG.encode())
        await self.store_.requested("big")
        await wait_until(lambda: self.seen.aborted, "the origin's answer ends")
        await self.settled()


class UploadTests(PassThroughCase):
    """Bodies on their way to the store."""

    async def begin(self, **settings: Any) -> None:
        await super().begin(**settings)
        self.arrived = b""
        self.store_.on_body.append(self._note)

    def _note(self, _seen: Seen, piece: bytes) -> None:
        self.arrived += piece

    async def arrives(self, data: bytes) -> None:
        await wait_until(lambda: self.arrived == data, f"{data!r} arrives")

    async def test_streams(self) -> None:
        """The first bytes are at the store before the last have been sent, with a length and in chunks."""
        await self.begin()
        for length in (6, None):
            self.arrived = b""
            body = Handed(length)
            answering = ensureDeferred(self.ask.request("POST", "/studies", STOW, body))
            await body.started
            body.hand(b"abc")
            await self.arrives(b"abc")
            body.hand(b"def")
            body.end()
            self.assertEqual(200, (await answering).status)
            self.assertEqual(b"abcdef", self.arrived)
            framing = ("6", "") if length else ("", "chunked")
            self.assertEqual(framing, (self.seen.header("Content-Length"), self.seen.header("Transfer-Encoding")))

    async def test_continue(self) -> None:
        """A client that waits for 100 Continue gets it from the proxy, and the store is not asked for one."""
        await self.begin()
        connection = await self.raw()
        connection.send(
            b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        await connection.until(b"100 Continue\r\n\r\n")
        connection.send(b"abc")
        await connection.until(b"HTTP/1.1 200")
        self.assertEqual(("", b"abc"), (self.seen.header("Expect"), self.arrived))

    async def test_pipelined(self) -> None:
        """What comes behind an upload is answered after it."""
        await self.begin()
        connection = await self.raw()
        connection.send(
            b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
            b"OPTIONS /dicomweb/studies HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        answers = await connection.end()
        self.assertRegex(answers, rb"(?s)^HTTP/1.1 200 .*HTTP/1.1 204 ")
        self.assertEqual(b"abc", self.arrived)

    async def refused(self, connection: RawConnection, head: bytes, status: int) -> None:
        connection.send(head)
        sent = 0
        while b"\r\n\r\n" not in connection.received and not connection.lost:
            connection.send(b"x" * 65536)
            sent += 65536
            if sent > 1 << 26:
                await within(connection.until(b"\r\n\r\n"))
            await wait_until(lambda: True)
        self.assertTrue(bytes(connection.received).startswith(b"HTTP/1.1 %d" % status), connection.received[:200])
        self.assertIn(b"Connection: close", connection.received)

    async def test_refused_by_the_store(self) -> None:
        """The store's 401 is at the client while that still sends, and the connection ends."""
        await self.begin()

        async def refuse(exchange: Any) -> None:
            await exchange.write(b"HTTP/1.1 401 No\r\nContent-Length: 3\r\nWWW-Authenticate: Basic\r\n\r\nwho")

        self.store_.factory.handler = refuse
        connection = await self.raw()
        head = b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n"
        await self.refused(connection, head, 401)
        await connection.end()
        self.assertTrue(connection.received.endswith(b"who"))
        await self.settled()

    async def test_refused_by_the_proxy(self) -> None:
        """So is a refusal of our own; the store sees nothing."""
        await self.begin()
        connection = await self.raw()
        head = b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n"
        await self.refused(connection, head, 404)
        await connection.end()
        self.assertEqual([], self.store_.requests)

    async def test_client_leaves(self) -> None:
        """A client that leaves in the middle ends the request at the store: nothing is stored of half a body, and
        nothing is logged as an error."""
        await self.begin()
        for framing in (b"Content-Length: 100", b"Transfer-Encoding: chunked"):
            self.arrived = b""
            connection = await self.raw()
            connection.send(b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
            connection.send(b"3\r\nabc\r\n" if b"chunked" in framing else b"abc")
            await self.arrives(b"abc")
            await connection.close()
            await wait_until(lambda: self.seen.aborted, "the request ends")
            self.assertIsNone(self.seen.status)
        await self.settled()
        self.assertEqual(2, self.counted("twistedproxy_requests_total"))
        self.assertEqual([499, 499], [event["status"] for event in self.accesses])
        self.assertEqual([], self.flushLoggedErrors())

    async def test_malformed(self) -> None:
        """A body whose chunks are none gets a 400, and the store no end of it."""
        await self.begin()
        connection = await self.raw()
        connection.send(b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await self.arrives(b"abc")
        connection.send(b"nonsense\r\n")
        await connection.until(b"HTTP/1.1 400")
        await wait_until(lambda: self.seen.aborted, "the request ends")

    async def test_slow_store(self) -> None:
        """A store that does not read holds the client back."""
        await self.begin()
        gate = Deferred[None]()

        async def wait(exchange: Any) -> None:
            self.store_.requests.append(exchange.seen)
            await gate

        self.store_.factory.handler = wait
        connection = await self.raw()
        size = 200_000_000
        connection.send(b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        connection.send(bytes(size))
        await wait_until(lambda: self.store_.requests, "the request")
        before = -1

        def stands_still() -> bool:
            nonlocal before
            now = self.store_.requests[0].body_bytes
            stands, before = before == now > 0, now
            return stands

        await wait_until(stands_still, "the client waits")
        self.assertLess(self.counted("twistedproxy_origin_bytes_total"), 40_000_000)

    async def test_slow_client(self) -> None:
        """A client that sends less than 64 kB within its deadline is dropped, and its request ends at the store."""
        await self.begin(client_timeout=1.0)
        connection = await self.raw()
        connection.send(b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        await self.arrives(b"abc")
        await connection.end()
        await wait_until(lambda: self.seen.aborted, "the request ends")
        await self.settled()
        self.assertEqual([], self.flushLoggedErrors())


class ForgettingTests(PassThroughCase):
    """What a change touched is forgotten before it is answered."""

    async def frame(self, expected: int = 200) -> list[str]:
        """Ask for frame 1, and return the frame requests that the store sees because of that."""
        before = len(self.store_.seen("/frames/"))
        answer = await self.ask.frames(self.slide.resource, [1])
        self.assertEqual(expected, answer.status, answer.body)
        return self.store_.lines("/frames/")[before:]

    async def begin(self, **settings: Any) -> None:
        await super().begin(**settings)
        self.assertEqual(1, len(await self.frame()))
        self.assertEqual([], await self.frame())

    async def test_stored_again(self) -> None:
        """After an instance was stored, its frames come from the store."""
        await self.begin()
        answer = await self.ask.request("POST", "/studies", STOW, stow_body(self.slide.path.read_bytes()))
        self.assertEqual(200, answer.status)
        self.assertEqual(self.slide.sop, answer.json()["00081199"]["Value"][0]["00081155"]["Value"][0])
        self.assertEqual(1, len(await self.frame()))

    async def test_other_stored(self) -> None:
        """Another one's storing touches nothing of it."""
        await self.begin()
        other = slide(self.mktemp(), 1, 1, 64)
        await self.ask.request("POST", "/studies", STOW, stow_body(other.path.read_bytes()))
        self.assertEqual([], await self.frame())

    async def test_deleted(self) -> None:
        """After its study was deleted nothing of it is answered."""
        await self.begin()
        study = f"/studies/{self.slide.study}"
        self.assertEqual(204, (await self.ask.request("DELETE", study)).status)
        await self.frame(404)

    async def test_series_of_a_short_path(self) -> None:
        """The series that was looked up for a path without one is looked up again."""
        await self.begin()
        search = f"GET /studies/{self.slide.study}/instances?SOPInstanceUID={self.slide.sop}"
        path = f"/studies/{self.slide.study}/instances/{self.slide.sop}/frames/1"

        async def searched(status: int) -> int:
            before = len(self.store_.seen("/instances"))
            self.assertEqual(status, (await self.ask.get(path)).status)
            lines = self.store_.lines("/instances")[before:]
            return sum(line.startswith(search) for line in lines)

        self.assertEqual([1, 0], [await searched(200), await searched(200)])
        await self.ask.request("POST", "/studies", STOW, stow_body(self.slide.path.read_bytes()))
        self.assertEqual([1, 0], [await searched(200), await searched(200)])
        await self.ask.request("DELETE", f"/{self.slide.resource}")
        self.assertEqual(1, await searched(404))

    async def test_refused(self) -> None:
        """A change that the store refuses touches nothing."""
        await self.begin()
        for status in (401, 403):
            self.store_.fail(faults.Answer(status), times=2)
            await self.ask.request("DELETE", f"/studies/{self.slide.study}")
            await self.ask.request("POST", "/studies", STOW, stow_body(self.slide.path.read_bytes()))
        for status in (302, 400, 404, 413):
            self.store_.fail(faults.Answer(status))
            await self.ask.request("DELETE", f"/studies/{self.slide.study}")
        self.assertEqual([], await self.frame())

    async def test_strangers(self) -> None:
        """A POST that names no instance, which a gateway or a store in trouble answers, touches nothing, and its answer is
        given as it came."""
        await self.begin()
        page = faults.Answer(200, (("Content-Type", "text/html"),), b"<p>log in")
        for fault in (
            page,
            faults.Answer(302),
            faults.Answer(400),
            faults.Answer(503, (("Retry-After", "99"),)),
            faults.Close(),
        ):
            for path in ("/studies", f"/studies/{self.slide.study}"):
                for headers, body in (
                    ({"Content-Type": "text/plain"}, b"x"),
                    (STOW, b"--stow--"),
                    (STOW, stow_body(b"x")),
                ):
                    self.store_.fail(fault)
                    answer = await self.ask.request("POST", path, headers, body)
        self.assertEqual(502, answer.status)
        self.store_.fail(page)
        answer = await self.ask.request("POST", "/studies", STOW, b"--stow--")
        self.assertEqual((200, b"<p>log in"), (answer.status, answer.body))
        self.assertEqual([], await self.frame())

    async def test_stored_in_part(self) -> None:
        """Where the answer leaves open what was stored, what the upload's parts name counts as stored."""
        await self.begin()
        again = stow_body(self.slide.path.read_bytes(), b"garbage")
        for fault in (faults.Answer(400), faults.Answer(503, (("Retry-After", "99"),)), faults.Close()):
            self.store_.fail(fault)
            await self.ask.request("POST", "/studies", STOW, again)
            self.assertEqual(1, len(await self.frame()), fault)

    async def test_huge(self) -> None:
        """So it does where the answer is too long to be kept; it comes whole."""
        await self.begin()
        size = 20 << 20
        self.store_.fail(faults.Answer(200, (), bytes(size)))
        body = stow_body(self.slide.path.read_bytes())
        answer = await self.ask.request("POST", f"/studies/{self.slide.study}", STOW, body)
        self.assertEqual((200, size), (answer.status, len(answer.body)))
        self.assertEqual(1, len(await self.frame()))

    async def test_no_answer(self) -> None:
        """A DELETE without an answer may have been carried out: it counts as such."""
        await self.begin()
        for fault in (faults.Close(), faults.Answer(500)):
            self.store_.add(self.slide.path)
            await self.frame()
            before = len(self.store_.seen("/metadata"))
            self.store_.fail(fault)
            await self.ask.request("DELETE", f"/{self.slide.resource}")
            await self.ask.frames(self.slide.resource, [1])
            self.assertEqual(before + 1, len(self.store_.seen("/metadata")), fault)

    async def test_another_path_of_the_store(self) -> None:
        """What was stored below one path of a host is invalidated below all of them."""
        await self.begin()
        stored = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [self.slide.sop]}}]}}
        answer = json.dumps(stored).encode()
        self.store_.fail(faults.Answer(200, (("Content-Type", "application/dicom+json"),), answer), "/stowrs/studies")
        body = stow_body(self.slide.path.read_bytes())
        self.assertEqual(200, (await self.ask.request("POST", "/stowrs/studies", STOW, body)).status)
        self.assertEqual(1, len(await self.frame()))

    async def test_answer_breaks(self) -> None:
        """So it does where the answer breaks off: 502."""
        await self.begin()
        self.store_.fail(faults.Close(5))
        answer = await self.ask.request("POST", "/studies", STOW, stow_body(self.slide.path.read_bytes()))
        self.assertEqual(502, answer.status)
        self.assertEqual(1, len(await self.frame()))

    async def deleted_in_passing(self) -> None:
        """A client asks to delete the instance, and leaves before the store answers; then it does."""
        gate = self.store_.hold(lambda seen: seen.method == "DELETE")
        connection = await self.raw()
        connection.send(b"DELETE /dicomweb/%s HTTP/1.1\r\nHost: a\r\n\r\n" % self.slide.resource.encode())
        await gate.reached()
        await connection.close()
        await self.settled()
        self.assertEqual([], await self.frame(), "nobody knows yet what the store will do")
        gate.release()
        await wait_until(
            lambda: self.counted('twistedproxy_origin_operation_seconds_count{operation="forward",outcome="ok"'),
            "the answer",
        )

    async def test_client_leaves(self) -> None:
        """And where the client does not wait for the answer: as soon as it comes."""
        await self.begin()
        await self.deleted_in_passing()
        await self.frame(404)

    async def test_a_stranger_leaves(self) -> None:
        """But nothing is forgotten where the store refused it: strangers do not empty the cache by leaving early."""
        await self.begin()
        self.store_.fail(faults.Answer(401), lambda seen: seen.method == "DELETE")
        await self.deleted_in_passing()
        self.assertEqual([], await self.frame())

    async def test_half_an_upload(self) -> None:
        """Half an upload stores nothing, so it makes nothing old: a client with a bad line does not empty the cache."""
        await self.begin()
        connection = await self.raw()
        connection.send(b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        await self.store_.requested(lambda seen: seen.method == "POST")
        await connection.close()
        await self.settled()
        self.assertEqual([], await self.frame())


class TwoMountsTests(PassThroughCase):
    """One store behind two mounts, at its DICOMweb root and above it."""

    async def both(self, **settings: Any) -> tuple[Client, Client]:
        """Clients below the root's mount, and below that of the whole store's."""
        self.store_ = self.store()
        above = self.store_.server.replace("http:", "HTTP:") + "/"
        mounts = (Mount("/dicomweb", self.store_.url), Mount("/all", above))
        self.running = await self.proxy(self.store_, origin=mounts, **settings)
        return self.running.client(), self.running.client(prefix="/all" + self.store_.dialect.root)

    async def test_shared(self) -> None:
        """What was cached through one is there through the other, and so is the grant."""
        root, above = await self.both()
        for ask in (root, above):
            self.assertEqual(self.stored[:1], (await ask.frames(self.slide.resource, [1])).frames())
        self.assertEqual(1, len(self.store_.seen("/frames/")))

    async def test_forgotten(self) -> None:
        """What was deleted or stored through one is no longer known through the other, whatever kept it."""
        for hot_memory, order in itertools.product((0, 64 << 20), (1, -1)):
            asks, changes = (await self.both(hot_memory=hot_memory))[::order]
            for _ in range(2):
                await asks.frames(self.slide.resource, [1])
            self.assertEqual(1, len(self.store_.seen("/frames/")))
            await changes.request("POST", "/studies", STOW, stow_body(self.slide.path.read_bytes()))
            self.assertEqual(self.stored[:1], (await asks.frames(self.slide.resource, [1])).frames())
            self.assertEqual(2, len(self.store_.seen("/frames/")))
            await changes.request("DELETE", f"/studies/{self.slide.study}")
            self.assertEqual(404, (await asks.frames(self.slide.resource, [1])).status)


class TLSTests(PassThroughCase):
    """The same through TLS, which knows no half-closed connection."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        certificate(self.folder, "proxy.test")

    async def connected(self) -> socket.socket:
        """A blocking TLS connection to the proxy, for use in a thread."""
        self.store_ = self.store()
        folder = self.folder
        keys = f"privateKey={folder / 'key.pem'}:certKey={folder / 'cert.pem'}"
        self.running = await self.proxy(self.store_, listen=(f"ssl:0:{keys}:interface=127.0.0.1",))
        context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        context.set_alpn_protocols(["h2", "http/1.1"])
        return await deferToThread(self._connect, context)

    def _connect(self, context: ssl.SSLContext) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.running.port), timeout=20)
        secured = context.wrap_socket(plain, server_hostname="proxy.test")
        self.addCleanup(secured.close)
        self.assertEqual("http/1.1", secured.selected_alpn_protocol())
        return secured

    async def exchange(self, connection: socket.socket, *pieces: bytes) -> bytes:
        """Send *pieces* from a thread; all that comes until the end."""

        def talk() -> bytes:
            for piece in pieces:
                connection.sendall(piece)
            received = b""
            while data := connection.recv(65536):
                received += data
            return received

        return await deferToThread(talk)

    async def test_large(self) -> None:
        """A large answer comes whole, and the connection ends in order."""
        connection = await self.connected()
        head = b"GET /dicomweb%s?size=5000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % BIG.encode()
        answer = await self.exchange(connection, head)
        self.assertEqual(5_000_000, len(answer.partition(b"\r\n\r\n")[2]))

    async def test_upload(self) -> None:
        """A large upload arrives whole."""
        connection = await self.connected()
        size = 5_000_000
        head = b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        answer = await self.exchange(connection, head % size, bytes(size))
        self.assertTrue(answer.startswith(b"HTTP/1.1 200"))
        self.assertEqual(size, self.seen.body_bytes)

    async def test_malformed(self) -> None:
        """What is no request is answered although more comes."""
        connection = await self.connected()

        def talk() -> bytes:
            connection.sendall(b"nonsense\r\n\r\n" + bytes(100_000))
            return connection.recv(65536)

        self.assertTrue((await deferToThread(talk)).startswith(b"HTTP/1.1 400"))
