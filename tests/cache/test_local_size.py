"""How much a local cache takes, and what stays in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.cache.folders import FolderCase, get, noise, put
from tests.cache.members import instance
from twistedproxy.cache.local.store import SegmentStore

SIZE = 16 << 20
FRAME = noise(9000)


def frames(first: int, count: int = 100) -> dict[bytes, bytes]:
    """Some frames of 9 kB, each with bytes of its own."""
    return {b"F%d" % number: b"%8d" % number + FRAME for number in range(first, first + count)}


class SizeTests(FolderCase):
    """The bound."""

    async def test_churn(self) -> None:
        """While ten times the size is written by two processes, all files together never have more than the size; at the end
        they have 90 % of it, and what was written last is there."""
        cache = await self.open(SIZE)
        other = await self.member(SIZE)
        most = 0
        for first in range(0, 10 * SIZE // 9000, 100):
            if first % 1000:
                self.assertTrue(await put(cache, frames(first)))
            else:
                self.assertTrue(await other.put(1, frames(first)))
            most = max(most, self.files_size())
        self.assertLessEqual(most, SIZE)
        self.assertGreaterEqual(self.files_size(), 0.9 * SIZE)
        self.assertEqual(await get(cache, *frames(first)), frames(first))
        self.assertGreater(len(await cache.present(instance(1), [b"F%d" % n for n in range(first)])), 700)
        status = await cache.status()
        self.assertLessEqual(status["used_bytes"], SIZE)  # type: ignore[operator]
        self.assertGreater(status["evicted"], 15_000)  # type: ignore[operator]

    async def test_large_entries(self) -> None:
        """Entries larger than a segment have one of their own; one that would take most of the cache is not taken."""
        cache = await self.open(SIZE)
        for number in range(30):
            self.assertTrue(await put(cache, {b"F%d" % number: b"%2d" % number * 500_000}))
            self.assertLessEqual(self.files_size(), SIZE)
        self.assertEqual(await get(cache, b"F29"), {b"F29": b"29" * 500_000})
        self.assertFalse(await put(cache, {b"F30": bytes(SIZE // 2)}))
        self.assertEqual(await get(cache, b"F29", b"F30"), {b"F29": b"29" * 500_000})

    async def test_second_chance(self) -> None:
        """What is asked for while its segment is old outlives that segment, also again; what is not is dropped with it."""
        cache = await self.open(SIZE)
        await put(cache, frames(0))
        hot = {name: value for number, (name, value) in enumerate(frames(0).items()) if number % 10 == 0}
        for first in range(100, 3 * SIZE // 9000, 100):
            await put(cache, frames(first))
            await cache._upkeep.look()
            self.assertEqual(await get(cache, *hot), hot)
            await cache._upkeep.look()
        self.assertEqual(await get(cache, *frames(0)), hot)
        self.assertGreaterEqual((await cache.status())["second_chances"], 2 * len(hot))  # type: ignore[operator]

    async def test_a_full_disk(self) -> None:
        """On a disk that is smaller than the size nothing is raised, and what is new is kept in the place of the oldest."""
        self.folder.mkdir(mode=0o700)
        self.mount("size=16m")
        cache = await self.open(64 << 20)
        taken = 0
        for first in range(0, 5000, 50):
            taken += await put(cache, frames(first, 50))
            found = await get(cache, *frames(first, 50))
            self.assertEqual(found, {name: frames(first, 50)[name] for name in found})
        self.assertGreater(taken, 90)
        self.assertEqual(await get(cache, *frames(4950, 50)), frames(4950, 50))
        await cache.invalidate(instance(1).scope)
        self.assertEqual(await get(cache, *frames(4950, 50)), {})
        self.assertEqual(await cache.claim(instance(1), [b"1"], b"me", 60.0), {b"1"})
        await cache.stop()

    def mount(self, options: str) -> None:
        """Have the folder be a file system of its own, where this process may do that."""
        mount = shutil.which("mount")
        command = [mount or "", "-t", "tmpfs", "-o", f"{options},mode=700", "tmpfs", str(self.folder)]
        if mount is None or subprocess.run(command, capture_output=True).returncode:
            raise SkipTest("no file system can be mounted here")
        self.addCleanup(subprocess.run, ["umount", "--lazy", str(self.folder)], check=True)


class StoreTests(FolderCase):
    """Segments of one process."""

    def test_dropped_in_the_order_of_writing(self) -> None:
        """The oldest segment goes first, and only what is needed."""
        self.folder.mkdir(mode=0o700)
        store = SegmentStore(Path(self.folder), SIZE, lambda: 1000.0)
        self.addCleanup(store.close)
        count = 0
        while not store.index.counts().evicted:
            store.put([(b"%08d" % count, (FRAME,))], 0, 5000)
            count += 1
        gone = store.index.counts().evicted
        held = store.index.find(b"%08d" % number for number in range(count))
        self.assertEqual([entry is None for entry in held], [True] * gone + [False] * (count - gone))
        self.assertLessEqual(gone, store.segment_bytes // len(FRAME))
