"""Grants: proof, with an expiry, that one caller may read one instance; and callers, identified by their credentials.

Rules:
- A grant comes only from the origin: from its answer to that caller's own request.
- It lives in this worker and, under a keyed digest, in the cache, where other workers find it.
- It carries the fence that it was obtained under: once the instance is invalidated it is worth nothing.
- Two requests belong to one caller when all headers and query parameters that the origin may judge by are the same. Those
  travel to the origin with the request that they came with; what is compared, kept and logged is a keyed digest.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Optional
from urllib.parse import unquote_to_bytes

import attrs

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import most
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
    header_names: frozenset[bytes] = attrs.field(init=False)
    """Names of all headers that may identify a caller, in lower case, Cookie among them."""

    @header_names.default
    def _header_names(self) -> frozenset[bytes]:
        return frozenset([b"cookie", *(name.lower() for name in self.headers)])

    def caller(self, raw_headers: RawHeaders, token: bytes = b"", address: str = "") -> Caller:
        """The caller of the request whose headers *raw_headers* gives, and that came from *address*; *token*: what of its
        query identifies it (see `split`)."""
        identifying = [(name, value) for name in self.headers for value in raw_headers(name) or ()]
        if cookie := self._cookie(raw_headers(b"Cookie") or ()):
            identifying.append((b"Cookie", cookie))
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
        return all(name.lower() in self.header_names for name in names)

    def _cookie(self, values: Iterable[bytes]) -> bytes:
        if not self.cookies:
            return b"; ".join(values)
        pairs = (pair.strip() for value in values for pair in value.split(b";"))
        return b"; ".join(pair for pair in pairs if pair.partition(b"=")[0].strip() in self.cookies)


def normal_key(secret: bytes, by_pixels: bool = False) -> bytes:
    """A key that blake2b takes (at most 64 bytes) from a secret of any length. *by_pixels*: one with which nothing is found that was
    kept without: what proved a right to pixels there does not here."""
    if by_pixels:
        return hashlib.blake2b(secret, digest_size=64, person=b"by pixels").digest()
    return secret if 16 <= len(secret) <= 64 else hashlib.blake2b(secret, digest_size=64).digest()


MAX_GRANTS = 100_000
"""Grants kept in one worker; the longest unused goes first. About 300 bytes each."""

RENEW_AT = 0.75
"""The part of its life after which a grant that is used is renewed in the background."""


@attrs.define(eq=False)
class Grant:
    """That *caller's credential* may read *instance* until *expires* (seconds since the epoch)."""

    metadata: InstanceMetadata
    expires: float
    fence: Optional[Fence]
    most: int = attrs.field(init=False)
    """Bytes that a frame hardly ever exceeds: those of its pixels."""
    next_renewal: float = attrs.field(init=False, default=0.0)
    """When the next renewal may begin (seconds since the epoch): none while one is under way, or after a denial."""

    @most.default
    def _most(self) -> int:
        return most(self.metadata)

    def spent(self, now: float, ttl: float) -> bool:
        """Whether it is time to renew: less than a quarter of *ttl* is left."""
        return self.expires - now < ttl * (1 - RENEW_AT)


class Grants:
    """The grants that this worker knows, bounded, least recently used first out."""

    def __init__(self, limit: int = MAX_GRANTS) -> None:
        self._limit = limit
        self.also: list[Callable[[bytes, Instance], None]] = []
        """Revokes what another component has of a credential's right to read an instance."""
        self._grants: OrderedDict[tuple[bytes, Instance], Grant] = OrderedDict()
        self._of_series: dict[tuple[bytes, Instance], set[Instance]] = {}

    def __len__(self) -> int:
        return len(self._grants)

    def find(self, caller: Caller, instance: Instance, now: float) -> Optional[Grant]:
        """The grant, if there is one that has not ended."""
        key = (caller.credential, instance)
        grant = self._grants.get(key)
        if grant is None:
            return None
        if grant.expires <= now:
            self._drop(key)
            return None
        self._grants.move_to_end(key)
        return grant

    def add(self, caller: Caller, instance: Instance, grant: Grant) -> None:
        """Keep a grant, in the place of an older one."""
        key = (caller.credential, instance)
        self._grants[key] = grant
        self._grants.move_to_end(key)
        self._of_series.setdefault((caller.credential, instance.of_series), set()).add(instance)
        while len(self._grants) > self._limit:
            self._drop(next(iter(self._grants)))

    def of_series(self, caller: Caller, series: Instance) -> Collection[Instance]:
        """The instances of a series (`Instance.of_series`) for which there is one, which may have ended."""
        return self._of_series.get((caller.credential, series), ())

    def revoke(self, caller: Caller, instance: Instance) -> None:
        """Drop the grant, where there is one."""
        self._drop((caller.credential, instance))
        for revoke in self.also:
            revoke(caller.credential, instance)

    def invalidate(self, concerned: Callable[[Instance], bool]) -> None:
        """Drop all grants for the instances that *concerned* names: one pass, for the rare STOW and DELETE."""
        for key in [key for key in self._grants if concerned(key[1])]:
            self._drop(key)

    def _drop(self, key: tuple[bytes, Instance]) -> None:
        if self._grants.pop(key, None) is not None:
            series = key[0], key[1].of_series
            self._of_series[series].discard(key[1])
            if not self._of_series[series]:
                del self._of_series[series]
