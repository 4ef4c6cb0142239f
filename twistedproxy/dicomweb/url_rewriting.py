"""The origin's URLs in answers become URLs of the proxy.

Rules for bodies:
- bodies pass in pieces, cut anywhere, and at most `MAX_HELD` bytes of one wait for more; time is linear;
- in JSON only the values of BulkDataURI (PS3.18 annex F.2.6) and RetrieveURL (0008,1190) change. Their keys are
  found as bytes, not by a tokenizer: between quotes and before a colon they can be nothing but keys in valid JSON,
  and metadata of 100 MB passes at the speed of `bytes.find`;
- what cannot be understood passes as it came: nothing here raises on what an origin sends.

Rules for Location, Content-Location (RFC 9110 sections 10.2.2 and 8.7) and cookies (RFC 6265):
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
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Optional
from urllib.parse import unquote, urljoin, urlsplit

import attrs
from twisted.logger import Logger

from twistedproxy.origin.interface import AMBIGUOUS, OriginResponse
from twistedproxy.server.problems import Problem

MAX_HELD = 8 * 1024
"""Bytes at the end of what came that wait for more: a URL, and what is around it, is shorter."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ANY_STRING = re.compile(_STRING, re.DOTALL)
_KEYS = (b'"BulkDataURI"', b'"00081190"')
# Neither value holds the beginning of another: what never ends is looked at once.
_JSON_MEMBER = re.compile(_KEYS[0] + rb"\s*+:\s*+" + _STRING + rb"|" + _KEYS[1] + rb"\s*+:\s*+\{[^{}]*+\}", re.DOTALL)
# A line of a part's head that would not be true any more, and that no reader needs.
_PART_LENGTH = rb"\r?\n(?i:Content-Length):[ \t]*+[0-9]++[ \t]*+(?=\r?\n)"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@attrs.frozen
class UrlMap:
    """Turns URLs below *base_from* (an origin, as the operator named it) into ones below *base_to* (the mount, as
    its callers see it). Both without a slash at the end. *asked*: the URL at the origin whose answer is rewritten, which
    relative references in it start from; "" where there is none."""

    base_from: str
    base_to: str
    asked: str = ""

    def rewrite(self, url: str) -> str:
        """*url* below the mount, or as it came if it is not the origin's."""
        resolved = url
        # Above the root, paths of the origin and of the mount differ (RFC 3986 section 5.2); others lead to the same.
        if self.asked and ".." in url and "://" not in url:
            with suppress(ValueError):
                resolved = urljoin(self.asked, url)
        shown = self.below(resolved)
        return url if shown is None else shown

    def below(self, url: str) -> Optional[str]:
        """*url* below the mount, None if it is not the origin's.

        A store behind another proxy calls itself by another scheme and host. That is believed where the path is
        the origin's and leads to ``/studies``: bulk data may well lie elsewhere. A path alone is the origin's own;
        relative references without a leading slash are right on both sides.
        """
        if url.startswith(self.base_from) and url[len(self.base_from) : len(self.base_from) + 1] in ("", "/", "?"):
            return self.base_to + url[len(self.base_from) :]
        base_path = urlsplit(self.base_from).path
        if base_path not in url:  # saves taking apart the URLs of others
            return None
        try:
            parts = urlsplit(url)
            same_host = not parts.netloc or authority(url) == authority(self.base_from)
        except ValueError:
            return None
        below = parts.path[len(base_path) :]
        if parts.scheme not in ("http", "https", "") or not parts.path.startswith("/"):
            return None
        if not parts.path.startswith(base_path) or below[:1] not in ("", "/"):
            return None
        if not same_host and (not base_path or "/studies" not in below):
            return None
        query = f"?{parts.query}" if parts.query else ""
        fragment = f"#{parts.fragment}" if parts.fragment else ""
        return self.base_to + below + query + fragment


def authority(url: str) -> tuple[str, int | None]:
    """Host and port; whether the scheme is http or https does not matter where the port is the scheme's own."""
    parts = urlsplit(url)
    port = parts.port
    return (parts.hostname or "", None if port is None or port == _DEFAULT_PORTS.get(parts.scheme) else port)


def json_urls(urls: UrlMap) -> Rewriting:
    """What a JSON answer goes through: the values of BulkDataURI and RetrieveURL are rewritten."""

    def token(match: re.Match[bytes]) -> bytes:
        text = match.group()
        if b"/" not in text:  # a key, "vr" and so on
            return text
        try:
            url = json.loads(text)
        except ValueError:
            return text
        rewritten = urls.rewrite(url)
        return text if rewritten == url else json.dumps(rewritten).encode("ascii")

    return Rewriting(_JSON_MEMBER, lambda member: _ANY_STRING.sub(token, member.group()), MAX_HELD, _KEYS)


def xml_urls(urls: UrlMap, parts: bool) -> Rewriting:
    """What an XML answer, or (*parts*) a multipart one of XML parts, goes through: the origin's URL is replaced where a text,
    an attribute or a part's Content-Location begins with it.

    Bytes for bytes: XML of the Native DICOM Model (PS3.19 annex A.1) has URLs nowhere else, and neither URL holds what XML
    would escape.
    """
    pattern = rb"(?<=[\"'> ])" + re.escape(urls.base_from.encode("ascii")) + rb"(?=[/?\"'<\s])"
    if parts:
        pattern += rb"|" + _PART_LENGTH
    base = urls.base_to.encode("ascii")
    return Rewriting(re.compile(pattern), lambda match: b"" if match.group()[:1] in b"\r\n" else base, MAX_HELD)


class Rewriting:
    """Replaces what *pattern* finds in a body that passes in pieces, cut anywhere; the last *held* bytes wait for more.

    *hints*: one of them is in all that is found. Two finds are many times faster than one search of a pattern that starts
    at every quote.
    """

    def __init__(
        self,
        pattern: re.Pattern[bytes],
        replace: Callable[[re.Match[bytes]], bytes],
        held: int,
        hints: Sequence[bytes] = (),
    ) -> None:
        self._pattern = pattern
        self._replace = replace
        self._most = held
        self._hints = hints
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next piece of the body, and return what is ready of the new one, perhaps nothing."""
        return self._replaced(self._held + chunk, self._most)

    def close(self) -> bytes:
        """The rest, after the last piece."""
        return self._replaced(self._held, 0)

    def _replaced(self, data: bytes, most: int) -> bytes:
        out: list[bytes] = []
        position = 0
        if not self._hints or any(hint in data for hint in self._hints):
            for match in self._pattern.finditer(data):
                out += (data[position : match.start()], self._replace(match))
                position = match.end()
        cut = max(position, len(data) - most)
        self._held = data[cut:]
        out.append(data[position:cut])
        return b"".join(out)


_log = Logger()

_FIELDS = frozenset({b"location", b"content-location"})
# RFC 9110 section 15.4; 304 leads nowhere.
_REDIRECTS = frozenset({300, 301, 302, 303, 307, 308})


def located(response: OriginResponse, urls: UrlMap) -> OriginResponse:
    """*response* with the Location, Content-Location and cookies that callers may see.

    Raises `Problem` 502 for a redirect into the store's own; the body is closed then.
    """
    headers = []
    for name, value in response.headers:
        if (lower := name.lower()) in _FIELDS:
            shown = _shown(value.decode("latin-1"), urls)
            if shown is not None:
                headers.append((name, shown.encode("latin-1")))
            elif lower == b"location" and response.status in _REDIRECTS:
                response.body.close()
                _log.warn(
                    "{origin} redirects to a URL on its host but outside its root; responding with 502",
                    origin=urls.base_from,
                )
                raise Problem(502, "the origin redirects to a URL of its own host that the proxy does not serve")
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
    ours, theirs = (urlsplit(url).path.rstrip("/").encode("ascii") for url in (urls.base_to, urls.base_from))
    below = path[len(theirs) :] if path.startswith(theirs + b"/") else b""
    return b";".join([*kept, b" Path=" + (ours + below or b"/")])


def _shown(value: str, urls: UrlMap) -> Optional[str]:
    """The URL reference *value* as callers may see it; None if they may not."""
    if AMBIGUOUS.search(value):
        return None
    try:
        whole = urljoin(urls.asked, value)
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
