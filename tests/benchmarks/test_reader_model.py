"""The model on which prefetch rules are tried: small cases, counted by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from tests.benchmarks import reader_model
from tests.benchmarks.model.policies import PYRAMID, no_whole_loads
from tests.benchmarks.model.proxy import METADATA_BYTES, Policy, Proxy
from tests.benchmarks.model.rules import AfterMisses, LookAhead, NeighbouringLevels, SlicesAhead, SmallLevels
from tests.benchmarks.model.series import Series, places, pyramid, stack
from tests.benchmarks.model.store import Events, SharedLine, Store
from tests.benchmarks.reader_model import Case
from tests.benchmarks.readers import AHEAD, FIRST, JUMP, SOON, ZOOM, Answer, Done, Item, Outcome, Reader, cause
from tests.benchmarks.viewing import Level, Screen, reading, scroll

ROW = Series((Level("row", 1, 40, 1),), 1000)


class Run:
    """Screens read through a proxy, from a store with 0.1 s of latency and 1 MB/s."""

    def __init__(self, series: Series, policy: Policy, *paths: Sequence[Screen], capacity: float = 1e9) -> None:
        self.events = Events()
        self.store = Store(self.events, SharedLine(self.events, 1e6), 0.1)
        self.proxy = Proxy(self.events, self.store, places([series]), policy, capacity)
        self.readers = [
            Reader(f"r{n}", path, self.events, self.proxy.ask, n * 10.0).begin() for n, path in enumerate(paths)
        ]
        self.events.run()
        self.outcome = Outcome.of(self.readers, self.store.sent, lambda _: series.frame_bytes)

    @property
    def waited(self) -> int:
        return sum(tile.cause is not None for tile in self.outcome.tiles)


def walk(level: Level, frames: Sequence[int], dwell: float = 1.0) -> list[Screen]:
    """One frame after the other."""
    return [Screen(level, (frame,), dwell, first=not place) for place, frame in enumerate(frames)]


class StoreTests(SynchronousTestCase):
    """The store's latency, and its line."""

    def test_shared(self) -> None:
        """Two transfers get half the line each while both last."""
        events = Events()
        line = SharedLine(events, 100.0)
        ends: list[tuple[str, float]] = []
        line.send(100, 1.0, lambda: ends.append(("first", events.now())))
        events.later(0.5, lambda: line.send(100, 1.0, lambda: ends.append(("second", events.now()))))
        events.run()
        self.assertEqual(ends, [("first", 1.5), ("second", 2.0)])

    def test_weights(self) -> None:
        """A transfer of three times the weight gets three times as much."""
        events = Events()
        line = SharedLine(events, 100.0)
        ends: list[float] = []
        for weight in (1.0, 3.0):
            line.send(75, weight, lambda: ends.append(events.now()))
        events.run()
        self.assertEqual(ends, [1.0, 1.5])

    def test_latency_and_pieces(self) -> None:
        """Pieces of one answer come one after the other, after the latency; bytes are counted."""
        events = Events()
        store = Store(events, SharedLine(events, 100.0), 0.5)
        came: list[tuple[int, float]] = []
        store.stream((50, 100), lambda number: came.append((number, events.now())))
        events.run()
        self.assertEqual((came, store.sent, store.requests), ([(0, 1.0), (1, 2.0)], 150, 1))


class ProxyTests(SynchronousTestCase):
    """The cache, and who waits for what."""

    def test_metadata_first(self) -> None:
        """Without a rule every tile waits, the first for metadata, too; a second reader waits for metadata only."""
        run = Run(ROW, Policy("off"), walk(ROW.levels[0], (1, 2, 3)), walk(ROW.levels[0], (1, 2, 3)))
        self.assertEqual([tile.hit for tile in run.outcome.tiles], [False] * 3 + [True] * 3)
        self.assertEqual((run.waited, run.store.requests), (4, 5))
        self.assertAlmostEqual(run.outcome.screens[0], 0.1 + 0.004 + 0.1 + 0.001 + 0.002)
        self.assertEqual(run.outcome.useful, 3000)
        beside = Run(ROW, Policy("beside", beside=True), walk(ROW.levels[0], (1, 2, 3)))
        self.assertEqual(beside.store.requests, 3)

    def test_capacity(self) -> None:
        """What the cache has no room for is read again."""
        frames = (1, 2, 3, 1)
        self.assertEqual(Run(ROW, Policy("off"), walk(ROW.levels[0], frames)).store.requests, 4)
        self.assertEqual(Run(ROW, Policy("off"), walk(ROW.levels[0], frames), capacity=2000).store.requests, 5)

    def test_slots(self) -> None:
        """With one place at the origin six tiles come one after the other."""
        path = [Screen(ROW.levels[0], (1, 2, 3, 4, 5, 6), 0.0)]
        run = Run(ROW, Policy("one", beside=True, slots=1), path)
        self.assertAlmostEqual(run.outcome.screens[0], 6 * 0.101 + 0.002)
        self.assertLess(Run(ROW, Policy("six", beside=True, slots=6), path).outcome.screens[0], 0.12)

    def test_joining(self) -> None:
        """A tile that a load has asked for is read once where callers join, else twice."""
        path = walk(ROW.levels[0], (1, 2), dwell=0.0)
        reads = {
            join: Run(ROW, Policy("", lambda: (LookAhead(1),), join=join), path).store.sent - METADATA_BYTES
            for join in (False, True)
        }
        self.assertEqual(reads, {False: 4000, True: 3000})  # 1, 2 and the one after 2


class RuleTests(SynchronousTestCase):
    """What rules load, on paths where it can be counted."""

    def test_look_ahead(self) -> None:
        """Of ten tiles side by side all wait without a rule, and only the first with a ring around what is asked for."""
        path = walk(ROW.levels[0], range(1, 11))
        self.assertEqual(Run(ROW, Policy("off"), path).waited, 10)
        run = Run(ROW, Policy("ring", lambda: (LookAhead(4),)), path)
        self.assertEqual((run.waited, run.outcome.tiles[0].cause), (1, FIRST))
        self.assertEqual(run.store.sent, 14 * 1000 + METADATA_BYTES)

    def test_early(self) -> None:
        """What lies around a miss comes with it where it is asked for beside it, and after it where it is not."""
        path = [Screen(ROW.levels[0], (10,), 0.0), Screen(ROW.levels[0], (11,), 0.0)]
        waits = {
            early: Run(
                ROW, Policy("", lambda: (LookAhead(2),), join=True, early=early, beside=True), path
            ).outcome.screens[1]
            for early in (False, True)
        }
        self.assertLess(waits[True], 0.02)
        self.assertGreater(waits[False], 0.1)

    def test_slides(self) -> None:
        """Levels of a slide above a limit are not loaded whole, but for small ones."""
        slide, path = pyramid("p", 60, 2), walk(pyramid("p", 60, 2).levels[0], (1000,))
        for limit, requests in ((slide.size - 1, 1), (slide.size, 2)):
            rules = partial(lambda limit: (AfterMisses(block=0, slide_limit=limit),), limit)
            self.assertEqual(Run(slide, Policy("", rules, beside=True), path).store.requests, requests)

    def test_direction(self) -> None:
        """The ring reaches further where the reader goes to: at one tile in 12 ms two are too few."""
        path = walk(ROW.levels[0], range(1, 31), dwell=0.01)
        near, far = (
            Policy("", partial(lambda further: (LookAhead(2, further),), further), join=True) for further in (0, 10)
        )
        self.assertGreater(Run(ROW, near, path).waited, Run(ROW, far, path).waited)

    def test_whole(self) -> None:
        """Today's rules load the whole instance after its first miss, and once; above a limit a block."""
        path = walk(ROW.levels[0], range(1, 41))
        run = Run(ROW, Policy("today", lambda: (AfterMisses(),)), path)
        self.assertEqual((run.waited, run.store.sent), (1, 41_000 + METADATA_BYTES))
        wide = Series((Level("wide", 1, 2000, 1),), 1000)
        block = Run(wide, Policy("block", lambda: (AfterMisses(1024, block=8),)), walk(wide.levels[0], (100,)))
        self.assertEqual(block.store.sent, 9000 + METADATA_BYTES)

    def test_levels(self) -> None:
        """Zooming in at one place waits at each level without a rule, not with the neighbouring levels loaded."""
        slide = pyramid("p", 60, 2)
        fine, middle = slide.levels[:2]
        path = [*walk(middle, (15 * 30 + 15 + 1,), 3.0), *walk(fine, (30 * 60 + 30 + 1,))]
        self.assertEqual(Run(slide, Policy("off"), path).waited, 2)
        # The metadata of the finer level are not known before.
        near = Policy("levels", lambda: (NeighbouringLevels(2),))
        self.assertEqual(Run(slide, near, path).readers[0].tiles[1].hit, True)

    def test_small_levels(self) -> None:
        """At the first request all small levels are loaded, whichever it was for."""
        slide = pyramid("p", 30, 2)
        run = Run(slide, Policy("small", lambda: (SmallLevels(300),)), walk(slide.levels[0], (1,)))
        small = sum(level.rows * level.columns for level in slide.levels[1:])
        self.assertEqual(run.store.sent, METADATA_BYTES + slide.frame_bytes * (1 + small))

    def test_slices(self) -> None:
        """Of twenty slices only the first waits with slices loaded ahead, and those behind are there for the way back."""
        slices = stack("s", 60, 1000)
        path = [Screen(slices.levels[30 + n], (1,), 0.5, "forwards", waits=False) for n in range(20)]
        back = [Screen(slices.levels[29 - n], (1,), 0.5, "back", waits=False) for n in range(3)]
        self.assertEqual(Run(slices, Policy("off", beside=True), path).waited, 20)
        rule = Policy("ahead", lambda: (SlicesAhead(5, 3),), beside=True)
        run = Run(slices, rule, [*path, *back])
        self.assertEqual([tile.hit for tile in run.outcome.tiles].count(False), 1)
        self.assertEqual(len([1 for tile in run.outcome.tiles if tile.cause]), 2)  # one proof for the series


class ModelTests(SynchronousTestCase):
    """Whole runs."""

    case = Case("pyramid", "halved", moves=25)

    def test_deterministic(self) -> None:
        """The same seed gives the same outcome, another one another."""
        policy = no_whole_loads()
        first, again, other = (reader_model.run(self.case, policy, seed, 0.08, 50e6, 1e9) for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_nothing_twice(self) -> None:
        """With joining, and no whole loads, every byte of a frame is read once."""
        slide = pyramid("p", 60, 2)
        rules = Policy("", lambda: (LookAhead(3, 3), NeighbouringLevels(3)), join=True, beside=True)
        paths = [list(reading(seed, slide.levels, 12)) for seed in (1, 2)]
        run = Run(slide, rules, *paths)
        frames = sum(not run.proxy.missing((one.name, n + 1)) for one in slide.levels for n in range(one.rows**2))
        proofs = run.store.sent - frames * slide.frame_bytes
        self.assertIn(proofs, [count * METADATA_BYTES * len(slide.levels) for count in (0, 1, 2)])

    def test_loads_help(self) -> None:
        """On a reading of a slide the rules for series leave fewer waits than today's, and read less."""
        today, series = (reader_model.run(self.case, one, 1, 0.08, 50e6, 1e9) for one in (PYRAMID[1], PYRAMID[-1]))
        direct = reader_model.run_direct(self.case, 1, 0.08, 50e6)
        self.assertLess(series.waited, today.waited)
        self.assertLess(today.waited, direct.waited)
        self.assertLess(series.read, today.read)


class PathTests(SynchronousTestCase):
    """What readers do, and why they wait."""

    levels = pyramid("p", 100, 4).levels

    def test_reading(self) -> None:
        """A reading begins with all of the slide, and has moves of every kind; the same seed makes the same."""
        screens = list(reading(4, self.levels, 80))
        self.assertEqual({screen.move for screen in screens}, {"overview", "zoom", "pan", "jump", "return"})
        self.assertEqual(sum(screen.first for screen in screens), len(self.levels))
        self.assertEqual(screens, list(reading(4, self.levels, 80)))
        self.assertNotEqual(screens, list(reading(5, self.levels, 80)))

    def test_scroll(self) -> None:
        """A reader of a stack goes from slice to slice, both ways, at most 25 a second, and waits for none."""
        slices = stack("s").levels
        screens = list(scroll(3, slices, 200))
        places = [slices.index(screen.level) for screen in screens]
        self.assertEqual({abs(one - other) for one, other in itertools.pairwise(places)}, {1})
        self.assertEqual({screen.move for screen in screens}, {"forwards", "back"})
        self.assertEqual((len(screens), [screen.first for screen in screens].count(True)), (200, 1))
        self.assertTrue(all(screen.dwell >= 0.04 and not screen.waits for screen in screens))

    def test_causes(self) -> None:
        """Each tile that waits has one cause."""
        level = self.levels[0]
        said = [
            cause(Screen(level, (1,), 0.0, move, first), soon)
            for move, first, soon in (
                ("zoom", True, True),
                ("pan", False, True),
                ("zoom", False, False),
                ("return", False, False),
                ("back", False, False),
            )
        ]
        self.assertEqual(said, [FIRST, SOON, ZOOM, JUMP, AHEAD])

    def test_not_known(self) -> None:
        """Where it is not known what a load was about to bring, tiles count as nearly there beside as many hits."""
        self.assertEqual(self._causes(True, False), [SOON, SOON])
        self.assertEqual(self._causes(True, False, False), [AHEAD] * 3)

    def _causes(self, *hits: bool) -> list[str | None]:
        """Of the tiles of one screen, all of which come late."""
        events, answers = Events(), iter(hits)

        def ask(_reader: str, item: Item, done: Done) -> None:
            events.later(item[1] * 0.1, lambda: done(Answer(hit=next(answers))))

        frames = tuple(range(1, len(hits) + 1))
        reader = Reader("r", [Screen(self.levels[0], frames, 0.0)], events, ask).begin()
        events.run()
        return [tile.cause for tile in reader.tiles]
