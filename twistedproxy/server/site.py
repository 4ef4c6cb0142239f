"""The HTTP server below the routes: requests whose bodies stream, and the factory of their connections.

- twisted.web hands a request on when its whole body has come. Here it is handed on at the end of its head, and the
  body is pulled from `StreamingRequest.upload`.
- An answer that ends before the request's body did closes the connection, once the rest has come or a moment passed.
- A request that is invalid as HTTP is answered by the routes (`StreamingRequest.refused`), so that it is counted and logged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Optional

from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import _GenericHTTPChannelProtocol
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from twistedproxy.deferreds import Waiters
from twistedproxy.server.channel import ProxyChannel
from twistedproxy.server.connections import Connections
from twistedproxy.server.problems import Problem, shown
from twistedproxy.server.response_body import ClientGone
from twistedproxy.system.tracing import Trace

HIGH_WATER = 256 * 1024
"""High-water mark of the upload buffer, in bytes: beyond it the client is paused."""

PIECE_COST = 64
"""Bytes that a piece costs beside its own: a client may send its body in chunks of one byte."""


class Upload:
    """The body of one request, a `ByteStream` that is pulled by its reader while the client still sends it.

    *length*: its bytes, where they are known. *awaited* is called with True when reading begins, and again when the reader
    has taken what had paused the client; with False when the buffer is full. Once the body is closed, what still comes is
    dropped.
    """

    def __init__(self, length: Optional[int], awaited: Callable[[bool], None]) -> None:
        self.length = length
        self.complete = False
        """Whether all of it came."""
        self.size = 0
        """Bytes that came so far."""
        self._read = 0
        self._awaited = awaited
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._begun = False
        self._paused = False
        self._failure: Optional[Failure] = None
        self._news: Waiters[None] = Waiters()

    @property
    def taken(self) -> bool:
        """Whether all of it came and was read."""
        return self.complete and self._begun and self._read == self.size

    async def read(self) -> bytes:
        """All that has come since the last time. See `ByteStream.read`."""
        if not self._begun or self._paused:
            self._begun = True
            self._let_come()
        if not (self._pieces or self.complete or self._failure is not None):
            await self._news.wait()
        if self._pieces:
            pieces, self._pieces, self._waiting = self._pieces, [], 0
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._read += len(chunk)
            return chunk
        if self._failure is not None:
            self._failure.raiseException()
        return b""

    def close(self) -> None:
        """See `ByteStream.close`. Reading on raises: a body that was not read must not look as if it had ended."""
        self._pieces.clear()
        self._waiting = 0
        if self._paused:
            self._let_come()
        self.failed(Failure(RuntimeError("the body was closed")))

    def received(self, data: bytes) -> None:
        """The next bytes came."""
        self.size += len(data)
        if self._failure is not None:  # closed
            return
        self._pieces.append(data)
        self._waiting += len(data) + PIECE_COST
        if not self._paused and self._waiting >= HIGH_WATER:
            self._paused = True
            self._awaited(False)
        self._news.fire()

    def ended(self) -> None:
        """All bytes have come."""
        self.complete = True
        self._news.fire()

    def failed(self, reason: Failure) -> None:
        """No more will come: the client has gone, or sent what is no body."""
        if not self.complete and self._failure is None:
            self._failure = reason
            self._news.fire()

    def _let_come(self) -> None:
        self._paused = False
        if not self.complete and self._failure is None:
            self._awaited(True)


_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://(?:[^/?#@]*@)?([^/?#@]+)(.*)", re.DOTALL)
_SHOWN = re.compile(rb"\*|/[a-z.]*")  # what Klein may see: no path at all, or that of a page of the proxy's own
_ROUTED_NOWHERE = b"/-"


class StreamingRequest(Request):
    """A request whose body, where it has one, is pulled while it comes."""

    channel: ProxyChannel
    defaultContentType = None
    upload: Optional[Upload] = None
    refused: Optional[Problem] = None
    """Why it is invalid as HTTP: the routes raise it."""
    target: Any = None
    """The DICOMweb resource below a mount: set by the listener's root resource."""
    nowhere: Optional[Problem] = None
    """Why it has no target."""
    cache_outcome: str = ""
    """What the cache did for this request, in one word, for metrics and the log."""
    client_seen: Optional[str] = None
    """The client's address as a trusted proxy reports it."""
    trace: Optional[Trace] = None
    """What names it: set where it is routed."""

    # The head.

    def gotLength(self, length: Optional[int]) -> None:
        super().gotLength(0)
        if length != 0:
            self.upload = Upload(length, self.channel.body_awaited)

    def head_received(self, command: bytes, path: bytes, version: bytes) -> None:
        """Start to work on a request whose body is still to come."""
        super().requestReceived(command, path, version)

    def process(self) -> None:
        """Give the request to the routes, its target in the one form that they know: a path and a query."""
        hosts = self.requestHeaders.getRawHeaders(b"Host", [])
        if self.clientproto == b"HTTP/1.1" and len(hosts) != 1:
            self.refused = Problem(
                400, f"the request has {len(hosts)} Host fields; expected exactly one (RFC 9112 section 3.2)"
            )
        if self.method != self.method.upper():  # methods are case-sensitive (RFC 9110 section 9.1), not to Klein
            self.refused = Problem(400, f"{shown(self.method)} is not a known method; methods are upper case")
        absolute = _ABSOLUTE.fullmatch(self.uri)
        if absolute is not None:
            authority, rest = absolute.groups()
            self.requestHeaders.setRawHeaders(b"Host", [authority])  # RFC 9112 section 3.2.2
            self.uri = rest if rest.startswith(b"/") else b"/" + rest
            self.path = self.uri.partition(b"?")[0]
        elif not self.uri.startswith(b"/") and self.uri != b"*":
            self.refused = Problem(
                400, f"invalid request target {shown(self.uri)}; expected one that starts with a slash"
            )
        if self.refused is not None or not _SHOWN.fullmatch(self.path):
            # Klein would answer in HTML; the routes judge `uri`. Only the proxy's own pages, of one segment, are found
            # by their path: twisted.web need not decode the others.
            self.path = _ROUTED_NOWHERE
        super().process()

    def getRequestHostname(self) -> bytes:
        """Klein asks for the sake of URLs that it could build: it must not stumble over what a client put there."""
        return b"localhost"

    # The body.

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
        if self.finished and self.channel.lingering:
            super()._cleanup()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)  # this cancels the handler
        if self.upload is not None:
            self.upload.failed(Failure(ClientGone()))

    # The answer.

    def write(self, data: bytes) -> None:
        if not self.startedWriting and self._body_is_coming() and not self._disconnected:
            self.channel.close_after_answer(self)
        super().write(data)
        if self.channel is not None:
            self.channel.send_head()

    def _cleanup(self) -> None:
        if self._body_is_coming():
            assert self.upload is not None
            self.upload.close()
            self.channel.linger()
        else:
            self.channel.when_taken(super()._cleanup)

    def _body_is_coming(self) -> bool:
        return self.upload is not None and not self.upload.complete


class ProxySite(Site):
    """The factory of connections to one proxy."""

    requestFactory = StreamingRequest
    noisy = False

    def __init__(self, resource: IResource, connections: Connections, reactor: Any) -> None:
        # No timeout of twisted.web's: `Connections` keeps the deadlines.
        super().__init__(resource, timeout=None, parsePOSTFormSubmission=False, reactor=reactor)
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
