"""Answers that name the origin's URLs name the proxy instead, and say the transfer syntax where the origin didn't.

Rules kept here:
- bodies pass in pieces, cut anywhere, and at most `MAX_HELD` bytes of one wait for more; time is linear;
- in JSON only the values of BulkDataURI (PS3.18 annex F.2.6) and RetrieveURL (0008,1190) change. Their keys are
  found as bytes, not by a tokenizer: between quotes and before a colon they can be nothing but keys in valid JSON,
  and metadata of 100 MB passes at the speed of `bytes.find`;
- what cannot be understood passes as it came: nothing here raises on what an origin sends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Optional, Protocol
from urllib.parse import urljoin, urlsplit

import attrs

from twistedproxy.web.object_syntax import SyntaxLookup
from twistedproxy.web.syntax_adder import SyntaxAdder

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
