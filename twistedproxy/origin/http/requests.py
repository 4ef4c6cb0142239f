"""Requests of the proxy's own and passed-on ones, under the origin's limiter.

Rules that this module keeps:

- A request takes a slot before it is sent and gives it back when its answer's body has come or was closed.
- A refusal (400 and above) of the proxy's own request is `OriginRefused`, with as much of the body as is worth
  showing; a redirect is no answer to it, for it would carry the caller's credentials elsewhere. Nor is any other
  success than those that the request can have: a 206 is a part of the thing (RFC 9110 section 15.3.7), a 203 something else.
- A passed-on request gets the origin's answer as it came, and lends its slot out once it lasts long.
- Each answer tells of the caller: who may read something goes first, who was only refused is held back (`standing`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Optional, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from twistedproxy.origin.errors import (
    AnsweredByCache,
    OriginBadAnswer,
    OriginBusy,
    OriginError,
    OriginRefused,
    OriginTimeout,
    OriginUnreachable,
)
from twistedproxy.origin.http.client import REPEATABLE, USER_AGENT, Transport, Unspeakable
from twistedproxy.origin.http.exchange import Answer
from twistedproxy.origin.http.headers import HOP_BY_HOP, MADE_ANEW, codings, decoded, end_to_end, without
from twistedproxy.origin.http.limiter import LONG_TRANSFER_SECONDS, Limiter
from twistedproxy.origin.http.retry import with_retries
from twistedproxy.origin.http.standing import Standings
from twistedproxy.origin.interface import Caller, Headers, OriginRequest, OriginResponse, Priority
from twistedproxy.streams import ByteStream

MAX_REFUSAL = 65536  # bytes of a refusal's body that are kept
REFUSAL_HEADERS = frozenset(
    {b"content-type", b"content-language", b"content-encoding", b"www-authenticate", b"retry-after"}
)
OURS = HOP_BY_HOP | MADE_ANEW | {b"accept", b"accept-encoding", b"user-agent", b"range", b"if-range"}

T = TypeVar("T")


class Observer(Protocol):
    """Who counts what this origin does."""

    def origin_operation(self, name: str, outcome: str, seconds: float) -> None:
        """An operation of `Origin` ended."""

    def origin_bytes(self, direction: str, size: int) -> None:
        """Bytes of a body went ``in`` from the origin or ``out`` to it."""


class NoObserver:
    """Counts nothing."""

    def origin_operation(self, name: str, outcome: str, seconds: float) -> None: ...

    def origin_bytes(self, direction: str, size: int) -> None: ...


class Requests:
    """Sends requests through *transport* as *limiter* allows. *timeout*: seconds to an answer, retries included."""

    def __init__(self, clock: IReactorTime, transport: Transport, limiter: Limiter, timeout: float) -> None:
        self._clock = clock
        self._transport = transport
        self._limiter = limiter
        self._timeout = timeout
        self.standings = Standings(clock)

    async def get(
        self, target: str, accept: bytes, caller: Caller, priority: Priority, statuses: Collection[int] = (200,)
    ) -> Answer:
        """The answer to a GET of the proxy's own, its body still to be read, without content codings.

        *priority*: `Priority.UNKNOWN` where *caller* need not hold a grant. *statuses*: those that a good answer can have.
        Raises `OriginError`, for refusals too."""
        headers: Headers = (
            (b"Accept", accept),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", USER_AGENT),
            *without(caller.headers, OURS),
        )
        path, _, query = target.encode("utf-8").partition(b"?")
        raw = b"?".join(filter(None, (path, caller.asking(query))))
        try:
            answer = await self._with_retries(lambda left: self._send(b"GET", raw, headers, caller, priority, left))
        except Unspeakable as failed:  # what the caller's own part of it is to blame for
            raise OriginRefused(400, ((b"Content-Type", b"text/plain"),), str(failed).encode()) from failed
        self.standings.answered(caller, answer.status)
        if answer.status >= 400:
            raise await refusal(answer)
        if answer.status >= 300:
            answer.body.close()
            raise OriginBadAnswer(f"the origin answered with a redirect ({answer.status}), which is not followed")
        if answer.status not in statuses:
            answer.body.close()
            raise OriginBadAnswer(f"the origin answered {answer.status} where only {_listed(statuses)} makes sense")
        answer.body, answer.headers = decoded(answer.body, answer.headers)
        return answer

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """See `Origin.forward`."""
        target = request.path + (b"?" + request.query if request.query else b"")
        headers = end_to_end(request.headers, also=MADE_ANEW | ({b"accept-encoding"} if request.decoded else set()))
        if request.decoded:
            headers = (*headers, (b"Accept-Encoding", b"identity"))
        caller = request.caller
        try:
            if request.body is None and request.method in REPEATABLE:
                answer = await self._with_retries(
                    lambda left: self._send(request.method, target, headers, caller, Priority.UNKNOWN, left, lend=True)
                )
            else:
                answer = await self._send(
                    request.method, target, headers, caller, Priority.UNKNOWN, None, request.body, request.length, True
                )  # fmt: skip
        except BaseException as failed:
            if request.body is not None:
                request.body.close()
            if isinstance(failed, Unspeakable):  # the request line is the client's own
                raise OriginRefused(400, ((b"Content-Type", b"text/plain"),), str(failed).encode()) from failed
            raise
        self.standings.passed(caller, request.path, answer.status, answer.headers)
        response = OriginResponse(answer.status, answer.headers, answer.body, answer.length, lambda: answer.framed)
        return _decoded(response, request.method) if request.decoded else response

    async def _with_retries(self, send: Callable[[float], Awaitable[Answer]]) -> Answer:
        return await with_retries(send, self._clock, self._timeout)

    async def _send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        caller: Optional[Caller],
        priority: Priority,
        left: Optional[float],
        body: Optional[ByteStream] = None,
        length: Optional[int] = None,
        lend: bool = False,
    ) -> Answer:
        if priority is Priority.UNKNOWN:
            await self.standings.hold(caller)
            priority = self.standings.priority(caller)
        newcomer = priority is Priority.UNKNOWN and self.standings.is_new(caller)
        slot = await self._limiter.acquire(priority, caller.flow if caller is not None else b"", newcomer)
        lending = self._clock.callLater(LONG_TRANSFER_SECONDS, slot.lend) if lend else None

        def end() -> None:
            if lending is not None and lending.active():
                lending.cancel()
            slot.release()

        try:
            return await self._transport.request(method, target, headers, body, length, left, end)
        except BaseException:
            end()
            raise


def _decoded(response: OriginResponse, method: bytes) -> OriginResponse:
    """A successful *response* without content codings; a refusal, or a part of something, as it came. Raises `OriginBadAnswer`."""
    if response.status >= 300 or response.status == 206 or not codings(response.headers):
        return response
    body, headers = decoded(response.body, response.headers)
    if method == b"HEAD" or response.status == 204:
        body = response.body
    return OriginResponse(response.status, headers, body, framed=response.framed)


def _listed(statuses: Collection[int]) -> str:
    return " or ".join(map(str, statuses))


async def refusal(answer: Answer) -> OriginRefused:
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


async def observed(observer: Observer, clock: IReactorTime, name: str, work: Awaitable[T]) -> T:
    """Await *work* and tell the observer how it ended and how many seconds it took."""
    begin = clock.seconds()
    outcome = "failed"
    try:
        result = await work
        outcome = "ok"
        return result
    except Exception as failed:
        outcome = _outcome(failed)
        raise
    finally:
        observer.origin_operation(name, outcome, clock.seconds() - begin)


_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (AnsweredByCache, "ok"),
    (OriginRefused, "refused"),
    (OriginBusy, "busy"),
    (OriginTimeout, "timeout"),
    (OriginUnreachable, "unreachable"),
    (OriginBadAnswer, "bad_answer"),
    (CancelledError, "cancelled"),
)


def _outcome(failed: Exception) -> str:
    return next((name for kind, name in _OUTCOMES if isinstance(failed, kind)), "failed")


async def side_by_side(work: list[Callable[[], Coroutine[Deferred[Any], Any, None]]], lanes: int) -> None:
    """Run all of *work*, at most *lanes* at once; the first that fails, or a cancellation, cancels the others."""
    waiting = iter(work)

    async def lane() -> None:
        for job in waiting:
            await job()

    running = [Deferred.fromCoroutine(lane()) for _ in range(min(lanes, len(work)))]
    done: Deferred[None] = Deferred()
    left = len(running)

    def ended(_result: None) -> None:
        nonlocal left
        left -= 1
        if not left and not done.called:
            done.callback(None)

    for each in running:
        each.addCallbacks(ended, lambda failure: None if done.called else done.errback(failure))
    try:
        if running:
            await done
    finally:
        for each in running:
            each.cancel()
