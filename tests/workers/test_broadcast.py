"""What workers have to do with each other: telling, asking, counting, on a clock and without processes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.workers.in_memory import FakeWorker
from twistedproxy.system.metrics import merge
from twistedproxy.workers.broadcast import CONFIRM_SECONDS, Workers


class WorkersTests(SynchronousTestCase):
    """Three workers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.known = Workers()
        self.workers = [FakeWorker(self.clock, self.known, pid) for pid in (1, 2, 3)]
        for worker in self.workers:
            worker.here.call("join")
        self.flush()

    def flush(self) -> None:
        moved = True
        while moved:
            moved = max([worker.flush() for worker in self.workers])

    def asked(self, name: str, **arguments: Any) -> Deferred[Any]:
        """The first worker asks."""
        call = self.workers[0].here.call(name, **arguments)
        self.flush()
        return call

    def requests(self, snapshots: list[Any]) -> float:
        """Requests counted in all, as the first one would show them."""
        shown = merge([self.workers[0].metrics.snapshot(), *snapshots])
        return float(sum(row[1][0] for row in shown.get("requests", [])))

    def count(self, worker: int, times: int) -> None:
        for _ in range(times):
            self.workers[worker].metrics.request_finished("frames", "GET", 200, "hit", 0.1, 10)

    def test_told(self) -> None:
        """What one forgets, all others are told before it goes on; it is not told itself."""
        self.workers[2].hangs = True
        told = self.workers[0].here.call("invalidate", scope=["a"], cache_invalidated=True)
        self.flush()
        self.assertNoResult(told)
        self.workers[2].hangs = False
        self.flush()
        self.successResultOf(told)
        said = [("invalidate", {"scope": ["a"], "cache_invalidated": True})]
        self.assertEqual([worker.heard for worker in self.workers], [[], said, said])

    def test_hangs(self) -> None:
        """One that does not answer is killed after a while, both at the same time; only then the others go on."""
        for worker in self.workers[1:]:
            worker.hangs = True
        told = self.asked("invalidate", scope=["a"], cache_invalidated=True)
        self.clock.advance(CONFIRM_SECONDS - 0.1)
        self.assertNoResult(told)
        self.clock.advance(0.2)
        self.flush()
        self.successResultOf(told)
        self.assertEqual([worker.alive for worker in self.workers], [True, False, False])
        self.assertEqual(self.known.all, self.workers[:1])

    def test_cannot_invalidate(self) -> None:
        """One that does not invalidate is killed too."""
        self.successResultOf(self.asked("revoke", credential="00", instance=["a"]))
        self.assertEqual([worker.alive for worker in self.workers], [True, False, False])

    def test_dies_meanwhile(self) -> None:
        """One that ends while it is told holds nobody up."""
        self.workers[1].hangs = True
        told = self.asked("invalidate", scope=["a"], cache_invalidated=True)
        self.workers[1].kill()
        self.flush()
        self.successResultOf(told)
        self.assertEqual(self.workers[2].alive, True)

    def test_newcomer(self) -> None:
        """A worker that does not listen yet is not waited for; one that has said it is about to, is told."""
        late = FakeWorker(self.clock, self.known, 4)
        late.hangs = True
        self.workers.append(late)
        self.successResultOf(self.asked("invalidate", scope=["a"], cache_invalidated=True))
        late.hangs = False
        late.channel.transport.clear()  # type: ignore[union-attr]
        late.here.call("join")
        self.flush()
        self.successResultOf(self.asked("invalidate", scope=["b"], cache_invalidated=True))
        self.assertEqual(late.heard, [("invalidate", {"scope": ["b"], "cache_invalidated": True})])

    def test_statuses(self) -> None:
        """All others' statuses come; one that hangs is left out after a while, and lives."""
        self.assertEqual(self.successResultOf(self.asked("statuses")), [{"pid": 2}, {"pid": 3}])
        self.workers[1].hangs = True
        asked = self.asked("statuses")
        self.clock.advance(CONFIRM_SECONDS)
        self.flush()
        self.assertEqual(self.successResultOf(asked), [{"pid": 3}])
        self.assertTrue(self.workers[1].alive)

    def test_counters_outlive(self) -> None:
        """What a worker that hangs, or has gone, was last seen to have counted stays counted; gauges go with it."""
        self.count(0, 1)
        self.count(1, 10)
        self.count(2, 100)
        self.workers[1].metrics.request_started()
        self.assertEqual(self.requests(self.successResultOf(self.asked("snapshots"))), 111)
        self.workers[1].hangs = True
        asked = self.asked("snapshots")
        self.clock.advance(CONFIRM_SECONDS)
        self.flush()
        self.assertEqual(self.requests(self.successResultOf(asked)), 111)
        self.workers[1].kill()
        snapshots = self.successResultOf(self.asked("snapshots"))
        self.assertEqual(self.requests(snapshots), 111)
        in_flight = [row[1][0] for snapshot in snapshots for row in snapshot.get("requests_in_flight", [])]
        self.assertEqual(sum(in_flight), 0)

    def test_last_words_count(self) -> None:
        """What a worker says on leaving counts, once, however often it is asked for and whoever asks."""
        self.count(1, 7)
        self.workers[1].here.call("counted", snapshot=self.workers[1].metrics.snapshot())
        self.flush()
        self.workers[1].kill()
        for _ in range(3):
            self.assertEqual(self.requests(self.successResultOf(self.asked("snapshots"))), 7)

    def test_dies_while_asked(self) -> None:
        """One that goes while it is asked is counted once."""
        self.count(1, 7)
        self.successResultOf(self.asked("snapshots"))
        self.workers[1].hangs = True
        asked = self.asked("snapshots")
        self.workers[1].kill()
        self.flush()
        self.assertEqual(self.requests(self.successResultOf(asked)), 7)
