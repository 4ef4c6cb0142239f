"""The pace of whole-instance loads."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.prefetch.instance_load import BATCH_BYTES, ENOUGH_CPUS, SMALL_BATCH_BYTES, Pace, rest_seconds
from twistedproxy.system.caller_demand import Demand, DemandLevel


def demand(level: DemandLevel, cpus: float) -> Demand:
    """Callers who want so much, of a worker with so many CPUs."""
    made = Demand(Clock(), lambda: 0.0, cpus)
    made.level = level
    return made


class RestTests(SynchronousTestCase):
    """How long loads rest."""

    def test_by_demand(self) -> None:
        """The more callers want, the longer; not at all while they want little."""
        rests = [rest_seconds(demand(level, 2.0)) for level in DemandLevel]
        self.assertEqual(rests[0], 0.0)
        self.assertEqual(sorted(set(rests)), rests)

    def test_enough_cpus(self) -> None:
        """Where there are CPUs for all, nobody rests."""
        self.assertEqual([rest_seconds(demand(level, ENOUGH_CPUS)) for level in DemandLevel], [0.0] * 3)


class PaceTests(SynchronousTestCase):
    """A child's pace."""

    def test_full(self) -> None:
        """Without a rest there is nothing to wait for, and batches are large."""
        pace = Pace(Clock())
        self.assertIsNone(pace.breathe())
        self.assertEqual(pace.batch_bytes(), BATCH_BYTES)

    def test_resting(self) -> None:
        """With one, each breath takes so long, and batches are small; a change holds from the next breath on."""
        clock = Clock()
        pace = Pace(clock, 0.25)
        breath = pace.breathe()
        assert isinstance(breath, Deferred)
        clock.advance(0.24)
        self.assertNoResult(breath)
        clock.advance(0.02)
        self.assertTrue(breath.called)
        self.assertEqual(pace.batch_bytes(), SMALL_BATCH_BYTES)
        pace.rest = 0.0
        self.assertIsNone(pace.breathe())
