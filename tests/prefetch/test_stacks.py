"""The slices beside the one that is looked at."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.series import SLICE, SeriesOrigin, slice_of
from tests.frames.support import ALICE, MALLORY, ReadingParts
from twistedproxy.frames.entries import frame_name, was_prefetched
from twistedproxy.frames.read_through import FrameAnswer, FrameReader, FrameRequest
from twistedproxy.frames.series_answers import SeriesAnswers
from twistedproxy.origin.errors import OriginBusy, OriginRefused
from twistedproxy.origin.interface import Caller, Priority
from twistedproxy.prefetch.ahead import slices, stacks
from twistedproxy.prefetch.ahead.stacks import Stacks, Travel
from twistedproxy.prefetch.jobs import JobBook, JobKind, Result
from twistedproxy.system.metrics import Metrics


def order(travel: Travel, ahead: int, behind: int) -> list[int]:
    """What is loaded from here on."""
    places = []
    while (place := travel.next(ahead, behind)) is not None:
        travel.done.add(place)
        places.append(place)
    return places


class TravelTests(SynchronousTestCase):
    """Which slice is next."""

    def looking(self, *places: int, slices: int = 20) -> Travel:
        """A caller who looked at these slices."""
        travel = Travel(slices)
        for place in places:
            travel.move(place)
        return travel

    def test_directions(self) -> None:
        """Ahead first, the nearest before the others, then behind; backwards too."""
        self.assertEqual(order(self.looking(4, 5), 3, 2), [6, 7, 8, 3])
        self.assertEqual(order(self.looking(9, 8), 3, 2), [7, 6, 5, 10])
        self.assertEqual(order(self.looking(5), 2, 1), [6, 7, 4])

    def test_any_order(self) -> None:
        """Answers of six requests that run side by side do not turn the direction."""
        self.assertEqual(order(self.looking(4, 6, 5, 9, 7, 8), 3, 0), [10, 11])
        self.assertEqual(order(self.looking(4, 6, 5, 9, 8, 7), 3, 0), [10])

    def test_ends(self) -> None:
        """There is nothing before the first slice, or after the last."""
        self.assertEqual(order(self.looking(18, slices=20), 5, 3), [19, 17, 16, 15])
        self.assertEqual(order(self.looking(0, slices=3), 9, 9), [1, 2])


class StacksTests(SynchronousTestCase):
    """Loading them."""

    def setUp(self) -> None:
        self.origin = SeriesOrigin(shown={ALICE.credential: range(1, 31), MALLORY.credential: (1, 2)})
        self.parts = ReadingParts(origin=self.origin)
        self.reader: FrameReader = self.parts.reader()
        self.reader.access.series = SeriesAnswers(self.parts.cache, self.parts.clock, self.parts.clock.seconds, 600.0)
        self.jobs = JobBook(self.parts.clock, Metrics(), 60.0)
        self.stacks = Stacks(self.reader, self.reader.access.series, self.jobs)

    def request(self, number: int, caller: Caller = ALICE) -> FrameRequest:
        return FrameRequest(self.origin, slice_of(number), (1,), caller)  # type: ignore[arg-type]

    def read(self, number: int, caller: Caller = ALICE) -> Deferred[FrameAnswer]:
        reading = Deferred.fromCoroutine(self.reader.read(self.request(number, caller)))
        self.pump()
        return reading

    def touch(self, number: int, caller: Caller = ALICE) -> Deferred[None]:
        """A slice was answered."""
        answer = self.successResultOf(self.read(number, caller))
        touching = Deferred.fromCoroutine(
            self.stacks.touched(self.request(number, caller), answer.metadata, bool(answer.fetched))
        )
        self.pump()
        return touching

    def pump(self) -> None:
        for _ in range(100):
            self.parts.clock.advance(0)

    def cached(self, numbers: Iterable[int]) -> list[int]:
        """Those whose frame is in the cache."""
        get = self.parts.cache.get_many
        found = {n: self.successResultOf(Deferred.fromCoroutine(get(slice_of(n), [frame_name(1)]))) for n in numbers}
        return [number for number, reading in found.items() if reading.entries]

    def test_all(self) -> None:
        """Of a small stack all slices are loaded, nearest first, behind callers at the origin, each once; and counted."""
        self.successResultOf(self.touch(10))
        self.assertEqual(self.cached(range(1, 31)), list(range(1, 31)))
        self.assertTrue(self.stacks.is_done(self.request(20)))
        self.assertFalse(self.stacks.is_done(self.request(20, MALLORY)))
        ahead = [slice_of(number).sop for number in (*range(10, 31), *range(9, 0, -1))]
        self.assertEqual(self.origin.loaded, ahead)
        self.assertEqual((self.origin.priority, len(self.origin.asked_for("series"))), (Priority.BLOCK, 1))
        reading = Deferred.fromCoroutine(self.parts.cache.get_many(slice_of(20), [frame_name(1)]))
        self.assertTrue(was_prefetched(self.successResultOf(reading).entries[frame_name(1)]))
        job = self.jobs.last(slice_of(1).of_series)
        assert job is not None
        self.assertEqual((job.kind, job.result, job.frames), (JobKind.STACK, Result.DONE, 29))

    def test_window(self) -> None:
        """Of a large one so many as fit the window, which moves with the caller."""
        self.patch(stacks, "AHEAD", 3)
        self.patch(stacks, "BEHIND", 1)
        self.successResultOf(self.touch(10))
        self.assertEqual(self.cached(range(1, 31)), [9, 10, 11, 12, 13])
        self.successResultOf(self.touch(12))
        self.assertEqual(self.cached(range(1, 31)), [9, 10, 11, 12, 13, 14, 15])
        self.patch(stacks, "WINDOW_BYTES", 1)
        self.successResultOf(self.touch(20))
        self.assertEqual(self.cached(range(16, 31)), [19, 20, 21])

    def test_joined(self) -> None:
        """A slice that is on its way is waited for; it is not asked for twice."""
        self.patch(slices, "SIDE_BY_SIDE", 2)
        self.successResultOf(self.read(1))
        self.origin.gate = Deferred()
        touching = self.touch(1)
        self.assertEqual(self.origin.loaded, [slice_of(number).sop for number in (1, 2, 3)])
        reading = self.read(3)
        self.assertNoResult(reading)
        gate, self.origin.gate = self.origin.gate, None
        gate.callback(None)
        self.pump()
        self.assertEqual(self.successResultOf(reading).shared, 1)
        self.successResultOf(touching)
        self.assertEqual(len(self.origin.loaded), len(set(self.origin.loaded)))

    def test_rights(self) -> None:
        """A caller whom the store shows two slices gets these, and none of the others is asked for in that name."""
        self.successResultOf(self.touch(1, MALLORY))
        self.assertEqual(self.origin.loaded, [slice_of(1).sop, slice_of(2).sop])
        self.successResultOf(self.touch(1))
        self.assertEqual(len(self.origin.loaded), 30)

    def test_one_forbidden(self) -> None:
        """A slice that the store denies keeps no other from being loaded."""
        self.patch(slices, "SIDE_BY_SIDE", 1)
        self.origin.forbidden = {slice_of(12).sop}
        self.successResultOf(self.touch(10))
        self.assertEqual(set(range(1, 31)) - set(self.cached(range(1, 31))), {12})

    def test_all_refused(self) -> None:
        """A refusal that concerns all slices ends the load at once; others do after some in a row."""
        self.patch(slices, "SIDE_BY_SIDE", 1)
        for status, asked in ((401, 1), (503, 1), (403, stacks.MAX_REFUSED + 1)):
            self.setUp()
            self.successResultOf(self.read(1))
            self.origin.failure = OriginRefused(status, (), b"")
            self.origin.loaded.clear()
            self.successResultOf(self.touch(1))
            self.assertEqual((len(self.origin.loaded), self.jobs.running), (asked, []))

    def test_fails_by_mistake(self) -> None:
        """Whatever goes wrong, the job ends, and is logged."""
        self.successResultOf(self.read(1))
        self.origin.failure = ZeroDivisionError("by mistake")
        self.successResultOf(self.touch(1))
        self.assertEqual(self.jobs.running, [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_left_alone(self) -> None:
        """What is in the cache is not even read, and what another worker has claimed is left to it."""
        loader = slices.SliceLoader(self.reader)
        self.successResultOf(self.read(1))
        claim = self.parts.cache.claim(slice_of(2), [frame_name(1)], b"other", 30.0)
        self.successResultOf(Deferred.fromCoroutine(claim))
        for number, expected in ((1, slices.NotRead.PRESENT), (2, slices.NotRead.CLAIMED)):
            loading = loader.load(self.origin, slice_of(number), MALLORY)  # type: ignore[arg-type]
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(loading)), expected)
        self.assertEqual(self.origin.loaded, [slice_of(1).sop])

    def test_two_workers(self) -> None:
        """Of two workers that load a stack at once each slice is loaded by one."""
        self.successResultOf(self.read(1))
        other = self.parts.reader()
        other.access.series = SeriesAnswers(self.parts.cache, self.parts.clock, self.parts.clock.seconds, 600.0)
        second = Stacks(other, other.access.series, self.jobs)
        gate = self.origin.gate = Deferred()
        waits = [self.touch(1)]
        waits.append(Deferred.fromCoroutine(second.touched(self.request(1), SLICE, False)))
        self.pump()
        self.origin.gate = None
        gate.callback(None)
        self.pump()
        for one in waits:
            self.successResultOf(one)
        self.assertEqual(len(self.origin.loaded), 30)

    def test_lost(self) -> None:
        """Slices that the cache has lost are loaded anew once one of them had to be fetched again."""
        self.successResultOf(self.touch(10))
        gone = [slice_of(number) for number in range(1, 31)]
        for one in gone:
            self.successResultOf(Deferred.fromCoroutine(self.parts.cache.remove(one, [frame_name(1)])))
        self.successResultOf(self.touch(11))
        self.assertEqual(self.cached(range(1, 31)), list(range(1, 31)))

    def test_origin_fails(self) -> None:
        """When the store does not answer any more, the load ends, and the next request begins another."""
        self.successResultOf(self.read(1))
        self.origin.failure = OriginBusy("busy")
        self.successResultOf(self.touch(1))
        job = self.jobs.last(slice_of(1).of_series)
        assert job is not None
        self.assertEqual((job.result, job.reason), (Result.FAILED, "busy"))
        self.origin.failure = None
        self.successResultOf(self.touch(2))
        self.assertGreater(len(self.cached(range(1, 31))), 10)

    def test_stopped(self) -> None:
        """Who ends the load ends its requests."""
        self.successResultOf(self.read(1))
        self.origin.gate = Deferred()
        touching = self.touch(1)
        touching.addErrback(lambda _: None)
        touching.cancel()
        self.assertEqual((self.jobs.running, self.origin.cancelled), ([], 1))  # all wait for the same
        self.assertEqual(self.reader.in_flight(), set())

    def test_no_stack(self) -> None:
        """What is no stack, or no part of it, leads to nothing."""
        self.origin.shown[ALICE.credential] = (1,)
        self.successResultOf(self.touch(1))
        self.assertEqual(self.origin.loaded, [slice_of(1).sop])
