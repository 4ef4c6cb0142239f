"""Runs the child process that makes the sample slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from twistedproxy.processes.child import child_command, child_environment

DEADLINE = 180.0  # seconds; 3 to 6 are usual
MAX_SAID = 4096  # bytes of what it says on its way out


class MakingFailed(Exception):
    """The child did not make the slide; `str()` says why."""


class _Child(ProcessProtocol):
    transport: IProcessTransport

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self._kill())
        self._said = b""

    def errReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[-MAX_SAID:]

    def processEnded(self, reason: Failure) -> None:
        if self.done.called:
            return
        if reason.check(ProcessDone):
            self.done.callback(None)
        else:
            lines = self._said.decode("utf-8", "replace").strip().splitlines()
            self.done.errback(MakingFailed(lines[-1] if lines else reason.getErrorMessage()))

    def _kill(self) -> None:
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass


async def run_maker(reactor: Any, folder: Path, command: Sequence[str] = ()) -> None:
    """Make the slide at *folder*. Raises `MakingFailed`, `twisted.internet.error` timeouts; cancelling ends the child."""
    child = _Child()
    arguments = [*(command or child_command("twistedproxy.origin.sample")), str(folder)]
    reactor.spawnProcess(child, arguments[0], arguments, child_environment())
    await child.done.addTimeout(DEADLINE, reactor)
