"""A proxy's connection without a socket: bytes in, bytes out, time by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twistedproxy.server.connections import Connections
from twistedproxy.server.site import ProxySite, StreamingRequest

CLIENT_TIMEOUT = 30.0


@implementer(ITCPTransport)
class Wire(StringTransport):
    """The transport of one connection, and the client's end of it."""

    half_closed = False

    def __init__(self) -> None:
        super().__init__(lenient=True)
        self.protocol: Any = None

    # What the client does.

    def send(self, *pieces: bytes) -> None:
        """The client sends *pieces*, one read each."""
        for piece in pieces:
            if not self.gone:
                self.protocol.dataReceived(piece)

    def read_nothing(self) -> None:
        """The client reads no more, and all buffers are full."""
        self.producer.pauseProducing()

    def read_all(self) -> None:
        """The client has read all that was written."""
        self.producer.resumeProducing()

    def leave(self) -> None:
        """The connection is lost."""
        self.protocol.connectionLost(Failure(ConnectionLost()))

    @property
    def paused(self) -> bool:
        """Whether the client must wait before it may send more."""
        return self.producerState == "paused"

    @property
    def gone(self) -> bool:
        """Whether the proxy ended the connection, in order or not."""
        return bool(self.disconnecting)

    @property
    def cut(self) -> bool:
        """Whether the proxy cut the connection."""
        return bool(self.disconnected)

    # What a transport does.

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def unregisterProducer(self) -> None:
        self.producer = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to do."""

    def getTcpNoDelay(self) -> bool:
        return True

    def getTcpKeepAlive(self) -> bool:
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to do."""

    def abortConnection(self) -> None:
        super().abortConnection()
        self.leave()


class Server:
    """A site whose requests go to *answer*, which may finish them at once or later. `requests` are those that came."""

    def __init__(self, answer: Optional[Callable[[StreamingRequest], None]] = None) -> None:
        self.clock = Clock()
        self.connections = Connections(self.clock, CLIENT_TIMEOUT)
        self.connections.start()
        self.requests: list[StreamingRequest] = []
        self.answer = answer or (lambda request: None)
        self._site = ProxySite(_Told(self), self.connections, self.clock)

    def connect(self) -> Wire:
        """A new connection."""
        wire = Wire()
        wire.protocol = self._site.buildProtocol(None)  # type: ignore[arg-type]
        wire.protocol.makeConnection(wire)
        return wire

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps as the reactor would."""
        self.clock.pump([0.5] * int(seconds * 2))


class _Told(Resource):
    isLeaf = True

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def render(self, request: Any) -> int:
        self._server.requests.append(request)
        self._server.answer(request)
        return NOT_DONE_YET


def done(request: StreamingRequest, body: bytes = b"done") -> None:
    """Answer with *body*."""
    request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    request.write(body)
    request.finish()
