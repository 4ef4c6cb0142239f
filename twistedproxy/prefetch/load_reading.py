"""How busy the machine is, or the container around this process: the figures that a plan is made with.

Rules:
- a figure that cannot be read is None, and changes no plan; the other figure is read all the same;
- readings are kept for a second, by the clock value that the caller brings;
- where figures come from is an argument, so that tests need no particular machine.

Sources: getloadavg(3); CPUs: `twistedproxy.system.resources`; memory: `twistedproxy.system.resources`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import psutil

from twistedproxy.prefetch.rules import LoadReading
from twistedproxy.system.resources import MemoryReading, cpu_count, read_memory

FRESH_SECONDS = 1.0
"""For how long a reading holds: load averages move every five seconds, and a reading takes 0.25 ms."""


class LoadReader:
    """Takes readings, at most one a second.

    *cached_bytes* says how much of the used memory is the embedded cache's (0: none on this machine). The others
    return the 1-, 5- and 15-minute load averages, the CPUs (a quota may say 1.5), and the memory.
    Each may raise OSError.
    """

    def __init__(
        self,
        cached_bytes: Callable[[], int] = lambda: 0,
        load_averages: Callable[[], tuple[float, float, float]] = psutil.getloadavg,
        cpus: Optional[Callable[[], float]] = None,
        memory: Callable[[], MemoryReading] = read_memory,
    ) -> None:
        self._cached_bytes = cached_bytes
        self._load_averages = load_averages
        self._cpus = cpus or cpu_count
        self._memory = memory
        self._last: Optional[tuple[float, LoadReading]] = None

    def read(self, now: float) -> LoadReading:
        """The reading at *now*, in seconds of any clock that goes forward."""
        if self._last is None or not 0 <= now - self._last[0] < FRESH_SECONDS:
            self._last = now, LoadReading(_or_none(self._cpu_percent), _or_none(self._memory_percent))
        return self._last[1]

    def _cpu_percent(self) -> float:
        one_minute, five_minutes, _ = self._load_averages()
        return 100.0 * max(one_minute, five_minutes) / self._cpus()

    def _memory_percent(self) -> float:
        memory = self._memory()
        # What the cache holds is there to be pushed out: counted, a warm cache would end whole loads for good.
        used = memory.total - memory.available - self._cached_bytes()
        return 100.0 * max(0, used) / memory.total


def _or_none(figure: Callable[[], float]) -> Optional[float]:
    try:
        return figure()
    except OSError:
        return None
