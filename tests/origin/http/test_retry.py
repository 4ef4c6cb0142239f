"""Asking again after 429 and 503."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.origin.http.requests import retry_after, with_retries
from twistedproxy.origin.interface import Headers, OriginResponse
from twistedproxy.streams import BytesStream

NOW = 1_700_000_000.0


def busy(status: int = 429, *headers: tuple[bytes, bytes]) -> OriginResponse:
    return OriginResponse(status, headers, BytesStream(b"later"), 5)


def fine() -> OriginResponse:
    return OriginResponse(200, (), BytesStream(b"fine"), 4)


class RetryAfterTests(SynchronousTestCase):
    def test_values(self) -> None:
        """Seconds and HTTP dates are read, nonsense is not."""
        cases: list[tuple[bytes, object]] = [
            (b"7", 7.0),
            (b" 0 ", 0.0),
            (formatdate(NOW + 90, usegmt=True).encode(), 90.0),
            (formatdate(NOW - 90, usegmt=True).encode(), 0.0),
            (b"soon", None),
            (b"-3", None),
            (b"\xb2", None),
            (b"", None),
        ]
        for value, expected in cases:
            with self.subTest(value=value):
                self.assertEqual(retry_after(((b"Retry-After", value),), NOW), expected)
        self.assertIsNone(retry_after((), NOW))


class WithRetriesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[float, float]] = []

    def run_with(self, answers: Iterator[OriginResponse], deadline: float = 60) -> Deferred[OriginResponse]:
        async def attempt(left: float) -> OriginResponse:
            self.sent.append((self.clock.seconds(), left))
            return next(answers)

        return Deferred.fromCoroutine(with_retries(attempt, self.clock, deadline, lambda: NOW))

    def test_after_what_it_asks(self) -> None:
        """The next attempt comes when Retry-After says so, with the deadline that is left."""
        running = self.run_with(iter([busy(503, (b"retry-after", b"7")), fine()]))
        self.clock.advance(6.9)
        self.assertNoResult(running)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(running).status, 200)
        self.assertEqual(self.sent, [(0, 60), (7, 53)])

    def test_doubling(self) -> None:
        """Without Retry-After the waits double, up to the longest."""
        running = self.run_with(iter([*(busy() for _ in range(8)), fine()]), deadline=100)
        self.clock.pump([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0])
        self.successResultOf(running)
        self.assertEqual([at for at, _ in self.sent], [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 47.5, 63.5])

    def test_no_tight_loop(self) -> None:
        """Retry-After: 0 still waits a little."""
        headers: Headers = ((b"retry-after", b"0"),)
        running = self.run_with(iter([busy(429, *headers), fine()]))
        self.assertNoResult(running)
        self.clock.advance(0.1)
        self.successResultOf(running)

    def test_wait_beyond_the_deadline(self) -> None:
        """A wait that would pass the deadline isn't begun: the answer goes back with its body."""
        response = self.successResultOf(self.run_with(iter([busy(429, (b"retry-after", b"61"))])))
        self.assertEqual(response.status, 429)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(response.body.read())), b"later")  # type: ignore[arg-type]

    def test_ends_with_the_deadline(self) -> None:
        """An origin that stays busy is asked until the deadline, then its last answer goes back."""
        running = self.run_with(busy(503) for _ in range(100))
        self.clock.pump([0.5] * 120)
        self.assertEqual(self.successResultOf(running).status, 503)
        self.assertLess(len(self.sent), 12)

    def test_cancel_while_waiting(self) -> None:
        """A caller who leaves while we wait ends it: nothing more is sent."""
        running = self.run_with(iter([busy(), fine()]))
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.clock.advance(100)
        self.assertEqual(len(self.sent), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
