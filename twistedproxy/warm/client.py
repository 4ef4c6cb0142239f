"""The requests to a proxy: searches for series, and loads. Every wait has a deadline.

The body has a protocol of its own: treq's leaves the connection open when a read is cancelled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Optional

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as NoResult
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from twistedproxy.dicom.lenient_json import read_json
from twistedproxy.warm.options import Found, WarmTarget

RESPONSE_SECONDS = 150.0  # to the head: a store may take two minutes for the metadata of a slide
SILENCE_SECONDS = 60.0  # between two pieces of the body; the proxy reports on a load four times a second
MAX_RESPONSE = 16 << 20  # bytes; a page of a search is far below
MAX_LINE = 1 << 20  # bytes of a line about a load, which may have any number of them
MAX_SERIES = 20_000  # of one study; above, the store most likely ignores the offset of a search

Job = dict[str, Any]


@attrs.define(eq=False)
class Trouble(Exception):
    """A request failed. *status*, *reason*, *retry_after* (seconds): of a response, if there was one."""

    detail: str
    status: Optional[int] = None
    reason: str = ""
    retry_after: Optional[float] = None

    def __str__(self) -> str:
        return self.detail if self.status is None else f"{self.status} {self.detail}"


@attrs.frozen
class Warmer:
    """A client of proxies. *headers* are sent with each request."""

    agent: IAgent
    clock: IReactorTime
    headers: Sequence[tuple[str, str]] = attrs.field(default=(), repr=False)

    async def loads(self, target: WarmTarget) -> list[Found]:
        """What is to be loaded of *target*: itself, or the series that searches find below it. Raises `Trouble`."""
        if target.named is not None:
            return [target.named]
        found: dict[str, Found] = {}
        offset = 0
        while len(found) < MAX_SERIES:
            page = await self._page(target, offset)
            new = {one.url: one for one in page if one.url not in found}
            if not new:
                return list(found.values())
            found.update(new)
            offset += len(page)
        raise Trouble(f"more than {MAX_SERIES} series below {target.url}")

    async def _page(self, target: WarmTarget, offset: int) -> list[Found]:
        kept = bytearray()
        await self._request("GET", target.search(offset), "application/dicom+json", (200, 204), kept.extend)
        try:
            return list(target.found(read_json(bytes(kept)))) if kept else []
        except ValueError as error:
            raise Trouble(f"the search failed: {error}") from None

    async def load(self, wanted: Found, again: bool, progress: Callable[[Job], None]) -> Job:
        """Have it loaded; return its job as it ended. Raises `Trouble`."""
        job: Job = {}
        rest = b""

        def received(data: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + data).split(b"\n")
            try:
                if len(rest) > MAX_LINE:
                    raise ValueError
                for line in lines:
                    job.update(json.loads(line))
                    progress(dict(job))
            except (LookupError, TypeError, ValueError):
                raise Trouble("the proxy's response is not as expected; is it a twistedproxy?") from None

        url = f"{wanted.url}/prefetch?follow=1{'&again=1' * again}"
        await self._request("POST", url, "application/x-ndjson, */*;q=0.1", (202,), received, math.inf)
        if job.get("result") is None:
            raise Trouble("the proxy's response ended before the load did")
        return job

    async def _request(
        self,
        method: str,
        url: str,
        accept: str,
        good: Sequence[int],
        received: Callable[[bytes], None],
        most: float = MAX_RESPONSE,
    ) -> None:
        """Send a request; the body of a response with a *good* status, *most* bytes, goes to *received*. Raises `Trouble`."""
        headers = Headers({"Accept": [accept], "User-Agent": ["twistedproxy-warm"]})
        for name, value in self.headers:
            headers.addRawHeader(name, value)
        error = bytearray()
        try:
            # One client per request: it keeps cookies, and with one more cookie this would be another caller.
            sent = HTTPClient(self.agent).request(method, url, headers=headers, allow_redirects=False, unbuffered=True)
            response = await sent.addTimeout(RESPONSE_SECONDS, self.clock)
            well = response.code in good
            body = _Body(self.clock, received if well else error.extend, most if well else MAX_RESPONSE)
            response.deliverBody(body)
            await body.ended
        except Trouble:
            raise
        except Exception as failed:
            raise Trouble(_explained(failed)) from failed
        if response.code not in good:
            raise _refused(response, bytes(error))


class _Body(Protocol):
    """Gives the body of a response to *received*. What ends it early closes the connection: silence, `Trouble`, a cancel."""

    transport: Any

    def __init__(self, clock: IReactorTime, received: Callable[[bytes], None], most: float) -> None:
        self.ended: Deferred[None] = Deferred(lambda _: self.transport.loseConnection())
        self._silence = clock.callLater(SILENCE_SECONDS, self.ended.cancel)
        self._received = received
        self._left = most

    def dataReceived(self, data: bytes) -> None:
        if self.ended.called:
            return
        self._silence.reset(SILENCE_SECONDS)
        self._left -= len(data)
        try:
            if self._left < 0:
                raise Trouble(f"a response of more than {MAX_RESPONSE} bytes")
            self._received(data)
        except Trouble:
            self.ended.errback()
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._silence.active():
            self._silence.cancel()
        if not self.ended.called:
            self.ended.callback(None) if reason.check(ResponseDone, PotentialDataLoss) else self.ended.errback(reason)


def _refused(response: IResponse, body: bytes) -> Trouble:
    """The error that a response reports: the proxy's own (RFC 9457), or that of the store behind it."""
    try:
        problem = dict(json.loads(body))
    except (ValueError, TypeError):
        problem = {}
    detail, wait = response.phrase.decode("latin-1"), response.headers.getRawHeaders("Retry-After", [""])[0]
    seconds = float(wait) if wait.isascii() and wait.isdigit() else None
    return Trouble(str(problem.get("detail") or detail), response.code, str(problem.get("reason") or ""), seconds)


def _explained(error: Exception) -> str:
    if isinstance(error, ResponseFailed) and error.reasons:
        error = error.reasons[0].value
    match error:
        case NoResult() | CancelledError() | ConnectingCancelledError():
            return "no response in time"
        case ConnectionClosed():
            return "the connection was closed too early"
        case ConnectError():
            return f"no connection: {error}"
    return str(error) or type(error).__name__
