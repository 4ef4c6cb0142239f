"""Where whole instances are loaded: in this process, or in a child process.

A loader gets everything that it must know in one `LoadTask`, and writes to the cache only. The child is started early,
used again, and replaced when it ends; its loads then fail. It pauses while clients ask for much.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable
from typing import Any, Optional, Protocol

import attrs
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.deferreds import follow
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.prefetch.instance_load import InstanceLoad, Loaded, ProvisionalFrames, remove_frames, rest_seconds
from twistedproxy.prefetch.jobs import LoadFailed, NotLoadable, Progress, Withdrawn
from twistedproxy.processes.channel import CallError
from twistedproxy.processes.child import ChildProcess, StartFailed
from twistedproxy.processes.kept_alive import KeptAlive
from twistedproxy.settings import Settings
from twistedproxy.system.caller_demand import Demand
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.tracing import current_trace

MODULE = "twistedproxy.prefetch.loader_main"

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

CHILD_SECONDS = CONFIGURE_SECONDS
"""How long a load waits for a child: on a busy machine it takes long to start, for it gets what CPU others leave."""

STOP_SECONDS = 3.0
"""How long a child may take to remove what a given-up load wrote; 10,000 frames take some milliseconds."""

ORIGIN_SETTINGS = ("origin_concurrency", "origin_connect_timeout", "origin_timeout", "origin_stall_timeout")

_ERRORS = {error.__name__: error for error in (Withdrawn, NotLoadable, LoadFailed)}


@attrs.define(eq=False)
class ChildLoader:
    """A `Loader` that loads in a child process. One child serves all loads: ``--max-jobs`` bounds these."""

    reactor: Any
    cache: Cache
    settings: Settings
    metrics: Metrics
    demand: Demand
    module: str = MODULE
    _kept: KeptAlive[ChildProcess] = attrs.field(init=False)
    _running: dict[int, Progress] = attrs.field(init=False, factory=dict)
    _loads: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        delays = FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS
        self._kept = KeptAlive(self.reactor, "loader", self._started, None, *delays)
        self.demand.changed.append(self._set_rest)

    def start(self) -> None:
        """Start a child in the background, and keep it alive."""
        self._kept.keep()

    async def stop(self) -> None:
        """End the child. Its loads were given up before."""
        await self._kept.stop()
        if self._kept.child is not None:
            await self._kept.child.killed()

    @property
    def pids(self) -> list[int]:
        """The living children that are ready for loads."""
        return [child.pid for child in [self._kept.child] if child is not None and child.pid is not None]

    async def _started(self) -> ChildProcess:
        """A new child that has met the cache."""
        if self.cache.address is None:
            raise StartFailed("other processes cannot use this cache")
        settings = Settings(**{name: getattr(self.settings, name) for name in ORIGIN_SETTINGS})
        child = ChildProcess(self.reactor, "loader", {"progress": self._progress})
        child.spawn(self.module)
        await child.begin("configure", pickle.dumps((self.cache.address, settings)), seconds=CONFIGURE_SECONDS)
        child.channel.notify("rest", seconds=rest_seconds(self.demand))
        self.metrics.set("prefetch_children", 1)
        child.ended().addCallback(lambda _: self.metrics.set("prefetch_children", 0))
        return child

    def _set_rest(self) -> None:
        if self._kept.child is not None:
            self._kept.child.channel.notify("rest", seconds=rest_seconds(self.demand))

    async def _progress(self, number: int, frames: int, size: int) -> None:
        if number in self._running:
            self._running[number](frames, size)

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        """See `Loader`."""
        path = await task.origin.local_file(task.instance)
        try:
            child = await self._kept.ready(CHILD_SECONDS)
        except StartFailed as error:
            raise LoadFailed(str(error)) from None
        self._loads += 1
        number = self._loads
        self._running[number] = progress
        try:
            return await self._load(child, number, task, f"file:{path}" if path is not None else task.origin.url)
        finally:
            del self._running[number]

    async def _load(self, child: ChildProcess, number: int, task: LoadTask, source: str) -> Loaded:
        order = (source, task.instance, task.caller, task.metadata, task.fence, task.seconds)
        loading = child.channel.call("load", pickle.dumps((current_trace.get(), order)), number=number)
        try:
            return Loaded(*await follow(loading))
        except CancelledError:
            await self._give_up(child, number, loading)
            raise
        except ConnectionLost:
            # It is not known how far the child came, and what it sent may still be on its way into the cache.
            await remove_frames(self.cache, task.instance, task.metadata.frames)
            raise Withdrawn("the loader process exited") from None
        except CallError as error:
            raise _ERRORS.get(error.kind, Withdrawn)(str(error)) from None

    async def _give_up(self, child: ChildProcess, number: int, loading: Deferred[Any]) -> None:
        """Have a child give a load up and clean up after it; end the child where it doesn't.

        Raises `Withdrawn` where it is not certain that it did.
        """
        child.channel.notify("stop", number=number)
        try:
            await loading.addTimeout(STOP_SECONDS, self.reactor)
        except CallError as error:
            if error.kind not in (NotLoadable.__name__, LoadFailed.__name__):
                raise Withdrawn(str(error)) from None
        except (defer.TimeoutError, ConnectionLost, CancelledError):
            child.kill()
            raise Withdrawn("stopped, but the loader did not clean up in time") from None
