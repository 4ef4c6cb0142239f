"""Slides, loaded where their readers look."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from tests.frames.support import INSTANCE, JPEG
from tests.prefetch import slides as store
from tests.prefetch.slides import FACTS, OVERVIEW, SIDES, SlideOrigin, level
from tests.prefetch.support import MIB, PrefetchCase, Worker
from tests.series.support import level_json
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name
from twistedproxy.frames.read_through import FrameAnswer, FrameRequest
from twistedproxy.prefetch import runner
from twistedproxy.prefetch.ahead import frame_queues, slides
from twistedproxy.prefetch.ahead.surroundings import FURTHER, MARGIN, RING, RUN, RUN_FURTHER
from twistedproxy.prefetch.instance_load import Loaded
from twistedproxy.prefetch.jobs import NotLoadable


class LookAheadCase(PrefetchCase):
    """A slide of four levels and an overview; 1 is the finest level."""

    with_series = True

    def setUp(self) -> None:
        super().setUp()
        self.cache = MemoryCache(self.clock, 512 * MIB)
        self.origin = self.slides = SlideOrigin()

    def look(
        self, worker: Worker, number: int, row: int, column: int, caller: str = "alice", turns: int = 60
    ) -> FrameAnswer:  # fmt: skip
        """Ask for a frame of a level; all that follows is done."""
        frame = row * SIDES.get(number, 1) + column + 1
        wanted = FrameRequest(self.origin, level(number), (frame,), self.caller(caller))  # type: ignore[arg-type]
        reading = Deferred.fromCoroutine(worker.reader.read(wanted))
        for _ in range(turns):
            self.clock.advance(0)
        return self.successResultOf(reading)

    def places(self, number: int) -> set[tuple[int, int]]:
        """Row and column of the frames of a level that are cached."""
        names = [frame_name(frame) for frame in range(1, FACTS[level(number).sop].frames + 1)]
        found = self.now(self.cache.present(level(number), names))
        return {divmod(frame, SIDES.get(number, 1)) for frame, name in enumerate(names) if name in found}

    def assertSquare(self, found: Iterable[tuple[int, int]], rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """All places within these rows and columns, ends included, and no others."""
        rows_, columns_ = range(rows[0], rows[1] + 1), range(columns[0], columns[1] + 1)
        self.assertEqual({*found}, {(row, column) for row in rows_ for column in columns_})


class AroundTests(LookAheadCase):
    """Within a level."""

    def setUp(self) -> None:
        super().setUp()
        self.slides.whole_series = False

    def test_after_a_miss(self) -> None:
        """A ring around the frame is loaded, and no more, though the whole level is small enough for the cache."""
        self.patch(slides.LookAhead, "slides", lambda *_: 10**9)
        worker = self.worker()
        self.look(worker, 1, 50, 60)
        self.assertSquare(self.places(1), (50 - RING, 50 + RING), (60 - RING, 60 + RING))
        self.assertEqual(self.count(worker, "prefetch_plans", "nothing", "slow-to-load"), 1)
        self.assertEqual(worker.whole.tasks, [])

    def test_beside_it(self) -> None:
        """What lies around is asked for at once, and not when the frame has come."""
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 0, 0)
        self.slides.gate = Deferred()
        wanted = FrameRequest(self.origin, level(1), (50 * SIDES[1] + 61,), self.caller())  # type: ignore[arg-type]
        reading = Deferred.fromCoroutine(worker.reader.read(wanted))
        for _ in range(9):
            self.clock.advance(0)
        self.assertNoResult(reading)
        around = {(row, column) for row in range(47, 54) for column in range(57, 64)}
        self.assertEqual(self.places(1) & around, around - {(50, 60)})
        self.slides.gate.callback(None)
        self.assertEqual(self.successResultOf(reading).fetched, 1)

    def test_on_hits(self) -> None:
        """A frame that was loaded ahead and is asked for moves the ring; further in the direction of movement."""
        worker = self.worker(whole_instance=False)
        for column in range(60, 66):
            self.assertEqual(self.look(worker, 1, 50, column).cached, int(column > 60))
        found = self.places(1)
        self.assertIn((50, 65 + RING + FURTHER), found)
        self.assertEqual({row for row, _ in found}, {*range(50 - RING, 50 + RING + 1)})
        self.assertEqual(min(column for _, column in found), 60 - RING)

    def test_loop(self) -> None:
        """Of frames that follow each other more lie ahead, in the direction in which the caller goes; the series is not asked for."""
        loop = attrs.evolve(FACTS[level(1).sop], total_rows=None, total_columns=None, frames=2000, organization="3D")
        self.patch(store, "FACTS", {**FACTS, level(1).sop: loop})
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 0, 999)
        self.assertEqual(self.frames_of(loop), range(1000 - RUN, 1000 + RUN + 1))
        for frame in (999, 998, 997, 996):
            self.assertEqual(self.look(worker, 1, 0, frame - 1).cached, 1)
        self.assertEqual(self.frames_of(loop), range(996 - RUN - RUN_FURTHER, 1000 + RUN + 1))
        self.assertEqual((self.slides.series_asked, worker.whole.tasks, self.running(worker)), ([], [], []))

    def frames_of(self, metadata: InstanceMetadata) -> range:
        """The frames of level 1 that are cached, which follow each other."""
        names = [frame_name(frame) for frame in range(1, metadata.frames + 1)]
        found = self.now(self.cache.present(level(1), names))
        cached = [frame for frame, name in enumerate(names, 1) if name in found]
        self.assertEqual(len(cached), cached[-1] - cached[0] + 1)
        return range(cached[0], cached[-1] + 1)

    def test_once(self) -> None:
        """A frame that is asked for again, and one that was not loaded ahead, lead to nothing."""
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 50, 60)
        self.look(worker, 1, 50, 61)
        asked, jobs = len(self.origin.asked), len(self.ended(worker))
        for column in (60, 61, 61):
            self.look(worker, 1, 50, column)
        self.assertEqual((len(self.origin.asked), len(self.ended(worker))), (asked, jobs))

    def test_other_callers_too(self) -> None:
        """Where another caller goes on, it goes on."""
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 50, 60)
        self.assertEqual(self.look(worker, 1, 50, 63, "bob").cached, 1)
        self.assertIn((50, 63 + RING), self.places(1))

    def test_loaded_whole(self) -> None:
        """Where all was loaded nothing is looked for, until a frame is missed."""
        worker = self.worker()
        self.look(worker, 2, 20, 20)
        worker.whole.finish()
        self.clock.advance(0)
        self.look(worker, 2, 20, 21)  # of those around the first
        self.assertNotIn((20, 21 + RING), self.places(2))
        self.look(worker, 2, 20, 23 + RING)
        self.assertIn((20, 23 + 2 * RING), self.places(2))

    def test_nothing_to_load(self) -> None:
        """What finds all of it cached is no job to speak of."""
        worker, other = self.worker(whole_instance=False), self.worker(whole_instance=False)
        self.look(worker, 1, 50, 60)
        self.look(worker, 1, 50, 63)
        self.look(other, 1, 50, 62)
        self.assertEqual([job for job in self.ended(other) if job["instance"] == level(1).path], [])

    def test_many_at_once(self) -> None:
        """Of a long list, what lies around a screen's worth of it."""
        worker = self.worker(whole_instance=False)
        places = [(row, column) for row in range(10, 120, 10) for column in range(10, 120, 10)]
        numbers = tuple(row * SIDES[1] + column + 1 for row, column in places)
        wanted = FrameRequest(self.origin, level(1), numbers, self.caller())  # type: ignore[arg-type]
        reading = Deferred.fromCoroutine(worker.reader.read(wanted))
        for _ in range(900):
            self.clock.advance(0)
        self.successResultOf(reading)
        found = self.places(1)
        beside = [(row + 1, column + 1) in found for row, column in places]
        self.assertEqual(beside, [True] * slides.MOST_PLACES + [False] * (len(places) - slides.MOST_PLACES))

    def test_lost(self) -> None:
        """What the cache has lost is loaded again, once a caller misses it."""
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 50, 60)
        numbers = [row * SIDES[1] + column + 1 for row, column in self.places(1)]
        self.now(self.cache.remove(level(1), [frame_name(number) for number in numbers]))
        self.assertEqual(self.look(worker, 1, 50, 60).cached, 0)
        self.assertSquare(self.places(1), (50 - RING, 50 + RING), (60 - RING, 60 + RING))

    def test_cache_that_takes_none(self) -> None:
        """Before a cache that keeps no frames what lies around is not loaded anew with each miss."""
        put = self.cache.put_many

        async def refuse(instance: Instance, fence: Any, entries: Any, seconds: Any) -> bool:
            return frame_name(1)[:1] not in {name[:1] for name in entries} and await put(
                instance, fence, entries, seconds
            )

        self.patch(self.cache, "put_many", refuse)
        worker = self.worker(whole_instance=False)
        for column in range(60, 70):
            self.assertEqual(self.look(worker, 1, 50, column).fetched, 1)
        side = 2 * RING + 1
        self.assertLess(len(self.slides.loaded[level(1).sop]), 10 + 2 * side**2 + side * (10 + FURTHER))

    def test_dear(self) -> None:
        """Where a frame costs the origin as much as the instance nothing is loaded around, as long as it can be loaded whole."""
        self.origin.per_request = 1
        worker = self.worker(display_min_frames=10**9)
        self.look(worker, 1, 50, 60)
        self.assertEqual((len(worker.whole.tasks), self.places(1)), (1, {(50, 60)}))
        worker.whole.fail(NotLoadable("it is no file"))
        self.look(worker, 1, 50, 60)
        self.assertEqual(self.places(1), {(50, 60)})
        self.look(worker, 1, 50, 61)
        self.assertIn((50 + RING, 61 + RING), self.places(1))

    def test_not_supported(self) -> None:
        """Frames that cannot be told apart are not loaded."""
        self.origin.syntax = "1.2.840.10008.1.2.4.102"
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 0, 0)
        self.assertEqual(self.places(1), {(0, 0)})


class BeyondTests(LookAheadCase):
    """At other levels."""

    def test_opened(self) -> None:
        """When a slide is opened, its small levels are loaded: whole those of some frames, however many jobs run; and the overview."""
        worker = self.worker(max_jobs=0, whole_instance=False)
        self.look(worker, 1, 50, 60)
        self.assertEqual([task.instance.sop for task in worker.small.tasks], [level(3).sop])
        self.assertSquare(self.places(4), (0, 1), (0, 1))
        self.assertEqual(self.places(OVERVIEW), {(0, 0)})
        self.assertEqual(self.slides.series_asked, [b"alice"])

    def test_opened_once(self) -> None:
        """Not again by the same caller; by another, what is not there."""
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 50, 60)
        worker.small.finish()
        asked = len(self.slides.loaded[level(4).sop])
        self.look(worker, 1, 90, 90)
        self.assertEqual(self.count(worker, "prefetch_locks_lost"), 0)  # nobody tried
        self.look(worker, 2, 9, 9, "bob")
        self.assertEqual((len(worker.small.tasks), len(self.slides.loaded[level(4).sop])), (1, asked))

    def test_by_its_overview(self) -> None:
        """A viewer that shows the overview first opens the slide with it; a level of one frame does, too."""
        worker = self.worker()
        self.look(worker, OVERVIEW, 0, 0)
        self.assertEqual([task.instance.sop for task in worker.small.tasks], [level(3).sop])
        self.assertSquare(self.places(4), (0, 1), (0, 1))

    def test_before_the_first_tile(self) -> None:
        """Who reads a profile of a slide that is known opens it; who was not told of the series, or is not shown it, opens nothing."""
        worker = self.worker()
        assert worker.scheduler.ahead is not None and worker.reader.access.series is not None
        wanted = FrameRequest(self.origin, level(1), (1,), self.caller())  # type: ignore[arg-type]
        for known in (False, True):
            if known:
                self.now(worker.reader.access.series.find(wanted.origin, level(1), wanted.caller, ask=True))
            for _ in range(2):
                self.now(worker.scheduler.ahead.opened(wanted))
                self.clock.advance(0)
            self.assertEqual(len(worker.small.tasks), int(known))
        self.assertSquare(self.places(4), (0, 1), (0, 1))
        other = attrs.evolve(wanted, caller=self.caller("bob"))
        self.now(worker.scheduler.ahead.opened(other))
        self.assertEqual((len(worker.small.tasks), self.slides.series_asked), (1, [b"alice"]))

    def test_neighbours(self) -> None:
        """The same place of the level beside, a screen around it; again once the caller has moved by half a screen."""
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 64, 64)
        middle = int(64.5 * SIDES[2] / SIDES[1])
        square = (middle - MARGIN, middle + MARGIN)
        self.assertSquare(self.places(2), square, square)
        self.patch(slides, "MARGIN", 2 * MARGIN)
        self.look(worker, 1, 64, 80)
        self.assertSquare(self.places(2), square, square)
        self.patch(slides, "MARGIN", MARGIN)
        self.look(worker, 1, 64, 50)
        self.assertIn((middle, int(50.5 * SIDES[2] / SIDES[1]) - MARGIN), self.places(2))

    def test_in_the_background(self) -> None:
        """The level beside is asked for with fewer requests at once than the one that a caller looks at."""
        for name, count in (("SIDE_BY_SIDE", 3), ("IN_THE_BACKGROUND", 1)):
            self.patch(frame_queues, name, count)
        worker = self.worker(whole_instance=False)
        self.slides.held = []
        self.look(worker, 1, 64, 64)
        asked = {number: len(self.slides.loaded[level(number).sop]) for number in (1, 2)}
        self.assertEqual(asked, {1: 1 + 3 * self.slides.per_request, 2: self.slides.per_request})
        while self.slides.held:
            self.slides.release()
            self.clock.advance(0)
        self.assertEqual(len(self.places(2)), (2 * MARGIN + 1) ** 2)

    def test_planes(self) -> None:
        """The same plane of the level beside, where it has as many focal planes or optical paths; again when the plane changes."""
        levels = [level_json(f"1.2.3.{n}", n, SIDES[n] * 256, SIDES[n] * 256, 2 * SIDES[n] ** 2) for n in (1, 2)]
        self.patch(store, "_levels", lambda: levels)
        for n in (1, 2):
            facts = FACTS[level(n).sop]
            self.addCleanup(FACTS.__setitem__, level(n).sop, facts)
            FACTS[level(n).sop] = attrs.evolve(facts, frames=2 * facts.frames)
        worker = self.worker(whole_instance=False)
        middle = int(64.5 * SIDES[2] / SIDES[1])
        square = (middle - MARGIN, middle + MARGIN)
        self.look(worker, 1, SIDES[1] + 64, 64)
        self.assertSquare(self.places(2), (SIDES[2] + square[0], SIDES[2] + square[1]), square)
        self.look(worker, 1, 64, 64)
        self.assertEqual(len(self.places(2)), 2 * (2 * MARGIN + 1) ** 2)

    def test_finer(self) -> None:
        """The finer level, too."""
        worker = self.worker(whole_instance=False)
        self.look(worker, 2, 20, 20)
        middle = int(20.5 * SIDES[1] / SIDES[2])
        self.assertSquare(self.places(1), (middle - MARGIN, middle + MARGIN), (middle - MARGIN, middle + MARGIN))
        self.assertEqual(self.places(3), set())  # the coarser one is loaded whole

    def test_many_small_levels(self) -> None:
        """Of a series that names any number of small levels and overviews some are loaded."""
        kind = ["ORIGINAL", "PRIMARY", "OVERVIEW"]
        more = [level_json(f"1.2.3.9.{n}", n, 256 * n, 256, n) for n in range(3, 60)]
        more += [level_json(f"1.2.3.8.{n}", n, 256, 256, 1, _00080008=kind) for n in range(1, 40)]
        levels = store._levels()
        self.patch(store, "_levels", lambda: [*levels, *more])
        for one in more:
            sop = one["00080018"]["Value"][0]
            FACTS[sop] = attrs.evolve(FACTS[level(1).sop], frames=one["00280008"]["Value"][0])
            self.addCleanup(FACTS.pop, sop)
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 50, 60, turns=600)
        loaded = [sop for sop in self.slides.loaded if sop.startswith("1.2.3.8.")]
        self.assertEqual(len(loaded), slides.MAX_OVERVIEWS - 1)
        self.assertLessEqual(self.slides.metadata_asked, 1 + slides.MAX_SMALL + slides.MAX_OVERVIEWS + 2)
        self.now(worker.scheduler.stop())

    def test_rights(self) -> None:
        """A level that the caller is not shown is not loaded, and keeps nothing else from it."""
        self.slides.hidden = {level(2).sop, level(3).sop}
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 64, 64)
        self.assertEqual((worker.small.tasks, self.places(2)), ([], set()))
        self.assertSquare(self.places(4), (0, 1), (0, 1))

    def test_by_size_of_the_slide(self) -> None:
        """A level is loaded whole if all of the slide takes no time: by its frames, by the last load, by how many slides are read."""
        size = len(b"frame 8257")
        frames = sum(facts.frames for facts in FACTS.values() if facts.frames > 1)
        for rate, others, whole in (
            (frames * size / 4.9, 0, 1),
            (frames * size / 5.1, 0, 0),
            (frames * size / 4.9, 1, 0),
        ):
            self.setUp()
            worker = self.worker()
            self.look(worker, 3, 1, 1)  # opens it
            worker.scheduler.loads._rates[INSTANCE.origin] = rate, 1.0
            for number in range(others):
                assert worker.scheduler.ahead is not None
                worker.scheduler.ahead._read[level(1).of_study] = self.clock.seconds() - number
            self.look(worker, 1, 64, 64)
            self.assertEqual(len(worker.whole.tasks), whole, (rate, others))
            self.now(worker.scheduler.stop())

    def test_rate(self) -> None:
        """How fast a store is is known from the last load that was large enough, for a while."""
        worker = self.worker()
        usual = worker.scheduler.loads.seconds(self.wanted(1), 50_000_000)
        for size in (runner.TELLING_BYTES - 1, runner.TELLING_BYTES):
            self.look(worker, 2, 20, 20)
            self.clock.advance(10)
            worker.whole.ends.pop().callback(Loaded(1600, size, JPEG))
            seconds = worker.scheduler.loads.seconds(self.wanted(1), 50_000_000)
            self.assertEqual(seconds, usual if size < runner.TELLING_BYTES else 10 * 50_000_000 / size)
            self.now(worker.reader.invalidation.invalidate(level(2).scope))
        self.clock.advance(runner.RATE_SECONDS)
        self.assertEqual(worker.scheduler.loads.seconds(self.wanted(1), 50_000_000), usual)

    def test_read_lately(self) -> None:
        """Slides that nobody reads any more are forgotten: which are being read is looked at with each miss."""
        worker = self.worker()
        assert worker.scheduler.ahead is not None
        for number in range(100):
            one = attrs.evolve(level(1), series=f"1.2.9.{number}")
            wanted = FrameRequest(self.origin, one, (1,), self.caller())  # type: ignore[arg-type]
            worker.scheduler.ahead.around(slides.Seen(wanted, FACTS[level(1).sop], b"", 100, [1], False, dear=True))
            self.clock.advance(1)
        self.assertEqual(len(worker.scheduler.ahead._read), slides.READING_SECONDS)

    def test_large_overview(self) -> None:
        """A picture of one frame that no block would hold is not loaded unasked."""
        found = level_json(
            level(OVERVIEW).sop, OVERVIEW, 8001, 256, 1, _00280010=[8001], _00080008=["", "", "OVERVIEW"]
        )
        levels = store._levels()[:-1]
        self.patch(store, "_levels", lambda: [*levels, found])
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 50, 60)
        self.assertEqual(self.places(OVERVIEW), set())
        self.assertSquare(self.places(4), (0, 1), (0, 1))

    def test_stopped(self) -> None:
        """At an orderly stop all of it ends."""
        self.origin.held = []
        worker = self.worker(whole_instance=False)
        self.look(worker, 1, 64, 64)
        self.assertGreater(len(worker.jobs.running), 1)
        self.now(worker.scheduler.stop())
        self.assertEqual(worker.jobs.running, [])
        self.assertEqual(self.flushLoggedErrors(), [])
