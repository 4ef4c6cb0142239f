"""Common to all routes: errors become answers, and each request is counted and logged once.

- A problem that comes up before the answer began is the answer; after that the connection is cut, which is the one
  way to tell a client that what it has is not whole.
- A client that leaves cancels its handler, which is no error.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any, Optional, Protocol

import attrs
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from twistedproxy.dicom.media_types import BadMediaType
from twistedproxy.dicom.negotiation import NotAcceptable
from twistedproxy.frames.read_through import AnswerTooLarge, NoSuchFrame
from twistedproxy.frames.streamed import AnswerBroken
from twistedproxy.imaging.errors import (
    CallFailed,
    CannotRender,
    ChildDied,
    PictureTooLarge,
    PoolBusy,
    PoolError,
    PoolTimeout,
)
from twistedproxy.origin.errors import OriginBusy, OriginError, OriginRefused, OriginTimeout
from twistedproxy.origin.interface import first
from twistedproxy.prefetch.jobs import NotStarted
from twistedproxy.server import problems
from twistedproxy.server.cors import NOSNIFF, Cors, confine
from twistedproxy.server.problems import Problem
from twistedproxy.server.response_body import ClientGone, send_page
from twistedproxy.system.logs import AccessLog
from twistedproxy.system.memory_budget import RETRY_AFTER, NoRoom
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.tracing import REQUEST_ID, Trace, current_trace

_log = Logger()

REFUSED_HEADERS = frozenset({b"content-type", b"www-authenticate", b"retry-after", b"content-language", b"warning"})
"""Headers of an origin's refusal that go to the caller."""

_OF_EVERY_ANSWER = frozenset({b"server", b"date", b"connection", b"vary", NOSNIFF[0].lower(), REQUEST_ID.lower()})

ORIGIN_RETRY_AFTER = 5
"""Seconds: about as long as a store needs to work off a queue."""

BUSY_RETRY_AFTER = 2
"""Seconds: about as long as a full queue of pictures takes, or the load of an instance of 200 MB."""

STOPPING_RETRY_AFTER = 5
"""Seconds after which a client may ask again: about what a restart takes."""

_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})


@attrs.frozen
class Accounting:
    """Where requests are counted and logged. *seconds*: a clock for durations."""

    metrics: Metrics
    access_log: AccessLog
    seconds: Callable[[], float]

    def end(self, request: Request, route: str, started: float) -> None:
        """A request was answered, one way or another."""
        seconds = self.seconds() - started
        outcome = getattr(request, "cache_outcome", "")
        method = request.method.decode("latin-1")
        if method not in _KNOWN_METHODS:
            method = "other"  # a client's invention must not make a time series
        upload = getattr(request, "upload", None)
        if upload is not None:
            self.metrics.bytes_received(upload.size)
        self.metrics.request_ended()
        self.metrics.request_finished(route, method, request.code, outcome, seconds, request.sentLength)
        request_id, client = trace_of(request).request_id, client_of(request)
        self.access_log.request(
            request.method, request.uri, request.code, request.sentLength, seconds, outcome, client, request_id
        )


class Routes(Protocol):
    """What has routes."""

    accounting: Accounting
    cors: Cors


Handler = Callable[..., Awaitable[None]]


def answered(route: str) -> Callable[[Handler], Handler]:
    """Make a handler of a Klein route out of one that takes the request alone, or of an error out of one that takes the
    failure, too. *route*: its name in the metrics."""

    def decorate(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def handle(self: Routes, request: Request, *failure: Failure, **_variables: str) -> None:
            # Klein's variables are percent-decoded: handlers read the raw path instead.
            started = self.accounting.seconds()
            self.accounting.metrics.request_started()
            trace = trace_of(request)
            current_trace.set(trace)
            try:
                request.responseHeaders.setRawHeaders(REQUEST_ID, [trace.request_id.encode("ascii")])
                request.responseHeaders.addRawHeader(*NOSNIFF)
                if self.cors.origins:
                    for name, value in self.cors.headers(request.getHeader(b"Origin")):
                        request.responseHeaders.addRawHeader(name, value)
                refused: Optional[Problem] = getattr(request, "refused", None)
                if refused is not None and not failure:
                    raise refused
                await handler(self, request, *failure)
            except ClientGone:
                _note_client_closed(request)
            except CancelledError:
                if not request._disconnected:  # not the client: something that was waited for is being stopped
                    answer_error(request, problems.unavailable("the proxy is stopping", STOPPING_RETRY_AFTER))
                    return
                _note_client_closed(request)
                raise
            except Exception as error:
                answer_error(request, error)
            finally:
                self.accounting.end(request, route, started)

        return handle

    return decorate


def _note_client_closed(request: Request) -> None:
    if not request.startedWriting:
        request.setResponseCode(499, b"client closed request")  # for the log, as nginx has it


def trace_of(request: Any) -> Trace:
    """What names *request*: the same whenever it is asked for."""
    if request.trace is None:
        request.trace = Trace.of(request.requestHeaders.getRawHeaders)
    trace: Trace = request.trace
    return trace


def client_of(request: Request) -> str:
    """The address of the client, as far as it is known to be true."""
    seen: Optional[str] = getattr(request, "client_seen", None)
    return seen or getattr(request.getClientAddress(), "host", None) or "-"


def answer_error(request: Request, error: Exception) -> None:
    """Make the answer that *error* calls for."""
    if request.startedWriting:
        if isinstance(error, (OriginError, Problem, NotAcceptable, AnswerBroken, AnswerTooLarge)):
            _log.warn("response aborted after headers were sent: {reason}", reason=str(error))
        else:
            _log.failure("response aborted after headers were sent")
        cut(request)
        return
    _drop_prepared_headers(request)
    if isinstance(error, OriginRefused):
        _send_refusal(request, error)
    else:
        send_problem(request, problem_of(error))


def _drop_prepared_headers(request: Request) -> None:
    """Take back what was to describe the answer that failed: a problem is not gzip, for one."""
    for name in [name for name, _ in request.responseHeaders.getAllRawHeaders()]:
        lower = name.lower()
        if lower not in _OF_EVERY_ANSWER and not lower.startswith(b"access-control-"):
            request.responseHeaders.removeHeader(name)


def problem_of(error: Exception) -> Problem:
    """The problem document for *error*."""
    match error:
        case Problem():
            return error
        case NotAcceptable():
            return problems.not_acceptable(error.available)
        case BadMediaType():
            return Problem(400, str(error))
        case NoSuchFrame():
            return Problem(404, str(error))
        case AnswerTooLarge() | PictureTooLarge():
            return Problem(413, str(error))
        case NoRoom() | AnswerBroken():
            return problems.unavailable(str(error), RETRY_AFTER)
        case OriginBusy():
            return problems.unavailable(str(error), ORIGIN_RETRY_AFTER)
        case CannotRender():
            return Problem(400, str(error))
        case PoolBusy():
            return problems.unavailable(str(error), BUSY_RETRY_AFTER)
        case CallFailed(kind="NotDecodable"):
            return problems.not_acceptable(["the frames as they are stored"])
        case OriginTimeout() | PoolTimeout():
            return Problem(504, str(error))
        case OriginError() | ChildDied():
            return Problem(502, str(error))
        case PoolError():
            return Problem(502, f"the picture cannot be made: {error}")
        case NotStarted():
            seconds = BUSY_RETRY_AFTER if error.status == 503 else error.retry_after
            headers = () if seconds is None else ((b"Retry-After", b"%d" % max(1, ceil(seconds))),)
            return Problem(error.status, str(error), members={"reason": error.reason}, headers=headers)
    _log.failure("unhandled error in a request handler")
    return Problem(500, "internal error; see the log of the proxy")


def send_problem(request: Request, problem: Problem) -> None:
    """Answer with a problem."""
    request.setResponseCode(problem.status)
    for name, value in problem.headers:
        request.responseHeaders.setRawHeaders(name, [value])
    send_page(request, problems.CONTENT_TYPE, problem.to_json())


def _send_refusal(request: Request, refused: OriginRefused) -> None:
    """Give the origin's error as it came."""
    request.setResponseCode(refused.status)
    for name, value in refused.headers:
        if name.lower() in REFUSED_HEADERS:
            request.responseHeaders.addRawHeader(name, value)
    confine(request.responseHeaders)
    send_page(request, first(refused.headers, b"content-type") or b"application/octet-stream", refused.body)


def cut(request: Request) -> None:
    """End the connection in the middle of an answer."""
    channel: Any = request.channel
    if channel is not None:
        channel.persistent = False
        channel.transport.abortConnection()
