"""Asks a proxy: searches for instances, and loads of them. Every wait has a deadline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionLost, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from twistedproxy.dicom.lenient_json import read_json
from twistedproxy.warm.targets import Found, Target

ANSWER_SECONDS = 150.0
"""To the head of an answer: a store may take two minutes for the metadata of a slide."""

SILENCE_SECONDS = 60.0
"""Between two pieces of an answer; the proxy tells of a job four times a second."""

MAX_ANSWER = 16 << 20
"""Bytes of an answer that is kept: a page of a search is far below."""

MAX_LINE = 64 * 1024
MAX_INSTANCES = 100_000
"""Instances of one study or series. More: the store most likely ignores the offset of a search."""

Job = dict[str, Any]


class Trouble(Exception):
    """Something did not work; its text says what."""


@attrs.define(eq=False)
class Refused(Trouble):
    """The proxy answered with an error. *reason*: of a load that it doesn't start; *retry_after*: seconds."""

    status: int
    detail: str
    reason: str = ""
    retry_after: Optional[float] = None

    def __str__(self) -> str:
        return f"{self.status} {self.detail}"


@attrs.frozen
class Warmer:
    """A client of proxies. *headers* go along with each request."""

    agent: IAgent
    clock: IReactorTime
    headers: Sequence[tuple[str, str]] = attrs.field(default=(), repr=False)

    async def instances(self, target: Target) -> list[Found]:
        """The instances of *target*: itself, or what searches find below it. Raises `Trouble`."""
        if target.sop is not None:
            return [Found(target.url, target.sop)]
        found: dict[str, Found] = {}
        asked = 0
        while len(found) < MAX_INSTANCES:
            page = await self._page(target, asked)
            new = {one.url: one for one in page if one.url not in found}
            if not new:
                return list(found.values())
            found.update(new)
            asked += len(page)
        raise Trouble(f"more than {MAX_INSTANCES} instances below {target.url}")

    async def _page(self, target: Target, offset: int) -> list[Found]:
        response = await self._request(b"GET", target.search(offset), "application/dicom+json")
        if response.code == 204:
            return []
        kept = bytearray()
        await self._read(response, kept.extend)
        if response.code != 200:
            raise _refused(response, bytes(kept))
        try:
            return list(target.found(read_json(bytes(kept))))
        except ValueError as error:
            raise Trouble(f"no answer to a search: {error}") from None

    async def load(self, instance: Found, again: bool, progress: Callable[[Job], None]) -> Job:
        """Have *instance* loaded; return its job as it ended. Raises `Trouble`, `Refused` where it is not started."""
        query = "?follow=1&again=1" if again else "?follow=1"
        response = await self._request(b"POST", f"{instance.url}/prefetch{query}", "application/x-ndjson, */*;q=0.1")
        if response.code != 202:
            kept = bytearray()
            await self._read(response, kept.extend)
            raise _refused(response, bytes(kept))
        lines = _Lines(progress)
        await self._read(response, lines.received)
        if lines.last is None or lines.last.get("result") is None:
            raise Trouble("the proxy's answer ended before the load did")
        return lines.last

    async def _request(self, method: bytes, url: str, accept: str) -> IResponse:
        headers = Headers({"Accept": [accept], "User-Agent": ["twistedproxy-warm"]})
        for name, value in self.headers:
            headers.addRawHeader(name, value)
        asking: Deferred[IResponse] = self.agent.request(method, url.encode("ascii"), headers, None)
        try:
            return await asking.addTimeout(ANSWER_SECONDS, self.clock)
        except Exception as error:
            raise Trouble(_told(error)) from error

    async def _read(self, response: IResponse, received: Callable[[bytes], None]) -> None:
        """Give all of the body to *received*. Raises `Trouble`."""
        body = _Body(self.clock, received)
        response.deliverBody(body)
        try:
            await body.ended
        except (Trouble, CancelledError):
            raise
        except Exception as error:
            raise Trouble(_told(error)) from error


class _Lines:
    """Cuts an answer into lines of JSON."""

    def __init__(self, progress: Callable[[Job], None]) -> None:
        self.last: Optional[Job] = None
        self._progress = progress
        self._rest = b""

    def received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise Trouble("the proxy's answer holds no lines")
        for line in lines:
            try:
                self.last = json.loads(line)
            except ValueError:
                raise Trouble("the proxy's answer is not what it should be; is it a twistedproxy?") from None
            self._progress(self.last or {})


class _Body(Protocol):
    """The body of a response. *ended* fires at its end, and fails where it broke off or nothing came for long."""

    transport: Any

    def __init__(self, clock: IReactorTime, received: Callable[[bytes], None]) -> None:
        self.ended: Deferred[None] = Deferred(lambda _: self._cut())
        self._received = received
        self._size = 0
        self._silence = clock.callLater(SILENCE_SECONDS, self._end, Failure(defer.TimeoutError()))

    def dataReceived(self, data: bytes) -> None:
        self._silence.reset(SILENCE_SECONDS)
        self._size += len(data)
        try:
            if self._size > MAX_ANSWER:
                raise Trouble(f"an answer of more than {MAX_ANSWER} bytes")
            self._received(data)
        except Trouble:
            self._end(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(None if reason.check(ResponseDone, PotentialDataLoss) else reason)

    def _end(self, reason: Optional[Failure]) -> None:
        if self._silence.active():
            self._silence.cancel()
        if self.ended.called:
            return
        if reason is None:
            self.ended.callback(None)
        else:
            self.ended.errback(reason)
            self._cut()

    def _cut(self) -> None:
        if self._silence.active():
            self._silence.cancel()
        self.transport.loseConnection()


def _refused(response: IResponse, body: bytes) -> Refused:
    """What an error's answer says: of the proxy itself (RFC 9457), or of the store behind it."""
    detail, reason = response.phrase.decode("latin-1"), ""
    try:
        problem = json.loads(body)
        detail, reason = str(problem.get("detail") or detail), str(problem.get("reason") or "")
    except (ValueError, AttributeError):
        pass
    waits = response.headers.getRawHeaders("Retry-After", [""])
    text = waits[0]
    return Refused(response.code, detail, reason, float(text) if text.isascii() and text.isdigit() else None)


def _told(error: Exception) -> str:
    """*error* for people."""
    if isinstance(error, ResponseFailed) and error.reasons:
        error = error.reasons[0].value
    match error:
        case defer.TimeoutError() | CancelledError() | ConnectingCancelledError():
            return "no answer in time"
        case DNSLookupError():
            return "there is no such host"
        case ConnectionLost():
            return "the connection was lost"
        case ConnectError():
            return f"no connection: {error}"
    return str(error) or type(error).__name__
