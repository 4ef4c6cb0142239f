"""The HTTP server below the routes: connections with deadlines, and requests whose bodies stream.

twisted.web hands a request on when its whole body has come, and restarts its timer at every byte. Here
- a request with a body is handed on at the end of its head; the body is pulled from `StreamingRequest.upload`;
- a head, and each 64 kB of a body that somebody waits for, has `client_timeout` seconds; so has each piece of an
  answer that the client must take;
- an answer that ends before the request's body did lets the rest of the body pass for a moment, then closes:
  closing at once would reset the connection and lose the answer;
- an orderly stop lets each connection finish what it has received.

The channel leans on private attributes of `HTTPChannel`; Twisted is pinned below its next major version for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import HTTPChannel, _GenericHTTPChannelProtocol
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from twistedproxy.web.problems import Problem
from twistedproxy.web.uploads import Upload

PROGRESS = 64 * 1024
"""Bytes of a request's body that restart its deadline."""

IDLE_SECONDS = 75.0
"""How long a connection may stay open between requests; as nginx's keepalive_timeout."""

LINGER_SECONDS = 2.0
"""How long the rest of an unwanted body may still come after the answer; nginx lingers for 5 s at most."""

SWEEP_SECONDS = 0.5
"""How often connections are looked over for passed deadlines: one pass over 5,000 takes about 1 ms."""


class ProxyChannel(HTTPChannel):
    """One HTTP/1.1 connection."""

    connections: Connections

    def connectionMade(self) -> None:
        self.waiting_since: Optional[float] = None
        """When the wait for the client began that is under way: for a head, for a body's bytes, for room to write."""
        self._progress = 0
        super().connectionMade()
        self.connections.add(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.connections.discard(self)
        super().connectionLost(reason)

    @property
    def idle(self) -> bool:
        """Whether nothing of a request is here."""
        return not self.requests and not self._buffer

    def dataReceived(self, data: bytes) -> None:
        if self.waiting_since is None and not self.requests:
            self.waiting_since = self.connections.seconds()
        super().dataReceived(data)

    def allHeadersReceived(self) -> None:
        self.waiting_since = None
        if self.connections.closing:
            self.persistent = False
        super().allHeadersReceived()
        if self.connections.closing:
            self.close_after_answer(self.requests[-1])
        if self.length != 0:
            self._progress = 0
            self.waiting_since = self.connections.seconds()
            self.requests[-1].head_received(self._command, self._path, self._version)

    def body_progressed(self, size: int) -> None:
        """*size* bytes of a body came."""
        self._progress += size
        if self._progress >= PROGRESS:
            self._progress = 0
            self.waiting_since = self.connections.seconds()

    def body_awaited(self, awaited: bool) -> None:
        """Whether we wait for the client's body, or it for us."""
        self.waiting_since = self.connections.seconds() if awaited else None
        if awaited:
            self._networkProducer.resumeProducing()
        else:
            self._networkProducer.pauseProducing()

    def allContentReceived(self) -> None:
        self.waiting_since = None
        super().allContentReceived()

    def pauseProducing(self) -> None:
        self.waiting_since = self.connections.seconds()
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.waiting_since = None
        super().resumeProducing()

    def requestDone(self, request: Request) -> None:
        # a client that must still take the answer keeps its deadline
        if not self._waitingForTransport:
            self.waiting_since = None
        super().requestDone(request)
        if self.waiting_since is None and not self._handlingRequest and not self.idle:
            self.waiting_since = self.connections.seconds()  # the next head has begun to come

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(431, "a line of the request's head is longer than 16384 bytes")

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders:
            self._refuse(
                431, f"the request's head has more than {self.totalHeadersSize} bytes or {self.maxHeaders} headers"
            )
        else:
            self._refuse(400, "the request is not well-formed HTTP/1.1")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what is no request, then read and drop what still comes for a moment: closing at once would
        reset the connection and lose the answer."""
        body = Problem(status, detail).to_json()
        reason = http.RESPONSES.get(status, b"Request Header Fields Too Large")
        transport: Any = self.transport
        transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, reason, len(body), body)
        )
        self.setTimeout(None)
        self.waiting_since = None
        self.dataReceived = self.lineReceived = lambda *_args: None  # type: ignore[method-assign, assignment]
        transport.unregisterProducer()
        if ITCPTransport.providedBy(transport):
            transport.loseWriteConnection()
        self._abortingCall = self.callLater(LINGER_SECONDS, self.forceAbortClient)

    def abort(self) -> None:
        """End the connection now, whatever is still to be sent."""
        transport: Any = self.transport
        transport.abortConnection()

    def close_after_answer(self, request: Request) -> None:
        """End the connection once *request* is answered."""
        self.persistent = False
        if not request.startedWriting:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])


class StreamingRequest(Request):
    """A request whose body, where it has one, is pulled while it comes."""

    channel: ProxyChannel
    upload: Optional[Upload] = None
    cache_outcome: str = ""
    """What the cache did for this request, in one word, for metrics and the log."""
    client_seen: Optional[str] = None
    """The client's address, where a trusted proxy says so."""
    _lingering: Any = None

    def gotLength(self, length: Optional[int]) -> None:
        super().gotLength(0)
        if length != 0:
            self.upload = Upload(length, self.channel.body_awaited)

    def head_received(self, command: bytes, path: bytes, version: bytes) -> None:
        """Start to work on a request whose body is still to come."""
        super().requestReceived(command, path, version)

    def handleContentChunk(self, data: bytes) -> None:
        if self.upload is None:
            super().handleContentChunk(data)
        else:
            self.channel.body_progressed(len(data))
            self.upload.received(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self.upload is None:
            super().requestReceived(command, path, version)
            return
        self.upload.ended()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
            super()._cleanup()

    def _cleanup(self) -> None:
        upload = self.upload
        if upload is None or upload.complete or self._disconnected:
            super()._cleanup()
            return
        upload.close()
        self.channel.persistent = False
        self._lingering = self.channel.callLater(LINGER_SECONDS, self._linger_no_more)

    def _linger_no_more(self) -> None:
        self._lingering = None
        super()._cleanup()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self.upload is not None:
            self.upload.failed(reason)
        super().connectionLost(reason)


class Connections:
    """All open connections of the listeners, with their deadlines and their orderly end."""

    def __init__(self, clock: IReactorTime, client_timeout: float) -> None:
        self.closing = False
        self.seconds: Callable[[], float] = clock.seconds
        self._client_timeout = client_timeout
        self._open: set[ProxyChannel] = set()
        self._clock = clock
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = clock
        self._emptied: Optional[Deferred[None]] = None

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Look after deadlines from now on."""
        self._sweeper.start(SWEEP_SECONDS, now=False)

    def add(self, channel: ProxyChannel) -> None:
        self._open.add(channel)

    def discard(self, channel: ProxyChannel) -> None:
        self._open.discard(channel)
        if not self._open and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def _sweep(self) -> None:
        late = self.seconds() - self._client_timeout
        for channel in [one for one in self._open if one.waiting_since is not None and one.waiting_since < late]:
            # abort: a client that is too slow to send a head will not read a farewell
            channel.abort()

    async def drain(self, deadline: float) -> int:
        """Let each connection finish what it has received, for *deadline* seconds at most; then cut the rest.

        Returns how many were cut.
        """
        self.closing = True
        for channel in list(self._open):
            if channel.idle:
                channel.loseConnection()
            elif channel.requests:
                channel.close_after_answer(channel.requests[-1])
        if self._open:
            self._emptied = Deferred()
            give_up = self._clock.callLater(deadline, self._emptied_by_force)
            await self._emptied
            if not give_up.active():
                cut = len(self._open)
                for channel in list(self._open):
                    channel.abort()
                self._stop_sweeping()
                return cut
            give_up.cancel()
        self._stop_sweeping()
        return 0

    def _emptied_by_force(self) -> None:
        emptied, self._emptied = self._emptied, None
        if emptied is not None:
            emptied.callback(None)

    def _stop_sweeping(self) -> None:
        if self._sweeper.running:
            self._sweeper.stop()


class ProxySite(Site):
    """The factory of connections to one proxy."""

    requestFactory = StreamingRequest

    def __init__(self, resource: IResource, connections: Connections, reactor: Any) -> None:
        super().__init__(resource, timeout=IDLE_SECONDS, parsePOSTFormSubmission=False, reactor=reactor)
        self._connections = connections

    def protocol(self) -> _GenericHTTPChannelProtocol:  # type: ignore[override]
        """A channel of ours inside Twisted's wrapper, which keeps ALPN working."""
        channel = ProxyChannel()
        channel.connections = self._connections
        return _GenericHTTPChannelProtocol(channel)

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: having `h2` importable must not switch HTTP/2 on."""
        return [b"http/1.1"]

    def log(self, request: http.Request) -> None:
        """Requests are logged by the routes, as structured events."""
