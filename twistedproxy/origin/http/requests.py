"""Requests of the proxy's own and passed-on ones, under the origin's limiter, sent again where the origin is too busy.

Rules that this module keeps:

- A request takes a slot before it is sent and gives it back when its answer's body has come or was closed.
- A refusal (400 and above) of the proxy's own request is `OriginRefused`, with as much of the body as is worth
  showing; a redirect is no answer to it, for it would carry the caller's credentials elsewhere. Nor is any other
  success than those that the request can have: a 206 is a part of the thing (RFC 9110 section 15.3.7), a 203 something else.
- A passed-on request gets the origin's answer as it came, and lends its slot out once it lasts long.
- Responses determine a caller's standing: callers that may read go first, those that were only refused are held back.
- After 429 and 503 only what may be repeated is repeated: GET and HEAD without a body. The caller of `with_retries`
  sees to that.
- The origin's Retry-After decides (seconds or an HTTP date, RFC 9110 section 10.2.3), else the waits double.
- A wait that would end after the deadline is not begun: the origin's last answer goes back as it came.
- While it waits, a request holds no slot and no connection.
- Web servers of ready-made files compress also what was asked for without a coding. `decoded` is the only place where
  the codings of a store's answers are undone: for the proxy's own requests, and for answers that are rewritten on their way.
- All codings are undone, in one field or several, the last one first (RFC 9110 section 8.4); so are all members of a
  gzip body (RFC 1952 section 2.2) and all frames of a zstd body (RFC 8878 section 3). Unknown codings are refused.
- A coded body that ends before its own end mark is no whole body. After the end mark nothing may follow but another
  member, or zeros after a gzip member, with which some writers pad.
- A read never makes more than `MAX_STEP` bytes, whatever the body claims: memory stays flat.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from email.utils import parsedate_to_datetime
from typing import Any, Optional, TypeVar

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.origin.errors import (
    AnsweredByCache,
    OriginBadAnswer,
    OriginBusy,
    OriginError,
    OriginRefused,
    OriginTimeout,
    OriginUnreachable,
)
from twistedproxy.origin.http.client import InvalidRequest, Transport
from twistedproxy.origin.http.concurrency import NoSample
from twistedproxy.origin.http.limiter import LONG_TRANSFER_SECONDS, Limiter, Standings
from twistedproxy.origin.interface import Caller, Headers, OriginRequest, OriginResponse, Priority, first
from twistedproxy.streams import ZSTD_LIBRARY, ByteStream, StreamTooLong, YieldedStream, read_all
from twistedproxy.system.metrics import Metrics

BUSY = frozenset({429, 503})
FIRST_WAIT = 0.5  # seconds
LONGEST_WAIT = 16.0  # seconds, of the waits that the origin did not ask for
SHORTEST_WAIT = 0.1  # seconds: "Retry-After: 0" must not become a tight loop
DRAIN_LIMIT = 65536  # bytes of an unwanted body that are read to keep its connection; more: the connection is dropped
MAX_REFUSAL = 65536  # bytes of a refusal's body that are kept
REFUSAL_HEADERS = frozenset(
    {b"content-type", b"content-language", b"content-encoding", b"www-authenticate", b"retry-after"}
)
MAX_STEP = 256 * 1024  # bytes that one `read` of a decoded body gives
MAX_CODINGS = 3  # of one answer; no server means to apply more than one
ZSTD_WINDOW_LOG = 23  # RFC 9659: as a content coding, zstd has windows of at most 8 MB
_CODINGS = ("gzip", "x-gzip", "deflate", "zstd") if ZSTD_LIBRARY else ("gzip", "x-gzip", "deflate")
_ERRORS: tuple[type[Exception], ...] = (zlib.error, ZSTD_LIBRARY.ZstdError) if ZSTD_LIBRARY else (zlib.error,)

T = TypeVar("T")


def retry_after(headers: Headers, now: float) -> Optional[float]:
    """Seconds that Retry-After asks for, at *now* seconds since the epoch; None where it is missing or invalid."""
    value = first(headers, b"retry-after")
    if not value:
        return None
    text = value.decode("latin-1")
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


async def drain(response: OriginResponse) -> None:
    """Be done with a body that is not wanted."""
    if response.length is not None and response.length > DRAIN_LIMIT:
        response.body.close()
        return
    try:
        await read_all(response.body, DRAIN_LIMIT)
    except StreamTooLong:
        pass


async def with_retries(
    attempt: Callable[[float], Awaitable[OriginResponse]],
    clock: IReactorTime,
    deadline: float,
    now: Callable[[], float] = time.time,
) -> OriginResponse:
    """Await ``attempt(seconds left)`` until it answers anything but 429 and 503, for at most *deadline* seconds."""
    end = clock.seconds() + deadline
    backoff = FIRST_WAIT
    while True:
        response = await attempt(max(SHORTEST_WAIT, end - clock.seconds()))
        if response.status not in BUSY:
            return response
        asked = retry_after(response.headers, now())
        wait = max(SHORTEST_WAIT, backoff if asked is None else asked)
        if clock.seconds() + wait >= end:
            return response
        await drain(response)
        await deferLater(clock, wait)
        backoff = min(LONGEST_WAIT, 2 * backoff)


class Requests:
    """Sends requests through *transport* as *limiter* allows. *timeout*: seconds to an answer, retries included."""

    def __init__(self, clock: IReactorTime, transport: Transport, limiter: Limiter, timeout: float) -> None:
        self._clock = clock
        self._transport = transport
        self._limiter = limiter
        self._timeout = timeout
        self.standings = Standings(clock)

    async def get(
        self,
        target: str,
        accept: bytes,
        caller: Caller,
        priority: Priority,
        statuses: Collection[int] = (200,),
        measured: bool = True,
    ) -> OriginResponse:
        """The answer to a GET of the proxy's own, its body still to be read, without content codings.

        *priority*: `Priority.UNKNOWN` where *caller* need not hold a grant. *statuses*: those that a good answer can have.
        *measured*: whether the time to its head shows how busy the origin is. Raises `OriginError`, for refusals too."""
        request = OriginRequest.get(target.encode("utf-8"), b"", accept, caller)
        answer = await self._answer(request, priority, measured=measured)
        self.standings.answered(caller, answer.status)
        if answer.status >= 400:
            raise await refusal(answer)
        if answer.status not in statuses:
            answer.body.close()
            if answer.status >= 300:
                raise OriginBadAnswer(f"the origin answered with a redirect ({answer.status}), which is not followed")
            listed = " or ".join(map(str, statuses))
            raise OriginBadAnswer(f"the origin answered {answer.status}; expected {listed}")
        return decoded(answer)

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """See `Origin.forward`."""
        if request.decoded:
            headers = (*without(request.headers, {b"accept-encoding"}), (b"Accept-Encoding", b"identity"))
            request = attrs.evolve(request, headers=headers)
        try:
            answer = await self._answer(request, Priority.UNKNOWN, lend=True)
        except BaseException:
            if request.body is not None:
                request.body.close()
            raise
        self.standings.passed(request.caller, request.path, answer.status, answer.headers)
        if not request.decoded or answer.status >= 300 or answer.status == 206:  # a refusal or a part goes as it came
            return answer
        empty = request.method == b"HEAD" or answer.status == 204
        return attrs.evolve(decoded(answer), body=answer.body) if empty else decoded(answer)

    async def _answer(
        self, request: OriginRequest, priority: Priority, lend: bool = False, measured: bool = False
    ) -> OriginResponse:
        """The answer to *request*, which is sent again while the origin is busy where that does no harm."""
        try:
            if not request.is_repeatable:
                return await self._send(request, priority, None, lend, measured)
            return await with_retries(
                lambda left: self._send(request, priority, left, lend, measured), self._clock, self._timeout
            )
        except InvalidRequest as failed:  # the client's own part of it is to blame
            raise OriginRefused(400, ((b"Content-Type", b"text/plain"),), str(failed).encode()) from failed

    async def _send(
        self, request: OriginRequest, priority: Priority, left: Optional[float], lend: bool, measured: bool
    ) -> OriginResponse:
        caller = request.caller
        if priority is Priority.UNKNOWN:
            await self.standings.hold(caller)
            priority = self.standings.priority(caller)
        newcomer = priority is Priority.UNKNOWN and self.standings.is_new(caller)
        slot = await self._limiter.acquire(priority, caller.flow, newcomer)
        lending = self._clock.callLater(LONG_TRANSFER_SECONDS, slot.lend) if lend else None

        def end() -> None:
            if lending is not None and lending.active():
                lending.cancel()
            slot.release()

        sample = self._limiter.concurrency.sample() if measured else NoSample()
        try:
            answer = await self._transport.request(request, left, end, sample.sent)
        except BaseException as failed:
            if isinstance(failed, OriginTimeout):
                sample.refused()
            end()
            raise
        if answer.status in BUSY:
            sample.refused()
        elif answer.status < 300:
            sample.answered()
        return answer


async def refusal(answer: OriginResponse) -> OriginRefused:
    """An answer that refuses, with the beginning of its body: as much as came in time."""
    body = b""
    try:
        while len(body) < MAX_REFUSAL and (chunk := await answer.body.read()):
            body += chunk
    except OriginError:
        pass
    finally:
        answer.body.close()
    headers = tuple(pair for pair in answer.headers if pair[0].lower() in REFUSAL_HEADERS)
    return OriginRefused(answer.status, headers, body[:MAX_REFUSAL])


_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (AnsweredByCache, "ok"),
    (OriginRefused, "refused"),
    (OriginBusy, "busy"),
    (OriginTimeout, "timeout"),
    (OriginUnreachable, "unreachable"),
    (OriginBadAnswer, "bad_answer"),
    (CancelledError, "cancelled"),
)


async def observed(metrics: Metrics, clock: IReactorTime, name: str, work: Awaitable[T]) -> T:
    """Await *work*; how it ended and how many seconds it took are counted."""
    begin = clock.seconds()
    outcome = "failed"
    try:
        result = await work
        outcome = "ok"
        return result
    except Exception as failed:
        outcome = next((name for kind, name in _OUTCOMES if isinstance(failed, kind)), outcome)
        raise
    finally:
        metrics.observe("origin_operation_seconds", (name, outcome), clock.seconds() - begin)


def without(headers: Headers, names: Collection[bytes]) -> Headers:
    """*headers* without the fields *names* (lower case)."""
    return tuple((key, value) for key, value in headers if key.lower() not in names)


def decoded(answer: OriginResponse) -> OriginResponse:
    """*answer* without the content codings that its headers name.

    Raises `OriginBadAnswer`, and closes the body, for a coding that cannot be undone.
    """
    stated = b",".join(value for name, value in answer.headers if name.lower() == b"content-encoding")
    names = [name for value in stated.lower().decode("latin-1").split(",") if (name := value.strip())]
    names = [name for name in names if name != "identity"]
    if not names:
        return answer
    body = answer.body
    if len(names) > MAX_CODINGS or not set(names) <= set(_CODINGS):
        body.close()
        came, known = ", ".join(names)[:80], ", ".join(_CODINGS)
        raise OriginBadAnswer(f"the origin's response has the content coding {came!r}; supported: {known}")
    for name in reversed(names):
        body = YieldedStream(_decompressed(body, name), body)
    return attrs.evolve(answer, body=body, headers=without(answer.headers, {b"content-encoding"}), length=None)


def _decompressor(coding: str, head: bytes) -> Any:
    """What undoes *coding* of a member, or frame, that begins with *head*."""
    if coding == "zstd":
        options = {ZSTD_LIBRARY.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
        return ZSTD_LIBRARY.ZstdDecompressor(options=options)
    if coding != "deflate":
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    # With zlib's header, as RFC 9110 section 8.4.1.2 requires, or without, as some servers send it. A bare deflate body
    # begins like that header only with a block of no use.
    zlib_header = len(head) >= 2 and head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2], "big") % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)


async def _decompressed(body: ByteStream, coding: str) -> AsyncIterator[bytes]:
    """What *body* holds, without *coding*."""
    wrong = f"the origin's response cannot be decoded as {coding}"
    rest = padding = b""
    while True:
        while len(rest := rest.lstrip(padding)) < 2 and (chunk := await body.read()):
            rest += chunk
        if not rest:
            return
        member = _decompressor(coding, rest)
        more = False  # whether it may have more without another byte
        while not member.eof:
            if not rest and not more and not (rest := await body.read()):
                raise OriginBadAnswer(f"the origin's {coding} response ended too early")
            try:
                data = member.decompress(rest, MAX_STEP)
            except _ERRORS as bad:
                raise OriginBadAnswer(wrong) from bad
            more = len(data) == MAX_STEP
            rest = getattr(member, "unconsumed_tail", b"")  # the zstd libraries keep it
            if data:
                yield data
        rest = member.unused_data
        padding = b"\0" if coding.endswith("gzip") else b""
        if coding == "deflate" and (rest or await body.read()):
            raise OriginBadAnswer(wrong)
