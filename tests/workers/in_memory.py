"""A worker whose process and pipe are in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from twistedproxy.processes.channel import CallError, Channel
from twistedproxy.system.metrics import Metrics
from twistedproxy.workers.broadcast import WorkerProcess, Workers


class FakeWorker(WorkerProcess):
    """A worker, whose own end of the pipe is *here*. *hangs*: it reads nothing."""

    def __init__(self, clock: Any, workers: Workers, pid: int) -> None:
        super().__init__(clock, workers)
        self.hangs = False
        self.signals: list[Any] = []
        self.heard: list[tuple[str, Any]] = []
        self.metrics = Metrics()
        self._pid = pid
        self.here = Channel(
            {name: getattr(self, f"on_{name}") for name in ("ping", "invalidate", "revoke", "snapshot", "status")}
        )
        for one in (self.channel, self.here):
            one.makeConnection(StringTransport())
        workers.add(self)

    @property
    def pid(self) -> int:
        return self._pid

    async def on_ping(self) -> None:
        self.heard.append(("ping", {}))

    async def on_invalidate(self, **scope: Any) -> None:
        self.heard.append(("invalidate", scope))

    async def on_revoke(self, **grant: Any) -> None:
        raise CallError("I won't")

    async def on_snapshot(self) -> Any:
        return self.metrics.snapshot()

    async def on_status(self) -> Any:
        return {"pid": self.pid}

    def flush(self) -> bool:
        """Move bytes; whether there were any."""
        moved = False
        for here, there in ((self.channel, self.here), (self.here, self.channel)):
            pipe: Any = here.transport
            data = pipe.value()
            if data and not (self.hangs and there is self.here) and self.alive:
                pipe.clear()
                there.dataReceived(data)
                moved = True
        return moved

    def signal(self, number: Any) -> None:
        if number != "KILL":
            self.signals.append(number)
        elif self.alive:
            self.processEnded(Failure(ConnectionLost()))
