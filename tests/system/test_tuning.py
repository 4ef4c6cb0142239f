"""What processes ask of the system: time slices, memory, priority."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from unittest import SkipTest

from twisted.trial.unittest import TestCase

from tests.running import end, printed, tied
from tests.waiting import wait_until
from twistedproxy.processes.child import child_command, child_environment
from twistedproxy.system.tuning import SLICE_SECONDS, short_time_slices


class ShortTimeSlicesTests(TestCase):
    """`short_time_slices`."""

    def test_yields(self) -> None:
        """Every slice ends in sched_yield(2), which the kernel calls: also inside a library's call, where no Python runs."""
        self.addCleanup(signal.signal, signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        library = ctypes.CDLL(None)
        library.signal.restype = ctypes.c_void_p
        with short_time_slices():
            self.assertEqual(signal.getitimer(signal.ITIMER_REAL)[1], SLICE_SECONDS)
            handler = library.signal(signal.SIGALRM, ctypes.c_void_p(signal.SIG_IGN))
        self.assertEqual(handler, ctypes.cast(library.sched_yield, ctypes.c_void_p).value)

    def test_ends(self) -> None:
        """There are no alarms once the work is done, or has failed."""
        handler = signal.getsignal(signal.SIGALRM)
        with contextlib.suppress(ZeroDivisionError), short_time_slices():
            self.assertEqual(signal.getitimer(signal.ITIMER_REAL)[1], SLICE_SECONDS)
            raise ZeroDivisionError
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))
        signal.signal(signal.SIGALRM, handler)


FREED = """
import resource, sys
from twistedproxy.system.tuning import keep_freed_memory

def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [b"x" * int(sys.argv[2]) for _ in range(int(sys.argv[3]))]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

if sys.argv[1] == "kept":
    keep_freed_memory()
print([faults() for _ in range(4)][-1])
"""
"""Prints how many pages the system had to find when some objects of some size were needed, as so often before."""


class MemoryTests(TestCase):
    """`keep_freed_memory`."""

    async def faults(self, how: str, size: int, count: int) -> int:
        return int(await printed(FREED, how, str(size), str(count)))

    async def test_kept(self) -> None:
        """What was freed is used again without the system's help, by the frames of a slide and by a radiograph."""
        if await self.faults("as it is", 15_000, 500) < 1000:
            raise SkipTest("this C library keeps what is freed anyway")
        self.assertLess(await self.faults("kept", 15_000, 500), 100)
        self.assertLess(await self.faults("kept", 20_000_000, 1), 100)


class StandBackTests(TestCase):
    """`lower_priority`, in the processes that call it."""

    def started(self, module: str) -> subprocess.Popen[bytes]:
        """A process that runs *module*, until the test ends."""
        command = tied(child_command(module))
        child = subprocess.Popen(command, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.addCleanup(end, child)
        self.addCleanup(lambda: child.stdin and child.stdin.close())
        return child

    async def assert_stands_back(self, module: str) -> None:
        """*module*, run as a child of the proxy, leaves the CPU to others."""
        if not hasattr(os, "SCHED_IDLE"):
            raise SkipTest("this system has no SCHED_IDLE")
        child = self.started(module)
        await wait_until(lambda: os.sched_getscheduler(child.pid) == os.SCHED_IDLE, module)
        self.assertEqual(os.getpriority(os.PRIO_PROCESS, child.pid), 19)

    async def test_loader(self) -> None:
        """Loads."""
        await self.assert_stands_back("twistedproxy.prefetch.loader_main")

    async def test_renderer(self) -> None:
        """Pictures."""
        await self.assert_stands_back("twistedproxy.rendering.child")
