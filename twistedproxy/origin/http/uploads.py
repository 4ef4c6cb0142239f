"""An upload on its way to the origin: a `ByteStream` as an `IBodyProducer`; and what all requests to one origin share.

Rules that this module keeps:

- The origin's pace is the reader's pace: while the transport is paused, the upload is not read.
- An upload that the origin takes no byte of fails after the stall timeout. Time in which the client is the slow side does
  not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional, Union

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twistedproxy.deferreds import Pausable
from twistedproxy.origin.errors import OriginTimeout
from twistedproxy.streams import ByteStream


@attrs.frozen
class Running:
    """What runs at one origin. *stall_timeout* in seconds; *on_bytes* is called with ``("in" | "out", bytes)``.
    *active*: what ends each request or body."""

    clock: IReactorTime
    stall_timeout: float
    on_bytes: Callable[[str, int], None]
    active: set[Callable[[], object]] = attrs.field(factory=set)

    def stop(self) -> None:
        """End all of it: what waits for an answer or a body fails."""
        for close in tuple(self.active):
            close()


@implementer(IBodyProducer)
class UploadProducer(Pausable):
    """Hands a `ByteStream` to an HTTP request as its body; an unknown *length* goes out in chunks.

    `sent` fires once the last byte was handed to the transport. `failure` says afterwards what broke: the stream's own
    error, or an `OriginTimeout`.
    """

    def __init__(self, stream: ByteStream, length: Optional[int], running: Running) -> None:
        super().__init__()
        self.length: Union[int, str] = UNKNOWN_LENGTH if length is None else length
        self.failure: Optional[BaseException] = None
        self.sent: Deferred[None] = Deferred()
        self._stream = stream
        self._running = running
        self._stopped = False
        self._pump = succeed(None)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._pump = Deferred.fromCoroutine(self._send(consumer))
        self._pump.addBoth(self._ended, done)
        return done

    def stopProducing(self) -> None:
        """The origin has no use for more, or the connection is gone."""
        if self._stopped:
            return
        self._stopped = True
        self._pump.cancel()
        self._stream.close()

    async def _send(self, consumer: IConsumer) -> None:
        seconds = self._running.stall_timeout
        late = Failure(OriginTimeout(f"the origin accepted no byte of the upload for {seconds:g} s"))
        while not self._stopped:
            if self.paused:
                await self.resumed().addTimeout(seconds, self._running.clock, onTimeoutCancel=lambda *_: late)
            chunk = await self._stream.read()
            if self._stopped or not chunk:
                return
            self._running.on_bytes("out", len(chunk))
            consumer.write(chunk)

    def _ended(self, result: Optional[Failure], done: Deferred[None]) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._stream.close()
        if isinstance(result, Failure):
            self.failure = result.value
        else:
            self.sent.callback(None)
        if not done.called:
            done.callback(result)  # type: ignore[arg-type]
