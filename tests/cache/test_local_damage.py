"""Files of a local cache that something else has written to: a miss, never wrong bytes, and never an end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from tests.cache.folders import FolderCase, an_hour_ago, get, noise, put
from tests.cache.members import instance
from twistedproxy.cache.local import facts, generations, index
from twistedproxy.cache.local.cache import LocalCache

COUNT = 300
ENTRIES = {b"F%03d" % number: noise(5000, number) for number in range(COUNT)}


class Clock:
    """Seconds since the epoch, an hour ago until it is set right."""

    behind = True

    def __call__(self) -> float:
        return an_hour_ago() + (0.0 if self.behind else 3600.0)


class DamageCase(FolderCase):
    """A cache with `ENTRIES`, all in the first segment and those after it, and one that was written just now."""

    async def filled(self) -> LocalCache:
        clock = Clock()
        cache = await self.open(wall_clock=clock)
        await put(cache, ENTRIES)
        clock.behind = False
        await put(cache, {b"Fnew": b"new", b"g1": b"fact"})
        return cache

    def overwrite(self, path: Path, start: int = 0, size: Optional[int] = None) -> None:
        """Write noise to a file, in its place."""
        size = path.stat().st_size - start if size is None else size
        with path.open("r+b") as file:
            file.seek(start)
            file.write(noise(size, 99))


class IndexTests(DamageCase):
    """What is made anew from the segments."""

    async def assertMadeAnew(self) -> LocalCache:
        """The next proxy makes the index anew; what was written last is not in it."""
        cache = await self.open()
        self.assertEqual(len(self.logged("cache_rebuilding")), 1)
        await self.rebuilt()
        self.assertEqual(await get(cache, *ENTRIES, b"Fnew", b"g1"), ENTRIES)
        self.assertTrue(await put(cache, {b"Fnew": b"newer"}))
        self.assertEqual(await get(cache, b"Fnew"), {b"Fnew": b"newer"})
        return cache

    async def test_noise(self) -> None:
        """The index, or the table of facts, was overwritten between two proxies; also just a part of it."""
        for name, start, size in ((index.NAME, 0, None), (index.NAME, 5000, 3), (facts.NAME, 0, 8192)):
            self.folder = self.another()
            self.events.clear()
            cache = await self.filled()
            await cache.stop()
            self.overwrite(self.folder / name, start, size)
            await (await self.assertMadeAnew()).stop()

    async def test_noise_after_a_kill(self) -> None:
        """There is no checksum then: a process of its own finds out."""
        cache = await self.filled()
        await cache.stop()
        proxy = await self.member(own=True)
        await proxy.kill()
        self.overwrite(self.folder / index.NAME)
        await self.assertMadeAnew()
        self.assertEqual(len(self.logged("cache_damaged")), 1)

    async def test_gone(self) -> None:
        """The index was deleted."""
        await (await self.filled()).stop()
        os.unlink(self.folder / index.NAME)
        await self.assertMadeAnew()

    async def test_the_last_counts(self) -> None:
        """Of entries with one name the last is in the new index, and none that was taken back or invalidated."""
        clock = Clock()
        cache = await self.open(wall_clock=clock)
        for value in (b"first", b"second", b"third"):
            await put(cache, {b"F1": value, b"F2": value})
            await put(cache, {b"F1": value}, 2)
        await cache.remove(instance(1), [b"F2"])
        await cache.invalidate(instance(2).scope)
        clock.behind = False
        await put(cache, {b"Fnew": b"new"})
        await cache.stop()
        self.overwrite(self.folder / index.NAME)
        cache = await self.open()
        await self.rebuilt()
        self.assertEqual(await get(cache, b"F1", b"F2"), {b"F1": b"third"})
        self.assertEqual(await get(cache, b"F1", b"F2", number=2), {})

    async def test_stopped_meanwhile(self) -> None:
        """An index that was not finished is not believed at the next start."""
        await (await self.filled()).stop()
        os.unlink(self.folder / index.NAME)
        await (await self.open()).stop()
        self.events.clear()
        await self.assertMadeAnew()


class JournalTests(DamageCase):
    """The journal of invalidations is damaged: what it said is not known."""

    async def test_closed(self) -> None:
        """Between two proxies: nothing that was cached is used, and the cache works."""
        for start in (0, 40):
            cache = await self.filled()
            await cache.invalidate(instance(2).scope)
            await cache.stop()
            self.overwrite(self.folder / generations.NAME, start, 16)
            cache = await self.open()
            self.assertEqual(await get(cache, *ENTRIES, b"Fnew", b"g1"), {})
            self.assertTrue(await put(cache, {b"F1": b"one", b"g1": b"fact"}))
            self.assertEqual(await get(cache, b"F1", b"g1"), {b"F1": b"one", b"g1": b"fact"})
            await cache.stop()

    async def test_open(self) -> None:
        """In use: nothing is read and nothing written, and nothing is raised."""
        cache = await self.filled()
        self.overwrite(self.folder / generations.NAME, 0, 16)
        self.assertIsNone((await cache.get_many(instance(1), list(ENTRIES))).fence)
        self.assertEqual(await cache.present(instance(1), list(ENTRIES)), set())
        self.assertFalse(await cache.put_many(instance(1), bytes(8), {b"F1": b"one"}, 60.0))


class SegmentTests(DamageCase):
    """Segments that are not what was written."""

    def cut(self, path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def zeros(self, path: Path) -> None:
        size = path.stat().st_size
        os.truncate(path, size // 3)
        os.truncate(path, size)

    def middle(self, path: Path) -> None:
        self.overwrite(path, 40_000, 300_000)

    def all(self, path: Path) -> None:
        self.overwrite(path)

    def gone(self, path: Path) -> None:
        path.unlink()

    def ways(self) -> list[Callable[[Path], None]]:
        return [self.cut, self.zeros, self.middle, self.all, self.gone]

    async def assertWorks(self, cache: LocalCache) -> None:
        """What is damaged is a miss; written again it is there, and segments are dropped as ever."""
        found = await get(cache, *ENTRIES)
        self.assertEqual(found, {name: ENTRIES[name] for name in found})
        self.assertLess(len(found), COUNT)
        self.assertTrue(await put(cache, ENTRIES))
        self.assertEqual(await get(cache, *ENTRIES), ENTRIES)
        for number in range(70):
            self.assertTrue(await put(cache, {b"F%d" % number: b"x" * 1_000_000}, 3))
        self.assertEqual(await get(cache, *ENTRIES), {})
        self.assertFalse(self.segment().exists())

    async def test_open(self) -> None:
        """Damaged while they are in use, by readers that have them open and by those that have not."""
        for way in self.ways():
            self.folder = self.another()
            cache = await self.filled()
            await get(cache, b"F000")
            way(self.segment())
            other = await self.member()
            found = await other.get(1, *ENTRIES)
            self.assertEqual(found, {name: ENTRIES[name] for name in found})
            if way != self.gone:  # who has it open reads on
                await self.assertWorks(cache)
            await other.kill()
            await cache.stop()

    async def test_closed(self) -> None:
        """Damaged between two proxies."""
        for way in self.ways():
            self.folder = self.another()
            await (await self.filled()).stop()
            way(self.segment())
            cache = await self.open()
            await self.assertWorks(cache)
            await cache.stop()
