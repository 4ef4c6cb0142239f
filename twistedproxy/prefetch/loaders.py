"""Where whole instances are loaded: in this process, or in a child that has the CPU to itself.

A loader is told everything that it must know in one `LoadTask`; it writes to the cache only.

The loader that loads in a child process: started early, used again, replaced when it ends.

- A child that ends takes its loads with it, which fail and say so.
- Starting again and again without success slows down instead of storming.
- Loads rest while callers want much.
- A child ends with the proxy, whatever way that ends: its standard input does.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Optional, Protocol

import attrs
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols import amp

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.prefetch import commands
from twistedproxy.prefetch.child_process import LoaderChild
from twistedproxy.prefetch.instance_load import InstanceLoad, Loaded, ProvisionalFrames, remove_frames
from twistedproxy.prefetch.jobs import LoadFailed, Progress, Withdrawn
from twistedproxy.prefetch.throttle import rest_seconds
from twistedproxy.settings import Settings
from twistedproxy.system.demand import Demand
from twistedproxy.system.metrics import Metrics

TURN_SECONDS = 0.004
"""How long a load in this process works before it lets the reactor turn: others wait no longer than this."""


@attrs.frozen
class LoadTask:
    """A whole-instance load: what to load, on whose behalf, and the *fence* and *seconds* to write under."""

    origin: Origin = attrs.field(repr=False)
    instance: Instance
    caller: Caller
    metadata: InstanceMetadata
    fence: Fence
    seconds: Optional[float]


class Loader(Protocol):
    """Loads whole instances."""

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        """Load one. Cancellable: what was written is then removed, as after every failure.

        Raises `LoadFailed` (`Withdrawn` once anything was written) and the errors of
        `twistedproxy.origin.errors`.
        """


@attrs.frozen
class InProcessLoader:
    """Loads on the reactor, in short turns."""

    cache: Cache
    clock: IReactorTime

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        stream = await task.origin.stored_instance(task.instance, task.caller)
        frames = ProvisionalFrames(self.cache, task.instance, task.fence, task.seconds, progress)
        return await InstanceLoad(frames, task.metadata, self.clock, turns(self.clock)).run(stream)


def turns(clock: IReactorTime, seconds: float = TURN_SECONDS) -> Callable[[], Optional[Awaitable[None]]]:
    """A function that now and then returns something to wait for: when *seconds* have passed since the reactor turned."""
    began = clock.seconds()

    async def turn() -> None:
        nonlocal began
        await deferLater(clock, 0)
        began = clock.seconds()

    return lambda: turn() if clock.seconds() - began >= seconds else None


FIRST_RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 30.0

CONFIGURE_SECONDS = 20.0
"""How long a child may take to start and to meet the cache; about half a second is usual."""

CHILD_SECONDS = 10.0
"""How long a load waits for a child."""

STOP_SECONDS = 3.0
"""How long a child may take to remove what a given-up load wrote; 10,000 frames take some milliseconds."""

ORIGIN_SETTINGS = ("origin_concurrency", "origin_connect_timeout", "origin_timeout", "origin_stall_timeout")


@attrs.define(eq=False)
class Children:
    """A `Loader` that loads in a child process. One child serves all: ``--max-jobs`` bounds its loads."""

    reactor: Any
    cache: Cache
    settings: Settings
    metrics: Metrics
    demand: Demand
    _ready: Optional[LoaderChild] = attrs.field(init=False, default=None)
    _spawned: Optional[LoaderChild] = attrs.field(init=False, default=None)
    _waiting: list[Deferred[None]] = attrs.field(init=False, factory=list)
    _loads: int = attrs.field(init=False, default=0)
    _delay: float = attrs.field(init=False, default=FIRST_RETRY_SECONDS)
    _stopped: bool = attrs.field(init=False, default=False)
    _keeping: Optional[Deferred[None]] = attrs.field(init=False, default=None)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.demand.changed.append(self._tell_pace)

    def start(self) -> None:
        """Start a child in the background."""
        self._keeping = Deferred.fromCoroutine(self._keep_one())
        self._keeping.addErrback(lambda failure: failure.trap(CancelledError) and None)

    @property
    def pids(self) -> list[int]:
        """The living children that are ready for loads."""
        pid = self._ready.process.pid if self._ready is not None else None
        return [pid] if pid is not None else []

    # Keeping a child.

    async def _keep_one(self) -> None:
        """Keep one child running, until we stop."""
        while not self._stopped:
            began = self.reactor.seconds()
            await self._one_life()
            if self._stopped:
                return
            lived = self.reactor.seconds() - began
            if lived > MAX_RETRY_SECONDS:
                self._delay = FIRST_RETRY_SECONDS
            self._log.warn(
                "a loader ended after {seconds:.1f} s; another is started in {delay:g} s",
                seconds=lived,
                delay=self._delay,
            )
            delay, self._delay = self._delay, min(self._delay * 2, MAX_RETRY_SECONDS)
            await deferLater(self.reactor, delay)

    async def _one_life(self) -> None:
        try:
            child = self._spawned = LoaderChild.spawn(self.reactor)
        except OSError as error:
            self._log.warn("a loader could not be started: {reason}", reason=str(error))
            return
        try:
            await self._configure(child)
        except Exception as error:
            if not self._stopped:
                self._log.warn("a loader could not be started: {reason}", reason=str(error) or type(error).__name__)
            child.process.kill()
        await child.process.ended()
        self._ready = self._spawned = None
        self.metrics.set("prefetch_children", 0)

    async def _configure(self, child: LoaderChild) -> None:
        address = self.cache.address
        if address is None:
            raise LoadFailed("other processes can't reach the cache")
        settings = {name: getattr(self.settings, name) for name in ORIGIN_SETTINGS}
        configured = child.callRemote(
            commands.Configure, cache=commands.pack_address(address), settings=json.dumps(settings)
        )
        await _Outcome(configured).wait().addTimeout(CONFIGURE_SECONDS, self.reactor)
        self._ready = child
        self._tell_pace()
        self.metrics.set("prefetch_children", 1)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def _tell_pace(self) -> None:
        if self._ready is not None:
            self._ready.callRemote(commands.Rest, seconds=rest_seconds(self.demand))

    async def _child(self) -> LoaderChild:
        """The child, once there is one. Raises `LoadFailed` where none comes."""
        deadline = self.reactor.seconds() + CHILD_SECONDS
        while self._ready is None:
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
        return self._ready

    async def stop(self) -> None:
        """End the child. Its loads were given up before."""
        self._stopped = True
        keeping = self._keeping
        if keeping is None:
            return
        if self._spawned is None:
            keeping.cancel()
        else:
            self._spawned.process.kill()
        ended: Deferred[None] = Deferred()
        keeping.addBoth(lambda _: ended.callback(None))
        await ended

    # Loading.

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        """See `Loader`."""
        path = await task.origin.local_file(task.instance)
        child = await self._child()
        self._loads += 1
        number = self._loads
        child.listeners[number] = progress
        try:
            return await self._load(child, number, task, f"file:{path}" if path is not None else task.origin.url)
        finally:
            del child.listeners[number]

    async def _load(self, child: LoaderChild, number: int, task: LoadTask, source: str) -> Loaded:
        instance = task.instance
        loading = _Outcome(
            child.callRemote(
                commands.Load,
                number=number,
                source=source,
                instance=[instance.origin, instance.root, instance.study, instance.series, instance.sop],
                credential=task.caller.credential,
                headers=[text for header in task.caller.headers for text in header],
                query=task.caller.query,
                metadata=task.metadata.to_bytes(),
                fence=task.fence,
                seconds=-1.0 if task.seconds is None else task.seconds,
            )
        )
        try:
            result = await loading.wait()
        except CancelledError:
            await self._give_up(child, number, loading)
            raise
        except ConnectionLost as lost:
            # Nobody knows how far it came, and what it sent may still be on its way into the cache.
            await remove_frames(self.cache, task.instance, task.metadata.frames)
            raise Withdrawn(str(lost)) from None
        except amp.AmpError as error:
            raise Withdrawn(f"the loader failed: {error}") from None
        return Loaded(result["frames"], result["bytes"], result["transfer_syntax"])

    async def _give_up(self, child: LoaderChild, number: int, loading: _Outcome) -> None:
        """Let a child give a load up and clean up behind it; end the child where it doesn't.

        Raises `Withdrawn` where it is not certain that it did.
        """
        try:
            await child.callRemote(commands.Stop, number=number).addTimeout(STOP_SECONDS, self.reactor)
            await loading.wait().addTimeout(STOP_SECONDS, self.reactor)
        except Withdrawn:
            raise
        except (defer.TimeoutError, ConnectionLost, CancelledError):
            child.process.kill()
            raise Withdrawn("stopped, and the loader did not clean up in time") from None
        except LoadFailed:
            return


class _Outcome:
    """What becomes of *asked*, for as many who wait as like; each may be cancelled without it."""

    def __init__(self, asked: Deferred[Any]) -> None:
        self._waiters: list[Deferred[Any]] = []
        self._result: Optional[tuple[Any]] = None
        asked.addBoth(self._came)

    def wait(self) -> Deferred[Any]:
        """A Deferred of the caller's own."""
        waiter: Deferred[Any] = Deferred()
        if self._result is None:
            self._waiters.append(waiter)
        else:
            waiter.callback(self._result[0])  # a Failure goes to its errbacks
        return waiter

    def _came(self, result: Any) -> None:
        self._result = (result,)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(result)
