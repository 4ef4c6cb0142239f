"""The embedded server and the Redis provider over its socket, as one cache."""

from __future__ import annotations

from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from twistedproxy.cache.embedded import EmbeddedServer
from twistedproxy.cache.monitoring import CacheObserver
from twistedproxy.cache.redis.cache import RedisCache
from twistedproxy.cache.redis.endpoint import CONNECT_SECONDS


class EmbeddedCache(RedisCache):
    """A `Cache` on *server*, which starts and stops with it."""

    def __init__(self, reactor: Any, server: EmbeddedServer, observer: Optional[CacheObserver] = None) -> None:
        super().__init__(reactor, _ServerEndpoint(reactor, server), "embedded", observer=observer)
        self.server = server

    async def start(self) -> None:
        """Start the server, then connect. Raises OSError or RuntimeError where it doesn't start."""
        await self.server.start()
        self.address = self.server.address
        await super().start()

    async def stop(self) -> None:
        """Hang up, then end the server."""
        try:
            await super().stop()
        finally:
            await self.server.stop()

    async def status(self) -> dict[str, object]:
        """Facts for ``/status.json``."""
        return {**await super().status(), "provider": "embedded", "pid": self.server.pid}


@implementer(IStreamClientEndpoint)
class _ServerEndpoint:
    """The socket of a server: known once that was started."""

    def __init__(self, reactor: Any, server: EmbeddedServer) -> None:
        self._reactor = reactor
        self._server = server

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        endpoint = UNIXClientEndpoint(self._reactor, self._server.address.path, timeout=CONNECT_SECONDS)
        connected: Deferred[IProtocol] = endpoint.connect(protocolFactory)
        return connected
