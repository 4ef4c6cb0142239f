"""Makes the cache that ``--cache`` asks for."""

from __future__ import annotations

from typing import Any, Optional, Union

from twistedproxy.cache.address import (
    CacheAddress,
    LocalAddress,
    MemoryAddress,
    NearAddress,
    NoAddress,
    SharedAddress,
    SharedFolder,
)
from twistedproxy.cache.interface import Cache
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.cache.monitoring import CacheObserver
from twistedproxy.cache.near import NearCache


def open_cache(
    reactor: Any,
    address: CacheAddress,
    max_bytes: int,
    observer: Optional[CacheObserver] = None,
    near: Union[LocalAddress, SharedFolder, None] = None,
) -> Cache:
    """The cache at *address*, not yet started. *max_bytes* bounds the in-process cache. *near*: what is kept here of a server's."""
    if isinstance(address, (NoAddress, MemoryAddress)):
        return MemoryCache(reactor, 0 if isinstance(address, NoAddress) else max_bytes, observer)
    if isinstance(address, LocalAddress):
        return LocalCache(reactor, address, observer)
    far = open_shared(reactor, address, observer)
    return far if near is None else NearCache(reactor, LocalCache(reactor, near), far)


def open_shared(
    reactor: Any, address: SharedAddress, observer: Optional[CacheObserver] = None, in_threads: bool = True
) -> Cache:
    """The cache that other processes use too at *address*. *in_threads*: see `LocalCache`. *reactor* must be the installed one where
    a server is spoken to: txredisapi uses that, and is imported here."""
    if isinstance(address, SharedFolder):
        return LocalCache(reactor, address, observer, in_threads=in_threads)
    if isinstance(address, NearAddress):
        near = LocalCache(reactor, address.near, in_threads=in_threads)
        return NearCache(reactor, near, open_shared(reactor, address.far, observer))
    from twistedproxy.cache.redis.open import redis_cache

    return redis_cache(reactor, address, observer)
