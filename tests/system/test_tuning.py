"""What processes ask of the system: time slices, memory, priority."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from unittest import SkipTest

from twisted.trial.unittest import TestCase

from tests.running import printed
from tests.waiting import wait_until
from twistedproxy.processes.child import ChildProcess
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


class PriorityTests(TestCase):
    """`lower_priority`, in the processes that call it."""

    async def assert_low(self, module: str) -> None:
        """*module*, run as a child of the proxy, leaves the CPU to others."""
        from twisted.internet import reactor

        if not hasattr(os, "SCHED_IDLE"):
            raise SkipTest("this system has no SCHED_IDLE")
        child = ChildProcess(reactor, "child")
        child.spawn(module)
        self.addCleanup(child.ended)
        self.addCleanup(child.kill)
        pid = child.pid or 0
        await wait_until(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE, module)
        self.assertEqual(os.getpriority(os.PRIO_PROCESS, pid), 19)

    async def test_loader(self) -> None:
        """Loads."""
        await self.assert_low("twistedproxy.prefetch.loader_main")

    async def test_renderer(self) -> None:
        """Pictures."""
        await self.assert_low("twistedproxy.rendering.child")
