"""One loader child as the proxy sees it: a process whose standard input and output carry AMP.

What a child prints to its standard error goes to our log.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from twistedproxy.prefetch import commands
from twistedproxy.prefetch.jobs import Progress
from twistedproxy.processes.child import ChildProcess

MODULE = "twistedproxy.prefetch.loader_main"


class LoaderChild(amp.AMP):
    """The conversation with one child. *listeners*: who hears of the progress of each load, by its number."""

    _log = Logger()

    def __init__(self) -> None:
        super().__init__()
        self.listeners: dict[int, Progress] = {}
        self.process = ChildProcess(self, hears=0, speaks=1, said=self._said)

    @classmethod
    def spawn(cls, reactor: Any) -> LoaderChild:
        """Start one. Raises OSError where that is not possible."""
        child = cls()
        child.process.spawn(reactor, MODULE, {0: "w", 1: "r", 2: "r"})
        return child

    @commands.Progress.responder
    def progress(self, number: int, frames: int, bytes: int) -> dict[str, Any]:
        listener = self.listeners.get(number)
        if listener is not None:
            listener(frames, bytes)
        return {}

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The child is gone, however: who waits for answers hears it as AMP says such things."""
        super().connectionLost(Failure(ConnectionLost("the loader ended")))

    def _said(self, _descriptor: int, data: bytes) -> None:
        self._log.warn("a loader said: {text}", text=data.decode("utf-8", "replace").strip())
