"""A worker's process before it is a proxy: what it answers, what it prints when it is asked to, how it ends."""

from __future__ import annotations

import signal
import sys

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.running import Child
from tests.waiting import wait_until, within
from twistedproxy.processes.child import ChildProcess
from twistedproxy.processes.messages import CONTROL_IN
from twistedproxy.workers import worker

HANGS = "from twistedproxy.workers import worker; worker.ORPHAN_SECONDS = 0; worker.end_soon_after_parent(); print('hangs', flush=True)"
HANGS += "\nwhile True: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HANGS!r}])"


class WorkerTests(TestCase):
    """The real module."""

    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.said = b""
        self.process = ChildProcess(reactor, "worker")
        self.process.output.received = self.hear  # type: ignore[method-assign]

    def hear(self, _descriptor: int, data: bytes) -> None:
        self.said += data

    async def ping(self) -> None:
        self.assertIsNone(await within(self.process.channel.call("ping")))

    async def begin(self) -> None:
        """It is there."""
        self.process.spawn(worker.__name__)
        self.addCleanup(self.process.ended)
        self.addCleanup(self.process.kill)
        await self.ping()

    async def test_stacks(self) -> None:
        """Asked where it is, it prints it, and goes on."""
        await self.begin()
        self.process.signal(worker.STACKS_SIGNAL)
        await wait_until(lambda: b"in main" in self.said, "where it is")
        self.assertIn(b"most recent call first", self.said)
        await self.ping()

    async def test_for_the_parent(self) -> None:
        """Signals that a whole group is sent, but that are for its parent, do not end it."""
        await self.begin()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            self.process.signal(number)
            await self.ping()

    async def test_ends(self) -> None:
        """SIGTERM, and the end of its parent's pipe, end it."""
        await self.begin()
        self.process.signal(signal.SIGTERM)
        await within(self.process.ended())
        self.setUp()
        await self.begin()
        assert self.process.transport is not None
        self.process.transport.closeChildFD(CONTROL_IN)  # type: ignore[attr-defined]
        await within(self.process.ended())

    async def test_hangs_without_parent(self) -> None:
        """One whose reactor turns no more ends all the same when its parent is killed."""
        parent = Child([sys.executable, "-c", PARENT])
        self.addCleanup(deferToThread, parent.remove)
        await wait_until(lambda: "hangs" in parent.output(), "an endless loop")
        await deferToThread(parent.kill)
        self.assertEqual(1, len(parent._family) - 1)
        await wait_until(lambda: not parent.strays(), "it is gone")

    if sys.platform != "linux":
        test_hangs_without_parent.skip = "Linux tells a process of its parent's end"  # type: ignore[attr-defined]
