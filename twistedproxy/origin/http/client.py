"""One HTTP request to one origin, and its answer, as bytes.

Rules that this module keeps:

- The request target goes out byte for byte as it came: no URL library touches it. Redirects are not followed, cookies are
  not kept, no Accept-Encoding is added, TLS certificates are verified.
- Every wait has a deadline: to a connection; from the last byte of the request to the first byte of the answer; between bytes.
- A GET or HEAD whose kept-alive connection turns out to be gone is sent again at once. All else never meets a kept
  connection: it cannot be repeated, so it gets a new one.
- The refusal of an origin that does not have all of an upload yet (401, 413) is its answer, and the upload ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Optional
from urllib.parse import SplitResult, urlsplit
from weakref import WeakSet

from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTCP, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure
from twisted.web import http_headers
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.client import BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.iweb import IPolicyForHTTPS

from twistedproxy.origin.errors import OriginTimeout, OriginUnreachable
from twistedproxy.origin.http.exchange import Dropped, Exchange
from twistedproxy.origin.http.uploads import Running, UploadProducer
from twistedproxy.origin.interface import OriginRequest, OriginResponse
from twistedproxy.system.outages import Outage, Verified, reason_of
from twistedproxy.system.tracing import current_trace

IDLE_SECONDS = 50.0  # servers commonly drop idle connections after 60 s and more
USER_AGENT = b"twistedproxy"
DEFAULT_PORTS = {"http": 80, "https": 443}
_TARGET = re.compile(rb"\A/[\x21\x22\x24-\x7e]*\Z")  # visible ASCII, without a fragment (RFC 9112 section 3.2)
_TOKEN = re.compile(rb"\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2


class InvalidRequest(ValueError):
    """A request that HTTP cannot carry."""


class Transport:
    """Sends requests to the host of *url*. Timeouts in seconds; *on_bytes* is called with ``("in" | "out", bytes)``.
    *outage* is told whether there are connections, and logs it."""

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
        outage: Optional[Outage] = None,
    ) -> None:
        self._clock: IReactorTime = reactor
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._running = Running(reactor, stall_timeout, on_bytes)
        self._base, self._host, self._endpoint = _where(reactor, url, connect_timeout, policy)
        self._kept = _Pool(reactor, persistent=True)
        self._kept.retryAutomatically = False  # done here, where it is known whether a connection was kept
        self._kept.maxPersistentPerHost = connections
        self._kept.cachedConnectionTimeout = IDLE_SECONDS  # type: ignore[assignment]
        self._new = HTTPConnectionPool(reactor, persistent=False)
        self._used: WeakSet[HTTP11ClientProtocol] = WeakSet()
        self._outage = outage or Outage(f"the origin {url}", reactor.seconds)
        self.found_something = False
        """Whether there was an answer other than 404."""

    async def request(
        self,
        asked: OriginRequest,
        deadline: Optional[float] = None,
        on_end: Callable[[], None] = lambda: None,
        on_connected: Callable[[], None] = lambda: None,
    ) -> OriginResponse:
        """Send one request, with the host's own Host.

        *deadline* replaces the timeout to the first byte. *on_end* is called once, when the answer's body has come or was closed; not
        if this raises. *on_connected* is called each time there is a connection for it. Raises `InvalidRequest` before anything is
        sent, `OriginError` afterwards, or what reading the body raised.
        """
        target = self._base + asked.path + (b"?" + asked.query if asked.query else b"")
        if not _TARGET.match(target):
            raise InvalidRequest("a request target must be visible ASCII without a fragment")
        if not _TOKEN.match(asked.method):
            raise InvalidRequest("a request method must be a token")
        fields = http_headers.Headers()
        for name, value in asked.headers:
            fields.addRawHeader(name, value)
        if (trace := current_trace.get()) is not None:
            trace.name(fields)
        fields.setRawHeaders(b"Host", [self._host])
        if not fields.hasHeader(b"User-Agent"):
            fields.addRawHeader(b"User-Agent", USER_AGENT)
        body = asked.body
        upload = UploadProducer(body, asked.length, self._running) if body is not None else None
        request = Request(asked.method, target, fields, upload, persistent=asked.is_repeatable)
        while True:
            try:
                connection = await self._connect(self._kept if asked.is_repeatable else self._new)
            except BaseException:
                if body is not None:
                    body.close()
                raise
            kept = connection in self._used
            self._used.add(connection)
            on_connected()
            try:
                answer = await Exchange(self._running, connection, request, deadline or self._timeout, on_end).run()
            except Exception as failed:
                if upload is not None and upload.failure is not None:
                    raise upload.failure from failed
                if not isinstance(failed, Dropped):
                    raise
                if kept:
                    continue
                if reason := str(failed):
                    self._outage.failed("", reason)
                    raise OriginUnreachable(f"no TLS connection to the origin: {reason}") from failed
                when = "without an answer" if upload is None else "during the upload"
                raise OriginUnreachable(f"the origin closed the connection {when}") from failed
            self._outage.worked("")
            self.found_something |= answer.status != 404
            return answer

    async def _connect(self, pool: HTTPConnectionPool) -> HTTP11ClientProtocol:
        """A connection that carries no request."""
        waiting = pool.getConnection("origin", self._endpoint)
        error = OriginTimeout(f"no connection to the origin within {self._connect_timeout:g} s")
        waiting.addTimeout(self._connect_timeout, self._clock, onTimeoutCancel=lambda *_: Failure(error))
        try:
            return await waiting
        except CancelledError:
            raise
        except ConnectingCancelledError:
            raise CancelledError() from None
        except (OriginTimeout, ConnectTimeout) as timed_out:
            self._outage.failed("", "timed out")
            raise error from timed_out
        except Exception as failed:
            reason = reason_of(failed)
            self._outage.failed("", reason)
            raise OriginUnreachable(f"no connection to the origin: {reason}") from failed

    async def close(self) -> None:
        """Drop all connections: what still waits for an answer or a body fails."""
        self._kept.closed = True
        self._running.stop()
        await self._kept.closeCachedConnections()


class _Pool(HTTPConnectionPool):
    """Kept connections. One that becomes idle after the end is not kept."""

    closed = False

    def _putConnection(self, key: object, connection: HTTP11ClientProtocol) -> None:
        if self.closed:
            connection.transport.loseConnection()  # type: ignore[union-attr]
        else:
            super()._putConnection(key, connection)


def normal_url(url: str) -> str:
    """*url*, of an origin, as others may write it too: scheme and host in lower case, no default port, no slash at its
    end (RFC 3986 section 6.2). Raises ValueError for anything but an http(s) URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{_host(parts)}{parts.path.rstrip('/')}"


def _host(parts: SplitResult) -> str:
    """The value of Host for a URL of *parts*. Raises ValueError for anything but an http(s) URL of a host."""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{parts.geturl()!r} is not an http or https URL with a host")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return name if parts.port in (None, DEFAULT_PORTS[parts.scheme]) else f"{name}:{parts.port}"


def _where(
    reactor: IReactorTCP, url: str, connect_timeout: float, policy: Optional[IPolicyForHTTPS]
) -> tuple[bytes, bytes, IStreamClientEndpoint]:
    """Raw base path, Host value and endpoint of an origin's URL. Raises ValueError for anything but an http(s) URL."""
    parts = urlsplit(url)
    host = _host(parts)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("an origin's URL must not have a user, query or fragment")
    secure = parts.scheme == "https"
    assert parts.hostname is not None
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, parts.hostname, port, timeout=connect_timeout)
    if secure:
        creator = (policy or BrowserLikePolicyForHTTPS()).creatorForNetloc(parts.hostname.encode("ascii"), port)
        endpoint = wrapClientTLS(Verified(creator, parts.hostname), endpoint)
    return parts.path.rstrip("/").encode("ascii"), host.encode("ascii"), endpoint
