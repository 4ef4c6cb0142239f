"""From a request's headers and query to a `Caller`: who asks, without keeping what proves it.

Two requests belong to one caller when all headers and query parameters that the origin may judge by are the same. Those
travel to the origin with the request that they came with; what is compared, kept and logged is a keyed digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Optional
from urllib.parse import unquote_to_bytes

import attrs

from twistedproxy.origin.interface import Caller

CREDENTIAL_SIZE = 16  # bytes; a keyed 128-bit digest cannot be guessed or made to collide

RawHeaders = Callable[[bytes], Optional[Sequence[bytes]]]
"""Gives all values of a header, like ``request.requestHeaders.getRawHeaders``."""


@attrs.frozen
class Credentials:
    """Tells callers apart by the *headers*, *cookies* (none named: all of them) and query *parameters* that identify them."""

    secret: bytes = attrs.field(repr=False)
    headers: tuple[bytes, ...] = (b"Authorization",)
    cookies: tuple[bytes, ...] = ()
    parameters: tuple[bytes, ...] = (b"access_token",)

    def caller(self, raw_headers: RawHeaders, query: bytes = b"", address: str = "") -> Caller:
        """The caller of the request whose headers *raw_headers* gives, and that came from *address*; *query*: the raw one, or
        what of it identifies."""
        identifying = [(name, value) for name in self.headers for value in raw_headers(name) or ()]
        if cookie := self._cookie(raw_headers(b"Cookie") or ()):
            identifying.append((b"Cookie", cookie))
        _, token = self.split(query)
        digest = hashlib.blake2b(key=self.secret, digest_size=CREDENTIAL_SIZE, person=b"credential")
        for name, value in identifying:
            digest.update(b"%d:%s%d:%s" % (len(name), name, len(value), value))
        if token:
            digest.update(b"?%d:%s" % (len(token), token))
        return Caller(digest.digest(), tuple(identifying), token, address)

    def split(self, query: bytes) -> tuple[bytes, bytes]:
        """A raw *query* less the fields that identify a caller, and those fields. Some stores do not mind letter case."""
        if not query or not self.parameters:
            return query, b""
        names = {name.lower() for name in self.parameters}
        fields = [(field, unquote_to_bytes(field.partition(b"=")[0]).lower() in names) for field in query.split(b"&")]
        token = b"&".join([field for field, identifies in fields if identifies])
        return (b"&".join([field for field, identifies in fields if not identifies]) if token else query), token

    def are_all(self, names: Iterable[bytes]) -> bool:
        """Whether *names* of headers are among those that make a caller. Unnamed cookies count too: who names
        cookies says that the others decide nothing."""
        identifying = {b"cookie", *(header.lower() for header in self.headers)}
        return all(name.lower() in identifying for name in names)

    def _cookie(self, values: Iterable[bytes]) -> bytes:
        if not self.cookies:
            return b"; ".join(values)
        pairs = (pair.strip() for value in values for pair in value.split(b";"))
        return b"; ".join(pair for pair in pairs if pair.partition(b"=")[0].strip() in self.cookies)


def normal_key(secret: bytes) -> bytes:
    """A key that blake2b takes (at most 64 bytes) from a secret of any length."""
    return secret if 16 <= len(secret) <= 64 else hashlib.blake2b(secret, digest_size=64).digest()
