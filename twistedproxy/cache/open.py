"""Makes the cache that ``--cache`` asks for."""

from __future__ import annotations

from typing import Any, Optional

from twistedproxy.cache.address import CacheAddress, LocalAddress, MemoryAddress, NoAddress, SharedAddress, SharedFolder
from twistedproxy.cache.interface import Cache
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.cache.monitoring import CacheObserver


def open_cache(reactor: Any, address: CacheAddress, max_bytes: int, observer: Optional[CacheObserver] = None) -> Cache:
    """The cache at *address*, not yet started. *max_bytes* bounds the in-process cache."""
    if isinstance(address, (NoAddress, MemoryAddress)):
        return MemoryCache(reactor, 0 if isinstance(address, NoAddress) else max_bytes, observer)
    if isinstance(address, LocalAddress):
        return LocalCache(reactor, address, observer)
    return open_shared(reactor, address, observer)


def open_shared(
    reactor: Any, address: SharedAddress, observer: Optional[CacheObserver] = None, in_threads: bool = True
) -> Cache:
    """The cache that other processes use too at *address*. *in_threads*: see `LocalCache`. *reactor* must be the installed one where
    a server is spoken to: txredisapi uses that, and is imported here."""
    if isinstance(address, SharedFolder):
        return LocalCache(reactor, address, observer, in_threads=in_threads)
    from twistedproxy.cache.redis.open import redis_cache

    return redis_cache(reactor, address, observer)
