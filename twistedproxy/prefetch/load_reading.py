"""How busy the machine is, or the container around this process: the figures that a plan is made with.

Rules:
- a figure that cannot be read is None, and changes no plan; the other figure is read all the same;
- readings are kept for a second, by the clock value that the caller brings;
- where figures come from is an argument, so that tests need no particular machine.

Sources: getloadavg(3); the kernel's cgroup-v2.rst ("CPU Interface Files": ``cpu.max``) and
scheduler/sched-bwc.rst (``cpu.cfs_quota_us``). Memory: `twistedproxy.machine`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import psutil

from twistedproxy.machine import MemoryReading, control_groups, read_memory
from twistedproxy.prefetch.gates import LoadReading

FRESH_SECONDS = 1.0
"""For how long a reading holds: load averages move every five seconds, and a reading takes 0.25 ms."""

ROOT = Path("/")


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


def cpu_count(root: Path = ROOT) -> float:
    """The CPUs that this process may use: those it is bound to, or fewer where a control group's quota says so."""
    return min([float(_bound_cpus()), *cpu_quotas(root)])


def cpu_quotas(root: Path = ROOT) -> Iterator[float]:
    """Every quota around this process, in CPUs. What cannot be read is left out."""
    for version, folder in control_groups(root, "cpu"):
        yield from _some_quota(_quota_v1 if version == 1 else _quota_v2, folder)


def _some_quota(read: Callable[[Path], float], place: Path) -> Iterator[float]:
    try:
        quota = read(place)
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"; nonsense
        return
    if quota > 0:  # -1: no quota
        yield quota


def _quota_v2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)


def _quota_v1(folder: Path) -> float:
    return int((folder / "cpu.cfs_quota_us").read_text()) / int((folder / "cpu.cfs_period_us").read_text())


def _bound_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container's cpuset shows here, not in the machine's count
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def _or_none(figure: Callable[[], float]) -> Optional[float]:
    try:
        return figure()
    except OSError:
        return None
