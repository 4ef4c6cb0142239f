"""How many requests run at one origin at once, and who goes first.

Rules that this module keeps:

- Callers go before display loads, display loads before block loads; within one priority, first come, first served.
- Prefetch never takes the last slots: a caller's request must not wait for a load that nobody asked for.
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


class _Lane:
    """Slots that are handed out by priority."""

    def __init__(self, size: int, background: int, long_transfers: int) -> None:
        self._size = size
        self._background = background
        self._long_transfers = long_transfers
        self._queues: dict[Priority, Waiters] = {priority: OrderedDict() for priority in Priority}
        self._running: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._dispatching = False
        self.lent = 0

    @property
    def running(self) -> int:
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def wait(self, priority: Priority) -> Deferred[Slot]:
        queue = self._queues[priority]
        waiter: Deferred[Slot] = Deferred(lambda gone: queue.pop(gone, None))
        queue[waiter] = None
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

    def fail_all(self, error: Exception) -> None:
        for queue in self._queues.values():
            while queue:
                waiter, _ = queue.popitem(last=False)
                waiter.errback(Failure(error))

    def _dispatch(self) -> None:
        """Hand out what is free. Not re-entered: requests that fail at once must not recurse as deep as the queue is long."""
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while (priority := self._next()) is not None:
                waiter, _ = self._queues[priority].popitem(last=False)
                self._running[priority] += 1
                waiter.callback(Slot(self, priority))
        finally:
            self._dispatching = False

    def _next(self) -> Optional[Priority]:
        free = self._size - self.running
        if free <= 0:
            return None
        background = self._running[Priority.DISPLAY] + self._running[Priority.BLOCK]
        for priority, queue in self._queues.items():
            if queue and (priority not in (Priority.DISPLAY, Priority.BLOCK) or background < self._background):
                return priority
        return None


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
        self._shared = _Lane(concurrency, background=concurrency - reserve, long_transfers=concurrency)
        self._whole = _Lane(WHOLE_SLOTS, background=0, long_transfers=0)

    def acquire(self, priority: Priority) -> Deferred[Slot]:
        """Fires with a slot once there is one. Fails with `OriginBusy` when the queue is full or the wait too long."""
        lane = self._whole if priority is Priority.WHOLE else self._shared
        if lane.waiting >= self._max_waiting:
            raise OriginBusy(f"{self._max_waiting} requests already wait for this origin")
        waiter = lane.wait(priority)
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
            "long_transfers": self._shared.lent,
            "whole_running": self._whole.running,
            "whole_waiting": self._whole.waiting,
        }


def _waited_too_long(_result: object, seconds: float) -> Failure:
    return Failure(OriginBusy(f"no request could be sent to this origin within {seconds:g} s"))
