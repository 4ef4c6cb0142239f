"""Content codings (RFC 9110 sections 8.4 and 12.5.3): which one a client takes, and what becomes of an answer's headers.

Rules kept here:
- an element of Accept-Encoding that cannot be read counts as absent;
- ``*`` stands for gzip, never for zstd: who knows the latter names it;
- an answer that goes out in other bytes than the origin's keeps no strong ETag, no digest and no offer of ranges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Optional

import attrs

from twistedproxy.origin.interface import Headers

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
