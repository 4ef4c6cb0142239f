"""How many requests run at one origin at once, and who goes first.

Rules that this module keeps:

- Callers who may read something here go before callers of whom that is not known (yet), these before display loads, and
  display loads before block loads. See `twistedproxy.origin.http.standing`.
- Callers of one kind share fairly: the next request is that of another caller, however many each has waiting. Among
  unknown callers the newest goes first: a crowd of strangers, each request under another name, keeps no newcomer waiting.
- Unknown callers have half of the slots at most, and one turn in `UNKNOWN_TURN` while others wait: neither kind starves the other.
- Prefetch and unknown callers together never take the last slots: a rightful caller's request must not wait for a load
  that nobody asked for.
- Whole-instance loads have a slot of their own, so that a thousand small requests never starve the load that
  makes them needless, and it never takes one of theirs.
- Whoever waits may be cancelled, waits at most until a deadline, and stands in a queue with a bound.
- A slot is held from before the request is sent until its answer's body was read or closed. Nobody who holds a slot
  waits for another one: that is what keeps the limiter free of deadlocks.
- The exception: a passed-through transfer that lasts longer than `LONG_TRANSFER_SECONDS` moves at the pace of
  its client, not of the origin. It lends its slot out (`Slot.lend`); at most `long_transfers` do so at once.
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

Waiters = OrderedDict["Deferred[Slot]", None]


class Slot:
    """The right to have one request running at the origin."""

    def __init__(self, lane: _Lane, priority: Priority) -> None:
        self._lane: Optional[_Lane] = lane
        self._lent = False
        self._priority = priority

    def release(self) -> None:
        """Give the slot back. Harmless when repeated."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.give_back(self._priority, self._lent)

    def lend(self) -> bool:
        """Let somebody else use the slot while this request goes on; whether that was possible."""
        if self._lane is not None and not self._lent:
            self._lent = self._lane.lend(self._priority)
        return self._lent


class _Queue:
    """Requests of one priority that wait, by flow: one caller's requests. Flows have turns; within one, first come, first
    served."""

    def __init__(self) -> None:
        self._flows: OrderedDict[bytes, Waiters] = OrderedDict()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, flow: bytes, first: bool) -> Deferred[Slot]:
        """A new waiter. *first*: whether a flow that had none waiting goes before the others."""
        waiter: Deferred[Slot] = Deferred(lambda gone: self._remove(flow, gone))
        if flow not in self._flows:
            self._flows[flow] = OrderedDict()
            self._flows.move_to_end(flow, last=not first)
        self._flows[flow][waiter] = None
        self._waiting += 1
        return waiter

    def next(self) -> Deferred[Slot]:
        """Take out the next waiter."""
        flow = next(iter(self._flows))
        waiter = next(iter(self._flows[flow]))
        self._flows.move_to_end(flow)
        self._remove(flow, waiter)
        return waiter

    def last(self) -> Deferred[Slot]:
        """Take out the waiter whose turn is farthest away."""
        flow = next(reversed(self._flows))
        waiter = next(reversed(self._flows[flow]))
        self._remove(flow, waiter)
        return waiter

    def _remove(self, flow: bytes, waiter: Deferred[Slot]) -> None:
        waiters = self._flows.get(flow)
        if waiters is None or waiter not in waiters:
            return
        del waiters[waiter]
        self._waiting -= 1
        if not waiters:
            del self._flows[flow]


class _Lane:
    """Slots that are handed out by priority."""

    def __init__(self, size: int, background: int, unknown: int, long_transfers: int) -> None:
        self._size = size
        self._background = background
        self._unknown = unknown
        self._long_transfers = long_transfers
        self._queues = {priority: _Queue() for priority in Priority}
        self._running: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._turns = 0
        self._dispatching = False
        self.lent = 0

    @property
    def running(self) -> int:
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def waiting_of(self, priority: Priority) -> int:
        return len(self._queues[priority])

    def wait(self, priority: Priority, flow: bytes, first: bool) -> Deferred[Slot]:
        waiter = self._queues[priority].add(flow, first)
        self._dispatch()
        return waiter

    def give_back(self, priority: Priority, lent: bool) -> None:
        if lent:
            self.lent -= 1
        else:
            self._running[priority] -= 1
        self._dispatch()

    def lend(self, priority: Priority) -> bool:
        if self.lent >= self._long_transfers:
            return False
        self.lent += 1
        self._running[priority] -= 1
        self._dispatch()
        return True

    def fail_last(self, priority: Priority, error: Exception) -> None:
        self._queues[priority].last().errback(Failure(error))

    def fail_all(self, error: Exception) -> None:
        for priority, queue in self._queues.items():
            while queue:
                self.fail_last(priority, error)

    def _dispatch(self) -> None:
        """Hand out what is free. Not re-entered: requests that fail at once must not recurse as deep as the queue is long."""
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while (priority := self._next()) is not None:
                self._running[priority] += 1
                self._queues[priority].next().callback(Slot(self, priority))
        finally:
            self._dispatching = False

    def _next(self) -> Optional[Priority]:
        if self.running >= self._size:
            return None
        unknown = self._running[Priority.UNKNOWN]
        room = unknown + self._running[Priority.DISPLAY] + self._running[Priority.BLOCK] < self._background
        may_unknown = bool(self._queues[Priority.UNKNOWN]) and room and unknown < self._unknown
        if self._queues[Priority.CALLER] and not (may_unknown and self._turns >= UNKNOWN_TURN - 1):
            self._turns += may_unknown
            return Priority.CALLER
        if may_unknown:
            self._turns = 0
            return Priority.UNKNOWN
        for priority in (Priority.DISPLAY, Priority.BLOCK):
            if self._queues[priority] and room:
                return priority
        return Priority.WHOLE if self._queues[Priority.WHOLE] else None


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
        reserve = max(1, concurrency // 4) if concurrency > 1 else 0
        half = max(1, concurrency // 2)
        self._shared = _Lane(concurrency, background=concurrency - reserve, unknown=half, long_transfers=concurrency)
        self._whole = _Lane(WHOLE_SLOTS, background=0, unknown=0, long_transfers=0)

    def acquire(self, priority: Priority, flow: bytes = b"", first: bool = False) -> Deferred[Slot]:
        """Fires with a slot once there is one. Fails with `OriginBusy` when the queue is full or the wait too long.

        *flow*: whose request it is, for fair shares. *first*: whether it goes before those of other flows.
        """
        lane = self._whole if priority is Priority.WHOLE else self._shared
        full = OriginBusy(f"{self._max_waiting} requests already wait for this origin")
        if priority is Priority.UNKNOWN and lane.waiting_of(priority) >= self._max_waiting // 2:
            lane.fail_last(priority, full)  # the half of the queue that strangers may fill
        if lane.waiting >= self._max_waiting:
            raise full
        waiter = lane.wait(priority, flow, first)
        if not waiter.called:
            waiter.addTimeout(self._wait_timeout, self._clock, onTimeoutCancel=_waited_too_long)
        return waiter

    def close(self) -> None:
        """Fail everybody who waits."""
        for lane in (self._shared, self._whole):
            lane.fail_all(OriginBusy("the proxy is stopping"))

    def status(self) -> dict[str, object]:
        """Running and waiting requests, for ``/status.json``."""
        return {
            "running": self._shared.running,
            "waiting": self._shared.waiting,
            "waiting_unknown": self._shared.waiting_of(Priority.UNKNOWN),
            "long_transfers": self._shared.lent,
            "whole_running": self._whole.running,
            "whole_waiting": self._whole.waiting,
        }


def _waited_too_long(_result: object, seconds: float) -> Failure:
    return Failure(OriginBusy(f"no request could be sent to this origin within {seconds:g} s"))
