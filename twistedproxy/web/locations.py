"""Where a store's answers send callers: Location, Content-Location (RFC 9110 sections 10.2.2 and 8.7), and the paths for
which they set cookies (RFC 6265).

Rules kept here:
- what lies below the origin's root is named below the mount, whether it came as a URL, as a path or relative to what
  was asked;
- the rest of the store's host, on any port, is not shown: no caller can go there. A redirect there is a 502, for without
  its Location it would be nothing; on other answers the field is left out. This machine's own names count as the
  store's, and so does what is no http(s) URL or what readers of URLs take differently;
- a cookie is for the mount alone: its Path is the mount's, or lies below it as it lay below the root, and it has no
  Domain. A browser then sends it to no other store behind this host. One that must have the Path / (its name begins with
  ``__Host-``) is refused by browsers, unless the mount is that;
- other hosts stay, and so does the very place that the caller asked: a signed URL of a storage service, a page to log in.
"""

from __future__ import annotations

import ipaddress
from typing import Optional
from urllib.parse import unquote, urljoin, urlsplit

import attrs
from twisted.logger import Logger

from twistedproxy.origin.interface import AMBIGUOUS, OriginResponse
from twistedproxy.web.problems import bad_gateway
from twistedproxy.web.rewriting import UrlMap, authority

_log = Logger()

_FIELDS = frozenset({b"location", b"content-location"})
# RFC 9110 section 15.4; 304 leads nowhere.
_REDIRECTS = frozenset({300, 301, 302, 303, 307, 308})


def located(response: OriginResponse, urls: UrlMap, asked: str) -> OriginResponse:
    """*response* as callers may see where it leads. *asked*: the URL at the origin that it answers.

    Raises `Problem` 502 for a redirect into the store's own; the body is closed then.
    """
    headers = []
    for name, value in response.headers:
        if (lower := name.lower()) in _FIELDS:
            shown = _shown(value.decode("latin-1"), urls, asked)
            if shown is not None:
                headers.append((name, shown.encode("latin-1")))
            elif lower == b"location" and response.status in _REDIRECTS:
                response.body.close()
                _log.warn("{origin} redirects out of its root: callers get 502", origin=urls.base_from)
                raise bad_gateway("the origin redirects to a place of its own that cannot be reached through the proxy")
        elif lower == b"set-cookie":
            headers.append((name, _cookie(value, urls)))
        else:
            headers.append((name, value))
    return attrs.evolve(response, headers=tuple(headers))


def _cookie(value: bytes, urls: UrlMap) -> bytes:
    """A Set-Cookie field as callers may see it."""
    pair, *attributes = value.split(b";")
    kept = [pair]
    path = b""
    for attribute in attributes:
        name, _, text = attribute.partition(b"=")
        match name.strip().lower():
            case b"domain":
                continue
            case b"path":  # of several the last counts (RFC 6265 section 5.3)
                path = text.strip()
            case _:
                kept.append(attribute)
    return b";".join([*kept, b" Path=" + _cookie_path(path, urls)])


def _cookie_path(path: bytes, urls: UrlMap) -> bytes:
    ours, theirs = (urlsplit(url).path.rstrip("/").encode("ascii") for url in (urls.base_to, urls.base_from))
    below = path[len(theirs) :] if path.startswith(theirs + b"/") else b""
    return ours + below or b"/"


def _shown(value: str, urls: UrlMap, asked: str) -> Optional[str]:
    """The URL reference *value* as callers may see it; None if they may not."""
    if AMBIGUOUS.search(value):
        return None
    try:
        whole = urljoin(asked, value)
        parts = urlsplit(whole)
        host = _host(whole)
        if not _climbs(parts.path) and (below := urls.below(whole)) is not None:
            return below
        if parts.scheme not in ("http", "https") or not host:
            return None
        if authority(whole) == authority(urls.base_to):
            return whole
        return None if host == _host(urls.base_from) or _is_here(host) else value
    except ValueError:
        return None


def _climbs(path: str) -> bool:
    """Whether dot segments are in *path*: a reader of the URL may leave the root by them."""
    return any(segment in (".", "..") for segment in unquote(path).split("/"))


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


def _is_here(host: str) -> bool:
    """Whether *host* names the machine that reads the name."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
