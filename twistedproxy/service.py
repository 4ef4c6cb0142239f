"""The service that twistd runs: one proxy in this process, or the parent of several workers.

What a proxy consists of is `twistedproxy.proxy`'s business. A start that fails ends the process with a last line
that says why.

SIGHUP replaces the workers, and without any says so: it ends nothing.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, Any, Optional, Protocol

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.options.command import Options
from twistedproxy.server.listening import descriptions
from twistedproxy.server.privileges import Ports, changes_user, move_home
from twistedproxy.server.startup_log import announce
from twistedproxy.settings import Settings
from twistedproxy.system.logs import AccessLog, LoggedService, LogOutput, twistd_output
from twistedproxy.system.tuning import allow_open_files, freeze_gc, keep_freed_memory, use_monotonic_clock

if TYPE_CHECKING:
    from twistedproxy.workers.supervisor import Supervisor

__all__ = ["Options", "ProxyService", "makeService"]

_log = Logger()

START_FAILED = 1
"""The exit code after a start that failed."""

OLDEST_TWISTED = (26, 10)

START_GRACE = 2.0
"""Seconds that a part which is just starting gets to finish that when all is to stop; then it is cancelled."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def makeService(options: Options) -> IService:
    """The service that twistd runs."""
    _check_twisted()
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    allow_open_files()
    twistd_options = getattr(options, "parent", None)
    try:
        output = twistd_output(options.settings.log_format, twistd_options)
    except OSError as error:
        sys.exit(f"twistedproxy could not start: --logfile: {error.strerror}: {error.filename}")
    service = LoggedService(output)
    _OneSignalIsEnough().setServiceParent(service)  # first: the other's beginning takes a moment
    proxy = ProxyService(reactor, options.settings, output=output, changes_user=changes_user(twistd_options))
    _ReloadSignal(proxy).setServiceParent(service)
    proxy.setServiceParent(service)
    return service


def _check_twisted() -> None:
    """Exit with a message where Twisted is too old, before an import or an attribute fails somewhere."""
    found = version("twisted")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST_TWISTED:
        wanted = ".".join(map(str, OLDEST_TWISTED))
        sys.exit(f"twistedproxy could not start: it needs Twisted {wanted} or newer, and this is Twisted {found}")


class _OneSignalIsEnough(Service):
    """Lets the first request to stop through: Twisted would log each further one as an error."""

    def startService(self) -> None:
        super().startService()
        from twisted.internet import reactor

        reactor.callWhenRunning(self._install)  # type: ignore[attr-defined]

    def _install(self) -> None:
        for number in _STOP_SIGNALS:
            stop = signal.getsignal(number)
            if callable(stop):
                signal.signal(number, functools.partial(self._pass_on, stop))

    @staticmethod
    def _pass_on(stop: Callable[[int, Optional[FrameType]], Any], number: int, frame: Optional[FrameType]) -> None:
        for each in _STOP_SIGNALS:
            signal.signal(each, lambda *_: None)
        stop(number, frame)


class _ReloadSignal(Service):
    """Has SIGHUP reload *proxy*. By default it would end the process."""

    def __init__(self, proxy: ProxyService) -> None:
        self._proxy = proxy

    def startService(self) -> None:
        super().startService()
        from twisted.internet import reactor

        pass_on = reactor.callFromThread  # type: ignore[attr-defined]
        signal.signal(signal.SIGHUP, lambda *_: pass_on(self._proxy.reload))


def _leave(reason: str) -> None:
    """End the process in an orderly way, with an exit code that twistd has no means to set, and *reason* last."""
    from twisted.internet import reactor

    def exit_with_reason() -> None:
        # The interpreter's last act: twistd has removed its pid file, and the log (sys.stderr too, by now) is closed.
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        os.write(2, f"twistedproxy could not start: {reason}\n".encode())
        os._exit(START_FAILED)

    atexit.register(exit_with_reason)
    reactor.stop()  # type: ignore[attr-defined]


class _Proxy(Protocol):
    """What is started and stopped: all of a proxy, or its parent."""

    stopping: bool

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class ProxyService(Service):
    """One proxy: its rooms, in order. *leave* is called with the reason where it cannot start.

    *changes_user*: twistd will, between `privilegedStartService` and `startService`.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        leave: Callable[[str], None] = _leave,
        output: Optional[LogOutput] = None,
        changes_user: bool = False,
    ) -> None:
        self._reactor = reactor
        self._output = output
        self._settings = settings
        self._leave = leave
        self._rooms: Optional[_Proxy] = None
        self._starting: Optional[Deferred[None]] = None
        self._supervisor: Optional[Supervisor] = None
        self._changes_user = changes_user
        self._ports = Ports(reactor)

    def privilegedStartService(self) -> None:
        """Bind, where it will not be allowed to later."""
        super().privilegedStartService()
        if self._changes_user:
            self._ports.bind_early(descriptions(self._settings))

    def startService(self) -> None:
        """Start in order, in the background of the reactor."""
        super().startService()
        if self._changes_user:
            move_home()
        # A start may fail at once, and a reactor that does not run yet cannot be stopped.
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running:
            self._starting = Deferred.fromCoroutine(self._start())
            self._starting.addErrback(self._start_failed)

    async def _start(self) -> None:
        if self._settings.workers > 1:
            await self._start_parent()
        else:
            await self._start_proxy()

    async def _start_parent(self) -> None:
        from twistedproxy.workers.supervisor import Supervisor

        self._rooms = self._supervisor = Supervisor(self._reactor, self._settings, self._output, self._ports.bind)
        await self._supervisor.start()
        freeze_gc()

    async def _start_proxy(self) -> None:
        from twistedproxy.proxy import Proxy

        async def joining() -> None:
            keep_freed_memory()
            freeze_gc()

        output, listen = AccessLog(self._output), self._ports.listen
        self._rooms = rooms = Proxy(self._reactor, self._settings, output, listen=listen, joining=joining)
        await rooms.start()
        announce(self._settings, rooms.hosts(), rooms.served())

    def reload(self) -> None:
        """Replace the workers, where there are any."""
        if self._supervisor is not None:
            self._supervisor.reload()
        elif self._settings.workers == 1:
            _log.info("nothing is reloaded: this one process is all there is; with --workers, workers are replaced")

    def _start_failed(self, failure: Failure) -> None:
        if not self.running:
            return
        from twistedproxy.workers.worker import EXPECTED

        reason = failure.getErrorMessage()
        if failure.check(*EXPECTED) is None:
            _log.failure("twistedproxy could not start", failure)
        _log.critical("twistedproxy could not start: {reason}", reason=reason)
        self._leave(reason)

    def stopService(self) -> Deferred[None]:
        """Stop in order. The Deferred fires when all has ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._rooms is not None:
            self._rooms.stopping = True
        if self._starting is not None:
            await self._starting.addTimeout(START_GRACE, self._reactor, lambda *_: None)
        if self._rooms is not None:
            await self._rooms.stop()
        await self._ports.close()
