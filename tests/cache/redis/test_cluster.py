"""The cache on a real cluster of six nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.cache.contract import CacheContract
from tests.cache.redis.cluster_servers import shared_cluster
from tests.cache.redis.test_cache import Servers
from tests.cache.support import until
from twistedproxy.cache.redis.cache import RedisCache
from twistedproxy.cache.redis.keys import redis_keys, slot_of
from twistedproxy.dicom.resource import Instance


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
