"""A loader child: ``python -m twistedproxy.prefetch.loader_main``, started and called by the proxy.

It streams stored instances from origins into the cache, and ends when its pipe does: with the proxy, whatever way that
ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.cache.open import open_shared
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.errors import OriginError
from twistedproxy.origin.http.origin import HTTPOrigin
from twistedproxy.origin.interface import Caller
from twistedproxy.prefetch.instance_load import InstanceLoad, Loaded, Pace, ProvisionalFrames, local_file
from twistedproxy.prefetch.jobs import LoadFailed, NotLoadable, Withdrawn, is_lasting
from twistedproxy.processes.channel import CallError, Channel, connect_to_parent
from twistedproxy.settings import Settings
from twistedproxy.streams import ByteStream
from twistedproxy.system.tracing import current_trace
from twistedproxy.system.tuning import lower_priority, use_monotonic_clock

PROGRESS_SECONDS = 0.1
"""How often a load reports how far it is."""

LAST_SECONDS = 2.0
"""How long the child goes on without the proxy: to remove what is half loaded takes some milliseconds."""

MAX_REASON = 1000
"""Characters of an error's text."""

FILE = "file:"


class LoaderMain:
    """What the proxy may call."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._cache: Optional[Cache] = None
        self._settings = Settings()
        self._pace = Pace(reactor)
        self._origins: dict[str, HTTPOrigin] = {}
        self._loads: dict[int, Deferred[Loaded]] = {}
        self._orphaned = False
        names = ("configure", "load", "rest", "stop")
        self.channel = Channel({name: getattr(self, name) for name in names}, self._lost)

    async def configure(self, packed: bytes) -> None:
        """Connect to the cache. *packed*: its address, and settings of origins."""
        address, self._settings = pickle.loads(packed)  # noqa: S301 - from our own parent's pipe
        self._cache = open_shared(self._reactor, address, in_threads=False)
        await self._cache.start()

    async def load(self, order: bytes, number: int) -> Any:
        """Load an instance. *number* names the load in ``progress`` and ``stop``."""
        trace, given = pickle.loads(order)  # noqa: S301 - from our own parent's pipe
        current_trace.set(trace)
        loading = self._loads[number] = Deferred.fromCoroutine(self._load(number, *given))
        try:
            return attrs.astuple(await loading)
        except Exception as error:
            kind = NotLoadable if is_lasting(error) else LoadFailed
            raise CallError(_reason(error), (Withdrawn if isinstance(error, Withdrawn) else kind).__name__) from None
        finally:
            del self._loads[number]
            if self._orphaned and not self._loads:
                os._exit(0)

    async def _load(
        self,
        number: int,
        source: str,
        instance: Instance,
        caller: Caller,
        metadata: InstanceMetadata,
        fence: Fence,
        seconds: Optional[float],
    ) -> Loaded:
        """Load *source*: an origin's URL, or ``file:`` and the path of the one file."""
        if self._cache is None:
            raise LoadFailed("the loader has no cache")
        progress = {"frames": 0, "size": 0}
        frames = ProvisionalFrames(
            self._cache, instance, fence, seconds, lambda frames, size: progress.update(frames=frames, size=size)
        )
        load = InstanceLoad(frames, metadata, self._reactor, self._pace.breathe, self._pace.batch_bytes)
        stream = await self._open(source, instance, caller)
        reporting = LoopingCall(lambda: self.channel.notify("progress", number=number, **progress))
        reporting.start(PROGRESS_SECONDS, now=False)
        try:
            return await load.run(stream)
        finally:
            reporting.stop()

    async def _open(self, source: str, instance: Instance, caller: Caller) -> ByteStream:
        if source.startswith(FILE):
            return local_file(source[len(FILE) :])
        origin = self._origins.get(source)
        if origin is None:
            origin = self._origins[source] = HTTPOrigin(self._reactor, source, self._settings)
            await origin.start()
        return await origin.stored_instance(instance, caller)

    async def rest(self, seconds: float) -> None:
        """Have loads pause for *seconds* after each chunk from now on."""
        self._pace.rest = seconds

    async def stop(self, number: int) -> None:
        """Give a load up: it is answered with an error once what it wrote is removed."""
        if number in self._loads:
            self._loads[number].cancel()

    def _lost(self) -> None:
        """The proxy has gone: remove what is half loaded, and end."""
        self._orphaned = True
        if not self._loads:
            os._exit(0)
        self._reactor.callLater(LAST_SECONDS, os._exit, 0)
        for loading in list(self._loads.values()):
            loading.cancel()


def _reason(error: Exception) -> str:
    """What went wrong, for the log. Errors of others may quote anything: of them only the kind is logged."""
    if isinstance(error, CancelledError):
        return "stopped"
    if isinstance(error, (LoadFailed, OriginError)) and str(error):
        return str(error)[:MAX_REASON]
    return type(error).__name__


def main() -> None:
    """Serve the proxy until it goes."""
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    lower_priority()
    # Ctrl-C in a terminal is for the proxy, which ends its children in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings = FilteringLogObserver(textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(LogLevel.warn)])
    globalLogBeginner.beginLoggingTo([warnings], redirectStandardIO=False)
    connect_to_parent(LoaderMain(reactor).channel)
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined,call-arg]


if __name__ == "__main__":
    main()
