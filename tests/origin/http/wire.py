"""A store made of raw bytes: a TCP server whose every answer, pause and cut is scripted.

For what HTTP servers do wrong; tests of what stores say use whole HTTP servers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure


@attrs.frozen
class Head:
    """The first lines of a request as they came."""

    line: bytes
    fields: dict[bytes, bytes]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]


class Wire(Protocol):
    """One accepted connection."""

    def __init__(self, server: WireServer) -> None:
        self.server = server
        self.buffer = b""
        self.gone = False
        self._waiter: Optional[Deferred[None]] = None

    def connectionMade(self) -> None:
        self.server.connections.append(self)
        running = Deferred.fromCoroutine(self._serve())
        running.addErrback(lambda failure: failure.trap(EOFError))
        running.addErrback(self.server.problems.append)

    async def _serve(self) -> None:
        while True:
            head = await self.head()
            self.server.requests.append(head)
            await self.server.script(self, head)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    async def more(self) -> None:
        if self.gone:
            raise EOFError
        self._waiter = Deferred()
        await self._waiter

    async def head(self) -> Head:
        while b"\r\n\r\n" not in self.buffer:
            await self.more()
        text, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        line, *fields = text.split(b"\r\n")
        pairs = (field.split(b": ", 1) for field in fields)
        return Head(line, {name.lower(): value for name, value in pairs})

    async def until(self, text: bytes) -> bytes:
        """Everything up to and with *text*."""
        while text not in self.buffer:
            await self.more()
        before, text, self.buffer = self.buffer.partition(text)
        return before + text

    def send(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def answer(self, status: bytes, body: bytes = b"", *fields: bytes) -> None:
        lines = [b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body)]
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def close(self) -> None:
        self.transport.loseConnection()  # type: ignore[union-attr]

    def reset(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]

    async def lost(self) -> None:
        """Return once the other side has gone."""
        try:
            while True:
                await self.more()
        except EOFError:
            return


Script = Callable[[Wire, Head], Coroutine["Deferred[Any]", Any, None]]


class WireServer(Factory):
    """Accepts connections on loopback and runs *script* for each request."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections: list[Wire] = []
        self.requests: list[Head] = []
        self.problems: list[Failure] = []
        self._port: Any = None

    def buildProtocol(self, addr: object) -> Wire:
        return Wire(self)

    def listen(self, reactor: Any) -> str:
        self._port = reactor.listenTCP(0, self, interface="127.0.0.1")
        return f"http://127.0.0.1:{self._port.getHost().port}"

    async def stop(self) -> None:
        await maybeDeferred(self._port.stopListening)
        for connection in self.connections:
            if not connection.gone:
                connection.reset()
                await connection.lost()
        for problem in self.problems:
            problem.raiseException()
