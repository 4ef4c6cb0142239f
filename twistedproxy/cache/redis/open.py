"""Makes a cache on a server, or a cluster."""

from __future__ import annotations

from typing import Any, Optional

from twistedproxy.cache.address import ClusterAddress, ServerAddress
from twistedproxy.cache.monitoring import CacheObserver
from twistedproxy.cache.redis.cache import RedisCache
from twistedproxy.cache.redis.cluster import Cluster
from twistedproxy.cache.redis.endpoint import greeting, open_endpoint
from twistedproxy.cache.redis.server import Server, Servers


def redis_cache(
    reactor: Any,
    address: ServerAddress,
    observer: Optional[CacheObserver] = None,
    trust_root: Any = None,
) -> RedisCache:
    """The cache on the server, or the cluster, at *address*. *trust_root* (default: the platform's) signs ``rediss://`` certificates."""
    servers: Servers
    if isinstance(address, ClusterAddress):
        servers = Cluster(reactor, address, trust_root)
    else:
        endpoint = open_endpoint(reactor, address, trust_root)
        servers = Server(reactor, endpoint, address.where, greeting(address))
    return RedisCache(reactor, servers, address, observer)
