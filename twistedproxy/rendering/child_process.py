"""One rendering child, as the proxy sees it: a process, and one call at a time over its pipes.

- A call that takes too long ends its child, for nothing else stops a decoder. A call that nobody waits for any more may
  end by itself within `GRACE_SECONDS`, as nearly all do: starting a child takes longer.
- A child that does not come up in time, or cannot be understood, is ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.imaging.errors import ChildDied, PoolTimeout
from twistedproxy.processes.child import ChildProcess
from twistedproxy.rendering.messages import BadMessage, Message, MessageReader

START_SECONDS = 30.0
"""How long a child may take to start: about half a second where nothing else runs."""

GRACE_SECONDS = 2.0
"""How long a call may go on that nobody waits for any more."""

MAX_SAID = 1000
"""Characters of what a child prints that the log takes at once."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A child is one worker: libraries that start a thread for each CPU would take all of them."""

CRASHED = "the picture could not be made: a decoder crashed"


class RenderingChild(Protocol):
    """The conversation with one child. *ready*: it has come up. *busy*: at a call, or starting.

    *freed* is called when it can be given another call, *ended* when it is gone.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, freed: Callable[[], None], ended: Callable[[RenderingChild, Failure], None]
    ) -> None:
        self._reactor = reactor
        self._freed = freed
        self._ended = ended
        self._reader: Optional[MessageReader] = MessageReader()
        self.process = ChildProcess(self, hears=0, speaks=1, said=self._said)
        self.ready = False
        self.busy = True
        self._reply: Optional[Deferred[Message]] = None

    def spawn(self, module: str) -> None:
        """Start ``python -m module``. Raises OSError."""
        self.process.spawn(self._reactor, module, {0: "w", 1: "r", 2: "r"}, ONE_THREAD)
        late = self._reactor.callLater(START_SECONDS, lambda: None if self.ready else self.process.kill())
        self.process.ended().addCallback(lambda _: late.cancel() if late.active() else None)

    @property
    def alive(self) -> bool:
        return self.process.alive

    def call(self, message: Message, seconds: float) -> Deferred[Message]:
        """The child's reply, by a Deferred that can be cancelled without the call. After *seconds* the child is ended,
        and the call fails with `PoolTimeout`; if the child ends by itself, with `ChildDied`."""
        waiter: Deferred[Message] = Deferred()
        deadline = self._reactor.callLater(seconds, self._too_long, waiter, seconds)

        def tell(outcome: Any) -> None:
            if deadline.active():
                deadline.cancel()
            if not waiter.called:
                waiter.callback(outcome)  # a Failure goes on as one

        self._send(message).addBoth(tell)
        return waiter

    def _send(self, message: Message) -> Deferred[Message]:
        self.busy = True
        self._reply = reply = Deferred[Message]()
        transport: Any = self.transport
        for piece in message.packed():
            transport.write(bytes(piece))  # which copies parts of large entries only, as transports take bytes
        return reply

    def _too_long(self, waiter: Deferred[Message], seconds: float) -> None:
        self.process.kill()
        if not waiter.called:
            waiter.errback(PoolTimeout(f"the picture was not made within {seconds:g} s"))

    def give_up(self) -> None:
        """Nobody waits any more for what the child does."""
        reply = self._reply
        if reply is None:
            return

        def end() -> None:
            if self._reply is reply:
                self.process.kill()

        grace = self._reactor.callLater(GRACE_SECONDS, end)

        def done(outcome: Any) -> Any:
            if grace.active():
                grace.cancel()
            return outcome

        reply.addBoth(done)

    def _said(self, _descriptor: int, data: bytes) -> None:
        self._log.warn("a rendering child said: {text}", text=data.decode("utf-8", "replace").strip()[:MAX_SAID])

    def dataReceived(self, data: bytes) -> None:
        if self._reader is None:
            return  # what was in its pipe when it was ended
        try:
            for message in self._reader.feed(data):
                self._hear(message)
        except BadMessage as error:
            self._log.warn("a rendering child was not understood: {reason}", reason=str(error))
            self._reader = None
            self.process.kill()

    def _hear(self, message: Message) -> None:
        self.ready = True
        reply, self._reply = self._reply, None
        self.busy = False
        if reply is not None:
            reply.callback(message)
        self._freed()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.errback(ChildDied(CRASHED))
        self._ended(self, reason)
