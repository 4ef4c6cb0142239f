"""A worker whose process and pipe are in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from twistedproxy.system.metrics import Metrics
from twistedproxy.workers.broadcast import Exchange, Member
from twistedproxy.workers.peer import CallFailed, Peer


class FakeWorker:
    """A worker, whose process and pipe are here. *hangs*: it hears nothing."""

    def __init__(self, exchange: Exchange, pid: int) -> None:
        self.alive = True
        self.hangs = False
        self.pid = pid
        self.transport = self  # of its process
        self.signals: list[Any] = []
        self.heard: list[tuple[str, Any]] = []
        self.metrics = Metrics()
        self._waiting: list[Deferred[None]] = []
        handlers: dict[str, Any] = {}
        names = ("ping", "forget", "revoke", "snapshot", "status")
        self.conversation = Peer(handlers)
        self.here = Peer({name: getattr(self, name) for name in names})
        for one in (self.conversation, self.here):
            one.makeConnection(StringTransport())
        self.member = Member(self)  # type: ignore[arg-type]
        handlers.update(exchange.handlers(self.member))
        exchange.add(self.member)

    async def ping(self) -> None:
        self.heard.append(("ping", {}))

    async def forget(self, **scope: Any) -> None:
        self.heard.append(("forget", scope))

    async def revoke(self, **grant: Any) -> None:
        raise CallFailed("I won't")

    async def snapshot(self) -> Any:
        return self.metrics.snapshot()

    async def status(self) -> Any:
        return {"pid": self.pid}

    def flush(self) -> bool:
        """Move bytes; whether there were any."""
        moved = False
        for here, there in ((self.conversation, self.here), (self.here, self.conversation)):
            pipe: Any = here.transport
            data = pipe.value()
            if data and not (self.hangs and there is self.here) and self.alive:
                pipe.clear()
                there.dataReceived(data)
                moved = True
        return moved

    def signalProcess(self, number: Any) -> None:
        self.signals.append(number)

    def ended(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        if not self.alive:
            waiter.callback(None)
        return waiter

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            self.conversation.connectionLost(Failure(ConnectionLost()))
            for waiter in self._waiting:
                waiter.callback(None)
