"""The proxy's end of its render workers: child processes, few, used again, started as they are needed but for the first.

- The first is started before a picture is asked for, and one that ends is replaced: no request waits for a start.
- A child does one call at a time; calls that find none free wait in a queue that has a limit.
- A child that ends fails the call that it was at, and those alone that need what it held; another one is started.
- A call that takes too long ends its child, for nothing else stops a decoder. A call whose caller has gone may end by
  itself within `GRACE_SECONDS`, as nearly all do: starting a child takes longer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger

from twistedproxy.deferreds import follow
from twistedproxy.imaging.errors import CallFailed, ChildDied, PoolBusy, PoolError, PoolTimeout
from twistedproxy.processes.channel import CallError
from twistedproxy.processes.child import ChildProcess, StartFailed
from twistedproxy.processes.messages import Message

MODULE = "twistedproxy.rendering.child"

FIRST_SECONDS = 1.0
"""How long after the proxy's start its first child is started: it must not slow that, nor the first frames."""

START_SECONDS = 30.0
"""How long a child may take to start: about half a second where nothing else runs."""

RETRY_SECONDS = 5.0
"""How long no child is started after one did not come up; a Retry-After, too."""

GRACE_SECONDS = 2.0
"""How long a call may go on whose caller has gone."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A child is one worker: libraries that start a thread for each CPU would take all of them."""

CRASHED = "the picture could not be made: a decoder crashed"


_numbers = itertools.count(1)


class RenderChild(ChildProcess):
    """One child of a pool. *freed* is called when it can be given another call."""

    def __init__(self, reactor: Any, freed: Callable[[], None]) -> None:
        super().__init__(reactor, "render worker")
        self.up = False
        """Whether it has come up."""
        self.busy = True
        """Whether it is at a call, or starting."""
        self._freed = freed

    def start(self, module: str) -> None:
        """Start ``python -m module``. Raises `StartFailed`."""
        self.spawn(module, ONE_THREAD)
        starting = Deferred.fromCoroutine(self.call({"op": "ping"}, (), START_SECONDS))
        starting.addErrback(lambda failure: failure.trap(PoolError) and None)

    async def call(self, head: Mapping[str, Any], blobs: Sequence[bytes], seconds: float) -> Message:
        """The child's answer. After *seconds* the child is killed, and the call fails with `PoolTimeout`; if the child ends by
        itself, with `ChildDied`; if it cannot do it, with `CallFailed`. Cancelling ends the wait, and in due time the call."""
        self.busy = True
        answer = self.channel.request(head["op"], head, blobs)
        answer.addBoth(self._answered)
        try:
            return await follow(answer).addTimeout(seconds, self.reactor)
        except CallError as error:
            raise CallFailed(error.kind, str(error)) from None
        except ConnectionLost:
            raise ChildDied(CRASHED) from None
        except defer.TimeoutError:
            self._give_up(answer, 0.0)
            raise PoolTimeout(f"the picture was not made within {seconds:g} s") from None
        except CancelledError:
            self._give_up(answer, GRACE_SECONDS)
            raise

    def _answered(self, answer: Any) -> Any:
        if self.alive:
            self.up, self.busy = True, False
            self._freed()
        return answer

    def _give_up(self, answer: Deferred[Message], seconds: float) -> None:
        """End the child where it does not answer within *seconds*."""
        deadline = self.reactor.callLater(seconds, self.kill)
        answer.addBoth(lambda _: deadline.cancel() if deadline.active() else None)


@attrs.define(eq=False)
class RenderPool:
    """Up to *workers* children, started one by one as they are needed. *queue*: calls that may wait. *seconds*: for a call,
    from its start in a child."""

    reactor: Any
    workers: int
    queue: int
    seconds: float
    module: str = MODULE
    _children: list[RenderChild] = attrs.field(init=False, factory=list)
    _waiting: dict[Deferred[RenderChild], Optional[RenderChild]] = attrs.field(init=False, factory=dict)
    """Calls that wait for a child, the first first: for any, or for that one alone."""
    _not_before: float = attrs.field(init=False, default=0.0)
    _first: Any = attrs.field(init=False, default=None)  # the delayed start of the first child
    _stopped: bool = attrs.field(init=False, default=False)
    _log = Logger()

    def start(self) -> None:
        """From now on have a child ready before it is needed."""
        self._first = self.reactor.callLater(FIRST_SECONDS, self._start_first)

    def _start_first(self) -> None:
        if not self._children:
            self._start_one()

    @property
    def pids(self) -> list[int]:
        """The living children."""
        return [child.pid for child in self._children if child.pid is not None]

    def status(self) -> dict[str, object]:
        """Facts for ``/status.json``."""
        busy = sum(child.busy for child in self._children)
        return {"children": len(self._children), "busy": busy, "waiting": len(self._waiting)}

    async def call(self, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Message:
        """Have a child do something. Raises `PoolError`. Cancelling ends the wait, and in due time the call."""
        return await self.held().call(head, blobs)

    def held(self) -> HeldChild:
        """For calls that belong together."""
        return HeldChild(self)

    async def child(self, wanted: Optional[RenderChild]) -> RenderChild:
        """A child that is free, and given away thereby: *wanted*, if that is given. Raises `PoolError`."""
        if self._stopped:
            raise PoolBusy("the proxy is stopping")
        if wanted is not None and not wanted.alive:
            raise ChildDied(CRASHED)
        child = self._free(wanted)
        if child is not None:
            return child
        if len(self._waiting) >= self.queue:
            raise PoolBusy(f"{self.queue} pictures are already waiting to be made")
        if wanted is None:
            self._start_one()
            if not self._children:
                raise PoolBusy("no render worker could be started")
        turn: Deferred[RenderChild] = Deferred()
        self._waiting[turn] = wanted
        try:
            return await turn
        except CancelledError:
            self._waiting.pop(turn, None)
            raise

    def _free(self, wanted: Optional[RenderChild]) -> Optional[RenderChild]:
        for child in self._children:
            if not child.busy and child.alive and wanted in (None, child):
                child.busy = True
                return child
        return None

    def _start_one(self) -> None:
        """Start a child if there may be one more, and if one can be started."""
        if len(self._children) >= self.workers or self.reactor.seconds() < self._not_before:
            return
        child = RenderChild(self.reactor, self._freed)
        try:
            child.start(self.module)
        except StartFailed as error:
            self._not_before = self.reactor.seconds() + RETRY_SECONDS
            self._log.warn("a render worker could not be started: {reason}", reason=str(error))
            return
        self._children.append(child)
        child.ended().addCallback(self._ended, child)

    def _freed(self) -> None:
        """A child has become free: the call that waits longest for it goes next."""
        for turn, wanted in list(self._waiting.items()):
            child = self._free(wanted)
            if child is not None:
                del self._waiting[turn]
                turn.callback(child)

    def _ended(self, _result: object, child: RenderChild) -> None:
        """A child is gone."""
        self._children.remove(child)
        if self._stopped:
            return
        self._log.warn("a render worker exited: {reason}", reason=child.reason)
        if not child.up:
            self._not_before = self.reactor.seconds() + RETRY_SECONDS
        self._fail([turn for turn, wanted in self._waiting.items() if wanted is child], ChildDied(CRASHED))
        if self._waiting or self._first is not None:
            self._start_one()
        if not self._children:
            self._fail(self._waiting, PoolBusy("no render worker could be started"))

    def _fail(self, turns: Iterable[Deferred[RenderChild]], error: PoolError) -> None:
        for turn in list(turns):
            del self._waiting[turn]
            turn.errback(error)

    async def stop(self) -> None:
        """End all children, and fail the calls that wait."""
        self._stopped = True
        if self._first is not None and self._first.active():
            self._first.cancel()
        self._fail(self._waiting, PoolBusy("the proxy is stopping"))
        for child in list(self._children):
            await child.killed()


@attrs.define(eq=False)
class HeldChild:
    """The child that did the first of several calls, and does all others: what it holds meanwhile goes by *number*. Others use
    the child too, between two calls."""

    pool: RenderPool
    number: int = attrs.field(init=False, factory=lambda: next(_numbers))
    _child: Optional[RenderChild] = None

    async def call(self, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Message:
        """See `RenderPool.call`."""
        self._child = await self.pool.child(self._child)
        return await self._child.call({**head, "number": self.number}, blobs, self.pool.seconds)

    def release(self) -> None:
        """Have the child drop what it holds, in the background."""
        if self._child is not None:
            dropping = Deferred.fromCoroutine(self.call({"op": "drop"}))
            dropping.addErrback(lambda failure: failure.trap(PoolError) and None)
