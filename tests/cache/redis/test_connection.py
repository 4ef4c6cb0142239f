"""Deadlines of a connection, by a clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis.pipeline import SECOND_LOOK_SECONDS, BatchProtocol, Patience

SILENCE, TOTAL = 1.0, 5.0


@implementer(ITCPTransport)
class Wire(StringTransport):  # type: ignore[misc]
    """Tells the protocol when it is aborted."""

    protocol: BatchProtocol
    aborted = False
    no_delay = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def abortConnection(self) -> None:
        self.aborted = True
        self.protocol.connectionLost(Failure(ConnectionAborted()))


class PatienceTests(SynchronousTestCase):
    """How long a server may take."""

    def setUp(self) -> None:
        self.clock = Clock()
        patience = Patience(SILENCE, TOTAL)
        self.protocol = BatchProtocol(charset=None, convertNumbers=False, clock=self.clock, patience=patience)
        self.wire = Wire()
        self.wire.protocol = self.protocol
        self.protocol.makeConnection(self.wire)

    def hears(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def test_replies_go_to_their_batches_in_order(self) -> None:
        """However the bytes are cut; errors of the server are values."""
        one, two = self.protocol.send(b"A", 1), self.protocol.send(b"BC", 2)
        for byte in b"$3\r\n123\r\n-ERR no\r\n*2\r\n$-1\r\n$0\r\n\r\n":
            self.hears(bytes([byte]))
        self.assertEqual(self.successResultOf(one), [b"123"])
        error, values = self.successResultOf(two)
        self.assertIsInstance(error, Exception)
        self.assertEqual(values, [None, b""])
        self.assertEqual((self.wire.value(), self.protocol.outstanding), (b"ABC", 0))

    def test_a_command_does_not_wait_for_the_one_before(self) -> None:
        """The kernel is told not to hold small writes back until the server has acknowledged what is on its way."""
        self.assertTrue(self.wire.no_delay)

    def test_silence_ends_the_connection(self) -> None:
        """All that is outstanding fails, once the server has been silent for its time and a second look."""
        sent = [self.protocol.send(b"A", 1), self.protocol.send(b"B", 1)]
        self.clock.advance(SILENCE)
        self.assertNoResult(sent[0])
        self.clock.advance(SECOND_LOOK_SECONDS)
        for one in sent:
            self.failureResultOf(one, CacheUnavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stall_of_our_own_is_not_the_servers(self) -> None:
        """Where the answer was there but our reactor late, the second look finds it read."""
        sent: Any = self.protocol.send(b"A", 1)
        self.clock.advance(60.0)
        self.hears(b"+OK\r\n")
        self.clock.advance(SECOND_LOOK_SECONDS)
        self.assertEqual(self.successResultOf(sent), [b"OK"])
        self.assertFalse(self.wire.aborted)

    def test_a_long_answer_may_take_longer_but_not_for_ever(self) -> None:
        """Bytes prolong the wait for one batch up to its total."""
        sent = self.protocol.send(b"A", 1)
        self.hears(b"$1000\r\n")
        for _ in range(6):
            self.assertNoResult(sent)
            self.clock.advance(SILENCE * 0.8)
            self.hears(b"x")
        self.clock.pump([SILENCE * 0.8] * 2)
        self.failureResultOf(sent, CacheUnavailable)

    def test_an_idle_connection_is_left_alone(self) -> None:
        """With nothing outstanding silence means nothing, and a wait begins with its command."""
        self.clock.advance(100.0)
        sent = self.protocol.send(b"A", 1)
        self.clock.advance(SILENCE * 0.9)
        self.hears(b"+OK\r\n")
        self.successResultOf(sent)
        self.clock.advance(100.0)
        again = self.protocol.send(b"B", 1)
        self.clock.advance(SILENCE * 0.9)
        self.assertNoResult(again)
        self.hears(b"+OK\r\n")
        self.successResultOf(again)

    def test_what_is_no_protocol_ends_the_connection(self) -> None:
        """A server of another kind fails the batch."""
        sent = self.protocol.send(b"A", 1)
        self.hears(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.failureResultOf(sent, CacheUnavailable)
