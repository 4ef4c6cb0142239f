"""Who stands back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from unittest import SkipTest

from twisted.trial.unittest import TestCase

from tests.running import end, printed, tied
from tests.waiting import wait_until
from twistedproxy.processes.child import child_command, child_environment
from twistedproxy.system.tuning import TURN_SECONDS, short_turns

CPU_SECONDS = 0.2

BUSY = f"""
import contextlib, hashlib, os, resource, signal, sys
from twistedproxy.system.tuning import short_turns

def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_nivcsw

os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
parent, rival = os.getpid(), os.fork()
while not rival:
    if os.getppid() != parent:
        os._exit(0)
try:
    with short_turns() if sys.argv[1] == "short" else contextlib.nullcontext():
        begun, switched = used()
        while used()[0] - begun < {CPU_SECONDS}:
            hashlib.pbkdf2_hmac("sha256", b"one call of a library", b"that takes long", 50_000)
        seconds, switches = used()
finally:
    os.kill(rival, signal.SIGKILL)
print((switches - switched) / (seconds - begun))
"""
"""Prints how often in a second of its CPU it let another process have that, which wants it, too."""


class ShortTurnsTests(TestCase):
    """`short_turns`, around calls of some 20 ms."""

    timeout = 60

    async def turns(self, how: str) -> float:
        """How many turns a process has in a second of its CPU."""
        return float(await printed(BUSY, how))

    async def test_yields(self) -> None:
        """Others get a CPU that they want each time; without, at the ticks of the kernel's clock."""
        if not hasattr(os, "sched_setaffinity"):
            raise SkipTest("this system lets no process choose its CPU")
        self.assertGreater(await self.turns("short"), 0.5 / TURN_SECONDS)
        self.assertLess(await self.turns("long"), 0.5 / TURN_SECONDS)

    def test_ends(self) -> None:
        """There are no alarms once the work is done, or has failed."""
        handler = signal.getsignal(signal.SIGALRM)
        with contextlib.suppress(ZeroDivisionError), short_turns():
            self.assertEqual(signal.getitimer(signal.ITIMER_REAL)[1], TURN_SECONDS)
            raise ZeroDivisionError
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))
        signal.signal(signal.SIGALRM, handler)


class StandBackTests(TestCase):
    """`stand_back`, in the processes that call it."""

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
