"""Workers that hang, on a clock and without processes."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.dicomweb.support import logged
from tests.workers.in_memory import FakeWorker
from twistedproxy.workers.broadcast import Workers
from twistedproxy.workers.watchdog import MAX_FIRST_OWED, MAX_OWED, PING_SECONDS, STACKS_SECONDS, Watchdog
from twistedproxy.workers.worker import STACKS_SIGNAL

DEADLINE = (MAX_OWED + 1) * PING_SECONDS  # who hangs right after an answer is not asked before the next round


class WatchdogTests(SynchronousTestCase):
    """Two workers, of which the first one hangs in most tests."""

    def setUp(self) -> None:
        self.clock = Clock()
        known = Workers()
        self.workers = [FakeWorker(self.clock, known, pid) for pid in (1, 2)]
        self.watchdog = Watchdog(self.clock, lambda: known.all)
        self.watchdog.start()
        self.addCleanup(self.watchdog.stop)

    @property
    def alive(self) -> list[bool]:
        return [worker.alive for worker in self.workers]

    def live(self, seconds: float) -> None:
        """Let time go by, with all that is said meanwhile."""
        for _ in range(round(seconds)):
            self.clock.advance(1.0)
            while max([worker.flush() for worker in self.workers]):
                pass

    def test_all_well(self) -> None:
        """Who answers lives."""
        self.live(10 * DEADLINE)
        self.assertEqual(self.alive, [True, True])

    def test_hangs(self) -> None:
        """One that hangs is killed in time, and the log says so; it was asked where it hangs, and others are left alone."""
        self.live(PING_SECONDS)
        self.workers[0].hangs = True
        with logged() as events:
            self.live(DEADLINE - 1)
            self.assertEqual((self.alive, self.workers[0].signals), ([True, True], []))
            self.live(1 + STACKS_SECONDS + 1)
        self.assertEqual(self.alive, [False, True])
        self.assertEqual((self.workers[0].signals, self.workers[1].signals), ([STACKS_SIGNAL], []))
        said = [(event["pid"], event["seconds"]) for event in events if event.get("event") == "worker_hangs"]
        self.assertEqual(said, [(1, 30.0)])

    def test_late(self) -> None:
        """One that answers at the last moment lives, and may hang as long again."""
        self.live(PING_SECONDS)
        for _ in range(3):
            self.workers[0].hangs = True
            self.live(DEADLINE - 2)
            self.workers[0].hangs = False
            self.live(2)
        self.assertEqual(self.alive, [True, True])

    def test_parent_stood_still(self) -> None:
        """Hours in which the machine slept or the parent stood still count as one round: nobody is killed."""
        self.live(PING_SECONDS)
        for worker in self.workers:
            worker.hangs = True
        for _ in range(MAX_OWED - 1):
            self.clock.advance(3600)
        for worker in self.workers:
            worker.hangs = False
        self.live(DEADLINE)
        self.assertEqual(self.alive, [True, True])

    def test_begins(self) -> None:
        """One that is just starting may take longer, but not for ever."""
        self.workers[0].hangs = True
        self.live((MAX_FIRST_OWED + 1) * PING_SECONDS - 1)
        self.assertEqual(self.alive, [True, True])
        self.live(2)
        self.assertEqual(self.alive, [False, True])

    def test_pipe(self) -> None:
        """A pipe that nobody reads gets one question, not one each round."""
        self.workers[0].hangs = True
        self.live(2 * PING_SECONDS)
        waiting = len(self.workers[0].channel.transport.value())  # type: ignore[union-attr]
        self.live(MAX_OWED * PING_SECONDS)
        self.assertEqual(len(self.workers[0].channel.transport.value()), waiting)  # type: ignore[union-attr]

    def test_failing(self) -> None:
        """One that answers that it can't has answered: it may be of another version."""
        self.workers[0].here._handlers = {}
        self.live(2 * DEADLINE)
        self.assertEqual(self.alive, [True, True])

    def test_ends_by_itself(self) -> None:
        """One that ends while it is asked is forgotten."""
        self.workers[0].hangs = True
        self.live(2 * PING_SECONDS)
        self.workers[0].kill()
        self.live(MAX_FIRST_OWED * PING_SECONDS)
        self.assertEqual((self.alive, self.workers[0].signals), ([False, True], []))

    def test_stopped(self) -> None:
        """Once stopped it leaves no timer behind."""
        self.live(PING_SECONDS)
        self.watchdog.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
