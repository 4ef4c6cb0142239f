"""Who stands back."""

from __future__ import annotations

import os
import subprocess
from unittest import SkipTest

from twisted.trial.unittest import TestCase

from tests.processes import end, tied
from tests.waiting import wait_until
from twistedproxy.processes import child_command, child_environment


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
        await self.assert_stands_back("twistedproxy.prefetch.child")

    async def test_renderer(self) -> None:
        """Pictures."""
        await self.assert_stands_back("twistedproxy.imaging.child")
