"""Writing to real sockets at once: every byte, in order, and nothing to one that has ended."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.clients import RawConnection
from tests.waiting import wait_until
from twistedproxy.system.fast_write import MOST, write_at_once

LARGE = bytes(range(256)) * (8 << 10)  # 2 MiB: more than a socket takes at once


class _End(Protocol):
    """The end that writes."""

    def __init__(self, made: Deferred[_End]) -> None:
        self.made = made
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.ended.callback(None)


class AtOnceTests(TestCase):
    """Two ends of one connection."""

    timeout = 30

    async def ends(self) -> tuple[Any, RawConnection]:
        """The transport that is written to, and the client."""
        from twisted.internet import reactor

        made: Deferred[_End] = Deferred()
        factory = Factory.forProtocol(lambda: _End(made))  # type: ignore[arg-type]
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        client = await RawConnection.open(port.getHost().port)  # type: ignore[attr-defined]
        self.addCleanup(client.close)
        end = await made
        transport: Any = end.transport
        self.addCleanup(lambda: end.ended)
        self.addCleanup(lambda: transport.abortConnection())
        return transport, client

    async def test_at_once(self) -> None:
        """What the socket takes has left before the reactor comes round."""
        transport, client = await self.ends()
        write_at_once(transport, b"head ", b"body")
        self.assertFalse(transport.dataBuffer or transport._tempDataBuffer)
        await client.until(b"head body")

    async def test_order(self) -> None:
        """Whatever the sizes, and whatever waits already, all bytes come in the order in which they were written."""
        transport, client = await self.ends()
        pieces = [b"a" * 10, b"b" * (MOST - 5), LARGE, b"c", b"d" * MOST, b"e" * 3]
        client.pause()
        for _again in range(3):
            transport.write(b"before")
            for piece in pieces:
                write_at_once(transport, piece, b"|")
            transport.write(b"after")
        client.resume()
        whole = (b"before" + b"".join(piece + b"|" for piece in pieces) + b"after") * 3
        await wait_until(lambda: len(client.received) == len(whole))
        self.assertEqual(whole, bytes(client.received))

    async def test_full_socket(self) -> None:
        """What the socket does not take waits, and comes when there is room."""
        transport, client = await self.ends()
        client.pause()
        times = 0
        while not (transport.dataBuffer or transport._tempDataBuffer):
            write_at_once(transport, b"x" * 60_000)
            times += 1
        client.resume()
        await wait_until(lambda: len(client.received) == times * 60_000)

    async def test_ended(self) -> None:
        """What is written before the end comes before it; to a connection that is gone nothing is written."""
        transport, client = await self.ends()
        write_at_once(transport, b"in time")
        transport.loseConnection()
        self.assertEqual(b"in time", await client.end())
        await wait_until(lambda: not transport.connected)
        write_at_once(transport, b"late")

    async def test_reset(self) -> None:
        """A connection that the client reset is found lost."""
        transport, client = await self.ends()
        client.transport.abortConnection()

        def lost() -> bool:
            write_at_once(transport, b"x" * 1000)
            return not transport.connected

        await wait_until(lost)

    def test_other_transports(self) -> None:
        """Any other transport, TLS for one, is written to as ever."""
        transport = StringTransport()
        write_at_once(transport, b"head ", b"body")
        self.assertEqual(b"head body", transport.value())
