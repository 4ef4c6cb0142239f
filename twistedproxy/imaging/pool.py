"""The proxy's end of its rendering children: few, used again, started as they are needed but for the first.

- The first is started before anybody needs it, and one that ends has another in its place: whoever asks for a picture
  does not wait for a start.
- A child does one call at a time; who finds none free waits in a queue that has a limit.
- A child that ends fails the call that it was at, and those alone that need what it held; another one is started.
- A call that takes too long ends its child, for nothing else stops a decoder. A call that nobody waits for any more may
  end by itself within `GRACE_SECONDS`, as nearly all do: starting a child takes longer.
- A child ends with the proxy, whatever way that ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.imaging.messages import BadMessage, Message, MessageReader
from twistedproxy.processes import ChildProcess

MODULE = "twistedproxy.imaging.child"

START_SECONDS = 30.0
"""How long a child may take to start: about half a second where nothing else runs."""

FIRST_SECONDS = 1.0
"""How long after the proxy's start its first child is started: it must not slow that, nor the first frames."""

GRACE_SECONDS = 2.0
"""How long a call may go on that nobody waits for any more."""

RETRY_SECONDS = 5.0
"""How long no child is started after one did not come up; a Retry-After, too."""

MAX_SAID = 1000
"""Characters of what a child prints that the log takes at once."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A child is one worker: libraries that start a thread for each CPU would take all of them."""


class PoolError(Exception):
    """A call was not done; `str()` is fit for a caller's eyes."""


class PoolBusy(PoolError):
    """The queue is full, or no child comes up: come back later."""


class PoolTimeout(PoolError):
    """The call took too long."""


class ChildDied(PoolError):
    """The child ended in the middle of the call, most likely because of what it was given."""


class CallFailed(PoolError):
    """The child says that it could not do the call. *kind*: the name of the error."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Child(Protocol):
    """The conversation with one child. *busy*: at a call, or starting."""

    _log = Logger()

    def __init__(self, pool: RenderPool) -> None:
        self._pool = pool
        self._reader = MessageReader()
        self.process = ChildProcess(self, hears=0, speaks=1, said=self._said)
        self.ready = False
        self.busy = True
        self.reply: Optional[Deferred[Message]] = None

    @property
    def alive(self) -> bool:
        return self.process.alive

    def _said(self, _descriptor: int, data: bytes) -> None:
        self._log.warn("a rendering child said: {text}", text=data.decode("utf-8", "replace").strip()[:MAX_SAID])

    def dataReceived(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._hear(message)
        except BadMessage as error:
            self._log.warn("a rendering child was not understood: {reason}", reason=str(error))
            self.process.kill()

    def _hear(self, message: Message) -> None:
        self.ready = True
        reply, self.reply = self.reply, None
        self.busy = False
        if reply is not None:
            reply.callback(message)
        self._pool.freed()

    def send(self, message: Message) -> Deferred[Message]:
        """Have the child do a call. The Deferred is the child's own."""
        self.busy = True
        self.reply = Deferred()
        transport: Any = self.transport
        for piece in message.packed():
            transport.write(piece)
        return self.reply

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        reply, self.reply = self.reply, None
        if reply is not None:
            reply.errback(ChildDied("the picture could not be made: a decoder crashed"))
        self._pool.ended(self, reason)


@attrs.define(eq=False)
class _Waiting:
    """Who waits for a child; *child*: for that one alone."""

    turn: Deferred[_Child]
    child: Optional[_Child]


@attrs.define(eq=False)
class RenderPool:
    """Up to *workers* children, started one by one as they are needed. *queue*: calls that may wait. *seconds*: for a call,
    from its start in a child."""

    reactor: Any
    workers: int
    queue: int
    seconds: float
    module: str = MODULE
    _children: list[_Child] = attrs.field(init=False, factory=list)
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
            return _checked(await self._answer(child, Message(head, blobs)))
        except CancelledError:
            self._give_up(child)
            raise

    def _answer(self, child: _Child, message: Message) -> Deferred[Message]:
        """The child's reply, by a Deferred that can be cancelled without the call."""
        waiter: Deferred[Message] = Deferred()
        deadline = self.reactor.callLater(self.seconds, self._too_long, child, waiter)

        def tell(outcome: Any) -> None:
            if deadline.active():
                deadline.cancel()
            if not waiter.called:
                waiter.callback(outcome)  # a Failure goes on as one

        child.send(message).addBoth(tell)
        return waiter

    def _too_long(self, child: _Child, waiter: Deferred[Message]) -> None:
        child.process.kill()
        if not waiter.called:
            waiter.errback(PoolTimeout(f"the picture was not made within {self.seconds:g} s"))

    def _give_up(self, child: _Child) -> None:
        """Nobody waits for what *child* does."""
        reply = child.reply
        if reply is None:
            return

        def end() -> None:
            if child.reply is reply:
                child.process.kill()

        grace = self.reactor.callLater(GRACE_SECONDS, end)

        def done(outcome: Any) -> Any:
            if grace.active():
                grace.cancel()
            return outcome

        reply.addBoth(done)

    async def _child(self, held: Optional[Held]) -> _Child:
        """A child that is free."""
        if self._stopped:
            raise PoolBusy("the proxy is stopping")
        if held is not None and not held.child.alive:
            raise ChildDied("the picture could not be made: a decoder crashed")
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

    def _free(self, wanted: Optional[_Child]) -> Optional[_Child]:
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
        child = _Child(self)
        try:
            child.process.spawn(self.reactor, self.module, {0: "w", 1: "r", 2: "r"}, ONE_THREAD)
        except OSError as error:  # no more processes, no memory
            self._not_before = self.reactor.seconds() + RETRY_SECONDS
            self._log.warn("a rendering child could not be started: {reason}", reason=str(error))
            if not self._children:
                raise PoolBusy("no rendering child could be started") from None
            return
        self._children.append(child)
        late = self.reactor.callLater(START_SECONDS, lambda: None if child.ready else child.process.kill())
        child.process.ended().addCallback(lambda _: late.cancel() if late.active() else None)

    def freed(self) -> None:
        """A child has become free: who waits longest for it goes next."""
        for waiting in list(self._waiting):
            child = self._free(waiting.child)
            if child is not None:
                self._waiting.remove(waiting)
                waiting.turn.callback(child)

    def ended(self, child: _Child, reason: Failure) -> None:
        """A child is gone."""
        self._children.remove(child)
        if self._stopped:
            return
        self._log.warn("a rendering child ended: {reason}", reason=reason.getErrorMessage())
        if not child.ready:
            self._not_before = self.reactor.seconds() + RETRY_SECONDS
        for waiting in [one for one in self._waiting if one.child is child]:
            self._fail(waiting, ChildDied("the picture could not be made: a decoder crashed"))
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
            _checked(await self._answer(child, Message(head, blobs)))
        except CancelledError:
            self._give_up(child)
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
    child: _Child

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
