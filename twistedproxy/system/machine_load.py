"""CPUs, memory and system load of the machine, or of the container around this process.

Rules:
- readings are plain values; where they come from (a root folder, psutil, a function) is an argument, so that tests need
  no particular machine;
- a control group's limit counts like the machine's own, whichever is smaller;
- page cache that the kernel would give back is available memory.

Sources: sched_getaffinity(2); getloadavg(3); the kernel's cgroup-v2.rst ("Memory Interface Files", ``cpu.max``). Limits of
version 1 control groups are not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import attrs
import psutil

RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""Fields of ``memory.stat``."""

FRESH_SECONDS = 1.0
"""How long a reading of the system load is used: load averages move every five seconds, and a reading takes 0.25 ms."""

ROOT = Path("/")


@attrs.frozen
class MemoryReading:
    """Bytes of memory: all there is, and what could be had now without swapping."""

    total: int
    available: int


@attrs.frozen
class SystemLoad:
    """How busy the machine is, in percent (above 100 where more waits than can run). None: could not be read."""

    cpu_percent: Optional[float] = None
    memory_percent: Optional[float] = None


def read_memory(
    root: Path = ROOT, virtual_memory: Callable[[], MemoryReading] = psutil.virtual_memory
) -> MemoryReading:
    """Read the memory of the machine, narrowed by every control group around this process.

    Raises OSError where the machine's own figures cannot be read; control groups that cannot be read are left out.
    """
    machine = virtual_memory()
    total, available = machine.total, machine.available
    for group in _control_groups(root):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is None:
            continue
        total = min(total, limit)
        if used is not None:
            held = max(0, used - _reclaimable(group / "memory.stat"))
            available = min(available, max(0, limit - held))
    return MemoryReading(total, min(available, total))


def cpu_count(root: Path = ROOT) -> float:
    """The CPUs that this process may use: those it is bound to, or fewer where a control group's quota says so."""
    return min([float(_bound_cpus()), *cpu_quotas(root)])


def cpu_quotas(root: Path = ROOT) -> Iterator[float]:
    """Every quota around this process, in CPUs. What cannot be read is left out."""
    for group in _control_groups(root):
        try:
            quota, period = map(int, (group / "cpu.max").read_text().split())
            cpus = quota / period
        except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"; nonsense
            continue
        if cpus > 0:
            yield cpus


def _control_groups(root: Path) -> Iterator[Path]:
    """The folder of every control group around this process, from its own up to the top: a limit of any of them holds."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        if line.startswith("0::"):
            folder = mount / line[len("0::") :].lstrip("/")
            # In a container the path may be the host's, which is not visible here: its top is then our group.
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(mount))


def _number(path: Path) -> Optional[int]:
    """The number in a file; None where there is none (absent, ``max``)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Path) -> int:
    """The bytes that the kernel would give back, of a ``memory.stat`` file."""
    try:
        fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines() if " " in line)
        return sum(int(fields.get(name, "0")) for name in RECLAIMABLE)
    except (OSError, ValueError):
        return 0


def _bound_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container's cpuset shows here, not in the machine's count
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


@attrs.define(eq=False)
class SystemLoadReader:
    """Reads the system load, at most once in `FRESH_SECONDS`.

    *cached_bytes*: how much of the used memory is the cache's (0: none on this machine). The others return the
    1-, 5- and 15-minute load averages, the CPUs (a quota may say 1.5), and the memory. Each may raise OSError: then that
    figure is None, and the other is read all the same.
    """

    cached_bytes: Callable[[], int] = lambda: 0
    load_averages: Callable[[], tuple[float, float, float]] = psutil.getloadavg
    cpus: Callable[[], float] = cpu_count
    memory: Callable[[], MemoryReading] = read_memory
    _last: Optional[tuple[float, SystemLoad]] = attrs.field(init=False, default=None)

    def read(self, now: float) -> SystemLoad:
        """The reading at *now*, in seconds of any clock that goes forward."""
        if self._last is None or not 0 <= now - self._last[0] < FRESH_SECONDS:
            self._last = now, SystemLoad(_or_none(self._cpu_percent), _or_none(self._memory_percent))
        return self._last[1]

    def _cpu_percent(self) -> float:
        one_minute, five_minutes, _ = self.load_averages()
        return 100.0 * max(one_minute, five_minutes) / self.cpus()

    def _memory_percent(self) -> float:
        memory = self.memory()
        # What the cache holds can be evicted: if it counted, a warm cache would end whole-instance loads for good.
        used = memory.total - memory.available - self.cached_bytes()
        return 100.0 * max(0, used) / memory.total


def _or_none(figure: Callable[[], float]) -> Optional[float]:
    try:
        return figure()
    except OSError:
        return None
