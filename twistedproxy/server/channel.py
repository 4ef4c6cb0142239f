"""One HTTP/1.1 connection, with deadlines.

twisted.web restarts its timer at every byte and closes at once after a bad request. Here
- a request with a body is handed on at the end of its head (`head_received`); the reader of the body sets the pace;
- a head, and each 64 kB of a body that is being read, must arrive within `client_timeout` seconds; so must the client
  take each piece of an answer;
- a request ends when the client has taken its answer: a client that pipelines and never reads gets no further one;
- what comes after the answer to a bad or unwanted request is swallowed for a moment: closing at once would reset the
  connection and lose the answer.

This leans on private attributes of `HTTPChannel`; Twisted is pinned below its next major version for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Optional

from twisted.internet.interfaces import ITCPTransport
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from twistedproxy.server.connections import NEVER, Connections
from twistedproxy.server.problems import CONTENT_TYPE, Problem
from twistedproxy.system.fast_write import write_at_once

PROGRESS = 64 * 1024
"""Bytes of a request's body that restart its deadline."""

_REFUSAL = b"HTTP/1.1 %d %s\r\nContent-Type: " + CONTENT_TYPE + b"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"

LENGTH_DIGITS = 18
"""Digits of a Content-Length: enough for any body, and for a number of 64 bits."""


class ProxyChannel(HTTPChannel):
    """One HTTP/1.1 connection."""

    connections: Connections
    read_deadline = NEVER
    """When the client must have sent what is awaited, in the clock's seconds."""
    write_deadline = NEVER
    """When the client must have taken what was written."""
    lingering = False
    """Whether all that still comes is swallowed until the connection ends."""
    _client: Optional[str] = None
    _head = b""
    """The head of an answer, on its way."""
    _head_begun = False
    _body_paused = False
    _continue_due = False
    _progress = 0
    _behind = False
    _when_taken: Optional[Callable[[], None]] = None

    def connectionMade(self) -> None:
        self.read_deadline = self.connections.idle_deadline()
        super().connectionMade()
        self.connections.add(self)
        if self.connections.closing and self.read_deadline <= self.connections.seconds():
            self.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._when_taken = None
        self._note_behind(False)
        super().connectionLost(reason)
        self.connections.discard(self)  # last: `drain` resumes at once, and what requests need may be stopped then

    # What the client sends.

    def dataReceived(self, data: bytes) -> None:
        hot = self.connections.hot
        if hot is not None and self._waits_for_a_request() and hot(self, data):
            self.read_deadline = NEVER
            self.when_taken(self._await_request)
            return
        if not self._head_begun and not self.requests:
            self._head_begun = True
            self.read_deadline = self.connections.deadline()
        super().dataReceived(data)

    def _waits_for_a_request(self) -> bool:
        """Whether nothing is under way on this connection, and nothing keeps it from an answer."""
        transport: Any = self.transport
        return bool(
            self._HTTPChannel__first_line == 1  # type: ignore[attr-defined]
            and self.persistent
            and not (
                self.requests
                or self._buffer
                or self._busyReceiving
                or self._waitingForTransport
                or self.connections.closing
                or transport.disconnecting
            )
        )

    def _await_request(self) -> None:
        self._head_begun = False
        self.read_deadline = self.connections.idle_deadline()

    @property
    def client(self) -> str:
        """The address of the client, for the log. Behind ``haproxy:`` it is known with the first bytes, not before."""
        if self._client is None:
            self._client = getattr(self.getPeer(), "host", None) or "-"
        return self._client

    def allHeadersReceived(self) -> None:
        self._head_begun = True
        self.read_deadline = NEVER
        self._continue_due = False
        super().allHeadersReceived()
        request: Any = self.requests[-1]
        if self.connections.closing:
            self.close_after_answer(request)
        if self.length != 0:
            request.head_received(self._command, self._path, self._version)

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Whether the connection may stay open: twisted.web does not see ``close`` in a list (RFC 9110 section 7.6.1)."""
        fields = request.requestHeaders.getRawHeaders(b"Connection", [])
        if any(token.strip().lower() == b"close" for field in fields for token in field.split(b",")):
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            return False
        return version == b"HTTP/1.1"

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        """Whether a request may go on that has this field (RFC 9112 section 6).

        twisted.web takes ``identity``, which is no transfer coding any more and which others read as they like, and
        stumbles over a length of thousands of digits.
        """
        unknown = header == b"Transfer-Encoding" and data.lower() != b"chunked"
        if unknown or (header == b"Content-Length" and len(data) > LENGTH_DIGITS):
            self._respondToBadRequestAndDisconnect()
            self.length = None
            return False
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def _send100Continue(self) -> None:
        """Only when the body is read: a refusal spares the client the sending."""
        self._continue_due = True

    def body_awaited(self, awaited: bool) -> None:
        """Whether the body is being read, or the client must wait."""
        self._body_paused = not awaited
        self._progress = 0
        self.read_deadline = self.connections.deadline() if awaited else NEVER
        if not awaited:
            self._networkProducer.pauseProducing()
            return
        self._networkProducer.resumeProducing()
        if self._continue_due:
            self._continue_due = False
            if not self.requests[-1].startedWriting:
                super()._send100Continue()

    def body_progressed(self, size: int) -> None:
        """*size* bytes of a body came."""
        self._progress += size
        if self._progress >= PROGRESS and self.read_deadline != NEVER and not self.lingering:
            self._progress = 0
            self.read_deadline = self.connections.deadline()

    def allContentReceived(self) -> None:
        self.read_deadline = NEVER
        if self._body_paused:
            self._body_paused = False
            self._networkProducer.resumeProducing()  # else a client that leaves would not be noticed
        super().allContentReceived()

    # What the client takes.

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Hold the head back: the first bytes of the body go out with it in one packet. See `send_head`."""
        lines = [b"%s: %s\r\n" % (name, value) for name, values in headers.getAllRawHeaders() for value in values]
        self._head = b"%s %s %s\r\n%s\r\n" % (version, code, reason, b"".join(lines))

    def write(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if head:
            write_at_once(self.transport, head, data)
        else:
            super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def send_head(self) -> None:
        """Send a head that nothing was written behind."""
        if self._head:
            self.write(b"")

    def _note_behind(self, behind: bool) -> None:
        if behind != self._behind:
            self._behind = behind
            self.connections.behind(behind)

    def pauseProducing(self) -> None:
        self._note_behind(True)
        if self.write_deadline == NEVER:
            self.write_deadline = self.connections.deadline()
        super().pauseProducing()
        if self.length != 0 and not self._body_paused:
            self._networkProducer.resumeProducing()  # a body has its own pace; its client may read when all is sent

    def resumeProducing(self) -> None:
        self._note_behind(False)
        self.write_deadline = NEVER
        super().resumeProducing()
        if self._body_paused:
            self._networkProducer.pauseProducing()
        when_taken, self._when_taken = self._when_taken, None
        if when_taken is not None:
            when_taken()

    def when_taken(self, done: Callable[[], None]) -> None:
        """Call *done* once the client has taken what was written, at once if that is so already."""
        if self._waitingForTransport:
            self._when_taken = done
        else:
            done()

    def requestDone(self, request: Request) -> None:
        self._await_request()
        super().requestDone(request)

    # What is no request.

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(Problem(431, f"a line of the request's head is longer than {self.MAX_LENGTH} bytes"))

    def _respondToBadRequestAndDisconnect(self) -> None:
        upload = getattr(self.requests[-1], "upload", None) if self.requests else None
        if upload is not None:
            upload.failed(Failure(Problem(400, "the request's body is not well-formed")))
            self._swallow()
        elif self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders:
            limits = f"{self.totalHeadersSize} bytes or {self.maxHeaders} fields"
            self._refuse(Problem(431, f"the request's head has more than {limits}"))
        else:
            self._refuse(Problem(400, "the request is not well-formed HTTP/1.1"))

    def _refuse(self, problem: Problem) -> None:
        if self.lingering:
            return
        body = problem.to_json()
        reason = http.RESPONSES.get(problem.status) or problem.title.encode("ascii")
        self.write(_REFUSAL % (problem.status, reason, len(body), body))
        self._swallow()
        self.linger()

    def _swallow(self) -> None:
        self.dataReceived = self.lineReceived = _ignore  # type: ignore[method-assign, assignment]

    # The end.

    def linger(self) -> None:
        """Send what is written and then the end of it, and swallow what still comes for a moment."""
        self.lingering = True
        self.persistent = False
        self.read_deadline = self.connections.linger_deadline()
        transport: Any = self.transport
        self._networkProducer.resumeProducing()
        transport.unregisterProducer()
        if ITCPTransport.providedBy(transport) and not self.isSecure():  # TLS knows no half-closed connection
            transport.loseWriteConnection()

    def close_after_answer(self, request: Request) -> None:
        """End the connection once *request* is answered."""
        self.persistent = False
        if not request.startedWriting:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])

    def close_soon(self, idle: bool) -> None:
        """End once what has been received is answered. *idle*: but if a client may believe that it can send another request,
        after that one or at `idle_deadline`."""
        if self.requests:
            if not (idle and self.requests[-1].startedWriting):  # else its client expects the connection to stay open
                self.close_after_answer(self.requests[-1])
        elif not (self._head_begun or self._buffer):
            if idle:
                self.read_deadline = min(self.read_deadline, self.connections.idle_deadline())
            else:
                self.loseConnection()

    def loseConnection(self) -> None:
        self.persistent = False
        self.read_deadline = NEVER
        self.write_deadline = self.connections.deadline()
        self._swallow()
        super().loseConnection()

    def abort(self) -> None:
        """End now, whatever is still to be sent."""
        transport: Any = self.transport
        self.persistent = False
        self._swallow()
        transport.abortConnection()

    def expired(self, now: float) -> None:
        """A deadline has passed."""
        if self.write_deadline >= now and not (self._behind or self.requests or self._head_begun):
            self.loseConnection()  # idle
        else:
            self.abort()  # a client too slow to send a head reads no last answer


def _ignore(_data: bytes) -> None:
    """Drop what comes."""
