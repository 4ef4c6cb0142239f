"""How many CPUs this process may use.

Sources: sched_getaffinity(2); the kernel's cgroup-v2.rst ("CPU Interface Files": ``cpu.max``) and
scheduler/sched-bwc.rst (``cpu.cfs_quota_us``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from twistedproxy.machine import control_groups

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
