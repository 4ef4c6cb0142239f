"""The cache in files of this host: what every cache does, and that several processes share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.trial.unittest import TestCase

from tests.cache.contract import CacheContract
from tests.cache.folders import SIZE, FolderCase, get, put
from tests.cache.members import instance
from tests.cache.support import installed_reactor, until
from twistedproxy.cache.address import SharedFolder
from twistedproxy.cache.keys import scope_keys
from twistedproxy.cache.local import folder
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.cache.local.facts import facts_size

FACT = b"g1"
"""The name of a grant: such entries are in the table, all others in segments."""


class LocalContractTests(CacheContract, TestCase):
    """The shared suite."""

    async def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(mode=0o700)
        folder.empty(self.folder, facts_size(SIZE))
        self.cache = LocalCache(installed_reactor(), SharedFolder(str(self.folder), SIZE))
        await self.cache.start()
        self.addCleanup(self.cache.stop)

    async def pass_time(self, condition: Callable[[], Any]) -> None:
        await until(condition)

    async def lose(self, key: bytes) -> None:
        self.cache.generations.invalidate([key])


class WritingTests(FolderCase):
    """Entries that are just being written."""

    async def test_are_found(self) -> None:
        """By the next reader, as with a server that does one thing after the other; not once they were taken back, or were
        invalidated."""
        cache, one = await self.open(), instance(1)
        fence = (await cache.get_many(one, [])).fence
        entries = {b"F1": (b"on", b"e"), b"F2": b"two"}
        writing = ensureDeferred(cache.put_many(one, fence, entries, 60.0))
        self.assertEqual(await get(cache, b"F1", b"F2", b"F3"), {b"F1": b"one", b"F2": b"two"})
        _, starts = cache.readings.starts(one, [b"F1", b"F3"], 2)
        self.assertEqual(starts, {b"F1": (b"on", 3)})
        self.assertEqual(set((await cache.held(one, 9)).cached), {1, 2})
        removing = ensureDeferred(cache.remove(one, [b"F1"]))  # while it is written, or just after
        self.assertTrue(await removing)
        self.assertTrue(await writing)
        self.assertEqual(await get(cache, b"F1", b"F2"), {b"F2": b"two"})
        self.assertEqual(cache.readings.writing, {})
        late = ensureDeferred(cache.put_many(one, fence, {b"F4": b"four"}, 60.0))
        cache.generations.invalidate(scope_keys(one.scope))
        self.assertEqual(await get(cache, b"F4"), {})
        self.assertEqual((await cache.held(one, 9)).cached, [])
        await late
        self.assertEqual(await get(cache, b"F4"), {})


class SharingTests(FolderCase):
    """Processes that use one folder."""

    async def test_each_reads_what_the_others_wrote(self) -> None:
        """Frames and facts, at once, of three processes."""
        own = await self.open()
        members = [await self.member(), await self.member()]
        self.assertTrue(await put(own, {b"F0": b"mine", FACT: b"fact"}))
        for number, member in enumerate(members, start=1):
            self.assertTrue(await member.put(1, {b"F%d" % number: b"x" * number * 100_000}))
        expected = {b"F0": b"mine", b"F1": b"x" * 100_000, b"F2": b"x" * 200_000, FACT: b"fact"}
        self.assertEqual(await get(own, *expected), expected)
        for member in members:
            self.assertEqual(await member.get(1, *expected), expected)

    async def test_a_claim_is_won_by_one_process(self) -> None:
        """Of four that claim the same names at the same time."""
        own = await self.open()
        members = [await self.member() for _ in range(3)]
        names = [b"%d" % number for number in range(200)]
        claims: list[Any] = [ensureDeferred(own.claim(instance(1), names, b"mine", 60.0))]
        claims += [ensureDeferred(member.claim(1, *names)) for member in members]
        won = await gatherResults(claims)
        self.assertEqual(sorted(name for one in won for name in one), sorted(names))
        self.assertEqual(await members[0].claim(1, *names), set())

    async def test_an_invalidation_is_seen_at_once_by_all(self) -> None:
        """With the first reading after it was confirmed, whoever made it; what others hold below other scopes stays."""
        own = await self.open()
        members = [await self.member(), await self.member()]
        for turn in range(5):
            for number in (1, 2):
                await put(own, {b"F1": b"%d" % turn, FACT: b"%d" % turn}, number)
            for member in members:
                self.assertEqual(await member.get(1, b"F1", FACT), {b"F1": b"%d" % turn, FACT: b"%d" % turn})
            await members[turn % 2].invalidate(1)
            self.assertEqual(await get(own, b"F1", FACT), {})
            for member in members:
                self.assertEqual(await member.get(1, b"F1", FACT), {})
                self.assertEqual(await member.get(2, b"F1"), {b"F1": b"%d" % turn})

    async def test_a_process_that_is_killed_harms_no_other(self) -> None:
        """What it wrote stays, its segment is dropped like others, and the others go on."""
        own = await self.open()
        member = await self.member()
        self.assertTrue(await member.put(1, {b"F1": b"theirs"}))
        await member.kill()
        self.assertEqual(await get(own, b"F1"), {b"F1": b"theirs"})
        for number in range(70):
            self.assertTrue(await put(own, {b"F%d" % (2 + number): b"x" * 1_000_000}))
        self.assertEqual(await get(own, b"F1"), {})
        self.assertFalse(self.segment(1).exists())
        self.assertEqual(await get(own, b"F71"), {b"F71": b"x" * 1_000_000})

    async def test_what_another_process_writes_to_is_not_dropped(self) -> None:
        """The oldest segment, as long as its writer lives and has not filled it; those after it are dropped instead."""
        own = await self.open()
        member = await self.member()
        self.assertTrue(await member.put(1, {b"F1": b"theirs"}))
        for number in range(70):
            self.assertTrue(await put(own, {b"F%d" % (2 + number): b"x" * 1_000_000}))
        self.assertEqual(await get(own, b"F1", b"F2"), {b"F1": b"theirs"})
        self.assertTrue(await member.put(1, {b"F2": b"also theirs"}))
        self.assertEqual(await get(own, b"F1", b"F2"), {b"F1": b"theirs", b"F2": b"also theirs"})
