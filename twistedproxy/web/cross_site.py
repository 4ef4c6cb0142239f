"""Requests that a page of another site has a browser make with its user's logins: cross-site request forgery.

Rules kept here:
- What the browser says of itself is believed (Sec-Fetch-Site, https://www.w3.org/TR/fetch-metadata/), else Origin, which
  every browser sends along with a POST to elsewhere; a page can set neither. Who sends neither is no browser.
- The proxy's own pages may do all, and those of origins that are listed by name; where ``*`` is listed, others may what
  they can do without a login that a browser adds by itself.
"""

from __future__ import annotations

from collections.abc import Collection

from twistedproxy.web.forwarded import HeaderLookup
from twistedproxy.web.problems import Problem


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
