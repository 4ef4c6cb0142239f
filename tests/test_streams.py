"""Streams that are pulled."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.streams import BytesStream, ByteStream, ChainedStream, Gathered, StreamTooLong, hold, read_all

T = TypeVar("T")


class Noting(BytesStream):
    """Notes that it was closed, and breaks where it is told to."""

    def __init__(self, *chunks: bytes, breaks: bool = False) -> None:
        super().__init__(*chunks)
        self.closed = False
        self.reads = 0
        self._breaks = breaks

    async def read(self) -> bytes:
        self.reads += 1
        chunk = await super().read()
        if not chunk and self._breaks:
            raise OSError("broke")
        return chunk

    def close(self) -> None:
        self.closed = True


class StreamTests(SynchronousTestCase):
    """All that is built on `ByteStream`."""

    def result(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def chunks(self, stream: ByteStream) -> list[bytes]:
        found = []
        while chunk := self.result(stream.read()):
            found.append(chunk)
        return found

    def test_bytes(self) -> None:
        """Chunks come as they were given, no empty one among them, then the end for ever."""
        stream = BytesStream(b"a", b"", b"b")
        self.assertEqual([b"a", b"b"], self.chunks(stream))
        self.assertEqual([], self.chunks(stream))

    def test_bytes_closed(self) -> None:
        """Nothing comes from a closed one."""
        stream = BytesStream(b"a")
        stream.close()
        self.assertEqual([], self.chunks(stream))

    def test_chained(self) -> None:
        """One stream after the other, each closed at its end."""
        first, second = Noting(b"a", b"b"), Noting(b"c")
        self.assertEqual([b"a", b"b", b"c"], self.chunks(ChainedStream(first, Noting(), second)))
        self.assertEqual((True, True), (first.closed, second.closed))

    def test_chained_closed(self) -> None:
        """Closing closes those that are left."""
        first, second = Noting(b"a"), Noting(b"b")
        chained = ChainedStream(first, second)
        self.result(chained.read())
        chained.close()
        chained.close()
        self.assertEqual((True, True), (first.closed, second.closed))
        self.assertEqual([], self.chunks(chained))

    def test_read_all(self) -> None:
        """All of a stream that is not too long, and it is closed."""
        stream = Noting(b"ab", b"c")
        self.assertEqual(b"abc", self.result(read_all(stream, 3)))
        self.assertTrue(stream.closed)

    def test_read_too_much(self) -> None:
        """A stream that is too long is read no further, and closed."""
        stream = Noting(*[b"ab"] * 10)
        self.failureResultOf(Deferred.fromCoroutine(read_all(stream, 3)), StreamTooLong)
        self.assertEqual((True, 2), (stream.closed, stream.reads))

    def test_hold_all(self) -> None:
        """A short stream is held whole."""
        self.assertEqual((b"abc", True), self.result(hold(BytesStream(b"ab", b"c"), 4)))

    def test_hold_the_beginning(self) -> None:
        """Of a long one the beginning is held, and the rest can still be read."""
        stream = Noting(b"ab", b"cd", b"ef")
        self.assertEqual((b"abcd", False), self.result(hold(stream, 3)))
        self.assertFalse(stream.closed)
        self.assertEqual([b"ef"], self.chunks(stream))

    def test_hold_broken(self) -> None:
        """One that breaks is closed, and what broke it is raised."""
        stream = Noting(b"ab", breaks=True)
        self.failureResultOf(Deferred.fromCoroutine(hold(stream, 9)), OSError)
        self.assertTrue(stream.closed)

    def test_gathered(self) -> None:
        """Chunks become one; a single one is not copied, and what comes later does not change what was given."""
        gathered, chunk = Gathered(), b"abc"
        self.assertEqual(b"", gathered.whole())
        gathered.add(chunk)
        self.assertIs(chunk, gathered.whole())
        gathered.add(b"d")
        whole = gathered.whole()
        gathered.add(b"ef")
        self.assertEqual((b"abcd", b"abcdef"), (whole, gathered.whole()))

    def test_gathered_is_not_copied(self) -> None:
        """What was gathered is given without a copy of it."""
        gathered = Gathered()
        for _ in range(4):
            gathered.add(bytes(1 << 20))
        self.assertIs(gathered.whole(), gathered.whole())
