"""Builds the proxy out of its rooms and orders their beginnings and ends. Nothing else wires anything.

Starting: cache, origins, then listeners. Stopping: listeners, open connections (with a deadline), origins, cache.
A start that fails ends the process with a last line that says why.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Optional

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.logs import AccessLog, LoggedService, LogOutput, twistd_output
from twistedproxy.options import Options
from twistedproxy.prefetch.gates import switched_off
from twistedproxy.settings import Settings

__all__ = ["Options", "ProxyService", "makeService"]

_log = Logger()

START_FAILED = 1
"""The exit code after a start that failed."""

START_GRACE = 2.0
"""Seconds that a part which is just starting gets to finish that when all is to stop; then it is cancelled."""

STEP_SECONDS = 10.0
"""How long a part may take to stop, open connections apart: a cache server or an origin that hangs keeps nobody."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def makeService(options: Options) -> IService:
    """The service that twistd runs."""
    from twisted.internet import reactor

    twistd_options = getattr(options, "parent", None)
    output = twistd_output(options.settings.log_format, twistd_options)
    service = LoggedService(output)
    _OneSignalIsEnough().setServiceParent(service)  # first: the other's beginning takes a moment
    ProxyService(reactor, options.settings, output=output).setServiceParent(service)
    return service


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


class ProxyService(Service):
    """One proxy: its rooms, in order. *leave* is called with the reason where it cannot start."""

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        leave: Callable[[str], None] = _leave,
        output: Optional[LogOutput] = None,
    ) -> None:
        self._reactor = reactor
        self._output = output
        self._settings = settings
        self._leave = leave
        self._rooms: Optional[Rooms] = None
        self._starting: Optional[Deferred[None]] = None

    def startService(self) -> None:
        """Start in order, in the background of the reactor."""
        super().startService()
        # A start may fail at once, and a reactor that does not run yet cannot be stopped.
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running:
            self._starting = Deferred.fromCoroutine(self._start())
            self._starting.addErrback(self._start_failed)

    async def _start(self) -> None:
        self._rooms = Rooms(self._reactor, self._settings, AccessLog(self._output))
        await self._rooms.start()

    def _start_failed(self, failure: Failure) -> None:
        if not self.running:
            return
        from twistedproxy.cache.interface import CacheUnavailable
        from twistedproxy.origin.errors import OriginError

        reason = failure.getErrorMessage()
        expected = (OSError, RuntimeError, ValueError, CannotListenError, CacheUnavailable, OriginError)
        if failure.check(*expected) is None:
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


class Rooms:
    """All parts of one proxy."""

    def __init__(self, reactor: Any, settings: Settings, access_log: Optional[AccessLog] = None) -> None:
        from twistedproxy.cache.open import open_cache
        from twistedproxy.cache.use import CacheUse
        from twistedproxy.frames.access import Access
        from twistedproxy.frames.credentials import Credentials, normal_key
        from twistedproxy.frames.forgetting import Forgetting
        from twistedproxy.frames.pictures import PictureReader
        from twistedproxy.frames.reader import FrameReader
        from twistedproxy.frames.series import SeriesLookup
        from twistedproxy.metrics import Metrics
        from twistedproxy.origin.open import open_origin
        from twistedproxy.prefetch.children import Children
        from twistedproxy.prefetch.jobs import JobBook
        from twistedproxy.prefetch.load_reading import LoadReader
        from twistedproxy.prefetch.loaders import InProcessLoader
        from twistedproxy.prefetch.scheduler import Scheduler
        from twistedproxy.web.app import ProxyRoutes
        from twistedproxy.web.descriptions import Descriptions
        from twistedproxy.web.mounts import Mount, Mounts
        from twistedproxy.web.passthrough import PassThrough
        from twistedproxy.web.server import Connections
        from twistedproxy.web.status import AdminRoutes, StatusPages
        from twistedproxy.web.warming import Warming

        access_log = access_log or AccessLog()
        self.stopping = False
        self._reactor = reactor
        self._settings = settings
        self.metrics = Metrics()
        self.cache = open_cache(reactor, settings.cache, settings.cache_memory, self.metrics)
        self.mounts = Mounts(
            Mount(mount.prefix.rstrip("/"), open_origin(reactor, mount.url, settings, self.metrics))
            for mount in settings.origin
        )
        credentials = Credentials(
            normal_key(settings.secret),
            tuple(name.encode("ascii") for name in settings.credential_header),
            tuple(name.encode("ascii") for name in settings.credential_cookie),
        )
        self.access = Access(self.cache, time.time, settings.grant_ttl)
        self.forgetting = Forgetting(self.cache, self.access.grants, reactor)
        self.reader = FrameReader(self.cache, self.access, self.forgetting, settings.frame_ttl, settings.max_answer)
        pictures = PictureReader(self.reader, self.cache, settings.frame_ttl)
        descriptions = Descriptions(self.cache, self.access, self.reader, credentials, reactor)
        self.jobs = JobBook(reactor, self.metrics, settings.reap_interval)
        self.children = Children(reactor, self.cache, settings, self.metrics)
        in_process = InProcessLoader(self.cache, reactor)
        self._cache_use = CacheUse(self.cache, self.metrics, reactor)
        load = LoadReader(self._cache_use.on_this_machine)
        self.scheduler = Scheduler(
            settings,
            self.cache,
            self.reader,
            self.metrics,
            reactor,
            self.jobs,
            lambda: load.read(reactor.seconds()),
            in_process,
            self.children if self.cache.shared else in_process,
        )
        self.reader.answered = self.scheduler.answered
        status = StatusPages(self.mounts, self.cache, self.metrics, reactor, self.jobs.status, self._workers)
        self.connections = Connections(reactor, settings.client_timeout)
        self._routes = ProxyRoutes(
            settings,
            self.mounts,
            credentials,
            self.reader,
            pictures,
            SeriesLookup(time.monotonic, settings.grant_ttl),
            PassThrough(self.forgetting, descriptions),
            status,
            Warming(self.reader, self.scheduler, self.jobs, reactor),
            self.metrics,
            access_log,
            time.perf_counter,
        )
        self._admin_routes = AdminRoutes(status, self.metrics, access_log, time.perf_counter)
        self._ports: list[IListeningPort] = []

    def _workers(self) -> list[dict[str, object]]:
        return [{"pid": os.getpid(), "connections": len(self.connections), "grants": len(self.access.grants)}]

    async def start(self) -> None:
        """Start all parts, the listeners last; go no further once `stopping`. Raises what keeps one from starting."""
        await self.cache.start()
        for mount in self.mounts.all:
            if not self.stopping:
                await mount.origin.start()
        if not self.stopping:
            self._start_prefetch()
            self.connections.start()
            await self._listen()

    def _start_prefetch(self) -> None:
        self._cache_use.start()
        self.jobs.start_reaping()
        reason = switched_off(self._settings)
        if reason is not None:
            _log.info("nothing is prefetched: {reason}", reason=reason.value)
        elif self.cache.shared and self._settings.whole_instance:
            self.children.start()

    async def _stop_prefetch(self) -> None:
        await self.scheduler.stop()
        await self.children.stop()
        self.jobs.stop_reaping()
        self._cache_use.stop()

    async def _listen(self) -> None:
        from twistedproxy.web.server import ProxySite

        for text in self._settings.listen:
            await self._listen_at(text, ProxySite(self._routes.app.resource(), self.connections, self._reactor))
        if self._settings.admin_listen is not None:
            site = ProxySite(self._admin_routes.app.resource(), self.connections, self._reactor)
            await self._listen_at(self._settings.admin_listen, site)
        self._warn_of_pages()
        self._announce()

    def _warn_of_pages(self) -> None:
        from twistedproxy.web.status import is_beyond_loopback

        for port in self._ports if self._settings.admin_listen is None else self._ports[-1:]:
            if is_beyond_loopback(port.getHost()):
                _log.warn(
                    "/metrics and /status.json name instances, and {address} can be reached from elsewhere: "
                    "--admin-listen gives them a listener of their own",
                    address=str(port.getHost()),
                )

    async def _listen_at(self, text: str, site: Any) -> None:
        from twisted.internet.endpoints import serverFromString

        self._ports.append(await serverFromString(self._reactor, text).listen(site))

    def _announce(self) -> None:
        """Say where to go and what to try."""
        for port in self._ports:
            host: Any = port.getHost()
            name = getattr(host, "name", None)
            if name is not None:
                _log.info("listening on unix:{path}", path=name.decode() if isinstance(name, bytes) else name)
                continue
            address = f"[{host.host}]" if ":" in host.host else host.host
            for mount in self.mounts.all:
                base = f"http://{address}:{host.port}{mount.prefix}"
                _log.info("{base} stands for {origin}", base=base, origin=mount.origin.url)
                for path in mount.origin.examples():
                    _log.info("try {url}", url=f"{base}/{path}")

    async def stop(self) -> None:
        """Stop all parts; running answers may finish until the deadline."""
        self.stopping = True
        ports, self._ports = self._ports, []
        for port in ports:
            await self._ended("a listener", _stopped(port))
        cut = await self.connections.drain(self._settings.stop_deadline)
        if cut:
            _log.warn("{cut} connections were cut at the deadline for stopping", cut=cut)
        self.forgetting.stop()
        await self._ended("prefetch", self._stop_prefetch())
        for mount in self.mounts.all:
            await self._ended(f"the origin at {mount.prefix or '/'}", mount.origin.stop())
        await self._ended("the cache", self.cache.stop())

    async def _ended(self, what: str, stopping: Coroutine[Deferred[Any], Any, None]) -> None:
        """Wait until one part has stopped. That it doesn't must not keep the next from being stopped."""
        try:
            await Deferred.fromCoroutine(stopping).addTimeout(STEP_SECONDS, self._reactor)
        except Exception:
            _log.failure("{what} did not stop as it should", what=what)


async def _stopped(port: IListeningPort) -> None:
    stopping = port.stopListening()
    if isinstance(stopping, Deferred):
        await stopping
