"""How many requests run at one origin at once, and in which order.

Rules that this module keeps:

- Callers who may read something here go before callers of whom that is not known (yet), these before display loads, and
  display loads before block loads. See `twistedproxy.origin.http.standing`.
- Callers of one kind share fairly: the next request is that of another caller, however many each has waiting. Among
  unknown callers the newest goes first: a crowd of them, each request under another name, keeps no newcomer waiting.
- Unknown callers have half of the slots at most, and one turn in `UNKNOWN_TURN` while others wait: neither kind starves the other.
- Prefetch and unknown callers together never take the last slots: a rightful caller's request must not wait for a
  prefetch.
- Whole-instance loads have a slot of their own, so that a thousand small requests never starve the load that
  makes them needless, and it never takes one of theirs.
- A wait may be cancelled, ends at a deadline, and stands in a queue with a bound.
- A slot is held from before the request is sent until its answer's body was read or closed. A request that holds a slot
  never waits for another one: that is what keeps the limiter free of deadlocks.
- The exception: a passed-through transfer that lasts longer than `LONG_TRANSFER_SECONDS` moves at the pace of
  its client, not of the origin. It lends its slot out (`Slot.lend`); at most as many do so at once as there are slots.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Optional

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twistedproxy.origin.errors import OriginBusy
from twistedproxy.origin.interface import Priority

MAX_WAITING = 10_000  # requests in the queue of one origin; each is some kB. Beyond it the answer is a 503
LONG_TRANSFER_SECONDS = 10.0
WHOLE_SLOTS = 1
UNKNOWN_TURN = 4


class Slot:
    """The right to have one request running at the origin."""

    def __init__(self, limiter: Limiter, priority: Priority) -> None:
        self._limiter: Optional[Limiter] = limiter
        self._priority = priority
        self._lent = False

    def release(self) -> None:
        """Give the slot back. Harmless when repeated."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.give_back(self._priority, self._lent)

    def lend(self) -> bool:
        """Let another request use the slot while this one goes on; whether that was possible."""
        if self._limiter is not None and not self._lent:
            self._lent = self._limiter.lend(self._priority)
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

    *concurrency*: requests at once, at least 1, besides whole-instance loads. *wait_timeout*: seconds in the queue.
    """

    def __init__(
        self, clock: IReactorTime, concurrency: int, wait_timeout: float, max_waiting: int = MAX_WAITING
    ) -> None:
        self._clock = clock
        self._wait_timeout = wait_timeout
        self._max_waiting = max_waiting
        self._size = concurrency
        self._background = concurrency - max(1, concurrency // 4) if concurrency > 1 else 1
        self._unknown = max(1, concurrency // 2)
        self._queues = {priority: _Queue() for priority in Priority}
        self._running: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._turns = 0
        self._dispatching = False
        self._lent = 0

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
            waiter.addTimeout(self._wait_timeout, self._clock, onTimeoutCancel=_waited_too_long)
        return waiter

    def give_back(self, priority: Priority, lent: bool) -> None:
        """A request with a slot of *priority* has ended."""
        if lent:
            self._lent -= 1
        else:
            self._running[priority] -= 1
        self._dispatch()

    def lend(self, priority: Priority) -> bool:
        """Let another request use a slot of *priority*; whether that was possible."""
        if priority is Priority.WHOLE or self._lent >= self._size:
            return False
        self._lent += 1
        self._running[priority] -= 1
        self._dispatch()
        return True

    def close(self) -> None:
        """Fail everything that waits."""
        for queue in self._queues.values():
            while queue:
                queue.take(last=True).errback(OriginBusy("the proxy is stopping"))

    def status(self) -> dict[str, object]:
        """Running and waiting requests, for ``/status.json``."""
        waiting = {priority: len(queue) for priority, queue in self._queues.items()}
        return {
            "running": self._shared(self._running),
            "waiting": self._shared(waiting),
            "waiting_unknown": waiting[Priority.UNKNOWN],
            "long_transfers": self._lent,
            "whole_running": self._running[Priority.WHOLE],
            "whole_waiting": waiting[Priority.WHOLE],
        }

    def _shared(self, counts: dict[Priority, int]) -> int:
        return sum(counts.values()) - counts[Priority.WHOLE]

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
        if self._shared(running) >= self._size:
            return None
        unknown = running[Priority.UNKNOWN]
        room = unknown + running[Priority.DISPLAY] + running[Priority.BLOCK] < self._background
        may_unknown = bool(queues[Priority.UNKNOWN]) and room and unknown < self._unknown
        if queues[Priority.CALLER] and not (may_unknown and self._turns >= UNKNOWN_TURN - 1):
            self._turns += may_unknown
            return Priority.CALLER
        if may_unknown:
            self._turns = 0
            return Priority.UNKNOWN
        return next((one for one in (Priority.DISPLAY, Priority.BLOCK) if queues[one] and room), None)


def _waited_too_long(_result: object, seconds: float) -> Failure:
    return Failure(OriginBusy(f"no request could be sent to this origin within {seconds:g} s"))
