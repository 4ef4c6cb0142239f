"""Origins over TLS: certificates are verified."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, PrivateCertificate
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase
from twisted.web.client import BrowserLikePolicyForHTTPS

from tests.cache.certificates import self_signed
from tests.origin.http.wire import Head, Wire, WireServer
from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.origin.http.client import Transport
from twistedproxy.origin.interface import OriginRequest
from twistedproxy.streams import read_all

MB = 1 << 20


class Plain(Protocol):
    """Answers anything in plain HTTP."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


class TLSTests(TestCase):
    timeout = 20

    def serve(self, name: str, **more: Any) -> tuple[str, Certificate]:
        """A TLS server with a certificate for *name* (*more*: see `self_signed`); its URL."""
        from twisted.internet import reactor

        async def script(wire: Wire, head: Head) -> None:
            if head.target == b"/big":
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (8 * MB))
                wire.send(bytes(4 * MB))
            else:
                wire.answer(b"200 OK", b"secret")

        made = PrivateCertificate.loadPEM(b"".join(self_signed(name, **more)))
        self.server = WireServer(script)
        port: Any = reactor.listenSSL(0, self.server, made.options(), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        return f"https://localhost:{port.getHost().port}", made

    def transport(self, url: str, trusted: Certificate | None = None) -> Transport:
        from twisted.internet import reactor

        policy = BrowserLikePolicyForHTTPS(trustRoot=trusted) if trusted is not None else None
        transport = Transport(reactor, url, 5, 5, 5, 2, policy)

        async def stop() -> None:
            await transport.close()
            for wire in self.server.connections:
                if not wire.gone:
                    wire.reset()
                    await wire.lost()

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        return transport

    async def test_trusted(self) -> None:
        """An origin whose certificate is trusted and bears its name is spoken to."""
        url, made = self.serve("localhost")
        answer = await self.transport(url, made).request(OriginRequest(b"GET", b"/"))
        self.assertEqual(await read_all(answer.body, MB), b"secret")

    async def test_unknown_authority(self) -> None:
        """A certificate that nobody vouches for ends the connection before a request is sent."""
        url, _ = self.serve("localhost")
        with self.assertRaises(OriginUnreachable) as caught:
            await self.transport(url).request(OriginRequest(b"GET", b"/", headers=((b"Authorization", b"x"),)))
        self.assertIn("certificate verify failed: depth zero self signed cert", str(caught.exception))
        self.assertEqual(self.server.requests, [])

    async def test_wrong_name(self) -> None:
        """So does one for another host."""
        url, made = self.serve("elsewhere.example")
        with self.assertRaises(OriginUnreachable) as caught:
            await self.transport(url, made).request(OriginRequest(b"GET", b"/", headers=((b"Authorization", b"x"),)))
        self.assertIn("certificate verify failed: it is not for localhost", str(caught.exception))
        self.assertEqual(self.server.requests, [])

    async def test_refused(self) -> None:
        """So do one without names, even though it is trusted, and one that has expired; the log has no traceback of it."""
        for more, reason in (({"named": False}, "it has no subjectAltName"), ({"days": -1}, "cert has expired")):
            url, made = self.serve("localhost", **more)
            with self.assertRaises(OriginUnreachable) as caught, capturedLogs() as events:
                await self.transport(url, made).request(OriginRequest(b"GET", b"/"))
            self.assertIn(f"certificate verify failed: {reason}", str(caught.exception))
            self.assertEqual([event for event in events if "log_failure" in event], [])
            self.assertEqual(self.server.requests, [])

    async def test_no_tls(self) -> None:
        """A server without TLS is said to speak something else."""
        url, made = self.serve("localhost")
        from twisted.internet import reactor

        port: Any = reactor.listenTCP(0, Factory.forProtocol(Plain), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        with self.assertRaises(OriginUnreachable) as caught:
            await self.transport(f"https://localhost:{port.getHost().port}", made).request(OriginRequest(b"GET", b"/"))
        self.assertIn("no TLS connection to the origin: ", str(caught.exception))

    async def test_close_in_the_middle(self) -> None:
        """Closing a body early drops the connection at once, though the origin answers no goodbye."""
        url, made = self.serve("localhost")
        answer = await self.transport(url, made).request(OriginRequest(b"GET", b"/big"))
        await answer.body.read()
        answer.body.close()
        await self.server.connections[0].lost()
