"""Block and display loads: claims, order, sizes of requests, and the frames that they bring."""

from __future__ import annotations

import math

import attrs
from twisted.internet.defer import CancelledError, Deferred

from tests.frames.support import INSTANCE
from tests.prefetch.support import SLIDE, PrefetchCase, content
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.frames.entries import expires_of, frame_name, pack_frames
from twistedproxy.origin.interface import Priority
from twistedproxy.prefetch.jobs import LoadFailed
from twistedproxy.prefetch.region_load import CLAIM_SECONDS, SIDE_BY_SIDE, RegionLoad
from twistedproxy.prefetch.regions import NEAREST_FRAMES


class RegionCase(PrefetchCase):
    """One load by itself."""

    def load(self) -> RegionLoad:
        return RegionLoad(
            self.cache,
            self.clock,
            self.wanted(1),
            self.origin.metadata_value,
            self.fence(),
            3600.0,
            Priority.BLOCK,
            lambda frames, size: self.told.append((frames, size)),
        )

    def setUp(self) -> None:
        super().setUp()
        self.told: list[tuple[int, int]] = []

    def put(self, *numbers: int) -> None:
        entries = pack_frames([content(number) for number in numbers], self.origin.syntax, math.inf)
        self.now(self.cache.put_many(INSTANCE, self.fence(), dict(zip(map(frame_name, numbers), entries)), 3600.0))

    def claimed(self, load: RegionLoad, *numbers: int, stop: bool = False) -> list[int]:
        won: list[int] = self.now(load.claim(numbers, stop_at_claimed=stop))
        return won


class ClaimTests(RegionCase):
    """Only frames that are neither cached nor claimed are taken."""

    def test_cached_and_claimed(self) -> None:
        """What is cached or another's is left out, and the order stays."""
        self.put(3)
        self.assertEqual(self.claimed(self.load(), 5, 4), [5, 4])
        load = self.load()
        self.assertEqual(self.claimed(load, 6, 5, 4, 3, 2), [6, 2])
        self.assertEqual(load.claims_lost, 2)

    def test_fewer_than_two(self) -> None:
        """Fewer than two left: nothing to do, and nothing stays claimed."""
        self.put(1, 2)
        self.assertEqual(self.claimed(self.load(), 1, 2, 3), [])
        first = self.load()
        self.assertEqual(self.claimed(first, 4, 5), [4, 5])
        self.assertEqual(self.claimed(self.load(), 4, 5, 6), [])
        self.assertEqual(self.claimed(self.load(), 3, 6), [3, 6])

    def test_stop_at_claimed(self) -> None:
        """A display load whose first missing frame is another's does nothing, and claims nothing."""
        self.claimed(self.load(), 2, 3)
        self.put(1)
        self.assertEqual(self.claimed(self.load(), 1, 2, 3, 4, 5, stop=True), [])
        self.assertEqual(self.claimed(self.load(), 4, 5, 2, stop=True), [4, 5])

    def test_a_block_goes_on(self) -> None:
        """A block load whose first frame is another's loads the others."""
        self.claimed(self.load(), 1, 2)
        self.assertEqual(self.claimed(self.load(), 1, 2, 3, 4, 5), [3, 4, 5])

    def test_first_of_the_square_is_cached(self) -> None:
        """That the first frame of the square is cached stops no display load."""
        self.put(1)
        self.assertEqual(self.claimed(self.load(), 1, 2, 3, stop=True), [2, 3])

    def test_claims_of_the_dead(self) -> None:
        """The claims of a worker that is gone run out after five seconds."""
        self.claimed(self.load(), 1, 2)
        self.clock.advance(CLAIM_SECONDS - 0.1)
        self.assertEqual(self.claimed(self.load(), 1, 2), [])
        self.clock.advance(0.2)
        self.assertEqual(self.claimed(self.load(), 1, 2), [1, 2])

    def test_cancelled_while_claiming(self) -> None:
        """A load that is cancelled while it claims leaves no claim."""
        real = self.cache.claim
        waiting: Deferred[None] = Deferred()

        async def slow(*arguments: object) -> set[bytes]:
            won = await real(*arguments)  # type: ignore[arg-type]
            await waiting
            return won

        self.patch(self.cache, "claim", slow)
        claiming = Deferred.fromCoroutine(self.load().claim([1, 2], False))
        claiming.cancel()
        self.failureResultOf(claiming, CancelledError)
        self.patch(self.cache, "claim", real)
        self.assertEqual(self.claimed(self.load(), 1, 2), [1, 2])

    def test_a_claim_is_no_frame(self) -> None:
        """Who reads a claimed frame fetches it; nobody sees the claim."""
        self.claimed(self.load(), 1, 2)
        answer = self.ask(self.worker(prefetch=False), 1)
        self.assertEqual((answer.fetched, answer.frames[0].data), (1, content(1)))


class RunTests(RegionCase):
    """Loading what was claimed."""

    def test_requests(self) -> None:
        """Requests have the size that the origin serves best, in order, a few at once."""
        self.origin.per_request, self.origin.held = 10, []
        load = self.load()
        numbers = self.claimed(load, *range(1, 96))
        running = Deferred.fromCoroutine(load.run(numbers))
        self.assertEqual(len(self.origin.asked), SIDE_BY_SIDE)
        self.origin.release(1)
        self.assertEqual(len(self.origin.asked), SIDE_BY_SIDE + 1)
        while self.origin.held:
            self.origin.release()
        self.successResultOf(running)
        self.assertEqual([len(asked) for _, asked in self.origin.asked], [10] * 9 + [5])
        self.assertEqual(self.origin.numbers(Priority.BLOCK), numbers)
        self.assertEqual(self.cached(), set(range(1, 96)))
        self.assertEqual(self.told[-1], (95, sum(len(content(number)) for number in range(1, 96))))

    def test_claims_are_renewed(self) -> None:
        """Claims, of thousands too, are renewed while the load lives, and given back with each request and at the end."""
        self.origin.per_request, self.origin.held = 1000, []
        load = self.load()
        running = Deferred.fromCoroutine(load.run(self.claimed(load, *range(1, 5001))))
        for _ in range(12):
            self.clock.advance(1)
            self.assertEqual(self.claimed(self.load(), *range(1, 5001)), [])
        self.origin.release(1)
        self.now(self.cache.remove(INSTANCE, [frame_name(1), frame_name(2)]))
        self.assertEqual(self.claimed(self.load(), 1, 2), [1, 2])
        while self.origin.held:
            self.origin.release()
        self.successResultOf(running)
        self.now(self.cache.remove(INSTANCE, [frame_name(3), frame_name(4)]))
        self.assertEqual(self.claimed(self.load(), 3, 4), [3, 4])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_brought_meanwhile(self) -> None:
        """What others brought since it was claimed is not asked for; what is left is."""
        self.origin.per_request, self.origin.held = 4, []
        load = self.load()
        running = Deferred.fromCoroutine(load.run(self.claimed(load, *range(1, 25))))
        self.put(17, 18, *range(21, 25))
        while self.origin.held:
            self.origin.release()
        self.successResultOf(running)
        self.assertEqual(self.origin.numbers(Priority.BLOCK), [*range(1, 17), 19, 20])
        self.assertEqual((load.spared, len(self.cached())), (6, 24))

    def test_cancelled(self) -> None:
        """A load that is cancelled ends its requests and gives its claims back."""
        self.origin.per_request, self.origin.held = 2, []
        load = self.load()
        running = Deferred.fromCoroutine(load.run(self.claimed(load, *range(1, 25))))
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertEqual((self.origin.cancelled, self.clock.getDelayedCalls()), (SIDE_BY_SIDE, []))
        self.assertEqual(len(self.claimed(self.load(), *range(1, 25))), 24)

    def test_expiry(self) -> None:
        """Each frame says when its time in the cache ends."""
        self.clock.advance(100.0)
        load = attrs.evolve(self.load(), wall_clock=lambda: 1024.0 + self.clock.seconds())
        self.now(load.run([4, 5]))
        reading = self.now(self.cache.get_many(INSTANCE, [frame_name(4), frame_name(5)]))
        self.assertEqual([expires_of(entry) for entry in reading.entries.values()], [4724.0, 4724.0])

    def test_a_cache_that_takes_nothing(self) -> None:
        """When the cache takes no frames the load ends: the rest would be fetched in vain."""
        self.origin.per_request = 2
        load = self.load()
        numbers = self.claimed(load, *range(1, 101))

        async def full(*_arguments: object) -> bool:
            return False

        self.patch(self.cache, "put_many", full)
        self.failureResultOf(Deferred.fromCoroutine(load.run(numbers)), LoadFailed)
        self.assertLess(len(self.origin.asked), 10)


def square(metadata: InstanceMetadata, smallest: int, side: int, screen: int) -> set[int]:
    """The frames of a square around a request, worked out pixel size by pixel size, frame by frame."""
    rows = -(-(metadata.total_rows or 0) // metadata.rows)
    columns = -(-(metadata.total_columns or 0) // metadata.columns)
    plane, within = divmod(smallest - 1, rows * columns)
    found = []
    for place, size, count in ((within // columns, metadata.rows, rows), (within % columns, metadata.columns, columns)):
        length, half = -(-side // size), -(-(screen // 2) // size)
        start = max(0, place - (length - half) // 2) if length > half else place
        if start + length > count:
            start = max(0, count - length)
        found.append([n for n in range(start, start + length) if n < count])
    numbers = {plane * rows * columns + row * columns + column + 1 for row in found[0] for column in found[1]}
    return {number for number in numbers if number <= metadata.frames}


class EndToEndTests(PrefetchCase):
    """From the request to the frames in the cache."""

    def check(self, metadata: InstanceMetadata, *requests: tuple[int, ...], **settings: int) -> None:
        """After each request the cache holds the squares around all requests so far, and nothing was loaded twice."""
        self.setUp()
        self.origin.metadata_value = metadata
        worker = self.worker(whole_instance=False, display_min_frames=10, **settings)
        expected: set[int] = set()
        for request in requests:
            answer = self.ask(worker, *request)
            if answer.fetched * 2 >= len(request):
                expected |= square(metadata, min(request), 8000, 3000)
            expected |= set(request)
            self.assertEqual(self.cached(), expected)
        asked = [number for _, numbers in self.origin.asked for number in numbers]
        self.assertEqual(len(asked), len(set(asked)), "a frame was loaded twice")

    def test_everywhere(self) -> None:
        """Corners, edges and the middle."""
        self.check(SLIDE, (1,), (200,), (10_100,), (19_801,), (20_000,), (100, 101, 300))

    def test_panning(self) -> None:
        """Panning by half a screen at a time, along rows and down columns and back."""
        self.check(SLIDE, *((5000 + 6 * step,) for step in range(12)))
        self.check(SLIDE, *((100 + 200 * 6 * step,) for step in range(12)))
        self.check(SLIDE, *((19_000 - 200 * 6 * step - 6 * step,) for step in range(12)))

    def test_focal_planes(self) -> None:
        """Of three focal planes, the square stays in that of the request."""
        planes = attrs.evolve(SLIDE, frames=60_000)
        self.check(planes, (20_001,), (40_000,), (20_000,), (60_000,))

    def test_fewer_frames_than_the_grid(self) -> None:
        """Where NumberOfFrames is less than the grid, no frame past it is asked for."""
        self.check(attrs.evolve(SLIDE, frames=15_050), (15_040,), (15_050,), (14_801,))

    def test_large_frames(self) -> None:
        """Frames of 1,024 px."""
        large = attrs.evolve(SLIDE, rows=1024, columns=1024, frames=50 * 25)
        self.check(large, (1,), (625,), (1250,), (26,))

    def test_one_frame_a_request(self) -> None:
        """Where an origin serves one frame a request, a block with its display load takes the 64 nearest frames."""
        self.origin.per_request = 1
        worker = self.worker(whole_instance=False)
        self.ask(worker, 10_100)
        around = {10_100 + 200 * row + column for row in range(-4, 5) for column in range(-4, 5)}
        cached = self.cached()
        self.assertEqual(len(cached), NEAREST_FRAMES)
        self.assertTrue(cached <= around)

    def test_not_tiled(self) -> None:
        """An instance that is not tiled gets a run of as many frames as the square would hold, a quarter before."""
        loop = InstanceMetadata(frames=2000, rows=480, columns=640, transfer_syntax=SLIDE.transfer_syntax)
        self.origin.metadata_value = loop
        worker = self.worker(whole_instance=False)
        self.ask(worker, 1000)
        held = 17 * 13
        self.assertEqual(self.cached(), set(range(1000 - held // 4, 1000 - held // 4 + held)))

    def test_sparse(self) -> None:
        """A sparsely tiled instance is loaded whole or not at all."""
        self.origin.metadata_value = attrs.evolve(SLIDE, organization="TILED_SPARSE")
        self.ask(self.worker(whole_instance=False), 1)
        self.assertEqual(self.cached(), {1})
        worker = self.worker()
        self.ask(worker, 2)
        self.assertEqual(len(worker.whole.tasks), 1)

    def test_viewport_first(self) -> None:
        """The rows that are seen come first."""
        self.origin.per_request = 32
        worker = self.worker(whole_instance=False, display_min_frames=1 << 20)
        self.ask(worker, 10_100)
        rows = [(number - 1) // 200 for number in self.origin.numbers(Priority.BLOCK)]
        self.assertEqual(list(dict.fromkeys(rows))[:6], [50, 51, 52, 53, 54, 55])

    def test_one_screen_one_load(self) -> None:
        """Who comes to a screen that another worker loads starts no display load there."""
        self.origin.held = []
        first, second = self.worker(), self.worker()
        self.ask(first, 10_100)
        loading = len(self.origin.numbers(Priority.DISPLAY))
        self.assertGreater(loading, 100)
        self.ask(second, 10_101)
        self.assertEqual([job["kind"] for job in self.ended(second)], ["display"])
        self.assertEqual(len(self.origin.numbers(Priority.DISPLAY)), loading)

    def test_a_block_beside_others(self) -> None:
        """A block load takes what others have not claimed, also where that is its first frame; nobody's is taken twice."""
        names = [frame_name(number) for number in (2, 3, 300)]
        self.now(self.cache.claim(INSTANCE, names, b"somebody", 5.0))
        self.ask(self.worker(whole_instance=False, display_min_frames=1 << 20), 1)
        self.assertEqual(self.cached(), square(SLIDE, 1, 8000, 3000) - {2, 3, 300})

    def test_the_frames_of_the_request(self) -> None:
        """The frames of the request itself are left alone, also where they are not in the cache yet."""
        answer = self.ask(self.worker(prefetch=False), 1, 2)
        self.now(self.cache.remove(INSTANCE, [frame_name(1), frame_name(2)]))
        worker = self.worker(whole_instance=False)
        worker.scheduler.answered(self.wanted(1, 2), answer)
        self.clock.advance(0)
        self.assertEqual(self.cached(), square(SLIDE, 1, 8000, 3000) - {1, 2})

    def test_lifetime(self) -> None:
        """Frames of block and display loads end when ``frame-ttl`` has passed, and not before; below 0: never."""
        for seconds, left in ((600.0, 0), (None, 1024)):
            self.setUp()
            self.ask(self.worker(whole_instance=False, frame_ttl=seconds), 1)
            self.clock.advance(599)
            self.assertGreaterEqual(len(self.cached()), 1023)
            self.clock.advance(2)
            self.assertLessEqual(abs(len(self.cached()) - left), 1)  # the requested one is the reader's

    def test_what_is_on_its_way(self) -> None:
        """What a caller of this worker is fetching already is not loaded beside that."""
        held: list[Deferred[None]] = []
        real = self.origin.frames

        class Waiting:
            """The same origin, slow for callers."""

            url, per_request = self.origin.url, 100
            metadata, frames_per_request = self.origin.metadata, self.origin.frames_per_request

            async def frames(inner, instance: object, numbers: object, *more: object, **named: object) -> object:
                if Priority.CALLER in more:
                    held.append(Deferred())
                    await held[-1]
                return await real(instance, numbers, *more, **named)  # type: ignore[arg-type]

        self.origin.metadata_value = SLIDE
        worker = self.worker(whole_instance=False)
        wanted = attrs.evolve(self.wanted(2), origin=Waiting())
        first = Deferred.fromCoroutine(worker.reader.read(attrs.evolve(wanted, numbers=(2, 3))))
        second = Deferred.fromCoroutine(worker.reader.read(attrs.evolve(wanted, numbers=(1,))))
        held[1].callback(None)
        self.clock.advance(0)
        self.successResultOf(second)
        self.assertEqual(self.cached(), square(SLIDE, 1, 8000, 3000) - {2, 3})
        held[0].callback(None)
        self.successResultOf(first)
        self.assertEqual(len(self.origin.numbers(Priority.BLOCK, Priority.DISPLAY)), 32 * 32 - 3)
