"""The cache on a real cluster of six nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.cache.contract import CacheContract
from tests.cache.redis.cluster_servers import shared_cluster
from tests.cache.redis.test_cache import Servers
from tests.cache.support import A, installed_reactor, until
from tests.dicomweb.support import ProxyCase
from tests.stores.dialects import STANDARD
from twistedproxy.cache.redis.cache import RedisCache
from twistedproxy.cache.redis.cluster_reads import LAST_SECONDS
from twistedproxy.cache.redis.keys import redis_keys, slot_of
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.entries import frame_name


class ClusterContractTests(CacheContract, Servers):
    """The shared suite."""

    async def setUp(self) -> None:
        self.cluster = await shared_cluster()
        self.cache = await self.open(self.cluster.address)

    async def pass_time(self, condition: Callable[[], Any]) -> None:
        await until(condition)

    def generations(self, instance: Instance) -> tuple[bytes, ...]:
        return redis_keys(instance).generations

    async def lose(self, key: bytes) -> None:
        owner = await self.cluster.owner(slot_of(key))
        self.assertEqual(await owner.ask(b"DEL", key), 1)
        assert isinstance(self.cache, RedisCache)
        self.cache._servers.forget([key])  # a root's is noticed by the next reading of it

    async def test_what_another_worker_ends(self) -> None:
        """It is noticed at once by a worker that is told of it, also where generations are kept: of the instance, and of all."""
        worker = await self.open(self.cluster.address)
        for scope in (A.scope, Scope(A.origin, A.root)):
            await self.put(A, {b"1": b"one"})
            self.assertEqual(await self.get(A, b"1"), {b"1": b"one"})
            await worker.invalidate(scope)
            self.cache.invalidated(scope)
            self.assertEqual(await self.get(A, b"1"), {})

    async def test_what_another_host_ends(self) -> None:
        """It is noticed within seconds."""
        host = await self.open(self.cluster.address)
        await self.put(A, {b"1": b"one"})
        await host.invalidate(A.scope)

        async def gone() -> bool:
            return not await self.get(A, b"1")

        began = installed_reactor().seconds()
        await until(gone)
        self.assertLess(installed_reactor().seconds() - began, LAST_SECONDS + 1.0)

    async def test_a_slide_lies_on_all_nodes(self) -> None:
        """Of 10,000 frames the fullest master has at most half more than the emptiest."""
        names = [frame_name(number) for number in range(1, 10_001)]
        await self.put(A, dict.fromkeys(names, b"x"))
        counts = [await node.ask(b"DBSIZE") for node in await self.cluster.masters()]
        self.assertGreaterEqual(sum(counts), 10_000)
        self.assertLess(max(counts), 1.5 * min(counts), counts)


class TwoWorkersTests(ProxyCase):
    """Two workers of one host, on a cluster."""

    timeout = 60

    async def test_a_worker_that_is_told(self) -> None:
        """What another worker has ended is not read any more by one that was told of it, although it keeps generations."""
        cluster = await shared_cluster()
        store = self.store(STANDARD)
        first, second = [(await self.proxy(store, cache=cluster.address)).components for _ in range(2)]
        scope = Scope(A.origin, A.root)
        fence = (await second.cache.get_many(A, [])).fence
        self.assertTrue(await second.cache.put_many(A, fence, {b"1": b"one"}, 60.0))
        self.assertEqual((await second.cache.get_many(A, [b"1"])).entries, {b"1": b"one"})
        await first.cache.invalidate(scope)
        second.invalidation.apply(scope, cache_invalidated=True)
        self.assertEqual((await second.cache.get_many(A, [b"1"])).entries, {})
