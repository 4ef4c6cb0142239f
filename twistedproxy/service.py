"""The service that twistd runs: one proxy in this process, or the parent of several workers.

A start that fails ends the process with a last line that says why. SIGHUP replaces the workers; it ends nothing.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Optional, Union, cast

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.options.command import Options
from twistedproxy.server.listening import Ports, changes_user, descriptions, move_home
from twistedproxy.server.startup_log import announce
from twistedproxy.settings import Settings
from twistedproxy.system.logs import AccessLog, LoggedService, LogOutput, twistd_output
from twistedproxy.system.tuning import allow_open_files, freeze_gc, keep_freed_memory, use_monotonic_clock

if TYPE_CHECKING:
    from twistedproxy.proxy import Proxy
    from twistedproxy.workers.supervisor import Supervisor

_log = Logger()

OLDEST_TWISTED = (26, 10)

START_GRACE = 2.0
"""Seconds that a start may go on once all is to stop; then it is cancelled."""


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
    proxy = ProxyService(reactor, options.settings, output=output, changes_user=changes_user(twistd_options))
    _Signals(reactor, proxy.reload).setServiceParent(service)  # first: the other's beginning takes a moment
    proxy.setServiceParent(service)
    return service


def _check_twisted() -> None:
    """Exit with a message where Twisted is too old, before an import or an attribute fails somewhere."""
    found, wanted = version("twisted"), ".".join(map(str, OLDEST_TWISTED))
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST_TWISTED:
        sys.exit(f"twistedproxy could not start: it needs Twisted {wanted} or newer, and this is Twisted {found}")


class _Signals(Service):
    """SIGHUP calls *reload*; by default it would end the process. Of the signals to stop, the first is passed on: Twisted
    would log each further one as an error."""

    def __init__(self, reactor: Any, reload: Callable[[], None]) -> None:
        self._reactor = reactor
        self._reload = reload
        self._stopping = False

    def startService(self) -> None:
        super().startService()
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))
        for name in ("sigInt", "sigTerm"):  # Twisted's handlers, which it installs when it runs
            setattr(self._reactor, name, partial(self._pass_on, getattr(self._reactor, name)))

    def _pass_on(self, stop: Callable[..., Any], *arguments: Any) -> None:
        if not self._stopping:
            self._stopping = True
            stop(*arguments)


def _leave(reason: str) -> None:
    """End the process in an orderly way, with an exit code that twistd has no means to set, and *reason* last."""
    from twisted.internet import reactor

    def exit_with_reason() -> None:
        # The interpreter's last act: twistd has removed its pid file, and the log (sys.stderr too, by now) is closed.
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        os.write(2, f"twistedproxy could not start: {reason}\n".encode())
        os._exit(1)

    atexit.register(exit_with_reason)
    reactor.stop()  # type: ignore[attr-defined]


class ProxyService(Service):
    """One proxy, or the parent of several. *leave* is called with the reason where it cannot start.

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
        self._running: Union[Proxy, Supervisor, None] = None
        self._starting: Optional[Deferred[None]] = None
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
            start = self._start_parent if self._settings.workers > 1 else self._start_proxy
            self._starting = Deferred.fromCoroutine(start()).addErrback(self._start_failed)

    async def _start_parent(self) -> None:
        from twistedproxy.workers.supervisor import Supervisor

        supervisor = self._running = Supervisor(self._reactor, self._settings, self._output, self._ports.bind)
        await supervisor.start()
        freeze_gc()

    async def _start_proxy(self) -> None:
        from twistedproxy.proxy import Proxy

        async def joining() -> None:
            keep_freed_memory()
            freeze_gc()

        log, listen = AccessLog(self._output), self._ports.listen
        proxy = self._running = Proxy(self._reactor, self._settings, log, listen=listen, joining=joining)
        await proxy.start()
        announce(self._settings, proxy.hosts(), proxy.served())

    def reload(self) -> None:
        """Replace the workers, where there are any."""
        if self._settings.workers == 1:
            _log.info("SIGHUP ignored: reloading needs --workers", event="reload_ignored")
        elif self._running is not None:
            cast("Supervisor", self._running).reload()

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
        if self._running is not None and self._starting is not None:
            self._running.stopping = True
            await self._starting.addTimeout(START_GRACE, self._reactor, lambda *_: None)
            await self._running.stop()
        await self._ports.close()
