"""What the machine, or the container around this process, has to give.

Rules:
- readings are plain values; where they come from (a root folder, psutil) is an argument, so that
  tests need no particular machine;
- a control group's limit counts like the machine's own memory, whichever is smaller;
- page cache that the kernel would give back is available memory.

Sources: the kernel's cgroup-v2.rst ("Memory Interface Files") and cgroup-v1/memory.rst.

How many CPUs this process may use.

Sources: sched_getaffinity(2); the kernel's cgroup-v2.rst ("CPU Interface Files": ``cpu.max``) and
scheduler/sched-bwc.rst (``cpu.cfs_quota_us``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import attrs
import psutil

# cgroup v1 says "no limit" with the largest multiple of the page size that fits 63 bits.
_UNLIMITED = 1 << 60


class VirtualMemory(Protocol):
    """What is used of `psutil.virtual_memory`: bytes."""

    total: int
    available: int


@attrs.frozen
class MemoryReading:
    """Bytes of memory: all there is, and what could be had now without swapping."""

    total: int
    available: int


@attrs.frozen
class _MemoryFiles:
    """The files in which one version of the memory controller keeps its figures."""

    limit: str
    usage: str
    reclaimable: tuple[str, ...]


_V2 = _MemoryFiles("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
_V1 = _MemoryFiles(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def read_memory(
    root: Path = Path("/"), virtual_memory: Callable[[], VirtualMemory] = psutil.virtual_memory
) -> MemoryReading:
    """Read the memory of the machine, narrowed by every control group around this process.

    Raises OSError where the machine's own figures cannot be read; control groups that cannot be
    read are left out.
    """
    machine = virtual_memory()
    total, available = machine.total, machine.available
    for version, folder in control_groups(root, "memory"):
        files = _V1 if version == 1 else _V2
        limit = _number(folder / files.limit)
        if limit is None or limit >= _UNLIMITED:
            continue
        total = min(total, limit)
        usage = _number(folder / files.usage)
        if usage is not None:
            held = max(0, usage - _reclaimable(folder / "memory.stat", files.reclaimable))
            available = min(available, max(0, limit - held))
    return MemoryReading(total, min(available, total))


def control_groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Every control group of *controller* around this process: a limit of any of them holds. Each as its version
    (1 or 2) and its folder, from the process's own group up to the top."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            version, mount = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, mount = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        # In a container the path may be the host's, which is not visible here: its top is then our group.
        yield from ((version, place) for place in (folder, *folder.parents) if place.is_relative_to(mount))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none (absent, ``max``)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Path, names: tuple[str, ...]) -> int:
    """The bytes that the kernel would give back, of a ``memory.stat`` file."""
    try:
        fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines() if " " in line)
        return sum(int(fields.get(name, "0")) for name in names)
    except (OSError, ValueError):
        return 0


ROOT = Path("/")


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
