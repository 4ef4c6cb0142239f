"""The folder of a local cache: whose it may be, and what it holds at the next start."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Optional

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.cache.folders import SIZE, FolderCase, an_hour_ago, get, put
from tests.cache.members import instance
from twistedproxy.cache.keys import LOADING
from twistedproxy.cache.local import folder as folders
from twistedproxy.cache.local import generations
from twistedproxy.cache.local.facts import facts_size
from twistedproxy.cache.local.generations import Generations

FACT = b"g1"
NOBODY = 65534


class RefusedTests(FolderCase):
    """Folders that are not used, and why."""

    async def refused(self, folder: Optional[Path] = None) -> str:
        """Why the cache does not start."""
        with self.assertRaises(OSError) as caught:
            await self.open(folder=folder)
        return str(caught.exception)

    async def test_open_to_others(self) -> None:
        """One that its group or all can read."""
        self.folder.mkdir()
        for mode in (0o755, 0o710, 0o707):
            self.folder.chmod(mode)
            reason = await self.refused()
            self.assertIn(f"{self.folder} is open to others (mode {mode:o}); it must be 700", reason)
        self.assertEqual(list(self.folder.iterdir()), [])

    async def test_of_another_user(self) -> None:
        """One that another user could give away."""
        if os.geteuid() != 0:
            raise SkipTest("only root can give a folder away")
        self.folder.mkdir(mode=0o700)
        os.chown(self.folder, NOBODY, NOBODY)
        self.assertIn(f"{self.folder} belongs to another user (uid {NOBODY})", await self.refused())

    async def test_no_folder(self) -> None:
        """A link, also one to a good folder; a file; a place that is not there."""
        self.folder.mkdir(mode=0o700)
        link, file = self.folder / "link", self.folder / "file"
        (self.folder / "good").mkdir(mode=0o700)
        link.symlink_to(self.folder / "good")
        file.write_text("")
        for path in (link, file):
            self.assertIn(f"{path} is no folder, or a symbolic link to one", await self.refused(path))
        self.assertIn(str(self.folder / "a" / "b"), await self.refused(self.folder / "a" / "b"))
        self.assertEqual(list((self.folder / "good").iterdir()), [])

    async def test_in_use(self) -> None:
        """One that another proxy has; with that one's end it is free."""
        other = await self.member(own=True)
        self.assertIn(f"the cache folder {self.folder} is in use by another proxy", await self.refused())
        await other.stop()
        await self.open()

    async def test_in_use_by_workers(self) -> None:
        """One whose proxy was killed and whose worker goes on."""
        self.patch(folders, "MEMBERS_SECONDS", 0.0)
        proxy = await self.member(own=True)
        worker = await self.member()
        await proxy.kill()
        self.assertIn(f"still using the cache folder {self.folder}", await self.refused())
        await worker.kill()
        await self.open()


class KeptTests(FolderCase):
    """What a proxy finds that another one left."""

    async def test_private(self) -> None:
        """All files are for the owner only."""
        await put(await self.open(), {b"F1": b"one", FACT: b"fact"})
        self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)
        for path in self.folder.iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path)

    async def test_after_a_stop(self) -> None:
        """Entries and invalidations are there, claims are not."""
        cache = await self.open()
        for number in (1, 2):
            await put(cache, {b"F1": b"one", FACT: b"fact"}, number)
        await cache.invalidate(instance(2).scope)
        await cache.claim(instance(1), [b"1"], b"me", 3600.0)
        await cache.stop()
        again = await self.open()
        self.assertEqual(self.logged("cache_rebuilding"), [])
        self.assertEqual(await get(again, b"F1", FACT), {b"F1": b"one", FACT: b"fact"})
        self.assertEqual(await get(again, b"F1", FACT, number=2), {})
        self.assertEqual(await again.claim(instance(1), [b"1"], b"you", 60.0), {b"1"})

    async def test_after_a_kill(self) -> None:
        """As after a stop, as long as the machine has not been down; but what was being loaded is taken back."""
        proxy, worker = await self.member(own=True), await self.member()
        self.assertTrue(await proxy.put(1, {b"F1": b"one", FACT: b"fact"}))
        self.assertTrue(await worker.put(2, {b"F1": b"one", b"F2": b"two", LOADING: b"1", FACT: b"fact"}))
        await proxy.claim(1, b"1")
        await proxy.kill()
        await worker.kill()
        again = await self.open()
        self.assertEqual(self.logged("cache_rebuilding"), [])
        self.assertEqual(await get(again, b"F1", FACT), {b"F1": b"one", FACT: b"fact"})
        self.assertEqual(await get(again, b"F1", b"F2", FACT, number=2), {FACT: b"fact"})
        self.assertEqual(await again.claim(instance(1), [b"1"], b"you", 60.0), {b"1"})

    async def test_what_ends_like_the_name_of_a_load(self) -> None:
        """Only an entry that says that a load was under way is taken for one: a grant's name may end in any byte."""
        grant = b"g" + b"0123456789abcde" + LOADING
        cache = await self.open()
        await put(cache, {b"F1": b"one", grant: b"fact"})
        await cache.stop()
        self.assertEqual(await get(await self.open(), b"F1", grant), {b"F1": b"one", grant: b"fact"})

    async def test_after_the_machine_went_down(self) -> None:
        """The index of a proxy that did not stop is not believed then."""
        proxy = await self.member(own=True)
        self.assertTrue(await proxy.put(1, {b"F1": b"one"}))
        await proxy.kill()
        self.patch(folders, "boot_id", lambda: "another")
        await self.open()
        self.assertEqual(len(self.logged("cache_rebuilding")), 1)
        await self.rebuilt()

    async def test_invalidated_before_others_were_written(self) -> None:
        """What was invalidated does not come back, however late the folder is opened, and however often."""
        cache = await self.open(wall_clock=an_hour_ago)
        await put(cache, {b"F1": b"one"}, 1)
        await cache.invalidate(instance(1).scope)
        await cache.invalidate(instance(2).scope)
        await put(cache, {b"F1": b"two"}, 2)
        for _ in range(3):
            await cache.stop()
            cache = await self.open()
            self.assertEqual(await get(cache, b"F1", number=1), {})
            self.assertEqual(await get(cache, b"F1", number=2), {b"F1": b"two"})

    async def test_a_copy(self) -> None:
        """A copy that was made while the cache was in use is recognized, and its index made anew."""
        cache = await self.open(wall_clock=an_hour_ago)
        entries = {b"F%d" % number: b"%d" % number * 1000 for number in range(100)}
        await put(cache, entries)
        clock = time.time
        self.patch(cache, "_clock", clock)
        cache.store.clock = clock
        await put(cache, {b"Fnew": b"new"})
        copy = Path(f"{self.folder}-copy")
        await deferToThread(shutil.copytree, self.folder, copy)
        again = await self.open(folder=copy)
        self.assertEqual(len(self.logged("cache_rebuilding")), 1)
        await self.rebuilt()
        self.assertEqual(await get(again, *entries, b"Fnew"), entries)
        self.assertEqual(await get(cache, *entries, b"Fnew"), {**entries, b"Fnew": b"new"})

    async def test_a_smaller_size(self) -> None:
        """What is more than the size now goes with the next writing."""
        cache = await self.open()
        for number in range(40):
            await put(cache, {b"F%d" % number: b"x" * 1_000_000})
        await cache.stop()
        cache = await self.open(SIZE // 2)
        await self.rebuilt()  # the table of facts has another size
        await put(cache, {b"F41": b"x" * 1_000_000})
        self.assertLessEqual(self.files_size(), SIZE // 2)
        self.assertEqual(list(await get(cache, b"F0", b"F41")), [b"F41"])


class PrivateTests(SynchronousTestCase):
    """Folders that end with their proxy."""

    def test_sweep(self) -> None:
        """Those that no proxy holds are removed; others, links and files stay."""
        base = Path(self.mktemp())
        base.mkdir()
        live, lock = folders.make_private(base)
        self.addCleanup(os.close, lock)
        dead, other = folders.make_private(base)
        os.close(other)
        folders.empty(dead, facts_size(SIZE))
        (base / "other").mkdir(mode=0o700)
        (base / "other" / "kept").write_text("")
        (base / f"{folders.PREFIX}link").symlink_to(base / "other")
        (base / f"{folders.PREFIX}file").write_text("")
        folders.sweep(base)
        names = {path.name for path in base.iterdir()}
        self.assertEqual(names, {live.name, "other", f"{folders.PREFIX}link", f"{folders.PREFIX}file"})
        self.assertTrue((base / "other" / "kept").exists())

    def test_of_another_user(self) -> None:
        """Those of others are left alone, also where they could be removed."""
        base = Path(self.mktemp())
        base.mkdir()
        dead, lock = folders.make_private(base)
        os.close(lock)
        self.patch(os, "geteuid", lambda: NOBODY)
        folders.sweep(base)
        self.assertTrue(dead.exists())


class GenerationsTests(SynchronousTestCase):
    """The journal of invalidations."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        Generations.create(self.folder)

    def journal(self) -> Generations:
        journal = Generations(self.folder)
        self.addCleanup(journal.close)
        return journal

    def test_compacted(self) -> None:
        """Of many invalidations of a scope one remains, and every fence stays as it was."""
        scopes = [b"%025d" % number for number in range(5)]
        one, other = self.journal(), self.journal()
        for number in range(23):
            one.invalidate([scopes[number * number % 5]])
        fences = [other.fence([scope]) for scope in scopes]
        one.compact()
        self.assertEqual([one.fence([scope]) for scope in scopes], fences)
        self.assertEqual([self.journal().fence([scope]) for scope in scopes], fences)
        self.assertEqual(one._count, 3)  # squares modulo 5
        one.invalidate([scopes[0]])
        self.assertGreater(other.fence([scopes[0]]), max(fences))

    def test_full(self) -> None:
        """When no record fits any more, everything is invalidated, and records are written from the beginning."""
        self.patch(generations, "MAX_RECORDS", 3)
        one, other = self.journal(), self.journal()
        scopes = [b"%025d" % number for number in range(5)]
        for scope in scopes[:3]:
            one.invalidate([scope])
        before = one.fence([scopes[4]])
        other.invalidate([scopes[3]])
        self.assertGreater(one.fence([scopes[4]]), before)
        one.invalidate([scopes[4]])
        self.assertGreater(other.fence([scopes[4]]), other.fence([scopes[0]]))
