"""A loader child: ``python -m twistedproxy.prefetch.loader_main``, started by the proxy and spoken to over a pipe.

It streams stored instances from origins into the cache, and ends when its standard input does: with the proxy,
whatever way that ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, Optional

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.protocols import amp
from twisted.python.failure import Failure

from twistedproxy.cache.redis.cache import RedisCache, redis_cache
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.errors import OriginError
from twistedproxy.origin.http.origin import HTTPOrigin
from twistedproxy.origin.interface import Caller
from twistedproxy.prefetch import commands
from twistedproxy.prefetch.instance_load import InstanceLoad, LocalFile, ProvisionalFrames
from twistedproxy.prefetch.jobs import LoadFailed, NotLoadable, Withdrawn, is_lasting
from twistedproxy.prefetch.throttle import Pace
from twistedproxy.settings import Settings
from twistedproxy.streams import ByteStream
from twistedproxy.system.tuning import lower_priority, use_monotonic_clock

PROGRESS_SECONDS = 0.1
"""How often a load says how far it is."""

LAST_SECONDS = 2.0
"""How long we live on without the proxy: to take back what is half loaded takes some milliseconds."""

FILE = "file:"


class ChildProtocol(amp.AMP):
    """The child's end of the pipe."""

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self._reactor = reactor
        self._cache: Optional[RedisCache] = None
        self._settings = Settings()
        self._pace = Pace(reactor)
        self._origins: dict[str, HTTPOrigin] = {}
        self._loads: dict[int, Deferred[dict[str, Any]]] = {}
        self._alone = False

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
        if self._alone and not self._loads:
            os._exit(0)
        if isinstance(result, Failure):
            lasting = NotLoadable if is_lasting(result.value) else LoadFailed
            kind = Withdrawn if result.check(Withdrawn) else lasting
            raise kind(_reason(result.value)) from None
        return result

    async def _load(
        self,
        number: int,
        source: str,
        instance: list[str],
        credential: bytes,
        headers: list[bytes],
        query: bytes,
        metadata: bytes,
        fence: bytes,
        seconds: float,
    ) -> dict[str, Any]:
        if self._cache is None:
            raise LoadFailed("the loader knows of no cache")
        address = Instance(*instance)
        lifetime = None if seconds < 0 else seconds
        done = [0, 0]
        frames = ProvisionalFrames(
            self._cache, address, fence, lifetime, lambda *told: done.__setitem__(slice(2), told)
        )
        expected = InstanceMetadata.from_bytes(metadata)
        load = InstanceLoad(frames, expected, self._reactor, self._pace.breathe, self._pace.batch_bytes)
        caller = Caller(credential, tuple(zip(headers[::2], headers[1::2])), query)
        stream = await self._open(source, address, caller)
        telling = LoopingCall(self._tell, number, done)
        telling.start(PROGRESS_SECONDS, now=False)
        try:
            loaded = await load.run(stream)
        finally:
            telling.stop()
        return {"frames": loaded.frames, "bytes": loaded.bytes, "transfer_syntax": loaded.transfer_syntax}

    async def _open(self, source: str, instance: Instance, caller: Caller) -> ByteStream:
        if source.startswith(FILE):
            return LocalFile(source[len(FILE) :])
        origin = self._origins.get(source)
        if origin is None:
            origin = self._origins[source] = HTTPOrigin(self._reactor, source, self._settings)
            await origin.start()
        return await origin.stored_instance(instance, caller)

    def _tell(self, number: int, done: list[int]) -> None:
        if not self._alone:
            self.callRemote(commands.Progress, number=number, frames=done[0], bytes=done[1])

    @commands.Rest.responder
    def rest(self, seconds: float) -> dict[str, Any]:
        self._pace.rest = seconds
        return {}

    @commands.Stop.responder
    def stop(self, number: int) -> dict[str, Any]:
        loading = self._loads.get(number)
        if loading is not None:
            loading.cancel()
        return {}

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The proxy has gone: take back what is half loaded, and go too."""
        self._alone = True
        if not self._loads:
            os._exit(0)
        self._reactor.callLater(LAST_SECONDS, os._exit, 0)
        for loading in list(self._loads.values()):
            loading.cancel()


def _reason(error: Optional[BaseException]) -> str:
    """What went wrong, for the log. Errors that are not ours may quote anything: only their kind is told."""
    if isinstance(error, CancelledError):
        return "stopped"
    if isinstance(error, (LoadFailed, OriginError)) and str(error):
        return str(error)[: commands.MAX_REASON]
    return type(error).__name__


def main() -> None:
    """Serve the proxy at standard input and output until it goes."""
    from twisted.internet import reactor, stdio

    use_monotonic_clock(reactor)
    lower_priority()
    # Ctrl-C in a terminal is for the proxy, which ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings = FilteringLogObserver(textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(LogLevel.warn)])
    globalLogBeginner.beginLoggingTo([warnings], redirectStandardIO=False)
    stdio.StandardIO(ChildProtocol(reactor))
    # what anybody prints must not get into the conversation
    sys.stdout = sys.stderr
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined,call-arg]


if __name__ == "__main__":
    main()
