"""A loader child: ``python -m twistedproxy.prefetch.child``, started by the proxy and spoken to over a pipe.

It streams stored instances from origins into the cache, and ends when its standard input does: with the proxy,
whatever way that ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Optional

from twisted.internet.defer import CancelledError, Deferred
from twisted.protocols import amp
from twisted.python.failure import Failure

from twistedproxy.cache.redis import RedisCache, redis_cache
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.errors import OriginError
from twistedproxy.origin.http.origin import HTTPOrigin
from twistedproxy.origin.interface import Caller
from twistedproxy.prefetch import commands
from twistedproxy.prefetch.instance_load import InstanceLoad, Loaded, LoadFailed
from twistedproxy.prefetch.local_file import LocalFile
from twistedproxy.settings import Settings
from twistedproxy.streams import ByteStream

PROGRESS_SECONDS = 0.1
"""How often a load says how far it is."""

FILE = "file:"


class ChildProtocol(amp.AMP):
    """The child's end of the pipe."""

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self._reactor = reactor
        self._cache: Optional[RedisCache] = None
        self._settings = Settings()
        self._origins: dict[str, HTTPOrigin] = {}
        self._loads: dict[int, Deferred[dict[str, Any]]] = {}

    @commands.Configure.responder
    def configure(self, cache: str, settings: str) -> Deferred[dict[str, Any]]:
        self._settings = Settings(**json.loads(settings))
        self._cache = redis_cache(self._reactor, commands.unpack_address(cache))
        return Deferred.fromCoroutine(self._connect(self._cache))

    @staticmethod
    async def _connect(cache: RedisCache) -> dict[str, Any]:
        await cache.start()
        return {}

    @commands.Load.responder
    def load(self, number: int, **arguments: Any) -> Deferred[dict[str, Any]]:
        loading: Deferred[dict[str, Any]] = Deferred.fromCoroutine(self._load(number, **arguments))
        self._loads[number] = loading
        return loading.addBoth(self._loaded, number)

    def _loaded(self, result: Any, number: int) -> Any:
        del self._loads[number]
        if isinstance(result, Failure):
            raise commands.ChildFailed(_reason(result.value))
        return result

    async def _load(
        self,
        number: int,
        source: str,
        instance: list[str],
        credential: bytes,
        headers: list[bytes],
        metadata: bytes,
        fence: bytes,
        seconds: float,
    ) -> dict[str, Any]:
        assert self._cache is not None, "Configure comes first"
        address = Instance(*instance)
        caller = Caller(credential, tuple(zip(headers[::2], headers[1::2])))
        stream = await self._open(source, address, caller)
        load = InstanceLoad(
            self._cache,
            address,
            fence,
            None if seconds < 0 else seconds,
            InstanceMetadata.from_bytes(metadata),
            self._progress(number),
        )
        loaded: Loaded = await load.run(stream)
        return {"frames": loaded.frames, "bytes": loaded.bytes, "transfer_syntax": loaded.transfer_syntax}

    async def _open(self, source: str, instance: Instance, caller: Caller) -> ByteStream:
        if source.startswith(FILE):
            return LocalFile(source[len(FILE) :])
        origin = self._origins.get(source)
        if origin is None:
            origin = self._origins[source] = HTTPOrigin(self._reactor, source, self._settings)
            await origin.start()
        return await origin.stored_instance(instance, caller)

    def _progress(self, number: int) -> Any:
        told = 0.0

        def progress(frames: int, size: int) -> None:
            nonlocal told
            now = self._reactor.seconds()
            if now - told >= PROGRESS_SECONDS:
                told = now
                self.callRemote(commands.Progress, number=number, frames=frames, bytes=size)

        return progress

    @commands.Stop.responder
    def stop(self, number: int) -> dict[str, Any]:
        loading = self._loads.get(number)
        if loading is not None:
            loading.cancel()
        return {}

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        # The proxy has gone. What was half loaded has its time in the cache; nobody is here to be told.
        os._exit(0)


def _reason(error: BaseException) -> str:
    if isinstance(error, CancelledError):
        return "stopped"
    if isinstance(error, (LoadFailed, OriginError, OSError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def main() -> None:
    """Serve the proxy at standard input and output until it goes."""
    from twisted.internet import reactor, stdio

    protocol = ChildProtocol(reactor)
    stdio.StandardIO(protocol)
    # what anybody prints must not get into the conversation
    sys.stdout = sys.stderr
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
