"""The in-process cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.cache.contract import CacheContract
from tests.cache.support import A
from tests.properties import given, settings, st
from twistedproxy.cache.lru import ITEM_OVERHEAD, LruStore
from twistedproxy.cache.memory import MemoryCache


class MemoryCacheTests(CacheContract, TestCase):
    """The contract, by a clock of the tests' own."""

    async def setUp(self) -> None:
        self.clock = Clock()
        self.cache = self.memory = MemoryCache(self.clock, 64 * 2**20)
        await self.cache.start()

    async def pass_time(self, condition: Callable[[], Any]) -> None:
        self.assertFalse(await condition())
        self.clock.advance(1.0)
        self.assertTrue(await condition())

    async def lose(self, key: bytes) -> None:
        self.memory._store.delete(key)

    async def test_it_keeps_within_its_bytes(self) -> None:
        """Entries that were not used for longest go; what is used stays, and so do the generations of what is read."""
        cache = MemoryCache(self.clock, 100_000)
        fence = (await cache.get_many(A, [])).fence
        for number in range(100):
            await cache.put_many(A, fence, {b"%d" % number: b"x" * 5000}, 60.0)
            self.assertIn(b"0", (await cache.get_many(A, [b"0"])).entries)
        status = await cache.status()
        self.assertTrue(90_000 < status["used_bytes"] <= 100_000, status)  # type: ignore[operator]
        self.assertTrue(status["evicted"] > 80, status)  # type: ignore[operator]

    async def test_an_entry_larger_than_the_cache_is_not_taken(self) -> None:
        """It would push out everything, and itself."""
        cache = MemoryCache(self.clock, 10_000)
        fence = (await cache.get_many(A, [])).fence
        await cache.put_many(A, fence, {b"1": b"one"}, 60.0)
        self.assertFalse(await cache.put_many(A, fence, {b"2": b"x" * 10_000}, 60.0))
        self.assertEqual((await cache.get_many(A, [b"1", b"2"])).entries, {b"1": b"one"})

    async def test_operations_are_observed(self) -> None:
        """Hits, partial hits and misses are told apart."""
        heard: list[tuple[str, str]] = []

        class Observer:
            def cache_operation(self, name: str, outcome: str, seconds: float) -> None:
                heard.append((name, outcome))

        cache = MemoryCache(self.clock, 10_000, Observer())
        fence = (await cache.get_many(A, [b"1"])).fence
        await cache.put_many(A, fence, {b"1": b"one"}, 60.0)
        await cache.put_many(A, None, {b"1": b"one"}, 60.0)
        await cache.get_many(A, [b"1"])
        await cache.get_many(A, [b"1", b"2"])
        outcomes = [("get_many", "miss"), ("put_many", "ok"), ("put_many", "failed")]
        self.assertEqual(heard, [*outcomes, ("get_many", "hit"), ("get_many", "partial")])


KEYS = st.sampled_from([b"a", b"bb", b"ccc", b"dddd"])
SIZES = st.integers(0, 800)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, SIZES),
        st.tuples(st.just("add"), KEYS, SIZES),
        st.tuples(st.just("get"), KEYS, SIZES),
        st.tuples(st.just("delete"), KEYS, SIZES),
        st.tuples(st.just("clear"), KEYS, SIZES),
        st.tuples(st.just("wait"), KEYS, SIZES),
    ),
    max_size=30,
)


class LruStoreTests(SynchronousTestCase):
    """The bounded map."""

    @settings(max_examples=150)
    @given(STEPS)
    def test_its_accounts_are_right_whatever_is_done(self, steps: list[tuple[str, bytes, int]]) -> None:
        """Used bytes are the sum of what is held and never above the limit; a value that is held is the last one put."""
        store = LruStore(2 * (ITEM_OVERHEAD + 400))
        last: dict[bytes, bytes] = {}
        now = 0.0
        for number, (what, key, size) in enumerate(steps):
            value = b"%03d" % number + b"x" * size
            if what == "put":
                self.assertEqual(store.put(key, value, now, 10.0), store.get(key, now) == value)
                last[key] = value
            elif what == "add" and store.put_if_absent(key, value, now, 10.0):
                last[key] = value
            elif what == "get":
                self.assertIn(store.get(key, now), (None, last.get(key)))
            elif what == "delete":
                store.delete(key)
                self.assertIsNone(store.get(key, now))
            elif what == "clear":
                store.clear()
                self.assertEqual((len(store), store.used), (0, 0))
            elif what == "wait":
                now += 4.0
            held = {key: item.value for key, item in store._items.items()}
            self.assertEqual(store.used, sum(len(k) + len(v) + ITEM_OVERHEAD for k, v in held.items()))
            self.assertTrue(store.used <= store.max_bytes)

    def test_the_least_recently_used_goes_first(self) -> None:
        """Reading is using."""
        store = LruStore(3 * (ITEM_OVERHEAD + 11))
        for key in (b"a", b"b", b"c"):
            store.put(key, b"x" * 10, 0.0, None)
        store.get(b"a", 0.0)
        store.put(b"d", b"x" * 10, 0.0, None)
        self.assertEqual(
            [store.get(key, 0.0) is not None for key in (b"a", b"b", b"c", b"d")], [True, False, True, True]
        )
        self.assertEqual(store.evicted, 1)

    def test_what_expired_is_not_counted_as_evicted(self) -> None:
        """It went in its time."""
        store = LruStore(ITEM_OVERHEAD + 11)
        store.put(b"a", b"x" * 10, 0.0, 1.0)
        store.put(b"b", b"x" * 10, 2.0, 1.0)
        self.assertEqual((len(store), store.evicted), (1, 0))


class NoCacheTests(TestCase):
    """A cache of 0 bytes (``--cache none``) keeps nothing."""

    async def test_it_wins_and_keeps_nothing(self) -> None:
        """No entry, no claim, and no error."""
        cache = MemoryCache(Clock(), 0)
        self.assertIsNone((await cache.get_many(A, [b"1"])).fence)
        self.assertFalse(await cache.put_many(A, b"12345678", {b"1": b"one"}, 60.0))
        self.assertEqual(await cache.claim(A, [b"1"], b"me", 5.0), set())
        self.assertIsNone(await cache.claim_left(A, b"1"))
        await cache.invalidate(A.scope)
        await cache.ping()
