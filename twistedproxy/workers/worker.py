"""A worker: ``python -m twistedproxy.workers.worker``, started by the parent with its sockets open.

It gets everything over the pipe, answers requests like a proxy of its own, and ends when its parent calls for it, when it
is sent SIGTERM, and when the pipe ends: with its parent, whatever way that ends. One that hangs then does not see the
pipe end; on Linux the kernel sends it a signal.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.origin.errors import OriginError
from twistedproxy.processes.channel import CallError, Channel, connect_to_parent
from twistedproxy.processes.messages import FIRST_SOCKET
from twistedproxy.processes.with_parent import end_with_parent
from twistedproxy.server.listening import listening_on
from twistedproxy.settings import Settings
from twistedproxy.system.logs import AccessLog, begin_logging
from twistedproxy.system.tuning import freeze_gc, keep_freed_memory, use_monotonic_clock
from twistedproxy.workers.broadcast import SiblingsByParent

STACKS_SIGNAL = signal.SIGUSR2
"""Makes it print where all its threads are, even where no Python code gets to run any more."""

ORPHAN_SECONDS = 3.0
"""How long responses may go on once the parent has gone."""

FAREWELL_SECONDS = 2.0
"""How long the parent may take to note the last metrics."""

EXPECTED = (OSError, RuntimeError, ValueError, CannotListenError, CacheUnavailable, OriginError)
"""What may keep a proxy from starting without a fault of its code."""

_log = Logger()


class Worker:
    """What the parent may call."""

    def __init__(self, reactor: Any) -> None:
        from twistedproxy.proxy import Proxy

        self._reactor = reactor
        self._make_proxy = Proxy
        self._proxy: Optional[Proxy] = None
        self._ending = False
        names = ("start", "ping", "drain", "invalidate", "revoke", "snapshot", "status")
        self.channel = Channel({name: getattr(self, name) for name in names}, self._orphaned)

    async def start(self, packed: bytes) -> list[dict[str, Any]]:
        """Start the proxy and listen; what it serves. *packed*: `Settings`."""
        settings: Settings = pickle.loads(packed)  # noqa: S301 - from our own parent's pipe
        output = begin_logging(settings.log_format, sys.stdout)
        siblings = SiblingsByParent(self.channel, self._reactor, self._counted)
        listen = listening_on(self._reactor, FIRST_SOCKET)
        try:
            proxy = self._proxy = self._make_proxy(
                self._reactor, settings, AccessLog(output), siblings, listen, self._join
            )
            await proxy.start()
        except EXPECTED as error:
            raise CallError(str(error) or type(error).__name__) from None
        return [attrs.asdict(each) for each in proxy.served()]

    async def _join(self) -> None:
        keep_freed_memory()
        freeze_gc()
        await self.channel.call("join")

    async def ping(self) -> None:
        """Answer (`twistedproxy.workers.watchdog`)."""

    async def drain(self, idle_seconds: float) -> None:
        """Accept no more, let running answers finish, and end. Idle connections stay for *idle_seconds*."""
        self.end(idle_seconds)

    async def invalidate(self, scope: list[Optional[str]], cache_invalidated: bool) -> None:
        if self._proxy is not None:
            self._proxy.invalidation.apply(Scope(*scope), cache_invalidated)  # type: ignore[arg-type]

    async def revoke(self, credential: str, instance: list[str]) -> None:
        if self._proxy is not None:
            self._proxy.revoke(bytes.fromhex(credential), Instance(*instance))

    async def snapshot(self) -> Any:
        return self._counted()

    def _counted(self) -> Any:
        return self._proxy.metrics.snapshot() if self._proxy is not None else {}

    async def status(self) -> Any:
        return self._proxy.status() if self._proxy is not None else None

    def end(self, idle_seconds: float = 0.0) -> None:
        """End in order, once."""
        if not self._ending:
            self._ending = True
            Deferred.fromCoroutine(self._finish(idle_seconds)).addErrback(self._not_in_order)

    async def _finish(self, idle_seconds: float) -> None:
        if self._proxy is not None:
            await self._proxy.stop(idle_seconds)
            farewell = self.channel.call("counted", snapshot=self._counted())
            await farewell.addTimeout(FAREWELL_SECONDS, self._reactor).addErrback(lambda _: None)
        self._reactor.callLater(0, self._reactor.stop)

    def _not_in_order(self, failure: Any) -> None:
        _log.failure("the worker did not stop cleanly", failure)
        os._exit(1)

    def _orphaned(self) -> None:
        self._reactor.callLater(ORPHAN_SECONDS, os._exit, 1)
        self.end()


def end_soon_after_parent() -> None:
    """Have the kernel end this process soon after its parent, also where no turn of the reactor does."""
    if sys.platform == "linux":
        seconds = int(ORPHAN_SECONDS) + 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGRTMIN, lambda *_: signal.alarm(seconds))
        end_with_parent(signal.SIGRTMIN)


def main() -> None:
    """Serve until the parent ends it."""
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    worker = Worker(reactor)
    connect_to_parent(worker.channel)
    end_soon_after_parent()
    faulthandler.register(STACKS_SIGNAL)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        # the terminal's Ctrl-C, a reload, another log file: all are for the parent
        signal.signal(number, signal.SIG_IGN)

    def install() -> None:
        # Behind Twisted's own: those notice that children end, and must be there.
        signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(worker.end))  # type: ignore[attr-defined]

    reactor.callWhenRunning(install)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
