"""Child processes and their pipes."""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any
from unittest import SkipTest

from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import TestCase

from tests.waiting import wait_until, within
from twistedproxy.processes.child import PIPE_BYTES, READ_BYTES, ChildProcess, StartFailed
from twistedproxy.processes.messages import CONTROL_OUT

ECHO = "tests.rendering.stub_child"


class ChildTests(TestCase):
    """`ChildProcess`."""

    timeout = 30

    async def child(self, module: str = ECHO) -> ChildProcess:
        """A child that is there."""
        from twisted.internet import reactor

        child = ChildProcess(reactor, "child")
        child.spawn(module)
        self.addCleanup(child.ended)
        self.addCleanup(child.kill)
        await child.begin("echo", seconds=20.0)
        return child

    async def test_large_pieces(self) -> None:
        """Much at once goes through a child's pipe, and is read in pieces to match."""
        child = await self.child()
        reader: Any = child.transport.pipes[CONTROL_OUT]  # type: ignore[union-attr]
        if not hasattr(fcntl, "F_GETPIPE_SZ") or fcntl.fcntl(reader.fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
            raise SkipTest("pipes have the size that the system gives them")
        pieces: list[bytes] = []
        received = child.channel.dataReceived
        child.channel.dataReceived = lambda data: pieces.append(data) or received(data)  # type: ignore
        reader.stopReading()
        answer = child.channel.request("echo", {}, [bytes(2 * PIPE_BYTES)])
        held = bytearray(4)

        def waiting() -> int:
            fcntl.ioctl(reader.fd, termios.FIONREAD, held)
            return int(struct.unpack("i", held)[0])

        await wait_until(lambda: waiting() == PIPE_BYTES, "a full pipe")
        reader.startReading()
        self.assertEqual((await within(answer)).blobs, [bytes(2 * PIPE_BYTES)])
        self.assertEqual(len(pieces[0]), READ_BYTES)

    async def test_end(self) -> None:
        """A child that ends is known to have ended, and its calls fail."""
        child = await self.child()
        call = child.channel.call("hang")
        child.kill()
        await self.assertFailure(call, ConnectionLost)
        await within(child.ended())
        self.assertEqual((child.alive, child.pid), (False, None))

    async def test_begins_wrong(self) -> None:
        """One that does not begin is gone when that is known, and its last words say why."""
        with self.assertRaises(StartFailed) as raised:
            await self.child("tests.processes.no_such_module")
        self.assertIn("No module named tests.processes.no_such_module", str(raised.exception))
