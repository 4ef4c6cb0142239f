"""The proxy's end of its loader children: few, started early, used again.

- A child that ends takes its loads with it, which fail and say so; another child is started for the next.
- Starting again and again without success slows down instead of storming.
- A child ends with the proxy, whatever way that ends: its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ProcessExitedAlready
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.cache.interface import Cache
from twistedproxy.frames.entries import frame_name
from twistedproxy.metrics import Metrics
from twistedproxy.prefetch import commands
from twistedproxy.prefetch.instance_load import Loaded, LoadFailed
from twistedproxy.prefetch.jobs import Progress
from twistedproxy.prefetch.loaders import LoadTask
from twistedproxy.settings import Settings

MODULE = "twistedproxy.prefetch.child"
FIRST_RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 30.0
STOP_SECONDS = 3.0
"""How long a child may take to remove what a given-up load wrote; 10,000 frames take some milliseconds."""

CHILD_SECONDS = 10.0
"""How long a load waits for a child; it starts in about half a second."""

REMOVED_AT_ONCE = 5000
"""Frames that are removed from the cache in one go."""

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Of the environment. The proxy's own options in it may hold secrets."""

ORIGIN_SETTINGS = ("origin_concurrency", "origin_connect_timeout", "origin_timeout", "origin_stall_timeout")


class _ParentProtocol(amp.AMP):
    """Our end of the pipe to one child."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: dict[int, Progress] = {}

    @commands.Progress.responder
    def progress(self, number: int, frames: int, bytes: int) -> dict[str, Any]:
        listener = self.listeners.get(number)
        if listener is not None:
            listener(frames, bytes)
        return {}


@implementer(ITransport)
class _Pipe:
    """A child's standard input and output as the transport of a protocol."""

    disconnecting = False

    def __init__(self, process: Any) -> None:
        self._process = process

    def write(self, data: bytes) -> None:
        self._process.writeToChild(0, data)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self._process.loseConnection()

    def getPeer(self) -> Any:
        return None

    def getHost(self) -> Any:
        return None


class _Process(ProcessProtocol):
    """One child. *ended* fires when it is gone."""

    _log = Logger()

    def __init__(self) -> None:
        self.amp = _ParentProtocol()
        self.ended: Deferred[None] = Deferred()
        self.alive = True

    def connectionMade(self) -> None:
        self.amp.makeConnection(_Pipe(self.transport))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 1:
            self.amp.dataReceived(data)
        else:
            self._log.warn("a loader said: {text}", text=data.decode("utf-8", "replace").strip())

    def processEnded(self, reason: Failure) -> None:
        self.alive = False
        self.amp.connectionLost(Failure(ConnectionLost("the loader ended")))
        self.ended.callback(None)

    def kill(self) -> None:
        """End it now."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass


@attrs.define(eq=False)
class Children:
    """A `Loader` that loads in child processes. One child serves all: ``--max-jobs`` bounds its loads, and it starts
    before the first is needed."""

    reactor: Any
    cache: Cache
    settings: Settings
    metrics: Metrics
    _process: Optional[_Process] = attrs.field(init=False, default=None)
    _spawned: Optional[_Process] = attrs.field(init=False, default=None)
    _waiting: list[Deferred[None]] = attrs.field(init=False, factory=list)
    _numbers: int = attrs.field(init=False, default=0)
    _delay: float = attrs.field(init=False, default=FIRST_RETRY_SECONDS)
    _stopped: bool = attrs.field(init=False, default=False)
    _keeping: Optional[Deferred[None]] = attrs.field(init=False, default=None)
    _log = Logger()

    def start(self) -> None:
        """Start a child in the background."""
        self._keeping = Deferred.fromCoroutine(self._keep_one())
        self._keeping.addErrback(lambda failure: failure.trap(CancelledError) and None)

    @property
    def pids(self) -> list[int]:
        """The living children."""
        process = self._process
        return [process.transport.pid] if process is not None and process.alive else []  # type: ignore[union-attr]

    async def _keep_one(self) -> None:
        """Keep one child running, until we stop."""
        while not self._stopped:
            process = self._spawned = self._spawn()
            began = self.reactor.seconds()
            try:
                await self._configure(process)
            except Exception as error:
                self._log.warn("a loader could not be started: {reason}", reason=str(error))
                process.kill()
            await process.ended
            self._process = self._spawned = None
            self.metrics.set("prefetch_children", 0)
            if self._stopped:
                return
            lived = self.reactor.seconds() - began
            self._log.warn("a loader ended after {seconds:.1f} s", seconds=lived)
            self._delay = FIRST_RETRY_SECONDS if lived > MAX_RETRY_SECONDS else min(self._delay * 2, MAX_RETRY_SECONDS)
            await deferLater(self.reactor, self._delay)

    def _spawn(self) -> _Process:
        process = _Process()
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # the proxy may have been started from a source tree that is not installed
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self.reactor.spawnProcess(
            process, sys.executable, [sys.executable, "-m", MODULE], environment, childFDs={0: "w", 1: "r", 2: "r"}
        )
        return process

    async def _configure(self, process: _Process) -> None:
        address = self.cache.address
        assert address is not None, "a cache that other processes can't reach has no loaders"
        settings = {name: getattr(self.settings, name) for name in ORIGIN_SETTINGS}
        await process.amp.callRemote(
            commands.Configure, cache=commands.pack_address(address), settings=json.dumps(settings)
        )
        self._process = process
        self.metrics.set("prefetch_children", 1)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        """See `Loader`."""
        process = await self._child()
        self._numbers += 1
        number = self._numbers
        process.amp.listeners[number] = progress
        path = await task.origin.local_file(task.instance)
        instance = task.instance
        loading = process.amp.callRemote(
            commands.Load,
            number=number,
            source=f"file:{path}" if path is not None else task.origin.url,
            instance=[instance.origin, instance.root, instance.study, instance.series, instance.sop],
            credential=task.caller.credential,
            headers=[text for header in task.caller.headers for text in header],
            metadata=task.metadata.to_bytes(),
            fence=task.fence,
            seconds=-1.0 if task.seconds is None else task.seconds,
        )
        try:
            result = await _answer_of(loading)
        except CancelledError:
            await self._give_up(process, number, loading)
            raise
        except commands.ChildFailed as failed:
            raise LoadFailed(str(failed)) from None
        except ConnectionLost as lost:
            await self._remove_lost(task)
            raise LoadFailed(str(lost)) from None
        finally:
            del process.amp.listeners[number]
        return Loaded(result["frames"], result["bytes"], result["transfer_syntax"])

    async def _child(self) -> _Process:
        """The child, once there is one. Raises `LoadFailed` where none comes."""
        deadline = self.reactor.seconds() + CHILD_SECONDS
        while self._process is None:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            waiter.addTimeout(max(0.0, deadline - self.reactor.seconds()), self.reactor)
            try:
                await waiter
            except defer.TimeoutError:
                raise LoadFailed("no loader could be started") from None
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
        return self._process

    async def _give_up(self, process: _Process, number: int, loading: Deferred[Any]) -> None:
        """Let a child give a load up and clean up behind it; end the child where it doesn't."""
        ended: Deferred[None] = Deferred()
        loading.addBoth(lambda _: None if ended.called else ended.callback(None))
        ended.addTimeout(STOP_SECONDS, self.reactor)
        try:
            await process.amp.callRemote(commands.Stop, number=number)
            await ended
        except (defer.TimeoutError, ConnectionLost):
            process.kill()

    async def _remove_lost(self, task: LoadTask) -> None:
        """Remove what a load wrote whose child is gone: nobody knows how far it came."""
        for first in range(1, task.metadata.frames + 1, REMOVED_AT_ONCE):
            end = min(first + REMOVED_AT_ONCE, task.metadata.frames + 1)
            await self.cache.remove(task.instance, [frame_name(number) for number in range(first, end)])

    async def stop(self) -> None:
        """End the child. Its loads were given up before."""
        self._stopped = True
        if self._keeping is not None:
            if self._spawned is None:
                self._keeping.cancel()
            else:
                self._spawned.kill()
            ended: Deferred[None] = Deferred()
            self._keeping.addBoth(lambda _: ended.callback(None))
            await ended


def _answer_of(loading: Deferred[Any]) -> Deferred[Any]:
    """The outcome of *loading*, by a Deferred that can be cancelled without it."""
    waiter: Deferred[Any] = Deferred()

    def tell(outcome: Any) -> None:
        if isinstance(outcome, Failure):
            waiter.errback(outcome)
        else:
            waiter.callback(outcome)

    loading.addBoth(tell)
    return waiter
