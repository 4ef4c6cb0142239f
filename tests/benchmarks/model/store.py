"""The model's clock, and its store: a latency before each answer, and one bandwidth for all of them. Deterministic."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import attrs

Call = Callable[[], None]


@attrs.define(eq=False)
class Events:
    """A clock that goes from one event to the next; of those at one moment, the one that was planned first comes first."""

    _now: float = 0.0
    _planned: list[tuple[float, int, Call]] = attrs.Factory(list)
    _count: int = 0

    def now(self) -> float:
        """Seconds."""
        return self._now

    def later(self, seconds: float, call: Call) -> None:
        self._count += 1
        heapq.heappush(self._planned, (self._now + seconds, self._count, call))

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """All events, or those before *until* is true."""
        while self._planned and not until():
            self._now, _, call = heapq.heappop(self._planned)
            call()


@attrs.define(eq=False)
class SharedLine:
    """A line of *bytes_per_second* that all transfers share by their weights.

    Kept in virtual time, in which each transfer of weight 1 gets a byte a second: a transfer's end does not move there when
    others come and go, so a heap is enough.
    """

    events: Events
    bytes_per_second: float
    _virtual: float = 0.0
    _looked: float = 0.0
    _weights: float = 0.0
    _ends: list[tuple[float, int, float, Call]] = attrs.Factory(list)
    _count: int = 0
    _plan: int = 0

    def send(self, size: float, weight: float, done: Call) -> None:
        """Call *done* when *size* bytes have passed."""
        self._advance()
        self._count += 1
        self._weights += weight
        heapq.heappush(self._ends, (self._virtual + size / weight, self._count, weight, done))
        self._replan()

    def _advance(self) -> None:
        now = self.events.now()
        if self._weights:
            self._virtual += (now - self._looked) * self.bytes_per_second / self._weights
        self._looked = now

    def _replan(self) -> None:
        self._plan += 1
        if self._ends:
            seconds = (self._ends[0][0] - self._virtual) * self._weights / self.bytes_per_second
            plan = self._plan
            self.events.later(max(0.0, seconds), lambda: self._ended(plan))

    def _ended(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._advance()
        self._virtual = max(self._virtual, self._ends[0][0])
        _, _, weight, done = heapq.heappop(self._ends)
        self._weights = self._weights - weight if self._ends else 0.0
        self._replan()
        done()


@attrs.define(eq=False)
class Store:
    """Answers after *latency* seconds, over *line*. Counts requests, and bytes when they have passed."""

    events: Events
    line: SharedLine
    latency: float
    requests: int = 0
    sent: float = 0.0

    def request(self, size: float, done: Call, weight: float = 1.0) -> None:
        """One answer of *size* bytes."""
        self.stream((size,), lambda _: done(), weight)

    def stream(self, sizes: Sequence[float], came: Callable[[int], None], weight: float = 1.0) -> None:
        """One answer in pieces; *came* is called with the number of each, from 0."""
        self.requests += 1

        def send(number: int) -> None:
            self.line.send(sizes[number], weight, lambda: passed(number))

        def passed(number: int) -> None:
            self.sent += sizes[number]
            if number + 1 < len(sizes):
                send(number + 1)
            came(number)

        self.events.later(self.latency, lambda: send(0))
