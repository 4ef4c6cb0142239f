"""What one origin's answers have shown of callers. It decides the order in which their requests wait, and never a right.

- A caller to whom the origin gave metadata, frames or an instance is known from then on. A search shows nothing: stores
  answer those of unknown callers, too, with nothing in them.
- 401 ends that: the credential has expired. So do many refusals in a row.
- Only the requests of a caller who was only refused are held to `PACE`, after the first few.
- All of this is bounded: invented credentials push out other refused ones, not the known ones.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Optional, TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.origin.errors import NOT_ALLOWED, OriginBusy
from twistedproxy.origin.interface import Caller, Headers, Priority, first

KNOWN_SECONDS = 3600.0
"""How long a caller stays known after the last answer that showed it: about one sitting."""

PACE = 0.5
"""Seconds between two requests of a refused caller, each of which the origin must judge."""

FREE_REFUSALS = 4
"""Requests of a refused caller that are not held back: a user may mistype a password, a browser ask without one first."""

LONGEST_HOLD = 10.0
"""Seconds for which a refused caller's request is held at most. One that would have to wait longer gets a 503 then, not at
once: clients that ask again and again would be kept from nothing."""

FORGIVEN_SECONDS = 60.0
"""How long a refusal counts."""

MANY_REFUSALS = 20
"""Refusals in a row after which a known caller is known no longer. Some lists hold instances that are not for everybody."""

MAX_CALLERS = 20_000
"""Known callers, and refused ones, that are remembered: some 200 bytes each."""

T = TypeVar("T")

_PROVING = (b"application/dicom", b"multipart/related", b"image/", b"application/octet-stream")


@attrs.define(eq=False)
class _Known:
    until: float
    refusals: int = 0


@attrs.define(eq=False)
class _Refused:
    last: float
    due: float
    """When a request that comes now would go at the pace, the free ones not counted."""


class Standings:
    """What is known of the callers of one origin, of *most* known and as many refused ones."""

    def __init__(self, clock: IReactorTime, most: int = MAX_CALLERS) -> None:
        self._clock = clock
        self._most = most
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, _Refused] = OrderedDict()

    def priority(self, caller: Optional[Caller]) -> Priority:
        """`Priority.CALLER` for a known caller, else `Priority.UNKNOWN`."""
        known = self._known.get(caller.flow) if caller is not None else None
        return Priority.CALLER if known is not None and known.until > self._clock.seconds() else Priority.UNKNOWN

    def is_new(self, caller: Optional[Caller]) -> bool:
        """Whether the origin has not refused *caller* lately."""
        refused = self._refused.get(caller.flow) if caller is not None else None
        return refused is None or refused.last + FORGIVEN_SECONDS <= self._clock.seconds()

    def proven(self, caller: Optional[Caller]) -> None:
        """The origin has let *caller* read something."""
        if caller is not None:
            self._refused.pop(caller.flow, None)
            self._put(self._known, caller.flow, _Known(self._clock.seconds() + KNOWN_SECONDS))

    def passed(self, caller: Optional[Caller], path: bytes, status: int, headers: Headers) -> None:
        """An answer to a passed-on request of *caller* came."""
        content_type = (first(headers, b"content-type") or b"").lower()
        if status in (200, 206) and b"/instances/" in path and content_type.startswith(_PROVING):
            self.proven(caller)
        else:
            self.answered(caller, status)

    def answered(self, caller: Optional[Caller], status: int) -> None:
        """An answer with *status* to *caller* came, which may be a refusal."""
        if caller is None or status not in NOT_ALLOWED:
            return
        known = self._known.get(caller.flow)
        if known is not None:
            known.refusals += 1
            if status == 403 and known.refusals < MANY_REFUSALS:
                return
            del self._known[caller.flow]
        now = self._clock.seconds()
        refused = self._refused.get(caller.flow) or _Refused(now, now)
        refused.last = now
        self._put(self._refused, caller.flow, refused)

    async def hold(self, caller: Optional[Caller]) -> None:
        """Wait until the next request of *caller* may be sent. Raises `OriginBusy` where that is too long."""
        if caller is None or self.is_new(caller):
            return
        refused, now = self._refused[caller.flow], self._clock.seconds()
        due = max(refused.due, now)
        wait = due - now - FREE_REFUSALS * PACE
        if wait > LONGEST_HOLD:
            await deferLater(self._clock, LONGEST_HOLD)  # type: ignore[arg-type]
            raise OriginBusy("the origin refuses these credentials, and too many requests with them are waiting")
        refused.due = due + PACE
        if wait > 0:
            await deferLater(self._clock, wait)  # type: ignore[arg-type]

    def _put(self, table: OrderedDict[bytes, T], flow: bytes, entry: T) -> None:
        table[flow] = entry
        table.move_to_end(flow)
        if len(table) > self._most:
            table.popitem(last=False)
