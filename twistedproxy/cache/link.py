"""One connection to a Redis-protocol server that is kept up.

txredisapi connects, reconnects and reads replies (with hiredis). Commands go out as ready-made bytes
(`twistedproxy.cache.resp`), many at once: its own Deferred per command costs more than the server's answer.

Rules kept here:
- The connection is *up* only once the server has answered our greeting. While it isn't, `Link.send` fails at
  once: nobody waits for a server that is down.
- What is outstanding has a deadline. A server that lets it pass is hung up on, and so down until it answers again.
- Replies come in the order of commands; a batch whose waiter left keeps its place.
- Bytes that wait for an answer are bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Optional

import attrs
import txredisapi  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.cache.endpoints import refusal
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.observer import Complaints

FIRST_RETRY_SECONDS = 0.1  # a local server is back within a second
MAX_RETRY_SECONDS = 2.0
# After a stall of our own reactor the timer runs before the socket is read: look again this much later.
SECOND_LOOK_SECONDS = 0.1
MAX_OUTSTANDING_BYTES = 64 * 2**20  # of commands not yet answered


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

    def send(self, wire: bytes, count: int) -> Deferred[list[object]]:
        """Write *count* commands; the Deferred fires with as many replies, or fails with `CacheUnavailable`."""
        now = self._clock.seconds()
        if not self._batches:
            self._heard = now
        batch = _Batch(count, len(wire), now)
        self._batches.append(batch)
        self.outstanding += batch.size
        self.transport.write(wire)
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
        why = "the server did not answer in time" if self._gave_up else reason.getErrorMessage()
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


class _Factory(txredisapi.RedisFactory):  # type: ignore[misc]
    """Keeps one connection and tells the link when it is there."""

    initialDelay = FIRST_RETRY_SECONDS
    maxDelay = MAX_RETRY_SECONDS

    def __init__(self, clock: Any, patience: Patience, connected: Callable[[BatchProtocol], None]) -> None:
        # No conversions: frames of digits are no numbers. Greeting and login are ours, for txredisapi gives up for good
        # when a login fails once.
        super().__init__(uuid=None, dbid=None, poolsize=1, isLazy=True, charset=None, convertNumbers=False)
        self._clock = clock
        self._patience = patience
        self._connected = connected

    def buildProtocol(self, addr: object) -> BatchProtocol:
        protocol = BatchProtocol(charset=None, convertNumbers=False, clock=self._clock, patience=self._patience)
        protocol.factory = self
        protocol.whenConnected().addCallback(self._connectionReady)
        return protocol

    def addConnection(self, conn: BatchProtocol) -> None:
        super().addConnection(conn)
        if conn in self.pool:
            self._connected(conn)


class Link:
    """A connection to the server behind *endpoint*, greeted with the commands of *hello*."""

    log = Logger()

    def __init__(
        self, reactor: Any, endpoint: IStreamClientEndpoint, hello: list[bytes], where: str, patience: Patience
    ) -> None:
        self._reactor = reactor
        self._hello = hello
        self._where = where
        self._complaints = Complaints(self.log, reactor.seconds)
        self._endpoint = _Heard(endpoint, self._failed)
        self._factory = _Factory(reactor, patience, self._connected)
        self._up: Optional[BatchProtocol] = None
        self._any: Optional[BatchProtocol] = None
        self._waiting: list[Deferred[None]] = []
        self._stopping = False
        self.trouble = "not connected yet"

    @property
    def up(self) -> bool:
        """Whether commands can be sent."""
        return self._up is not None

    def start(self) -> None:
        """Begin to connect, and go on whenever the connection is lost."""
        self._factory.startConnecting(self._endpoint)

    def send(self, wire: bytes, count: int) -> Deferred[list[object]]:
        """Send *count* commands. Raises `CacheUnavailable` at once where the server is down or too much is outstanding."""
        up = self._up
        if up is None:
            raise CacheUnavailable(self.trouble)
        if up.outstanding and up.outstanding + len(wire) > MAX_OUTSTANDING_BYTES:
            raise CacheUnavailable("the server takes what is written too slowly")
        return up.send(wire, count)

    async def wait_up(self, seconds: float) -> bool:
        """Wait until the link is up, for at most *seconds*; whether it is."""
        if self._up is None:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            timer = self._reactor.callLater(seconds, waiter.callback, None)
            try:
                await waiter
            finally:
                if timer.active():
                    timer.cancel()
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
        return self.up

    def hang_up(self, reason: str) -> None:
        """End the present connection; another one is made."""
        connection = self._any
        self.trouble = reason
        self._up = self._any = None
        if connection is not None:
            connection.lost = None
            connection.transport.abortConnection()

    async def stop(self) -> None:
        """Hang up for good."""
        self._stopping = True
        self.hang_up("stopped")
        await self._factory.disconnect()

    def _connected(self, connection: BatchProtocol) -> None:
        self._any = connection
        connection.lost = self._lost
        ensureDeferred(self._greet(connection))

    async def _greet(self, connection: BatchProtocol) -> None:
        try:
            why = refusal(await connection.send(b"".join(self._hello), len(self._hello)))
        except CacheUnavailable as error:
            why = str(error)
        if self._stopping or connection is not self._any:
            return
        if why is not None:
            trouble = f"the server refused us: {self._without_secrets(why)}"
            self._complaints.complain("greeting", f"{self._where}: {trouble}")
            self.hang_up(trouble)
            return
        self._up = connection
        self.log.info("cache connected: {where}", where=self._where)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def _lost(self, reason: str) -> None:
        self._up = self._any = None
        self._complain(f"the connection was lost: {reason}")

    def _failed(self, reason: Failure) -> None:
        if not self._stopping:
            self._complain(f"cannot connect: {reason.getErrorMessage()}")

    def _complain(self, trouble: str) -> None:
        self.trouble = trouble
        self._complaints.complain("connection", f"{self._where}: {trouble}")

    def _without_secrets(self, text: str) -> str:
        """What the server said, unless it repeats a command's argument (unknown commands are echoed)."""
        for line in b"".join(self._hello).split(b"\r\n"):
            word = line.decode("utf-8", "replace")
            if len(word) > 4 and word not in ("SELECT",):
                text = text.replace(word, "...")
        return text


@implementer(IStreamClientEndpoint)
class _Heard:
    """Tells why an attempt to connect failed: ClientService keeps that to itself."""

    def __init__(self, endpoint: IStreamClientEndpoint, failed: Callable[[Failure], None]) -> None:
        self._endpoint = endpoint
        self._failed = failed

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def failed(failure: Failure) -> Failure:
            self._failed(failure)
            return failure

        return self._endpoint.connect(protocolFactory).addErrback(failed)
