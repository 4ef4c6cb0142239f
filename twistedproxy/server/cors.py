"""What web pages may do: read our answers, send requests, and run in the proxy's web origin, which all mounts share.

Rules for reading, the CORS protocol (https://fetch.spec.whatwg.org/#http-cors-protocol):
- an origin that is listed by name may use credentials (cookies); ``*`` lets any page read, without credentials;
- a page that is not allowed gets an answer without permission, never an error: the browser does the rest;
- an answer that depends on Origin names it in Vary, also where the request had none.

Rules for what stores, and pages of other sites, can make a browser do here:
- no answer of a store runs in a browser as a page of the proxy: a document that could (HTML, SVG, XML) gets a sandbox
  (https://www.w3.org/TR/CSP3/#directive-sandbox), and no type is guessed;
- against cross-site request forgery, Sec-Fetch-Site decides (https://www.w3.org/TR/fetch-metadata/), else Origin, which
  every browser sends with a cross-origin POST; a page can set neither. A client that sends neither is no browser;
- the proxy's own pages may do everything, and so may those of origins that are listed by name; where ``*`` is listed,
  other pages may do what needs no login that a browser adds by itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import attrs
from twisted.web.http_headers import Headers

from twistedproxy.server.forwarded import HeaderLookup
from twistedproxy.server.problems import Headers as Fields
from twistedproxy.server.problems import Problem

ALLOWED_METHODS = b"GET, HEAD, POST, PUT, DELETE, OPTIONS"
EXPOSED_HEADERS = b"Content-Type, Content-Length, Content-Range, ETag, Cache-Status, X-Request-Id"
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

    def headers(self, origin: bytes | None) -> Fields:
        """What goes out with every answer that is no preflight's, errors too. *origin*: the request's Origin."""
        if not self.origins:
            return ()
        permission = self._permission(origin)
        if permission and origin is not None:
            permission += ((b"Access-Control-Expose-Headers", EXPOSED_HEADERS),)
        return permission if self.origins == {b"*"} else (*permission, _VARY)

    def preflight(
        self, origin: bytes | None, requested_headers: bytes | None = None, private_network: bytes | None = None
    ) -> Fields:
        """The headers of the 204 to a preflight.

        *requested_headers*, *private_network*: Access-Control-Request-Headers and -Private-Network as they came.
        The headers are echoed: a ``*`` does not include Authorization.
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

    def _permission(self, origin: bytes | None) -> Fields:
        if origin is not None and origin.lower() in self.origins and origin != b"*":
            return ((b"Access-Control-Allow-Origin", origin), (b"Access-Control-Allow-Credentials", b"true"))
        # Also sent without an Origin where it is the same for all: shared caches may keep the answer.
        if b"*" in self.origins and (origin is not None or self.origins == {b"*"}):
            return ((b"Access-Control-Allow-Origin", b"*"),)
        return ()


def is_preflight(method: bytes, origin: bytes | None, requested_method: bytes | None) -> bool:
    """Whether a request is a preflight: *requested_method* is its Access-Control-Request-Method."""
    return method == b"OPTIONS" and origin is not None and requested_method is not None


NOSNIFF = (b"X-Content-Type-Options", b"nosniff")

_POLICY = b"Content-Security-Policy"
# Of several types in a list browsers take the last, whatever the first one is: a comma makes it none that is known.
_CONTENT_TYPE = re.compile(rb"[ \t]*([a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+)[ \t]*(?:;[^,]*)?")
# PDF is among them: browsers show it in a viewer of their own, and not at all in a sandbox.
_NO_DOCUMENTS = ("image/", "video/", "audio/", "application/dicom", "application/json", "text/plain")
_NO_DOCUMENT = frozenset(
    ("application/octet-stream", "application/pdf", "application/zip", "application/problem+json", "multipart/related")
)


def confine(headers: Headers) -> None:
    """Add a sandbox to the *headers* of an answer that a store made, unless its type is none that runs as a document."""
    fields = headers.getRawHeaders(b"Content-Type", [])
    match = _CONTENT_TYPE.fullmatch(fields[0].lower()) if len(fields) == 1 else None
    kind = match[1].decode("ascii") if match is not None else ""
    inert = kind in _NO_DOCUMENT or kind.startswith(_NO_DOCUMENTS)
    if not inert or kind.endswith("xml"):  # image/svg+xml, application/dicom+xml
        headers.addRawHeader(_POLICY, b"sandbox")


def refuse_cross_site(headers: HeaderLookup, own: str, listed: Collection[bytes]) -> None:
    """Raises `Problem` 403 for a request that a page of another site may not make.

    *headers* gives all lines of one header, as Twisted's ``getRawHeaders`` does; *own* is the origin at which the client
    sees the proxy (``https://proxy.example``); *listed*: lower-cased origins whose pages may read answers, or ``*``.
    """
    site = _first(headers, b"Sec-Fetch-Site")
    origin = _first(headers, b"Origin")
    if site in (b"same-origin", b"none") or (not site and not origin):
        return
    if origin and (origin == own.lower().encode("latin-1") or origin in listed):
        return
    if b"*" in listed and not _logged_in_by_browser(headers):
        return
    raise Problem(
        403,
        "this request came from a page of another origin; only pages of origins listed with --cors-origin may send it",
    )


def _logged_in_by_browser(headers: HeaderLookup) -> bool:
    """Whether there are credentials that a browser may have added: all but bearer tokens, which only a page can set."""
    authorization = _first(headers, b"Authorization")
    return bool(headers(b"Cookie")) or bool(authorization and not authorization.startswith(b"bearer "))


def _first(headers: HeaderLookup, name: bytes) -> bytes:
    lines = headers(name)
    return lines[0].strip().lower() if lines else b""
