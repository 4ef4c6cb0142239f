"""Compression of answers that describe instances, and of the status pages. Frames never come here.

- A stream is compressed while it passes, in pieces with a turn of the reactor between them; a few hundred kB each.
- A source that pauses makes what it gave so far go out: nothing waits for the compressor to have enough.
- Levels were measured on the JSON of searches and metadata (one core; MB/s of input, size before over after):
  gzip 1: 305, 5.7; gzip 3: 250, 6.3; gzip 6: 92, 6.9. zstd 1: 1,118, 7.6; zstd 3: 452, 6.3. brotli 1: 727, 6.9;
  brotli 4: 170, 9.1, 11 ms for one piece. So zstd, where there is a library and the client names it, and gzip.

Content codings (RFC 9110 sections 8.4 and 12.5.3): which one a client takes, and what becomes of an answer's headers.

Rules kept here:
- an element of Accept-Encoding that cannot be read counts as absent;
- ``*`` stands for gzip, never for zstd: who knows the latter names it;
- an answer that goes out in other bytes than the origin's keeps no strong ETag, no digest and no offer of ranges.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Optional, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.server import Request

from twistedproxy.dicomweb.metadata_answers import form_of
from twistedproxy.origin.http.headers import ZSTD_LIBRARY
from twistedproxy.origin.interface import Headers, OriginResponse
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream, hold

GZIP = "gzip"
ZSTD = "zstd"
IDENTITY = "identity"

_ALIASES = {"x-gzip": GZIP}  # RFC 9110 section 8.4.1.3
_QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.ASCII)  # RFC 9110 section 12.4.2
# True only of the bytes that the origin sent (RFC 9530 section 2 and 3, RFC 9110 section 14.3).
_OF_THE_BYTES = frozenset({b"content-length", b"accept-ranges", b"content-md5", b"digest", b"content-digest"})
_REPRESENTATION_DIGEST = b"repr-digest"


@attrs.frozen
class Choice:
    """*coding*: the best that both sides know, None for none. *required*: the client refuses plain answers."""

    coding: Optional[str] = None
    required: bool = False


def choose(accept_encoding: Optional[bytes], available: Sequence[str]) -> Choice:
    """Choose by the client's weights; among equal ones the first of *available*.

    A client that refuses plain answers and takes nothing that there is gets a plain one all the same, as RFC 9110
    section 12.4.1 allows: a viewer can do more with it than with a 406.
    """
    weights = _weights(accept_encoding or b"")
    plain = weights.get(IDENTITY, weights.get("*"))
    best = max(available, key=lambda name: _weight(weights, name), default=None)
    weight = _weight(weights, best) if best is not None else 0.0
    if not weight or (IDENTITY in weights and weights[IDENTITY] > weight):
        return Choice()
    return Choice(best, required=plain == 0)


def _weight(weights: dict[str, float], name: str) -> float:
    return weights.get(name, weights.get("*", 0.0) if name == GZIP else 0.0)


def _weights(accept_encoding: bytes) -> dict[str, float]:
    weights: dict[str, float] = {}
    for element in accept_encoding.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        quality = 1.0
        if parameters:
            match = _QUALITY.fullmatch(parameters[0])
            if match is None:
                continue
            quality = float(match[1])
        weights[_ALIASES.get(name, name)] = quality
    return weights


def altered(headers: Headers) -> Headers:
    """The headers of an answer whose bytes are no longer the origin's, though they say the same (RFC 9110 section 8.8.1)."""
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower not in _OF_THE_BYTES and lower != _REPRESENTATION_DIGEST:
            kept.append((name, weakened(value) if lower == b"etag" else value))
    return tuple(kept)


def weakened(etag: bytes) -> bytes:
    """A weak entity tag for what is equivalent to that of *etag* (RFC 9110 section 8.8.3.3 wants another strong one)."""
    return etag if etag.startswith(b"W/") else b"W/" + etag


def varied(headers: Headers) -> Headers:
    """*headers* with Accept-Encoding in Vary."""
    told = [token.strip().lower() for name, value in headers if name.lower() == b"vary" for token in value.split(b",")]
    return headers if b"*" in told or b"accept-encoding" in told else (*headers, (b"Vary", b"Accept-Encoding"))


def may_transform(headers: Headers) -> bool:
    """Whether an answer may be coded: nothing in Cache-Control forbids it (RFC 9111 section 5.2.2.6)."""
    directives = b",".join(value for name, value in headers if name.lower() == b"cache-control").lower().split(b",")
    return b"no-transform" not in map(bytes.strip, directives)


MIN_SIZE = 1024
"""Bytes; a smaller answer fits into a packet as it is."""

PIECE = 64 << 10
"""Bytes compressed between two turns of the reactor: a quarter of a millisecond with gzip."""

FLUSH_SECONDS = 0.05
"""How long what was compressed waits for more of it. Flushing each time the network pauses would cost a tenth in size."""

GZIP_LEVEL = 3
ZSTD_LEVEL = 1


class Coder(Protocol):
    """One stream's compressor."""

    def encode(self, data: bytes) -> bytes:
        """What comes out, perhaps nothing yet."""

    def flush(self) -> bytes:
        """All that went in and has not come out, so that it can be read."""

    def end(self) -> bytes:
        """The rest, with the end of the stream."""


class _Gzip:
    def __init__(self) -> None:
        self._compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self.encode = self._compressor.compress
        self.end = self._compressor.flush

    def flush(self) -> bytes:
        return self._compressor.flush(zlib.Z_SYNC_FLUSH)


class _Zstd:
    def __init__(self) -> None:
        self._compressor = _zstd.ZstdCompressor(level=ZSTD_LEVEL)
        self.encode = self._compressor.compress
        self.end = self._compressor.flush

    def flush(self) -> bytes:
        flushed: bytes = self._compressor.flush(self._compressor.FLUSH_BLOCK)
        return flushed


_zstd = ZSTD_LIBRARY
_CODERS: dict[str, type[_Gzip] | type[_Zstd]] = {**({ZSTD: _Zstd} if _zstd else {}), GZIP: _Gzip}
AVAILABLE = tuple(_CODERS)
"""The codings that there are, the better ones first."""


def coder(coding: str) -> Coder:
    """A new compressor."""
    return _CODERS[coding]()


class CompressedStream:
    """A `ByteStream` of another one's bytes, compressed."""

    def __init__(self, source: ByteStream, made: Coder, clock: IReactorTime) -> None:
        self._source = source
        self._coder = made
        self._clock = clock
        self._chunk = memoryview(b"")  # of it, what is still to be compressed
        self._held = False  # whether the compressor may have something that was not sent on
        self._reading: Optional[Deferred[bytes]] = None
        self._came: bytes | Failure | None = None  # what the source gave, until it is wanted
        self._waiter: Optional[Deferred[None]] = None
        self._ended = False

    async def read(self) -> bytes:
        while not self._ended:
            if not self._chunk:
                chunk = await self._next()
                if chunk is None:
                    self._held = False
                    return self._coder.flush()
                if not chunk:
                    self._ended = True
                    return self._coder.end()
                self._chunk = memoryview(chunk)
            if out := await self._some():
                return out
        return b""

    async def _some(self) -> bytes:
        """What the next piece gives."""
        piece, self._chunk = self._chunk[:PIECE], self._chunk[PIECE:]
        out = self._coder.encode(piece)  # type: ignore[arg-type] # any buffer will do
        self._held = True
        if len(piece) == PIECE:
            await deferLater(self._clock, 0)
        return out

    async def _next(self) -> Optional[bytes]:
        """The next chunk, empty at the end; None where it takes its time and something is held back meanwhile."""
        if self._came is None and self._reading is None:
            self._reading = Deferred.fromCoroutine(self._source.read())
            self._reading.addBoth(self._take)
        if self._came is None:
            await self._moment()
        came, self._came = self._came, None
        if isinstance(came, Failure):
            came.raiseException()
        return came

    async def _moment(self) -> None:
        """Return when the chunk has come, or what is held has waited long enough."""
        self._waiter = Deferred()
        timer = self._clock.callLater(FLUSH_SECONDS, self._wake) if self._held else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None and timer.active():
                timer.cancel()

    def _take(self, came: bytes | Failure) -> None:
        self._came, self._reading = came, None
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def close(self) -> None:
        self._ended = True
        if self._reading is not None:
            self._reading.cancel()
        self._source.close()


async def compress(
    response: OriginResponse, request: Request, size: Optional[int], clock: IReactorTime
) -> OriginResponse:
    """A describing *response* as the client of *request* takes it. *size*: of its body, about, if that is known.

    Left alone: what is small, has a coding or is part of something (206), and what must not be transformed.
    """
    if response.status == 304:
        return _not_modified(response, request)
    if response.status in (204, 206) or form_of(response.headers) is None or not may_transform(response.headers):
        return response
    choice = choose(_accept_encoding(request), AVAILABLE)
    response = attrs.evolve(response, headers=varied(response.headers))
    if choice.coding is None:
        return response
    if size is None:
        if request.method == b"HEAD":  # there is no telling: RFC 9110 section 9.3.2 allows to leave it out
            return response
        start, whole = await hold(response.body, MIN_SIZE)
        response = attrs.evolve(response, body=ChainedStream(BytesStream(start), response.body))
        size = len(start) if whole else MIN_SIZE
    if size < MIN_SIZE and not choice.required:
        return response
    headers = (*altered(response.headers), (b"Content-Encoding", choice.coding.encode("ascii")))
    body = response.body
    if request.method != b"HEAD":
        body = CompressedStream(body, coder(choice.coding), clock)
    return attrs.evolve(response, headers=headers, body=body, length=None)


def _not_modified(response: OriginResponse, request: Request) -> OriginResponse:
    """With the tag that a 200 would have (RFC 9110 section 15.4.5)."""
    coded = choose(_accept_encoding(request), AVAILABLE).coding is not None
    return attrs.evolve(response, headers=varied(altered(response.headers) if coded else response.headers))


def compressed_page(request: Request, body: bytes, clock: IReactorTime) -> Optional[ByteStream]:
    """*body*, a page of the proxy's own, as the client of *request* takes it, with the headers for that;
    None where it goes as it is."""
    request.responseHeaders.addRawHeader(b"Vary", b"Accept-Encoding")
    choice = choose(_accept_encoding(request), AVAILABLE)
    if choice.coding is None or (len(body) < MIN_SIZE and not choice.required):
        return None
    request.responseHeaders.setRawHeaders(b"Content-Encoding", [choice.coding.encode("ascii")])
    return CompressedStream(BytesStream(body), coder(choice.coding), clock)


def _accept_encoding(request: Request) -> Optional[bytes]:
    values = request.requestHeaders.getRawHeaders(b"Accept-Encoding")
    return b", ".join(values) if values else None
