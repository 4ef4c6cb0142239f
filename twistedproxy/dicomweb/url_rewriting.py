"""Answers that name the origin's URLs name the proxy instead, and say the transfer syntax where the origin didn't.

Rules kept here:
- bodies pass in pieces, cut anywhere, and at most `MAX_HELD` bytes of one wait for more; time is linear;
- in JSON only the values of BulkDataURI (PS3.18 annex F.2.6) and RetrieveURL (0008,1190) change. Their keys are
  found as bytes, not by a tokenizer: between quotes and before a colon they can be nothing but keys in valid JSON,
  and metadata of 100 MB passes at the speed of `bytes.find`;
- what cannot be understood passes as it came: nothing here raises on what an origin sends.

Where a store's answers send callers: Location, Content-Location (RFC 9110 sections 10.2.2 and 8.7), and the paths for
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
import json
import re
from collections.abc import Iterable
from typing import Optional, Protocol
from urllib.parse import unquote, urljoin, urlsplit

import attrs
from twisted.logger import Logger

from twistedproxy.dicomweb.available_syntaxes import SyntaxAdder, SyntaxLookup
from twistedproxy.origin.interface import AMBIGUOUS, OriginResponse
from twistedproxy.server.problems import Problem

MAX_HELD = 16 * 1024  # bytes of one member that are kept while its end has not come; a URL is shorter

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ANY_STRING = re.compile(_STRING, re.DOTALL)
_KEY = re.compile(rb'"(?:BulkDataURI|00081190)"')
_MAX_KEY = len(b'"BulkDataURI"')
# What follows a key: the whole value, or as much of one as may still become one.
_URI_VALUE = re.compile(rb"\s*+:\s*+" + _STRING, re.DOTALL)
_URI_BEGUN = re.compile(rb'\s*+(?::\s*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+\\?)?)?\Z', re.DOTALL)
_ELEMENT_VALUE = re.compile(rb"\s*+:\s*+\{[^}]*+\}")
_ELEMENT_BEGUN = re.compile(rb"\s*+(?::\s*+(?:\{[^}]*+)?)?\Z")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Transform(Protocol):
    """Bytes in, bytes out."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next piece of a body, and give what is ready of the new one, perhaps nothing."""

    def close(self) -> bytes:
        """The rest, after the last piece."""


@attrs.frozen
class UrlMap:
    """Turns URLs below *base_from* (an origin, as the operator named it) into ones below *base_to* (the mount, as
    its callers see it). Both without a slash at the end. *asked*: the URL at the origin that names what is rewritten, ""
    where that does not matter."""

    base_from: str
    base_to: str
    asked: str = ""

    def rewrite(self, url: str) -> str:
        """*url* below the mount, or as it came if it is not the origin's."""
        shown = self.below(self._resolved(url))
        return url if shown is None else shown

    def _resolved(self, url: str) -> str:
        """Where a relative reference with dot segments leads (RFC 3986 section 5.2): above the root, paths of the origin and
        of the mount differ. Others lead to the same on both sides."""
        if not self.asked or ".." not in url or "://" in url:
            return url
        try:
            return urljoin(self.asked, url)
        except ValueError:
            return url

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


def json_transform(
    base_from: str, base_to: str, add_syntax: str | SyntaxLookup | None = None, asked: str = ""
) -> Transform:  # fmt: skip
    """What a JSON answer goes through.

    *base_from*: the origin's URL; *base_to*: the mount's, as callers see it. *asked*: the URL at the origin that it
    answers. *add_syntax*: what (0008,3002) is to be
    where an object lacks it: the UID of the one instance asked about, or a function from SOPInstanceUID to the UID,
    or None if that is not known; None adds nothing.
    """
    urls = JsonUrls(UrlMap(base_from.rstrip("/"), base_to.rstrip("/"), asked))
    # In this order: what the adder holds it lets go of at once, and nobody then has to look through all of it.
    return urls if add_syntax is None else Chain((urls, SyntaxAdder(add_syntax)))


def xml_transform(base_from: str, base_to: str) -> Transform:
    """What an XML answer, or a multipart one of XML parts, goes through."""
    return XmlUrls(base_from.rstrip("/"), base_to.rstrip("/"))


class Chain:
    """Several transforms, one after the other."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        self._transforms = list(transforms)

    def feed(self, chunk: bytes) -> bytes:
        for transform in self._transforms:
            chunk = transform.feed(chunk)
        return chunk

    def close(self) -> bytes:
        rest = b""
        for transform in self._transforms:
            rest = transform.feed(rest) + transform.close()
        return rest


class JsonUrls:
    """Rewrites the values of BulkDataURI and RetrieveURL in a JSON body."""

    def __init__(self, urls: UrlMap) -> None:
        self._urls = urls
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        data = self._held + chunk if self._held else chunk
        out: list[bytes] = []
        position = 0
        last_brace = data.rfind(b"}")
        for key in _keys(data):
            if key.start() < position:  # inside a value that was dealt with
                continue
            member = self._member(data, key, last_brace)
            if member is None:  # its end has not come yet
                out.append(data[position : key.start()])
                self._held = data[key.start() :]
                return b"".join(out)
            if member:
                out += (data[position : key.end()], member[0])
                position = member[1]
        cut = max(position, _possible_key(data))
        self._held = data[cut:]
        out.append(data[position:cut])
        return b"".join(out)

    def close(self) -> bytes:
        rest, self._held = self._held, b""
        return rest

    def _member(self, data: bytes, key: re.Match[bytes], last_brace: int) -> tuple[bytes, int] | tuple[()] | None:
        """The new text behind *key* and where the old ends; nothing if it is no such member; None if more must come."""
        is_uri = key.group() == b'"BulkDataURI"'
        # Without a closing brace after it, every key would have the pattern run to the end of the data.
        may_match = is_uri or key.end() < last_brace
        value = (_URI_VALUE if is_uri else _ELEMENT_VALUE).match(data, key.end()) if may_match else None
        if value is not None:
            return _ANY_STRING.sub(self._rewrite_token, value.group()), value.end()
        if len(data) - key.end() < MAX_HELD and (_URI_BEGUN if is_uri else _ELEMENT_BEGUN).match(data, key.end()):
            return None
        return ()

    def _rewrite_token(self, match: re.Match[bytes]) -> bytes:
        """A JSON string, with its URL rewritten; as it came if it holds none of ours."""
        token = match.group()
        if b"/" not in token:  # "vr", "Value" and so on
            return token
        try:
            url = json.loads(token)
        except ValueError:
            return token
        rewritten = self._urls.rewrite(url)
        return token if rewritten == url else json.dumps(rewritten).encode("ascii")


def _keys(data: bytes) -> Iterable[re.Match[bytes]]:
    # Two finds are many times faster than one search of a pattern that starts at every quote.
    if b'"BulkDataURI"' in data or b'"00081190"' in data:
        return _KEY.finditer(data)
    return ()


def _possible_key(data: bytes) -> int:
    """Where a key could begin at the end of *data* that is not all there."""
    start = max(0, len(data) - _MAX_KEY + 1)
    tail = data[start:]
    for offset in range(len(tail)):
        if b'"BulkDataURI"'.startswith(tail[offset:]) or b'"00081190"'.startswith(tail[offset:]):
            return start + offset
    return len(data)


class XmlUrls:
    """Replaces the origin's URL by the mount's where a text or attribute value begins with it.

    Content-Location of a part counts too. Bytes for bytes: XML of the Native DICOM Model (PS3.19 annex A.1) has
    URLs nowhere else, and neither URL holds what XML would escape.
    """

    def __init__(self, base_from: str, base_to: str) -> None:
        base = re.escape(base_from.encode("ascii"))
        self._pattern = re.compile(rb"(?<=[\"'> ])" + base + rb"(?=[/?\"'<\s])")
        self._base_to = base_to.encode("ascii")
        self._overlap = len(base_from) + 1  # the byte before and all of the URL; with the byte behind it, it matches
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        return self._emit(self._held + chunk, final=False)

    def close(self) -> bytes:
        return self._emit(self._held, final=True)

    def _emit(self, data: bytes, final: bool) -> bytes:
        out: list[bytes] = []
        position = 0
        for match in self._pattern.finditer(data):
            out += (data[position : match.start()], self._base_to)
            position = match.end()
        cut = len(data) if final else max(position, len(data) - self._overlap)
        self._held = data[cut:]
        out.append(data[position:cut])
        return b"".join(out)


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
                raise Problem(
                    502, "the origin redirects to a place of its own that cannot be reached through the proxy"
                )
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
