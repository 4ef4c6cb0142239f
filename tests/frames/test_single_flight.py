"""One fetch for many."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.frames.single_flight import InFlight


class InFlightTests(SynchronousTestCase):
    """Waiters are independent of each other."""

    def setUp(self) -> None:
        self.flight: InFlight[str, int] = InFlight()
        self.cancelled: list[object] = []
        self.source: Deferred[Mapping[str, int]] = Deferred(self.cancelled.append)

    async def _work(self) -> Mapping[str, int]:
        return await self.source

    def _join(self) -> Deferred[Mapping[str, int]]:
        return self.flight.running(["a"])["a"].wait()

    def test_everyone_gets_the_result(self) -> None:
        """All who wait get the values, each by a Deferred of its own."""
        first, second = self.flight.start(["a"], self._work()), self._join()
        self.source.callback({"a": 1})
        self.assertEqual(self.successResultOf(first), {"a": 1})
        self.assertEqual(self.successResultOf(second), {"a": 1})

    def test_one_leaves(self) -> None:
        """Who leaves ends only its own wait, the one who started it too."""
        first, second = self.flight.start(["a"], self._work()), self._join()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.source.callback({"a": 1})
        self.assertEqual(self.successResultOf(second), {"a": 1})

    def test_all_leave(self) -> None:
        """The fetch is cancelled once nobody waits, and nobody can join what is being cancelled."""
        first, second = self.flight.start(["a"], self._work()), self._join()
        first.cancel()
        self.assertEqual(len(self.flight), 1)
        second.cancel()
        self.failureResultOf(first, CancelledError)
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.cancelled, [self.source])
        self.assertEqual(len(self.flight), 0)

    def test_failure(self) -> None:
        """A failure reaches everyone, and is not kept."""
        first, second = self.flight.start(["a"], self._work()), self._join()
        self.source.errback(ValueError("no"))
        self.failureResultOf(first, ValueError)
        self.failureResultOf(second, ValueError)
        self.assertEqual(len(self.flight), 0)

    def test_joinable_until_kept(self) -> None:
        """A result can be joined until it is kept where the next one looks."""
        kept: Deferred[None] = Deferred()

        async def keep(_values: Mapping[str, int]) -> None:
            await kept

        first = self.flight.start(["a"], self._work(), keep)
        self.source.callback({"a": 1})
        self.assertEqual(self.successResultOf(first), {"a": 1})
        self.assertEqual(self.successResultOf(self._join()), {"a": 1})
        kept.callback(None)
        self.assertEqual(len(self.flight), 0)

    def test_keeping_fails(self) -> None:
        """A failure to keep the result is logged and takes nothing from anyone."""

        async def keep(_values: Mapping[str, int]) -> None:
            raise OSError("full")

        first = self.flight.start(["a"], self._work(), keep)
        self.source.callback({"a": 1})
        self.assertEqual(self.successResultOf(first), {"a": 1})
        self.assertEqual(len(self.flight), 0)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
