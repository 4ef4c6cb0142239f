"""Waiting for several Deferreds as one, and by many for one result."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.deferreds import Waiters, all_or_none


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


class WaitersTests(SynchronousTestCase):
    """`Waiters`."""

    def setUp(self) -> None:
        self.abandoned = 0
        self.waiters: Waiters[str] = Waiters(self.count)

    def count(self) -> None:
        self.abandoned += 1

    def test_fired(self) -> None:
        """All that wait get the result, in their order; later ones get the next."""
        order: list[int] = []
        waits = [self.waiters.wait().addCallback(lambda result, number=number: order.append(number) or result)
                 for number in range(3)]  # fmt: skip
        self.waiters.fire("first")
        later = self.waiters.wait()
        self.assertEqual((["first"] * 3, [0, 1, 2]), ([self.successResultOf(wait) for wait in waits], order))
        self.assertNoResult(later)
        self.waiters.fire("second")
        self.assertEqual("second", self.successResultOf(later))

    def test_failure(self) -> None:
        """A failure goes to the errbacks of each."""
        waits = [self.waiters.wait(), self.waiters.wait()]
        self.waiters.fire(Failure(OSError("no")))
        for wait in waits:
            self.failureResultOf(wait, OSError)

    def test_cancelled(self) -> None:
        """To cancel one ends that wait only; once all are cancelled, that is reported."""
        waits = [self.waiters.wait(), self.waiters.wait()]
        for number, wait in enumerate(waits):
            self.assertEqual(0, self.abandoned)
            wait.cancel()
            self.failureResultOf(wait, CancelledError)
            self.assertEqual(number == 0, self.abandoned == 0)
        self.waiters.fire("nothing to do")
        self.assertEqual(1, self.abandoned)

    def test_cancelled_by_another(self) -> None:
        """One that an earlier one's result makes give up gets none; nothing is abandoned, for there was a result."""
        first, second, third = (self.waiters.wait() for _ in range(3))
        first.addCallback(lambda _: second.cancel())
        self.waiters.fire("")
        self.failureResultOf(second, CancelledError)
        self.assertEqual(("", 0), (self.successResultOf(third), self.abandoned))
