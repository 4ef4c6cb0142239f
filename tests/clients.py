"""HTTP clients for tests: one that is careful, one in memory, and one that is as rude as a test wants.

They share no code with the proxy. Bodies are kept whole: tests are small.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Optional, Union

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, PartialDownloadError, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer

from tests.waiting import DEADLINE, within

HeaderMap = Union[Mapping[str, str], Iterable[tuple[str, str]]]


@attrs.frozen
class Part:
    """One part of a multipart body; header names in lower case."""

    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)


@attrs.frozen
class Answer:
    """A whole answer; header names in lower case, repeated ones joined by a comma."""

    status: int
    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)

    def parts(self) -> list[Part]:
        """The parts of a multipart/related body; raises ValueError on any that is not well formed."""
        return split_multipart(self.headers["content-type"], self.body)

    def frames(self) -> list[bytes]:
        """The bodies of the parts, or the body where it is no multipart."""
        if self.headers.get("content-type", "").startswith("multipart/"):
            return [part.body for part in self.parts()]
        return [self.body]

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def split_multipart(content_type: str, body: bytes) -> list[Part]:
    """Parts of *body* by RFC 2046 section 5.1.1, strictly: CRLF, a boundary parameter, nothing around
    the delimiters, a closing one; each Content-Length right. Raises ValueError that says what is wrong."""
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    if not content_type.startswith("multipart/related") or not found:
        raise ValueError(f"no multipart/related with a boundary: {content_type}")
    delimiter = b"--" + found[1].encode()
    if not body.startswith(delimiter + b"\r\n"):
        raise ValueError(f"the body does not start with its delimiter: {body[:80]!r}")
    *pieces, last = (b"\r\n" + body).split(b"\r\n" + delimiter)
    if last not in (b"--", b"--\r\n"):
        raise ValueError(f"no closing delimiter: {last[:80]!r}")
    return [_part(piece) for piece in pieces[1:]]


def _part(piece: bytes) -> Part:
    head, found, body = piece.partition(b"\r\n\r\n")
    if not found or not head.startswith(b"\r\n"):
        raise ValueError(f"a part without a head: {piece[:80]!r}")
    pairs = (line.partition(":") for line in head.decode("latin-1").strip().split("\r\n"))
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if "content-length" in headers and int(headers["content-length"]) != len(body):
        raise ValueError(f"Content-Length {headers['content-length']}, but {len(body)} bytes")
    return Part(headers, body)


class Client:
    """Requests below *url*, by *agent*. Redirects are not followed. Every answer has a deadline. *after*: what is waited for
    after each answer."""

    def __init__(
        self,
        agent: IAgent,
        url: str,
        headers: HeaderMap = (),
        seconds: float = DEADLINE,
        after: Optional[Callable[[], Awaitable[None]]] = None,
    ) -> None:
        self._after = after
        self._agent = agent
        self._url = url
        self._headers = _pairs(headers)
        self._seconds = seconds

    async def request(
        self, method: str, path: str, headers: HeaderMap = (), body: Union[bytes, IBodyProducer, None] = None
    ) -> Answer:
        """One request; *path* begins with a slash and is sent as it is."""
        raw = Headers()
        for name, value in [*self._headers, *_pairs(headers)]:
            raw.addRawHeader(name, value)
        producer = _producer(body) if isinstance(body, bytes) else body
        answer = await within(self._exchange(method, path, raw, producer), self._seconds)
        if self._after is not None:
            await self._after()
        return answer

    async def _exchange(self, method: str, path: str, headers: Headers, body: Optional[IBodyProducer]) -> Answer:
        response = await self._agent.request(method.encode(), (self._url + path).encode(), headers, body)
        try:
            content = await readBody(response)
        except PartialDownloadError as ended:  # framed by the connection's end: there is no telling if that is all
            content = ended.response or b""
        answered = {
            name.decode("latin-1").lower(): ", ".join(value.decode("latin-1") for value in values)
            for name, values in response.headers.getAllRawHeaders()
        }
        # twisted.web's client keeps Content-Length to itself.
        if isinstance(response.length, int):
            answered["content-length"] = str(response.length)
        return Answer(response.code, answered, content)

    async def get(self, path: str, headers: HeaderMap = ()) -> Answer:
        """GET."""
        return await self.request("GET", path, headers)

    async def frames(self, resource: str, numbers: Iterable[int], accept: Optional[str] = None, **more: str) -> Answer:
        """Frames of an instance; *resource* as `tests.slides.Made.resource`, behind the prefix that *url* has."""
        wanted = accept or 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
        path = f"/{resource}/frames/{','.join(map(str, numbers))}"
        return await self.get(path, {"Accept": wanted, **more})


def _producer(body: bytes) -> IBodyProducer:
    return FileBodyProducer(io.BytesIO(body))


def _pairs(headers: HeaderMap) -> list[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else list(headers)


def client(
    test: Any,
    url: str,
    headers: HeaderMap = (),
    persistent: bool = True,
    seconds: float = DEADLINE,
    after: Optional[Callable[[], Awaitable[None]]] = None,
) -> Client:
    """A `Client` over real sockets whose connections end with *test* (a trial test case)."""
    from twisted.internet import reactor

    pool = HTTPConnectionPool(reactor, persistent=persistent)
    pool.maxPersistentPerHost = 256
    pool.retryAutomatically = False
    test.addCleanup(pool.closeCachedConnections)
    return Client(Agent(reactor, pool=pool), url, headers, seconds, after)


class MemoryClient:
    """Requests to a twisted.web resource through real parsers and no socket. `flush` moves bytes after time moved."""

    def __init__(self, resource: Any, url: str = "http://proxy.test", headers: HeaderMap = ()) -> None:
        from treq.testing import RequestTraversalAgent

        self._agent = RequestTraversalAgent(resource)
        self.flush = self._agent.flush
        self._url = url
        self._headers = _pairs(headers)

    def begin(self, method: str, path: str, headers: HeaderMap = (), body: Optional[bytes] = None) -> Deferred[Answer]:
        """Send a request; the answer comes when the resource has given it all."""
        raw = Headers()
        for name, value in [*self._headers, *_pairs(headers)]:
            raw.addRawHeader(name, value)
        producer = _producer_now(body) if body is not None else None
        sent = maybeDeferred(self._agent.request, method.encode(), (self._url + path).encode(), raw, producer)
        answer: Deferred[Answer] = sent.addCallback(self._read)
        self.flush()
        return answer

    def _read(self, response: Any) -> Deferred[Answer]:
        headers = {
            name.decode("latin-1").lower(): ", ".join(value.decode("latin-1") for value in values)
            for name, values in response.headers.getAllRawHeaders()
        }
        body: Deferred[bytes] = readBody(response)
        return body.addCallback(lambda content: Answer(response.code, headers, content))


def _producer_now(body: bytes) -> IBodyProducer:
    from treq.testing import _SynchronousProducer

    producer: IBodyProducer = _SynchronousProducer(body)
    return producer


class RawConnection(Protocol):
    """A TCP connection that sends exactly what it is told. *received* grows; *lost* says that the peer is gone."""

    transport: Any

    def __init__(self) -> None:
        self.received = bytearray()
        self.lost = False
        self._waiting: list[tuple[Any, Deferred[None]]] = []

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1") -> RawConnection:
        """Connect; close it with `close`."""
        from twisted.internet import reactor

        connection = await connectProtocol(TCP4ClientEndpoint(reactor, host, port), cls())
        assert isinstance(connection, RawConnection)
        return connection

    def send(self, data: bytes) -> None:
        """Send *data* as it is."""
        self.transport.write(data)

    async def until(self, marker: bytes, seconds: float = DEADLINE) -> bytes:
        """All that came, once *marker* is in it. Raises EOFError if the connection ended before."""
        await within(self._when(lambda: marker in self.received or self.lost), seconds)
        if marker not in self.received:
            raise EOFError(bytes(self.received[-500:]))
        return bytes(self.received)

    async def end(self, seconds: float = DEADLINE) -> bytes:
        """All that came, once the peer closed the connection."""
        await within(self._when(lambda: self.lost), seconds)
        return bytes(self.received)

    def pause(self) -> None:
        """Read no more: a client that never reads."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        self.transport.resumeProducing()

    async def close(self) -> None:
        """Cut the connection, and return when it is gone."""
        if not self.lost:
            self.transport.resumeProducing()
            self.transport.abortConnection()
            await self.end()

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._look()

    def connectionLost(self, reason: Optional[Failure] = None) -> None:
        self.lost = True
        self._look()

    async def _when(self, condition: Any) -> None:
        if not condition():
            deferred: Deferred[None] = Deferred()
            self._waiting.append((condition, deferred))
            await deferred

    def _look(self) -> None:
        ready = [entry for entry in self._waiting if entry[0]()]
        self._waiting = [entry for entry in self._waiting if entry not in ready]
        for _condition, deferred in ready:
            deferred.callback(None)
