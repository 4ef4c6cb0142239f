"""One HTTP request to one origin, and its answer, as bytes.

Rules that this module keeps:

- The request target goes out byte for byte as it came: no URL library touches it. Redirects are not followed, cookies are
  not kept, no Accept-Encoding is added, TLS certificates are verified.
- Every wait has a deadline: to a connection; from the last byte of the request to the first byte of the answer; between bytes.
- A GET or HEAD whose kept-alive connection turns out to be gone is sent again at once. All else never meets a kept
  connection: it cannot be repeated, so it gets a new one.
- An origin that refuses an upload before it has all of it (401, 413) is heard, and the upload ends.

This uses `HTTP11ClientProtocol` and its pool but not `Agent`, which parses the URL, hides the Connection field and the way
to abort, and cannot tell a kept connection from a new one. What it reads of them is private: `_parser`, `connHeaders`,
`_responseDeferred`; the tests of this module notice when Twisted changes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Optional
from urllib.parse import urlsplit
from weakref import WeakSet

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTCP, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure
from twisted.web import http_headers
from twisted.web._newclient import HTTP11ClientProtocol, Request, RequestNotSent
from twisted.web.client import (
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseNeverReceived,
)
from twisted.web.iweb import UNKNOWN_LENGTH, IPolicyForHTTPS, IResponse

from twistedproxy.origin.errors import OriginError, OriginTimeout, OriginUnreachable
from twistedproxy.origin.http.bodies import AnswerBody, UploadProducer
from twistedproxy.origin.http.headers import end_to_end
from twistedproxy.origin.interface import Headers
from twistedproxy.streams import ByteStream

REPEATABLE = frozenset({b"GET", b"HEAD"})
IDLE_SECONDS = 50.0  # servers commonly drop idle connections after 60 s and more
USER_AGENT = b"twistedproxy"
_VISIBLE = re.compile(rb"\A/[\x21-\x7e]*\Z")


class Answer:
    """Status, headers and body of an answer. *length*: of the body in bytes where the origin said it."""

    def __init__(self, status: int, headers: Headers, body: AnswerBody, length: Optional[int]) -> None:
        self.status = status
        self.headers = headers
        self.body: ByteStream = body
        self.length = length
        self._received = body

    @property
    def framed(self) -> bool:
        """After the body's end: whether its length or its chunks showed that it is whole."""
        return self._received.framed


class Transport:
    """Sends requests to the host of *url*. Timeouts in seconds; *on_bytes* hears ``("in" | "out", bytes)``."""

    def __init__(
        self,
        reactor: Any,
        url: str,
        connect_timeout: float,
        timeout: float,
        stall_timeout: float,
        connections: int,
        policy: Optional[IPolicyForHTTPS] = None,
        on_bytes: Callable[[str, int], None] = lambda direction, count: None,
    ) -> None:
        self._clock: IReactorTime = reactor
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._stall_timeout = stall_timeout
        self._on_bytes = on_bytes
        self._base, self._host, self._endpoint = _where(reactor, url, connect_timeout, policy)
        self._kept = _Pool(reactor, persistent=True)
        self._kept.retryAutomatically = False  # done here, where it is known whether a connection was kept
        self._kept.maxPersistentPerHost = connections
        self._kept.cachedConnectionTimeout = IDLE_SECONDS  # type: ignore[assignment]
        self._new = HTTPConnectionPool(reactor, persistent=False)
        self._used: WeakSet[HTTP11ClientProtocol] = WeakSet()
        self._waiting: set[Deferred[IResponse]] = set()
        self._bodies: set[AnswerBody] = set()

    @property
    def base(self) -> bytes:
        """The path of the origin's URL, raw, without a slash at its end."""
        return self._base

    async def request(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: Optional[ByteStream] = None,
        length: Optional[int] = None,
        deadline: Optional[float] = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Send one request; *target* is path and query below the URL's path, *headers* end-to-end ones without Host.

        *deadline* replaces the timeout to the first byte. *on_end* is called once, when the answer's body has come or was closed; not if this raises.
        """
        target = self._base + target
        if not _VISIBLE.match(target):
            raise ValueError("a request target has visible ASCII characters only")
        fields = http_headers.Headers()
        for name, value in headers:
            fields.addRawHeader(name, value)
        fields.setRawHeaders(b"Host", [self._host])
        if not fields.hasHeader(b"User-Agent"):
            fields.addRawHeader(b"User-Agent", USER_AGENT)
        exchange = _Exchange(self, method, target, fields, deadline or self._timeout, on_end)
        if body is not None:
            return await exchange.send_upload(body, length)
        while True:
            connection = await self.connect(self._kept if method in REPEATABLE else self._new)
            kept = connection in self._used
            self._used.add(connection)
            try:
                return await exchange.send(connection, None)
            except _Dropped as dropped:
                if not kept:
                    raise OriginUnreachable("the origin closed the connection without an answer") from dropped

    async def connect(self, pool: HTTPConnectionPool) -> HTTP11ClientProtocol:
        """A connection that carries no request."""
        waiting = pool.getConnection("origin", self._endpoint)
        error = OriginTimeout(f"no connection to the origin within {self._connect_timeout:g} s")
        waiting.addTimeout(self._connect_timeout, self._clock, onTimeoutCancel=lambda *_: Failure(error))
        try:
            return await waiting
        except (OriginError, CancelledError):
            raise
        except ConnectingCancelledError:
            raise CancelledError() from None
        except ConnectTimeout as timed_out:
            raise error from timed_out
        except Exception as failed:
            raise OriginUnreachable("no connection to the origin") from failed

    async def close(self) -> None:
        """Drop all connections; who still waits for an answer or a body is told."""
        self._kept.closed = True
        for waiting in tuple(self._waiting):
            waiting.cancel()
        for body in tuple(self._bodies):
            body.close()
        await self._kept.closeCachedConnections()


class _Pool(HTTPConnectionPool):
    """Kept connections. One that becomes idle after the end is not kept."""

    closed = False

    def _putConnection(self, key: object, connection: HTTP11ClientProtocol) -> None:
        if self.closed:
            connection.transport.loseConnection()  # type: ignore[union-attr]
        else:
            super()._putConnection(key, connection)


class _Dropped(Exception):
    """The connection ended before the first byte of an answer."""


class _Exchange:
    """One request on one connection. Tried again by its owner on another one only after `_Dropped`."""

    def __init__(
        self,
        owner: Transport,
        method: bytes,
        target: bytes,
        headers: http_headers.Headers,
        timeout: float,
        on_end: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._method = method
        self._target = target
        self._headers = headers
        self._timeout = timeout
        self._on_end = on_end
        self._early = False

    async def send_upload(self, stream: ByteStream, length: Optional[int]) -> Answer:
        owner = self._owner
        try:
            connection = await owner.connect(owner._new)
        except BaseException:
            stream.close()
            raise
        upload = UploadProducer(stream, length, owner._clock, owner._stall_timeout, _count(owner, "out"))
        try:
            return await self.send(connection, upload)
        except Exception as failed:
            if upload.failure is not None:
                raise upload.failure from failed
            if isinstance(failed, _Dropped):
                raise OriginUnreachable("the origin closed the connection during the upload") from failed
            raise

    async def send(self, connection: HTTP11ClientProtocol, upload: Optional[UploadProducer]) -> Answer:
        """The answer, as soon as its headers are there. Raises `_Dropped` if nothing came, else `OriginError`."""
        persistent = upload is None and self._method in REPEATABLE
        request = Request(self._method, self._target, self._headers, upload, persistent=persistent)
        sent = connection.request(request)
        parser = connection._parser
        assert parser is not None
        answered: Deferred[IResponse] = Deferred(lambda _: sent.cancel())
        if upload is not None:
            self._hear_early_refusal(connection, upload, answered)
        sent.addCallbacks(
            lambda response: None if answered.called else answered.callback(response),
            lambda failure: None if answered.called else answered.errback(failure),
        )
        late = OriginTimeout(f"the origin did not answer within {self._timeout:g} s")
        watch = _Watch(self._owner._clock, self._timeout, answered, late)
        if upload is None:
            watch.start()
        else:
            upload.when_sent(watch.start)
        self._owner._waiting.add(answered)
        try:
            response = await answered
        except Exception as failed:
            raise _error(failed, watch.expired) from failed
        finally:
            watch.stop()
            self._owner._waiting.discard(answered)
        return self._answer(connection, response, list(parser.connHeaders.getRawHeaders(b"connection", [])))

    def _hear_early_refusal(
        self, connection: HTTP11ClientProtocol, upload: UploadProducer, answered: Deferred[IResponse]
    ) -> None:
        """Fire *answered* with a refusal that comes while the upload still runs; twisted.web would wait for its end."""

        def heard(response: Optional[IResponse]) -> Optional[IResponse]:
            if response is not None and connection.state == "TRANSMITTING" and response.code >= 300:
                upload.stopProducing()
                self._early = True
                if not answered.called:
                    answered.callback(response)
            return response

        responding = connection._responseDeferred
        if responding is not None:
            responding.addCallback(heard)

    def _ended(self, connection: HTTP11ClientProtocol, body: AnswerBody) -> None:
        if self._early:
            # Half a request was sent: twisted.web would wait for the rest of it before it closes.
            connection.transport.abortConnection()  # type: ignore[union-attr]
        self._owner._bodies.discard(body)
        self._on_end()

    def _answer(self, connection: HTTP11ClientProtocol, response: IResponse, named: list[bytes]) -> Answer:
        body = AnswerBody(
            self._owner._clock,
            self._owner._stall_timeout,
            lambda: self._ended(connection, body),
            connection.transport.abortConnection,  # type: ignore[union-attr]
            _count(self._owner, "in"),
        )
        fields = tuple((name, value) for name, values in response.headers.getAllRawHeaders() for value in values)
        length = None if response.length is UNKNOWN_LENGTH else int(response.length)
        if self._method == b"HEAD":
            said = response.headers.getRawHeaders(b"content-length", [b""])[0]
            length = int(said) if said.isdigit() else None
        elif response.code in (204, 304):
            length = None
        answer = Answer(response.code, end_to_end(fields, named, frozenset({b"content-length"})), body, length)
        self._owner._bodies.add(body)
        response.deliverBody(body)
        return answer


class _Watch:
    """The deadline of one wait: cancels *waiting* and has `expired` set."""

    def __init__(self, clock: IReactorTime, seconds: float, waiting: Deferred[Any], error: OriginTimeout) -> None:
        self._clock = clock
        self._seconds = seconds
        self._waiting = waiting
        self._error = error
        self._call: Any = None
        self.expired: Optional[OriginTimeout] = None

    def start(self) -> None:
        if not self._waiting.called:
            self._call = self._clock.callLater(self._seconds, self._expire)

    def stop(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _expire(self) -> None:
        self.expired = self._error
        self._waiting.cancel()


def _count(owner: Transport, direction: str) -> Callable[[int], None]:
    return lambda count: owner._on_bytes(direction, count)


def _error(failed: Exception, expired: Optional[OriginTimeout]) -> Exception:
    """What a failed request means to callers of this room."""
    if expired is not None:
        return expired
    if isinstance(failed, CancelledError) or _reason(failed, CancelledError):
        return CancelledError()
    if isinstance(failed, (RequestNotSent, RequestTransmissionFailed, ResponseNeverReceived)):
        return _Dropped()
    return OriginUnreachable("the origin's answer is no HTTP, or broke off")


def _reason(failed: Exception, kind: type[Exception]) -> bool:
    return any(reason.check(kind) for reason in getattr(failed, "reasons", ()))


def _where(
    reactor: IReactorTCP, url: str, connect_timeout: float, policy: Optional[IPolicyForHTTPS]
) -> tuple[bytes, bytes, IStreamClientEndpoint]:
    """Raw base path, Host value and endpoint of an origin's URL. Raises ValueError for what is no http(s) URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http or https URL with a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("an origin's URL has no user, query or fragment")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    host = name if port == (443 if secure else 80) else f"{name}:{port}"
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, parts.hostname, port, timeout=connect_timeout)
    if secure:
        creator = (policy or BrowserLikePolicyForHTTPS()).creatorForNetloc(parts.hostname.encode("ascii"), port)
        endpoint = wrapClientTLS(creator, endpoint)
    return parts.path.rstrip("/").encode("ascii"), host.encode("ascii"), endpoint
