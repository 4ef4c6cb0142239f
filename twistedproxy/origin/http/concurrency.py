"""How many requests one origin serves best at once, found by measuring the time from a request to the head of its answer.

Rules that this module keeps:

- Requests are compared in rounds: as many as there are slots, all sent within the round and while at least half of the
  slots were in use. The *latency* of a round is their median: neither a few slow requests nor idle time change it.
- The minimum is what latency is compared with. It falls with any round, by half of the difference, but rises only in a *probe*, a
  round with half of the slots: a minimum measured under full load would make room for more load, again and again. If half of
  the slots are answered in about half the time, the other half of the requests only queued at the origin.
- Near the minimum the size grows if requests waited for a slot; clearly above it, it shrinks. If shrinking does not shorten the
  latency, something else slows the origin down: the size stays until the next probe shows the new minimum.
- 429, 503 and timeouts shrink the size, once for all requests that were running, and end its growth for `HOLD_SECONDS`.
- Each process measures by itself; the latency shows the load of the others. All busy processes of a host probe at the same
  moments of their common clock: otherwise each would measure the load of the others only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Optional

import attrs
from twisted.internet.interfaces import IReactorTime

START = 20
"""Slots before the first measurement: what three browsers request at once."""

FLOOR = 4
"""Slots that are always left. An upper bound of so many or fewer is the size: nothing is measured then."""

ROUND = 16
"""Requests of a round, at least, however few slots there are: the smallest of many medians of 8 was a third of the usual one."""

NEAR = 1.25
"""Times the minimum up to which latency is near it, and the size grows: by its square root, with which sizes of processes that
share an origin come closer to each other."""

CROWDED = 1.75
"""Times the minimum above which the size shrinks. Below 2, so that a probe finds an origin that is full with half of it."""

SLACK = 0.002
"""Seconds that are added to both: a busy turn of the reactor."""

PERIOD = 10.0
"""Seconds between probes while requests wait for slots. A probe takes about two latencies."""

GAP = 2.0
"""Seconds without a waiting request after which no probe is due: the first requests after a pause get all slots."""

PROBE_SHARE = 4
"""Latencies that pass between probes, at least: with a slow origin they are rarer."""

PROBE_SECONDS, PROBE_LATENCIES = 2.0, 16.0
"""How long a probe lasts at most: so many seconds, or times the minimum, whichever is more."""

ALONE = 20
"""Good answers since the last refusal after which one does not count: it may be of the one thing that was asked for, again and
again."""

REFUSED = 0.75
"""What a refusal leaves of the size."""

HOLD_SECONDS = 10.0
"""How long the size does not grow after a refusal."""


@attrs.define(eq=False)
class Sample:
    """One request that is measured, from when it got its slot."""

    _concurrency: Concurrency
    _round: int
    _sent: float = 0.0
    _counts: bool = False

    def sent(self) -> None:
        """The request is sent now, on a connection: the time to connect is not part of its latency."""
        self._sent, self._counts = self._concurrency.sending()

    def answered(self) -> None:
        """The head of a successful answer came."""
        self._concurrency.successes += 1
        if self._counts:
            self._concurrency.measured(self._round, self._sent)

    def refused(self) -> None:
        """The answer is 429 or 503, or there was none in time."""
        self._concurrency.refused(self._round)


class Concurrency:
    """The number of slots of one origin, at most *most*.

    *load*: returns how many requests run and how many wait. *grown*: called when there are more slots than before.
    """

    def __init__(
        self, clock: IReactorTime, most: int, load: Callable[[], tuple[int, int]], grown: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._most = most
        self._load = load
        self._grown = grown
        self._size = min(START, most)
        self._minimum: Optional[float] = None
        self._probing = False
        self._probed = self._last_full = self._held_until = -math.inf
        self._shrunk_at = math.inf  # the latency for which the size was shrunk last
        self._round = self._round_after_refusal = 0
        self._probe_until = 0.0
        self.successes = 0
        """Since the last refusal."""
        self._begin()

    @property
    def size(self) -> int:
        """How many requests may run at once now."""
        probing = self._probing and self._clock.seconds() < self._probe_until
        return max(1, self._size // 2) if probing else self._size

    def status(self) -> dict[str, object]:
        """The size, and the minimum latency in seconds (None: not measured yet)."""
        return {"slots": self._size, "minimum_latency_seconds": self._minimum}

    def sample(self) -> Sample:
        """A request that is to be measured has got a slot."""
        return Sample(self, self._round)

    def sending(self) -> tuple[float, bool]:
        """When a request is sent that is sent now, in seconds, and whether its latency counts."""
        now = self._clock.seconds()
        running, waiting = self._load()
        if running >= self.size and waiting:
            due = now // PERIOD > self._last_full // PERIOD and now - self._last_full < GAP
            self._last_full, self._full = now, True
            if due and self._minimum is not None and now - self._probed > PROBE_SHARE * self._minimum:
                self._probe()
        return now, 2 * running >= self.size

    def measured(self, number: int, sent: float) -> None:
        """A request of round *number*, *sent* at that time in seconds, was answered now."""
        if number != self._round or self._most <= FLOOR:
            return
        now, before = self._clock.seconds(), self.size
        self._latencies.append(now - sent)
        if len(self._latencies) >= max(ROUND, self.size):
            self._judge(median(self._latencies), now)
            self._begin()
            if self.size > before:
                self._grown()

    def refused(self, number: int) -> None:
        """A request of round *number* was refused now."""
        alone, self.successes = self.successes >= ALONE, 0
        if alone:
            return
        if number >= self._round_after_refusal:
            self._held_until = self._clock.seconds() + HOLD_SECONDS
            self._resize(REFUSED * self._size)
            self._begin()
            self._round_after_refusal = self._round

    def _begin(self) -> None:
        """Begin a round."""
        self._round += 1
        self._latencies: list[float] = []
        self._full = False

    def _probe(self) -> None:
        """Begin a round with half of the slots. It ends soon, also where nothing is measured meanwhile."""
        self._probing = True
        self._probe_until = self._clock.seconds() + max(PROBE_SECONDS, PROBE_LATENCIES * (self._minimum or 0.0))
        self._begin()

    def _judge(self, latency: float, now: float) -> None:
        """Draw the conclusions from a round that ended *now*, both in seconds."""
        if self._probing:
            self._probing, self._probed = False, now
            self._minimum, self._shrunk_at = latency, math.inf
        elif self._minimum is None:
            self._probe()
        elif latency > CROWDED * self._minimum + SLACK:
            if latency < self._shrunk_at / NEAR:
                served = self._size * self._minimum / latency  # the other requests queued at the origin (Little's law)
                self._resize(max(NEAR * served, self._size / 2))
                self._shrunk_at = latency
        else:
            self._minimum = min(self._minimum, (self._minimum + latency) / 2)
            self._shrunk_at = math.inf
            if self._full and latency <= NEAR * self._minimum + SLACK and now >= self._held_until:
                self._resize(self._size + math.isqrt(self._size))

    def _resize(self, size: float) -> None:
        self._size = max(min(FLOOR, self._most), min(int(size), self._most))


class NoSample:
    """A request that is not measured."""

    def sent(self) -> None:
        """See `Sample.sent`."""

    def answered(self) -> None:
        """See `Sample.answered`."""

    def refused(self) -> None:
        """See `Sample.refused`."""
