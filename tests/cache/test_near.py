"""A cache of this host in front of one that others use, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from tests.cache.contract import CacheContract
from tests.cache.support import A, installed_reactor, until
from twistedproxy.cache.address import NearAddress, SharedFolder
from twistedproxy.cache.interface import CacheUnavailable, EntryNow, Fence, Reading, Value
from twistedproxy.cache.keys import EXPIRY, LOADING
from twistedproxy.cache.local import folder
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.cache.local.facts import facts_size
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.cache.near import FENCE_SECONDS, NearCache
from twistedproxy.cache.redis.cluster_reads import LAST_SECONDS
from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.hot.responses import CHECK_SECONDS

SIZE = 64 << 20


def frame(content: bytes, ends: Optional[float] = None) -> tuple[bytes, bytes]:
    """A frame's entry, in the two pieces in which frames are written; *ends*: seconds since the epoch."""
    return EXPIRY.pack(time.time() + 60.0 if ends is None else ends) + b"\x00", content


ONE, TWO = frame(b"one"), frame(b"two")
WHOLE = {b"F1": b"".join(ONE), b"F2": b"".join(TWO)}


class SharedCache(MemoryCache):
    """What other hosts use, too. *asked*: the names of each reading; *gate*: what readings wait for; *down*: whether it can't be
    asked; *told*: of which invalidations."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock, SIZE)
        self.asked: list[tuple[bytes, ...]] = []
        self.gate: Optional[Deferred[None]] = None
        self.down = False
        self.told: list[Scope] = []

    def invalidated(self, scope: Scope) -> None:
        self.told.append(scope)

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        self.asked.append(tuple(names))
        if self.down:
            return Reading(None, {})
        reading = await super().get_many(instance, names)
        if self.gate is not None:
            await self.gate
        return reading

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        return not self.down and await super().put_many(instance, fence, entries, seconds)

    async def invalidate(self, scope: Scope) -> None:
        if self.down:
            raise CacheUnavailable("it is down")
        await super().invalidate(scope)


class NearCase(TestCase):
    """Two hosts, *cache* and *other*, with folders of their own and a shared cache."""

    async def setUp(self) -> None:
        self.clock, self.now = Clock(), time.time()
        self.far = SharedCache(self.clock)
        self.cache, self.other = await self.host(), await self.host()

    async def host(self) -> NearCache:
        """Another one."""
        address = SharedFolder(str(self.folder()), SIZE)
        near = LocalCache(installed_reactor(), address, wall_clock=lambda: self.now)
        cache = NearCache(self.clock, near, self.far, lambda: self.now)
        await cache.start()
        self.addCleanup(near.stop)
        return cache

    def folder(self) -> Path:
        """A new one, prepared."""
        path = Path(self.mktemp())
        path.mkdir(mode=0o700)
        folder.empty(path, facts_size(SIZE))
        return path

    async def put(self, cache: Any, entries: Mapping[bytes, Value]) -> Optional[Fence]:
        fence = (await cache.get_many(A, [])).fence
        self.assertTrue(await cache.put_many(A, fence, entries, 60.0))
        self.far.asked.clear()
        return fence  # type: ignore[no-any-return]

    async def kept(self, cache: NearCache, name: bytes) -> EntryNow:
        """The entry *name*, once it is kept in a file that was opened."""

        async def read() -> Any:
            await cache.near.get_many(A, [name])
            return cache.read_now(A, [name])

        await until(read, f"{name!r} to be kept")
        now = cache.read_now(A, [name])
        assert now is not None
        return now[1][0]

    async def get(self, cache: NearCache, *names: bytes) -> dict[bytes, bytes]:
        return dict((await cache.get_many(A, names)).entries)


class NearContractTests(CacheContract, NearCase):
    """The shared suite."""

    async def pass_time(self, condition: Callable[[], Any]) -> None:
        self.clock.advance(1.0)
        self.assertTrue(await condition())

    async def lose(self, key: bytes) -> None:
        self.far._store.delete(key)


class ReadingTests(NearCase):
    """Frames are read here."""

    async def test_written_here(self) -> None:
        """What was written is read without the network while the fence is known, now and later; then that is asked for alone."""
        fence = await self.put(self.cache, {b"F1": ONE, b"F2": TWO})
        self.assertEqual(await self.get(self.cache, b"F1", b"F2"), WHOLE)
        now = self.cache.read_now(A, [b"F2"])
        assert now is not None
        self.assertEqual((now[0], [bytes(value) for value, _ in now[1]]), (fence, [WHOLE[b"F2"]]))
        self.assertEqual(now[1][0][1], content_digest((b"two",)))
        self.assertEqual(self.far.asked, [])
        self.clock.advance(FENCE_SECONDS)
        self.assertIsNone(self.cache.read_now(A, [b"F1"]))
        self.assertEqual(await self.get(self.cache, b"F1", b"F2"), WHOLE)
        self.assertEqual(self.far.asked, [(LOADING,)])
        self.assertIsNotNone(self.cache.read_now(A, [b"F1"]))

    async def test_written_elsewhere(self) -> None:
        """What another host wrote is read from it once, and what is missing is asked for alone."""
        await self.put(self.other, {b"F1": ONE, b"F2": TWO})
        self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F1"]})
        self.assertEqual(await self.get(self.cache, b"F1", b"F2", b"F3"), WHOLE)
        self.assertEqual(await self.get(self.cache, b"F2", b"F1"), WHOLE)
        self.assertEqual(self.far.asked, [(b"F1", LOADING), (b"F2", b"F3", LOADING)])
        self.assertEqual((self.cache.from_near, self.cache.from_far), (3, 2))

    async def test_facts(self) -> None:
        """Grants and the like are read from the shared cache each time, together with what is missing of frames."""
        await self.put(self.cache, {b"F1": ONE, b"g1": b"a grant"})
        for _ in range(2):
            self.assertEqual(await self.get(self.cache, b"F1", b"g1"), {b"F1": WHOLE[b"F1"], b"g1": b"a grant"})
        self.assertEqual(self.far.asked, [(b"g1", LOADING)] * 2)
        self.assertIsNone(self.cache.read_now(A, [b"g1"]))

    async def test_times(self) -> None:
        """A frame ends when it ends in the shared cache, wherever it was written."""
        ends = {b"F1": frame(b"one", self.now + 5.0), b"F2": frame(b"two", float("inf"))}
        await self.put(self.other, ends)
        for name in ends:
            for _ in range(2):
                self.assertEqual(len(await self.get(self.cache, name)), 1)
            await self.kept(self.cache, name)
        self.now += 6.0
        self.assertIsNone(self.cache.read_now(A, [b"F1"]))
        self.assertIsNotNone(self.cache.read_now(A, [b"F2"]))

    async def test_while_it_is_loaded(self) -> None:
        """What another host loads may turn out wrong: it is not kept before the load has ended."""
        await self.put(self.other, {LOADING: b"", b"F1": ONE})
        for _ in range(2):
            self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F1"]})
            self.assertIsNone(self.cache.read_now(A, [b"F1"]))
        self.assertTrue(await self.other.remove(A, [b"F1"]))
        self.assertEqual((await self.get(self.cache, b"F1"), await self.get(self.other, b"F1")), ({}, {}))

    async def test_whether_it_is_loaded(self) -> None:
        """Who asks whether an instance is being loaded is told so, with frames and without."""
        await self.put(self.other, {LOADING: b"", b"F1": ONE})
        self.assertEqual(await self.get(self.cache, LOADING), {LOADING: b""})
        for names in ((LOADING, b"F1"), (b"F1", LOADING)):
            self.assertEqual(await self.get(self.cache, *names), {LOADING: b"", b"F1": WHOLE[b"F1"]})
        self.assertIsNone(self.cache.read_now(A, [b"F1"]))

    async def test_digests(self) -> None:
        """Of a frame's own bytes, wherever it was written: entity tags are made of them, and must be those of other hosts."""
        await self.put(self.other, {b"F1": ONE})
        await self.get(self.cache, b"F1")
        for cache in (self.cache, self.other):
            value, digest = await self.kept(cache, b"F1")
            self.assertEqual((bytes(value), digest), (WHOLE[b"F1"], content_digest((b"one",))))

    async def test_slow_folder(self) -> None:
        """Nobody who reads from the shared cache waits until that is kept."""
        await self.put(self.other, {b"F1": ONE})
        slow: Deferred[bool] = Deferred()
        self.patch(self.cache.near, "put_many", lambda *_: slow)
        reading = Deferred.fromCoroutine(self.cache.get_many(A, [b"F1"]))
        self.assertEqual(self.successResultOf(reading).entries, {b"F1": WHOLE[b"F1"]})
        slow.errback(ZeroDivisionError("ours"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_shared_cache_down(self) -> None:
        """It is as if there were none, once the fence is not known any more; what it does not take is not said to be taken."""
        fence = await self.put(self.cache, {b"F1": ONE})
        self.far.down = True
        self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F1"]})
        self.assertFalse(await self.cache.put_many(A, fence, {b"F2": TWO}, 60.0))
        self.clock.advance(FENCE_SECONDS)
        reading = await self.cache.get_many(A, [b"F1"])
        self.assertEqual((reading.fence, reading.entries), (None, {}))

    async def test_folder_fails(self) -> None:
        """Then all comes from the shared cache."""
        cache = NearCache(self.clock, MemoryCache(self.clock, 0), self.far)
        await self.put(cache, {b"F1": ONE})
        self.assertEqual(await self.get(cache, b"F1"), {b"F1": WHOLE[b"F1"]})
        self.assertIsNone(cache.read_now(A, [b"F1"]))
        await cache.ping()

    async def test_status(self) -> None:
        """Of both; loader processes find both, too."""
        status = await self.cache.status()
        near: Any = status["near"]
        self.assertEqual((status["provider"], near["provider"]), ("memory", "local"))
        self.assertIsNone(self.cache.address)
        self.far.address = SharedFolder("/elsewhere", 1)
        cache = await self.host()
        self.assertEqual(attrs.astuple(cast_near(cache.address), recurse=False)[1], self.far.address)


class InvalidationTests(NearCase):
    """What was invalidated is not given."""

    async def test_own(self) -> None:
        """Not once the invalidation has returned, by no process of this host; what is written under the old fence is not seen."""
        fence = await self.put(self.cache, {b"F1": ONE})
        second = NearCache(self.clock, self.cache.near, self.far)
        self.assertEqual(await self.get(second, b"F1"), {b"F1": WHOLE[b"F1"]})
        self.assertIsNotNone(second.read_now(A, [b"F1"]))
        await self.cache.invalidate(A.scope)
        self.far.told.clear()
        second.invalidated(A.scope)  # as workers of one proxy are told
        self.assertEqual(self.far.told, [A.scope])
        for one in (self.cache, second):
            await one.put_many(A, fence, {b"F1": ONE}, 60.0)
            self.assertIsNone(one.read_now(A, [b"F1"]))
            self.assertEqual(await self.get(one, b"F1"), {})

    async def test_of_another_host(self) -> None:
        """Not once the fence has been asked for again."""
        await self.put(self.cache, {b"F1": ONE})
        self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F1"]})
        self.assertIsNotNone(self.cache.read_now(A, [b"F1"]))
        await self.other.invalidate(A.scope)
        self.clock.advance(FENCE_SECONDS)
        self.assertEqual(await self.get(self.cache, b"F9"), {})
        self.assertIsNone(self.cache.read_now(A, [b"F1"]))
        await self.put(self.other, {b"F1": TWO})
        self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F2"]})
        self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F2"]})

    async def test_kept_anew(self) -> None:
        """What was kept under an earlier fence is replaced by what is read: the network is not asked for it each time."""
        await self.put(self.cache, {b"F1": ONE})
        await self.other.invalidate(A.scope)
        self.clock.advance(FENCE_SECONDS)
        await self.put(self.other, {b"F1": TWO})
        self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F2"]})
        await self.kept(self.cache, b"F1")
        self.far.asked.clear()
        self.assertEqual(await self.get(self.cache, b"F1"), {b"F1": WHOLE[b"F2"]})
        self.assertEqual((self.far.asked, self.cache.from_far), ([], 1))

    def test_in_time(self) -> None:
        """Within 5 s, as is promised: a hot answer may go by the fence that was kept here, and that by one that was kept for a cluster."""
        self.assertLessEqual(CHECK_SECONDS + FENCE_SECONDS + LAST_SECONDS, 5.0)

    async def test_meanwhile(self) -> None:
        """A fence that was read before the invalidation is not believed after it."""
        await self.put(self.cache, {b"F1": ONE})
        self.clock.advance(FENCE_SECONDS)
        gate = self.far.gate = Deferred()
        reading = Deferred.fromCoroutine(self.cache.get_many(A, [b"F1"]))
        await until(lambda: self.far.asked, "the shared cache to be asked")
        self.far.gate = None
        await self.cache.invalidate(A.scope)
        gate.callback(None)
        await reading
        self.assertIsNone(self.cache.read_now(A, [b"F1"]))
        self.assertEqual(await self.get(self.cache, b"F1"), {})

    async def test_not_confirmed(self) -> None:
        """Nothing is given of what may have been invalidated."""
        await self.put(self.cache, {b"F1": ONE})
        self.far.down = True
        with self.assertRaises(CacheUnavailable):
            await self.cache.invalidate(A.scope)
        self.assertIsNone(self.cache.read_now(A, [b"F1"]))
        self.assertEqual(await self.get(self.cache, b"F1"), {})


def cast_near(address: object) -> NearAddress:
    """*address*, which is one."""
    assert isinstance(address, NearAddress)
    return address
