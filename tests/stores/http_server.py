"""HTTP/1.1 for the simulated store, by hand: it has to stall, reset and lie where a real server library would not.

- One request at a time per connection; the next is read when the last was answered and its body came whole.
- A request's handler starts when its head is there; the body comes to it as it arrives, and is not read
  from the socket faster than the handler takes it.
- What is sent waits for the reader: a slow client holds up the handler, memory stays small.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Optional
from urllib.parse import parse_qsl

import attrs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

MAX_HEAD = 1 << 20
MAX_WAITING_BODY = 1 << 18  # bytes of a body that may wait for the handler before the socket is left alone

_log = Logger()


@attrs.define(eq=False)
class Seen:
    """A request as it came. *path* is raw, without the query; header names are as sent, in order.

    The rest grows while it is served: *body_bytes* that arrived, *body* (only where the store keeps it), the
    *status* and *sent* body bytes of the answer, *aborted* where the caller left before the answer's end.
    """

    number: int
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    arrived: float = 0.0
    body_bytes: int = 0
    status: Optional[int] = None
    sent: int = 0
    done: bool = False
    aborted: bool = False

    def header(self, name: str, default: str = "") -> str:
        """The values of a header, joined by a comma as RFC 9110 section 5.3 allows."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(found) if found else default

    @property
    def arguments(self) -> list[tuple[str, str]]:
        """The query's names and values, decoded, in order."""
        return parse_qsl(self.query, keep_blank_values=True)

    @property
    def line(self) -> str:
        """Method, path and query: what a test compares."""
        return f"{self.method} {self.path}" + (f"?{self.query}" if self.query else "")


class Exchange:
    """One request and the way to answer it, for the handler."""

    def __init__(self, seen: Seen, connection: Connection) -> None:
        self.seen = seen
        self.connection = connection
        self.close_after = seen.header("Connection").lower() == "close"
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._ended = False
        self._reader: Optional[Deferred[None]] = None

    async def read(self) -> bytes:
        """The next piece of the request's body, or ``b""`` at its end."""
        while not self._chunks and not self._ended:
            self._reader = Deferred()
            await self._reader
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        self._waiting_bytes -= len(chunk)
        if self._waiting_bytes < MAX_WAITING_BODY:
            self.connection.resume_reading()
        return chunk

    def feed(self, chunk: bytes) -> None:
        """A piece of the body came."""
        self.seen.body_bytes += len(chunk)
        self._chunks.append(chunk)
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes >= MAX_WAITING_BODY:
            self.connection.pause_reading()
        self._wake()

    def feed_end(self) -> None:
        """The body is whole."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.callback(None)

    async def write(self, data: bytes) -> None:
        """Send *data*, and return when there is room for more."""
        await self.connection.write(data)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.connection.reset()

    def close(self) -> None:
        """End the connection once all that was written is sent."""
        self.connection.close()


Handler = Callable[[Exchange], Awaitable[None]]


@implementer(IPushProducer)
class Connection(Protocol):
    """The server's end of one connection."""

    transport: Any  # IConsumer, IPushProducer and ITCPTransport in one

    def __init__(self, server: HTTPServer) -> None:
        self.lost = False
        self._server = server
        self._buffer = bytearray()
        self._exchange: Optional[Exchange] = None
        self._task: Optional[Deferred[None]] = None
        self._body_left: Optional[int] = None  # bytes; None between requests; -1 for chunked
        self._chunk_left = -1  # bytes of the present chunk, its CRLF not among them; -1 before its size line
        self._answered = False
        self._full: Optional[Deferred[None]] = None
        self._reading_paused = False

    def connectionMade(self) -> None:
        self._server.connections.add(self)
        self._server.accepted += 1
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        if self._body_left is not None and self._body_left > 0 and not self._buffer:
            data = self._take_body(data)  # the way of large uploads: no copy through the buffer
        self._buffer += data
        self._advance()

    def _advance(self) -> None:
        while not self.lost:
            if self._exchange is None:
                if not self._take_head():
                    return
            elif self._body_left == -1:
                if not self._take_chunk():
                    return
            elif self._body_left:
                if not self._buffer:
                    return
                data = bytes(self._buffer)
                self._buffer.clear()
                self._buffer += self._take_body(data)
            elif self._answered:
                self._next()
            else:
                return

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                self.reset()
            return False
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        method, target, _version = lines[0].split(" ", 2)
        path, _, query = target.partition("?")
        pairs = (line.partition(":") for line in lines[1:])
        headers = tuple((name, value.strip()) for name, _, value in pairs)
        seen = Seen(self._server.count(), method, path, query, headers, self._server.now())
        exchange = Exchange(seen, self)
        self._exchange, self._answered = exchange, False
        self._body_left = (
            -1 if "chunked" in seen.header("Transfer-Encoding").lower() else int(seen.header("Content-Length", "0"))
        )
        self._chunk_left = -1
        if seen.header("Expect").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._body_left == 0:
            exchange.feed_end()
        self._task = ensureDeferred(self._run(exchange))
        return True

    def _take_body(self, data: bytes) -> bytes:
        """Give the handler what belongs to this body; return what lies behind it."""
        assert self._exchange is not None and self._body_left is not None
        here = data[: self._body_left]
        self._body_left -= len(here)
        self._exchange.feed(here)
        if not self._body_left:
            self._exchange.feed_end()
        return data[len(here) :]

    def _take_chunk(self) -> bool:
        assert self._exchange is not None
        if self._chunk_left < 0:
            size, found, _ = self._buffer.partition(b"\r\n")
            if not found:
                return False
            del self._buffer[: len(size) + 2]
            self._chunk_left = int(bytes(size).split(b";")[0], 16)
            if self._chunk_left == 0:
                self._chunk_left = -2  # the last one: an empty line follows
        if self._chunk_left == -2:
            if len(self._buffer) < 2:
                return False
            del self._buffer[:2]
            self._body_left = 0
            self._exchange.feed_end()
            return True
        if not self._chunk_left:
            if len(self._buffer) < 2:
                return False
            del self._buffer[:2]
            self._chunk_left = -1
            return True
        here = bytes(self._buffer[: self._chunk_left])
        if not here:
            return False
        del self._buffer[: len(here)]
        self._chunk_left -= len(here)
        self._exchange.feed(here)
        return True

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._server.handler(exchange)
            exchange.seen.done = True
        except Exception as error:
            exchange.seen.aborted = self.lost
            if not self.lost:
                _log.failure("the simulated store failed", Failure(error))
                self.reset()
            return
        self._answered = True
        if exchange.close_after:
            self.close()
        else:
            # Not from here: the handler may have answered before dataReceived came back.
            self._server.soon(self._advance)

    def _next(self) -> None:
        self._exchange = self._body_left = self._task = None
        self.resume_reading()

    async def write(self, data: bytes) -> None:
        if self.lost:
            raise ConnectionDone()
        self.transport.write(data)
        if self._full is not None:
            await self._full  # one handler, so one waiter

    def pauseProducing(self) -> None:
        if self._full is None:
            self._full = Deferred()

    def resumeProducing(self) -> None:
        full, self._full = self._full, None
        if full is not None:
            full.callback(None)

    def stopProducing(self) -> None:
        """The connection's end says it all."""

    def pause_reading(self) -> None:
        if not self._reading_paused and not self.lost:
            self._reading_paused = True
            self.transport.pauseProducing()

    def resume_reading(self) -> None:
        if self._reading_paused and not self.lost:
            self._reading_paused = False
            self.transport.resumeProducing()

    def close(self) -> None:
        if not self.lost:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def reset(self) -> None:
        if self.lost:
            return
        if hasattr(self.transport, "getHandle"):
            # Without lingering, closing sends RST, not FIN.
            self.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:
        self.lost = True
        self._server.connections.discard(self)
        self._server.check_idle()
        exchange, task = self._exchange, self._task
        if exchange is not None and task is not None and not self._answered:
            task.addErrback(lambda _failure: None)
            task.cancel()


class HTTPServer(Factory):
    """Accepts connections and gives each request to *handler*. *now* is the clock, *soon* runs a call in the next turn."""

    noisy = False

    def __init__(
        self, handler: Handler, now: Callable[[], float], soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self.handler = handler
        self.now = now
        self.soon = soon
        self.connections: set[Connection] = set()
        self.accepted = 0
        """Connections so far, those gone among them."""
        self._requests = 0
        self._idle: Optional[Deferred[None]] = None

    def buildProtocol(self, _address: object) -> Connection:
        return Connection(self)

    def count(self) -> int:
        self._requests += 1
        return self._requests

    async def close_all(self) -> None:
        """Cut every connection and return when they are gone."""
        if self.connections:
            self._idle = Deferred()
            for connection in list(self.connections):
                connection.resume_reading()
                connection.reset()
            await self._idle

    def check_idle(self) -> None:
        if self._idle is not None and not self.connections:
            idle, self._idle = self._idle, None
            idle.callback(None)
