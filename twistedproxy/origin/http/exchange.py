"""One request on one connection, until its answer's headers are there.

This uses `HTTP11ClientProtocol` but not `Agent`, which parses the URL, hides the Connection field and the way to abort, and
cannot tell a kept connection from a new one. What it reads of it is private: `_parser`, `connHeaders`, `finisher`,
`_responseDeferred`; the tests of `transport` notice when Twisted changes them.

Rules that this module keeps:

- The head of an answer is as hostile as that of a request: its size is bounded, and a value that holds CR, LF or NUL, or a
  Content-Length that is no number, makes the answer none (RFC 9110 section 5.5, RFC 9112 section 6.3).
- A body that is longer than its head says is not whole: nobody knows which of the two is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web import http_headers
from twisted.web._newclient import HTTP11ClientProtocol, HTTPClientParser, Request, RequestNotSent
from twisted.web.client import RequestTransmissionFailed, ResponseNeverReceived
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from twistedproxy.origin.errors import OriginBadAnswer, OriginTimeout, OriginUnreachable
from twistedproxy.origin.http.bodies import AnswerBody, UploadProducer
from twistedproxy.origin.http.headers import end_to_end
from twistedproxy.origin.interface import Headers
from twistedproxy.streams import ByteStream
from twistedproxy.system.outages import tls_reason_in

_LENGTH = re.compile(rb"[ \t]*[0-9]{1,18}[ \t]*")  # bytes; an exabyte has 19 digits

MAX_HEAD = 256 * 1024
"""Bytes of an answer's head, interim answers counted; twisted.web bounds a line of it only. nginx takes 8 kB at most."""


class Answer:
    """Status, headers and body of an answer. *length*: of the body in bytes where the origin said it."""

    def __init__(self, status: int, headers: Headers, body: AnswerBody, length: Optional[int]) -> None:
        self.status = status
        self.headers = headers
        self.body: ByteStream = body
        self.length = length
        self._received = body

    @property
    def framed(self) -> bool:
        """After the body's end: whether its length or its chunks showed that it is whole."""
        return self._received.framed


@attrs.frozen
class Running:
    """What runs at one origin. *stall_timeout* in seconds; *on_bytes* hears ``("in" | "out", bytes)``."""

    clock: IReactorTime
    stall_timeout: float
    on_bytes: Callable[[str, int], None]
    waiting: set[Deferred[IResponse]] = attrs.field(factory=set)
    bodies: set[AnswerBody] = attrs.field(factory=set)

    def stop(self) -> None:
        """End all of it; who waits for an answer or a body is told."""
        for waiting in tuple(self.waiting):
            waiting.cancel()
        for body in tuple(self.bodies):
            body.close()


class Dropped(Exception):
    """The connection ended before the first byte of an answer. Its text: why, where that was TLS, else empty."""


class Exchange:
    """One request on one connection. Tried again by its owner on another one only after `Dropped`."""

    def __init__(
        self,
        running: Running,
        method: bytes,
        target: bytes,
        headers: http_headers.Headers,
        timeout: float,
        on_end: Callable[[], None],
        persistent: bool,
    ) -> None:
        self._running = running
        self._method = method
        self._target = target
        self._headers = headers
        self._timeout = timeout
        self._on_end = on_end
        self._persistent = persistent
        self._early = False
        self._surplus: Optional[OriginBadAnswer] = None

    async def send(self, connection: HTTP11ClientProtocol, upload: Optional[UploadProducer]) -> Answer:
        """The answer, as soon as its headers are there. Raises `Dropped` if nothing came, else `OriginError`."""
        request = Request(self._method, self._target, self._headers, upload, persistent=self._persistent)
        sent = connection.request(request)
        parser = connection._parser
        assert parser is not None
        _guard_head(parser)
        self._watch_end(parser)
        answered: Deferred[IResponse] = Deferred(lambda _: sent.cancel())
        if upload is not None:
            self._hear_early_refusal(connection, upload, answered)
        sent.addCallbacks(
            lambda response: None if answered.called else answered.callback(response),
            lambda failure: None if answered.called else answered.errback(failure),
        )
        late = OriginTimeout(f"the origin did not answer within {self._timeout:g} s")
        watch = _Watch(self._running.clock, self._timeout, answered, late)
        if upload is None:
            watch.start()
        else:
            upload.when_sent(watch.start)
        self._running.waiting.add(answered)
        try:
            response = await answered
        except Exception as failed:
            raise _error(failed, watch.expired) from failed
        finally:
            watch.stop()
            self._running.waiting.discard(answered)
            vars(parser).pop("lineReceived", None)  # it refers to the parser
        if not 200 <= response.code < 600:  # RFC 9110 section 15: clients must not be given others
            connection.transport.abortConnection()  # type: ignore[union-attr]
            raise OriginUnreachable(f"the origin's answer has status {response.code}, which is none")
        return self._answer(connection, response, list(parser.connHeaders.getRawHeaders(b"connection", [])))

    def _watch_end(self, parser: HTTPClientParser) -> None:
        """Note bytes that follow the answer; its connection is not kept then."""
        finish = parser.finisher

        def finished(rest: bytes) -> None:
            if rest.strip(b"\r\n"):  # some servers end a body with a line end that they do not count
                parser.connHeaders.setRawHeaders(b"Connection", [b"close"])
                if self._method != b"HEAD" and parser.response.code not in (204, 304):
                    self._surplus = OriginBadAnswer("the origin sent more than its answer's head says")
            finish(rest)

        parser.finisher = finished

    def _hear_early_refusal(
        self, connection: HTTP11ClientProtocol, upload: UploadProducer, answered: Deferred[IResponse]
    ) -> None:
        """Fire *answered* with a refusal that comes while the upload still runs; twisted.web would wait for its end."""

        def heard(response: Optional[IResponse]) -> Optional[IResponse]:
            if response is not None and connection.state == "TRANSMITTING" and response.code >= 300:
                upload.stopProducing()
                self._early = True
                if not answered.called:
                    answered.callback(response)
            return response

        responding = connection._responseDeferred
        if responding is not None:
            responding.addCallback(heard)

    def _ended(self, connection: HTTP11ClientProtocol, body: AnswerBody) -> None:
        if self._early:
            # Half a request was sent: twisted.web would wait for the rest of it before it closes.
            connection.transport.abortConnection()  # type: ignore[union-attr]
        self._running.bodies.discard(body)
        self._on_end()

    def _answer(self, connection: HTTP11ClientProtocol, response: IResponse, named: list[bytes]) -> Answer:
        body = AnswerBody(
            self._running.clock,
            self._running.stall_timeout,
            lambda: self._ended(connection, body),
            connection.transport.abortConnection,  # type: ignore[union-attr]
            lambda count: self._running.on_bytes("in", count),
            lambda: self._surplus,
        )
        fields = tuple((name, value) for name, values in response.headers.getAllRawHeaders() for value in values)
        length = None if response.length is UNKNOWN_LENGTH else int(response.length)
        if self._method == b"HEAD":
            said = response.headers.getRawHeaders(b"content-length", [b""])[0]
            length = int(said) if said.isdigit() else None  # short enough, see `_guard_head`
        elif response.code in (204, 304):
            length = None
        answer = Answer(response.code, end_to_end(fields, named, frozenset({b"content-length"})), body, length)
        self._running.bodies.add(body)
        response.deliverBody(body)
        return answer


class _BadHead(ValueError):
    """An answer's head that nobody should have to read."""


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
            raise _BadHead(f"more than {MAX_HEAD} bytes")
        if end is None:
            end = b"\r" if line.endswith(b"\r") else b""
        text = line.removesuffix(b"\r")
        if line != text + end or b"\r" in text or b"\0" in text:
            raise _BadHead("a line holds CR, LF or NUL")
        if text[:15].lower() == b"content-length:" and not _LENGTH.fullmatch(text, 15):
            raise _BadHead("a Content-Length is no number")
        received(line)

    parser.lineReceived = line_received  # type: ignore[method-assign]


class _Watch:
    """The deadline of one wait: cancels *waiting* and has `expired` set."""

    def __init__(self, clock: IReactorTime, seconds: float, waiting: Deferred[Any], error: OriginTimeout) -> None:
        self._clock = clock
        self._seconds = seconds
        self._waiting = waiting
        self._error = error
        self._call: Any = None
        self.expired: Optional[OriginTimeout] = None

    def start(self) -> None:
        if not self._waiting.called:
            self._call = self._clock.callLater(self._seconds, self._expire)

    def stop(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _expire(self) -> None:
        self.expired = self._error
        self._waiting.cancel()


def _error(failed: Exception, expired: Optional[OriginTimeout]) -> Exception:
    """What a failed request means to callers of this room."""
    if expired is not None:
        return expired
    if isinstance(failed, CancelledError) or _reason(failed, CancelledError):
        return CancelledError()
    if isinstance(failed, (RequestNotSent, RequestTransmissionFailed, ResponseNeverReceived)):
        return Dropped(tls_reason_in(failed))
    return OriginUnreachable("the origin's answer is no HTTP, or broke off")


def _reason(failed: Exception, kind: type[Exception]) -> bool:
    return any(reason.check(kind) for reason in getattr(failed, "reasons", ()))
