"""A child that is kept alive: delays, replacing, stopping, on a clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.dicomweb.support import logged
from twistedproxy.processes.child import StartFailed
from twistedproxy.processes.kept_alive import STEADY_SECONDS, KeptAlive


class FakeChild:
    """A child that ends when a test says so."""

    pid = 1
    reason = "killed"

    def __init__(self) -> None:
        self.alive = True
        self._waiting: list[Deferred[None]] = []

    def ended(self) -> Deferred[None]:
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def end(self) -> None:
        self.alive = False
        for waiting in self._waiting:
            waiting.callback(None)


class KeptCase(SynchronousTestCase):
    """One child. *starts*: when one was started; *results*: what becomes of the next starts."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.starts: list[float] = []
        self.results: list[Any] = []
        self.kept: KeptAlive[Any] = KeptAlive(self.clock, "worker", self.start)

    async def start(self) -> Any:
        self.starts.append(self.clock.seconds())
        result = self.results.pop(0) if self.results else FakeChild()
        if isinstance(result, Deferred):
            return await result
        if isinstance(result, Exception):
            raise result
        return result

    def filled(self) -> FakeChild:
        self.successResultOf(self.replace())
        return self.current()

    def current(self) -> FakeChild:
        found: Any = self.kept.child
        return found

    def replace(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.kept.replace())

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))


class CrashTests(KeptCase):
    """Workers that end."""

    def test_at_once(self) -> None:
        """The first that ends is replaced at once."""
        self.filled().end()
        self.clock.advance(0)
        self.assertEqual(len(self.starts), 2)
        self.assertTrue(self.current().alive)

    def test_no_storm(self) -> None:
        """Workers that end as soon as they are up are started ever later, at most every ten seconds, for ever."""
        self.filled()
        for _ in range(4000):
            if self.current() is not None:
                self.current().end()
            self.clock.advance(0.05)
        gaps = [b - a for a, b in zip(self.starts[1:], self.starts[2:])]
        self.assertLess(len(self.starts), 30)
        self.assertGreater(len(self.starts), 20)
        for gap, wanted in zip(gaps, (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10)):
            self.assertApproximates(gap, wanted, 0.11)
        self.assertLess(max(gaps), 10.2)

    def test_steady_again(self) -> None:
        """After one that stayed up the next is started at once again."""
        self.filled()
        for _ in range(6):
            self.current().end()
            self.advance(15)
        self.advance(STEADY_SECONDS)
        before = len(self.starts)
        self.current().end()
        self.clock.advance(0)
        self.assertEqual(len(self.starts), before + 1)

    def test_cannot_start(self) -> None:
        """One that cannot be started is tried again later, and the log says why and when."""
        self.filled()
        self.results = [StartFailed("no memory")] * 3
        with logged() as events:
            self.current().end()
            self.advance(3)
        failed = [event for event in events if event.get("event") == "worker_failed"]
        self.assertEqual(
            [(event["reason"], event["delay"]) for event in failed], [("no memory", n) for n in (0.1, 0.2, 0.4)]
        )
        self.assertTrue(self.current().alive)

    def test_fault(self) -> None:
        """An error of ours is logged, not swallowed."""
        self.filled()
        self.results = [ZeroDivisionError()]
        self.current().end()
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ReplaceTests(KeptCase):
    """Reloading."""

    def test_old_stays(self) -> None:
        """The old worker is there until the new one is up, and is handed back, alive; its end starts nobody."""
        old = self.filled()
        coming: Deferred[Any] = Deferred()
        self.results = [coming]
        replaced = self.replace()
        self.assertNoResult(replaced)
        self.assertIs(self.current(), old)
        coming.callback(FakeChild())
        self.assertIs(self.successResultOf(replaced), old)
        old.end()
        self.advance(20)
        self.assertEqual(len(self.starts), 2)

    def test_failed(self) -> None:
        """A new one that does not come up leaves the old one where it is, and watched."""
        old = self.filled()
        self.results = [StartFailed("bad")]
        self.failureResultOf(self.replace(), StartFailed)
        self.assertIs(self.current(), old)
        old.end()
        self.clock.advance(0)
        self.assertIsNot(self.current(), old)

    def test_old_dies_meanwhile(self) -> None:
        """An old one that dies while the new one comes up is not replaced twice."""
        old = self.filled()
        coming: Deferred[Any] = Deferred()
        self.results = [coming]
        replaced = self.replace()
        old.end()
        self.advance(20)
        self.assertEqual(len(self.starts), 2)
        coming.callback(FakeChild())
        self.assertIs(self.successResultOf(replaced), old)
        self.advance(20)
        self.assertEqual(len(self.starts), 2)

    def test_old_dies_and_new_fails(self) -> None:
        """Where both fail the place is filled as after any end."""
        old = self.filled()
        coming: Deferred[Any] = Deferred()
        self.results = [coming]
        replaced = self.replace()
        old.end()
        coming.errback(StartFailed("bad"))
        self.failureResultOf(replaced, StartFailed)
        self.clock.advance(0)
        self.assertTrue(self.current().alive)


class KeepTests(KeptCase):
    """A child that is started in the background."""

    def test_kept(self) -> None:
        """It is there at once, and again when it has ended; those that wait for it get it."""
        coming: Deferred[Any] = Deferred()
        self.results = [coming]
        self.kept.keep()
        waiting = [Deferred.fromCoroutine(self.kept.ready(5.0)) for _ in range(2)]
        coming.callback(FakeChild())
        first = self.current()
        for each in (*waiting, Deferred.fromCoroutine(self.kept.ready(5.0))):
            self.assertIs(self.successResultOf(each), first)
        self.kept.keep()
        first.end()
        self.clock.advance(0)
        self.assertEqual(len(self.starts), 2)

    def test_slows_down(self) -> None:
        """Each start that fails makes the delay to the next one twice as long, up to a bound."""
        self.kept = KeptAlive(self.clock, "loader", self.start, None, 0.5, 30.0)
        self.results = [StartFailed("no more processes")] * 20
        self.kept.keep()
        self.clock.pump([0.25] * 500)
        self.assertEqual(self.starts, [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5])

    def test_not_ready(self) -> None:
        """Waiting for one that does not come up ends in time."""
        self.results = [StartFailed("bad")] * 99
        self.kept.keep()
        waiting = Deferred.fromCoroutine(self.kept.ready(5.0))
        self.advance(5.1)
        self.failureResultOf(waiting, StartFailed)

    def test_taken(self) -> None:
        """One that is taken away is not replaced until another is to be kept, which is started at once, whatever the delay."""
        self.kept = KeptAlive(self.clock, "spare", self.start, None, 10.0)
        self.kept.keep()
        taken: Any = self.kept.take()
        taken.end()
        self.advance(20)
        self.assertIsNone(self.kept.take())
        self.assertEqual(len(self.starts), 1)
        self.kept.keep()
        self.current().end()
        self.advance(9)
        self.assertEqual(len(self.starts), 2)
        self.kept.keep()
        self.assertEqual(len(self.starts), 3)
        self.advance(20)
        self.assertEqual(len(self.starts), 3)


class StopTests(KeptCase):
    """The end."""

    def test_stopped(self) -> None:
        """Once stopped, nobody is started any more, also where one waits to be."""
        self.filled().end()
        self.clock.advance(0)
        self.current().end()
        self.successResultOf(Deferred.fromCoroutine(self.kept.stop()))
        self.advance(30)
        self.assertEqual(len(self.starts), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
