"""Commands in batches on one connection, each with a deadline.

Rules kept here:
- Replies come in the order of commands; a batch whose waiter left keeps its place.
- What is outstanding has a deadline. A server that lets it pass is hung up on.
- An error of the server is a value among the replies; only a lost connection fails a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Optional

import attrs
import txredisapi  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, ITCPTransport
from twisted.python.failure import Failure

from twistedproxy.at_once import write_at_once
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.outages import reason_of

# After a stall of our own reactor the timer runs before the socket is read: look again this much later.
SECOND_LOOK_SECONDS = 0.1


@attrs.frozen
class Patience:
    """Seconds to wait with something outstanding: without hearing a byte, and for one batch in all."""

    silence: float
    total: float


@attrs.define(eq=False)
class _Batch:
    count: int
    size: int
    began: float
    done: Deferred[list[object]] = attrs.field(factory=Deferred)
    replies: list[object] = attrs.field(factory=list)


class BatchProtocol(txredisapi.RedisProtocol):  # type: ignore[misc]
    """Sends several commands as one piece and gathers their replies: errors of the server are values in them."""

    def __init__(self, *args: Any, clock: Any, patience: Patience, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self._patience = patience
        self._batches: deque[_Batch] = deque()
        self._heard = 0.0
        self._timer: Optional[IDelayedCall] = None
        self._suspect = False
        self.outstanding = 0
        self._gave_up = False
        self.lost: Optional[Callable[[str], None]] = None

    def connectionMade(self) -> None:
        """Let no command wait until the server has acknowledged the one before (RFC 896)."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        super().connectionMade()

    def send(self, wire: bytes, count: int) -> Deferred[list[object]]:
        """Write *count* commands; the Deferred fires with as many replies, or fails with `CacheUnavailable`."""
        now = self._clock.seconds()
        if not self._batches:
            self._heard = now
        batch = _Batch(count, len(wire), now)
        self._batches.append(batch)
        self.outstanding += batch.size
        write_at_once(self.transport, wire)
        if self._timer is None:
            self._timer = self._clock.callLater(self._patience.silence, self._look)
        return batch.done

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """Take bytes; those that are no RESP end the connection."""
        self._heard = self._clock.seconds()
        self._suspect = False
        try:
            super().dataReceived(data, unpause)
        except txredisapi.InvalidData:
            self.transport.abortConnection()

    def replyReceived(self, reply: object) -> None:
        """Give a reply to the oldest batch. Without one nobody asked: a farewell like "max number of clients"."""
        if not self._batches:
            return
        batch = self._batches[0]
        batch.replies.append(reply)
        if len(batch.replies) == batch.count:
            self._batches.popleft()
            self.outstanding -= batch.size
            batch.done.callback(batch.replies)

    def connectionLost(self, reason: Failure) -> None:
        """Fail what is outstanding."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batches, self._batches = self._batches, deque()
        self.outstanding = 0
        why = "the server did not answer in time" if self._gave_up else reason_of(reason.value)
        if self.lost is not None:
            self.lost(why)
        super().connectionLost(reason)
        for batch in batches:
            batch.done.errback(CacheUnavailable(why))

    def _look(self) -> None:
        """Hang up where the oldest batch has waited too long. One timer serves all batches: arming one is dear."""
        self._timer = None
        if not self._batches:
            return
        now = self._clock.seconds()
        oldest = self._batches[0].began
        due = min(max(self._heard, oldest) + self._patience.silence, oldest + self._patience.total)
        if now < due:
            self._timer = self._clock.callLater(due - now, self._look)
        elif not self._suspect:
            self._suspect = True
            self._timer = self._clock.callLater(SECOND_LOOK_SECONDS, self._look)
        else:
            self._gave_up = True
            self.transport.abortConnection()
