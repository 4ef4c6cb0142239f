"""Answers go out at the client's pace."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.server.wire import Server
from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.server.response_body import SLICE, ClientGone, send_bytes, send_stream
from twistedproxy.streams import BytesStream


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
