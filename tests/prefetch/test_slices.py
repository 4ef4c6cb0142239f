"""Block and display loads ask the cache about a slice of their frames at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from tests.frames.support import INSTANCE
from tests.prefetch.test_region_load import RegionCase
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name
from twistedproxy.prefetch.region_load import CLAIM_SECONDS, SLICE, SLICE_OF_CLAIMS


class SteppedCache:
    """The cache of a test, whose answers about presence and claims wait for `step`; it remembers how many it was asked."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.waiting: list[Deferred[None]] = []
        self.asked: list[int] = []
        self.returned: list[int] = []

    async def _wait(self, names: Collection[bytes], sizes: list[int]) -> None:
        sizes.append(len(names))
        self.waiting.append(Deferred())
        await self.waiting[-1]

    async def present(self, instance: Instance, names: Collection[bytes]) -> Any:
        await self._wait(names, self.asked)
        return await self._cache.present(instance, names)

    async def claim(self, instance: Instance, names: Collection[bytes], *more: Any) -> Any:
        await self._wait(names, self.asked)
        return await self._cache.claim(instance, names, *more)

    async def renew_claims(self, instance: Instance, names: Collection[bytes], *more: Any) -> None:
        await self._wait(names, self.returned)
        await self._cache.renew_claims(instance, names, *more)

    async def unclaim(self, instance: Instance, names: Collection[bytes], *more: Any) -> None:
        await self._wait(names, self.returned)
        await self._cache.unclaim(instance, names, *more)

    def step(self, index: int = 0) -> None:
        """Answer one question, the oldest."""
        self.waiting.pop(index).callback(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class SliceTests(RegionCase):
    """Other work runs between slices, and what is claimed stays the same."""

    def setUp(self) -> None:
        super().setUp()
        self.plain = self.cache
        self.stepped = SteppedCache(self.cache)
        self.cache = self.stepped  # type: ignore[assignment]

    def claiming(self, numbers: Collection[int], stop: bool = False) -> Deferred[list[int]]:
        return Deferred.fromCoroutine(self.load().claim(list(numbers), stop_at_claimed=stop))

    def finish(self) -> None:
        """Answer until nothing is asked any more, each question of the one after one of the other."""
        while self.stepped.waiting:
            self.stepped.step()

    def claims(self) -> list[int]:
        """Which of the first 300 frames are claimed."""
        return sorted({*range(1, 301)}.difference(self.others_claims(range(1, 301))))

    def others_claims(self, numbers: Collection[int]) -> list[int]:
        """Which of *numbers* somebody else could claim now."""
        names = [frame_name(number) for number in numbers]
        won = self.now(self.plain.claim(INSTANCE, names, b"somebody", 0.001))
        self.now(self.plain.unclaim(INSTANCE, names, b"somebody"))
        return [number for number in numbers if frame_name(number) in won]

    def test_slices(self) -> None:
        """Hundreds of frames are looked for, claimed and given back a slice at a time, one after the other."""
        claiming = self.claiming(range(1, 1001))
        self.assertEqual(len(self.stepped.waiting), 1)
        self.finish()
        self.assertEqual(self.successResultOf(claiming), list(range(1, 1001)))
        self.assertEqual(self.others_claims(range(1, 1002)), [1001])
        lost = self.claiming(range(1, 1002))
        self.finish()
        self.assertEqual(self.successResultOf(lost), [])
        self.assertLessEqual(max(self.stepped.asked), SLICE)
        self.assertLessEqual(max(self.stepped.returned), SLICE_OF_CLAIMS)
        self.assertEqual(self.others_claims(range(1, 1002)), [1001])

    def test_two_screens_at_once(self) -> None:
        """Of two display loads of one screen that claim at the same time, one gets all of it and the other nothing."""
        one, two = self.claiming(range(1, 301), stop=True), self.claiming(range(1, 301), stop=True)
        while len(self.claims()) < SLICE:
            self.stepped.step()
        self.stepped.step()
        self.stepped.step(-1)  # the second would be the faster one from here on
        self.finish()
        self.assertEqual(self.successResultOf(one), list(range(1, 301)))
        self.assertEqual(self.successResultOf(two), [])

    def test_a_cache_that_takes_its_time(self) -> None:
        """Claims are renewed while further slices are claimed: the first ones outlive the last."""
        numbers = range(1, 40 * SLICE + 1)
        claiming = self.claiming(numbers)
        while not claiming.called:
            self.clock.advance(CLAIM_SECONDS / 30)
            self.stepped.step()
        self.assertEqual(self.successResultOf(claiming), list(numbers))
        self.assertEqual(self.others_claims(numbers), [])

    def test_cancelled_between_slices(self) -> None:
        """A load that is cancelled after some slices leaves no claim."""
        claiming = self.claiming(range(1, 301))
        for _ in range(2 * (300 // SLICE + 1) - 1):
            self.stepped.step()
        self.assertNotEqual(self.claims(), [])
        claiming.addErrback(lambda _: None)
        claiming.cancel()
        self.finish()
        self.assertEqual(self.claims(), [])

    def test_a_cache_in_this_process(self) -> None:
        """Such a cache answers at once; then the reactor has its turn between slices that took time together."""
        self.cache = self.plain
        real, asked = self.plain.present, []

        async def slow(instance: Instance, names: Sequence[bytes]) -> set[bytes]:
            asked.append(len(names))
            self.clock.rightNow += 0.01
            return await real(instance, names)

        self.patch(self.plain, "present", slow)
        claiming = self.claiming(range(1, 2 * SLICE + 1))
        self.assertNoResult(claiming)
        self.assertEqual(asked, [SLICE])
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(claiming), list(range(1, 2 * SLICE + 1)))
