"""Which web pages may read our answers: the CORS protocol (https://fetch.spec.whatwg.org/#http-cors-protocol).

Rules kept here:
- an origin that is listed by name may use credentials (cookies); ``*`` lets everybody read, without credentials;
- a page that is not allowed gets an answer without permission, never an error: the browser does the rest;
- whatever depends on Origin says so in Vary, also towards those that sent none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

Headers = tuple[tuple[bytes, bytes], ...]

ALLOWED_METHODS = b"GET, HEAD, POST, PUT, DELETE, OPTIONS"
EXPOSED_HEADERS = b"Content-Type, Content-Length, Content-Range, ETag, Cache-Status"
MAX_AGE = 7200  # seconds; Chromium keeps no preflight longer
MAX_REQUEST_HEADERS = 2048  # bytes of Access-Control-Request-Headers that are echoed

_VARY = (b"Vary", b"Origin")
_VARY_PREFLIGHT = (
    b"Vary",
    b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network",
)
_TOKEN_LIST = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~, \t]*")


def _normalized(origins: Iterable[str]) -> frozenset[bytes]:
    return frozenset(origin.strip().rstrip("/").lower().encode("ascii") for origin in origins)


@attrs.frozen
class Cors:
    """The answers to pages of other origins. *origins*: as in Origin headers (``https://viewer.example``), or ``*``."""

    origins: frozenset[bytes] = attrs.field(converter=_normalized, default=())

    def headers(self, origin: bytes | None) -> Headers:
        """What goes out with every answer that is no preflight's, errors too. *origin*: the request's Origin."""
        if not self.origins:
            return ()
        permission = self._permission(origin)
        if permission and origin is not None:
            permission += ((b"Access-Control-Expose-Headers", EXPOSED_HEADERS),)
        return permission if self.origins == {b"*"} else (*permission, _VARY)

    def preflight(
        self, origin: bytes | None, requested_headers: bytes | None = None, private_network: bytes | None = None
    ) -> Headers:
        """The headers of the 204 to a preflight.

        *requested_headers*, *private_network*: Access-Control-Request-Headers and -Private-Network as they came.
        The headers are echoed: a ``*`` would not stand for Authorization.
        """
        if not self.origins:
            return ()
        permission = self._permission(origin)
        if not permission:
            return (_VARY_PREFLIGHT,)
        more: list[tuple[bytes, bytes]] = [
            (b"Access-Control-Allow-Methods", ALLOWED_METHODS),
            (b"Access-Control-Max-Age", b"%d" % MAX_AGE),
        ]
        requested = requested_headers or b""
        if 0 < len(requested) <= MAX_REQUEST_HEADERS and _TOKEN_LIST.fullmatch(requested):
            more.append((b"Access-Control-Allow-Headers", requested))
        if private_network is not None and private_network.strip().lower() == b"true":
            more.append((b"Access-Control-Allow-Private-Network", b"true"))
        return (*permission, *more, _VARY_PREFLIGHT)

    def _permission(self, origin: bytes | None) -> Headers:
        if origin is not None and origin.lower() in self.origins and origin != b"*":
            return ((b"Access-Control-Allow-Origin", origin), (b"Access-Control-Allow-Credentials", b"true"))
        # Said to those without Origin too where it is the same for all: shared caches may keep the answer.
        if b"*" in self.origins and (origin is not None or self.origins == {b"*"}):
            return ((b"Access-Control-Allow-Origin", b"*"),)
        return ()


def is_preflight(method: bytes, origin: bytes | None, requested_method: bytes | None) -> bool:
    """Whether a request is a preflight: *requested_method* is its Access-Control-Request-Method."""
    return method == b"OPTIONS" and origin is not None and requested_method is not None
