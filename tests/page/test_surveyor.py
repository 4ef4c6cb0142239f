"""What looking at coverage costs, and that it is done once for all."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.cache.support import A
from twistedproxy.cache.interface import HELD_AT_ONCE, Held
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name
from twistedproxy.page import surveyor
from twistedproxy.page.survey import ANYWAY_SECONDS, BLIND_SECONDS, TICK, Survey
from twistedproxy.page.surveyor import MAX_FRAMES, MOST_REST, QUICK, REST, Lane, Surveyor
from twistedproxy.prefetch.jobs import JobBook, JobKind
from twistedproxy.system.metrics import Metrics


class CountingCache(MemoryCache):
    """Counts how often it is looked through. *blind*: it tells of no changes. *cost*: seconds that a part takes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, 64 << 20)
        self.parts: list[tuple[str, float]] = []
        self.blind = False
        self.cost = 0.0
        self.worked = 0.0
        self.clock = clock

    def changes(self) -> Any:
        return None if self.blind else super().changes()

    async def held(self, instance: Instance, frames: int, after: bytes = b"") -> Held:
        self.parts.append((instance.sop, self.clock.seconds()))
        self.worked += self.cost
        return await super().held(instance, frames, after)


class SurveyorCase(SynchronousTestCase):
    """A surveyor on a clock, and a cache in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.cache = CountingCache(self.clock)
        self.flights: set[Any] = set()
        self.waiting: dict[Instance, set[int]] = {}
        reader: Any = SimpleNamespace(in_flight=lambda: self.flights)
        queues: Any = SimpleNamespace(under_way=lambda: self.waiting)
        self.jobs = JobBook(self.clock, Metrics(), 60.0)
        lane = Lane(self.clock, lambda: self.cache.worked)
        self.surveyor = Surveyor(self.cache, reader, queues, self.jobs, self.clock, lane)
        self.addCleanup(self.surveyor.stop)

    def watch(self, instance: Instance = A, frames: int = 100) -> Survey:
        survey = self.surveyor.watch(instance, frames)
        assert survey is not None
        return survey

    def put(self, *numbers: int, instance: Instance = A) -> None:
        fence = self.successResultOf(Deferred.fromCoroutine(self.cache.get_many(instance, []))).fence
        entries = {frame_name(number): b"x" for number in numbers}
        self.successResultOf(Deferred.fromCoroutine(self.cache.put_many(instance, fence, entries, None)))

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def text(self, cached: str = "[]", loading: str = "[]", claimed: str = "[]", frames: int = 100) -> bytes:
        return f'{{"frames":{frames},"cached":{cached},"loading":{loading},"claimed":{claimed}}}'.encode()


class CostTests(SurveyorCase):
    """When the cache is looked through."""

    def test_nobody_watches(self) -> None:
        """Nothing is done before anybody watches, and after the last one has left."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        survey = self.watch()
        self.pass_time(1.0)
        self.assertEqual(len(self.cache.parts), 1)
        self.surveyor.unwatch(survey)
        self.pass_time(1.0)
        self.put(1)
        self.pass_time(60.0)
        self.assertEqual((len(self.cache.parts), self.clock.getDelayedCalls()), (1, []))

    def test_shared(self) -> None:
        """Several who watch one instance share what is found; it is watched until the last has left."""
        first, second = self.watch(), self.watch()
        self.assertIs(first, second)
        self.pass_time(1.0)
        self.surveyor.unwatch(first)
        self.put(1)
        self.pass_time(1.0)
        self.assertEqual((len(self.cache.parts), second.text), (2, self.text("[[1,1]]")))

    def test_unchanged(self) -> None:
        """What has not changed is not looked for again, but for now and then; what changes all the time, five times a second."""
        self.watch()
        self.pass_time(ANYWAY_SECONDS - 1)
        self.assertEqual(len(self.cache.parts), 1)
        self.pass_time(2.0)
        self.assertEqual(len(self.cache.parts), 2)
        for number in range(1, 41):
            self.put(number)
            self.clock.advance(0.05)
        self.assertTrue(7 <= len(self.cache.parts) - 2 <= 11, self.cache.parts)

    def test_blind(self) -> None:
        """A cache that tells of no changes is looked through now and then, and often while anything is loaded."""
        self.cache.blind = True
        survey = self.watch()
        self.pass_time(10 * BLIND_SECONDS)
        self.assertTrue(9 <= len(self.cache.parts) <= 11, self.cache.parts)
        self.waiting[A] = {3}
        before = len(self.cache.parts)
        self.pass_time(2.0)
        self.assertTrue(7 <= len(self.cache.parts) - before <= 11, self.cache.parts)
        self.assertEqual(survey.text, self.text(claimed="[[3,3]]"))

    def test_rests(self) -> None:
        """Rests are twenty times as long as what was done, for all instances together; a part that took long does not stop it all."""
        self.cache.cost = 0.01
        for number in range(4):
            self.watch(attrs.evolve(A, sop=f"1.{number}"), 4 * HELD_AT_ONCE)
        self.pass_time(100.0, 0.01)
        times = [at for _, at in self.cache.parts]
        self.assertGreaterEqual(len(times), 3 * 16)  # first looks, and those that are due anyway
        for one, next_ in itertools.pairwise(times):
            self.assertGreaterEqual(next_ - one, REST * self.cache.cost - 0.001)
        self.cache.cost, before = 100.0, len(times)
        self.put(1)
        self.pass_time(3 * MOST_REST + 1.0)
        self.assertGreaterEqual(len(self.cache.parts) - before, 2)

    def test_large_ones_keep_nobody_waiting(self) -> None:
        """While a large instance is looked through, another that is watched has its turn."""
        self.cache.cost = 0.001
        large = self.watch(frames=100 * HELD_AT_ONCE)
        self.assertGreater(large.frames, QUICK)
        self.pass_time(0.5, 0.01)
        small = self.watch(attrs.evolve(A, sop="1.7"), 10)
        self.pass_time(0.1, 0.01)
        self.assertEqual((large.version, small.text), (0, self.text(frames=10)))
        self.pass_time(10.0, 0.01)
        self.assertGreater(large.version, 0)

    def test_bounds(self) -> None:
        """What metadata claim costs nothing, and neither does any number of instances."""
        self.assertIsNone(self.surveyor.watch(A, MAX_FRAMES + 1))
        self.assertIsNone(self.surveyor.watch(A, 2**31 - 1))
        self.patch(surveyor, "MAX_WATCHED", 2)
        for number in range(2):
            self.watch(attrs.evolve(A, sop=f"1.{number}"))
        self.assertIsNone(self.surveyor.watch(attrs.evolve(A, sop="1.2"), 1))
        self.watch(attrs.evolve(A, sop="1.1"))


class FoundTests(SurveyorCase):
    """What is found."""

    def test_not_used(self) -> None:
        """Looking is no use: what is watched is evicted as if it were not."""
        self.put(1, 2)
        other = attrs.evolve(A, sop="1.2")
        self.put(1, instance=other)
        self.watch()
        self.pass_time(1.0)
        keys = list(self.cache._store._items)
        names = [key[-2:] for key in keys if key.startswith(b"tpf")]
        self.assertEqual(names, [b"F1", b"F2", b"F1"])

    def test_loads(self) -> None:
        """Flights and asked frames are being loaded, queues and a load that waits are claimed; what is cached is neither."""
        self.put(1, 2, 3)
        survey = self.watch()
        self.flights = {(A, b"", number) for number in (2, 5, 6)}
        self.waiting[A] = {3, 6, 7, 9}
        block = self.jobs.start(A, JobKind.BLOCK, "", 2)
        block.asked = {20, 21}
        self.pass_time(1.0)
        self.assertEqual(survey.text, self.text("[[1,3]]", "[[5,6],[20,21]]", "[[7,7],[9,9]]"))
        fence = survey.fence
        assert fence is not None
        whole = self.jobs.start(A, JobKind.WHOLE, "", 100, fence)
        whole.waits = True
        self.flights, self.waiting = set(), {}
        block.asked = set()
        self.pass_time(TICK)
        self.assertEqual(survey.text, self.text("[[1,3]]", "[]", "[[4,100]]"))
        whole.waits, whole.frames = False, 50
        self.pass_time(TICK)
        self.assertEqual(survey.text, self.text("[[1,3]]", "[[51,100]]"))
        whole.fence = b"another"
        self.pass_time(TICK)
        self.assertEqual(survey.text, self.text("[[1,3]]"))

    def test_moved(self) -> None:
        """Those who wait hear of what is new, and of nothing else; versions grow."""
        survey = self.watch()
        moved = [self.surveyor.moved.wait()]
        self.pass_time(1.0)
        self.successResultOf(moved[0])
        first = survey.version
        moved.append(self.surveyor.moved.wait())
        self.put(1, instance=attrs.evolve(A, sop="1.9"))
        self.pass_time(1.0)
        self.assertNoResult(moved[1])
        self.put(1)
        self.pass_time(1.0)
        self.successResultOf(moved[1])
        self.assertGreater(survey.version, first)

    def test_invalidated_meanwhile(self) -> None:
        """What was found while the instance was invalidated is not shown: it is looked for anew."""
        self.put(1)
        survey, held = self.watch(), self.cache.held
        gate: list[Optional[Deferred[None]]] = [Deferred()]

        async def slowly(*arguments: Any) -> Held:
            found = await held(*arguments)
            if gate[0] is not None:
                await gate[0]
            return found

        self.cache.held = slowly  # type: ignore[method-assign]
        self.pass_time(1.0)
        self.successResultOf(Deferred.fromCoroutine(self.cache.invalidate(A.scope)))
        waiting, gate[0] = gate[0], None
        assert waiting is not None
        waiting.callback(None)
        self.assertEqual(survey.version, 0)
        self.pass_time(1.0)
        self.assertEqual(survey.text, self.text())

    def test_failure(self) -> None:
        """A look that fails is logged, and there is another one."""
        survey, held = self.watch(), self.cache.held

        async def fail(*_: Any) -> Held:
            raise ZeroDivisionError

        self.cache.held = fail  # type: ignore[method-assign]
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.cache.held = held  # type: ignore[method-assign]
        self.pass_time(1.0)
        self.assertEqual(survey.text, self.text())
