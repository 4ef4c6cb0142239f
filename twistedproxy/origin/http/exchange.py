"""One request on one connection, until its answer's headers are there.

This uses `HTTP11ClientProtocol` but not `Agent`, which hides the connection: its Connection field, the way to abort it, whether
it was kept, its parser. For GETs alone `Agent` would save 30 of 490 statements here, and takes 11 % more time for a frame
(127 us in place of 114). What this reads of it is private: `_parser`, `connHeaders`, `finisher`,
`_responseDeferred`; the tests of `twistedproxy.origin.http.client` notice when Twisted changes them.

Rules that this module keeps:

- The head of an answer is as hostile as that of a request: its size is bounded, and a value that holds CR, LF or NUL, or a
  Content-Length that is no number, makes the answer none (RFC 9110 section 5.5, RFC 9112 section 6.3).
- A body that is longer than its head says is not whole: either may be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Optional, Union

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, HTTPClientParser, Request, RequestNotSent
from twisted.web.client import RequestTransmissionFailed, ResponseNeverReceived
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from twistedproxy.origin.errors import OriginBadAnswer, OriginTimeout, OriginUnreachable
from twistedproxy.origin.http.bodies import AnswerBody, Running, UploadProducer
from twistedproxy.origin.interface import HOP_BY_HOP, OriginResponse
from twistedproxy.system.outages import tls_reason_in

_LENGTH = re.compile(rb"[ \t]*[0-9]{1,18}[ \t]*")  # bytes; an exabyte has 19 digits

MAX_HEAD = 256 * 1024
"""Bytes of an answer's head, interim answers counted; twisted.web bounds a line of it only. nginx takes 8 kB at most."""


class Dropped(Exception):
    """The connection ended before the first byte of an answer. Its text: why, where that was TLS, else empty."""


class Exchange:
    """One *request* on one *connection*. *timeout*: seconds from its last byte to an answer's headers. *on_end*: called once
    the answer's body has come or was closed."""

    def __init__(
        self,
        running: Running,
        connection: HTTP11ClientProtocol,
        request: Request,
        timeout: float,
        on_end: Callable[[], None],
    ) -> None:
        self._running = running
        self._connection = connection
        self._request = request
        self._timeout = timeout
        self._on_end = on_end
        self._sent: Deferred[IResponse] = Deferred()
        self._answered: Deferred[IResponse] = Deferred(lambda _: self._sent.cancel())
        self._timer: Optional[IDelayedCall] = None
        self._expired = self._early = False
        self._surplus: Optional[OriginBadAnswer] = None

    async def run(self) -> OriginResponse:
        """The answer, as soon as its headers are there. Raises `Dropped` if nothing came, else `OriginError`."""
        upload = self._request.bodyProducer
        self._sent = self._connection.request(self._request)
        parser = self._connection._parser
        assert parser is not None
        _guard_head(parser)
        self._watch_end(parser)
        if upload is not None:
            self._watch_refusal(upload)
        self._sent.addBoth(self._answer_once)
        if upload is None:
            self._start_timer()
        else:
            upload.sent.addCallback(lambda _: self._start_timer())
        self._running.waiting.add(self._answered)
        try:
            response = await self._answered
        except Exception as failed:
            raise self._error(failed) from failed
        finally:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._running.waiting.discard(self._answered)
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
        method = self._request.method
        body = AnswerBody(self._running, self._ended, self._abort, lambda: self._surplus)
        dropped = (
            HOP_BY_HOP | {b"content-length"} | {name.strip().lower() for each in named for name in each.split(b",")}
        )
        fields = response.headers.getAllRawHeaders()
        headers = tuple((name, value) for name, values in fields if name.lower() not in dropped for value in values)
        length = None if response.length is UNKNOWN_LENGTH else int(response.length)
        if method == b"HEAD":
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


class _BadHead(ValueError):
    """An answer's head is malformed, or too large."""


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
            raise _BadHead("a Content-Length is not a number")
        received(line)

    parser.lineReceived = line_received  # type: ignore[method-assign]
