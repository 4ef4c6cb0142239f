"""How much callers want of this worker now: work ahead takes rests while they want much.

What is counted are answers from the cache: their callers expect them at once, and there are many of them. That loads
stand back (`twistedproxy.system.tuning`) does not keep them from waiting where there are few CPUs: what loads have the store,
the cache server and the kernel do does not stand back.
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


class Level(IntEnum):
    """How much callers want."""

    LITTLE = 0
    SOME = 1
    MUCH = 2


@attrs.define(eq=False)
class Demand:
    """Looks at *answered*, how many answers there were so far, while it runs. *cpus*: of this worker's own share.

    *changed*: who is called whenever `level` is another.
    """

    clock: IReactorTime
    answered: Callable[[], float]
    cpus: float
    changed: list[Callable[[], None]] = attrs.field(factory=list)
    per_second: float = 0.0
    """Answers from the cache, lately."""
    level: Level = Level.LITTLE
    _seen: float = attrs.field(init=False, default=0.0)
    _looking: LoopingCall = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._looking = LoopingCall.withCount(self._look)
        self._looking.clock = self.clock

    def start(self) -> None:
        """Begin to look."""
        self._seen = self.answered()
        self._looking.start(TICK_SECONDS, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    def _look(self, ticks: int) -> None:
        """*ticks*: more than one where the reactor was kept from this."""
        answered = self.answered()
        now = (answered - self._seen) / (ticks * TICK_SECONDS)
        self._seen = answered
        self.per_second = (self.per_second + now) / 2
        level = Level((self.per_second >= SOME_A_SECOND) + (self.per_second >= MUCH_A_SECOND))
        if level is not self.level:
            self.level = level
            for hears in self.changed:
                hears()
