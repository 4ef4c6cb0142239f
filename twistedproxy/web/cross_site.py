"""What stores and pages of other sites may have a browser do in the proxy's web origin, which all mounts share.

Rules kept here:
- What a store sends runs in no browser as a page of the proxy: a document that could (HTML, SVG, XML) comes in a sandbox
  (https://www.w3.org/TR/CSP3/#directive-sandbox), and no answer is taken for another type than it has.
- Requests that a page of another site has a browser make with its user's logins (cross-site request forgery):
- What the browser says of itself is believed (Sec-Fetch-Site, https://www.w3.org/TR/fetch-metadata/), else Origin, which
  every browser sends along with a POST to elsewhere; a page can set neither. Who sends neither is no browser.
- The proxy's own pages may do all, and those of origins that are listed by name; where ``*`` is listed, others may what
  they can do without a login that a browser adds by itself.
"""

from __future__ import annotations

from collections.abc import Collection

from twisted.web.http_headers import Headers

from twistedproxy.dicom.media_types import BadMediaType, parse_media_type
from twistedproxy.web.forwarded import HeaderLookup
from twistedproxy.web.problems import Problem

NOSNIFF = (b"X-Content-Type-Options", b"nosniff")

_POLICY = b"Content-Security-Policy"
# PDF is among them: browsers show it in a viewer of their own, and not at all in a sandbox.
_NO_DOCUMENTS = ("image/", "video/", "audio/", "application/dicom", "application/json", "text/plain")
_NO_DOCUMENT = frozenset(
    ("application/octet-stream", "application/pdf", "application/zip", "application/problem+json", "multipart/related")
)


def confine(headers: Headers) -> None:
    """Add a sandbox to the *headers* of an answer that a store made, unless its type is none that runs as a document."""
    content_type = headers.getRawHeaders(b"Content-Type", [b""])
    try:
        kind = parse_media_type(content_type[0]).type if len(content_type) == 1 else ""
    except BadMediaType:
        kind = ""
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
    raise Problem(403, "pages of other origins may not ask for this; --cors-origin names those that may")


def _logged_in_by_browser(headers: HeaderLookup) -> bool:
    """Whether there are credentials that a browser may have added: all but bearer tokens, which only a page can set."""
    authorization = _first(headers, b"Authorization")
    return bool(headers(b"Cookie")) or bool(authorization and not authorization.startswith(b"bearer "))


def _first(headers: HeaderLookup, name: bytes) -> bytes:
    lines = headers(name)
    return lines[0].strip().lower() if lines else b""
