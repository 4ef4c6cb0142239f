"""How much clients ask of this worker now: loads pause while they ask for much.

What is counted are answers from the cache: clients expect them at once, and there are many of them. That loads run at low
priority (`twistedproxy.system.tuning`) does not keep clients from waiting where there are few CPUs: the work that loads
cause in the store, the cache server and the kernel has no low priority.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

TICK_SECONDS = 0.1
"""How often answers are counted; the rate is about that of the last three of these."""

SOME_A_SECOND = 20.0
"""A viewer that pans asks for some fifty."""

MUCH_A_SECOND = 1000.0
"""A fifth of what a worker answers from a cache server, on one CPU."""


class DemandLevel(IntEnum):
    """How much clients ask for."""

    LITTLE = 0
    SOME = 1
    MUCH = 2


@attrs.define(eq=False)
class Demand:
    """The rate of *answered*, which returns how many answers there were so far. *cpus*: this worker's own share.

    *changed*: what is called whenever `level` is another.
    """

    clock: IReactorTime
    answered: Callable[[], float]
    cpus: float
    changed: list[Callable[[], None]] = attrs.field(factory=list)
    per_second: float = 0.0
    """Answers from the cache, lately."""
    level: DemandLevel = DemandLevel.LITTLE
    _seen: float = attrs.field(init=False, default=0.0)
    _looking: LoopingCall = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._looking = LoopingCall.withCount(self._look)
        self._looking.clock = self.clock

    def start(self) -> None:
        """Begin."""
        self._seen = self.answered()
        self._looking.start(TICK_SECONDS, now=False)

    def stop(self) -> None:
        """End."""
        if self._looking.running:
            self._looking.stop()

    def _look(self, ticks: int) -> None:
        """*ticks*: more than one where the reactor was late."""
        answered = self.answered()
        now = (answered - self._seen) / (ticks * TICK_SECONDS)
        self._seen = answered
        self.per_second = (self.per_second + now) / 2
        level = DemandLevel((self.per_second >= SOME_A_SECOND) + (self.per_second >= MUCH_A_SECOND))
        if level is not self.level:
            self.level = level
            for callback in self.changed:
                callback()
