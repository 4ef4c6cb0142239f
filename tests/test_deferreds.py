"""Waiting for several Deferreds as one."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.deferreds import all_or_none


class AllOrNoneTests(SynchronousTestCase):
    """`all_or_none`."""

    def setUp(self) -> None:
        self.cancelled: list[int] = []

    def waits(self, count: int) -> list[Deferred[str]]:
        return [Deferred(lambda _, number=number: self.cancelled.append(number)) for number in range(count)]

    def test_none(self) -> None:
        """Nothing to wait for: no results."""
        self.assertEqual([], self.successResultOf(Deferred.fromCoroutine(all_or_none([]))))

    def test_order(self) -> None:
        """Results come in the order of the waits, whichever was first."""
        for count in (1, 3):
            waits = self.waits(count)
            waiting = Deferred.fromCoroutine(all_or_none(waits))
            for number in reversed(range(count)):
                self.assertNoResult(waiting)
                waits[number].callback(str(number))
            self.assertEqual([str(number) for number in range(count)], self.successResultOf(waiting))

    def test_failure(self) -> None:
        """The first failure is raised as itself, and the others are cancelled; nothing is logged."""
        waits = self.waits(3)
        waiting = Deferred.fromCoroutine(all_or_none(waits))
        waits[1].errback(Failure(OSError("no")))
        self.failureResultOf(waiting, OSError)
        self.assertEqual([0, 2], self.cancelled)
        del waits
        self.assertEqual([], self.flushLoggedErrors())

    def test_two_failures(self) -> None:
        """A second failure is nobody's business."""
        waits = self.waits(2)
        waits[1] = Deferred(lambda wait: wait.errback(Failure(ValueError("later"))))
        waiting = Deferred.fromCoroutine(all_or_none(waits))
        waits[0].errback(Failure(OSError("first")))
        self.failureResultOf(waiting, OSError)
        del waits
        self.assertEqual([], self.flushLoggedErrors())

    def test_cancelled(self) -> None:
        """Who gives up gives up all the waits."""
        for count in (1, 3):
            self.cancelled.clear()
            waiting = Deferred.fromCoroutine(all_or_none(self.waits(count)))
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
            self.assertEqual(list(range(count)), self.cancelled)
