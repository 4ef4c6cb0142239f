"""The proxy's end of its rendering children: few, used again, started as they are needed but for the first.

- The first is started before anybody needs it, and one that ends has another in its place: whoever asks for a picture
  does not wait for a start.
- A child does one call at a time; who finds none free waits in a queue that has a limit.
- A child that ends fails the call that it was at, and those alone that need what it held; another one is started.
- A child ends with the proxy, whatever way that ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.imaging.errors import CallFailed, ChildDied, PoolBusy, PoolError
from twistedproxy.rendering.child_process import CRASHED, RenderingChild
from twistedproxy.rendering.messages import Message

MODULE = "twistedproxy.rendering.child"

FIRST_SECONDS = 1.0
"""How long after the proxy's start its first child is started: it must not slow that, nor the first frames."""

RETRY_SECONDS = 5.0
"""How long no child is started after one did not come up; a Retry-After, too."""


@attrs.define(eq=False)
class _Waiting:
    """Who waits for a child; *child*: for that one alone."""

    turn: Deferred[RenderingChild]
    child: Optional[RenderingChild]


@attrs.define(eq=False)
class RenderPool:
    """Up to *workers* children, started one by one as they are needed. *queue*: calls that may wait. *seconds*: for a call,
    from its start in a child."""

    reactor: Any
    workers: int
    queue: int
    seconds: float
    module: str = MODULE
    _children: list[RenderingChild] = attrs.field(init=False, factory=list)
    _waiting: deque[_Waiting] = attrs.field(init=False, factory=deque)
    _not_before: float = attrs.field(init=False, default=0.0)
    _first: Any = attrs.field(init=False, default=None)  # the delayed start of the first child
    _stopped: bool = attrs.field(init=False, default=False)
    _log = Logger()

    def start(self) -> None:
        """From now on have children ready before they are needed."""
        self._first = self.reactor.callLater(FIRST_SECONDS, self._start_first)

    def _start_first(self) -> None:
        if not self._children:
            self._start_spare()

    def _start_spare(self) -> None:
        try:
            self._start_one()
        except PoolBusy:
            return  # the log says why; the next call tries again

    @property
    def pids(self) -> list[int]:
        """The living children."""
        return [child.process.pid for child in self._children if child.process.pid is not None]

    def status(self) -> dict[str, object]:
        """Facts for ``/status.json``."""
        busy = sum(child.busy for child in self._children)
        return {"children": len(self._children), "busy": busy, "waiting": len(self._waiting)}

    async def call(self, head: Mapping[str, Any], blobs: Sequence[bytes] = (), held: Optional[Held] = None) -> Message:
        """Have a child do something; *held*: the child that holds what it is about.

        Raises `PoolError`. Cancelling ends the wait, and in due time the call.
        """
        child = await self._child(held)
        try:
            return _checked(await child.call(Message(head, blobs), self.seconds))
        except CancelledError:
            child.give_up()
            raise

    async def _child(self, held: Optional[Held]) -> RenderingChild:
        """A child that is free."""
        if self._stopped:
            raise PoolBusy("the proxy is stopping")
        if held is not None and not held.child.alive:
            raise ChildDied(CRASHED)
        child = self._free(held.child if held is not None else None)
        if child is not None:
            return child
        if len(self._waiting) >= self.queue:
            raise PoolBusy(f"{self.queue} pictures wait to be made already")
        if held is None:
            self._start_one()
        waiting = _Waiting(Deferred(), held.child if held is not None else None)
        self._waiting.append(waiting)
        try:
            return await waiting.turn
        except CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    def _free(self, wanted: Optional[RenderingChild]) -> Optional[RenderingChild]:
        for child in self._children:
            if not child.busy and child.alive and wanted in (None, child):
                child.busy = True
                return child
        return None

    def _start_one(self) -> None:
        """Start a child if there may be one more. Raises `PoolBusy` where there is none and none comes up."""
        if len(self._children) >= self.workers:
            return
        if self.reactor.seconds() < self._not_before:
            if not self._children:
                raise PoolBusy("no rendering child could be started")
            return
        child = RenderingChild(self.reactor, self._freed, self._ended)
        try:
            child.spawn(self.module)
        except OSError as error:  # no more processes, no memory
            self._not_before = self.reactor.seconds() + RETRY_SECONDS
            self._log.warn("a rendering child could not be started: {reason}", reason=str(error))
            if not self._children:
                raise PoolBusy("no rendering child could be started") from None
            return
        self._children.append(child)

    def _freed(self) -> None:
        """A child has become free: who waits longest for it goes next."""
        for waiting in list(self._waiting):
            child = self._free(waiting.child)
            if child is not None:
                self._waiting.remove(waiting)
                waiting.turn.callback(child)

    def _ended(self, child: RenderingChild, reason: Failure) -> None:
        """A child is gone."""
        self._children.remove(child)
        if self._stopped:
            return
        self._log.warn("a rendering child ended: {reason}", reason=reason.getErrorMessage())
        if not child.ready:
            self._not_before = self.reactor.seconds() + RETRY_SECONDS
        for waiting in [one for one in self._waiting if one.child is child]:
            self._fail(waiting, ChildDied(CRASHED))
        try:
            if self._waiting:
                self._start_one()
        except PoolBusy as busy:
            for waiting in list(self._waiting):
                self._fail(waiting, busy)
        if self._first is not None and child.ready and not self._waiting:
            self._start_spare()

    def _fail(self, waiting: _Waiting, error: PoolError) -> None:
        self._waiting.remove(waiting)
        waiting.turn.errback(error)

    async def hold(self, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Held:
        """Do a call after which the child holds something that later calls are about. `Held.forget` ends that."""
        child = await self._child(None)
        try:
            _checked(await child.call(Message(head, blobs), self.seconds))
        except CancelledError:
            child.give_up()
            raise
        return Held(self, child)

    async def stop(self) -> None:
        """End all children. Who waits is told."""
        self._stopped = True
        if self._first is not None and self._first.active():
            self._first.cancel()
        for waiting in list(self._waiting):
            self._fail(waiting, PoolBusy("the proxy is stopping"))
        for child in list(self._children):
            child.process.kill()
            await child.process.ended()


@attrs.frozen
class Held:
    """A child that holds something for one picture. Others use the child too, between two calls."""

    pool: RenderPool
    child: RenderingChild

    async def call(self, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Message:
        """See `RenderPool.call`."""
        return await self.pool.call(head, blobs, held=self)

    def forget(self, head: Mapping[str, Any]) -> None:
        """Do a call that nobody waits for, by which the child lets go of what it holds."""
        Deferred.fromCoroutine(self.call(head)).addErrback(lambda failure: failure.trap(PoolError) and None)


def _checked(message: Message) -> Message:
    error = message.head.get("error")
    if error is not None:
        raise CallFailed(error["kind"], error["text"])
    return message
