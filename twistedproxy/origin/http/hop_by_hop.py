"""What messages lose on their way: header fields of one hop, and content codings that were not asked for.

Rules that this module keeps:

- Field names are compared in lower case (RFC 9110 section 5.1). Fields that concern one connection only, and those that
  a ``Connection`` field names, are never handed on (RFC 9110 section 7.6.1).
- Web servers of ready-made files compress also what was asked for without a coding. `decoded` is the only place where
  the codings of a store's answers are undone: for the proxy's own requests, and for answers that are rewritten on their way.
- All codings are undone, in one field or several, the last one first (RFC 9110 section 8.4); so are all members of a
  gzip body (RFC 1952 section 2.2) and all frames of a zstd body (RFC 8878 section 3). Unknown codings are refused.
- A coded body that ends before its own end mark is no whole body. After the end mark nothing may follow but another
  member, or zeros after a gzip member, with which some writers pad.
- A read never makes more than `MAX_STEP` bytes, whatever the body claims: memory stays flat.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

import attrs

from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.interface import Headers, OriginResponse
from twistedproxy.streams import ZSTD_LIBRARY, ByteStream, YieldedStream

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Set from the length of the body and from the origin's URL; an Expect was answered when the request was read.
MADE_ANEW = frozenset({b"content-length", b"host", b"expect"})
MAX_STEP = 256 * 1024  # bytes that one `read` gives
MAX_CODINGS = 3  # of one answer; no server means to apply more than one
ZSTD_WINDOW_LOG = 23  # RFC 9659: as a content coding, zstd has windows of at most 8 MB
_ENCODING = frozenset({b"content-encoding"})


def end_to_end(headers: Headers, connection: Iterable[bytes] = (), also: frozenset[bytes] = frozenset()) -> Headers:
    """*headers* without those of the hop, those that the *connection* values or a Connection field name, and *also*."""
    values = [*connection, *(value for key, value in headers if key.lower() == b"connection")]
    named = {token.strip().lower() for value in values for token in value.split(b",")}
    return without(headers, HOP_BY_HOP | named | also)


def without(headers: Headers, names: frozenset[bytes]) -> Headers:
    """*headers* without the fields *names* (lower case)."""
    return tuple((key, value) for key, value in headers if key.lower() not in names)


class _Decompressor(Protocol):
    """What `zlib` and the zstd libraries have in common."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip(head: bytes) -> Any:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def _deflate(head: bytes) -> Any:
    """With zlib's header, as RFC 9110 section 8.4.1.2 requires, or without, as some servers send it. A bare deflate body
    begins like that header only with a block of no use."""
    zlib_header = len(head) >= 2 and head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2], "big") % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)


def _zstd(head: bytes) -> Any:
    options = {ZSTD_LIBRARY.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
    return ZSTD_LIBRARY.ZstdDecompressor(options=options)


_DECOMPRESSORS: dict[bytes, Callable[[bytes], _Decompressor]] = {
    b"gzip": _gzip,
    b"x-gzip": _gzip,
    b"deflate": _deflate,
    **({b"zstd": _zstd} if ZSTD_LIBRARY else {}),
}
_ERRORS: tuple[type[Exception], ...] = (zlib.error, *((ZSTD_LIBRARY.ZstdError,) if ZSTD_LIBRARY else ()))


def decoded(answer: OriginResponse) -> OriginResponse:
    """*answer* without the content codings that its headers name.

    Raises `OriginBadAnswer`, and closes the body, for a coding that cannot be undone.
    """
    names = codings(answer.headers)
    if not names:
        return answer
    body = answer.body
    if len(names) > MAX_CODINGS or not _DECOMPRESSORS.keys() >= set(names):
        body.close()
        came = b", ".join(names)[:80].decode("latin-1")
        known = ", ".join(name.decode("ascii") for name in _DECOMPRESSORS)
        raise OriginBadAnswer(f"the origin's response has the content coding {came!r}; supported: {known}")
    for name in reversed(names):
        body = YieldedStream(_decompressed(body, name), body)
    return attrs.evolve(answer, body=body, headers=without(answer.headers, _ENCODING), length=None)


def codings(headers: Headers) -> list[bytes]:
    """The content codings in the order in which they were applied, lower case; none for identity."""
    values = b",".join(value for name, value in headers if name.lower() in _ENCODING)
    return [name for value in values.split(b",") if (name := value.strip().lower()) not in (b"", b"identity")]


async def _decompressed(body: ByteStream, coding: bytes) -> AsyncIterator[bytes]:
    """What *body* holds, without *coding*."""
    wrong = f"the origin's response cannot be decoded as {coding.decode()}"
    rest = padding = b""
    while True:
        while len(rest := rest.lstrip(padding)) < 2 and (chunk := await body.read()):
            rest += chunk
        if not rest:
            return
        member = _DECOMPRESSORS[coding](rest)
        more = False  # whether it may have more without another byte
        while not member.eof:
            if not rest and not more and not (rest := await body.read()):
                raise OriginBadAnswer(f"the origin's {coding.decode()} response ended too early")
            try:
                data = member.decompress(rest, MAX_STEP)
            except _ERRORS as bad:
                raise OriginBadAnswer(wrong) from bad
            more = len(data) == MAX_STEP
            rest = getattr(member, "unconsumed_tail", b"")  # the zstd libraries keep it
            if data:
                yield data
        rest = member.unused_data
        padding = b"\0" if coding.endswith(b"gzip") else b""
        if coding == b"deflate" and (rest or await body.read()):
            raise OriginBadAnswer(wrong)
