"""A stream whose bytes pass a transform, a little at a time."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicomweb.metadata_observer import STRETCH, TRANSFORMED, TransformedStream
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream


@attrs.define(eq=False)
class Work:
    """A transform in which every byte takes its time, by *clock*."""

    clock: Clock
    seconds_per_byte: float = 0.0
    fed: list[int] = attrs.Factory(list)

    def feed(self, chunk: bytes) -> bytes:
        self.fed.append(len(chunk))
        self.clock.rightNow += self.seconds_per_byte * len(chunk)  # time passes, and nobody has a turn
        return chunk.upper()

    def close(self) -> bytes:
        return b"!"


class Slow(BytesStream):
    """A source that has nothing more for now. *closed* tells that it was."""

    closed = False

    async def read(self) -> bytes:
        await Deferred[None]()
        return b""

    def close(self) -> None:
        self.closed = True


class TransformedTests(SynchronousTestCase):
    """`TransformedStream`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.work = Work(self.clock)

    def stream(self, source: ByteStream, seconds_per_byte: float = 0.0) -> TransformedStream:
        self.work.seconds_per_byte = seconds_per_byte
        return TransformedStream(source, self.work, self.clock)

    def read(self, stream: TransformedStream) -> Deferred[bytes]:
        return Deferred.fromCoroutine(stream.read())

    def test_all(self) -> None:
        """All bytes come out transformed, then what the transform has at its end, then nothing."""
        stream = self.stream(BytesStream(b"ab", b"c" * (2 * TRANSFORMED + 1)))
        for expected in (b"AB", b"C" * (2 * TRANSFORMED + 1), b"!", b"", b""):
            self.assertEqual(expected, self.successResultOf(self.read(stream)))
        self.assertEqual([2, TRANSFORMED, TRANSFORMED, 1], self.work.fed)

    def test_turns(self) -> None:
        """However much is there, the reactor has its turn after a stretch of work, and what is ready goes out before."""
        pieces = 10
        for chunks in (
            [b"x" * TRANSFORMED * pieces],
            [b"x" * TRANSFORMED] * pieces,
            [b"x" * (TRANSFORMED // 4)] * 4 * pieces,
        ):
            stream = self.stream(BytesStream(*chunks), 0.75 * STRETCH / TRANSFORMED)
            got, turns = b"", 0
            while True:
                begin = self.clock.seconds()
                reading = self.read(stream)
                self.assertLess(self.clock.seconds() - begin, 2 * STRETCH)
                while self.clock.getDelayedCalls():
                    turns += 1
                    begin = self.clock.seconds()
                    self.clock.advance(0)
                    self.assertLess(self.clock.seconds() - begin, 2 * STRETCH)
                out: Optional[bytes] = self.successResultOf(reading)
                if not out:
                    break
                got += out
            self.assertEqual(b"X" * TRANSFORMED * pieces + b"!", got)
            self.assertGreaterEqual(turns, 4)

    def test_no_turns_for_nothing(self) -> None:
        """What takes no time passes without a turn."""
        stream = self.stream(BytesStream(b"x" * TRANSFORMED * 100))
        self.assertEqual(TRANSFORMED * 100, len(self.successResultOf(self.read(stream))))

    def test_slow_source(self) -> None:
        """What is ready is not held back while the source takes its time; closing closes the source."""
        slow = Slow()
        stream = self.stream(ChainedStream(BytesStream(b"a"), slow))
        self.assertEqual(b"A", self.successResultOf(self.read(stream)))
        self.assertNoResult(self.read(stream))
        stream.close()
        self.assertTrue(slow.closed)
