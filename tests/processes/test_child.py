"""Child processes and their pipes."""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase

from tests.waiting import wait_until
from twistedproxy.processes.child import PIPE_BYTES, READ_BYTES, ChildProcess
from twistedproxy.rendering.messages import Message

ECHO = "tests.rendering.stub_child"


class Pieces(Protocol):
    """What came, in the pieces in which it did."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)


class PipeTests(TestCase):
    """`ChildProcess`."""

    timeout = 30

    async def test_large_pieces(self) -> None:
        """Much at once goes through a child's pipe, and is read in pieces to match."""
        from twisted.internet import reactor

        heard = Pieces()
        child = ChildProcess(heard, hears=0, speaks=1)
        child.spawn(reactor, ECHO, {0: "w", 1: "r", 2: "r"})
        self.addCleanup(child.ended)
        self.addCleanup(child.kill)
        await wait_until(lambda: heard.pieces, "a sign of life")
        heard.pieces.clear()
        reader: Any = child.transport.pipes[1]  # type: ignore[union-attr]
        if not hasattr(fcntl, "F_GETPIPE_SZ") or fcntl.fcntl(reader.fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
            raise SkipTest("pipes have the size that the system gives them")
        reader.stopReading()
        for piece in Message({"op": "echo"}, [bytes(2 * PIPE_BYTES)]).packed():
            heard.transport.write(piece)  # type: ignore[union-attr]
        held = bytearray(4)

        def waiting() -> int:
            fcntl.ioctl(reader.fd, termios.FIONREAD, held)
            return int(struct.unpack("i", held)[0])

        await wait_until(lambda: waiting() == PIPE_BYTES, "a full pipe")
        reader.startReading()
        await wait_until(lambda: sum(map(len, heard.pieces)) > 2 * PIPE_BYTES, "all of it")
        self.assertEqual(len(heard.pieces[0]), READ_BYTES)

    async def test_end(self) -> None:
        """A child that ends is known to have ended, and its conversation is over."""
        from twisted.internet import reactor

        over: Deferred[None] = Deferred()
        heard = Pieces()
        heard.connectionLost = lambda _reason: over.callback(None)  # type: ignore[assignment,method-assign,misc]
        child = ChildProcess(heard, hears=0, speaks=1)
        child.spawn(reactor, ECHO, {0: "w", 1: "r", 2: "r"})
        await wait_until(lambda: heard.pieces, "a sign of life")
        child.kill()
        await over
        self.assertFalse(child.alive)
