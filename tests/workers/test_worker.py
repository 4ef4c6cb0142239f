"""A worker's process before it is a proxy: what it answers, what it prints when it is asked to, how it ends."""

from __future__ import annotations

import signal
import sys

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.running import Child
from tests.waiting import wait_until, within
from twistedproxy.processes.child import ChildProcess
from twistedproxy.workers import worker
from twistedproxy.workers.peer import Peer

HANGS = "from twistedproxy.workers import worker; worker.ORPHAN_SECONDS = 0; worker.end_with_parent(); print('hangs', flush=True)"
HANGS += "\nwhile True: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HANGS!r}])"


class WorkerTests(TestCase):
    """The real module."""

    timeout = 60

    def setUp(self) -> None:
        self.peer = Peer({})
        self.said = b""
        self.process = ChildProcess(self.peer, worker.CONTROL_IN, worker.CONTROL_OUT, self.hear)

    def hear(self, _descriptor: int, data: bytes) -> None:
        self.said += data

    async def begin(self) -> None:
        """It is there."""
        from twisted.internet import reactor

        descriptors = {0: "w", 1: "r", 2: "r", worker.CONTROL_IN: "w", worker.CONTROL_OUT: "r"}
        self.process.spawn(reactor, worker.__name__, descriptors)
        self.addCleanup(self.process.ended)
        self.addCleanup(self.process.kill)
        self.assertIsNone(await within(self.peer.call("ping")))

    def signal(self, number: signal.Signals) -> None:
        assert self.process.transport is not None
        self.process.transport.signalProcess(number)

    async def test_stacks(self) -> None:
        """Asked where it is, it prints it, and goes on."""
        await self.begin()
        self.signal(worker.STACKS_SIGNAL)
        await wait_until(lambda: b"in main" in self.said, "where it is")
        self.assertIn(b"most recent call first", self.said)
        self.assertIsNone(await within(self.peer.call("ping")))

    async def test_for_the_parent(self) -> None:
        """Signals that a whole group is sent, but that are for its parent, do not end it."""
        await self.begin()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            self.signal(number)
            self.assertIsNone(await within(self.peer.call("ping")))

    async def test_ends(self) -> None:
        """SIGTERM, and the end of its parent's pipe, end it."""
        await self.begin()
        self.signal(signal.SIGTERM)
        await within(self.process.ended())
        self.setUp()
        await self.begin()
        assert self.process.transport is not None
        self.process.transport.closeChildFD(worker.CONTROL_IN)  # type: ignore[attr-defined]
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
