"""Content codings of answers (RFC 9110 sections 8.4 and 12.5.3): JSON, XML and the status pages. Frames never come here.

- A stream is compressed while it passes. It is not flushed where its source pauses: readers of JSON need all of it, and
  flushing at every pause of the network costs a tenth in size.
- Levels were measured on the JSON of searches and metadata (one core; MB/s of input, size before over after):
  gzip 1: 305, 5.7; gzip 3: 250, 6.3; gzip 6: 92, 6.9. zstd 1: 1,118, 7.6; zstd 3: 452, 6.3. brotli 1: 727, 6.9;
  brotli 4: 170, 9.1, 11 ms for one piece. So zstd, where there is a library and the client names it, and gzip.

Rules:
- an element of Accept-Encoding that cannot be read counts as absent;
- ``*`` means gzip, never zstd: clients that know zstd name it;
- an answer that goes out in other bytes than the origin's keeps no strong ETag, no digest and no offer of ranges.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request
from werkzeug.http import parse_accept_header

from twistedproxy.server.problems import Headers
from twistedproxy.server.response_body import in_pieces
from twistedproxy.streams import ZSTD_LIBRARY, BytesStream, ByteStream, ChainedStream, hold

GZIP = "gzip"
ZSTD = "zstd"
IDENTITY = "identity"

MIN_SIZE = 1024
"""Bytes; a smaller answer fits into a packet as it is."""

COMPRESSORS: dict[str, Callable[[], Any]] = {
    **({ZSTD: lambda: ZSTD_LIBRARY.ZstdCompressor(level=1)} if ZSTD_LIBRARY else {}),
    GZIP: lambda: zlib.compressobj(3, zlib.DEFLATED, 16 + zlib.MAX_WBITS),
}
"""The codings that there are, the better ones first. A compressor has ``compress`` and ``flush``."""

_ALIASES = {"x-gzip": GZIP}  # RFC 9110 section 8.4.1.3
# True only of the bytes that the origin sent (RFC 9530 section 2 and 3, RFC 9110 section 14.3).
_OF_THE_BYTES = frozenset(b"content-length accept-ranges content-md5 digest content-digest repr-digest".split())


@attrs.frozen
class Choice:
    """*coding*: the best that both sides know, None for none. *required*: the client refuses plain answers."""

    coding: Optional[str] = None
    required: bool = False


def choose(accept_encoding: Optional[bytes], available: Sequence[str] = tuple(COMPRESSORS)) -> Choice:
    """Choose by the client's weights; among equal ones the first of *available*.

    A client that refuses plain answers and takes nothing that there is gets a plain one all the same, as RFC 9110
    section 12.4.1 allows: a viewer can do more with it than with a 406.
    """
    weights = _weights(accept_encoding or b"")
    best = max(available, key=lambda name: _weight(weights, name))
    weight = _weight(weights, best)
    if not weight or weights.get(IDENTITY, 0.0) > weight:
        return Choice()
    return Choice(best, required=weights.get(IDENTITY, weights.get("*")) == 0)


def _weight(weights: dict[str, float], name: str) -> float:
    return weights.get(name, weights.get("*", 0.0) if name == GZIP else 0.0)


def _weights(accept_encoding: bytes) -> dict[str, float]:
    named = parse_accept_header(accept_encoding.decode("latin-1").lower())
    return {_ALIASES.get(name, name): weight for name, weight in named}


def altered(headers: Headers) -> Headers:
    """The headers of an answer whose bytes are no longer the origin's, though they mean the same (RFC 9110 section 8.8.1):
    a strong entity tag becomes a weak one (section 8.8.3.3 wants another strong one)."""
    return tuple(
        (name, b"W/" + value if name.lower() == b"etag" and not value.startswith(b"W/") else value)
        for name, value in headers
        if name.lower() not in _OF_THE_BYTES
    )


def varied(headers: Headers) -> Headers:
    """*headers* with Accept-Encoding in Vary."""
    named = tokens(headers, b"vary")
    return headers if b"*" in named or b"accept-encoding" in named else (*headers, (b"Vary", b"Accept-Encoding"))


def may_transform(headers: Headers) -> bool:
    """Whether an answer may be coded: nothing in Cache-Control forbids it (RFC 9111 section 5.2.2.6)."""
    return b"no-transform" not in tokens(headers, b"cache-control")


def tokens(headers: Headers, field: bytes) -> list[bytes]:
    """The elements of a list field, without regard to letter case; *field* in lower case."""
    return [token.strip().lower() for name, value in headers if name.lower() == field for token in value.split(b",")]


async def compress(
    request: Request, headers: Headers, body: ByteStream, size: Optional[int], clock: IReactorTime
) -> tuple[Headers, ByteStream, bool]:
    """An answer as the client of *request* takes it: its headers, its body, and whether it is compressed; small ones are not.
    *size*: its bytes, where they are known: they decide where the body does not come (HEAD)."""
    choice = _choice(request)
    headers = varied(headers)
    if choice.coding is None:
        return headers, body, False
    if request.method != b"HEAD":
        start, _ = await hold(body, MIN_SIZE)
        body, size = ChainedStream(BytesStream(start), body), len(start)
    if (size or 0) < MIN_SIZE and not choice.required:
        return headers, body, False
    headers = (*altered(headers), (b"Content-Encoding", choice.coding.encode("ascii")))
    return headers, body if request.method == b"HEAD" else compressed(body, choice.coding, clock), True


def not_modified(request: Request, headers: Headers) -> Headers:
    """The headers of a 304, with the entity tag that a 200 would have (RFC 9110 section 15.4.5)."""
    return varied(altered(headers) if _choice(request).coding is not None else headers)


def compressed(body: ByteStream, coding: str, clock: IReactorTime) -> ByteStream:
    """*body*, compressed while it is read."""
    compressor = COMPRESSORS[coding]()
    return in_pieces(body, compressor.compress, compressor.flush, clock)


def _choice(request: Request) -> Choice:
    return choose(b", ".join(request.requestHeaders.getRawHeaders(b"Accept-Encoding", [])))
