"""Retries where the origin is too busy (429, 503).

Rules that this module keeps:

- Only what may be repeated is repeated: GET and HEAD without a body. The caller of `with_retries` sees to that.
- The origin's Retry-After decides (seconds or an HTTP date, RFC 9110 section 10.2.3), else the waits double.
- A wait that would end after the deadline is not begun: the origin's last answer goes back as it came.
- While it waits, a request holds no slot and no connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Optional

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.origin.interface import Headers, OriginResponse, first
from twistedproxy.streams import StreamTooLong, read_all

BUSY = frozenset({429, 503})
FIRST_WAIT = 0.5  # seconds
LONGEST_WAIT = 16.0  # seconds, of the waits that the origin did not ask for
SHORTEST_WAIT = 0.1  # seconds: "Retry-After: 0" must not become a tight loop
DRAIN_LIMIT = 65536  # bytes of an unwanted body that are read to keep its connection; more: the connection is dropped


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


def backoff(attempt: int) -> float:
    """Seconds to wait after *attempt* (from 0) without Retry-After."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 10)))


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
    attempts = 0
    while True:
        response = await attempt(max(SHORTEST_WAIT, end - clock.seconds()))
        if response.status not in BUSY:
            return response
        asked = retry_after(response.headers, now())
        wait = max(SHORTEST_WAIT, backoff(attempts) if asked is None else asked)
        if clock.seconds() + wait >= end:
            return response
        await drain(response)
        await deferLater(clock, wait)
        attempts += 1
