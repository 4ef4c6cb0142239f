"""Values that metadata only point to (BulkDataURI, PS3.18 annex F): ICC profiles, palettes, tables.

Rules:
- They are fetched from the instance's own store with the caller's own headers, and nowhere else, wherever they point. A reference is
  relative to the URL of the metadata (RFC 3986 section 5.2).
- What may not be all of the value, or another thing, is an error.
"""

from __future__ import annotations

from typing import Optional
from urllib.parse import unquote, urljoin, urlsplit

from twistedproxy.dicom.multipart import BadMultipart, PartCollector
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.errors import NOT_ALLOWED, OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import (
    AMBIGUOUS,
    Caller,
    Origin,
    OriginRequest,
    OriginResponse,
    first,
    media_type_of,
)
from twistedproxy.streams import StreamTooLong, read_all

MAX_BULK = 16 << 20
"""Bytes of one value that the metadata point to: ICC profiles of scanners have up to 3 MB."""

_BYTES = frozenset(("application/octet-stream", "binary/octet-stream", "application/x-octet-stream"))
"""What values that are no pixels come as (PS3.18 table 8.7.3-5), by the names in use."""

_NO_HTTP = "http://origin.invalid"  # in place of the URL of an origin that is none of HTTP's


async def read_bulk_value(origin: Origin, instance: Instance, caller: Caller, uri: str) -> bytes:
    """A value that the metadata point to. Raises the errors of `twistedproxy.origin.errors`: a picture without a value
    that it needs would be a wrong one."""
    place = bulk_place(origin.url, instance, uri)
    if place is None:
        raise OriginBadAnswer(
            "the origin's metadata point elsewhere than to the store for a value that the picture needs"
        )
    path, query = place
    accept = b'multipart/related; type="application/octet-stream"'
    response = await origin.forward(OriginRequest.get(path, query, accept, caller))
    try:
        data = await read_all(response.body, MAX_BULK)
        if response.status in NOT_ALLOWED:
            raise OriginRefused(response.status, response.headers, data)
        if response.status != 200:
            raise OriginBadAnswer(f"the origin answered {response.status} for a value that the picture needs")
        return _only_part(response, data)
    except (StreamTooLong, BadMultipart) as error:
        raise OriginBadAnswer(f"a value that the picture needs could not be read: {error}") from error


def bulk_place(url: str, instance: Instance, uri: str) -> Optional[tuple[bytes, bytes]]:
    """Path and query, below the origin at *url*, of what *uri* in the metadata of *instance* leads to. None for what is no
    place there.

    Many stores know themselves by another name than we do, so what follows ``/studies/`` or ``/bulkdata/`` counts. A folder
    names its values by its own URL, which is no http one.
    """
    if not url.startswith(("http://", "https://")):
        uri = uri.replace(url, _NO_HTTP, 1) if uri.startswith(f"{url}/") else uri
        url = _NO_HTTP
    if not uri.isascii() or AMBIGUOUS.search(uri):
        return None
    try:
        parts = urlsplit(urljoin(f"{url}{instance.root}/{instance.path}/metadata", uri))
    except ValueError:  # brackets that hold no address
        return None
    path, query, root = parts.path, parts.query, instance.root
    if parts.scheme not in ("http", "https") or not {".", ".."}.isdisjoint(unquote(path).split("/")):
        return None
    base = urlsplit(url).path.rstrip("/")
    if path.startswith(f"{base}{root}/"):
        return path[len(base) :].encode("ascii"), query.encode("ascii")
    for service in ("/studies/", "/bulkdata/"):
        if service in path:
            return (root + path[path.index(service) :]).encode("ascii"), query.encode("ascii")
    return None


def _only_part(response: OriginResponse, data: bytes) -> bytes:
    """The value in an answer: the one part of a multipart one, or all of it. Raises BadMultipart for what is no value, or
    may not be all of it: a picture would be made of a gateway's page."""
    framed, media_type = response.framed(), media_type_of(response.headers)
    if media_type is None:
        raise BadMultipart("its Content-Type is missing or invalid")
    if first(response.headers, b"content-range") is not None:
        raise BadMultipart("it has a Content-Range: it is partial")
    kinds = [media_type.part_type]
    if media_type.is_multipart:
        collector = PartCollector(media_type.boundary, 1)
        parts = collector.feed(data) + collector.close(framed)
        if not parts:
            raise BadMultipart("a multipart answer has no part")
        data = parts[0].data
        if "content-type" in parts[0].headers:
            kinds.append(parts[0].media_type.type if parts[0].media_type is not None else "of no known type")
    elif not framed:
        raise BadMultipart("it has neither a length nor chunks: it may be incomplete")
    for kind in kinds:
        if kind is not None and kind not in _BYTES:
            raise BadMultipart(f"its Content-Type is {kind[:80]}; expected application/octet-stream")
    if not data:
        raise BadMultipart("it is empty")
    return data
