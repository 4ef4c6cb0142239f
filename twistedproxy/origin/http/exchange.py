"""One request on one connection, until its answer's body has come.

This uses `HTTP11ClientProtocol` but not `Agent`, which hides the connection: its Connection field, the way to abort it, whether
it was kept, its parser. For GETs alone `Agent` would save 30 of 490 statements here, and takes 11 % more time for a frame
(127 us in place of 114). What this reads of it is private: `_parser`, `connHeaders`, `finisher`,
`_responseDeferred`; the tests of `twistedproxy.origin.http.client` notice when Twisted changes them.

Rules that this module keeps:

- The head of an answer is as hostile as that of a request: its size is bounded, and a value that holds CR, LF or NUL, or a
  Content-Length that is no number, makes the answer none (RFC 9110 section 5.5, RFC 9112 section 6.3).
- The reader's pace is the sender's pace: beyond `HIGH_WATER` bytes the transport is paused.
- An answer that brings no byte while its reader waits for one fails after the stall timeout. A byte now and then is no
  progress: one that brings less than `PROGRESS` in `SLOWEST` stall timeouts of waiting fails, too. It holds a slot.
- A body that is closed before its end drops its connection; one that ended leaves it to the pool. One that is longer than
  its head says is not whole: either may be wrong. What broke a body breaks it for good.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Optional, Union

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, HTTPClientParser, Request, RequestNotSent
from twisted.web.client import RequestTransmissionFailed, ResponseDone, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from twistedproxy.origin.errors import OriginBadAnswer, OriginBrokeOff, OriginTimeout, OriginUnreachable
from twistedproxy.origin.http.uploads import Running, UploadProducer
from twistedproxy.origin.interface import HOP_BY_HOP, OriginResponse
from twistedproxy.system.outages import tls_reason_in

_LENGTH = re.compile(rb"[ \t]*[0-9]{1,18}[ \t]*")  # bytes; an exabyte has 19 digits

MAX_HEAD = 256 * 1024
"""Bytes of an answer's head, interim answers counted; twisted.web bounds a line of it only. nginx takes 8 kB at most."""

PROGRESS = 64 * 1024
"""Bytes of an answer that show that the origin gets on."""

SLOWEST = 4
"""Stall timeouts of waiting in which so much must come: with the default 0.5 kB/s. Stores that compose long metadata file by
file send a few kB/s, and some a space now and then while they work on the first."""

HIGH_WATER = 512 * 1024  # bytes of an answer that wait for their reader; a reactor turn brings 64 kB


@attrs.define(eq=False)
class AnswerBody(Protocol):
    """The body of one answer. Delivered to by `twisted.web`, pulled by one reader.

    *on_end* is called once: the origin is done with this request, or the body was closed. *abort* drops the connection.
    *surplus*: what is wrong with the end of a body that came in full. *framed*: whether Content-Length or chunks show
    where it ends; else it ends with its connection, whole or not.
    """

    _running: Running
    _on_end: Callable[[], None]
    _abort: Callable[[], None]
    _surplus: Callable[[], Optional[Exception]] = lambda: None
    framed: bool = True
    _chunks: deque[bytes] = attrs.field(init=False, factory=deque)
    _size: int = 0
    _paused: bool = False
    _waiter: Optional[Deferred[bytes]] = None
    _waiting_since: float = 0.0
    _waited: float = 0.0  # seconds since the origin made progress
    _progress: int = 0
    _timer: Optional[IDelayedCall] = None
    _error: Optional[Exception] = None
    _ended: bool = False

    def __attrs_post_init__(self) -> None:
        self._running.active.add(self.close)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return  # what was on its way when the body was closed
        self._running.on_bytes("in", len(data))
        self._progress += len(data)
        if self._waiter is not None:
            self._waited += self._running.clock.seconds() - self._waiting_since
        if self._progress >= PROGRESS:
            self._progress, self._waited = 0, 0.0
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
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
        self._waiter = Deferred(self._reader_left)
        self._waiting_since = self._running.clock.seconds()
        if self._timer is None:
            self._timer = self._running.clock.callLater(self._running.stall_timeout, self._check_stall)
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
        waiting = self._running.clock.seconds() - self._waiting_since
        stall_timeout = self._running.stall_timeout
        longest = SLOWEST * stall_timeout
        left = min(stall_timeout, longest - self._waited) - waiting
        if left > 0:
            self._timer = self._running.clock.callLater(left, self._check_stall)
            return
        slow = f"less than {PROGRESS} bytes in {longest:g} s"
        how = slow if waiting < stall_timeout else f"nothing for {stall_timeout:g} s"
        self._end(OriginTimeout(f"the origin sent {how}"))
        self._abort()

    def _end(self, error: Optional[Exception]) -> None:
        self._ended = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiter, self._waiter = self._waiter, None
        self._running.active.discard(self.close)
        self._on_end()
        if waiter is None:
            return
        if error is None:
            waiter.callback(b"")
        else:
            waiter.errback(Failure(error))


class Dropped(Exception):
    """The connection ended before the first byte of an answer. Its text: why, where that was TLS, else empty."""


@attrs.define(eq=False)
class Exchange:
    """One *request* on one *connection*. *timeout*: seconds from its last byte to an answer's headers. *on_end*: called once
    the answer's body has come or was closed."""

    _running: Running
    _connection: HTTP11ClientProtocol
    _request: Request
    _timeout: float
    _on_end: Callable[[], None]
    _answered: Deferred[IResponse] = attrs.field(init=False, factory=Deferred)
    _timer: Optional[IDelayedCall] = None
    _expired: bool = False
    _early: bool = False
    _surplus: Optional[OriginBadAnswer] = None

    async def run(self) -> OriginResponse:
        """The answer, as soon as its headers are there. Raises `Dropped` if nothing came, else `OriginError`."""
        upload = self._request.bodyProducer
        sent: Deferred[IResponse] = self._connection.request(self._request)
        self._answered = Deferred(lambda _: sent.cancel())
        parser = self._connection._parser
        assert parser is not None
        _guard_head(parser)
        self._watch_end(parser)
        if upload is not None:
            self._watch_refusal(upload)
        sent.addBoth(self._answer_once)
        (succeed(None) if upload is None else upload.sent).addCallback(lambda _: self._start_timer())
        self._running.active.add(self._answered.cancel)
        try:
            response = await self._answered
        except Exception as failed:
            raise self._error(failed) from failed
        finally:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._running.active.discard(self._answered.cancel)
            vars(parser).pop("lineReceived", None)  # it refers to the parser
        if not 200 <= response.code < 600:  # RFC 9110 section 15: clients must not be given others
            self._abort()
            raise OriginUnreachable(f"the origin's response has the invalid status {response.code}")
        return self._answer(response, parser.connHeaders.getRawHeaders(b"connection", []))

    def _answer_once(self, result: Union[IResponse, Failure, None]) -> None:
        if not self._answered.called:
            self._answered.callback(result)  # type: ignore[arg-type]

    def _start_timer(self) -> None:
        if not self._answered.called:
            self._timer = self._running.clock.callLater(self._timeout, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._answered.cancel()

    def _abort(self) -> None:
        self._connection.transport.abortConnection()  # type: ignore[union-attr]

    def _watch_end(self, parser: HTTPClientParser) -> None:
        """Note bytes that follow the answer; its connection is not kept then."""
        finish = parser.finisher

        def finished(rest: bytes) -> None:
            if rest.strip(b"\r\n"):  # some servers end a body with a line end that they do not count
                parser.connHeaders.setRawHeaders(b"Connection", [b"close"])
                if self._request.method != b"HEAD" and parser.response.code not in (204, 304):
                    self._surplus = OriginBadAnswer("the origin's response is longer than its head says")
            finish(rest)

        parser.finisher = finished

    def _watch_refusal(self, upload: UploadProducer) -> None:
        """Take a refusal that comes while the upload still runs for the answer; twisted.web would wait for the upload's end."""

        def received(response: Optional[IResponse]) -> Optional[IResponse]:
            if response is not None and self._connection.state == "TRANSMITTING" and response.code >= 300:
                upload.stopProducing()
                self._early = True
                self._answer_once(response)
            return response

        if self._connection._responseDeferred is not None:
            self._connection._responseDeferred.addCallback(received)

    def _answer(self, response: IResponse, named: Sequence[bytes]) -> OriginResponse:
        body = AnswerBody(self._running, self._ended, self._abort, lambda: self._surplus)
        dropped = (
            HOP_BY_HOP | {b"content-length"} | {name.strip().lower() for each in named for name in each.split(b",")}
        )
        fields = response.headers.getAllRawHeaders()
        headers = tuple((name, value) for name, values in fields if name.lower() not in dropped for value in values)
        length = None if response.length is UNKNOWN_LENGTH else int(response.length)
        if self._request.method == b"HEAD":
            stated = response.headers.getRawHeaders(b"content-length", [b""])[0]
            length = int(stated) if stated.isdigit() else None  # short enough, see `_guard_head`
        elif response.code in (204, 304):
            length = None
        response.deliverBody(body)
        return OriginResponse(response.code, headers, body, length, lambda: body.framed)

    def _ended(self) -> None:
        if self._early:
            self._abort()  # half a request was sent: twisted.web would wait for the rest of it before it closes
        self._on_end()

    def _error(self, failed: Exception) -> Exception:
        """What a failed request means to callers of this package."""
        if self._expired:
            return OriginTimeout(f"the origin did not answer within {self._timeout:g} s")
        reasons = getattr(failed, "reasons", ())
        if isinstance(failed, CancelledError) or any(reason.check(CancelledError) for reason in reasons):
            return CancelledError()
        if isinstance(failed, (RequestNotSent, RequestTransmissionFailed, ResponseNeverReceived)):
            return Dropped(tls_reason_in(failed))
        return OriginUnreachable("the origin's response is not HTTP, or was cut off")


def _guard_head(parser: HTTPClientParser) -> None:
    """Have *parser* raise, which ends its connection, where a head does not end, or a line of it is malformed.

    twisted.web takes a lone LF for a line end: what a store copied into a value would become a field of its own. It is a
    line end only in heads that have no other.
    """
    received, left = parser.lineReceived, MAX_HEAD
    end: Optional[bytes] = None  # what lines end with before their LF

    def line_received(line: bytes) -> None:
        nonlocal left, end
        left -= len(line) + 2
        if left < 0:
            raise ValueError(f"more than {MAX_HEAD} bytes")
        if end is None:
            end = b"\r" if line.endswith(b"\r") else b""
        text = line.removesuffix(b"\r")
        if line != text + end or b"\r" in text or b"\0" in text:
            raise ValueError("a line holds CR, LF or NUL")
        if text[:15].lower() == b"content-length:" and not _LENGTH.fullmatch(text, 15):
            raise ValueError("a Content-Length is not a number")
        received(line)

    parser.lineReceived = line_received  # type: ignore[method-assign]
