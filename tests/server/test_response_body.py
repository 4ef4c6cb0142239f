"""Answers go out at the client's pace."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.server.wire import Server
from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.server.response_body import PIECE, SLICE, ClientGone, in_pieces, send_bytes, send_stream
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream


class Breaking(BytesStream):
    """A stream that breaks after its chunks."""

    closed = False

    async def read(self) -> bytes:
        chunk = await super().read()
        if not chunk:
            raise OriginUnreachable("broke")
        return chunk

    def close(self) -> None:
        self.closed = True


class SendingTests(SynchronousTestCase):
    """One answer."""

    def setUp(self) -> None:
        server = Server()
        self.wire = server.connect()
        self.wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        [self.request] = server.requests
        self.request.responseHeaders.setRawHeaders(b"Content-Length", [b"999999999"])

    def sent(self) -> int:
        """Bytes of the body that were written."""
        return len(self.wire.value().partition(b"\r\n\r\n")[2])

    def bytes(self, *chunks: bytes) -> Deferred[None]:
        return Deferred.fromCoroutine(send_bytes(self.request, chunks))

    def stream(self, stream: BytesStream) -> Deferred[int]:
        return Deferred.fromCoroutine(send_stream(self.request, stream))

    def test_small(self) -> None:
        """A small answer is written at once."""
        self.successResultOf(self.bytes(b"a", b"bc"))
        self.assertTrue(self.wire.value().endswith(b"\r\n\r\nabc"))

    def test_large(self) -> None:
        """Of a large one a slice at a time, and the next when the client has taken that; all of it in the end."""
        self.request.write(b"")
        chunks = [bytes([value]) * (SLICE * 3 // 2) for value in range(4)]
        self.wire.read_nothing()
        sending = self.bytes(*chunks)
        while not sending.called:
            before = self.sent()
            self.wire.read_all()
            self.wire.read_nothing()
            self.assertGreaterEqual(self.sent(), before)
        self.successResultOf(sending)
        self.assertTrue(self.wire.value().endswith(b"\r\n\r\n" + b"".join(chunks)))

    def test_large_pauses(self) -> None:
        """Nothing is written while the client takes nothing."""
        sending = Deferred.fromCoroutine(send_bytes(self.request, [self._pausing()]))
        self.assertNoResult(sending)
        self.assertEqual(SLICE, self.sent())
        self.wire.read_all()
        self.assertEqual(2 * SLICE, self.sent())

    def _pausing(self) -> bytes:
        # The wire has no buffer of its own: it is full as soon as anything is written.
        write = self.wire.write

        def full(data: bytes) -> None:
            write(data)
            self.wire.read_nothing()

        self.wire.write = full  # type: ignore[method-assign]
        return b"x" * SLICE * 4

    def test_stream(self) -> None:
        """A stream is read no faster than the client takes it, and its bytes are counted."""
        self._pausing()
        stream = BytesStream(b"one", b"two")
        sending = self.stream(stream)
        self.assertEqual(3, self.sent())
        self.wire.read_all()
        self.assertEqual(6, self.sent())
        self.assertNoResult(sending)
        self.wire.read_all()
        self.assertEqual(6, self.successResultOf(sending))

    def test_stream_breaks(self) -> None:
        """What breaks the stream is raised, the stream closed, and the connection free for another sender."""
        stream = Breaking(b"one")
        self.failureResultOf(self.stream(stream), OriginUnreachable)
        self.assertTrue(stream.closed)
        self.successResultOf(self.stream(BytesStream(b"two")))

    def test_client_leaves(self) -> None:
        """A sender that waits for a client which leaves ends when it is cancelled, and closes its stream."""
        self._pausing()
        stream = Breaking(b"one", b"two")
        sending = self.stream(stream)
        self.request.notifyFinish().addErrback(lambda _: sending.cancel())
        self.wire.leave()
        self.failureResultOf(sending, CancelledError)
        self.assertTrue(stream.closed)

    def test_client_left(self) -> None:
        """A sender that comes too late is told, and its stream closed."""
        self.wire.leave()
        stream = Breaking(b"one")
        self.failureResultOf(self.stream(stream), ClientGone)
        self.assertTrue(stream.closed)
        self.failureResultOf(self.bytes(b"x" * SLICE * 2), ClientGone)


class Slow(BytesStream):
    """A source that has nothing more for now. *closed*, *left*: that it was closed, and its reader gave up."""

    closed = left = False

    async def read(self) -> bytes:
        await Deferred[None](lambda _: setattr(self, "left", True))
        return b""

    def close(self) -> None:
        self.closed = True


class InPiecesTests(SynchronousTestCase):
    """`in_pieces`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.fed: list[int] = []

    def feed(self, piece: bytes) -> bytes:
        self.fed.append(len(piece))
        return piece.upper()

    def changed(self, source: ByteStream) -> ByteStream:
        return in_pieces(source, self.feed, lambda: b"!", self.clock)

    def read(self, stream: ByteStream) -> Deferred[bytes]:
        return Deferred.fromCoroutine(stream.read())

    def test_all(self) -> None:
        """All bytes come out changed, then what there is at the end, then nothing."""
        stream = self.changed(BytesStream(b"ab", b"c"))
        for expected in (b"AB", b"C", b"!", b"", b""):
            self.assertEqual(expected, self.successResultOf(self.read(stream)))

    def test_turns(self) -> None:
        """No more than one piece is changed in a turn of the reactor, however large a chunk came."""
        stream = self.changed(BytesStream(b"x" * (3 * PIECE + 7)))
        self.assertEqual(b"X" * PIECE, self.successResultOf(self.read(stream)))
        for pieces in range(1, 4):
            reading = self.read(stream)
            self.assertEqual([PIECE] * pieces, self.fed)
            self.assertNoResult(reading)
            self.clock.advance(0)
            self.assertTrue(self.successResultOf(reading))
        self.assertEqual([PIECE] * 3 + [7], self.fed)

    def test_turns_of_small_chunks(self) -> None:
        """So it is where as much comes in small chunks."""
        stream = self.changed(BytesStream(*[b"x" * (PIECE // 4)] * 8))
        for at_once in (4, 3):
            for _ in range(at_once):
                self.successResultOf(self.read(stream))
            reading = self.read(stream)
            self.assertNoResult(reading)
            self.clock.advance(0)
            self.successResultOf(reading)
        self.assertEqual([PIECE // 4] * 8, self.fed)

    def test_slow_source(self) -> None:
        """What is ready is not held back while the source takes its time; a reader that leaves ends its reading."""
        slow = Slow()
        stream = self.changed(ChainedStream(BytesStream(b"a"), slow))
        self.assertEqual(b"A", self.successResultOf(self.read(stream)))
        reading = self.read(stream)
        self.assertNoResult(reading)
        reading.cancel()
        self.failureResultOf(reading, CancelledError)
        stream.close()
        self.assertTrue(slow.closed and slow.left)

    def test_break(self) -> None:
        """What breaks the source breaks the stream for good: no end is made up."""
        stream = self.changed(Breaking(b"a"))
        self.assertEqual(b"A", self.successResultOf(self.read(stream)))
        for _ in range(2):
            self.failureResultOf(self.read(stream), OriginUnreachable)
