"""The parent of several workers: it owns the listening sockets and the folder of a local cache, and keeps the workers alive.

- It answers no requests itself: what it does not do cannot bring it down.
- An orderly stop lets every worker finish; a reload replaces them one by one, the new one up before the old one goes.
  The sockets stay open meanwhile, and no connection is refused.
- One process more, the spare, waits with everything imported: a worker that was killed is replaced in a tenth of a second
  where a new process takes 1.4 to 2.1 s on a busy machine.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.address import LocalAddress, SharedFolder
from twistedproxy.cache.local.owner import FolderOwner
from twistedproxy.deferreds import all_or_none
from twistedproxy.processes.child import StartFailed
from twistedproxy.processes.kept_alive import KeptAlive
from twistedproxy.server.listening import descriptions
from twistedproxy.server.startup_log import Served, announce
from twistedproxy.settings import Settings
from twistedproxy.system.logs import LogOutput
from twistedproxy.workers import worker
from twistedproxy.workers.broadcast import WorkerProcess, Workers
from twistedproxy.workers.watchdog import Watchdog

START_SECONDS = 120.0
"""How long a worker may take until it listens: a folder of many files takes a while to index."""

IDLE_SECONDS = 2.0
"""How long a worker that was replaced keeps idle connections: a request may be on its way on any of them."""

KILL_SECONDS = 5.0
"""How long a worker may take beyond the deadline for stopping."""

SPARE_SECONDS = 10.0
"""After which another spare is started where one ended by itself."""

_log = Logger()


class Supervisor:
    """Starts, watches and ends the workers of *settings*. *output*: where their log lines go, which come ready-made.

    *bind*: how to bind as a description says. *module*: what a worker runs.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        output: Optional[LogOutput],
        bind: Callable[[str], Awaitable[IListeningPort]],
        module: str = worker.__name__,
    ) -> None:
        self.stopping = False
        self._reactor = reactor
        self._settings = settings
        self._output = output
        self._bind = bind
        self._module = module
        self._folder: Optional[FolderOwner] = None
        self._ports: list[IListeningPort] = []
        self._served: list[dict[str, Any]] = []
        self._workers = Workers()
        self._watchdog = Watchdog(reactor, lambda: self._workers.all)
        self._places = [KeptAlive(reactor, "worker", self._started, self._restarted) for _ in range(settings.workers)]
        self._spare = KeptAlive(reactor, "spare", self._spawned, None, SPARE_SECONDS, SPARE_SECONDS)
        self._reload_wanted = False
        self._changing = True  # starting, or being replaced

    async def start(self) -> None:
        """Start the cache, bind, and wait until all workers listen. Raises what keeps them from it."""
        await self._start_cache()
        for description in descriptions(self._settings):
            if not self.stopping:
                self._ports.append(await self._bind(description))
        self._watchdog.start()
        try:
            await all_or_none([Deferred.fromCoroutine(place.replace()) for place in self._places])
        except StartFailed as error:
            raise RuntimeError(f"a worker could not be started: {error}") from None
        self._spare.keep()
        _log.info("{count} workers are ready: {pids}", count=len(self._places), pids=self.pids())
        hosts = [port.getHost() for port in self._ports]
        announce(self._settings, hosts, [Served(**each) for each in self._served])
        self._changing = False
        self._reload_if_wanted()

    def pids(self) -> list[int]:
        """The living workers, those that finish among them."""
        return [one.pid for one in self._workers.all if one.joined and one.pid is not None]

    async def _start_cache(self) -> None:
        if isinstance(self._settings.cache, LocalAddress):
            self._settings = attrs.evolve(self._settings, cache=await self._owned(self._settings.cache))
        if isinstance(self._settings.near_cache, LocalAddress):
            self._settings = attrs.evolve(self._settings, near_cache=await self._owned(self._settings.near_cache))

    async def _owned(self, address: LocalAddress) -> SharedFolder:
        """The folder at *address*, prepared. There is one at most: a near cache stands in front of a server."""
        self._folder = FolderOwner(self._reactor, address)
        return await self._folder.start()

    # One worker.

    async def _spawned(self) -> WorkerProcess:
        """A new process that waits to be a worker. Raises `StartFailed`."""
        if self.stopping:
            raise StartFailed("the proxy is stopping")
        process = WorkerProcess(self._reactor, self._workers, self._output)
        process.spawn(self._module, sockets=[port.fileno() for port in self._ports])  # type: ignore[attr-defined]
        self._workers.add(process)
        return process

    async def _started(self, process: Optional[WorkerProcess] = None) -> WorkerProcess:
        """A worker that listens, made of *process* where that is given. Raises `StartFailed`."""
        process = process or await self._spawned()
        self._served = await process.begin("start", self.packed(), seconds=START_SECONDS)
        return process

    def packed(self) -> bytes:
        """The settings, with which each worker is started."""
        return pickle.dumps(self._settings)

    async def _restarted(self) -> WorkerProcess:
        """Likewise, made of the spare where there is one, for a worker that ended unasked."""
        self._workers.restarted()
        try:
            return await self._started(self._spare.take())
        finally:
            self._spare.keep()

    async def _drain(self, process: WorkerProcess, idle_seconds: float = 0.0) -> None:
        """Let a worker finish and end; kill it where it doesn't."""
        process.channel.notify("drain", idle_seconds=idle_seconds)
        try:
            seconds = self._settings.stop_deadline + idle_seconds + KILL_SECONDS
            await process.ended().addTimeout(seconds, self._reactor)
        except defer.TimeoutError:
            _log.warn("killing worker {pid}: it did not stop in time", pid=process.pid)
            await process.killed()

    # Reloading.

    def reload(self) -> None:
        """Begin to replace all workers: what SIGHUP asks for. While they are still being started, or replaced already,
        once more after it: some of them may have read what changed before it did."""
        if self.stopping:
            _log.info("SIGHUP ignored: the workers are being stopped", event="reload_ignored")
            return
        self._reload_wanted = True
        self._reload_if_wanted()

    def _reload_if_wanted(self) -> None:
        if self._reload_wanted and not self._changing and not self.stopping:
            self._reload_wanted, self._changing = False, True
            Deferred.fromCoroutine(self._replace_all()).addBoth(self._replaced)

    def _replaced(self, result: Any) -> None:
        if isinstance(result, Failure):
            _log.failure("reloading failed", result)
        self._changing = False
        self._reload_if_wanted()

    async def _replace_all(self) -> None:
        spare = self._spare.take()  # what it has imported may have changed
        if spare is not None:
            spare.kill()
        try:
            for place in self._places:
                old = await place.replace()
                if old is not None:
                    await self._drain(old, IDLE_SECONDS)
        except StartFailed as error:
            if not self.stopping:
                _log.error(
                    "reloading failed, so the current workers stay: {reason}", reason=str(error), event="reload_failed"
                )
        else:
            if not self.stopping:
                _log.info("all workers were replaced: {pids}", pids=self.pids(), event="reloaded")
        finally:
            self._spare.keep()

    # The end.

    async def stop(self) -> None:
        """Let all workers finish, then end the cache."""
        self.stopping = True
        kept = [Deferred.fromCoroutine(each.stop()) for each in (self._spare, *self._places)]
        ending = [
            Deferred.fromCoroutine(self._drain(each) if each.joined else each.killed())
            for each in list(self._workers.all)
        ]
        for port in self._ports:
            stopping = port.stopListening()
            if isinstance(stopping, Deferred):
                await stopping
        try:
            await all_or_none([*kept, *ending])
        finally:
            self._watchdog.stop()
        if self._folder is not None:
            await self._folder.stop()
