"""One loader child as the proxy sees it: a process whose standard input and output carry AMP.

What a child prints to its standard error goes to our log.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ProcessExitedAlready
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.prefetch import commands
from twistedproxy.prefetch.jobs import Progress

MODULE = "twistedproxy.prefetch.child"

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Of the environment. The proxy's own options in it may hold secrets."""


class ParentProtocol(amp.AMP):
    """Our end of the pipe. *listeners*: who hears of the progress of each load, by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: dict[int, Progress] = {}

    @commands.Progress.responder
    def progress(self, number: int, frames: int, bytes: int) -> dict[str, Any]:
        listener = self.listeners.get(number)
        if listener is not None:
            listener(frames, bytes)
        return {}


@implementer(ITransport)
class _Pipe:
    """A child's standard input and output as the transport of a protocol."""

    disconnecting = False

    def __init__(self, process: Any) -> None:
        self._process = process

    def write(self, data: bytes) -> None:
        if 0 in self._process.pipes:  # else it has ended, and will soon be heard to
            self._process.writeToChild(0, data)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self._process.loseConnection()

    def getPeer(self) -> Any:
        return None

    def getHost(self) -> Any:
        return None


class ChildProcess(ProcessProtocol):
    """One child. *ended* fires when it is gone."""

    _log = Logger()

    def __init__(self) -> None:
        self.amp = ParentProtocol()
        self.ended: Deferred[None] = Deferred()
        self.alive = True

    @classmethod
    def spawn(cls, reactor: Any) -> ChildProcess:
        """Start one. Raises OSError where that is not possible."""
        child = cls()
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # the proxy may have been started from a source tree that is not installed
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        command = [sys.executable, "-m", MODULE]
        reactor.spawnProcess(child, sys.executable, command, environment, childFDs={0: "w", 1: "r", 2: "r"})
        return child

    @property
    def pid(self) -> int:
        return int(self.transport.pid)  # type: ignore[union-attr]

    def connectionMade(self) -> None:
        self.amp.makeConnection(_Pipe(self.transport))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 1:
            self.amp.dataReceived(data)
        else:
            self._log.warn("a loader said: {text}", text=data.decode("utf-8", "replace").strip())

    def processEnded(self, reason: Failure) -> None:
        self.alive = False
        self.amp.connectionLost(Failure(ConnectionLost("the loader ended")))
        self.ended.callback(None)

    def kill(self) -> None:
        """End it now."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass
