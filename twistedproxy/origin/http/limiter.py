"""How many requests run at one origin at once, and in which order (`Limiter`); what its answers have shown of callers
(`Standings`), which decides that order, and never a right.

Rules that this module keeps:

- Callers who may read something here go before callers of whom that is not known (yet), these before display loads, and
  display loads before block loads.
- Callers of one kind share fairly: the next request is that of another caller, however many each has waiting. Among
  unknown callers the newest goes first: a crowd of them, each request under another name, keeps no newcomer waiting.
- How many slots there are, `Concurrency` finds out; the shares below follow.
- Unknown callers have half of the slots at most, and one turn in `UNKNOWN_TURN` while others wait: neither kind starves the other.
- Prefetch and unknown callers together never take the last slots: a rightful caller's request must not wait for a
  prefetch.
- Whole-instance loads have slots of their own, so that a thousand small requests never starve the load that
  makes them needless, and they never take one of those.
- A wait may be cancelled, ends at a deadline, and stands in a queue with a bound.
- A slot is held from before the request is sent until its answer's body was read or closed. A request that holds a slot
  never waits for another one: that is what keeps the limiter free of deadlocks.
- The exception: a passed-through transfer that lasts longer than `LONG_TRANSFER_SECONDS` moves at the pace of
  its client, not of the origin. It lends its slot out (`Slot.lend`); at most as many do so at once as there are slots.
- A caller to whom the origin gave metadata, frames or an instance is known from then on. A search shows nothing: stores
  answer those of unknown callers, too, with nothing in them. 401 ends that: the credential has expired. So do many
  refusals in a row.
- Only the requests of a caller who was only refused are held to `PACE`, after the first few. Invented credentials push out
  other refused ones, not the known ones.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from twistedproxy.origin.errors import NOT_ALLOWED, OriginBusy
from twistedproxy.origin.http.concurrency import Concurrency
from twistedproxy.origin.interface import Caller, Headers, Priority, first

MAX_WAITING = 10_000  # requests in the queue of one origin; each is some kB. Beyond it the answer is a 503
LONG_TRANSFER_SECONDS = 10.0
WHOLE_SLOTS = 2  # a large instance, and a small one that must not wait for it
UNKNOWN_TURN = 4


@attrs.define(eq=False)
class Slot:
    """The right to have one request running at the origin."""

    _limiter: Limiter
    _priority: Priority
    _held: bool = True
    _lent: bool = False

    def release(self) -> None:
        """Give the slot back. Harmless when repeated."""
        held, self._held = self._held, False
        if held:
            self._limiter.give_back(self._priority)
        self._limiter.lent -= self._lent
        self._lent = False

    def lend(self) -> bool:
        """Let another request use the slot while this one goes on; whether that was possible."""
        limiter = self._limiter
        if self._held and self._priority is not Priority.WHOLE and limiter.lent < limiter.size:
            limiter.lent += 1
            self._held, self._lent = False, True
            limiter.give_back(self._priority)
        return self._lent


class _Queue:
    """Requests of one priority that wait, by flow: one caller's requests. Flows have turns; within one, first come, first
    served."""

    def __init__(self) -> None:
        self._flows: OrderedDict[bytes, dict[Deferred[Slot], None]] = OrderedDict()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, flow: bytes, first: bool) -> Deferred[Slot]:
        """A new waiter. *first*: whether a flow that had none waiting goes before the others."""
        waiter: Deferred[Slot] = Deferred(lambda gone: self._remove(flow, gone))
        if flow not in self._flows:
            self._flows[flow] = {}
            self._flows.move_to_end(flow, last=not first)
        self._flows[flow][waiter] = None
        self._waiting += 1
        return waiter

    def take(self, last: bool = False) -> Deferred[Slot]:
        """Take out the next waiter, or the one whose turn is farthest away."""
        order = reversed if last else iter
        flow: bytes = next(order(self._flows))  # type: ignore[operator]
        waiter: Deferred[Slot] = next(order(self._flows[flow]))  # type: ignore[operator]
        self._flows.move_to_end(flow)
        self._remove(flow, waiter)
        return waiter

    def _remove(self, flow: bytes, waiter: Deferred[Slot]) -> None:
        waiters = self._flows.get(flow, {})
        if waiter in waiters:
            del waiters[waiter]
            self._waiting -= 1
            if not waiters:
                del self._flows[flow]


class Limiter:
    """The slots of one origin.

    *most*: requests at once, at least 1, besides whole-instance loads. *wait_timeout*: seconds in the queue.
    """

    def __init__(self, clock: IReactorTime, most: int, wait_timeout: float, max_waiting: int = MAX_WAITING) -> None:
        self._clock = clock
        self._wait_timeout = wait_timeout
        self._max_waiting = max_waiting
        self._queues = {priority: _Queue() for priority in Priority}
        self._running: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._turns = 0
        self._dispatching = False
        self.lent = 0
        self.concurrency = Concurrency(clock, most, self._load, self._dispatch)

    @property
    def size(self) -> int:
        """How many requests may run at once now, besides whole-instance loads."""
        return self.concurrency.size

    def acquire(self, priority: Priority, flow: bytes = b"", first: bool = False) -> Deferred[Slot]:
        """Fires with a slot once there is one. Fails with `OriginBusy` when the queue is full or the wait too long.

        *flow*: the caller, for fair shares. *first*: whether it goes before those of other flows.
        """
        queue = self._queues[priority]
        full = OriginBusy(f"{self._max_waiting} requests are already waiting for this origin")
        if priority is Priority.UNKNOWN and len(queue) >= self._max_waiting // 2:
            queue.take(last=True).errback(full)  # the half of the queue that unknown callers may fill
        if sum(map(len, self._queues.values())) >= self._max_waiting:
            raise full
        waiter = queue.add(flow, first)
        self._dispatch()
        if not waiter.called:
            waiter.addTimeout(
                self._wait_timeout,
                self._clock,
                lambda _, seconds: Failure(OriginBusy(f"no request could be sent to this origin within {seconds:g} s")),
            )
        return waiter

    def give_back(self, priority: Priority) -> None:
        """A slot of *priority* is free again."""
        self._running[priority] -= 1
        self._dispatch()

    def close(self) -> None:
        """Fail everything that waits."""
        for queue in self._queues.values():
            while queue:
                queue.take(last=True).errback(OriginBusy("the proxy is stopping"))

    def status(self) -> dict[str, object]:
        """Running and waiting requests, and the slots, for ``/status.json``."""
        running, waiting = self._load()
        return {
            "running": running,
            "waiting": waiting,
            "waiting_unknown": len(self._queues[Priority.UNKNOWN]),
            "long_transfers": self.lent,
            "whole_running": self._running[Priority.WHOLE],
            "whole_waiting": len(self._queues[Priority.WHOLE]),
            **self.concurrency.status(),
        }

    def _load(self) -> tuple[int, int]:
        """How many requests run, and how many wait, whole-instance loads apart."""
        running, waiting = sum(self._running.values()), sum(map(len, self._queues.values()))
        return running - self._running[Priority.WHOLE], waiting - len(self._queues[Priority.WHOLE])

    def _dispatch(self) -> None:
        """Hand out what is free. Not re-entered: requests that fail at once must not recurse as deep as the queue is long."""
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while (priority := self._next()) is not None:
                self._running[priority] += 1
                self._queues[priority].take().callback(Slot(self, priority))
        finally:
            self._dispatching = False

    def _next(self) -> Optional[Priority]:
        """The priority that gets the next slot; None where there is no slot for anything that waits."""
        queues, running = self._queues, self._running
        if queues[Priority.WHOLE] and running[Priority.WHOLE] < WHOLE_SLOTS:
            return Priority.WHOLE
        size = self.size
        if self._load()[0] >= size:
            return None
        unknown = running[Priority.UNKNOWN]
        background = unknown + running[Priority.DISPLAY] + running[Priority.BLOCK]
        room = background < max(1, size - max(1, size // 4))
        may_unknown = bool(queues[Priority.UNKNOWN]) and room and unknown < max(1, size // 2)
        if queues[Priority.CALLER] and not (may_unknown and self._turns >= UNKNOWN_TURN - 1):
            self._turns += may_unknown
            return Priority.CALLER
        if may_unknown:
            self._turns = 0
            return Priority.UNKNOWN
        return next((one for one in (Priority.DISPLAY, Priority.BLOCK) if queues[one] and room), None)


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

_PROVING = (b"application/dicom", b"multipart/related", b"image/", b"application/octet-stream")


@attrs.define(eq=False)
class _Standing:
    """*until*: when it is forgotten. *refusals*: of a known caller, in a row. *due*: when a request of a refused one that comes
    now would go at the pace, the free ones not counted."""

    until: float = 0.0
    refusals: int = 0
    due: float = 0.0


class Standings:
    """What is known of the callers of one origin, of *most* known and as many refused ones."""

    def __init__(self, clock: IReactorTime, most: int = MAX_CALLERS) -> None:
        self._clock = clock
        self._most = most
        self._known: OrderedDict[bytes, _Standing] = OrderedDict()
        self._refused: OrderedDict[bytes, _Standing] = OrderedDict()

    def priority(self, caller: Caller) -> Priority:
        """`Priority.CALLER` for a known caller, else `Priority.UNKNOWN`."""
        known = self._known.get(caller.flow)
        return Priority.CALLER if known is not None and known.until > self._clock.seconds() else Priority.UNKNOWN

    def is_new(self, caller: Caller) -> bool:
        """Whether the origin has not refused *caller* lately."""
        refused = self._refused.get(caller.flow)
        return refused is None or refused.until <= self._clock.seconds()

    def proven(self, caller: Caller) -> None:
        """The origin has let *caller* read something."""
        self._refused.pop(caller.flow, None)
        self._put(self._known, caller.flow, _Standing(), KNOWN_SECONDS)

    def passed(self, caller: Caller, path: bytes, status: int, headers: Headers) -> None:
        """An answer to a passed-on request of *caller* came."""
        content_type = (first(headers, b"content-type") or b"").lower()
        if status in (200, 206) and b"/instances/" in path and content_type.startswith(_PROVING):
            self.proven(caller)
        else:
            self.answered(caller, status)

    def answered(self, caller: Caller, status: int) -> None:
        """An answer with *status* to *caller* came, which may be a refusal."""
        if status not in NOT_ALLOWED:
            return
        known = self._known.get(caller.flow)
        if known is not None:
            known.refusals += 1
            if status == 403 and known.refusals < MANY_REFUSALS:
                return
            del self._known[caller.flow]
        self._put(self._refused, caller.flow, self._refused.get(caller.flow) or _Standing(), FORGIVEN_SECONDS)

    async def hold(self, caller: Caller) -> None:
        """Wait until the next request of *caller* may be sent. Raises `OriginBusy` where that is too long."""
        if self.is_new(caller):
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

    def _put(self, table: OrderedDict[bytes, _Standing], flow: bytes, entry: _Standing, seconds: float) -> None:
        entry.until = self._clock.seconds() + seconds
        table[flow] = entry
        table.move_to_end(flow)
        if len(table) > self._most:
            table.popitem(last=False)
