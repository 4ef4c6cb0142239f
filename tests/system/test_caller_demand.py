"""How much callers want, as a worker sees it."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.system.caller_demand import MUCH_A_SECOND, SOME_A_SECOND, TICK_SECONDS, Demand, DemandLevel


class DemandTests(SynchronousTestCase):
    """Levels by the rate of answers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.answers = 0.0
        self.levels: list[DemandLevel] = []
        self.demand = Demand(self.clock, lambda: self.answers, 2.0)
        self.demand.changed.append(lambda: self.levels.append(self.demand.level))
        self.demand.start()

    def callers(self, per_second: float, seconds: float) -> None:
        """Callers who get so many answers."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.answers += per_second * TICK_SECONDS
            self.clock.advance(TICK_SECONDS)

    def test_levels(self) -> None:
        """The level follows the rate, up and down, and who wants to know hears each change once."""
        self.callers(SOME_A_SECOND / 2, 2)
        self.assertEqual((self.demand.level, self.levels), (DemandLevel.LITTLE, []))
        self.callers(SOME_A_SECOND * 1.5, 2)
        self.callers(MUCH_A_SECOND * 1.5, 2)
        self.callers(SOME_A_SECOND * 1.5, 2)
        self.callers(0, 2)
        self.assertEqual(self.levels, [DemandLevel.SOME, DemandLevel.MUCH, DemandLevel.SOME, DemandLevel.LITTLE])

    def test_rate(self) -> None:
        """The rate is that of answers a second."""
        self.callers(300.0, 2)
        self.assertApproximates(self.demand.per_second, 300.0, 1.0)

    def test_a_screen_at_once(self) -> None:
        """A screen of tiles in one moment is some demand for that moment, no more."""
        self.answers += 40
        self.callers(0, TICK_SECONDS)
        self.assertIs(self.demand.level, DemandLevel.SOME)
        self.callers(0, 1)
        self.assertIs(self.demand.level, DemandLevel.LITTLE)

    def test_reactor_was_busy(self) -> None:
        """Where the reactor came late to counting, the answers of all that time are no burst."""
        self.answers += SOME_A_SECOND / 2 * 3
        self.clock.advance(3.0)
        self.assertIs(self.demand.level, DemandLevel.LITTLE)

    def test_what_was_before(self) -> None:
        """Answers before it was started don't count."""
        self.demand.stop()
        self.answers += 1e6
        self.demand.start()
        self.callers(0, 1)
        self.assertEqual(self.levels, [])

    def test_stop(self) -> None:
        """Stopped, it leaves nothing behind; stopping again does no harm."""
        self.demand.stop()
        self.demand.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
