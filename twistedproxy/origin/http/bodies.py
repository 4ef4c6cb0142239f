"""Bodies on their way through: an origin's answer as a `ByteStream`, and an upload as an `IBodyProducer`.

Rules that this module keeps:

- The reader's pace is the sender's pace: beyond `HIGH_WATER` bytes the transport is paused, or the upload is no longer read.
- No wait without a deadline: an answer that brings no byte while its reader waits for one, and an upload that the
  origin takes no byte of, fail after the stall timeout. Time in which the proxy is the slow side does not count.
- A byte now and then is no progress: an answer that brings less than `PROGRESS` in `SLOWEST` stall timeouts of waiting fails,
  too. It holds a slot at the origin.
- A body that is closed before its end drops its connection; one that ended leaves it to the pool.
- What broke a stream breaks it for good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Optional, Union

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, IResponse
from zope.interface import implementer

from twistedproxy.deferreds import Waiters
from twistedproxy.origin.errors import OriginBrokeOff, OriginTimeout, OriginUnreachable
from twistedproxy.streams import ByteStream

PROGRESS = 64 * 1024
"""Bytes of an answer that show that the origin gets on."""

SLOWEST = 4
"""Stall timeouts of waiting in which so much must come: with the default 0.5 kB/s. Stores that compose long metadata file by
file send a few kB/s, and some a space now and then while they work on the first."""

HIGH_WATER = 512 * 1024  # bytes of an answer that wait for their reader; a reactor turn brings 64 kB


@attrs.frozen
class Running:
    """What runs at one origin. *stall_timeout* in seconds; *on_bytes* is called with ``("in" | "out", bytes)``."""

    clock: IReactorTime
    stall_timeout: float
    on_bytes: Callable[[str, int], None]
    waiting: set[Deferred[IResponse]] = attrs.field(factory=set)
    bodies: set[AnswerBody] = attrs.field(factory=set)

    def stop(self) -> None:
        """End all of it: what waits for an answer or a body fails."""
        for waiting in tuple(self.waiting):
            waiting.cancel()
        for body in tuple(self.bodies):
            body.close()


class AnswerBody(Protocol):
    """The body of one answer. Delivered to by `twisted.web`, pulled by one reader.

    *on_end* is called once: the origin is done with this request, or the body was closed. *abort* drops the connection.
    *surplus*: what is wrong with the end of a body that came in full.
    """

    def __init__(
        self,
        running: Running,
        on_end: Callable[[], None],
        abort: Callable[[], None],
        surplus: Callable[[], Optional[Exception]] = lambda: None,
    ) -> None:
        self._running = running
        self._clock = running.clock
        self._surplus = surplus
        self._on_end = on_end
        self._abort = abort
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._waiter: Optional[Deferred[bytes]] = None
        self._waiting_since = 0.0
        self._waited = 0.0  # seconds since the origin made progress
        self._progress = 0
        self._timer: Optional[IDelayedCall] = None
        self._error: Optional[Exception] = None
        self._ended = False
        running.bodies.add(self)
        self.framed = True
        """Whether Content-Length or chunks show where the body ends; else it ends with its connection, whole or not."""

    # IProtocol: what twisted.web delivers

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return  # what was on its way when the body was closed
        self._running.on_bytes("in", len(data))
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._waited += self._clock.seconds() - self._waiting_since
        self._progress += len(data)
        if self._progress >= PROGRESS:
            self._progress, self._waited = 0, 0.0
        if waiter is not None:
            waiter.callback(data)
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size >= HIGH_WATER and not self._paused:
            self._paused = True
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._ended:
            return
        error = self._surplus()
        if reason.check(PotentialDataLoss):
            self.framed = False
        elif not reason.check(ResponseDone):
            error = OriginBrokeOff("the origin's response was cut off")
        self._end(error)

    # ByteStream: what the reader pulls

    async def read(self) -> bytes:
        if self._chunks:
            chunk = self._chunks.popleft()
            self._size -= len(chunk)
            if self._paused and self._size <= HIGH_WATER // 2:
                self._paused = False
                self.transport.resumeProducing()  # type: ignore[union-attr]
            return chunk
        if self._error is not None:
            raise self._error
        if self._ended:
            return b""
        if self._waiter is not None:
            raise RuntimeError("a body has one reader at a time")
        self._waiter = Deferred(self._reader_left)
        self._waiting_since = self._clock.seconds()
        if self._timer is None:
            self._timer = self._clock.callLater(self._running.stall_timeout, self._check_stall)
        return await self._waiter

    def close(self) -> None:
        self._chunks.clear()
        self._size = 0
        if not self._ended:
            self._end(OriginUnreachable("the body was closed"))
            self._abort()

    def _reader_left(self, _waiter: object) -> None:
        self._waiter = None

    def _check_stall(self) -> None:
        """One timer for the whole body: setting one for each chunk would cost more than moving the chunk."""
        self._timer = None
        if self._waiter is None:
            return  # the next read that has to wait sets it again
        waiting = self._clock.seconds() - self._waiting_since
        stall_timeout = self._running.stall_timeout
        longest = SLOWEST * stall_timeout
        left = min(stall_timeout, longest - self._waited) - waiting
        if left > 0:
            self._timer = self._clock.callLater(left, self._check_stall)
            return
        if waiting < stall_timeout:
            error = OriginTimeout(f"the origin sent less than {PROGRESS} bytes in {longest:g} s")
        else:
            error = OriginTimeout(f"the origin sent nothing for {stall_timeout:g} s")
        self._end(error)
        self._abort()

    def _end(self, error: Optional[Exception]) -> None:
        self._ended = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiter, self._waiter = self._waiter, None
        self._running.bodies.discard(self)
        self._on_end()
        if waiter is None:
            return
        if error is None:
            waiter.callback(b"")
        else:
            waiter.errback(Failure(error))


@implementer(IBodyProducer)
class UploadProducer:
    """Hands a `ByteStream` to an HTTP request as its body; an unknown *length* goes out in chunks.

    `sent` fires once the last byte was handed to the transport. `failure` says afterwards what broke: the stream's own
    error, or an `OriginTimeout`.
    """

    def __init__(self, stream: ByteStream, length: Optional[int], running: Running) -> None:
        self.length: Union[int, str] = UNKNOWN_LENGTH if length is None else length
        self.failure: Optional[BaseException] = None
        self.sent: Deferred[None] = Deferred()
        self._stream = stream
        self._running = running
        self._paused = self._stopped = False
        self._resumed: Waiters[None] = Waiters()
        self._timer: Optional[IDelayedCall] = None
        self._pump = succeed(None)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._pump = Deferred.fromCoroutine(self._send(consumer))
        self._pump.addBoth(self._ended, done)
        return done

    def pauseProducing(self) -> None:
        if not self._paused and not self._stopped:
            self._paused = True
            self._timer = self._running.clock.callLater(self._running.stall_timeout, self._stalled)

    def resumeProducing(self) -> None:
        self._paused = False
        self._stop_timer()
        self._resumed.fire()

    def stopProducing(self) -> None:
        """The origin has no use for more, or the connection is gone."""
        if self._stopped:
            return
        self._stopped = True
        self._stop_timer()
        self._pump.cancel()
        self._stream.close()

    async def _send(self, consumer: IConsumer) -> None:
        while not self._stopped:
            if self._paused:
                await self._resumed.wait()
            chunk = await self._stream.read()
            if self._stopped or not chunk:
                return
            self._running.on_bytes("out", len(chunk))
            consumer.write(chunk)

    def _ended(self, result: Optional[Failure], done: Deferred[None]) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._stop_timer()
        self._stream.close()
        if isinstance(result, Failure):
            self.failure = self.failure or result.value
        else:
            self.sent.callback(None)
        if not done.called:
            done.callback(result)  # type: ignore[arg-type]

    def _stalled(self) -> None:
        self._timer = None
        self.failure = OriginTimeout(f"the origin accepted no byte of the upload for {self._running.stall_timeout:g} s")
        self._pump.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
